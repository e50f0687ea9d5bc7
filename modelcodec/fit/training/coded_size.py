"""The coded size as a term of the loss: what the codec's own context coder would pay for the weights, in bits, differentiable in each of them.

Now and then the weights are rounded as they would be for the file, and their indices go through the coder (kernels/context_coder.py), which tells what it
foresaw of each, given those before it: a place, and a mean distance from there. Until the next forecast a weight costs minus the logarithm of what the foreseen
logistic distribution gives to an interval of the grid around the weight, and all costs of a tensor are scaled so that at the forecast they came to its real
bits. That forecasts follow the weights needs no gradient: they are near the coder's optimum, where they do not change the size to first order.
sources: a rate in the loss: Oktay et al., "Scalable Model Compression by Entropy Penalized Reparameterization", ICLR 2020, arXiv 1906.06624, with learned
densities; the codec's forecasts in their place are our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.weights import Planned, Weight, straight_through, tensor_of, usual_weights, weights_of
from modelcodec.fit.trellis import DEFAULT, REACH, Quantizer
from modelcodec.fitted import Weights
from modelcodec.kernels import context_coder
from modelcodec.kernels.context_coder import Geometry
from modelcodec.kernels.trellis import CODES, Code, search
from modelcodec.pool import ordered, thread_count
from modelcodec.stage import Plan
from modelcodec.stages.grid import NO_SHIFTS, Path, first_mean_of

_MOST_LEVELS = 1 << 12
"""Different values that a tensor may have which another method rounds."""
_MOST_FAR = 16
"""With more than one weight in so many off the grid, the step is not meant."""
_OCTAVE = 2 * math.log(2)

Indices = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the coder foresaw of each weight, in steps: `middles`, and `rates`, which are 2 ln 2 over the mean distances from there. `n_bits`: what it took;
    `scale`: that over the estimate."""

    middles: Tensor
    rates: Tensor
    n_bits: float
    scale: float = 1.0

    @classmethod
    def of(cls, indices: Indices, like: Tensor, code: Code) -> Forecast:
        """Run the coder over the indices of a tensor. Raises BadRecipe where it gives up."""
        packed = context_coder.pack(indices, Geometry.of(tuple(like.shape), 0, indices.size), first_mean_of(indices)[1], code, 0)
        if packed.data is None:
            raise BadRecipe("coded_size: on this grid the weights take more bits than they have; a larger step is needed")
        middles, rates = packed.forecast.places / 256, _OCTAVE * np.exp2(8 - packed.forecast.scales / 256)
        foreseen = [torch.from_numpy(np.float32(x)).to(like.device) for x in (middles, rates)]
        return cls(foreseen[0], foreseen[1], 8.0 * packed.data.size)

    def in_units(self) -> tuple[Indices, Indices]:
        """Places and scales as a search takes them."""
        middles, rates = (x.cpu().double().numpy() for x in (self.middles, self.rates))
        return np.rint(256 * middles).astype(np.int32), np.rint(256 * (8 - np.log2(rates / _OCTAVE))).astype(np.int32)

    def bits(self, x: Tensor, narrow: bool) -> Tensor:
        """Estimated bits of weights x, in steps. narrow: every second state of a trellis has narrower intervals next to zero."""
        bits = self._bits(x, torch.ones_like(x))
        if narrow:
            bits = (bits + self._bits(x, (0.5 + x.abs() / 4).clamp(max=1))) / 2
        return self.scale * bits

    def _bits(self, x: Tensor, half: Tensor) -> Tensor:
        """-log2 of what the distributions give to the intervals from x - half to x + half, in sum."""
        off = x - self.middles
        missing = torch.log(-torch.expm1(-2 * half * self.rates))
        return (functional.softplus(-(off + half) * self.rates) + functional.softplus((off - half) * self.rates) - missing).sum() / math.log(2)


