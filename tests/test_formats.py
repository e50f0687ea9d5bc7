"""Promise: what a reader calls a tensor is that tensor's bytes in the file, and no file, however damaged, does more harm than being read as bytes."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import struct
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modelcodec.formats.onnx
from modelcodec import formats
from modelcodec.errors import ModelCodecError
from modelcodec.formats import FORMAT_IDS, FORMATS, checked, format_of, identify
from modelcodec.limits import LIMITS
from modelcodec.types import DTYPES, Checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, whose files are still around

torch = pytest.importorskip("torch")
safetensors_numpy = pytest.importorskip("safetensors.numpy")
gguf = pytest.importorskip("gguf")
onnx = pytest.importorskip("onnx")

SLOWEST_S = 2.0
"""No small file may take longer, however hostile; generous, for a busy machine."""

Tensors = dict[str, bytes]


def read(data: bytes | memoryview, path: Path | None = None) -> Checkpoint:
    """`identify`, timed, with everything that a checkpoint promises checked."""
    source = memoryview(data)
    start = time.process_time()
    found = identify(source, path)
    assert time.process_time() - start < SLOWEST_S
    position = 0
    for extent in found.extents:
        assert position <= extent.offset <= extent.end <= len(source)
        position = extent.end
    for view in found.views:
        extent = found.extents[view.extent]
        last = view.first + sum((n - 1) * stride for n, stride in zip(view.spec.shape, view.strides, strict=True))
        assert 0 in view.spec.shape or 0 <= last * view.spec.dtype.bits < extent.spec.n_bytes * 8
    assert len({extent.spec.name for extent in found.extents}) == len(found.extents)
    return found


def tensors_of(data: bytes, found: Checkpoint) -> Tensors:
    """Each named tensor's bytes in row-major order: of the views where there are any, else of the extents."""
    if not found.views:
        return {extent.spec.name: data[extent.offset : extent.end] for extent in found.extents}
    tensors = {}
    for view in found.views:
        extent, item = found.extents[view.extent], view.spec.dtype.bits // 8
        storage = data[extent.offset : extent.end]
        strides = [item * stride for stride in view.strides]
        empty = 0 in view.spec.shape or not storage
        tensors[view.spec.name] = b"" if empty else np.ndarray(view.spec.shape, f"V{item}", storage, item * view.first, strides).tobytes()
    return tensors


# ---- one row a kind of file: written by the library whose format it is -------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """`make` writes a file and returns the bytes of its tensors by name. `views`: the names are those of views."""

    id: str
    format: str
    suffix: str
    make: Callable[[Path], Tensors]


def _numbers(*shape: int, dtype: str = "f4", seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 50).astype(dtype)


def _safetensors(path: Path) -> Tensors:
    arrays = {f"layer.{d}": _numbers(3, 5, dtype=d) for d in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1", "u2", "u4", "u8", "?", "c8")}
    arrays |= {"0-d": np.array(3.5, "f4"), "empty": np.zeros((0, 7), "f4")}
    safetensors_numpy.save_file(arrays, path, metadata={"format": "pt"})
    return {name: array.tobytes() for name, array in arrays.items()}


def _torch_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _state() -> dict[str, object]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(OrderedDict(conv=torch.nn.Conv2d(3, 8, 3), norm=torch.nn.BatchNorm2d(8), last=torch.nn.Linear(8, 4).to(torch.bfloat16)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "names": ["a", "b"], "betas": (0.9, 0.999), "note": None, "best": 0.5}


def _named(value: object, name: str = "") -> Tensors:
    if isinstance(value, torch.Tensor):
        return {name: _torch_bytes(value)}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {key: data for part, inner in items for key, data in _named(inner, f"{name}.{part}" if name else str(part)).items()}


def _torch_state(path: Path, zipped: bool = True) -> Tensors:
    state = _state()
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return _named(state)


def _torch_odd(path: Path, zipped: bool = True) -> Tensors:
    """Shared and strided storages, parameters, all dtypes, keys of several kinds."""
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    dtypes = "float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128".split()  # noqa: SIM905
    if zipped:
        dtypes += "uint16 uint32 uint64 float8_e4m3fn float8_e5m2 float8_e8m0fnu".split()  # noqa: SIM905
    state: dict[object, object] = {dtype: torch.ones(2, 3).to(getattr(torch, dtype)) for dtype in dtypes}
    state |= {"base": base, "tied": base, "row": base[1], "turned": base.permute(2, 0, 1), "step": base[:, ::2, 1:3], "scalar": torch.tensor(7.0)}
    state |= {"empty": torch.zeros(0, 4), "parameter": torch.nn.Parameter(base[0].clone()), 7: torch.ones(3), "list": [torch.zeros(2), (torch.ones(2),)]}
    state |= {"channels": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    state |= {"size": torch.Size([1, 2]), "device": torch.device("cpu"), "dtype": torch.half}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return _named(state)


def _torch_one(path: Path) -> Tensors:
    tensor = torch.rand(4, 4)
    torch.save(tensor, path)
    return {"tensor": _torch_bytes(tensor)}


def _torch_script(path: Path) -> Tensors:
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 2)).eval()
    torch.jit.trace(model, torch.zeros(1, 6)).save(str(path))
    return {name: _torch_bytes(tensor) for name, tensor in model.state_dict().items()}


def _gguf(path: Path) -> Tensors:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "tiny")
    writer.add_uint32("llama.block_count", 1)
    writer.add_float64("a.double", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "</s>", "ä", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5, -3.0])
    arrays = {d: _numbers(3, 64, dtype=d) for d in ("f4", "f2", "f8", "i1", "i2", "i4", "i8")}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    packed = {"q8": (gguf.GGMLQuantizationType.Q8_0, 2 * 34), "q4k": (gguf.GGMLQuantizationType.Q4_K, 144), "bf16": (gguf.GGMLQuantizationType.BF16, 2 * 64)}
    for name, (kind, row) in packed.items():
        arrays[name] = _numbers(5, row, dtype="u1")
        writer.add_tensor(name, arrays[name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: array.tobytes() for name, array in arrays.items()}


def _npy(path: Path) -> Tensors:
    array = _numbers(7, 9)
    np.save(path, array)
    return {"array": array.tobytes()}


def _npz(path: Path) -> Tensors:
    arrays = {f"d.{d}": _numbers(3, 5, dtype=d) for d in ("f8", "f4", "f2", "i8", "u2", "?", "c8", "c16", ">f4", ">i8")}
    arrays |= {"fortran": np.asfortranarray(_numbers(4, 6)), "text": np.array(["ab", "c"]), "0-d": np.array(2.5), "empty": np.zeros((0, 3))}
    arrays["dates"] = np.array(["2020-01-01"], "M8[D]")
    arrays["records"] = np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])
    np.savez(path, **arrays)
    return {name: array.tobytes() for name, array in arrays.items()}


