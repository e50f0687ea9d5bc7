"""Promise: `load_model` leaves a module as `load_state_dict` of the uncompressed tensors would, decoding into its own memory, and tells what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rows

import modelcodec
from modelcodec.errors import CorruptFile
from modelcodec.runtime import pipeline

torch = pytest.importorskip("torch")
nn = torch.nn


class Net(nn.Module):  # type: ignore[misc, name-defined]
    """Parameters and buffers of several dtypes, one tied, one buffer that is not saved."""

    def __init__(self, dtype: Any = torch.float32) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16, dtype=dtype)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, dtype=dtype), nn.BatchNorm2d(4, dtype=dtype), nn.Linear(16, 1000, dtype=dtype))
        self.head = nn.Linear(16, 40, bias=False, dtype=dtype)
        self.head.weight = self.embed.weight
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mask", torch.zeros(5, dtype=torch.bool))
        self.register_buffer("scratch", torch.ones(3), persistent=False)


def filled(seed: int = 1, dtype: Any = torch.float32) -> Net:
    torch.manual_seed(seed)
    net = Net(dtype)
    net.steps.fill_(seed)
    net.mask[::2] = True
    net.body[1].running_mean.fill_(seed)
    return net


def tensors_of(net: Any, *left_out: str) -> dict[str, Any]:
    return {name: x.detach().clone() for name, x in net.state_dict().items() if name not in left_out}


def saved(tensors: dict[str, Any], folder: Path) -> Path:
    modelcodec.save_file(tensors, folder / "packed")
    return folder / "packed"


def check_same(net: Any, expected: Any) -> None:
    found = net.state_dict()
    for name, x in expected.state_dict().items():
        assert found[name].dtype == x.dtype
        assert torch.equal(found[name], x), name


@pytest.mark.parametrize("threads", [1, 2])
def test_in_place(tmp_path: Path, threads: int) -> None:
    """The tensors stay where they were; a tied one that the file has once is not missing."""
    net = filled(2)
    before = {name: (id(x), x.data_ptr()) for name, x in net.state_dict(keep_vars=True).items()}
    found = modelcodec.load_model(net, saved(tensors_of(filled(), "head.weight"), tmp_path), threads=threads)
    assert found == ([], [])
    assert {name: (id(x), x.data_ptr()) for name, x in net.state_dict(keep_vars=True).items()} == before
    check_same(net, filled())
    assert net.head.weight is net.embed.weight
    assert net.embed.weight.requires_grad


def test_decoded_into_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the right dtype is decoded anywhere else."""
    path = saved(tensors_of(filled(), "head.weight"), tmp_path)
    asked: list[int] = []
    original = pipeline.new_memory

    def noting(n_bytes: int) -> Any:
        asked.append(n_bytes)
        return original(n_bytes)

    monkeypatch.setattr("modelcodec.runtime.device_memory.new_memory", noting)
    modelcodec.load_model(filled(2), path)
    assert not asked
    modelcodec.load_model(filled(2, torch.bfloat16), path)
    assert asked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes_are_converted_as_by_torch(tmp_path: Path, dtype: Any) -> None:
    net, expected = filled(2, dtype), filled(3, dtype)
    tensors = tensors_of(filled())
    expected.load_state_dict(tensors)
    assert modelcodec.load_model(net, saved(tensors, tmp_path)) == ([], [])
    check_same(net, expected)


def test_memory_that_is_not_contiguous(tmp_path: Path) -> None:
    net = filled(2).to(memory_format=torch.channels_last)
    modelcodec.load_model(net, saved(tensors_of(filled()), tmp_path))
    check_same(net, filled())
    assert net.body[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["embed.weight", "head.weight", None])
def test_a_module_without_memory(tmp_path: Path, name: str | None, dtype: Any) -> None:
    """Made in its own dtype; ties hold, whichever of the names the file has."""
    with torch.device("meta"):
        net = Net(dtype)
    net.body[2].weight.requires_grad_(False)
    path = saved(tensors_of(filled(), *({"embed.weight", "head.weight"} - {name} if name else ())), tmp_path)
    assert modelcodec.load_model(net, path, device="cpu") == ([], [])
    check_same(net, filled().to(dtype) if dtype != torch.float32 else filled())
    assert net.head.weight is net.embed.weight
    assert isinstance(net.embed.weight, nn.Parameter)
    assert [x.requires_grad for x in (net.embed.weight, net.body[2].weight)] == [True, False]
    assert net.scratch.is_meta
    net.head(net.embed(torch.tensor([1]))).sum().backward()


