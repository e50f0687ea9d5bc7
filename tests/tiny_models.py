"""Tiny models with random weights, made offline, in the ways in which real ones are saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import modelcodec


def llama(**settings: Any) -> Any:
    """A Llama of two layers in bf16, without tied weights unless asked for."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
    return LlamaForCausalLM(LlamaConfig(**small | settings)).to(torch.bfloat16)


def mixtral() -> Any:
    """A mixture of four experts, which are merged into one tensor when loaded and parted again when saved."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
    return MixtralForCausalLM(MixtralConfig(**small, num_local_experts=4)).to(torch.bfloat16)


def unet() -> Any:
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=8,
    ).to(torch.bfloat16)


def saved(model: Any, folder: Path, **settings: Any) -> Path:
    """The model as `save_pretrained` writes it, in `folder/plain`; and compressed, file by file, in `folder/packed`. Gives the first."""
    model.save_pretrained(folder / "plain", **settings)
    modelcodec.compress(folder / "plain", folder / "packed")
    return folder / "plain"


def quantized_to_fp8(plain: Path, folder: Path) -> None:
    """A checkpoint that is prequantized in blocks of 128 x 128, in the manner of DeepSeek-V3."""
    import torch
    from safetensors.torch import load_file, save_file

    folder.mkdir(parents=True)
    tensors = {}
    for name, weight in load_file(plain / "model.safetensors").items():
        if "_proj" not in name:
            tensors[name] = weight
            continue
        blocks = weight.float().reshape(weight.shape[0] // 128, 128, weight.shape[1] // 128, 128)
        scales = blocks.abs().amax((1, 3)) / 448
        tensors[name] = (blocks / scales[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head"],
    }
    (folder / "config.json").write_text(json.dumps(config))


def same(one: Any, other: Any) -> bool:
    """Whether two models, or dicts of tensors, hold the same bits under the same names."""
    import torch

    first, second = (part if isinstance(part, dict) else part.state_dict() for part in (one, other))
    return first.keys() == second.keys() and all(
        a.dtype == second[name].dtype
        and a.shape == second[name].shape
        and torch.equal(a.contiguous().reshape(-1).view(torch.uint8), second[name].contiguous().reshape(-1).view(torch.uint8))
        for name, a in first.items()
    )
