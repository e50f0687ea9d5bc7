"""Rounding that a network feels least, at a price for bits: optimal brain surgeon's error feedback inside of a trellis search (kernels/feedback_trellis.py).

All layers share one price of a bit in units of the network's own loss, as the calibration's curvature foresees it, so that bits go where they are worth most.
sources: Hassibi & Stork 1992; GPTQ, arXiv 2210.17323; CERWU, arXiv 2505.18758; curvature of inputs and outputs: K-FAC, arXiv 1503.05671.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelcodec.errors import BadRecipe
from modelcodec.fit import bias
from modelcodec.fit.allocate import coded_bytes
from modelcodec.fit.calibration import Bias, Calibration
from modelcodec.fit.chain import is_fitted
from modelcodec.fit.trellis import _REACH, DEFAULT, Quantized, Quantizer, _shifts
from modelcodec.fitted import Fitted, FittedTensor, Weights
from modelcodec.kernels import context_coder
from modelcodec.kernels.context_coder import Geometry
from modelcodec.kernels.feedback_trellis import Curvature, search
from modelcodec.kernels.trellis import CODES
from modelcodec.stages.grid import NO_SHIFTS, Grid, Path, first_mean_of

DAMPING = 0.03
"""Part of its mean that is added to the diagonal of each factor: what the calibration data did not move costs something, too."""
_TRIALS, _NEAR = 8, 0.004
"""A number of bytes is met when what is measured stays below it by less than this share."""

Floats = NDArray[np.float64]
Tensors = Mapping[str, Weights]
Factor = Callable[[Floats], Curvature]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A matrix or a kernel with what errors in it cost. `means`: of its inputs, where `taker` makes up for mean errors of its outputs."""

    weights: Weights
    values: Floats
    far: NDArray[np.bool_]
    inputs: Curvature
    outputs: Curvature
    means: Floats | None
    taker: Weights | None

    @classmethod
    def of(cls, weights: Weights, data: Calibration, taker: Weights | None, factor: Factor) -> _Layer | None:
        """None without statistics."""
        moments, outputs, means = data.moments_of(weights.spec), data.outputs_of(weights.spec), data.means_of(weights.spec)
        if moments is None:
            return None
        rows = weights.spec.n_words // weights.spec.row_words
        if means is None or taker is None:
            means = taker = None
        else:
            moments = moments - np.outer(means, means)
        values = weights.values().astype(np.float64).reshape(rows, -1)
        far = ~np.isfinite(values)
        inputs, costs = factor(_damped(moments)), factor(_damped(np.ones(rows) if outputs is None else outputs))
        if not (inputs.diagonal > 0).all() or not (costs.diagonal > 0).all():
            raise BadRecipe(f"{weights.spec.name}: obs: the calibration's moments are those of no data; collect them anew")
        return cls(weights, np.where(far, 0.0, values), far, inputs, costs, means, taker)

    @property
    def cost(self) -> float:
        """Of an error, in the mean over the weights."""
        return float(self.inputs.diagonal.mean() * self.outputs.diagonal.mean())

    def quantize(self, price_of_bit: float, quantizer: Quantizer) -> Quantized:
        """The step follows from the price: `quantizer.price` squared steps of the mean cost are worth a bit."""
        spec, code = self.weights.spec, CODES[quantizer.states]
        unit = np.float32(math.sqrt(price_of_bit / (quantizer.price * self.cost)) / 256)
        if not 0 < unit < np.inf:
            raise BadRecipe(f"{spec.name}: obs: a step of {256 * unit} is not possible for float32 weights")
        with np.errstate(over="ignore"):
            x = self.values / (256 * float(unit))
        far = self.far | ~(np.abs(x) <= _REACH)
        x[far] = 0.0
        geometry, shifts = Geometry.of(spec.shape, 0, x.size), NO_SHIFTS
        places, scales = np.zeros(x.shape, np.int32), np.full(x.shape, _scale(x), np.int32)
        for left in range(quantizer.passes, -1, -1):
            used = shifts
            run = (self.inputs, self.outputs, code, quantizer.price * self.cost, places, scales)
            found = search(x, *run, np.array(used, np.int64))
            indices = found.indices.reshape(-1)
            if left and quantizer.trained:
                shifts = _shifts(np.clip(found.targets, -2 * _REACH, 2 * _REACH).reshape(-1), indices, code)
            if left and quantizer.modelled:
                packed = context_coder.pack(indices, geometry, first_mean_of(indices)[1], code, 0)
                if packed.data is None:
                    continue
                places, scales = packed.forecast.places.reshape(x.shape), packed.forecast.scales.reshape(x.shape)
            elif left:
                scales[:] = _scale(indices * 2.0)
        grid = Grid(indices, float(unit), quantizer.states, used, quantizer.modelled)
        words = Path(code, 0, float(unit), used).restore(indices, spec.dtype.name)
        return Quantized(grid, np.where(far.reshape(-1), self.weights.words, words), 0)

    def fitted(self, quantized: Quantized, takes: Bias | None) -> dict[str, FittedTensor]:
        """By name: the tensor, and the vector that makes up for its mean errors."""
        made = {self.weights.spec.name: self.weights.fitted(quantized.words, quantized.plan())}
        if self.taker is not None and takes is not None and self.means is not None:
            given = Weights(self.weights.spec, quantized.words).values().astype(np.float64).reshape(self.values.shape)
            errors = np.where(self.far, 0.0, given - self.values)
            made[self.taker.spec.name] = bias.corrected(self.taker, takes, errors @ self.means)
        return made


