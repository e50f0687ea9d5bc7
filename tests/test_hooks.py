"""Promise: after `install()` all that reads safetensors files reads containers alike, ordinary files as before; after `uninstall()` nothing is changed."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError

import modelcodec
from modelcodec.errors import CorruptFile, ModelCodecError, TruncatedFile, UnsupportedFile
from modelcodec.formats import container_layout
from modelcodec.runtime.shard import Shard
from modelcodec.tensor_file import TensorFile

REAL = (safetensors.safe_open, safetensors.deserialize, safetensors.serialize_file)
early_safe_open = safetensors.safe_open  # bound before the hook, as in a library that was imported before

FLOATS = ("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
OTHERS = ("bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "complex64")


@pytest.fixture(autouse=True)
def hook() -> Iterator[None]:
    modelcodec.install()
    yield
    modelcodec.uninstall()


def bits(tensor: Any) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def tensors() -> dict[str, Any]:
    """A tensor of each dtype that torch and safetensors have, a scalar, an empty one; names not in the file's order."""
    numbers = torch.arange(96, dtype=torch.float32).reshape(12, 8) % 2
    table = {f"z.{name}": numbers.to(getattr(torch, name)) for name in OTHERS + FLOATS}
    return table | {
        "packed": torch.arange(96, dtype=torch.uint8).reshape(12, 8).view(torch.float4_e2m1fn_x2),
        "weights": torch.randn(300, 200, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 7),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same tensors in an ordinary file and in a container."""
    folder = tmp_path_factory.mktemp("files")
    plain, packed = folder / "model.safetensors", folder / "model.mcodec.safetensors"
    safetensors.torch.save_file(tensors(), plain, {"format": "pt"})
    modelcodec.compress(plain)
    return plain, packed


def test_a_container_reads_as_the_original(files: tuple[Path, Path]) -> None:
    plain, packed = files
    for opened in (safetensors.safe_open, safetensors.torch.safe_open, early_safe_open):
        with opened(plain, framework="pt") as theirs, opened(packed, framework="pt", device="cpu") as ours:
            assert isinstance(theirs, REAL[0])
            assert isinstance(ours, Shard)
            assert isinstance(ours, safetensors.safe_open)
            assert (ours.keys(), ours.offset_keys(), ours.metadata()) == (theirs.keys(), theirs.offset_keys(), theirs.metadata())
            for name in theirs.keys():  # noqa: SIM118
                one, other, part = theirs.get_tensor(name), ours.get_tensor(name), ours.get_slice(name)
                assert (other.dtype, other.shape, bits(other)) == (one.dtype, one.shape, bits(one))
                assert (part.get_dtype(), part.get_shape()) == (theirs.get_slice(name).get_dtype(), theirs.get_slice(name).get_shape())
                assert bits(part[...]) == bits(one)


def test_every_function_of_safetensors(files: tuple[Path, Path]) -> None:
    plain, packed = files
    expected = safetensors.torch.load_file(plain)
    found = safetensors.torch.load_file(packed)
    assert list(found) == list(expected)
    assert all(bits(found[name]) == bits(expected[name]) for name in expected)

    model = torch.nn.Linear(200, 300, bias=False)
    with pytest.raises(RuntimeError, match="Missing key"):
        safetensors.torch.load_model(model, packed)
    few = {"weight": torch.randn(300, 200), "array": torch.arange(5)}
    content = modelcodec.save({name: tensor.numpy() for name, tensor in few.items()})
    for loaded in (safetensors.torch.load(content), {k: torch.from_numpy(v) for k, v in safetensors.numpy.load(content).items()}):
        assert all(torch.equal(loaded[name], few[name]) for name in few)
    path = packed.with_name("few.safetensors")
    path.write_bytes(content)
    assert safetensors.torch.load_model(model, path, strict=False) == (set(), ["array"])
    assert torch.equal(model.weight, few["weight"])
    assert np.array_equal(safetensors.numpy.load_file(path)["weight"], few["weight"].numpy())


def test_bytes_of_every_dtype_that_load_takes() -> None:
    given = {name: tensor for name, tensor in tensors().items() if name not in ("packed", "z.float8_e8m0fnu")}
    found = safetensors.torch.load(modelcodec.save(given))
    assert {name: (tensor.dtype, tensor.shape, bits(tensor)) for name, tensor in found.items()} == {
        name: (tensor.dtype, tensor.shape, bits(tensor)) for name, tensor in given.items()
    }


def test_files_that_only_look_like_containers_pass_through(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for given, metadata in (
        ({"modelcodec": torch.ones(3)}, None),
        ({"x": torch.ones(3)}, {"made by": "modelcodec"}),
        ({"modelcodec": torch.ones(3)}, {"text": '"modelcodec"'}),
    ):
        safetensors.torch.save_file(given, path, metadata)
        with safetensors.safe_open(path, "pt") as file:
            assert isinstance(file, REAL[0])
        assert safetensors.torch.load(path.read_bytes()).keys() == given.keys()


def outcome(act: Any) -> Any:
    try:
        return act()
    except Exception as error:
        return type(error), str(error)


def test_errors_of_ordinary_files_are_theirs(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    for content in (b"", b"\xff" * 20, struct.pack("<Q", 14) + b'{"modelcodec":', struct.pack("<Q", 14) + b'"modelcodec" ]'):
        broken.write_bytes(content)
        assert outcome(lambda: safetensors.safe_open(broken, "pt")) == outcome(lambda: REAL[0](broken, "pt"))
        assert outcome(lambda: safetensors.deserialize(content)) == outcome(lambda: REAL[1](content))  # noqa: B023
    for arguments in (("missing", "pt"), (b"bytes", "pt"), (3, "pt"), (tmp_path, "pt"), ("nul\0", "pt")):
        assert outcome(lambda: safetensors.safe_open(*arguments)) == outcome(lambda: REAL[0](*arguments))  # noqa: B023


def test_errors_of_containers_are_ours_and_theirs(files: tuple[Path, Path], tmp_path: Path) -> None:
    content, path = files[1].read_bytes(), tmp_path / "model.safetensors"

    def error_of(data: bytes) -> tuple[Exception, Exception]:
        path.write_bytes(data)
        with pytest.raises(SafetensorError) as opened:
            safetensors.torch.load_file(path)
        with pytest.raises(SafetensorError) as loaded:
            safetensors.torch.load(data)
        return opened.value, loaded.value

    for error in error_of(content[:-1000]):
        assert isinstance(error, TruncatedFile)
        assert "fetch the rest" in str(error)
    for error in error_of(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]):
        assert isinstance(error, CorruptFile)
        assert type(pickle.loads(pickle.dumps(error))) is type(error)
    newer = content.replace(b'"modelcodec":"0.', b'"modelcodec":"9.', 1)
    assert all(isinstance(error, UnsupportedFile) and "update modelcodec" in str(error) for error in error_of(newer))


def test_wrong_use_is_told_as_by_safetensors(files: tuple[Path, Path]) -> None:
    for use in (
        lambda path: safetensors.safe_open(path, "no framework"),
        lambda path: safetensors.safe_open(path, "pt", device="no device"),
        lambda path: safetensors.safe_open(path, "pt").get_tensor("no tensor"),
        lambda path: safetensors.safe_open(path, "pt").get_slice("no tensor"),
        lambda path: safetensors.safe_open(path, "pt").get_slice("weights")[300],
    ):
        plain, packed = (outcome(partial(use, path)) for path in files)
        assert plain[0] == packed[0]
        assert "index" in packed[1] or plain == packed
    with safetensors.safe_open(files[1], "pt") as file:
        pass
    for use in (file.keys, file.metadata, partial(file.get_tensor, "weights"), partial(file.get_slice, "weights"), file.get_tensors):
        with pytest.raises(SafetensorError, match="File is closed"):
            use()
    with pytest.raises(UnsupportedFile, match="framework 'pt' or 'np'"):
        safetensors.safe_open(files[1], "flax")


def test_slices_decode_only_what_is_asked_for_on_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.randn(4096, 512)
    modelcodec.save_file({"w": weights.numpy()}, tmp_path / "w.safetensors", level=1)
    decoded: list[int] = []
    original = TensorFile.rows

    def noting(self: TensorFile, name: str, first: int, end: int) -> Any:
        decoded.append(end - first)
        return original(self, name, first, end)

    monkeypatch.setattr(TensorFile, "rows", noting)
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file, ThreadPoolExecutor(4) as pool:
        part = file.get_slice("w")
        starts = range(0, 4096, 64)
        assert decoded == []
        for start, found in zip(starts, pool.map(lambda start: part[start : start + 64, ::2], starts), strict=True):
            assert torch.equal(found, weights[start : start + 64, ::2])
    assert decoded == [64] * len(starts)


def test_tensors_go_to_the_device_asked_for(files: tuple[Path, Path]) -> None:
    # "meta" stands for an accelerator; safetensors itself knows only real ones.
    with TensorFile(files[1], "pt") as file:
        shard = Shard(file, "pt", "meta")
        assert {shard.get_tensor(name).device.type for name in shard.keys()} == {"meta"}  # noqa: SIM118
        assert shard.get_slice("weights")[3:5].device.type == "meta"
        assert Shard(file, "pt", "cpu").prefetch(device="meta").take("weights").device.type == "meta"


def test_what_safetensors_0_9_adds(files: tuple[Path, Path]) -> None:
    plain, packed = files
    n_header = struct.unpack("<Q", plain.read_bytes()[:8])[0]
    header = json.loads(plain.read_bytes()[8 : 8 + n_header])
    with safetensors.safe_open(packed, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            meta = file.get_tensor_meta(name)
            assert {"dtype": meta.dtype, "shape": meta.shape, "data_offsets": list(meta.data_offsets)} == header[name]
        with file.prefetch({"weights": slice(2, 5), "scalar": None}) as loader:
            assert (len(loader), loader.names()) == (2, [name for name in file.offset_keys() if name in ("weights", "scalar")])
            assert bits(loader.take("weights")) == bits(file.get_tensor("weights")[2:5])
            assert [name for name, _ in loader] == ["scalar"]
            with pytest.raises(SafetensorError):
                loader.take("weights")
        assert file.prefetch().names() == file.offset_keys()
        with pytest.raises(SafetensorError, match="does not contain"):
            file.prefetch({"no tensor": None})


def test_names_bound_before_and_after_are_reached_and_put_back() -> None:
    before = ModuleType("imported_before")
    before.opener, before.load = REAL[0], partial(safetensors.torch.load_file)  # type: ignore[attr-defined]
    sys.modules["imported_before"] = before
    try:
        modelcodec.uninstall()
        modelcodec.install()
        hooked = safetensors.safe_open
        modelcodec.install()
        assert safetensors.safe_open is hooked is before.opener is safetensors.torch.safe_open
        assert safetensors.safe_open is not REAL[0]
        after = before.after = hooked  # type: ignore[attr-defined]
        modelcodec.uninstall()
        modelcodec.uninstall()
        assert before.opener is before.after is REAL[0]
        assert (safetensors.safe_open, safetensors.deserialize, safetensors.serialize_file) == REAL
        assert safetensors.torch.deserialize is REAL[1]
        assert after is not REAL[0]
    finally:
        del sys.modules["imported_before"]


def test_safe_open_stays_a_class(files: tuple[Path, Path]) -> None:
    assert safetensors.safe_open | None
    assert safetensors.safe_open.get_slice is REAL[0].get_slice
    assert not isinstance("text", safetensors.safe_open)
    assert pickle.loads(pickle.dumps(safetensors.safe_open)) is safetensors.safe_open


def test_installing_imports_nothing_heavy() -> None:
    script = "import sys, modelcodec; modelcodec.install(saves=True); print(*{'numpy', 'numba', 'torch', 'zstandard', 'xxhash'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_source_that_is_no_safetensors_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(6.0).reshape(2, 3).t()}, buffer)
    modelcodec.compress(io.BytesIO(buffer.getvalue()), tmp_path / "model.safetensors")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "model.safetensors")["w"], torch.arange(6.0).reshape(2, 3).t())


def test_dtypes_without_a_counterpart_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F6_E2M3", "shape": [64], "data_offsets": [0, 48]}}).encode()
    source = struct.pack("<Q", len(header)) + header + bytes(48)
    modelcodec.compress(io.BytesIO(source), tmp_path / "w.safetensors")
    with pytest.raises(ModelCodecError, match="F6_E2M3"), safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        file.get_tensor("w")


assert container_layout.VERSION[0] < 9, "the version that the tests take for a newer one"