def test_what_is_missing_and_what_is_not_expected(tmp_path: Path) -> None:
    path = saved({**tensors_of(filled(), "body.2.bias", "embed.weight", "head.weight"), "other": torch.zeros(3)}, tmp_path)
    net = filled(2)
    with pytest.raises(RuntimeError, match=r"(?s)Net:.*Missing.*body.2.bias.*Unexpected.*other"):
        modelcodec.load_model(net, path)
    assert modelcodec.load_model(net, path, strict=False) == (["body.2.bias", "embed.weight", "head.weight"], ["other"])
    assert torch.equal(net.body[2].weight, filled().body[2].weight)
    assert torch.equal(net.body[2].bias, filled(2).body[2].bias)


def test_the_names_are_those_of_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {**tensors_of(filled(), "body.2.bias", "head.weight"), "other": torch.zeros(3)}
    safetensors.save_file(tensors, tmp_path / "plain.safetensors")
    theirs = safetensors.load_model(filled(2), tmp_path / "plain.safetensors", strict=False)
    ours = modelcodec.load_model(filled(2), saved(tensors, tmp_path), strict=False)
    assert [sorted(names) for names in ours] == [sorted(names) for names in theirs]


def test_shapes_that_do_not_match(tmp_path: Path) -> None:
    path = saved({**tensors_of(filled()), "body.2.bias": torch.zeros(999)}, tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch for body.2.bias"):
        modelcodec.load_model(filled(2), path, strict=False)


def test_hooks_are_run(tmp_path: Path) -> None:
    """A module may rename what older checkpoints hold."""

    def rename(state: dict[str, Any], prefix: str, *_: Any) -> None:
        if prefix + "gamma" in state:
            state[prefix + "weight"] = state.pop(prefix + "gamma")

    net = nn.LayerNorm(6)
    net.register_load_state_dict_pre_hook(lambda _, *arguments: rename(*arguments))
    path = saved({"gamma": torch.arange(6.0), "bias": torch.ones(6)}, tmp_path)
    assert modelcodec.load_model(net, path) == ([], [])
    assert net.weight.tolist() == list(range(6))


def test_a_lazy_module(tmp_path: Path) -> None:
    net = nn.LazyLinear(3)
    assert modelcodec.load_model(net, saved({"weight": torch.ones(3, 5), "bias": torch.zeros(3)}, tmp_path)) == ([], [])
    assert net.weight.tolist() == torch.ones(3, 5).tolist()


def test_shards(tmp_path: Path) -> None:
    names: dict[str, str] = {}
    tensors = tensors_of(filled(), "head.weight")
    for i in range(3):
        part = dict(list(tensors.items())[i::3])
        modelcodec.save_file(part, tmp_path / f"model-{i}.safetensors")
        names |= dict.fromkeys(part, f"model-{i}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    net = filled(2)
    assert modelcodec.load_model(net, tmp_path) == ([], [])
    check_same(net, filled())


@pytest.mark.parametrize("write", [torch.save, lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=False)])
def test_a_torch_file(tmp_path: Path, write: Callable[..., None]) -> None:
    """Its storages are decoded, its tensors are views of them: here of one."""
    flat = torch.from_numpy(rows.gaussian(24, "F32").view("<f4").copy())
    write({"weight": flat[:16].view(4, 4).t(), "bias": flat[20:]}, tmp_path / "model.pt")
    modelcodec.compress(tmp_path / "model.pt", tmp_path / "packed")
    net = nn.Linear(4, 4)
    assert modelcodec.load_model(net, tmp_path / "packed") == ([], [])
    assert torch.equal(net.weight, flat[:16].view(4, 4).t())
    assert torch.equal(net.bias, flat[20:])


def test_damage_is_an_error(tmp_path: Path) -> None:
    path = saved(tensors_of(filled()), tmp_path)
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFile):
        modelcodec.load_model(filled(2), path)