def _tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)


def _onnx(path: Path) -> Tensors:
    helper, kinds = onnx.helper, onnx.TensorProto
    raw, listed, inner, constant = _numbers(8, 8), _numbers(6, 7), _numbers(7, 7, dtype="f2"), _numbers(30, dtype="i8")
    half, doubles = _numbers(9, 9, dtype="f2"), _numbers(4, 4, dtype="f8")
    identity, out = helper.make_node("Identity", ["inner"], ["out"]), helper.make_tensor_value_info("out", 10, None)
    branch = helper.make_graph([identity], "branch", [], [out], [_tensor("inner", inner)])
    nodes = [
        helper.make_node("If", ["x"], ["y"], name="choice", then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["c"], name="numbers", value=_tensor("", constant)),
    ]
    initializers = [
        _tensor("raw", raw),
        helper.make_tensor("listed", kinds.FLOAT, listed.shape, listed.ravel().tolist()),
        helper.make_tensor("doubles", kinds.DOUBLE, doubles.shape, doubles.ravel().tolist()),
        helper.make_tensor("half", kinds.FLOAT16, half.shape, half.tobytes(), raw=True),
        helper.make_tensor("varints", kinds.INT64, (40,), list(range(40))),
        _tensor("small", np.arange(2)),
    ]
    graph = helper.make_graph(nodes, "main", [helper.make_tensor_value_info("x", 9, [])], [helper.make_tensor_value_info("y", 10, None)], initializers)
    onnx.save(helper.make_model(graph), path)
    expected = {"raw": raw, "listed": listed, "doubles": doubles, "half": half, "choice/inner": inner, "choice/inner#2": inner, "numbers/value": constant}
    return {name: array.tobytes() for name, array in expected.items()}


def _onnx_data(path: Path) -> Tensors:
    arrays = {"first": _numbers(64, 8), "second": _numbers(100, dtype="f2")}
    graph = onnx.helper.make_graph([], "main", [], [], [_tensor(name, array) for name, array in arrays.items()])
    onnx.save(onnx.helper.make_model(graph), path.with_suffix(".onnx"), save_as_external_data=True, location=path.name, size_threshold=0)
    return {name: array.tobytes() for name, array in arrays.items()}


def _bytes(path: Path) -> Tensors:
    path.write_bytes(b"some text\n" * 50)
    return {"bytes": path.read_bytes()}


ROWS = (
    Row("safetensors", "safetensors", ".safetensors", _safetensors),
    Row("torch-state", "torch_zip", ".pt", _torch_state),
    Row("torch-odd", "torch_zip", ".bin", _torch_odd),
    Row("torch-one", "torch_zip", ".pth", _torch_one),
    Row("torch-script", "torch_zip", ".pt", _torch_script),
    Row("legacy-state", "torch_legacy", ".th", lambda path: _torch_state(path, zipped=False)),
    Row("legacy-odd", "torch_legacy", ".th", lambda path: _torch_odd(path, zipped=False)),
    Row("gguf", "gguf", ".gguf", _gguf),
    Row("npy", "npy", ".npy", _npy),
    Row("npz", "npz", ".npz", _npz),
    Row("onnx", "onnx", ".onnx", _onnx),
    Row("onnx-data", "onnx_data", ".data", _onnx_data),
    Row("bytes", "bytes", ".txt", _bytes),
)


