"""Trellis-coded quantization with a rate term: the fit of stage `grid` (sources: kernels/trellis.py; docs/lossy.md)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelcodec.errors import BadRecipe
from modelcodec.fit.chain import Fit
from modelcodec.fitted import FittedTensor, Weights, values_of
from modelcodec.kernels import context_coder
from modelcodec.kernels.context_coder import Forecast, Geometry
from modelcodec.kernels.trellis import CODES, MOST_INDEX, Code, search
from modelcodec.stage import Plan
from modelcodec.stages.grid import NO_SHIFTS, Grid, Path, Steps, first_mean_of
from modelcodec.stages.rans import Rans
from modelcodec.types import Array

REACH = 2 * MOST_INDEX - 2
"""Steps from zero that an index can reach; what lies further off is an exception."""
_FEW = 64
"""Fewer weights than that do not train a shift."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Quantized:
    """A tensor on a grid: the stage that codes it, its words, and the bytes that its indices take (0 without the context coder)."""

    grid: Grid
    words: NDArray[np.generic]
    n_bytes: int

    def plan(self) -> Plan:
        return plan_of(self.grid)


def plan_of(grid: Grid) -> Plan:
    """The plan of a tensor on a grid: indices, where they are a part, and exponents of steps at about their entropy."""
    return Plan(grid, {"indices": Plan(Rans()), "exponents": Plan(Rans())})


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How weights find their places on a grid.

    `states` of the trellis (1: none): 8 for speed, 256 for the fewest bits. A bit may cost `price` squared steps of error; bits are forecast from the indices
    of the pass before, `passes` times. `modelled`: for the context coder, else for static tables. `trained`: places move to the mean of their weights.
    """

    states: int = 8
    price: float = 0.2
    passes: int = 2
    modelled: bool = True
    trained: bool = True

    def __post_init__(self) -> None:
        if self.states not in CODES:
            raise BadRecipe(f"trellis: states = {self.states}, {', '.join(map(str, CODES))} are possible")
        if not 0 <= self.price < 100 or self.passes < 0:
            raise BadRecipe(f"trellis: price = {self.price} and passes = {self.passes}; both are 0 or more, the price is below 100")

    def quantize(self, weights: Weights, step: float, importance: Floats | None = None, steps: Steps | None = None) -> Quantized:
        """The cheapest places on a grid of this step, or of `steps` times this one. `importance`, one for each weight, weighs its squared error. What no place
        can stand for stays exact.
        """
        values = weights.values().astype(np.float64)
        unit = np.float32(step / 256)
        if not 0 < float(unit) * (1.0 if steps is None else steps.largest) < 2.0**127:
            raise BadRecipe(f"trellis: a step of {step} is not possible for float32 weights")
        with np.errstate(over="ignore"):
            x = values / (256 * float(unit))
            if steps is not None:
                x /= steps.of_words(x.size)
        far = ~(np.abs(x) <= REACH)  # a NaN is far
        x[far] = 0.0
        geometry = Geometry.of(weights.spec.shape, 0, x.size)
        indices, shifts, n_bytes = self._path(x, geometry, importance)
        grid = Grid(indices, float(unit), self.states, shifts, self.modelled, steps)
        words = Path(CODES[self.states], 0, float(unit), shifts).restore(indices, weights.spec.dtype.name, steps)
        return Quantized(grid, exact_where(far, weights, words), n_bytes)

    def _path(self, x: Floats, geometry: Geometry, importance: Floats | None) -> tuple[NDArray[np.int32], tuple[int, int, int, int], int]:
        """Indices, shifts and bytes after the last pass."""
        code = CODES[self.states]
        indices, shifts = search(x, code, importance=importance).indices, NO_SHIFTS
        n_bytes = 0
        for left in range(self.passes if self.price else 0, -1, -1):
            forecast, n_bytes = self._forecast(indices, geometry, code)
            if forecast is None or left == 0:
                break
            price, moved = self.price, np.array(shifts, np.int64)
            indices = search(x, code, price, forecast.places, forecast.scales, importance, moved).indices
            shifts = trained_shifts(x, indices, code) if self.trained else NO_SHIFTS
        return indices, shifts, n_bytes

    def _forecast(self, indices: NDArray[np.int32], geometry: Geometry, code: Code) -> tuple[Forecast | None, int]:
        """What the coder foresees of each weight, and the bytes that it takes; no forecast where it gives up. Static tables foresee the same of all."""
        if not self.modelled:
            mean = max(1.0, 512.0 * float(np.abs(indices).mean())) if indices.size else 1.0
            return Forecast(np.zeros(1, np.int32), np.full(1, min(max(round(256 * float(np.log2(mean))), 512), 6400), np.int32)), 0
        packed = context_coder.pack(indices, geometry, first_mean_of(indices)[1], code, 0)
        return (packed.forecast, packed.data.size) if packed.data is not None else (None, 4 * indices.size)


DEFAULT = Quantizer()


def exact_where(far: NDArray[np.bool_], weights: Weights, words: Array) -> Array:
    """Words of places, but the tensor's own where weights are `far` from any, or the nearest place is more than their dtype holds."""
    return np.where(far | ~np.isfinite(values_of(words, weights.spec.dtype.name)), weights.words, words)


def trained_shifts(x: Floats, indices: NDArray[np.int32], code: Code) -> tuple[int, int, int, int]:
    """How far, in 1/256 steps, the weights of a magnitude lie below its place in the mean: magnitude 1 and larger ones, of each union."""
    places = Path(code, 0, 1 / 256, NO_SHIFTS).restore(indices, "F32").view(np.float32).astype(np.float64)
    below, magnitude = (places - x) * np.sign(places), np.abs(indices)
    even = np.abs(places) == 2 * magnitude
    classes = (even & (magnitude == 1), even & (magnitude > 1), ~even & (magnitude == 1), ~even & (magnitude > 1))
    means = (float(below[c].mean()) if np.count_nonzero(c) >= _FEW else 0.0 for c in classes)
    a, b, c, d = (min(max(round(256 * mean), -127), 127) for mean in means)
    return a, b, c, d


@dataclass(frozen=True, slots=True)
class Trellis(Fit):
    """All tensors of DTYPES on grids of one step: the best allocation of bits for the squared error of all weights together (reverse water-filling)."""

    step: float
    quantizer: Quantizer = DEFAULT

    def fit(self, weights: Weights, data: object = None) -> FittedTensor:
        quantized = self.quantizer.quantize(weights, self.step)
        return weights.fitted(quantized.words, quantized.plan())
