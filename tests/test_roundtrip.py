"""Promise: what was compressed comes back bit for bit, whatever the dtype, the shape and the values, at every level."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import rows
import sources
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from rows import FORMAT_ROWS, WORD, FormatRow, edge_arrays, for_dtype

import modelcodec
from modelcodec import planner
from modelcodec.compression import Settings, compress_view
from modelcodec.formats import FORMATS, container, identify
from modelcodec.formats.container_layout import ORDINARY
from modelcodec.recipe import Recipe
from modelcodec.restoration import restore
from modelcodec.types import DTYPES, DType

LEVELS = (1, 5, 9)
NUMPY = tuple(map(np.dtype, ("bool", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8", "c8")))
EXTRA = tuple(np.dtype(getattr(ml_dtypes, name)) for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"))


def through(source: bytes, level: int = 5) -> bytes:
    """Compress bytes as a file and restore them."""
    view, packed, out = memoryview(source), io.BytesIO(), io.BytesIO()
    compress_view(view, identify(view, None), packed, Settings(Recipe(), level, 1, True, False), None)
    restore(container.read(packed.getbuffer(), "file"), out, 1, None)
    return out.getvalue()


def one_tensor(dtype: DType, shape: tuple[int, ...], data: bytes) -> bytes:
    return sources.safetensors_bytes({"x": (dtype.name, shape, data)})


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.in_safetensors], ids=lambda d: d.name)
def test_every_dtype_with_edge_arrays(dtype: DType, level: int) -> None:
    for name, array in edge_arrays(dtype.word).items():
        data = for_dtype(array, dtype).tobytes()
        n = 8 * len(data) // dtype.bits
        source = one_tensor(dtype, (n,), data[: dtype.n_bytes((n,))])
        assert through(source, level) == source, name


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", [d for d in DTYPES if not d.in_safetensors], ids=lambda d: d.name)
def test_every_dtype_that_only_other_formats_have(dtype: DType, level: int) -> None:
    """Through the planner and a frame: block-quantized types, and complex numbers of 16 bytes."""
    from modelcodec import frame as frames
    from modelcodec.stage import FrameContext
    from modelcodec.types import TensorSpec

    for name, array in edge_arrays(dtype.word).items():
        x = for_dtype(array, dtype)
        spec = TensorSpec("x", dtype, (x.size // dtype.block * dtype.elements,))
        encoded = frames.encode(x, planner.plan(spec, x, level), FrameContext(spec, 0, x.size), 0)
        out = np.empty_like(x)
        frames.decode(memoryview(encoded.data), 0, out, name)
        assert out.tobytes() == x.tobytes(), name


@pytest.mark.parametrize("row", FORMAT_ROWS, ids=lambda row: row.name)
def test_every_format(row: FormatRow, tmp_path: Path) -> None:
    """The file comes back with the same SHA-256, and was read as what it is."""
    name, files = row.make()
    for file_name, data in files.items():
        (tmp_path / file_name).write_bytes(data)
    report = modelcodec.compress(tmp_path / name, tmp_path / "packed", sha256=True)
    assert report.format == row.name
    digest = hashlib.sha256(files[name]).hexdigest()
    assert report.sha256 == digest
    modelcodec.decompress(tmp_path / "packed", tmp_path / "restored")
    assert hashlib.sha256((tmp_path / "restored").read_bytes()).hexdigest() == digest
    with modelcodec.open(tmp_path / "packed") as file:
        assert len(file.keys()) == row.n_tensors


def test_every_format_has_a_row() -> None:
    assert [row.name for row in FORMAT_ROWS] == list(FORMATS)


def arrays(dtypes: tuple[np.dtype[Any], ...]) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Arrays of any shape, 0-d and empty ones too, and any bits: NaN payloads, both zeros, subnormals."""

    def of(dtype: np.dtype[Any]) -> st.SearchStrategy[np.ndarray[Any, Any]]:
        bits = np.dtype(f"u{dtype.itemsize}") if dtype.itemsize < 16 and dtype != np.dtype("bool") and dtype.kind != "c" else dtype
        shape = st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)
        return st_numpy.arrays(bits, shape).map(lambda a: a.view(dtype) if bits != dtype else a)

    return st.sampled_from(dtypes).flatmap(of)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda name: name != "__metadata__")


@given(tensors=st.dictionaries(NAMES, arrays(NUMPY), max_size=5), level=st.sampled_from(LEVELS))
@example(tensors={"\u0000": np.zeros((), "f4"), "{}": np.zeros((0, 3), "i8")}, level=5)
def test_save_and_load_any_arrays(tensors: dict[str, np.ndarray[Any, Any]], level: int) -> None:
    before = {name: array.tobytes() for name, array in tensors.items()}
    loaded = modelcodec.load(modelcodec.save(tensors, {"a": "b"}, level=level))
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert array.tobytes() == before[name]
        assert (loaded[name].dtype, loaded[name].shape) == (array.dtype, array.shape)
        assert loaded[name].tobytes() == before[name]


