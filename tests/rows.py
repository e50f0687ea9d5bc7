"""One row for each stage, each source format and each kernel. The tests by promise run over these rows: a new stage, format or kernel is tested by its row.

Every array comes from integers alone (PCG64's raw stream), so that it is the same with every version of numpy and on every machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import sources
from kernel_rows import KERNEL_ROWS, KernelRow
from numpy.typing import NDArray

from modelcodec import changes
from modelcodec.kernels import frequencies
from modelcodec.stage import Shared
from modelcodec.stages.class_rans import ScaleClasses
from modelcodec.stages.codebook import Codebook
from modelcodec.types import DTYPE_BY_NAME, U8, DType, TensorSpec

__all__ = ["FORMAT_ROWS", "KERNEL_ROWS", "STAGE_ROWS", "FormatRow", "KernelRow", "StageRow"]

Array = NDArray[Any]
WORD = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


# ---- arrays ------------------------------------------------------------------------------------------------------------------------


def random_bits(n: int, width: int, seed: int = 0) -> Array:
    """n words of `width` bytes, every bit random."""
    return np.frombuffer(np.random.PCG64(seed).random_raw(-(-n * width // 8) or 1).astype("<u8").tobytes(), WORD[width])[:n].copy()


def numbers(n: int, below: int, width: int, seed: int = 0) -> Array:
    """n random words below a number."""
    return (random_bits(n, 8, seed) % np.uint64(below)).astype(WORD[width])


def gaussian(n: int, dtype: str, seed: int = 0, scale: float = 0.02) -> Array:
    """Bit patterns of n numbers that look like trained weights: the sum of 12 uniform numbers, scaled."""
    import ml_dtypes

    uniform = (random_bits(12 * n, 4, seed).astype(np.float64) / 2.0**32).reshape(n, 12)
    values = (uniform.sum(axis=1) - 6) * scale
    kinds = {
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F16": np.float16,
        "F32": np.float32,
        "F64": np.float64,
    }
    rounded = values.astype(np.float32).astype(kinds[dtype]) if dtype.startswith(("B", "F8")) else values.astype(kinds[dtype])
    return rounded.view(WORD[rounded.itemsize])


_FLOAT_BITS = {1: (4, 3), 2: (5, 10), 4: (8, 23), 8: (11, 52)}
"""Bytes of a word -> bits of exponent and mantissa; two-byte words also as (8, 7)."""


def _specials(width: int, exponent: int, mantissa: int) -> dict[str, Array]:
    """Floats that a conversion to numbers would not bring back: NaN payloads, signed zeros, infinities, subnormals."""
    infinity = ((1 << exponent) - 1) << mantissa
    sign = 1 << (8 * width - 1)
    payloads = np.arange(1, 200, dtype=np.uint64) * np.uint64(max(1, ((1 << mantissa) - 1) // 211)) % np.uint64((1 << mantissa) - 1) + np.uint64(1)
    nan = (payloads | np.uint64(infinity)).astype(WORD[width])
    name = f"e{exponent}"
    return {
        f"nan payloads {name}": np.concatenate([nan, nan | WORD[width].type(sign)]),
        f"infinities {name}": np.array([infinity, infinity | sign] * 20, WORD[width]),
        f"subnormals {name}": numbers(200, 1 << mantissa, width, 3) | (numbers(200, 2, width, 4) << WORD[width].type(8 * width - 1)),
        f"specials among weights {name}": np.concatenate([random_bits(90, width, 5), nan[:5], np.array([0, sign, infinity, infinity | sign, 1], WORD[width])]),
    }


@cache
def edge_arrays(width: int) -> dict[str, Array]:
    """Arrays of words of `width` bytes where codecs go wrong, by name. Read-only."""
    word, sign = WORD[width], 1 << (8 * width - 1)
    arrays = {
        "empty": np.empty(0, word),
        "one zero": np.zeros(1, word),
        "one word": np.array([sign | 5], word),
        "two words": np.array([1, 2], word),
        "zeros": np.zeros(1000, word),
        "negative zeros": np.full(333, sign, word),
        "zeros of both signs": numbers(500, 2, width) << word.type(8 * width - 1),
        "all equal": np.full(777, 0x5B, word),
        "all bits set": np.full(100, -1, f"<i{width}").view(word),
        "two values": np.where(numbers(600, 2, width) > 0, word.type(0x3C), word.type(sign | 1)),
        "sixteen values": random_bits(16, width, 1)[numbers(3000, 16, 1, 2)],
        "counting": np.arange(5000, dtype=np.uint64).astype(word),
        "small numbers": numbers(3000, 100, width, 6),
        "mostly zero": np.where(numbers(4000, 10, 1, 7) > 0, word.type(0), random_bits(4000, width, 8)),
        "one in a thousand": np.where(np.arange(2000) % 1000 == 999, word.type(1), word.type(0)),
        "random bits": random_bits(2000, width, 9),
        **_specials(width, *_FLOAT_BITS[width]),
        **{f"{n} words": random_bits(n, width, n) & word.type((1 << (8 * width - 2)) - 1) for n in (7, 8, 9, 63, 64, 65, 127, 128, 129)},
        **{f"weights of {name}": gaussian(4097, name, 10) for name in ("F8_E4M3", "F8_E5M2", "BF16", "F16", "F32", "F64") if DTYPE_BY_NAME[name].word == width},
    }
    if width == 2:
        arrays |= _specials(2, 8, 7)
    if width == 4:
        arrays["bfloat16 in float32"] = gaussian(3000, "BF16", 11).astype(word) << word.type(16)
        arrays["float16 in float32"] = gaussian(3000, "F16", 12).view(np.float16).astype(np.float32).view(word)
    if width == 8:
        arrays["float32 in float64"] = gaussian(3000, "F32", 13).view(np.float32).astype(np.float64).view(word)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def for_dtype(array: Array, dtype: DType) -> Array:
    """As many of the words as make whole elements (or ggml blocks) of the dtype."""
    return array[: array.size // dtype.block * dtype.block]


# ---- stages ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageRow:
    """A stage: `plans` whose tree it is in, as recipes write them; `dtypes` whose words it takes; `sample` is what it is for, coded by the first plan in at
    most `bound` of the raw bytes; `shared` makes what a group of frames shares, and `base` the base's words, for stages that need them."""

    name: str
    plans: tuple[str, ...]
    dtypes: tuple[str, ...]
    sample: Array
    bound: float
    shared: Callable[[Array], Shared] | None = None
    base: Callable[[Array], Array] | None = None