@dataclass(frozen=True)
class Made:
    row: Row
    path: Path
    data: bytes
    expected: Tensors


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.id)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    row: Row = request.param
    path = tmp_path_factory.mktemp(row.id) / f"model{row.suffix}"
    expected = row.make(path)
    return Made(row, path, path.read_bytes(), expected)


# ---- promises that hold for every row ----------------------------------------------------------------------------------------------


def test_tensors_are_the_files_bytes(made: Made) -> None:
    found = read(made.data, made.path)
    assert found.format == made.row.format
    assert tensors_of(made.data, found) == made.expected


def _damaged(data: bytes, rng: random.Random) -> bytes:
    """One of the things that happen to files: cut off, bits flipped, a piece lost or doubled, a length made absurd."""
    out = bytearray(data)
    match rng.randrange(6):
        case 0:
            del out[rng.randrange(len(out)) :]
        case 1:
            for _ in range(rng.randrange(1, 8)):
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        case 2:
            at = rng.randrange(len(out))
            del out[at : at + rng.randrange(1, 64)]
        case 3:
            at = rng.randrange(len(out))
            out[at:at] = out[at : at + rng.randrange(1, 64)]
        case 4:
            size = rng.choice((4, 8))
            at = rng.randrange(max(1, len(out) - size))
            value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1))
            out[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
        case _:
            at = rng.randrange(len(out))
            out[at : at + 16] = rng.randbytes(16)
    return bytes(out)


def _try(made: Made, data: bytes) -> None:
    read(data, made.path)
    source = memoryview(data)
    reader = format_of(made.row.format)
    with suppress(ModelCodecError):
        if reader.sniff(source, made.path):
            checked(reader.read(source, made.path), len(source))


def test_damaged_files_are_still_read(made: Made) -> None:
    """Anywhere in the file, and where it is densest: at both ends, where the records stand. Readers raise ModelCodecError and nothing else."""
    rng = random.Random(made.row.id)
    dense = 2000
    for _ in range(200):
        _try(made, _damaged(made.data, rng))
        _try(made, _damaged(made.data[:dense], rng) + made.data[dense:])
        _try(made, made.data[:-dense] + _damaged(made.data[-dense:], rng))


def test_every_short_prefix_is_still_read(made: Made) -> None:
    for n in (*range(0, 400, 7), *range(400, len(made.data), max(1, len(made.data) // 40))):
        _try(made, made.data[:n])


def test_no_length_is_believed(made: Made) -> None:
    """A safetensors file, or a zip's directory, with each aligned word near its ends set to values where arithmetic on fixed widths would wrap."""
    for at in (*range(0, 160, 4), *range(max(160, len(made.data) - 160), len(made.data) - 8)):
        for value in (2**63 - 1, 2**64 - 1, 2**32 - 1):
            _try(made, made.data[:at] + value.to_bytes(8, "little") + made.data[at + 8 :])


def test_registries_agree() -> None:
    assert FORMATS.keys() == FORMAT_IDS.keys()
    assert sorted(FORMAT_IDS.values()) == list(range(len(FORMAT_IDS)))
    for name in FORMATS:
        assert format_of(name).name == name
    document = Path(__file__).parent.parent / "docs" / "format.md"
    section = document.read_text().split("## 7. Source formats")[1].split("\n## ")[0]
    listed = {name: int(number) for number, name in re.findall(r"(\d+) ([a-z_]+)", section)}
    assert listed == FORMAT_IDS


# ---- bytes -------------------------------------------------------------------------------------------------------------------------


def test_bytes_is_one_extent() -> None:
    (extent,) = read(b"hello").extents
    assert (extent.spec.name, extent.spec.dtype.name, extent.spec.shape, extent.offset) == ("bytes", "U8", (5,), 0)


def test_an_empty_file_has_no_extents() -> None:
    found = read(b"")
    assert (found.format, found.extents) == ("bytes", ())


@pytest.mark.parametrize("name", ["__modelcodec__.directory", "__metadata__", "__modelcodec__."])
def test_reserved_names_make_bytes(name: str, tmp_path: Path) -> None:
    """In any format: such a name would meet the container's own entries."""
    np.savez(tmp_path / "x.npz", **{name: np.zeros(10)})
    assert read((tmp_path / "x.npz").read_bytes()).format == "bytes"


def test_a_large_skeleton_makes_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _header({"a": _entry(0, 4)}, b"\0" * 4 + b"x" * 2000)
    assert read(data).format == "safetensors"
    monkeypatch.setattr(formats, "LIMITS", replace(LIMITS, skeleton_bytes=1000))
    assert read(data).format == "bytes"


# ---- safetensors -------------------------------------------------------------------------------------------------------------------


def _entry(begin: int, end: int, dtype: str = "U8", shape: list[int] | None = None, **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end], **more}


def _header(header: object, data: bytes = b"", padding: str = "", leading: str = "") -> bytes:
    text = (leading + (header if isinstance(header, str) else json.dumps(header)) + padding).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d.in_safetensors], ids=lambda d: d.name)
def test_safetensors_all_dtypes(dtype) -> None:
    n = dtype.n_bytes((4, 6))
    (extent,) = read(_header({"t": _entry(0, n, dtype.name, [4, 6])}, bytes(n))).extents
    assert (extent.spec.dtype, extent.spec.shape, extent.spec.n_bytes) == (dtype, (4, 6), n)


GOOD_HEADERS = {
    "padding": _header({"t": _entry(0, 3)}, b"abc", padding="   \n\t "),
    "leading space": _header({"t": _entry(0, 3)}, b"abc", leading=" \n"),
    "any order": _header({"b": _entry(3, 5), "a": _entry(0, 3)}, b"abcde"),
    "unknown fields": _header({"t": _entry(0, 3, quality=5, nested={"a": [1]})}, b"abc"),
    "hole": _header({"a": _entry(0, 1), "b": _entry(3, 5)}, b"abcde"),
    "tail": _header({"a": _entry(0, 1)}, b"abcde"),
    "empty ones": _header({"a": _entry(0, 0), "b": _entry(0, 3), "c": _entry(3, 3, "F32", [0, 5]), "d": _entry(3, 7, "F32", [])}, b"abcdefg"),
    "no metadata": _header({"__metadata__": None, "t": _entry(0, 3)}, b"abc"),
    "no tensors": _header({"__metadata__": {"a": "b"}}),
    "twice, last wins": _header('{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', b"abc"),
    "any names": _header({name: _entry(i, i + 1) for i, name in enumerate(("", "ä/ö", "a\nb", "\U0001f600", "..", "a" * 5000))}, b"abcdef"),
}


@pytest.mark.parametrize("data", GOOD_HEADERS.values(), ids=GOOD_HEADERS.keys())
def test_safetensors_odd_but_good(data: bytes) -> None:
    found = read(data)
    assert found.format == "safetensors"
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    for extent in found.extents:
        assert extent.offset == 8 + n + header[extent.spec.name]["data_offsets"][0]


BAD_HEADERS = {
    "marker": _header({"__metadata__": {"modelcodec": "0.1"}, "t": _entry(0, 3)}, b"abc"),
    "our name": _header({"__modelcodec__.x": _entry(0, 3)}, b"abc"),
    "overlap": _header({"a": _entry(0, 2), "b": _entry(1, 3)}, b"abc"),
    "empty inside another": _header({"a": _entry(0, 3), "b": _entry(1, 1)}, b"abc"),
    "beyond": _header({"a": _entry(0, 4)}, b"abc"),
    "backwards": _header({"a": _entry(3, 0, shape=[0])}, b"abc"),
    "negative": _header({"a": {"dtype": "U8", "shape": [-3], "data_offsets": [0, 3]}}, b"abc"),
    "size": _header({"a": _entry(0, 3, "F32", [1])}, b"abc"),
    "wrapping shape": _header({"a": _entry(0, 0, "F32", [2**32, 2**32, 2**32])}, b"abc"),
    "huge dimension": _header({"a": _entry(0, 0, "F32", [0, 2**63])}, b""),
    "bool dimension": _header({"a": _entry(0, 1, "U8", [True])}, b"a"),
    "float offset": _header({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0.0, 3]}}, b"abc"),
    "three offsets": _header({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3, 3]}}, b"abc"),
    "dtype": _header({"a": _entry(0, 3, "U7")}, b"abc"),
    "ggml dtype": _header({"a": _entry(0, 18, "Q4_0", [32])}, bytes(18)),
    "dtype list": _header({"a": {"dtype": ["U8"], "shape": [3], "data_offsets": [0, 3]}}, b"abc"),
    "entry list": _header({"a": [0, 3]}, b"abc"),
    "array": _header([1, 2], b"abc"),
    "metadata number": _header({"__metadata__": {"a": 1}, "t": _entry(0, 3)}, b"abc"),
    "metadata list": _header({"__metadata__": ["a"], "t": _entry(0, 3)}, b"abc"),
    "surrogate name": _header('{"\\ud800":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}', b"abc"),
    "surrogate metadata": _header('{"__metadata__":{"a":"\\udfff"},"t":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}', b"abc"),
    "deep": _header('{"a":' * 100_000),
    "deep list": _header('{"a":' + "[" * 100_000),
    "digits": _header('{"a":{"dtype":"U8","shape":[' + "9" * 100_000 + '],"data_offsets":[0,3]}}', b"abc"),
    "dimensions": _header({"a": _entry(0, 1, shape=[1] * 65)}, b"a"),
    "no UTF-8": struct.pack("<Q", 4) + b"{\xff\xfe}",
    "header beyond": struct.pack("<Q", 100) + b"{}",
    "header 2^63": struct.pack("<Q", 2**63) + b"{}",
}


