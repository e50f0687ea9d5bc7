"""Sizes of quantized, sparse and few-valued tensors beside their entropy, of casts of real weights, and of ggml's block types.

No clock, so the figures are the same everywhere.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import zstandard

import modelcodec
from benchmarks.corpus import data_folder
from benchmarks.lossless import replace_block

LEVELS = (1, 5, 9)
SOURCE = "stories15M_f32.safetensors"
CAST = "merlin_base_subset_bf16.safetensors"
ZSTD_LEVEL = 19
NF4 = np.array([-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1])


def entropy_table(root: Path) -> str:
    """The rows of tests/test_near_entropy.py: what each holds at order 0, and what it takes."""
    sys.path.insert(0, str(root / "tests"))
    from test_near_entropy import ENTROPY_ROWS

    lines = ["| tensor | entropy % | -1 | -5 | -9 |", "|---|---|---|---|---|"]
    for row in ENTROPY_ROWS:
        tensors, bits = row.make()
        n_bytes = sum(x.nbytes for x in tensors.values())
        coded = [100 * len(modelcodec.save(tensors, level=level)) / n_bytes for level in LEVELS]
        lines.append(f"| {row.make.__name__.replace('_', ' ')} | {100 * bits / 8 / n_bytes:.2f} | " + " | ".join(f"{x:.2f}" for x in coded) + " |")
    return "\n".join(lines)


def matrices(path: Path) -> dict[str, np.ndarray]:
    """The matrices and kernels of a safetensors file of float32 or bfloat16, as float32."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    spans = {name: (row["shape"], *row["data_offsets"]) for name, row in header.items() if name != "__metadata__" and len(row["shape"]) > 1}
    kinds = {name: "<f4" if header[name]["dtype"] == "F32" else ml_dtypes.bfloat16 for name in spans}
    return {name: np.frombuffer(data[start + a : start + b], kinds[name]).astype(np.float32).reshape(shape) for name, (shape, a, b) in spans.items()}


def by_row(w: np.ndarray, most: float) -> np.ndarray:
    """Rows scaled so that the largest magnitude is `most`."""
    return by_block(w, most, 1, w.shape[1])


def by_block(w: np.ndarray, most: float, rows: int, columns: int) -> np.ndarray:
    """The same for blocks of so many rows and columns, fewer at the edges."""
    scaled = w.copy()
    for i in range(0, w.shape[0], rows):
        for j in range(0, w.shape[1], columns):
            block = scaled[i : i + rows, j : j + columns]
            block *= most / max(float(np.abs(block).max()), 1e-30)
    return scaled


def packed(numbers: np.ndarray) -> np.ndarray:
    """Two numbers of 4 bits in a byte; an odd column is left out."""
    nibbles = numbers[:, : numbers.shape[1] & ~1].astype(np.uint8)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4


CASTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fp8 e4m3, a scale a row": lambda w: by_row(w, 448).astype(ml_dtypes.float8_e4m3fn),
    "fp8 e4m3, a scale a block of 128 x 128": lambda w: by_block(w, 448, 128, 128).astype(ml_dtypes.float8_e4m3fn),
    "fp8 e5m2, a scale a row": lambda w: by_row(w, 57344).astype(ml_dtypes.float8_e5m2),
    "int8, a scale a row": lambda w: np.round(by_row(w, 127)).astype(np.int8),
    "int4 packed, a scale a row": lambda w: packed(np.round(by_row(w, 7)) + 8),
    "int4 packed, a scale for 128": lambda w: packed(np.round(by_block(w, 7, 1, 128)) + 8),
    "NF4 packed, a scale for 64": lambda w: packed(np.searchsorted((NF4[1:] + NF4[:-1]) / 2, by_block(w, 1, 1, 64))),
}


def cast_rows(weights: dict[str, np.ndarray]) -> Iterator[str]:
    """Real weights, quantized, without their scales, beside the entropy of the bytes of each tensor at order 0."""
    for name, cast in CASTS.items():
        tensors = {key: cast(w.reshape(w.shape[0], -1)) for key, w in weights.items()}
        n_bytes = sum(x.nbytes for x in tensors.values())
        sizes = [sum(map(order0_bytes, tensors.values())), *(len(modelcodec.save(tensors, level=level)) for level in LEVELS)]
        sizes.append(sum(min(len(zstandard.compress(x.tobytes(), ZSTD_LEVEL)), x.nbytes) for x in tensors.values()))
        yield f"| {name} | " + " | ".join(f"{100 * size / n_bytes:.2f}" for size in sizes) + " |"


def order0_bytes(x: np.ndarray) -> float:
    counts = np.bincount(x.view(np.uint8).reshape(-1), minlength=256)
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum()) / 8


def ggml_rows(weights: dict[str, np.ndarray], scratch: Path) -> Iterator[str]:
    """A GGUF file of each type that the gguf package can quantize to."""
    import gguf

    for kind in gguf.GGMLQuantizationType:
        block = gguf.GGML_QUANT_SIZES[kind][0]
        try:
            tensors = {name: gguf.quants.quantize(w, kind) for name, w in weights.items() if w.shape[1] % block == 0}
        except NotImplementedError:
            continue
        if not tensors:
            continue
        path = scratch / f"{kind.name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        data = path.read_bytes()
        coded = [100 * modelcodec.compress(path, scratch / "coded", level=level, overwrite=True).ratio for level in LEVELS]
        modelcodec.decompress(scratch / "coded", scratch / "back", overwrite=True)
        if (scratch / "back").read_bytes() != data:
            raise AssertionError(f"{kind.name} did not come back")
        cells = [kind.name, str(len(tensors)), *(f"{x:.2f}" for x in coded), f"{100 * len(zstandard.compress(data, ZSTD_LEVEL)) / len(data):.2f}"]
        yield "| " + " | ".join(cells) + " |"


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Print the tables; write them to docs/benchmarks.md unless `quick`. Returns 0."""
    block = entropy_table(root)
    folder = data_folder(root, data)
    if folder is None or not all((folder / name).exists() for name in (SOURCE, CAST)):
        print(f"{SOURCE} and {CAST} are not there (--data, $MODELCODEC_DATA or ../shared/data): casts and GGUF types are left out.", file=sys.stderr)
    else:
        casts = "\n".join(cast_rows(matrices(folder / CAST)))
        block += f"\n\n| cast of {CAST} | entropy % | -1 | -5 | -9 | zstd -{ZSTD_LEVEL} |\n|---|---|---|---|---|---|\n{casts}"
        with tempfile.TemporaryDirectory() as scratch:
            rows = "\n".join(ggml_rows(matrices(folder / SOURCE), Path(scratch)))
        block += f"\n\n| GGUF, {SOURCE} | tensors | -1 | -5 | -9 | zstd -{ZSTD_LEVEL} |\n|---|---|---|---|---|---|\n{rows}"
    print(block)
    if not quick:
        replace_block(root / "docs" / "benchmarks.md", block, "quantized")
    return 0
