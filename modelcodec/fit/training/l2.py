"""L2: what rounding loses and what the entropy coder then takes, learned together (Shi et al., "Lossy and Lossless (L2) Post-training Model Size Compression",
ICCV 2023, arXiv 2308.04269).

Each weight tensor has an `edge` and a `scale`: weights up to the edge become zero, beyond it they are rounded to steps of the scale. Both are learned with the
weights, through a count of bits that is differentiable: the entropy of the indices, whose frequencies are counted with a smooth kernel (a raised cosine) in the
place of steps, so that a weight near the border of an interval counts for both sides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.kmeans import plan_of
from modelcodec.fit.training.distillation import Distill
from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.weights import Planned, Weight, chosen_weights, straight_through, weights_of

_NARROWEST, _WIDEST = 0.25, 1.0
"""Half the width of the kernel, in intervals, is the range of the indices over _RESOLUTION (the paper's), inside these bounds: with few indices hardly
any weight would be near a border; wider ones would reach past the next interval."""
_RESOLUTION = 64
_ZERO = 0.6
"""The edge over the scale at the start: rounding to the nearest would be 0.5."""
_MET = 0.01
"""What is left of the price where the ratio is reached (the paper's)."""
_FINEST = 1 << 11
"""Steps up to the largest weight, before they are widened until the ratio is met."""
_MOST_COARSER = 16.0
"""The logarithm of the largest factor on steps: everything is zero long before."""
_HALVINGS = 16
_FORCED_FROM, _FORCED_TIMES = 0.5, 10
"""The share of the training from which on the ratio is met by force where it is not, so that what follows can adapt, and how often."""


def counted_bits(x: Tensor) -> Tensor:
    """Entropy, in bits, of all indices round(x) together; differentiable in x, in intervals."""
    x = x.reshape(-1)
    nearest = x.detach().round()
    if not bool(nearest.isfinite().all()):
        return x.sum()  # no number, and so the loss: the training tells it
    low, high = int(nearest.min()) - 1, int(nearest.max()) + 1
    half = min(max((high - low) / _RESOLUTION, _NARROWEST), _WIDEST)
    under, upto = _share_below((nearest - 0.5 - x) / half), _share_below((nearest + 0.5 - x) / half)
    counts = x.new_zeros(high - low + 1)
    for offset, share in ((-1, under), (0, upto - under), (1, 1 - upto)):
        counts = counts.index_add(0, nearest.long() + offset - low, share)
    counts = counts[counts > 0]  # a share just inside the kernel rounds to 0, and the logarithm's gradient at a count of 0 is no number
    bits: Tensor = -torch.special.xlogy(counts, counts / x.numel()).sum() / math.log(2)
    return bits


def _share_below(t: Tensor) -> Tensor:
    """The share below t of a kernel between -1 and 1, half a wave of a cosine."""
    return (1 + torch.sin(t.clamp(-1, 1) * (math.pi / 2))) / 2


class Transform(nn.Module):
    """A parametrization: a tensor's weights rounded to zero up to its edge, to steps of its scale beyond. Gradients go straight through the rounding."""

    held: Tensor | None = None

    def __init__(self, step: float) -> None:
        super().__init__()
        self.log_scale, self.log_edge = nn.Parameter(torch.tensor(math.log(step))), nn.Parameter(torch.tensor(math.log(_ZERO * step)))
        self._given: list[Tensor] = []  # in a list, where a module does not take it for a parameter of its own

    def forward(self, weight: Tensor) -> Tensor:
        if self.held is not None:
            return self.held
        self._given[:] = [weight]
        x = self.places(weight)
        index = straight_through(x, x.round())
        edge, scale = self.log_edge.exp(), self.log_scale.exp()
        value = torch.where(index == 0, 2 * edge * index, index.sign() * (edge + (index.abs() - 0.5) * scale))
        return (value + 0.0).to(weight.dtype)  # + 0.0: no negative zeros

    def places(self, weight: Tensor, coarser: float = 0.0) -> Tensor:
        """Weights in intervals, up to the edge between -1/2 and 1/2; `coarser`: the logarithm of a factor on edge and scale."""
        weight, edge, scale = weight.float(), (self.log_edge + coarser).exp(), (self.log_scale + coarser).exp()
        magnitude = weight.abs()
        return torch.where(magnitude <= edge, weight / (2 * edge), weight.sign() * (0.5 + (magnitude - edge) / scale))

    def taken(self) -> Tensor | None:
        """What went through since the last time."""
        return self._given.pop() if self._given else None


@dataclass(frozen=True, slots=True)
class L2(Method):
    """Weights so coarse that they take one `ratio`-th of their bytes, each tensor as coarse as the loss bears it.

    price: what a bit adds to the loss while there are too many, 100 times what it adds afterwards. distill: price of the divergence from the original's answers
    (modelcodec.fit.training.distillation), 0 for models whose answers are no logits. exact: patterns of names of weights to leave as they are.
    """

    ratio: float
    price: float = 1e-6
    distill: float = 1.0
    exact: str = ""

    def __post_init__(self) -> None:
        if not 1 < self.ratio < math.inf or not 0 <= self.price < math.inf or not 0 <= self.distill < math.inf:
            raise BadRecipe(f"l2: ratio = {self.ratio}, price = {self.price}, distill = {self.distill}; the ratio is above 1, the prices are 0 or more")

    def begin(self, model: nn.Module, data: Data | None = None) -> Transformed:
        return Transformed(model, self)


class Transformed(Training):
    """A model whose weights go through `transforms`. They start as one grid for all that meets the ratio."""

    def __init__(self, model: nn.Module, method: L2) -> None:
        super().__init__(model)
        self._method, self._forced = method, 0
        self._distillation = Distill(method.distill).begin(model) if method.distill else None
        self.transforms: list[tuple[Weight, Transform]] = []
        weights = chosen_weights(model, method.exact, embeddings=True)
        self._most_bits = sum(8 * weight.tensor.nbytes for weight in weights) / method.ratio
        finest = max(float(weight.tensor.detach().abs().max()) for weight in weights) / _FINEST
        if not 0 < finest < math.inf:
            raise BadRecipe("l2: the weights are nothing but zeros, or not finite")
        for weight in weights:
            transform = Transform(finest).to(weight.tensor.device)
            weight.parametrize(transform)
            self.transforms.append((weight, transform))
        self._coarsen()

    def penalty(self) -> Tensor:
        given = [(transform, transform.taken()) for _, transform in self.transforms]
        counted = [counted_bits(transform.places(weight)) for transform, weight in given if weight is not None]
        bits = torch.stack(counted).sum() if counted else super().penalty()
        price = torch.where(bits.detach() > self._most_bits, self._method.price, _MET * self._method.price)
        loss = price * bits
        return loss if self._distillation is None else loss + self._distillation.penalty()

    def after_step(self, done: float) -> None:
        times = int((done - _FORCED_FROM) / (1 - _FORCED_FROM) * _FORCED_TIMES)
        if self._forced < times < _FORCED_TIMES:
            self._coarsen()
            self._forced = times

    def state(self) -> dict[str, Any]:
        return {"forced": self._forced}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._forced = state["forced"]

    def harden(self) -> Planned:
        if self._distillation is not None:
            self._distillation.harden()
        self._coarsen()
        plans = {}
        with torch.no_grad():
            for weight, transform in self.transforms:
                transform.held = weight.tensor
                last = weights_of(weight.name, transform.held)
                plan = plan_of(last, last.words)
                if plan is not None:
                    plans[weight.name] = plan
        return Planned(plans)

    @torch.no_grad()
    def _coarsen(self) -> None:
        """Where the weights take too many bits, widen all edges and scales by one factor, the least with which they do not."""
        given = []
        for weight, transform in self.transforms:
            _ = weight.tensor
            given.append((transform, transform.taken()))
        low, high = 0.0, 0.0
        while high < _MOST_COARSER and _bits(given, high) > self._most_bits:
            low, high = high, 2 * high + 0.25
        for _ in range(_HALVINGS if high else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if _bits(given, middle) > self._most_bits else (low, middle)
        for transform, _ in given:
            transform.log_edge.add_(high)
            transform.log_scale.add_(high)


def _bits(given: Sequence[tuple[Transform, Tensor | None]], coarser: float) -> float:
    """Entropy of all indices as they are, each tensor with frequencies of its own."""
    total = 0.0
    for transform, weight in given:
        if weight is not None:
            counts = torch.unique(transform.places(weight, coarser).round(), return_counts=True)[1].double()
            total -= float(torch.special.xlogy(counts, counts / weight.numel()).sum()) / math.log(2)
    return total
