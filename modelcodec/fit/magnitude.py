"""Pruning by magnitude: the smallest weights become zero (source: Han et al., arXiv 1510.00149)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelcodec import planner
from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit, holds_weights
from modelcodec.fitted import Fitted, FittedTensor, Weights
from modelcodec.types import Array

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


def masked(weights: Weights, keep: Mask) -> FittedTensor:
    """The tensor with zeros where `keep` is false; the planner codes the mask, and the words that are left."""
    return pruned(weights, np.where(keep, weights.words, weights.words.dtype.type(0)))


def pruned(weights: Weights, words: Array) -> FittedTensor:
    """Words many of which are zero, and the planner's choice for them."""
    return weights.fitted(words, planner.plan(weights.spec, words, planner.SMALL))


def scores(weights: Weights, data: Calibration | None) -> Floats:
    """What each weight's loss would cost: its square, times its importance where that is known. NaN and infinities cost everything."""
    values = weights.values()
    finite = np.isfinite(values)
    squares = np.square(np.where(finite, values, 0), dtype=np.float64)
    importance = data.importance_of(weights.spec) if data else None
    return np.where(finite, squares if importance is None else squares * importance, np.inf)


def keep_largest(costs: Floats, share: float) -> Mask:
    """All but `share` of the places: the cheapest go, of equal ones the first. Infinite costs stay."""
    keep = np.ones(costs.size, bool)
    keep[np.argsort(costs, kind="stable")[: int(share * costs.size)]] = False
    return keep | np.isinf(costs)


def check_share(name: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise BadRecipe(f"{name}: share = {share}, 0 to 1 are possible")


@dataclass(frozen=True, slots=True)
class Magnitude(Fit):
    """A `share` of each tensor's weights become zero, or, with `whole_model`, of all weights together: layers of small weights then lose more.

    data: importance or input moments, if any, weigh the squares (Optimal Brain Damage; LeCun, Denker & Solla, NeurIPS 1989).
    """

    share: float
    whole_model: bool = False

    def __post_init__(self) -> None:
        check_share("prune", self.share)

    def __call__(self, tensors: Mapping[str, Weights], data: Calibration | None = None) -> Fitted:
        if not self.whole_model:
            return Fit.__call__(self, tensors, data)
        fitted = {name: weights for name, weights in tensors.items() if holds_weights(weights.spec)}
        if not fitted:
            return Fitted()
        keep = keep_largest(np.concatenate([scores(weights, data) for weights in fitted.values()]), self.share)
        ends = np.cumsum([weights.words.size for weights in fitted.values()])[:-1]
        return Fitted({name: masked(weights, part) for (name, weights), part in zip(fitted.items(), np.split(keep, ends), strict=True)})

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor:
        return masked(weights, keep_largest(scores(weights, data), self.share))
