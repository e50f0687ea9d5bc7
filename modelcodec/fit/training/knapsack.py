"""The most important channels that a budget can pay for (source: Aflalo et al., Knapsack Pruning, arXiv 2002.08258)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from modelcodec.fit.training.budget import Costs, Floats, Selection, needed, remove
from modelcodec.fit.training.channels import Channels, Layer, Mask
from modelcodec.fit.training.filter_pruning import Batches, FilterPruning, feature_maps, unit_of_channels, watch_inputs

_STEPS = 4096
"""The budget in the whole numbers that dynamic programming counts in."""
_ROUNDS = 12
"""How often costs are taken anew at the widths that came out."""


@dataclass(frozen=True, slots=True)
class Knapsack(FilterPruning):
    """Of all selections that cost no more than the budget, one of the largest sum of importance: layers are as wide as they are worth.

    A unit's importance is the square of the loss's first-order change when its channels become zero (Taylor; Molchanov et al., arXiv 1906.10771), the mean over
    the samples of so many `batches`. `loss(outputs, labels)` is a mean over samples, cross-entropy if nothing else is given.
    """

    batches: int = 8
    loss: Callable[[Any, Any], Tensor] = field(default=functional.cross_entropy, repr=False)

    def _n_batches(self) -> int:
        return self.batches

    def _scores(self, model: nn.Module, channels: Channels, batches: Batches) -> Floats:
        return taylor(model, channels, batches, self.loss)

    def _select(self, channels: Channels, scores: Floats, free: Mask) -> Mask:
        return packed(Costs.of(channels, self.of), scores, self.keep, self.least, free)


def taylor(model: nn.Module, channels: Channels, batches: Batches, loss: Callable[[Any, Any], Tensor]) -> Floats:
    """The mean over samples of (sum of input * gradient)^2, the sum being over all that a unit's channels give to any layer."""
    seen: list[tuple[Layer, nn.Module, Tensor]] = []

    def watch(name: str, layer: Layer, given: Tensor) -> None:
        if given.requires_grad:
            seen.append((layer, model.get_submodule(name), given))

    hooks = watch_inputs(model, channels, watch)
    total = np.zeros(channels.n_units)
    try:
        for inputs, labels in batches:
            seen.clear()
            with torch.enable_grad():
                value = loss(model(*inputs), labels)
                gradients = torch.autograd.grad(value, [given for _, _, given in seen]) if seen else ()
            n = len(inputs[0])
            change = np.zeros((channels.n_units, n))
            for (layer, module, given), gradient in zip(seen, gradients, strict=True):
                by_channel = feature_maps(layer, module, given.detach() * gradient).sum(2).double().T.cpu().numpy() * n
                units = unit_of_channels(layer)
                np.add.at(change, units[units >= 0], by_channel[units >= 0])
            total += np.square(change).mean(1)
    finally:
        for hook in hooks:
            hook.remove()
    return total / len(batches)


def packed(costs: Costs, worth: Floats, keep: float, least: int, free: Mask) -> Mask:
    """Which units stay; only `free` ones may go. Raises BadRecipe where the budget cannot be reached.

    A unit's cost depends on how wide the layers around it are. So costs are taken linear at some widths, the knapsack is solved exactly by dynamic programming,
    and again at the widths that come out; of all solutions the most worth within the budget stays, or that of removing what is worth least for its cost.
    """
    whole = Selection(costs, np.ones(worth.size, bool))
    budget, ins, outs = keep * whole.cost, whole.ins, whole.outs
    order = np.argsort(worth / np.maximum(costs.marginal(ins, outs), 1e-30), kind="stable")
    best = remove(costs, order[free[order]], keep, least)
    must = needed(costs, worth, least, ~free)
    for _ in range(_ROUNDS):
        prices = costs.marginal(ins, outs)
        left = budget - costs.fixed - costs.pairs @ (costs.fixed_ins * outs + ins * costs.fixed_outs - ins * outs)
        found = Selection(costs, must | _knapsack(worth, prices, left - prices[must].sum(), must))
        _fill(found, worth, budget)
        if found.cost <= budget and worth[found.kept].sum() > worth[best].sum():
            best = found.kept
        ins, outs = (ins + found.ins) / 2, (outs + found.outs) / 2
    return best


def _knapsack(worth: Floats, costs: Floats, budget: float, taken: Mask) -> Mask:
    """The units, beside those `taken`, of the largest sum of worth whose costs, rounded up to steps, are within the budget."""
    chosen = np.zeros(worth.size, bool)
    if budget <= 0:
        return chosen
    steps = np.ceil(costs * (_STEPS / budget)).astype(np.int64)
    items = np.flatnonzero(~taken & (steps <= _STEPS))
    best = np.zeros(_STEPS + 1)
    better = np.zeros((items.size, _STEPS + 1), bool)
    for row, unit in enumerate(items):
        step = int(steps[unit])
        with_it = best[: _STEPS + 1 - step] + worth[unit]
        better[row, step:] = with_it > best[step:]
        best[step:] = np.maximum(best[step:], with_it)
    left = _STEPS
    for row in range(items.size - 1, -1, -1):
        if better[row, left]:
            chosen[items[row]] = True
            left -= int(steps[items[row]])
    return chosen


def _fill(found: Selection, worth: Floats, budget: float) -> None:
    """Take as many more units as the budget pays for, of the most worth first."""
    for unit in np.argsort(-worth, kind="stable").tolist():
        if not found.kept[unit]:
            found.flip(unit)
            if found.cost > budget:
                found.flip(unit)