@pytest.mark.parametrize("data", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_safetensors_bad_is_bytes(data: bytes) -> None:
    found = read(data)
    assert (found.format, len(found.extents)) == ("bytes", 1)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3))
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["U8", "F32", "BF16", "F4", "?"]) | JSON,
        "shape": st.lists(st.integers(0, 4)) | JSON,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | JSON,
    }
)


@settings(max_examples=150, deadline=None)
@given(header=st.dictionaries(st.text(max_size=4), ENTRIES | JSON, max_size=4), data=st.binary(max_size=40))
def test_safetensors_any_header_is_read(header: dict[str, object], data: bytes) -> None:
    read(_header(json.dumps(header), data))


def test_safetensors_metadata_is_kept() -> None:
    assert dict(read(_header({"__metadata__": {"a": "ä", "": ""}, "t": _entry(0, 1)}, b"x")).metadata) == {"a": "ä", "": ""}


# ---- torch -------------------------------------------------------------------------------------------------------------------------


def _saved(value: object, **options: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def _rezip(data: bytes, change: dict[str, bytes | None] | None = None, **options: int) -> bytes:
    """The archive written again by zipfile, with members replaced, added, or left out (None)."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", **options) as new:
        members = {name: old.read(name) for name in old.namelist()}
        for name, content in (members | (change or {})).items():
            if content is not None:
                new.writestr(name, content)
    return file.getvalue()


class _Unseekable(io.BytesIO):
    def seekable(self) -> bool:
        return False

    def seek(self, *args: int) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def test_torch_storage_takes_the_shape_of_what_fills_it() -> None:
    channels = torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last)
    state = {"w": torch.rand(6, 4), "turned": torch.rand(5, 3).t(), "channels": channels, "part": torch.rand(9)[2:]}
    found = read(_saved(state))
    assert [extent.spec.shape for extent in found.extents] == [(6, 4), (5, 3), (2, 4, 5, 3), (9,)]
    assert [view.spec.shape for view in found.views] == [(6, 4), (3, 5), (2, 3, 4, 5), (7,)]
    assert [extent.spec.name for extent in found.extents] == ["data/0", "data/1", "data/2", "data/3"]


def test_torch_untyped_storage_takes_its_tensors_dtype() -> None:
    (extent,) = read(_saved({"w": torch.zeros(6, 4).to(torch.float8_e4m3fn)})).extents
    assert (extent.spec.dtype.name, extent.spec.shape) == ("F8_E4M3", (6, 4))


def test_torch_views_that_are_not_plain_are_left_out() -> None:
    """Sparse, conjugated and quantized tensors: their storages are compressed, but no view pretends to know their values."""
    state = {"sparse": torch.eye(3).to_sparse(), "conjugated": torch.ones(4, dtype=torch.complex64).conj(), "plain": torch.ones(2)}
    found = read(_saved(state))
    assert len(found.extents) == 4
    assert [view.spec.name for view in found.views] == ["plain"]


def test_torch_other_pickles_are_bytes() -> None:
    """A module, a numpy array or a namespace in the pickle: names that are not on the list."""
    for value in (torch.nn.Linear(2, 2), {"a": np.float32(1)}, {"a": Path("x")}):
        assert read(_saved(value)).format == "bytes"
        assert read(_saved(value, _use_new_zipfile_serialization=False)).format == "bytes"


def test_torch_big_endian_is_words_of_bytes() -> None:
    data = _saved({"w": torch.rand(3, 4)})
    found = read(_rezip(data, {"archive/byteorder": b"big"}))
    assert [(extent.spec.dtype.name, extent.spec.shape) for extent in found.extents] == [("U8", (48,))]
    assert not found.views


def test_torch_zip_with_descriptors_zip64_and_comment() -> None:
    """Archives by other writers: sizes after the data, 64-bit records, a comment that looks like an end record."""
    value = {"w": torch.rand(30, 40)}
    data = _saved(value)
    streamed = _Unseekable()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(streamed, "w") as new:
        for name in old.namelist():
            with new.open(name, "w", force_zip64=True) as member:
                member.write(old.read(name))
        new.comment = b"PK\5\6" + bytes(30)
    for archive in (streamed.getvalue(), _rezip(data)):
        found = read(archive)
        assert found.format == "torch_zip"
        assert tensors_of(archive, found) == {"w": _torch_bytes(value["w"])}


def test_torch_zip_with_all_sizes_in_zip64() -> None:
    """A directory whose every size and offset is saturated, as beyond 4 GB."""
    data = bytearray(_rezip(_saved({"w": torch.rand(30, 40)})))
    end = data.rindex(b"PK\5\6")
    n, _, start = struct.unpack_from("<HLL", data, end + 10)
    directory, at = bytearray(), start
    for _ in range(n):
        fixed = list(struct.unpack_from("<4s6H3L5H2L", data, at))
        name = bytes(data[at + 46 : at + 46 + fixed[10]])
        extra = struct.pack("<HHQQQ", 1, 24, fixed[9], fixed[8], fixed[16])
        fixed[8] = fixed[9] = fixed[16] = 0xFFFFFFFF
        fixed[11] = len(extra)
        directory += struct.pack("<4s6H3L5H2L", *fixed) + name + extra
        at += 46 + fixed[10]
    record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, n, n, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
    tail = struct.pack("<4s4HLLH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    archive = bytes(data[:start]) + directory + record + locator + tail
    assert zipfile.ZipFile(io.BytesIO(archive)).testzip() is None
    assert read(archive).format == "torch_zip"


def test_torch_zip_deflated_or_incomplete_is_bytes() -> None:
    data = _saved({"w": torch.rand(30, 40)})
    assert read(_rezip(data, compression=zipfile.ZIP_DEFLATED)).format == "bytes"
    assert read(_rezip(data, {"archive/data/0": None})).format == "bytes"
    assert read(_rezip(data, {"archive/data/0": b"short"})).format == "bytes"


def _storage(numel: object = 4, key: str = "0") -> tuple[object, ...]:
    return ("storage", torch.FloatStorage, key, "cpu", numel)


class _Pid:
    def __init__(self, value: object) -> None:
        self.value = value


class _Rebuilt:
    def __init__(self, *args: object, function: object = torch._utils._rebuild_tensor_v2) -> None:
        self.args, self.function = args, function

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.args


def _pickled(value: object) -> bytes:
    file = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            return obj.value if isinstance(obj, _Pid) else None

    Pickler(file, 2).dump(value)
    return file.getvalue()


def _with_pickle(data: bytes) -> bytes:
    return _rezip(_saved({"w": torch.rand(4)}), {"archive/data.pkl": data})


HOSTILE_PICKLES = {
    "view beyond": {"w": _Rebuilt(_Pid(_storage()), 1, (4,), (1,), False, None)},
    "stride beyond": {"w": _Rebuilt(_Pid(_storage()), 0, (2, 2), (2**40, 1), False, None)},
    "wrapping": {"w": _Rebuilt(_Pid(_storage()), 0, (2**62, 4), (1, 1), False, None)},
    "negative first": {"w": _Rebuilt(_Pid(_storage()), -1, (4,), (1,), False, None)},
    "negative stride": {"w": _Rebuilt(_Pid(_storage()), 3, (4,), (-1,), False, None)},
    "strides short": {"w": _Rebuilt(_Pid(_storage()), 0, (2, 2), (1,), False, None)},
    "shape of text": {"w": _Rebuilt(_Pid(_storage()), 0, ("a",), (1,), False, None)},
    "no storage": {"w": _Rebuilt("storage", 0, (4,), (1,), False, None)},
    "no arguments": {"w": _Rebuilt()},
    "size negative": {"w": _Rebuilt(_Pid(_storage(-4)), 0, (4,), (1,), False, None)},
    "size huge": {"w": _Rebuilt(_Pid(_storage(2**62)), 0, (4,), (1,), False, None)},
    "size text": {"w": _Rebuilt(_Pid(_storage("4")), 0, (4,), (1,), False, None)},
    "two sizes": [_Pid(_storage(4)), _Pid(_storage(5))],
    "other reference": [_Pid(("module", "a", "b", "c"))],
    "missing storage": [_Pid(_storage(4, "no such"))],
    "path as key": [_Pid(_storage(4, "../../etc/passwd"))],
}


@pytest.mark.parametrize("value", HOSTILE_PICKLES.values(), ids=HOSTILE_PICKLES.keys())
def test_torch_hostile_pickle_never_reaches_beyond_its_storage(value: object) -> None:
    found = read(_with_pickle(_pickled(value)))
    assert found.format == "bytes" or not found.views


def test_torch_pickle_bombs_are_bytes() -> None:
    """Structures that are small in the pickle and endless to walk: themselves inside themselves, or doubled at each level."""
    endless: list[object] = []
    endless.append(endless)
    cycle: dict[str, object] = {}
    cycle[""] = cycle
    doubled: list[object] = [_Pid(_storage())]
    for _ in range(60):
        doubled = [doubled, doubled]
    deep: object = _Pid(_storage())
    nested = b"\x80\x02" + b"(" * 200_000 + b"t" * 200_000 + b"."
    wide = [[0] * 3000] * 3000
    for data in (*(_pickled(value) for value in (endless, cycle, doubled, deep, wide)), nested, b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."):
        read(_with_pickle(data))


def test_torch_names_of_odd_keys() -> None:
    one = torch.ones(1)
    found = read(_saved({"a.b": one, 3: one, (1, 2): one, None: one, "\ud800": one, "": [one], True: one}))
    assert {view.spec.name for view in found.views} == {"a.b", "3", "2", "None", "\\ud800", "0", "True"}


# ---- gguf --------------------------------------------------------------------------------------------------------------------------


def _gguf_header(values: bytes = b"", n_values: int = 0, infos: bytes = b"", n_tensors: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_values) + values + infos


def _gguf_text(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _gguf_info(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return _gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def _padded(header: bytes, data: bytes, alignment: int = 32) -> bytes:
    return header + bytes(-len(header) % alignment) + data


def test_gguf_shapes_are_row_major(tmp_path: Path) -> None:
    _gguf(tmp_path / "x.gguf")
    specs = {extent.spec.name: extent.spec for extent in read((tmp_path / "x.gguf").read_bytes()).extents}
    assert specs["f4"].shape == (3, 64)
    assert (specs["q8"].dtype.name, specs["q8"].shape) == ("Q8_0", (5, 64))
    assert (specs["q4k"].dtype.name, specs["q4k"].shape) == ("Q4_K", (5, 256))
    assert (specs["bf16"].dtype.name, specs["bf16"].shape) == ("BF16", (5, 64))


def test_gguf_alignment_unknown_types_and_nested_arrays() -> None:
    values = _gguf_text(b"general.alignment") + struct.pack("<II", 4, 64)
    values += _gguf_text(b"nested") + struct.pack("<IIQ", 9, 9, 2) + struct.pack("<IQ3H", 2, 3, 1, 2, 3) + struct.pack("<IQ", 8, 1) + _gguf_text(b"x")
    infos = _gguf_info(b"new", (10,), 200, 0) + _gguf_info(b"old", (4,), 0, 128) + _gguf_info(b"last", (7,), 99, 192)
    data = _padded(_gguf_header(values, 2, infos, 3), bytes(range(250)), 64)
    found = read(data)
    assert [(e.spec.name, e.spec.dtype.name, e.spec.n_bytes) for e in found.extents] == [("new", "U8", 128), ("old", "F32", 16), ("last", "U8", 58)]
    assert data[found.extents[1].offset :][:2] == bytes([128, 129])


def test_gguf_without_tensors() -> None:
    """A vocabulary alone."""
    found = read(_padded(_gguf_header(_gguf_text(b"k") + struct.pack("<II", 4, 1), 1), b""))
    assert (found.format, found.extents) == ("gguf", ())


BAD_GGUF = {
    "version 1": _gguf_header(version=1),
    "big-endian": _gguf_header(version=3 << 24),
    "count": _gguf_header(n_tensors=2**64 - 1),
    "values": _gguf_header(n_values=2**64 - 1),
    "key": _gguf_header(struct.pack("<Q", 2**64 - 1), 1),
    "type": _gguf_header(_gguf_text(b"k") + struct.pack("<I", 13), 1),
    "array": _gguf_header(_gguf_text(b"k") + struct.pack("<IIQ", 9, 6, 2**62), 1),
    "array of arrays": _gguf_header(_gguf_text(b"k") + struct.pack("<IIQ", 9, 9, 2**64 - 1), 1),
    "deep arrays": _gguf_header(_gguf_text(b"k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, 1),
    "alignment 0": _gguf_header(_gguf_text(b"general.alignment") + struct.pack("<II", 4, 0), 1),
    "alignment 2^31": _gguf_header(_gguf_text(b"general.alignment") + struct.pack("<II", 4, 2**31), 1),
    "dimensions": _gguf_header(infos=_gguf_text(b"t") + struct.pack("<I", 2**32 - 1), n_tensors=1),
    "wrapping shape": _padded(_gguf_header(infos=_gguf_info(b"t", (2**32, 2**32), 0, 0), n_tensors=1), bytes(64)),
    "blocks": _padded(_gguf_header(infos=_gguf_info(b"t", (33,), 8, 0), n_tensors=1), bytes(64)),
    "offset": _padded(_gguf_header(infos=_gguf_info(b"t", (1,), 0, 2**64 - 8), n_tensors=1), bytes(64)),
    "overlap": _padded(_gguf_header(infos=_gguf_info(b"t", (8,), 0, 0) + _gguf_info(b"u", (8,), 0, 0), n_tensors=2), bytes(64)),
    "same name": _padded(_gguf_header(infos=_gguf_info(b"t", (8,), 0, 0) + _gguf_info(b"t", (8,), 0, 32), n_tensors=2), bytes(64)),
    "name": _padded(_gguf_header(infos=_gguf_info(b"\xff", (8,), 0, 0), n_tensors=1), bytes(64)),
}


@pytest.mark.parametrize("data", BAD_GGUF.values(), ids=BAD_GGUF.keys())
def test_gguf_bad_is_bytes(data: bytes) -> None:
    assert read(data).format == "bytes"


# ---- numpy -------------------------------------------------------------------------------------------------------------------------


def _npy_file(header: str, data: bytes, version: int = 1) -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + bytes((version, 0)) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def test_npy_fortran_order_is_the_reversed_shape() -> None:
    array, file = np.asfortranarray(_numbers(2, 3, 4)), io.BytesIO()
    np.save(file, array)
    found = read(file.getvalue())
    assert found.extents[0].spec.shape == (4, 3, 2)
    (view,) = found.views
    assert (view.spec.shape, view.strides) == ((2, 3, 4), (1, 2, 6))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_versions(version: tuple[int, int]) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, _numbers(5), version)
    assert read(file.getvalue()).extents[0].spec.shape == (5,)


def test_npy_with_python_2_integers_and_other_writers() -> None:
    for header in ("{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 1L), }\n", "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"):
        assert read(_npy_file(header, bytes(8))).extents[0].spec.n_bytes == 8


BAD_NPY = {
    "objects": _npy_file("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps([1])),
    "objects in records": _npy_file("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }", pickle.dumps([1])),
    "code": _npy_file("{'descr': __import__('os').system('true'), 'fortran_order': False, 'shape': (1,), }", bytes(8)),
    "beyond": _npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", bytes(8)),
    "wrapping": _npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }", bytes(8)),
    "digits": _npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 60000 + ",), }", bytes(8)),
    "header": b"\x93NUMPY\x02\0" + struct.pack("<I", 2**32 - 1),
    "version": _npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(8), version=9),
    "dimensions": _npy_file("{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 70 + "), }", bytes(8)),
}


@pytest.mark.parametrize("data", BAD_NPY.values(), ids=BAD_NPY.keys())
def test_npy_bad_is_bytes(data: bytes) -> None:
    assert read(data).format == "bytes"


def test_npz_leaves_deflated_members_in_the_skeleton() -> None:
    file = io.BytesIO()
    one = io.BytesIO()
    np.save(one, _numbers(5, 5))
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("stored.npy", one.getvalue())
        archive.writestr("deflated.npy", one.getvalue(), zipfile.ZIP_DEFLATED)
        archive.writestr("readme.txt", "text")
    found = read(file.getvalue())
    assert [extent.spec.name for extent in found.extents] == ["stored"]


def test_zip_members_that_share_bytes_are_bytes() -> None:
    """Two directory entries for one member: the overlap of a zip bomb."""
    data = bytearray(_rezip(_saved({"a": torch.ones(4), "b": torch.ones(4)})))
    second = data.rindex(b"archive/data/1")
    first = data.index(b"archive/data/0")
    data[second - 4 : second] = (first - 30).to_bytes(4, "little")
    assert read(bytes(data)).format == "bytes"


# ---- onnx --------------------------------------------------------------------------------------------------------------------------


def test_onnx_dtypes() -> None:
    kinds = onnx.TensorProto
    cases = {kinds.FLOAT8E4M3FN: "F8_E4M3", kinds.FLOAT8E5M2: "F8_E5M2", kinds.BFLOAT16: "BF16", kinds.INT8: "I8", kinds.BOOL: "BOOL", kinds.UINT64: "U64"}
    cases |= {kinds.INT4: "U8", kinds.FLOAT4E2M1: "F4", kinds.COMPLEX64: "C64"}
    sizes = {"BF16": 2, "U64": 8, "C64": 8}
    tensors = []
    for kind, name in cases.items():
        half = kind in (kinds.INT4, kinds.FLOAT4E2M1)
        tensors.append(kinds(name=name + str(kind), data_type=kind, dims=[200], raw_data=bytes(100 if half else 200 * sizes.get(name, 1))))
    data = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors)).SerializeToString()
    assert [extent.spec.dtype.name for extent in read(data).extents] == list(cases.values())


def _external(tmp_path: Path, location: str, offset: str = "0", length: str = "400", data: str = "model.data") -> Checkpoint:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[100], data_location=1)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    (tmp_path / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    (tmp_path / data).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / data).write_bytes(bytes(1000))
    return read(bytes(1000), tmp_path / data)


def test_onnx_data_is_found_by_its_model(tmp_path: Path) -> None:
    found = _external(tmp_path, "model.data", "64")
    assert (found.format, found.extents[0].offset, found.extents[0].spec.shape) == ("onnx_data", 64, (100,))


@pytest.mark.parametrize("location", ["other.data", "./model.data", "../model.data", "sub/../model.data", "/model.data", "sub\\model.data", "model.data\0", ""])
def test_onnx_data_by_another_location_is_bytes(location: str, tmp_path: Path) -> None:
    assert _external(tmp_path, location).format == "bytes"


@pytest.mark.parametrize(("offset", "length"), [("-1", "400"), ("900", "400"), ("1e3", "4"), ("9" * 50, "4"), ("0", "²"), ("0", str(2**63))])
def test_onnx_data_at_an_impossible_place_is_bytes(offset: str, length: str, tmp_path: Path) -> None:
    assert _external(tmp_path, "model.data", offset, length).format == "bytes"


def test_onnx_data_with_hostile_neighbours(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").mkdir()
    (tmp_path / "c.onnx").symlink_to(tmp_path / "nowhere")
    (tmp_path / "d.onnx").write_bytes(b"\x08\x07:\xff\xff\xff\xff\x0f")
    (tmp_path / "e.onnx").write_bytes(b"")
    assert _external(tmp_path, "model.data").format == "onnx_data"


def _field(number: int, data: bytes) -> bytes:
    n, length = len(data), bytearray()
    while n > 0x7F:
        length.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes((number << 3 | 2,)) + bytes(length) + bytes((n,)) + data


def test_onnx_deep_graphs_and_endless_fields_are_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = _field(5, b"\x10\x01\x08\x40" + _field(9, bytes(256)))
    shallow, deep = weights, weights
    for _ in range(5):
        shallow = _field(1, _field(5, _field(6, shallow)))
    for _ in range(40):
        deep = _field(1, _field(5, _field(6, deep)))
    assert read(b"\x08\x07" + _field(7, shallow)).format == "onnx"
    assert read(b"\x08\x07" + _field(7, deep)).format == "bytes"
    monkeypatch.setattr(modelcodec.formats.onnx, "_FIELDS_MOST", 1000)
    assert read(b"\x08\x07" + b"\x10\x01" * 1001 + _field(7, weights)).format == "bytes"


def test_onnx_same_names_are_numbered() -> None:
    array = _numbers(20)
    graph = onnx.helper.make_graph([], "g", [], [], [_tensor(name, array) for name in ("a", "a", "a#2", "", "", "a")])
    names = [extent.spec.name for extent in read(onnx.helper.make_model(graph).SerializeToString()).extents]
    assert names[:3] == ["a", "a#3", "a#2"]
    assert len(set(names)) == 6