class Priced(nn.Module):
    """A parametrization that keeps what goes through it, for its price.

    With a `step`, the grid's search rounds the weight at some time: until then the layer computes with the error that rounding had at the last forecast, so
    that it learns to bear it. Without, another method rounds before: the weight must have few values, which count as neighbouring places of a grid.
    """

    forecast: Forecast | None = None
    error: Tensor | None = None
    levels: Tensor | None = None
    unrounded: Tensor | None = None
    held: Tensor | None = None
    plan: Plan | None = None

    def __init__(self, name: str, step: float, quantizer: Quantizer) -> None:
        super().__init__()
        self.name, self.step, self.quantizer = name, step, quantizer
        self._given: list[Tensor] = []  # in a list, where a module does not take it for a parameter of its own

    def forward(self, weight: Tensor) -> Tensor:
        if self.held is not None:
            return straight_through(weight, self.held)
        self._given[:] = [weight]
        return weight if self.error is None else weight + self.error

    def taken(self) -> Tensor | None:
        """What went through since the last time."""
        return self._given.pop() if self._given else None

    def bits(self, weight: Tensor) -> Tensor:
        """The estimate for a weight near that of the last forecast."""
        assert self.forecast is not None
        x = weight.reshape(-1).float()
        x = x / self.step if self.levels is None else _ranks(x, self.levels)
        return self.forecast.bits(x, self.levels is None and self.quantizer.states > 1)

    def look(self, weight: Tensor) -> None:
        """Forecast anew. Raises BadRecipe."""
        indices, code = self._on_grid(weight) if self.step else self._on_levels(weight)
        self.forecast = Forecast.of(indices, weight, code)
        estimate = float(self.bits(weight))
        self.forecast = replace(self.forecast, scale=self.forecast.n_bits / max(estimate, 1.0))

    def round(self, weight: Tensor) -> None:
        """Give this weight on the grid from then on, whatever the weight."""
        before = weights_of(self.name, weight)
        quantized = self.quantizer.quantize(before, self.step)
        self.unrounded, self.plan = weight.detach().clone(), quantized.plan()
        self.held = tensor_of(Weights(before.spec, quantized.words), weight)

    def _on_grid(self, weight: Tensor) -> tuple[Indices, Code]:
        code = CODES[self.quantizer.states]
        x = weight.reshape(-1).double().cpu().numpy() / self.step
        far = ~(np.abs(x) <= REACH)
        if np.count_nonzero(far) * _MOST_FAR > x.size:
            raise BadRecipe(f"coded_size: {self.name} has weights that are no numbers, or too large for a step of {self.step}; a larger one is needed")
        x[far] = 0
        foreseen = (0.0, None, None) if self.forecast is None else (self.quantizer.price, *self.forecast.in_units())
        indices = search(x, code, *foreseen).indices
        values = Path(code, 0, self.step / 256, NO_SHIFTS).restore(indices, "F32").view(np.float32)
        self.error = (torch.from_numpy(values).to(weight.device).view(weight.shape) - weight).to(weight.dtype)
        return indices, code

    def _on_levels(self, weight: Tensor) -> tuple[Indices, Code]:
        levels, places = torch.unique(weight.reshape(-1).float(), return_inverse=True)
        if len(levels) > _MOST_LEVELS:
            raise BadRecipe(f"coded_size: {self.name} has {len(levels)} different values; give it a step, or join it behind a method that rounds")
        self.levels = levels
        return (places - levels.abs().argmin()).cpu().numpy().astype(np.int32), CODES[1]

    def state(self) -> dict[str, Any]:
        assert self.forecast is not None
        forecast = {name: getattr(self.forecast, name) for name in Forecast.__slots__}
        return {"forecast": forecast, "error": self.error, "levels": self.levels, "unrounded": self.unrounded}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        def moved(x: Any) -> Any:
            return x.to(device) if isinstance(x, Tensor) else x

        self.forecast = Forecast(**{name: moved(x) for name, x in state["forecast"].items()})
        self.error, self.levels = moved(state["error"]), moved(state["levels"])
        if state["unrounded"] is not None:
            self.round(moved(state["unrounded"]))


