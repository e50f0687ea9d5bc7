"""PRANC: a network as a seed and few coefficients of pseudo-random basis networks (Nooralinejad et al., "PRANC: Pseudo RAndom Networks for Compacting deep
models", ICCV 2023, arXiv 2206.08464).

The paper's basis vectors are whole networks, and each of the k coefficients moves all weights. Here a basis vector is zero outside of one span of one tensor:
as many coefficients, as random a subspace, but a weight is a sum of some tens of signs and not of k numbers, in training and in each decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from modelcodec.errors import BadRecipe
from modelcodec.fit.chain import Fitting
from modelcodec.fit.training import signs as generated
from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.weights import Planned, Weight, usual_weights
from modelcodec.kernels import philox
from modelcodec.kernels.philox import Signs
from modelcodec.stage import Plan
from modelcodec.stages.rans import Rans
from modelcodec.stages.seedbasis import LEAST_SPAN, MOST_COEFFICIENT, Basis, SeedBasis

STARTS = "random", "model"
MOST_BASIS = 512
"""Of a span: a full frame of 16-bit words has no more signs than a decoder allows."""
_FINEST = 2.0**-12
"""The least step of a coefficient, while those that are trained are still zero."""
_ROUNDS = 30

Floats = NDArray[np.float64]


class _Sum(torch.autograd.Function):
    """Words of rounded coefficients, as the decoder makes them; backward goes to the coefficients before rounding. Both directions make the basis anew."""

    @staticmethod
    def forward(ctx: Any, coefficients: Tensor, integers: Tensor, scale: float, how: Seeded) -> Tensor:
        ctx.how = how
        return (generated.sums(integers, how.signs, how.shape.numel()).double() * scale).float().to(how.dtype).reshape(how.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_words: Tensor) -> tuple[Tensor, None, None, None]:
        how: Seeded = ctx.how
        return generated.correlations(of_words.reshape(-1).float(), how.signs) * how.magnitude, None, None, None


class Seeded(nn.Module):
    """A parametrization: a weight as `magnitude` times the sum of its span's coefficients, each with a pseudo-random sign.

    The first coefficient is 1 at the start, the others are 0; anchored: it stays 1 and is not trained. Coefficients are rounded to steps of which the root mean
    square of the others has `levels`: what the layer computes with is what the decoder will give. Of the weight itself nothing but shape, dtype and magnitude
    is kept, with `projected` its least squares approximation, too.
    """

    def __init__(self, weight: Tensor, signs: Signs, *, levels: float = 2.0, anchored: bool = False, projected: bool = False) -> None:
        super().__init__()
        self.signs, self.levels, self.anchored, self.projected = signs, levels, anchored, projected
        self.shape, self.dtype = weight.shape, weight.dtype
        self.magnitude = magnitude_of(weight)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """The coefficients (f4: spans x k, or k - 1 where the first stays 1) to begin with."""
        n = self.shape.numel()
        found = np.zeros((self.signs.spans(0, n), self.signs.k))
        found[:, 0] = 1
        if self.projected:
            wanted = weight.detach().reshape(-1).double().cpu().numpy() / self.magnitude
            if self.anchored:
                found[:, 1:] = least_squares(wanted - philox.sums(found.astype(np.int32), self.signs, 0, n), self.signs)[:, 1:]
            else:
                found = least_squares(wanted, self.signs)
        return (torch.from_numpy(found[:, self.anchored :]).to(weight.device, torch.float32),)

    def forward(self, coefficients: Tensor) -> Tensor:
        coefficients = self._all(coefficients)
        integers, scale = self.rounded(coefficients.detach())
        words: Tensor = _Sum.apply(coefficients, integers, scale, self)  # type: ignore[no-untyped-call]
        return words

    def _all(self, coefficients: Tensor) -> Tensor:
        """The coefficients, the one that is not trained among them."""
        return torch.cat((torch.ones_like(coefficients[:, :1]), coefficients), 1) if self.anchored else coefficients

    def rounded(self, coefficients: Tensor) -> tuple[Tensor, float]:
        """Integers (i4), and the float32 number that they are multiplied with."""
        trained = coefficients[:, 1:].double()
        spread = float(trained.square().mean().sqrt()) if trained.numel() else 0.0
        step = max(spread / self.levels, _FINEST, float(coefficients.abs().max()) / MOST_COEFFICIENT)
        integers = (coefficients.double() / step).round().clamp(-MOST_COEFFICIENT, MOST_COEFFICIENT).int()
        return integers, float(np.float32(step * self.magnitude))

    def basis(self, coefficients: Tensor) -> Basis:
        """What the stage codes the words by."""
        integers, scale = self.rounded(self._all(coefficients).detach())
        return Basis(self.signs.seed, self.signs.span, integers.cpu().numpy(), scale)


def magnitude_of(weight: Tensor) -> float:
    """A weight's root mean square; of a weight of zeros, what torch's own layers begin with."""
    return float(weight.detach().double().square().mean().sqrt()) or (3 * weight[0].numel()) ** -0.5


def least_squares(values: Floats, signs: Signs) -> Floats:
    """The coefficients (spans x k) whose sums are nearest to the values: conjugate gradients on the normal equations, each span by itself."""
    found = np.zeros((signs.spans(0, values.size), signs.k))
    left = philox.correlations(values.astype(np.float32), signs, 0)
    towards, square = left.copy(), np.square(left).sum(1, keepdims=True)
    for _ in range(_ROUNDS):
        step = max(np.abs(towards).max() * signs.k, 1e-300) / 2**30  # so that sums of integers do for sums of numbers
        integers = np.rint(towards / step).astype(np.int32)
        towards, reached = integers * step, philox.sums(integers, signs, 0, values.size) * step
        curved = philox.correlations(reached.astype(np.float32), signs, 0)
        length = square / np.maximum((towards * curved).sum(1, keepdims=True), 1e-300)
        found += length * towards
        left -= length * curved
        before, square = square, np.square(left).sum(1, keepdims=True)
        towards = left + square / np.maximum(before, 1e-300) * towards
    return found


@dataclass(frozen=True, slots=True)
class PRANC(Method):
    """Weights out of `seed` and as many `coefficients`, shared out among the tensors by their size to the `power`, about `basis` of them to a span.

    start: "random", the network that the seed stands for, of the magnitudes that the model's weights have; "model", the nearest to the model's weights. Tied
    weights, biases and norms stay as they are, and are trained beside. levels: how finely coefficients are rounded, in steps to their root mean square: 2 take
    about 3 bits a coefficient, 4 about 4. Coefficients begin at 0 and 1: Adam takes rates around 0.03.
    """

    coefficients: int = 10_000
    seed: int = 0
    start: str = "random"
    levels: float = 2.0
    basis: int = 64
    power: float = 0.5

    def __post_init__(self) -> None:
        check("pranc", self.coefficients, self.basis, self.levels, self.start)

    def begin(self, model: nn.Module, data: Data | None = None) -> Training:
        return seeded(model, self.coefficients, self.seed, self.start == "model", self.levels, self.basis, self.power, anchored=False)


def check(name: str, coefficients: int, basis: int, levels: float, start: str) -> None:
    """Raise BadRecipe for options that are not possible."""
    if coefficients < 1 or not 1 <= basis <= MOST_BASIS:
        raise BadRecipe(f"{name}: {coefficients} coefficients, {basis} a span; at least one, and up to {MOST_BASIS} a span, are possible")
    if not levels > 0 or start not in STARTS:
        raise BadRecipe(f"{name}: levels = {levels}, start = {start!r}; levels are above 0, a start is {' or '.join(STARTS)}")


def seeded(
    model: nn.Module, coefficients: int, seed: int, projected: bool, levels: float, basis: int, power: float, *, anchored: bool
) -> SeededTraining:
    """Put `Seeded` on a model's usual weights."""
    weights = untied(model)
    sizes = np.array([weight.tensor.numel() for weight in weights.values()])
    shares = coefficients * sizes**power / (sizes**power).sum()
    for number, (weight, size, share) in enumerate(zip(weights.values(), sizes.tolist(), shares.tolist(), strict=True)):
        signs = spread(size, share, basis, stream_of(seed, number), least=1 + anchored)
        weight.parametrize(Seeded(weight.tensor, signs, levels=levels, anchored=anchored, projected=projected))
    return SeededTraining(model, weights)


