"""Promise: `from_pretrained` of transformers reads a compressed folder as the original one, in every way it has; what it saves then is the same, too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
import safetensors
import torch
from tiny_models import llama, mixtral, quantized_to_fp8, same, saved
from transformers import AutoModelForCausalLM

import modelcodec
from modelcodec.errors import CorruptFile

SHARDS = {"max_shard_size": "100KB"}
MODELS = {"dense": (llama, {}), "sharded": (llama, SHARDS), "experts": (mixtral, {}), "sharded experts": (mixtral, SHARDS)}
PLACES = dict.fromkeys(("model.embed_tokens", "model.rotary_emb", "model.layers.0", "model.norm", "lm_head"), "cpu") | {"model.layers.1": "disk"}


@pytest.fixture(scope="module", autouse=True)
def hook() -> Iterator[None]:
    modelcodec.install()
    yield
    modelcodec.uninstall()


@pytest.fixture(scope="module", params=MODELS)
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same model as it was saved and compressed."""
    make, settings = MODELS[request.param]
    plain = saved(make(), tmp_path_factory.mktemp("model"), **settings)
    return plain, plain.with_name("packed")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    plain = saved(llama(), tmp_path_factory.mktemp("dense"))
    return plain, plain.with_name("packed")


def load(folder: Path, **settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


@pytest.mark.parametrize("settings", [{}, {"dtype": torch.float32}, {"dtype": "auto"}, {"device_map": "auto"}, {"disable_mmap": True}], ids=str)
def test_the_same_weights(folders: tuple[Path, Path], settings: dict[str, Any]) -> None:
    plain, packed = folders
    assert sum(path.stat().st_size for path in packed.glob("*.safetensors")) < 0.75 * sum(path.stat().st_size for path in plain.glob("*.safetensors"))
    assert same(load(plain, **settings), load(packed, **settings))


def test_the_same_output_with_layers_on_disk(folders: tuple[Path, Path], tmp_path: Path) -> None:
    plain, packed = folders
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        found = load(packed, device_map=PLACES, offload_folder=tmp_path)(tokens).logits
        assert torch.equal(found, load(plain)(tokens).logits)


def test_saving_again_gives_the_same_files(folders: tuple[Path, Path], tmp_path: Path) -> None:
    settings = SHARDS if len(list(folders[0].glob("*.safetensors"))) > 1 else {}
    for folder in folders:
        load(folder).save_pretrained(tmp_path / folder.name, **settings)
    files = {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "packed").iterdir()}


@pytest.mark.parametrize("rank", [0, 1])
def test_tensor_parallel_ranks_read_their_parts(folders: tuple[Path, Path], rank: int) -> None:
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    parallel = pytest.importorskip("transformers.distributed")
    # Ranks do not talk to each other while they load: one of them is enough, in a group that only claims to have two.
    torch.distributed.init_process_group("fake", rank=rank, world_size=2, store=fake.FakeStore())
    try:
        parts = []
        for folder in folders:
            model = load(folder, distributed_config=parallel.DistributedConfig(tp_size=2, tp_plan="auto"))
            parts.append({name: getattr(weight, "to_local", lambda weight=weight: weight)() for name, weight in model.state_dict().items()})
    finally:
        torch.distributed.destroy_process_group()
    assert parts[0]["model.layers.0.self_attn.q_proj.weight"].shape == (32, 64)
    assert same(*parts)


def test_a_compressed_file_beside_the_original(dense: tuple[Path, Path], tmp_path: Path) -> None:
    plain, packed = dense
    shutil.copy(packed / "model.safetensors", tmp_path / "model.mcodec.safetensors")
    shutil.copy(packed / "config.json", tmp_path)
    assert same(load(tmp_path, variant="mcodec"), load(plain))


@pytest.mark.parametrize("settings", [{}, {"device_map": "auto"}, {"disable_mmap": True}], ids=str)
def test_damage_is_never_loaded(folders: tuple[Path, Path], settings: dict[str, Any], tmp_path: Path) -> None:
    broken = shutil.copytree(folders[1], tmp_path / "broken")
    shard = sorted(broken.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    with pytest.raises(CorruptFile, match="weight, frame 0"):
        load(broken, **settings)


def test_a_prequantized_checkpoint(tmp_path: Path) -> None:
    llama(hidden_size=128, intermediate_size=256, num_hidden_layers=1, vocab_size=256, num_key_value_heads=4).save_pretrained(tmp_path / "bf16")
    quantized_to_fp8(tmp_path / "bf16", tmp_path / "fp8")
    modelcodec.compress(tmp_path / "fp8", tmp_path / "packed")
    assert (tmp_path / "packed" / "config.json").read_bytes() == (tmp_path / "fp8" / "config.json").read_bytes()
    assert same(load(tmp_path / "fp8"), load(tmp_path / "packed"))


def test_torch_reads_shards_into_a_distributed_checkpoint(folders: tuple[Path, Path]) -> None:
    checkpoint = pytest.importorskip("torch.distributed.checkpoint")
    parts = []
    for folder in folders:
        with safetensors.safe_open(next(folder.glob("*.safetensors")), "pt") as file:
            part = {name: torch.zeros(file.get_slice(name).get_shape(), dtype=torch.bfloat16) for name in file.keys()}  # noqa: SIM118
        checkpoint.load(part, storage_reader=checkpoint.HuggingFaceStorageReader(str(folder)), no_dist=True)
        parts.append(part)
    assert parts[0]
    assert same(*parts)


def test_accelerate_loads_and_dispatches(dense: tuple[Path, Path]) -> None:
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch

    plain, packed = dense
    expected = load(plain)
    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(expected.config)
    assert same(load_checkpoint_and_dispatch(empty, str(packed / "model.safetensors"), device_map={"": "cpu"}, dtype=torch.bfloat16), expected)
