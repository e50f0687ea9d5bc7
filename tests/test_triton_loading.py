"""Promise: loaders decode compressed files on the GPU that asks for them, to the bits and with the checks of the CPU. Triton's interpreter may stand for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_device import DEVICE, torch

import modelcodec
from modelcodec.errors import CorruptFile
from modelcodec.runtime import device_memory, gpu
from modelcodec.runtime.gpu import StagedFrames
from modelcodec.runtime.shard import Shard
from modelcodec.stages import rans
from modelcodec.tensor_file import TensorFile

FRAME_WORDS = 512


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Frames of each launch. Frames are short and have the lanes of long ones: the interpreter takes long for each word."""
    monkeypatch.setattr(gpu, "KINDS", frozenset({"cuda", DEVICE}))
    monkeypatch.setattr(device_memory, "LEAST_BYTES", 1)
    monkeypatch.setattr(rans, "VECTOR_WORDS", 1)
    monkeypatch.setattr(rans, "TWO_GROUPS", 1 << 62)
    for module in ("modelcodec.compression", "modelcodec.formats.container_directory"):
        monkeypatch.setattr(f"{module}.full_frame_words", lambda dtype, row_words=0: FRAME_WORDS)
    numbers: list[int] = []
    decode = StagedFrames.decode
    monkeypatch.setattr(StagedFrames, "decode", lambda self, out: numbers.append(self.n_on_gpu) or decode(self, out))
    return numbers


def tensors() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (33, 32), generator=generator) * 2 - 1
    weight = (torch.rand(33, 32, generator=generator) + 0.1) * signs
    return {
        "weight": weight.bfloat16(),
        "wide": weight[:16].contiguous(),
        "bytes": torch.randint(3, (700,), generator=generator, dtype=torch.uint8),
        "step": torch.tensor(7),
        "empty": torch.empty(0, 3),
    }


def same(found: Any, expected: dict[str, Any]) -> bool:
    assert found.keys() == expected.keys()
    return all(t.device.type == DEVICE and t.dtype == expected[name].dtype and torch.equal(t.cpu(), expected[name]) for name, t in found.items())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    modelcodec.save_file(tensors(), tmp_path / "packed")
    return tmp_path / "packed"


def test_streamed(path: Path, launched: list[int]) -> None:
    """Frames that the kernel does not know come along."""
    assert same(dict(modelcodec.stream(path, "pt", device=DEVICE, threads=2)), tensors())
    assert sorted(launched) == [1, 2]


def test_into_a_module(path: Path, launched: list[int]) -> None:
    """In place where the dtype is the parameter's, converted on the GPU otherwise."""
    model = torch.nn.Module()
    for name, tensor in tensors().items():
        model.register_buffer(name, torch.zeros_like(tensor, device=DEVICE))
    model.wide = model.wide.half()
    before = model.weight.data_ptr()
    assert modelcodec.load_model(model, path) == ([], [])
    expected = tensors()
    assert same(model.state_dict(), {**expected, "wide": expected["wide"].half()})
    assert model.weight.data_ptr() == before
    assert sorted(launched) == [1, 2]


def test_into_a_module_on_the_meta_device(path: Path, launched: list[int]) -> None:
    model = torch.nn.Module()
    for name, tensor in tensors().items():
        model.register_buffer(name, tensor.to("meta"))
    modelcodec.load_model(model, path, device=DEVICE)
    assert same(model.state_dict(), tensors())
    assert launched


def test_through_safetensors(path: Path, launched: list[int]) -> None:
    """Whole tensors; rows are decoded by the CPU."""
    with TensorFile(path, "pt") as file:
        shard = Shard(file, "pt", torch.device(DEVICE))
        assert same(shard.get_tensors(), tensors())
        assert sorted(launched) == [1, 2]
        assert torch.equal(shard.get_slice("weight")[...].cpu(), tensors()["weight"])
        launched.clear()
        assert torch.equal(shard.get_slice("weight")[3:5].cpu(), tensors()["weight"][3:5])
        assert not launched


def test_a_large_tensor_in_pieces(path: Path, launched: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "TENSOR_BATCH_BYTES", 2 * FRAME_WORDS)
    with TensorFile(path, "pt") as file:
        assert torch.equal(Shard(file, "pt", torch.device(DEVICE)).get_tensor("weight").cpu(), tensors()["weight"])
    assert launched == [1, 1, 0]


@pytest.mark.parametrize("where", ["mantissa", "padding"])
def test_damage_is_found(path: Path, where: str) -> None:
    with TensorFile(path, "pt") as file:
        _, entry = file.whole_entry("weight") or (None, None)
        assert entry is not None
        at = entry.span(0)[1] - 1 if where == "mantissa" else entry.start + entry.size - 1
        assert where == "mantissa" or at >= entry.span(entry.n_frames - 1)[1]
    data = np.fromfile(path, np.uint8)
    data[at] ^= 1
    data.tofile(path)
    with pytest.raises(CorruptFile, match=r"weight.*fetch it again"):
        dict(modelcodec.stream(path, "pt", device=DEVICE))