def untied(model: nn.Module) -> dict[str, Weight]:
    """The usual weights that are of one layer alone. Raises BadRecipe for one that is parametrized already."""
    weights = {weight.name: weight for weight in usual_weights(model) if len(weight.layers) == 1}
    for name, weight in weights.items():
        if parametrize.is_parametrized(weight.layers[0], "weight"):
            raise BadRecipe(f"{name} is parametrized already; a seed makes a weight from nothing, so let its method be the first")
    return weights


def stream_of(seed: int, number: int) -> int:
    """The seed of a network's tensor of this number: so each has signs of its own."""
    return (seed + (number << 32)) % (1 << 64)


def spread(n: int, coefficients: float, basis: int, seed: int, least: int = 1) -> Signs:
    """Spans of a tensor of n words that have so many coefficients together, about `basis` each."""
    coefficients = min(coefficients, n)
    spans = max(1, min(round(coefficients / basis), n // LEAST_SPAN))
    return Signs(seed, max(LEAST_SPAN, -(-n // spans)), min(max(least, round(coefficients / spans)), MOST_BASIS))


class SeededTraining(Training):
    """A model whose weights come out of seeds."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Weight]) -> None:
        super().__init__(model)
        self._weights = weights

    def state(self) -> dict[str, Any]:
        return {"magnitudes": [how.magnitude for how, _ in map(made_of, self._weights.values())]}

    def restore(self, state: Mapping[str, Any]) -> None:
        for weight, magnitude in zip(self._weights.values(), state["magnitudes"], strict=True):
            made_of(weight)[0].magnitude = magnitude

    def harden(self) -> Fitting:
        plans = {}
        for name, weight in self._weights.items():
            how, coefficients = made_of(weight)
            plans[name] = Plan(SeedBasis(how.basis(coefficients)), {"coefficients": Plan(Rans())})
        return Planned(plans)


def made_of(weight: Weight) -> tuple[Any, Tensor]:
    """The parametrization that makes a weight, and what it makes it of."""
    made: Any = weight.layers[0].parametrizations["weight"]  # type: ignore[index]
    return made[0], made.original0
