"""Statistics of a torch model on some data, for calibrated fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modelcodec.fit.calibration import Calibration

Loss = Callable[[torch.nn.Module, Any], torch.Tensor]


def moments(model: torch.nn.Module, batches: Iterable[Any], run: Callable[[torch.nn.Module, Any], object]) -> Calibration:
    """Second moments of the inputs of all linear layers and ungrouped two-dimensional convolutions; `run` gives one batch to the model.

    memory: columns^2 numbers of 8 bytes a layer, and the inputs of one layer and batch, unfolded.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, int] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) or (isinstance(layer, torch.nn.Conv2d) and layer.groups == 1):

            def add(layer: torch.nn.Module, given: tuple[torch.Tensor, ...], key: str = f"{name}.weight" if name else "weight") -> None:
                rows = _rows(layer, given[0])
                sums[key] = sums.get(key, 0.0) + (rows.T @ rows).numpy()
                counts[key] = counts.get(key, 0) + len(rows)

            hooks.append(layer.register_forward_pre_hook(add))
    try:
        with torch.no_grad():
            for batch in batches:
                run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return Calibration(moments={name: total / counts[name] for name, total in sums.items()})


def _rows(layer: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
    """What a layer's weights are multiplied by, one row an output position, in float64."""
    if isinstance(layer, torch.nn.Conv2d):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = torch.nn.functional.pad(given, _padding(layer), mode)
        given = torch.nn.functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride).transpose(1, 2)
    return given.detach().reshape(-1, given.shape[-1]).to("cpu", torch.float64)


def _padding(layer: torch.nn.Conv2d) -> list[int]:
    """Columns before and after, rows before and after."""
    sides: list[int] = []
    for axis in (1, 0):
        if isinstance(layer.padding, str):
            both = layer.dilation[axis] * (layer.kernel_size[axis] - 1) if layer.padding == "same" else 0
            sides += [both // 2, both - both // 2]
        else:
            sides += [int(layer.padding[axis])] * 2
    return sides


def gradients(model: torch.nn.Module, samples: Iterable[Any], loss: Loss) -> Calibration:
    """The loss's gradient for each sample by every floating weight of two dimensions or more, and the mean of their squares as importance (Fisher's diagonal).

    memory: 4 bytes a weight and sample.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.dim() > 1 and p.is_floating_point() and p.requires_grad}
    rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in parameters}
    for sample in samples:
        found = torch.autograd.grad(loss(model, sample), list(parameters.values()), allow_unused=True)
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
            used = torch.zeros_like(parameter) if gradient is None else gradient
            rows[name].append(used.detach().reshape(-1).to("cpu", torch.float32).numpy())
    stacked = {name: np.stack(found) for name, found in rows.items() if found}
    return Calibration(importance={name: np.square(found, dtype=np.float64).mean(axis=0) for name, found in stacked.items()}, gradients=stacked)
