"""Promise: `from_pretrained` of diffusers reads a compressed folder as the original one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
import torch
from tiny_models import same, saved, unet

import modelcodec


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    modelcodec.install()
    yield saved(unet(), tmp_path_factory.mktemp("unet"))
    modelcodec.uninstall()


@pytest.mark.parametrize(
    "settings", [{}, {"low_cpu_mem_usage": False}, {"disable_mmap": True}, {"torch_dtype": torch.float16}, {"device_map": "auto"}], ids=str
)
def test_the_same_weights(plain: Path, settings: dict[str, Any]) -> None:
    from diffusers import UNet2DConditionModel

    found = UNet2DConditionModel.from_pretrained(plain.with_name("packed"), **settings)
    assert same(found, UNet2DConditionModel.from_pretrained(plain, **settings))


def test_a_compressed_file_beside_the_original(plain: Path) -> None:
    from diffusers import UNet2DConditionModel

    file = plain / "diffusion_pytorch_model.safetensors"
    modelcodec.compress(file)
    assert same(UNet2DConditionModel.from_pretrained(plain, variant="mcodec"), UNet2DConditionModel.from_pretrained(plain))