def _ranks(x: Tensor, levels: Tensor) -> Tensor:
    """Places on a grid in which neighbouring levels are two steps apart and the one next to zero is 0; in between, and beyond, along straight lines."""
    if len(levels) == 1:
        return torch.zeros_like(x)
    above = torch.searchsorted(levels, x.detach()).clamp(1, len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    return 2 * (above - 1 - levels.abs().argmin() + (x - low) / (high - low))


@dataclass(frozen=True, slots=True)
class CodedSize(Method):
    """Adds `price` times the bits of the weights, as the context coder would code them on a grid of this `step`, and ends on that grid.

    Without a step it only adds to the loss, for the values that the methods before it leave: `lsq(3) | coded_size(1e-6)`. A larger price makes the file smaller
    at the same step; a larger step, too. every: optimizer steps from one forecast to the next, each some half a microsecond a weight on one processor core.
    round_at: a share of the training, after which the weights stand on their grid, so that norms and biases are trained, and measure, with what the file will
    have. memory: three numbers a weight.
    """

    price: float
    step: float = 0.0
    every: int = 20
    round_at: float = 0.75
    quantizer: Quantizer = DEFAULT

    def __post_init__(self) -> None:
        if not 0 <= self.price < math.inf or not 0 <= self.step < math.inf or self.every < 1:
            raise BadRecipe(f"coded_size: price = {self.price}, step = {self.step}, every = {self.every}; they are 0 or more, and every is 1 or more")
        if not 0 <= self.round_at <= 1:
            raise BadRecipe(f"coded_size: round_at = {self.round_at}; it is a share of the training, 0 to 1")

    def begin(self, model: nn.Module, data: Data | None = None) -> CodedSizes:
        return CodedSizes(model, self)


class CodedSizes(Training):
    """A model whose weights have a price."""

    def __init__(self, model: nn.Module, method: CodedSize) -> None:
        super().__init__(model)
        self._method, self._steps = method, 0
        self._weights: list[tuple[Weight, Priced]] = []
        for weight in usual_weights(model):
            self._weights.append((weight, Priced(weight.name, method.step, method.quantizer)))
            weight.parametrize(self._weights[-1][1])
        for _ in range(2 if method.step else 1):  # the second search knows what bits cost
            self._each(Priced.look)

    @property
    def n_bytes(self) -> float:
        """What the coder took for the weights at the last forecast."""
        return sum(priced.forecast.n_bits for _, priced in self._weights if priced.forecast is not None) / 8

    def penalty(self) -> Tensor:
        total = super().penalty()
        for _, priced in self._weights:
            weight = priced.taken()
            if weight is not None:
                total = total + priced.bits(weight)
        return self._method.price * total

    def after_step(self, done: float) -> None:
        self._steps += 1
        if self._rounded:
            return
        if self._method.step and done >= self._method.round_at:
            self._each(Priced.round)
        elif self._steps % self._method.every == 0:
            self._each(Priced.look)

    @property
    def _rounded(self) -> bool:
        return self._weights[0][1].held is not None

    @torch.no_grad()
    def _each(self, work: Callable[[Priced, Tensor], None]) -> None:
        def one(job: tuple[Priced, Tensor]) -> None:
            with torch.no_grad():  # which is a thread's own
                work(*job)

        for _ in ordered(one, [(priced, _given(weight, priced)) for weight, priced in self._weights], min(thread_count(None), len(self._weights))):
            pass

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps, "weights": {weight.name: priced.state() for weight, priced in self._weights}}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._steps = state["steps"]
        for weight, priced in self._weights:
            priced.restore(state["weights"][weight.name], weight.tensor.device)

    def harden(self) -> Planned | None:
        if not self._method.step:
            return None
        if not self._rounded:
            self._each(Priced.round)
        return Planned({weight.name: priced.plan for weight, priced in self._weights if priced.plan is not None})


def _given(weight: Weight, priced: Priced) -> Tensor:
    """What goes through a parametrization as it is without gradients: rounded, where a method before it rounds."""
    _ = weight.tensor
    given = priced.taken()
    assert given is not None
    return given
