"""Power functions as quantizers: places that are even after sign(x) |x|^power, so that small weights get more of them (sources: Yvinec et al., PowerQuant,
arXiv 2301.09858; NUPES, arXiv 2308.05600, which also trains power and weights).

Good for places of a fixed number of bits. After entropy coding even places are better at most rates: `Bits` is smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit
from modelcodec.fit.kmeans import Floats, Kept, check_bound, importance_of, plan_of, within
from modelcodec.fitted import FittedTensor, Weights
from modelcodec.kernels.casts import rounded

_LEAST, _MOST = 0.1, 2.0
"""Powers between which the best is sought: 1 is a uniform grid."""
_TRIALS = 16
_SECTION = (math.sqrt(5) - 1) / 2
_SAMPLED = 1 << 18
"""The power is sought on about so many weights, evenly spread."""


@dataclass(frozen=True, slots=True)
class Nupes(Fit):
    """At most 2^`bits` - 1 different weights a tensor, from minus its largest magnitude to plus that; `power` None: of least squared error, by golden section.

    Weights that would be off by more than `max_error` stay exact. data: importance or input moments, if any, weigh the squared error.
    """

    bits: int
    power: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 12 or not (self.power is None or _LEAST <= self.power <= _MOST):
            raise BadRecipe(f"nupes: bits = {self.bits}, power = {self.power}; 2 to 12 and {_LEAST} to {_MOST} are possible")
        check_bound("nupes", self.max_error)

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        kept = Kept.of(weights)
        values = np.where(kept.free, weights.values(), 0).astype(np.float64)
        largest, n = float(np.abs(values).max()), (1 << (self.bits - 1)) - 1
        words = weights.words
        if largest:
            shares, every = values / largest, -(-values.size // _SAMPLED)
            importance = np.where(kept.free, importance_of(weights, data), 0)[::every]
            power = _best_power(shares[::every], importance, n) if self.power is None else self.power
            words = rounded((largest * _powered(shares, power, n) + 0.0).astype(np.float32), weights.spec.dtype.name)  # no zeros of two signs
        words = within(weights, kept.put(weights, words), self.max_error)
        plan = plan_of(weights, words)
        return None if plan is None else weights.fitted(words, plan)


def _powered(shares: Floats, power: float, n: int) -> Floats:
    """The nearest of n places on either side of zero, as they lie after |x|^power."""
    places = np.rint(n * np.abs(shares) ** power) / n
    found: Floats = np.sign(shares) * places ** (1 / power)
    return found


def _best_power(shares: Floats, importance: Floats, n: int) -> float:
    """Golden section; every trial takes one more error."""

    def error(power: float) -> float:
        return float(importance @ np.square(_powered(shares, power, n) - shares))

    low, high = _LEAST, _MOST
    left, right = high - _SECTION * (high - low), low + _SECTION * (high - low)
    error_left, error_right = error(left), error(right)
    for _ in range(_TRIALS):
        if error_left <= error_right:
            high, right, error_right = right, left, error_left
            left = high - _SECTION * (high - low)
            error_left = error(left)
        else:
            low, left, error_left = left, right, error_right
            right = low + _SECTION * (high - low)
            error_right = error(right)
    return left if error_left <= error_right else right