def _scale(x: NDArray[np.floating]) -> int:
    """256 * log2 of the mean magnitude, in 1/256 steps, in the coder's range."""
    return int(min(max(round(256 * math.log2(max(256 * float(np.abs(x).mean()), 1.0))), 512), 6400))


def _damped(matrix: Floats) -> Floats:
    """A matrix or a diagonal with DAMPING."""
    if matrix.ndim == 1:
        return matrix + (DAMPING * float(matrix.mean()) or 1.0)
    return (matrix + matrix.T) / 2 + (DAMPING * float(np.diag(matrix).mean()) or 1.0) * np.eye(len(matrix))


@dataclass(frozen=True, slots=True)
class Obs:
    """At most so many bits a weight, frames with heads and digests counted, over the matrices and kernels that the calibration knows; others stay as they are.

    `corrected`: biases and running means make up for mean errors. Raises BadRecipe without a calibration, or where bits are too few.
    """

    bits: float
    quantizer: Quantizer = DEFAULT
    corrected: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.bits < math.inf or not self.quantizer.price > 0:
            raise BadRecipe(f"obs: bits = {self.bits}, price = {self.quantizer.price}; both are larger than 0")

    def __call__(self, tensors: Tensors, data: Calibration | None = None) -> Fitted:
        if data is None:
            raise BadRecipe("obs: needs calibration statistics; give a Calibration, or take a fit without data")
        layers = self._layers(tensors, data)
        if not layers:
            raise BadRecipe("obs: the calibration knows none of these tensors; collect the statistics from this very model, with the names of the file")
        quantized = self._quantized(layers)
        made: dict[str, FittedTensor] = {}
        for name, layer in layers.items():
            made |= layer.fitted(quantized[name], data.biases.get(name))
        return Fitted({name: made[name] for name in tensors if name in made})

    def factor(self, matrix: Floats) -> Curvature:
        """How errors are fed back, of a damped factor of the curvature."""
        return Curvature.of(matrix)

    def _layers(self, tensors: Tensors, data: Calibration) -> dict[str, _Layer]:
        layers = {}
        for name, weights in tensors.items():
            if is_fitted(weights.spec):
                taker = bias.taker(tensors, data.biases.get(name), weights.spec.shape[0]) if self.corrected else None
                layer = _Layer.of(weights, data, taker, self.factor)
                if layer is not None:
                    layers[name] = layer
        return layers

    def _quantized(self, layers: Mapping[str, _Layer]) -> dict[str, Quantized]:
        """At the price of a bit that meets the number of bytes. A price four times as high saves about one bit a weight."""
        n = sum(layer.values.size for layer in layers.values())
        most = self.bits * n / 8
        costs = [layer.cost * float(np.median(np.abs(layer.values))) ** 2 * layer.values.size for layer in layers.values()]
        log_price = math.log2(sum(costs) / n or 1.0) + 1 - 2 * self.bits
        low, high, best = -math.inf, math.inf, None
        for _ in range(_TRIALS):
            tried = {name: layer.quantize(2**log_price, self.quantizer) for name, layer in layers.items()}
            n_bytes = sum(coded_bytes(layers[name].weights, found) for name, found in tried.items())
            if n_bytes <= most:
                best, high = tried, log_price
                if n_bytes >= most * (1 - _NEAR):
                    break
            else:
                low = log_price
            guess = log_price + 16 * (n_bytes - most * (1 - _NEAR / 2)) / n
            log_price = guess if low < guess < high else (low + high) / 2
        if best is None:
            raise BadRecipe(f"obs: the tensors cannot be coded in {self.bits} bits a weight; ask for more")
        return best
