"""The step that meets a promise: bits a weight, bytes, a signal-to-noise ratio, a bound on every error. Data-free.

For the squared error of all weights together one step for all tensors and rows is optimal at every rate (reverse water-filling: tensors that vary less than the
error come out as zeros by themselves); `importance` of a tensor scales its squared error, and so its step by one over the root.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from modelcodec import frame
from modelcodec.errors import BadRecipe
from modelcodec.fit.chain import Fit, holds_weights
from modelcodec.fit.trellis import DEFAULT, Floats, Quantized, Quantizer
from modelcodec.fitted import Fitted, FittedTensor, Weights, values_of
from modelcodec.formats.container_layout import full_frame_words
from modelcodec.pool import ordered, thread_count
from modelcodec.stage import FrameContext
from modelcodec.stages.grid import Steps

_TRIALS = 14
_SAMPLED = 1 << 21
"""Weights on which a step is sought, where there are many more."""
_REPAIRS = 8
"""How often a step is changed until all weights hold what the sample did."""
_NEAR = 0.002
"""A promise is met when what is measured stays below it by less than this share."""
_MOST_EXCEPTIONS = 16
"""A tensor with more exceptions than one in so many weights is smaller without loss."""

_LEAST_STEP = 2.0**-110
"""Smaller steps leave no float32 for 1/256 of them."""
_MOST_STEP = 2.0**127
"""Larger bounds are held by this one."""
_MOST_EXPONENT = 255
"""Of a span's step, in eighths of an octave above the tensor's."""

Tensors = Mapping[str, Weights]


def coded_bytes(weights: Weights, quantized: Quantized) -> int:
    """Bytes of the tensor's frames, heads and digests included."""
    step, words, plan = full_frame_words(weights.spec.dtype, weights.spec.row_words), quantized.words, quantized.plan()
    n_bytes = 0
    for number, at in enumerate(range(0, words.size, step)):
        x = words[at : at + step]
        n_bytes += len(frame.encode(x, plan, FrameContext(weights.spec, at, x.size, None, at), number).data)
    return n_bytes


def _lossy(tensors: Tensors) -> Tensors:
    found = {name: weights for name, weights in tensors.items() if holds_weights(weights.spec)}
    if not found:
        raise BadRecipe("there are no float32, bfloat16 or float16 tensors that could lose anything")
    return found


def _n_weights(tensors: Tensors) -> int:
    return sum(weights.words.size for weights in tensors.values())


def _squares(weights: Weights) -> float:
    values = weights.values().astype(np.float64)
    return float(np.square(values[np.isfinite(values)]).sum())


def sampled(tensors: Tensors) -> Tensors:
    """Rows from the middle of each tensor, together about _SAMPLED weights; all of them where they are not many more."""
    share = _SAMPLED / _n_weights(tensors)
    if 2 * share >= 1:
        return tensors
    found = {}
    for name, weights in tensors.items():
        spec = weights.spec
        n_rows = spec.n_words // spec.row_words
        n = min(max(math.ceil(n_rows * share), 1), n_rows)
        first = (n_rows - n) // 2
        shape = (n, *spec.shape[1:]) if len(spec.shape) > 1 else (n * spec.row_words,)
        found[name] = Weights(replace(spec, shape=shape), weights.words[first * spec.row_words : (first + n) * spec.row_words])
    return found


@dataclass(frozen=True, slots=True)
class _Trial:
    """All tensors on grids of one step."""

    tensors: Tensors
    step: float
    quantized: Mapping[str, Quantized]

    @classmethod
    def of(cls, tensors: Tensors, step: float, quantizer: Quantizer, importance: Mapping[str, float]) -> _Trial:
        def quantized(name: str) -> Quantized:
            return quantizer.quantize(tensors[name], step / math.sqrt(importance.get(name, 1.0)))

        return cls(tensors, step, dict(zip(tensors, ordered(quantized, tensors, min(thread_count(None), len(tensors))), strict=True)))

    def bits_per_weight(self) -> float:
        return 8 * sum(coded_bytes(self.tensors[name], quantized) for name, quantized in self.quantized.items()) / _n_weights(self.tensors)

    def relative_mse(self, importance: Mapping[str, float]) -> float:
        """Squared error over squares of the weights, both as important as they are."""
        error = squares = 0.0
        for name, quantized in self.quantized.items():
            of_tensor = importance.get(name, 1.0) * _squares(self.tensors[name])
            error += self.tensors[name].loss(quantized.words).relative_mse * of_tensor
            squares += of_tensor
        return error / squares if squares else 0.0

    def fitted(self) -> Fitted:
        return Fitted({name: self.tensors[name].fitted(quantized.words, quantized.plan()) for name, quantized in self.quantized.items()})


