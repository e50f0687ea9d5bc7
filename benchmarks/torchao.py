"""torchao's weight-only types, by its own quantize_ (`pip install torchao`)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.rounded import Rounded

GROUP = 32
TYPES = ("int3 in groups", "int4 in groups", "int4 in groups, hqq", "int5 in groups", "int6 in groups", "int8 in rows", "float8 in rows")
"""Groups are of 32 weights in their order, as rows of kernels are no multiple of that; scales are bfloat16 for groups, float32 for rows."""


def _config(kind: str) -> tuple[Any, int]:
    """torchao's own configuration of a type, and bits a weight."""
    from torchao import quantization
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

    if kind == "int8 in rows":
        return quantization.Int8WeightOnlyConfig(version=2), 8
    if kind == "float8 in rows":
        return quantization.Float8WeightOnlyConfig(), 8
    bits = int(kind[3])
    algorithm = IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY if kind.endswith("hqq") else IntxChooseQParamsAlgorithm.AFFINE
    dtype = getattr(torch, f"int{bits}")
    granularity = PerGroup(GROUP)
    return quantization.IntxWeightOnlyConfig(dtype, granularity, scale_dtype=torch.bfloat16, intx_choose_qparams_algorithm=algorithm), bits


def rounded(weights: NDArray[np.float32], kind: str) -> Rounded:
    """A matrix in a type and back; its bytes are those of its bits, packed, and of its scales. Raises ImportError."""
    from torchao.quantization import quantize_

    config, bits = _config(kind)
    x = weights.reshape(-1)
    rows = x.reshape(weights.shape) if "rows" in kind else np.pad(x, (0, -x.size % GROUP)).reshape(-1, GROUP)
    layer = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
    layer.weight = nn.Parameter(torch.from_numpy(rows.copy()))
    quantize_(layer, config)
    held: Any = layer.weight
    start = time.perf_counter()
    back = held.dequantize()
    seconds = time.perf_counter() - start
    n_bytes = -(-rows.size * bits // 8) + held.scale.numel() * held.scale.element_size()
    return Rounded(back.float().numpy().reshape(-1)[: x.size].reshape(weights.shape), n_bytes, seconds)
