"""Rounding that a network feels least, at a price for bits: optimal brain surgeon's error feedback inside of a trellis search (kernels/feedback_trellis.py).

All layers share one price of a bit in units of the network's own loss, as the calibration's curvature foresees it, so that bits go where they are worth most.
Where only the diagonal of a layer's `outputs` is known, as of embeddings and heads, its rows differ by orders of magnitude in what their errors cost, and each
has a step of its own, so that all cost the same.
sources: Hassibi & Stork 1992; GPTQ, arXiv 2210.17323; CERWU, arXiv 2505.18758; curvature of inputs and outputs: K-FAC, arXiv 1503.05671.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from modelcodec.errors import BadRecipe
from modelcodec.fit import bias
from modelcodec.fit.allocate import coded_bytes
from modelcodec.fit.calibration import Bias, Calibration
from modelcodec.fit.chain import is_fitted
from modelcodec.fit.trellis import DEFAULT, REACH, Quantized, Quantizer, exact_where, trained_shifts
from modelcodec.fitted import Fitted, FittedTensor, Weights
from modelcodec.kernels import context_coder
from modelcodec.kernels.context_coder import Geometry
from modelcodec.kernels.feedback_trellis import Curvature, search
from modelcodec.kernels.trellis import CODES
from modelcodec.stages.grid import FACTORS, NO_SHIFTS, Grid, Path, Steps, first_mean_of
from modelcodec.types import Array

DAMPING = 0.03
"""Part of its mean that is added to the diagonal of each factor: what the calibration data did not move costs something, too."""
_TRIALS, _NEAR = 12, 0.004
"""A number of bytes is met when what is measured stays below it by less than this share."""
_SAMPLED, _LEAST_ROWS = 1 << 20, 64
"""About so many weights a price is sought on, where there are many more, but on no fewer rows of a layer."""

Floats = NDArray[np.float64]
Tensors = Mapping[str, Weights]
Factor = Callable[[Floats], Curvature]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A matrix or a kernel with what errors in it cost. `means`: of its inputs, where `taker` makes up for mean errors of its outputs.

    `rows` (u1): e where a row's step is 2^(e / 8) times that of the layer; `outputs` is for errors in steps.
    """

    weights: Weights
    values: Floats
    far: NDArray[np.bool_]
    inputs: Curvature
    outputs: Curvature
    means: Floats | None
    taker: Weights | None
    rows: Array | None

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
        damped, exponents = _damped(np.ones(rows) if outputs is None else outputs), None
        if outputs is not None and outputs.ndim == 1 and (damped > 0).all():
            exponents = np.minimum(np.rint(4 * np.log2(damped.max() / damped)), 255).astype(np.uint8)
            damped = damped * 2.0 ** (exponents / 4)
        inputs, costs = factor(_damped(moments)), factor(damped)
        if not (inputs.diagonal > 0).all() or not (costs.diagonal > 0).all():
            raise BadRecipe(f"{weights.spec.name}: obs: the calibration's moments are those of no data; collect them anew")
        return cls(weights, np.where(far, 0.0, values), far, inputs, costs, means, taker, exponents)

    def every(self, stride: int) -> _Layer:
        """About one row in so many, to see what they take."""
        stride = min(stride, len(self.values) // _LEAST_ROWS)
        if stride < 2:
            return self
        spec, few = self.weights.spec, slice(None, None, stride)
        words = np.ascontiguousarray(self.weights.words.reshape(self.values.shape)[few])
        weights = Weights(replace(spec, shape=(len(words), *spec.shape[1:])), words.reshape(-1))
        feedback = self.outputs.feedback[few, few] if self.outputs.feedback.size else self.outputs.feedback
        outputs = Curvature(np.ascontiguousarray(feedback), np.ascontiguousarray(self.outputs.diagonal[few]))
        return replace(
            self, weights=weights, values=self.values[few], far=self.far[few], outputs=outputs, taker=None, rows=None if self.rows is None else self.rows[few]
        )

    @property
    def cost(self) -> float:
        """Of an error, in the mean over the weights."""
        return float(self.inputs.diagonal.mean() * self.outputs.diagonal.mean())

    def quantize(self, price_of_bit: float, quantizer: Quantizer) -> Quantized:
        """The step follows from the price: `quantizer.price` squared steps of the mean cost are worth a bit."""
        spec, code = self.weights.spec, CODES[quantizer.states]
        step = math.sqrt(price_of_bit / (quantizer.price * self.cost))
        steps = None if self.rows is None else Steps(self.rows, spec.row_words)
        least, most = (1.0, 1.0) if steps is None else (float(FACTORS[0]), steps.largest)
        unit = np.float32(min(step / 256 / least, 2.0**127))
        if not 0 < float(unit) * most < 2.0**127:
            raise BadRecipe(f"{spec.name}: obs: a step of {step} is not possible for float32 weights")
        with np.errstate(over="ignore"):
            x = self.in_steps(256 * float(unit))
        far = self.far | ~(np.abs(x) <= REACH)
        x[far] = 0.0
        geometry, shifts = Geometry.of(spec.shape, 0, x.size), NO_SHIFTS
        places, scales = np.zeros(x.shape, np.int32), np.full(x.shape, _scale(x), np.int32)
        for left in range(quantizer.passes, -1, -1):
            used = shifts
            run = (self.inputs, self.outputs, code, quantizer.price * self.cost, places, scales)
            found = search(x, *run, np.array(used, np.int64))
            indices = found.indices.reshape(-1)
            if left and quantizer.trained:
                shifts = trained_shifts(np.clip(found.targets, -2 * REACH, 2 * REACH).reshape(-1), indices, code)
            if left and quantizer.modelled:
                packed = context_coder.pack(indices, geometry, first_mean_of(indices)[1], code, 0)
                if packed.data is None:
                    continue
                places, scales = packed.forecast.places.reshape(x.shape), packed.forecast.scales.reshape(x.shape)
            elif left:
                scales[:] = _scale(indices * 2.0)
        grid = Grid(indices, float(unit), quantizer.states, used, quantizer.modelled, steps)
        words = Path(code, 0, float(unit), used).restore(indices, spec.dtype.name, steps)
        return Quantized(grid, exact_where(far.reshape(-1), self.weights, words), 0)

    def in_steps(self, step: float) -> Floats:
        """The values, rows by their own steps where they have them: `step` times FACTORS."""
        return self.values / step if self.rows is None else self.values / (step * FACTORS[self.rows].astype(np.float64)[:, None])

    @property
    def at_stake(self) -> float:
        """What the median weights cost if they became zero, all together."""
        in_steps = self.in_steps(1.0 if self.rows is None else 1 / float(FACTORS[0]))
        return self.cost * float(np.median(np.abs(in_steps))) ** 2 * self.values.size

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
        """At the price of a bit that meets the number of bytes, sought on a sample of the rows where there are many weights. Raises BadRecipe."""
        sizes = {name: layer.values.size for name, layer in layers.items()}
        search = _Search(self.bits, self.quantizer, sizes)
        start = _Guess(math.log2(sum(layer.at_stake for layer in layers.values()) / sum(sizes.values()) or 1.0) + 1 - 2 * self.bits, -0.5)
        stride = sum(sizes.values()) // _SAMPLED
        if stride > 1:
            start, _ = search.met({name: layer.every(stride) for name, layer in layers.items()}, start)
        return search.met(layers, start)[1]


@dataclass(frozen=True, slots=True)
class _Guess:
    """Logarithm of a price, and how many bits a weight fall as it rises by one: half of one where there are many."""

    log_price: float
    slope: float


@dataclass(frozen=True, slots=True)
class _Search:
    """Looks for the price of a bit at which so many bits a weight are met. `sizes`: of the layers, where only rows of them are tried."""

    bits: float
    quantizer: Quantizer
    sizes: Mapping[str, int]

    def met(self, layers: Mapping[str, _Layer], guess: _Guess) -> tuple[_Guess, dict[str, Quantized]]:
        """The price and what it gives. Raises BadRecipe."""
        aim, low, high = self.bits * (1 - _NEAR / 2), -math.inf, math.inf
        best: dict[str, Quantized] | None = None
        log_price, slope = guess.log_price, guess.slope
        before: tuple[float, float] | None = None
        for _ in range(_TRIALS):
            tried = {name: layer.quantize(2**log_price, self.quantizer) for name, layer in layers.items()}
            bits = self._bits(layers, tried)
            if bits <= self.bits:
                best, high = tried, log_price
                if bits >= self.bits * (1 - _NEAR):
                    break
            else:
                low = log_price
            if before is not None and before[0] != log_price:
                slope = min(max((bits - before[1]) / (log_price - before[0]), -0.6), -0.1)
            before, log_price = (log_price, bits), log_price + (aim - bits) / slope
            if not low < log_price < high:
                log_price = (low + high) / 2
        if best is None:
            raise BadRecipe(f"obs: the tensors cannot be coded in {self.bits} bits a weight; ask for more")
        return _Guess(high, slope), best

    def _bits(self, layers: Mapping[str, _Layer], tried: Mapping[str, Quantized]) -> float:
        """Bits a weight of the whole layers, if what was tried speaks for them."""
        n_bytes = sum(coded_bytes(layers[name].weights, found) * (self.sizes[name] / layers[name].values.size) for name, found in tried.items())
        return 8 * n_bytes / sum(self.sizes.values())
