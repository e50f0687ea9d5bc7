"""What a network costs with some of its channels, and which of them go so that it stays within a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.channels import Channels, Ints, Mask

Floats = NDArray[np.float64]

OF = ("flops", "bytes")


@dataclass(frozen=True, slots=True)
class Costs:
    """The cost of a selection: of each layer `pairs` * inputs * outputs, where both depend on the units that are kept, and `single` for each unit.

    `ins`, `outs`: units x layers, how many inputs and outputs of a layer a unit is; `fixed_ins`, `fixed_outs`: those that stay.
    """

    pairs: Floats
    ins: Floats
    outs: Floats
    fixed_ins: Floats
    fixed_outs: Floats
    single: Floats
    fixed: float

    @classmethod
    def of(cls, channels: Channels, what: str) -> Costs:
        """`what`: one of OF. Bytes are those of the layers, as they are without any coding."""
        layers, in_bytes = list(channels.layers.values()), what == "bytes"
        sides = [[_counts(units, channels.n_units) for units in (layer.inputs, layer.outputs)] for layer in layers]
        ins, outs = (np.array([side[k] for side in sides]).T for k in (0, 1))
        for place, layer in enumerate(layers):
            if layer.groups > 1:  # each output meets the inputs of its group, always as many
                ins[:, place] = 0
                ins[-1, place] = layer.inputs.size / layer.groups
        single = np.zeros(channels.n_units + 1)
        if in_bytes:
            for layer in layers:
                single += layer.bias_bytes * _counts(layer.outputs, channels.n_units)
            for vector in channels.vectors.values():
                single += vector.n_bytes * _counts(vector.units, channels.n_units)
        pairs = np.array([layer.n_bytes if in_bytes else layer.flops for layer in layers], np.float64)
        return cls(pairs, ins[:-1], outs[:-1], ins[-1], outs[-1], single[:-1], float(single[-1]))

    def total(self, kept: Mask) -> float:
        return Selection(self, kept).cost

    def marginal(self, ins: Floats, outs: Floats) -> Floats:
        """What each unit costs in layers of such widths, as far as the cost is linear."""
        return np.asarray(self.ins @ (self.pairs * outs) + self.outs @ (self.pairs * ins) + self.single)


class Selection:
    """Units that are `kept`, the inputs and outputs that each layer has with them, and what that costs, up to date while units come and go."""

    def __init__(self, costs: Costs, kept: Mask) -> None:
        self._costs, self.kept = costs, kept.copy()
        share = kept.astype(np.float64)
        self.ins, self.outs, self._single = costs.fixed_ins + share @ costs.ins, costs.fixed_outs + share @ costs.outs, share @ costs.single + costs.fixed

    @property
    def cost(self) -> float:
        return float(self._costs.pairs @ (self.ins * self.outs) + self._single)

    def flip(self, unit: int) -> None:
        """A unit that is kept goes, another one comes."""
        sign = -1 if self.kept[unit] else 1
        self.kept[unit] = not self.kept[unit]
        self.ins += sign * self._costs.ins[unit]
        self.outs += sign * self._costs.outs[unit]
        self._single += sign * self._costs.single[unit]


def _counts(units: Ints, n: int) -> Floats:
    """How often each unit is there; what stays comes last."""
    return np.bincount(np.where(units < 0, n, units), minlength=n + 1).astype(np.float64)


def evenly(scores: Floats, families: Ints) -> Ints:
    """Units in the order to go: of each family equal shares, those of low scores first."""
    order = np.lexsort((scores, families))
    sizes = np.bincount(families)
    ranks = np.arange(order.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    shares = (ranks + 1) / sizes[families[order]]
    return np.asarray(order[np.argsort(shares, kind="stable")])


def remove(costs: Costs, order: Ints, keep: float, least: int) -> Mask:
    """Which units stay when those of `order` go one after the other until the cost is the share `keep` of what it was. A layer keeps `least` outputs.

    Raises BadRecipe where that does not get down to the budget.
    """
    left = Selection(costs, np.ones(costs.single.size, bool))
    full, wanted = left.cost, np.minimum(least, left.outs)
    for unit in order.tolist():
        if left.cost <= keep * full:
            break
        if (left.outs - costs.outs[unit] >= wanted)[costs.outs[unit] > 0].all():
            left.flip(unit)
    if left.cost > keep * full:
        raise BadRecipe(f"keep = {keep}: {left.cost / full:.3f} is left with all gone that may (least = {least}); keep more, or let residual ones go, too")
    return left.kept


def needed(costs: Costs, scores: Floats, least: int, kept: Mask) -> Mask:
    """Units that are kept, and as many of the others, of high scores first, as give each layer `least` outputs."""
    found = Selection(costs, kept)
    wanted = np.minimum(least, Selection(costs, np.ones_like(kept)).outs)
    for unit in np.argsort(-scores, kind="stable").tolist():
        if not found.kept[unit] and (found.outs < wanted)[costs.outs[unit] > 0].any():
            found.flip(unit)
    return found.kept
