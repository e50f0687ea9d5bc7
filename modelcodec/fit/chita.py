"""CHITA: sparse regression on the empirical Fisher, without forming it (source: Benbaki et al., "Fast as CHITA", arXiv 2302.14623)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit
from modelcodec.fit.kmeans import Kept
from modelcodec.fit.least_squares import Floats, solve_on
from modelcodec.fit.magnitude import Mask, check_share, keep_largest, pruned
from modelcodec.fitted import FittedTensor, Weights
from modelcodec.kernels.casts import rounded

_ROUNDS, _HALVINGS, _REFIT = 100, 12, 50


@dataclass(frozen=True, slots=True)
class Chita(Fit):
    """A `share` of each tensor's weights become zero, the others change, so that the loss rises least by its quadratic model: with per-sample gradients A (n
    rows) and weights w, 1/2 |A (b - w)|^2 + n * ridge / 2 * |b - w|^2 over b with that many zeros. Iterative hard thresholding with a line search, then least
    squares on what is left.

    data: gradients; tensors without them stay as they are.
    """

    share: float
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        check_share("chita", self.share)
        if not 0 < self.ridge < np.inf:
            raise BadRecipe(f"chita: ridge = {self.ridge}, it is a positive number")

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        gradients = data.gradients_of(weights.spec) if data else None
        if gradients is None or not len(gradients):
            return None
        kept = Kept.of(weights)
        values = np.where(kept.exact, 0, weights.values()).astype(np.float64)
        model = _Quadratic(values, gradients, self.ridge * len(gradients))
        keep = model.support(self.share, kept.exact) & ~kept.zero
        found = solve_on(keep, model.apply, model.apply(values), values, _REFIT)
        with np.errstate(over="ignore"):
            words = np.where(keep, rounded(found.astype(np.float32), weights.spec.dtype.name), weights.words.dtype.type(0))
        return pruned(weights, np.where(kept.exact, weights.words, words))


@dataclass(frozen=True, slots=True)
class _Quadratic:
    """The loss around the weights: (b - w)^T (A^T A + ridge) (b - w) / 2."""

    values: Floats
    gradients: Floats
    ridge: float

    def apply(self, x: Floats) -> Floats:
        product: Floats = (self.gradients @ x) @ self.gradients + self.ridge * x
        return product

    def loss(self, x: Floats) -> float:
        off = x - self.values
        seen = self.gradients @ off
        return float(seen @ seen + self.ridge * (off @ off)) / 2

    def support(self, share: float, exact: Mask) -> Mask:
        """The places that stay after thresholding has settled."""
        keep = self._largest(self.values, share, exact)
        found = np.where(keep, self.values, 0)
        loss = self.loss(found)
        for _ in range(_ROUNDS):
            slope = self.apply(found - self.values)
            moved = self._step(found, slope, keep, share, exact, loss)
            if moved is None:
                break
            found, keep, loss = moved
        return keep

    def _step(self, found: Floats, slope: Floats, keep: Mask, share: float, exact: Mask, loss: float) -> tuple[Floats, Mask, float] | None:
        """One step down the slope and back to as many zeros, halved until the loss falls; None where it does not."""
        inside = np.where(keep, slope, 0)
        curvature = float(inside @ self.apply(inside))
        length = 8 * float(inside @ inside) / curvature if curvature > 0 else 0.0
        for _ in range(_HALVINGS if length else 0):
            wanted = found - length * slope
            kept = self._largest(wanted, share, exact)
            moved = np.where(kept, wanted, 0)
            reached = self.loss(moved)
            if reached < loss * (1 - 1e-6):
                return moved, kept, reached
            length /= 2
        return None

    @staticmethod
    def _largest(x: Floats, share: float, exact: Mask) -> Mask:
        return keep_largest(np.where(exact, np.inf, np.abs(x)), share)
