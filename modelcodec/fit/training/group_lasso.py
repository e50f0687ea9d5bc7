"""Channels that group lasso drives to zero in training go at its end (source: Wen et al., Structured Sparsity Learning, arXiv 1608.03665)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modelcodec.errors import BadRecipe
from modelcodec.fit.chain import Fitting
from modelcodec.fit.training.budget import Costs, Floats, needed
from modelcodec.fit.training.channels import TRANSPOSED, Channels, Ints, Mask, trace
from modelcodec.fit.training.filter_pruning import first_batches
from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.narrow import Size, filter_rows, narrow

SIDES = ("outputs", "inputs", "vector")
"""Where weights that go with a unit are: rows of layers, columns of layers, and modules with numbers for each channel."""


@dataclass(frozen=True, slots=True)
class GroupLasso(Method):
    """Adds to the loss `strength` * sum over units of sqrt(n) * |all n weights that go with the unit|: filters, what normalizes them, and what reads them.

    `depth`: the same over all units of a family that a shortcut goes around, so that a layer can vanish, but for one channel. At the end units go whose
    strength is below `threshold` times the largest of their family: the geometric mean of what makes them (scale and shift where there is a normalization,
    since filters before one have no scale of their own), and of what reads them beside the rest of the same layer. `least` stay in a layer. data: one batch,
    for its shape.
    """

    strength: float = 1e-4
    depth: float = 0.0
    threshold: float = 0.05
    least: int = 1

    def __post_init__(self) -> None:
        if not (self.strength >= 0 and self.depth >= 0 and 0 <= self.threshold < 1 and self.least >= 1):
            raise BadRecipe(f"{self}: strength and depth are 0 or more, threshold 0 up to 1, least 1 or more")

    def begin(self, model: nn.Module, data: Data | None = None) -> GroupSparse:
        return GroupSparse(self, model, tuple(x[:2] for x in first_batches(model, data, 1)[0][0]))


class GroupSparse(Training):
    """A model whose channels are being driven to zero: what it cost `before`, and `after` its end."""

    def __init__(self, method: GroupLasso, model: nn.Module, example: tuple[Tensor, ...]) -> None:
        super().__init__(model)
        self._method, self._example = method, example
        self._channels = trace(model, *example)
        device = next(model.parameters()).device
        self._places = {key: _place(units, self._channels.n_units, device) for key, units in _sides(self._channels).items()}
        self._families = torch.from_numpy(self._channels.families).to(device)
        self._bridged = torch.from_numpy(_bridged(self._channels)).to(device)
        with torch.no_grad():
            self._counts = self._sums(_numbers)
        self.before = Size.of(model, *example)
        self.after: Size | None = None

    def penalty(self) -> Tensor:
        squares = self._sums(_squares)
        by_family = torch.zeros_like(self._bridged, dtype=squares.dtype)
        norms = (squares * self._counts + 1e-12).sqrt().sum()
        whole = by_family.index_add(0, self._families, squares) * by_family.index_add(0, self._families, self._counts)
        return self._method.strength * norms + self._method.depth * (whole[self._bridged] + 1e-12).sqrt().sum()

    def _sums(self, of: Callable[[Tensor], Tensor], sides: Sequence[str] = SIDES) -> Tensor:
        """The sum over the weights that go with each unit; `of` gives one number for each row."""
        total = torch.zeros(self._channels.n_units + 1, device=self._families.device)
        for (name, side), places in self._places.items():
            if side not in sides:
                continue
            module = self.model.get_submodule(name)
            if parametrize.is_parametrized(module):
                raise BadRecipe(f"{name} became parametrized, its channels cannot be cut at the end; train with group_lasso first, then with the other method")
            for tensor in _tensors(module, side):
                total = total.index_add(0, places, of(tensor).to(total.dtype))
        return total[:-1]

    def harden(self) -> Fitting | None:
        with torch.no_grad():
            outputs, vectors, readers = self._sums(_squares, ("outputs",)), self._sums(_squares, ("vector",)), self._sums(_shares, ("inputs",))
            makers = torch.where(self._sums(_numbers, ("vector",)) > 0, vectors, outputs)
            strengths = (makers * readers).double().pow(0.25).cpu().numpy()
        narrow(self.model, self._channels, self._kept(strengths))
        self.after = Size.of(self.model, *self._example)
        return None

    def remarks(self) -> tuple[str, ...]:
        return () if self.after is None else (self.before.shrunk_to(self.after),)

    def _kept(self, strengths: Floats) -> Mask:
        """Those that did not vanish, and the strongest of each layer."""
        families = self._channels.families
        largest = np.zeros(families.max(initial=-1) + 1)
        np.maximum.at(largest, families, strengths)
        gone = self._bridged.cpu().numpy() & (largest < self._method.threshold * (largest.mean() if largest.size else 0.0))
        kept = (strengths >= self._method.threshold * largest[families]) & ~gone[families]
        return needed(Costs.of(self._channels, "flops"), strengths, self._method.least, kept)


def _squares(rows: Tensor) -> Tensor:
    return rows.square().sum(1)


def _numbers(rows: Tensor) -> Tensor:
    return torch.ones_like(rows).sum(1)


def _shares(rows: Tensor) -> Tensor:
    """Squares beside those of the layer's other inputs: what comes after may not care for the scale of the whole layer."""
    squares = _squares(rows)
    return squares / squares.mean().clamp(min=1e-30)


def _sides(channels: Channels) -> dict[tuple[str, str], Ints]:
    """Which units the outputs and the inputs of modules are, of modules and sides where any are."""
    sides = {(name, "outputs"): layer.outputs for name, layer in channels.layers.items()}
    sides |= {(name, "inputs"): layer.inputs for name, layer in channels.layers.items() if layer.groups == 1}  # else the outputs say it
    sides |= {(name, "vector"): vector.units for name, vector in channels.vectors.items()}
    return {key: units for key, units in sides.items() if (units >= 0).any()}


def _place(units: Ints, n_units: int, device: torch.device) -> Tensor:
    return torch.from_numpy(np.where(units < 0, n_units, units)).to(device)


def _tensors(module: Any, side: str) -> list[Tensor]:
    """What a module has for its outputs or inputs, one row each."""
    if side == "vector":
        return [p[:, None] for p in module.parameters()]
    if side == "outputs":
        return [filter_rows(module), *([] if module.bias is None else [module.bias[:, None]])]
    return [module.weight.flatten(1) if isinstance(module, TRANSPOSED) else module.weight.transpose(0, 1).flatten(1)]


def _bridged(channels: Channels) -> Mask:
    """Families that a shortcut goes around: what reads them is added to something."""
    found = np.ones(channels.families.max(initial=-1) + 1, bool)
    is_added = np.append(channels.summed, False)
    for layer in channels.layers.values():
        if layer.groups == 1 and not is_added[layer.outputs].all():
            found[channels.families[layer.inputs[layer.inputs >= 0]]] = False
    return found
