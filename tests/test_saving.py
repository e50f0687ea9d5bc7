"""Promise: inside `compressed_saves()` other libraries write containers, under the names, in the shards and with the index that they would write otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
import safetensors.numpy
import safetensors.torch
import torch

import modelcodec
from modelcodec.errors import BadRecipe, UnsupportedFile
from modelcodec.runtime import saving

WEIGHTS = torch.randn(300, 200, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
REAL = safetensors.serialize_file


@pytest.fixture
def reading() -> Iterator[None]:
    modelcodec.install()
    yield
    modelcodec.uninstall()


def source_format(path: Path) -> str:
    return modelcodec.inspect(path).format


def test_files_are_compressed_inside_the_block_only(tmp_path: Path) -> None:
    path, expected = tmp_path / "model.safetensors", tmp_path / "expected"
    safetensors.torch.save_file({"w": WEIGHTS}, expected, {"format": "pt"})
    with modelcodec.compressed_saves():
        safetensors.torch.save_file({"w": WEIGHTS}, path, {"format": "pt"})
    assert path.stat().st_size < 0.75 * expected.stat().st_size
    assert path.stat().st_mode == expected.stat().st_mode
    modelcodec.decompress(path, tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == expected.read_bytes()
    safetensors.torch.save_file({"w": WEIGHTS}, path, {"format": "pt"})
    assert path.read_bytes() == expected.read_bytes()
    assert {entry.name for entry in tmp_path.iterdir()} == {"model.safetensors", "expected", "restored"}


def test_every_function_that_saves(tmp_path: Path) -> None:
    with modelcodec.compressed_saves(level=1):
        safetensors.torch.save_model(torch.nn.Linear(30, 20), tmp_path / "model")
        safetensors.numpy.save_file({"w": WEIGHTS.float().numpy()}, tmp_path / "array")
        # The function that gives bytes keeps to what it says.
        assert safetensors.torch.load(safetensors.torch.save({"w": WEIGHTS}))["w"].shape == WEIGHTS.shape
    assert source_format(tmp_path / "model") == source_format(tmp_path / "array") == "safetensors"


def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"before")

    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "_compress", full)
    with modelcodec.compressed_saves():
        with pytest.raises(OSError, match="No space"):
            safetensors.torch.save_file({"w": WEIGHTS}, path)
        with pytest.raises(ValueError, match="non contiguous"):
            safetensors.torch.save_file({"w": WEIGHTS.t()}, path)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_names_that_the_container_needs_are_saved_as_they_are(tmp_path: Path) -> None:
    with modelcodec.compressed_saves():
        safetensors.torch.save_file({"__modelcodec__.x": WEIGHTS}, tmp_path / "model")
    with safetensors.safe_open(tmp_path / "model", "pt") as file:
        assert torch.equal(file.get_tensor("__modelcodec__.x"), WEIGHTS)


def test_blocks_may_overlap(tmp_path: Path) -> None:
    outer, inner = modelcodec.compressed_saves(level=1), modelcodec.compressed_saves(level=9)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    safetensors.torch.save_file({"w": WEIGHTS}, tmp_path / "model")
    inner.__exit__(None, None, None)
    assert source_format(tmp_path / "model") == "safetensors"
    assert safetensors.serialize_file is REAL
    assert safetensors.torch.serialize_file is REAL
    with pytest.raises(BadRecipe, match="level 3"), modelcodec.compressed_saves(level=3):
        pass


def test_install_may_save_too(tmp_path: Path) -> None:
    modelcodec.install()
    modelcodec.install(saves=True)
    modelcodec.install()
    try:
        safetensors.torch.save_file({"w": WEIGHTS}, tmp_path / "model")
        assert torch.equal(safetensors.torch.load_file(tmp_path / "model")["w"], WEIGHTS)
    finally:
        modelcodec.uninstall()
    assert source_format(tmp_path / "model") == "safetensors"
    safetensors.torch.save_file({"w": WEIGHTS}, tmp_path / "model")
    with pytest.raises(UnsupportedFile):
        modelcodec.inspect(tmp_path / "model")


@pytest.mark.parametrize("settings", [{}, {"max_shard_size": "100KB"}], ids=["one file", "shards"])
@pytest.mark.parametrize("kind", ["experts", "tied"])
def test_save_pretrained(kind: str, settings: dict[str, Any], tmp_path: Path, reading: None) -> None:
    transformers = pytest.importorskip("transformers")
    from tiny_models import llama, mixtral, same

    model = mixtral() if kind == "experts" else llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "plain", **settings)
    with modelcodec.compressed_saves():
        model.save_pretrained(tmp_path / "packed", **settings)
    modelcodec.decompress(tmp_path / "packed", tmp_path / "restored")
    files = {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "restored").iterdir()}
    assert {source_format(path) for path in (tmp_path / "packed").glob("*.safetensors")} == {"safetensors"}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert same(loaded, model)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == (kind == "tied")


def test_accelerator_and_hub_helpers(tmp_path: Path, reading: None) -> None:
    accelerate = pytest.importorskip("accelerate")
    hub = pytest.importorskip("huggingface_hub")
    model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 100))
    (tmp_path / "hub").mkdir()
    with modelcodec.compressed_saves():
        accelerate.Accelerator(cpu=True).save_model(model, tmp_path / "accelerate")
        hub.save_torch_state_dict(model.state_dict(), tmp_path / "hub")
    for folder in ("accelerate", "hub"):
        path = tmp_path / folder / "model.safetensors"
        assert source_format(path) == "safetensors"
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in safetensors.torch.load_file(path).items())


def test_trainer_saves_and_resumes(tmp_path: Path, reading: None) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from tiny_models import llama, same

    def trainer(steps: int) -> Any:
        data = [{"input_ids": torch.arange(8) + n, "labels": torch.arange(8) + n} for n in range(4)]
        quiet = {"use_cpu": True, "report_to": [], "disable_tqdm": True}
        settings = transformers.TrainingArguments(tmp_path, max_steps=steps, save_steps=1, lr_scheduler_type="constant", **quiet)
        return transformers.Trainer(llama(num_hidden_layers=1).float(), settings, train_dataset=data)

    straight = trainer(2)
    with modelcodec.compressed_saves():
        straight.train()
    assert source_format(tmp_path / "checkpoint-1" / "model.safetensors") == "safetensors"
    resumed = trainer(2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert same(resumed.model, straight.model)
