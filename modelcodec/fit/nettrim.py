"""Layer-wise convex pruning that preserves a layer's response (source: Aghasi et al., "Net-Trim", arXiv 1611.05162; here with a penalty in place of the hard
bound, by ADMM)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit
from modelcodec.fit.kmeans import Kept
from modelcodec.fit.least_squares import Floats, solve_on
from modelcodec.fit.magnitude import Mask, check_share, keep_largest, pruned
from modelcodec.fitted import FittedTensor, Weights
from modelcodec.kernels.casts import rounded

_ROUNDS, _PENALTIES, _REFIT, _RELU_REFITS = 60, 12, 40, 6
_DAMPING = 1e-4
"""Of the mean second moment, added to all."""
_LEAST_PENALTY = -20.0
"""log2 of the penalty over the one that leaves no weight."""
_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class NetTrim(Fit):
    """A `share` of each tensor's weights become zero, the others change so that the layer still answers its calibration inputs: least squares with an l1
    penalty, then least squares on the weights that are left. `relu`: outputs below zero need only stay below zero, for layers without a bias.

    data: inputs, or without `relu` moments; tensors without them stay as they are.
    """

    share: float
    relu: bool = False

    def __post_init__(self) -> None:
        check_share("nettrim", self.share)

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        spec = weights.spec
        inputs = data.inputs_of(spec) if data and self.relu else None
        moments = inputs.T @ inputs / len(inputs) if inputs is not None else data.moments_of(spec) if data and not self.relu else None
        if moments is None or not moments.any():
            return None
        kept = Kept.of(weights)
        values = np.where(kept.exact, 0, weights.values()).astype(np.float64).reshape(-1, spec.row_words)
        unit = float(np.diag(moments).mean())
        moments = moments / unit + _DAMPING * np.eye(len(moments))
        layer = _Layer(values, moments, None if inputs is None else inputs / (unit * len(inputs)) ** 0.5)
        keep = layer.support(self.share, kept.exact) & ~kept.zero.reshape(values.shape)
        found = layer.refitted(keep)
        with np.errstate(over="ignore"):
            words = np.where(keep.reshape(-1), rounded(found.reshape(-1).astype(np.float32), spec.dtype.name), weights.words.dtype.type(0))
        return pruned(weights, np.where(kept.exact, weights.words, words))


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights, second moments of their inputs, and, where signs of outputs count, the inputs (samples x columns)."""

    values: Floats
    moments: Floats
    inputs: Floats | None

    def support(self, share: float, exact: Mask) -> Mask:
        """The places that stay: those of the least penalty that makes a `share` zero; of zeros that are too many, the largest weights stay."""
        n_zero = int(share * self.values.size)
        top = float(np.abs(self.values @ self.moments).max(initial=0.0))
        low, high, best = _LEAST_PENALTY, 0.0, np.zeros_like(self.values)
        for _ in range(_PENALTIES):
            middle = (low + high) / 2
            found = self.shrunk(top * 2.0**middle)
            if np.count_nonzero(found == 0) >= n_zero:
                high, best = middle, found
            else:
                low = middle
        scores = np.abs(best) + _TIE * np.abs(self.values)
        return keep_largest(np.where(exact, np.inf, scores.reshape(-1)), share).reshape(self.values.shape)

    def refitted(self, keep: Mask) -> Floats:
        """The weights at these places that change the response least. An output that need only stay below zero is wanted where it is, if it is there."""
        target, found = self.values @ self.moments, self.values
        if self.inputs is None:
            return solve_on(keep, self._moved, target, found, _REFIT)
        wanted = self.values @ self.inputs.T
        for _ in range(_RELU_REFITS):
            answers = np.where(wanted > 0, wanted, np.minimum(np.where(keep, found, 0) @ self.inputs.T, 0))
            found = solve_on(keep, self._moved, target + (answers - wanted) @ self.inputs, found, _REFIT)
        return found

    def _moved(self, rows: Floats) -> Floats:
        return rows @ self.moments

    def shrunk(self, penalty: float) -> Floats:
        """Weights that minimise half the squared change of the response and penalty * their magnitudes."""
        inverse = np.linalg.inv(self.moments + np.eye(len(self.moments)))
        wanted = None if self.inputs is None else self.values @ self.inputs.T
        target = self.values @ self.moments
        sparse, dual = self.values.copy(), np.zeros_like(self.values)
        answers = wanted.copy() if wanted is not None else None
        dual_answers = np.zeros_like(answers) if answers is not None else None
        for _ in range(_ROUNDS):
            if wanted is None or answers is None or dual_answers is None or self.inputs is None:
                dense = (target + sparse - dual) @ inverse
            else:
                dense = ((answers - dual_answers) @ self.inputs + sparse - dual) @ inverse
                given = dense @ self.inputs.T + dual_answers
                answers = np.where(wanted > 0, (wanted + given) / 2, np.minimum(given, given / 2))
                dual_answers = given - answers
            moved = dense + dual
            sparse = np.sign(moved) * np.maximum(np.abs(moved) - penalty, 0)
            dual = moved - sparse
        return sparse