def classes_of(x: Array) -> Shared:
    """Scale classes for words in rows of ten: made up, but as good as any for a test."""
    columns, bits = 10, 11
    n_rows = -(-max(x.size, 1) // columns)
    row_scales, column_scales = numbers(n_rows, 64, 1, 1), numbers(columns, 64, 1, 2)
    thresholds = np.array([40, 64, 64, 90], np.uint8)
    classes = np.searchsorted(thresholds, row_scales.astype(int)[:, None] + column_scales, side="right").reshape(-1)[: x.size]
    tables = []
    for c in range(thresholds.size + 1):
        counts = np.bincount(np.minimum(x[classes == c].astype(np.uint64), np.uint64(1022)).astype(np.int64), minlength=1023)
        tables.append(frequencies.normalise(counts, bits, 2, escape=True))
    return Shared(ScaleClasses(row_scales, column_scales, thresholds, tuple(tables)).write())


def base_of(x: Array) -> Array:
    """Words near these, some of them equal, some of the other sign, some of any kind."""
    near = x ^ numbers(x.size, 4, x.itemsize, 3) ^ ((numbers(x.size, 20, 1, 4) == 0).astype(x.dtype) << x.dtype.type(8 * x.itemsize - 1))
    return np.where(numbers(x.size, 50, 1, 5) == 0, random_bits(x.size, x.itemsize, 6), near)


def changes_of(x: Array) -> Shared:
    """What a group of deltas shares, in rows of ten."""
    words = x if x.size else np.zeros(1, x.dtype)
    return Shared(changes.find(words, base_of(words), 10, {1: "F8_E4M3", 2: "BF16", 4: "F32", 8: "F64"}[x.itemsize]).write())


def codebook_of(x: Array) -> Shared:
    """A shared codebook of these words, or, where they are too many, of the first."""
    words = x if x.size else np.zeros(1, x.dtype)
    book = Codebook().book(words, TensorSpec("", U8, (words.size,)), 0) or Codebook().book(words[:1], TensorSpec("", U8, (1,)), 0)
    assert book
    return Shared(book.write(), book)


_ALL = ("U8", "BF16", "F32", "F64")
_WIDE = _ALL[1:]

STAGE_ROWS: tuple[StageRow, ...] = (
    StageRow("raw", ("raw",), _ALL, random_bits(200, 1), 1.2),
    StageRow("constant", ("constant",), _ALL, np.full(500, 0x3F80, np.uint16), 0.03),
    StageRow("zstd", ("zstd", "zstd{level=19}"), _ALL, np.tile(random_bits(40, 4), 40), 0.05),
    StageRow("rans", ("rans", "rans{table_bits=8}", "rans{table_bits=11}"), ("U8", "BF16"), gaussian(4000, "BF16") >> np.uint16(7), 0.25),
    StageRow(
        "split_float",
        (
            "split_float(symbols:rans)",
            "split_float{low_bits=5}(symbols:rans{table_bits=11}, rest:zstd)",
            "split_float{low_bits=0}(symbols:rans, rest:rans, low:zstd)",
            "split_float{low_bits=13}(symbols:zstd, low:planes(plane 0:rans, plane 1:rans))",
            "split_float{low_bits=10}(symbols:palette(indices:rans), low:split_float(symbols:rans))",
            "split_float",
        ),
        _WIDE,
        gaussian(4000, "BF16"),
        0.70,
    ),
    StageRow(
        "planes",
        ("planes(plane 0:rans, plane 1:rans, plane 2:constant, plane 3:constant)", "planes(plane 0:planes, plane 1:zstd, plane 7:sparse(mask:rans))", "planes"),
        _WIDE,
        np.arange(4000, dtype=np.uint32) % np.uint32(300),
        0.33,
    ),
    StageRow(
        "palette",
        ("palette(indices:rans)", "palette{most=16}(indices:zstd)", "palette"),
        _ALL,
        random_bits(20, 4)[numbers(2000, 20, 1, 2)],
        0.18,
    ),
    StageRow(
        "sparse",
        ("sparse(mask:rans, values:split_float(symbols:rans))", "sparse(mask:zstd, values:palette(indices:rans))", "sparse(values:sparse)", "sparse"),
        _ALL,
        np.where(numbers(4000, 10, 1, 7) > 0, np.uint16(0), gaussian(4000, "BF16", 8)),
        0.16,
    ),
    StageRow(
        "widen",
        (
            "widen{kind=2}(narrow:split_float{low_bits=10}(symbols:rans))",
            "widen(narrow:split_float(symbols:rans))",
            "widen{kind=3}(narrow:widen(narrow:rans))",
            "widen{kind=4}(narrow:rans)",
            "widen{kind=5}(narrow:planes)",
            "widen{kind=6}(narrow:rans)",
            "widen{kind=7}(narrow:zstd)",
            "widen{kind=8}(narrow:widen{kind=4}(narrow:palette))",
        ),
        ("F32", "F64"),
        gaussian(3000, "F16", 12).view(np.float16).astype(np.float32).view(np.uint32),
        0.45,
    ),
    StageRow(
        "fields",
        (
            "fields{fields=2x1+1x16}(field 0:split_float{low_bits=10}(symbols:rans), field 1:rans)",
            "fields{fields=1x1}(field 0:fields{fields=1x1})",
            "fields{fields=8x1+4x2+2x4+1x3}(field 0:widen{kind=6}, field 1:sparse, field 2:palette, field 3:zstd)",
        ),
        ("U8", "Q4_0"),
        sources.q4_0_blocks(200),
        0.85,
    ),
    StageRow("class_rans", ("class_rans", "split_float(symbols:class_rans)"), ("U8", "BF16"), gaussian(9000, "BF16") >> np.uint16(7), 0.30, classes_of),
    StageRow(
        "codebook",
        ("codebook(indices:rans)", "codebook{dimension=3}(entries:zstd, indices:rans)", "codebook{modelled=True}(entries:rans)", "codebook"),
        _ALL,
        random_bits(20, 4)[numbers(2000, 20, 1, 2)],
        0.17,
        codebook_of,
    ),
    StageRow("delta", ("delta",), ("F8_E4M3", *_WIDE), gaussian(9000, "BF16"), 0.45, changes_of, base_of),
)


# ---- source formats ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FormatRow:
    """A source format: `make` gives the file's name and the names and bytes of what must lie beside it (itself included)."""

    name: str
    make: Callable[[], tuple[str, dict[str, bytes]]]
    n_tensors: int
    reproducible: bool = True
    """Whether `make` gives the same bytes with every version of the library that it uses."""


FORMAT_ROWS: tuple[FormatRow, ...] = (
    FormatRow("safetensors", sources.safetensors_file, 4),
    FormatRow("torch_zip", sources.torch_zip_file, 3, reproducible=False),
    FormatRow("torch_legacy", sources.torch_legacy_file, 2, reproducible=False),
    FormatRow("gguf", sources.gguf_file, 3),
    FormatRow("npy", sources.npy_file, 1),
    FormatRow("npz", sources.npz_file, 2),
    FormatRow("onnx", sources.onnx_file, 2),
    FormatRow("onnx_data", sources.onnx_data_file, 1),
    FormatRow("bytes", sources.any_file, 1),
)
