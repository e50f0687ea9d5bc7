"""Promise: where modelcodec is missing, the usual libraries refuse a compressed checkpoint; they never go on with random weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
from tiny_models import llama, mixtral, saved, unet

SCRIPT = """
import json, sys
sys.modules["modelcodec"] = None  # as if it were not installed
folders = dict(zip(("dense", "shards", "experts", "unet"), sys.argv[1:]))

import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, load_model
from transformers import AutoConfig, AutoModelForCausalLM

def language_model(kind, **settings):
    return lambda: AutoModelForCausalLM.from_pretrained(folders[kind], **settings)

def diffusion_model(**settings):
    return lambda: UNet2DConditionModel.from_pretrained(folders["unet"], **settings)

def by_safetensors(strict):
    def load():
        load_model(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folders["dense"])), folders["dense"] + "/model.safetensors", strict=strict)
    return load

def by_accelerate():
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folders["dense"]))
    load_checkpoint_and_dispatch(model, folders["dense"] + "/model.safetensors", device_map={"": "cpu"})

ways = {
    "dense": language_model("dense"),
    "dense, device_map": language_model("dense", device_map="auto"),
    "dense, disable_mmap": language_model("dense", disable_mmap=True),
    "dense, dtype": language_model("dense", dtype=torch.float32),
    "shards": language_model("shards"),
    "experts": language_model("experts"),
    "diffusers": diffusion_model(),
    "diffusers, low_cpu_mem_usage=False": diffusion_model(low_cpu_mem_usage=False),
    "safetensors": by_safetensors(True),
    "safetensors, not strict": by_safetensors(False),
    "accelerate": by_accelerate,
}
outcomes = {}
for name, way in ways.items():
    try:
        way()
        outcomes[name] = None
    except Exception as error:
        outcomes[name] = type(error).__name__
read = load_file(folders["dense"] + "/model.safetensors")
outcomes["dtypes of weights"] = sorted({str(tensor.dtype) for name, tensor in read.items() if tensor.numel() > 1000})
print(json.dumps(outcomes))
"""


def test_every_library_refuses(tmp_path: Path) -> None:
    models = {"dense": (llama(), {}), "shards": (llama(), {"max_shard_size": "100KB"}), "experts": (mixtral(), {}), "unet": (unet(), {})}
    folders = [saved(model, tmp_path / name, **settings).with_name("packed") for name, (model, settings) in models.items()]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *map(str, folders)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    # What only reads gets bytes, which nothing takes for weights.
    assert outcomes.pop("dtypes of weights") == ["torch.uint8"]
    assert not [name for name, error in outcomes.items() if error is None]
