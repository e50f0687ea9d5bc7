"""FP8 grids whose exponent bits and scale suit the weights (source: Kuzmin et al., "FP8 quantization: the power of the exponent", arXiv 2208.09225).

Seven bits beside the sign: with one for the exponent the grid is uniform, each more makes it coarser for large weights and finer for small ones. No code stands
for infinities or NaN. For programs that compute with such numbers; as a way to small files `Bits` is smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelcodec import planner
from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit, cheapest
from modelcodec.fit.kmeans import Floats, Kept, check_bound, importance_of, plan_of, within
from modelcodec.fit.trellis import plan_of as grid_plan
from modelcodec.fitted import FittedTensor, Weights, values_of
from modelcodec.kernels.casts import rounded
from modelcodec.kernels.trellis import MOST_INDEX
from modelcodec.stage import Plan
from modelcodec.stages.grid import Grid, Steps

_EXPONENT_BITS = range(1, 6)
_PHASES = 8
"""A tensor's scale is (8 + phase) / 8 times a power of two: short numbers times short numbers take few bits as floats."""
_CLIPPED = 3
"""How many powers of two are tried for the scale, from the one that holds the largest weight down."""
_MOST_OCTAVES = 31
"""Between steps of rows in stage grid; rows beyond are exceptions there."""
_SAMPLED = 1 << 16
"""Format and phase are sought on about so many weights, evenly spread."""


@dataclass(frozen=True, slots=True)
class Fp8(Fit):
    """Weights on the FP8 grid of least squared error: `exponent_bits` of 1 (E1M6) to 5 (E5M2), None: the best, and a scale a tensor; with `rows` each row has
    its own power of two in it, as formats with a free exponent bias have.

    Weights that would be off by more than `max_error` stay exact. data: importance or input moments, if any, weigh the squared error.
    """

    exponent_bits: int | None = None
    rows: bool = False
    max_error: float | None = None

    def __post_init__(self) -> None:
        if self.exponent_bits is not None and self.exponent_bits not in _EXPONENT_BITS:
            raise BadRecipe(f"fp8: exponent_bits = {self.exponent_bits}, 1 to 5 are possible")
        check_bound("fp8", self.max_error)

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        kept = Kept.of(weights)
        n_rows = weights.words.size // weights.spec.row_words if self.rows else 1
        values = np.where(kept.free, weights.values(), 0).astype(np.float64).reshape(n_rows, -1)
        importance = np.where(kept.free, importance_of(weights, data), 0).reshape(n_rows, -1)
        grid = self._best(*_sample(values, importance))
        units = grid.units(values, importance)
        found = grid.nearest(values, units) + 0.0  # no zeros of two signs
        with np.errstate(over="ignore"):
            words = rounded(found.reshape(-1).astype(np.float32), weights.spec.dtype.name)
        words = np.where(np.isfinite(values_of(words, weights.spec.dtype.name)), words, weights.words)  # above the dtype's largest number
        words = within(weights, kept.put(weights, words), self.max_error)
        plans = [planner.plan(weights.spec, words, planner.SMALL), plan_of(weights, words), grid.plan(found, units)]
        return weights.fitted(words, cheapest(weights.spec, words, [plan for plan in plans if plan is not None]))

    def _best(self, values: Floats, importance: Floats) -> _Grid:
        kinds = _EXPONENT_BITS if self.exponent_bits is None else (self.exponent_bits,)
        grids = [_Grid(bits, phase) for bits in kinds for phase in range(_PHASES)]
        return min(grids, key=lambda grid: grid.error(values, importance))


def _sample(values: Floats, importance: Floats) -> tuple[Floats, Floats]:
    """Some of the rows, or of the one row's weights."""
    step = -(-values.size // _SAMPLED)
    part = np.s_[::step] if len(values) > 1 else np.s_[:, ::step]
    return values[part], importance[part]


@dataclass(frozen=True, slots=True)
class _Grid:
    """The numbers of a format, times (8 + `phase`) / 8, times a power of two."""

    exponent_bits: int
    phase: int

    @property
    def mantissa_bits(self) -> int:
        return 7 - self.exponent_bits

    @property
    def largest(self) -> float:
        """Over the smallest number that is not subnormal."""
        return math.ldexp(2 - 2.0**-self.mantissa_bits, 2**self.exponent_bits - 2)

    def nearest(self, values: Floats, units: Floats) -> Floats:
        """The nearest number of the format to each value, in rows whose smallest number that is not subnormal is their unit."""
        x = values / units
        finest = np.maximum(np.frexp(x)[1] - 1, 0) - self.mantissa_bits
        places = np.ldexp(np.rint(np.ldexp(x, -finest)), finest)
        found: Floats = np.clip(places, -self.largest, self.largest) * units
        return found

    def plan(self, found: Floats, units: Floats) -> Plan | None:
        """Numbers as multiples of the smallest one, in rows with steps of their own; None where a format's numbers lie too far apart."""
        steps = np.ldexp(units[:, 0], -self.mantissa_bits)
        least = float(steps[found.any(axis=1)].min(initial=np.inf))
        indices = np.rint(found / steps[:, None])
        step = np.float32(least / 512)
        if np.abs(indices).max() > MOST_INDEX or not 0 < step < np.inf:
            return None
        octaves = np.clip(np.frexp(steps / least)[1] - 1, 0, _MOST_OCTAVES)
        of_rows = Steps((8 * octaves).astype(np.uint8), found.shape[1]) if len(steps) > 1 else None
        return grid_plan(Grid(indices.astype(np.int32).reshape(-1), float(step), states=1, steps=of_rows))

    def units(self, values: Floats, importance: Floats) -> Floats:
        """For each row the unit of least error, one column."""
        errors, units = (np.stack(found) for found in zip(*self._tried(values, importance), strict=True))
        best: Floats = np.take_along_axis(units, errors.argmin(axis=0)[None], axis=0)[0, :, None]
        return best

    def error(self, values: Floats, importance: Floats) -> float:
        return float(np.min([errors for errors, _ in self._tried(values, importance)], axis=0).sum())

    def _tried(self, values: Floats, importance: Floats) -> Iterator[tuple[Floats, Floats]]:
        """Errors of the rows, and their units."""
        scale = (_PHASES + self.phase) / _PHASES
        most: NDArray[np.int32] = np.frexp(np.abs(values).max(axis=1) / (scale * self.largest))[1]
        for clipped in range(_CLIPPED):
            units = np.ldexp(scale, most - clipped)
            with np.errstate(over="ignore"):
                yield (importance * np.square(self.nearest(values, units[:, None]) - values)).sum(axis=1), units