class _Promise(Fit):
    """Met by the largest step, or the smallest, at which a measure is at most `most`; the measure rises, or falls, with the step."""

    quantizer: Quantizer
    importance: Mapping[str, float]
    rising: ClassVar[bool] = False

    @abstractmethod
    def most(self, tensors: Tensors) -> float: ...

    def measure(self, trial: _Trial) -> float:
        return trial.bits_per_weight()

    def __call__(self, tensors: Tensors, data: object = None) -> Fitted:
        """Sought on a sample where there are many weights, then held by all. Raises BadRecipe."""
        every = _lossy(tensors)
        few, most = sampled(every), self.most(every)
        found = self._sought(few, most)
        if found is not None and few is not every:
            found = self._held(every, found.step, most)
        if found is None:
            raise BadRecipe("no step of the grid keeps the tensors to that; ask for more bits or a larger error, or let fewer tensors be exact")
        return found.fitted()

    def fit(self, weights: Weights, data: object = None) -> FittedTensor:
        return self({weights.spec.name: weights}).tensors[weights.spec.name]

    def _sought(self, tensors: Tensors, most: float) -> _Trial | None:
        squares = sum(_squares(weights) for weights in tensors.values())
        step = math.sqrt(squares / _n_weights(tensors)) / 4 if squares else 1.0
        low, high, best = 0.0, math.inf, None
        for _ in range(_TRIALS):
            tried = _Trial.of(tensors, step, self.quantizer, self.importance)
            measured = self.measure(tried)
            if measured <= most:
                best = tried
                if measured >= most * (1 - _NEAR) or not squares:
                    break
            if (measured <= most) == self.rising:
                low = step
            else:
                high = step
            step = 4 * low if high == math.inf else high / 4 if low == 0.0 else math.sqrt(low * high)
        return best

    def _held(self, tensors: Tensors, step: float, most: float) -> _Trial | None:
        """From the step at which a sample met the promise to one at which all weights do."""
        for _ in range(_REPAIRS):
            trial = _Trial.of(tensors, step, self.quantizer, self.importance)
            measured = self.measure(trial)
            if measured <= most:
                return trial
            # An error goes with the square of the step, a bit with its logarithm.
            step *= math.sqrt(most / measured) * (1 - _NEAR / 2) if self.rising else 2 ** (measured - most) * (1 + _NEAR / 2)
        return None


@dataclass(frozen=True, slots=True)
class Bits(_Promise):
    """At most so many bits a weight, frames with their heads and digests counted."""

    bits: float
    quantizer: Quantizer = DEFAULT
    importance: Mapping[str, float] = field(default_factory=dict)

    def most(self, tensors: Tensors) -> float:
        return self.bits


@dataclass(frozen=True, slots=True)
class Size(_Promise):
    """At most so many bytes of frames, of the lossy tensors together."""

    n_bytes: int
    quantizer: Quantizer = DEFAULT
    importance: Mapping[str, float] = field(default_factory=dict)

    def most(self, tensors: Tensors) -> float:
        return 8 * self.n_bytes / _n_weights(tensors)


@dataclass(frozen=True, slots=True)
class Snr(_Promise):
    """At least so many decibels between the squares of the weights and those of their errors, over all lossy tensors."""

    decibels: float
    quantizer: Quantizer = DEFAULT
    importance: Mapping[str, float] = field(default_factory=dict)

    rising: ClassVar[bool] = True

    def most(self, tensors: Tensors) -> float:
        return float(10 ** (-self.decibels / 10))

    def measure(self, trial: _Trial) -> float:
        return trial.relative_mse(self.importance)


@dataclass(frozen=True, slots=True)
class MaxError(Fit):
    """No weight, as its dtype holds it, is further off than `bound`; or, `relative`, than `bound` times the largest finite magnitude of its row, or of
    each `block` weights that follow each other in the tensor. What cannot be so near stays exact.
    """

    bound: float
    relative: bool = False
    modelled: bool = True
    block: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise BadRecipe(f"max_error: a bound of {self.bound} is not possible; it is a positive number")
        if self.block is not None and not (self.relative and self.block > 0):
            raise BadRecipe(f"max_error: block = {self.block}; a block has one weight or more, and only a relative bound has blocks")

    def fit(self, weights: Weights, data: object = None) -> FittedTensor | None:
        """None where the tensor is smaller without loss."""
        values = weights.values().astype(np.float64)
        span = min(self.block or weights.spec.row_words, values.size or 1) if self.relative else values.size
        bounds = self._bounds(values, span)
        least = _least(bounds)
        if least is None:
            return None
        steps = None
        if bounds.size > 1:  # a span's bound, rounded down to an eighth of an octave
            exponents = np.minimum(np.floor(8 * np.log2(np.maximum(bounds / least, 1.0)) + 1e-9), _MOST_EXPONENT)
            steps = Steps(exponents.astype(np.uint8), span)
        quantizer = Quantizer(states=1, price=0.0, passes=0, modelled=self.modelled, trained=False)
        quantized = quantizer.quantize(weights, least * (1 - 2**-10), steps=steps)
        given = values_of(quantized.words, weights.spec.dtype.name).astype(np.float64)
        with np.errstate(invalid="ignore"):
            held = np.abs(values - given) <= np.repeat(bounds, span)[: values.size]
        if np.count_nonzero(~held) * _MOST_EXCEPTIONS > values.size:
            return None
        kept = replace(quantized, words=np.where(held, quantized.words, weights.words))
        return weights.fitted(kept.words, kept.plan())

    def _bounds(self, values: Floats, span: int) -> Floats:
        """The bound of each span, zero where it has no finite magnitude; or the one bound of all. None larger than a step can be."""
        if not self.relative:
            return np.full(1, min(self.bound, _MOST_STEP))
        finite = np.where(np.isfinite(values), np.abs(values), 0.0)
        return np.minimum(self.bound * np.maximum.reduceat(finite, np.arange(0, values.size, span)), _MOST_STEP)


def _least(bounds: Floats) -> float | None:
    """The bound that has the most others between itself and the largest multiple of it that a span's step can be; None where no step is possible."""
    ordered = np.sort(bounds[bounds > _LEAST_STEP])
    if not ordered.size:
        return None
    inside = np.searchsorted(ordered, ordered * 2 ** (_MOST_EXPONENT / 8), side="right") - np.arange(ordered.size)
    return float(ordered[inside.argmax()])