@given(array=arrays(EXTRA))
def test_save_and_load_the_dtypes_of_ml_dtypes(array: np.ndarray[Any, Any]) -> None:
    loaded = modelcodec.load(modelcodec.save({"x": array}))["x"]
    assert (loaded.dtype, loaded.shape, loaded.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(source=st.binary(max_size=3000) | st.text().map(str.encode), level=st.sampled_from(LEVELS))
@example(source=b"", level=5)
@example(source=b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", level=5)
def test_any_bytes(source: bytes, level: int) -> None:
    assert through(source, level) == source


@given(data=st.data())
def test_safetensors_files_of_any_layout(data: st.DataObject) -> None:
    """Tensors of all dtypes in any order, header keys in another, padding, a hole or something behind the last tensor."""
    known = [d for d in DTYPES if d.in_safetensors]
    tensors = {}
    for i in range(data.draw(st.integers(0, 6))):
        dtype = data.draw(st.sampled_from(known))
        n = data.draw(st.sampled_from([0, 1, 2, 8, 64, 120]))
        n_bytes = dtype.n_bytes((n,))
        words = data.draw(
            st.sampled_from([rows.random_bits(n_bytes, 1, i), np.zeros(n_bytes, np.uint8), np.tile(rows.random_bits(2, 1, i), n_bytes)[:n_bytes]])
        )
        tensors[f"t{i}"] = (dtype.name, data.draw(st.sampled_from([(n,), (1, n), (n, 1, 1)])), words.tobytes())
    source = sources.safetensors_bytes(tensors, data.draw(st.sampled_from([None, {"format": "pt"}])), data.draw(st.integers(0, 9)))
    source += data.draw(st.sampled_from([b"", b"\0", b"trailing bytes"]))
    assert through(source, data.draw(st.sampled_from(LEVELS))) == source


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("BF16", (700, 1000)),  # rows that do not divide a frame
        ("F32", (3, 300_000)),  # rows longer than a frame
        ("F16", (1 << 19,)),  # exactly a frame
        ("F32", ((1 << 18) + 1,)),  # a word more than a frame
        ("U8", (5, 7, 31_013)),
        ("F64", (1, 1, 140_000)),
        ("C64", (150_001,)),
        ("F4", (2_500_000,)),
        ("I32", (2, 2, 70_001)),
    ],
)
@pytest.mark.parametrize("level", [1, 9])
def test_tensors_of_several_frames(dtype: str, shape: tuple[int, ...], level: int) -> None:
    kind = next(d for d in DTYPES if d.name == dtype)
    n_bytes = kind.n_bytes(shape)
    if dtype in ("BF16", "F16", "F32"):
        data = rows.gaussian(n_bytes // kind.word, dtype).tobytes()
    else:
        data = (rows.numbers(n_bytes // kind.word, 200, kind.word) * WORD[kind.word].type(3)).tobytes()
    source = one_tensor(kind, shape, data)
    packed = io.BytesIO()
    view = memoryview(source)
    compress_view(view, identify(view, None), packed, Settings(Recipe(), level, 2, True, False), None)
    archive = container.read(packed.getbuffer(), "file")
    assert archive.tensors[0].n_frames >= (2 if n_bytes > 1 << 20 else 1)
    assert len(packed.getbuffer()) < len(source)
    out = io.BytesIO()
    restore(archive, out, 2, None)
    assert out.getvalue() == source


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_grows(level: int) -> None:
    """Random bits stay ordinary: header and directory are all that is added."""
    source = one_tensor(next(d for d in DTYPES if d.name == "F32"), (500, 500), rows.random_bits(250_000, 4).tobytes())
    packed = io.BytesIO()
    view = memoryview(source)
    compress_view(view, identify(view, None), packed, Settings(Recipe(), level, 1, True, False), None)
    assert len(packed.getbuffer()) < len(source) + 500
    assert container.read(packed.getbuffer(), "file").tensors[0].kind == ORDINARY


@settings(max_examples=15)
@given(depth=st.integers(1, 4), level=st.sampled_from(LEVELS))
def test_containers_nest(depth: int, level: int) -> None:
    source = one_tensor(next(d for d in DTYPES if d.name == "BF16"), (40, 50), rows.gaussian(2000, "BF16").tobytes())
    packed = source
    for _ in range(depth):
        out = io.BytesIO()
        compress_view(memoryview(packed), identify(memoryview(packed), None), out, Settings(Recipe(), level, 1, True, False), None)
        packed = out.getvalue()
    for _ in range(depth):
        unpacked = io.BytesIO()
        restore(container.read(memoryview(packed), "file"), unpacked, 1, None)
        packed = unpacked.getvalue()
    assert packed == source
