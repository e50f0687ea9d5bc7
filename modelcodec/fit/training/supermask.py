"""Supermasks: weights stay random signs of one magnitude, and what is trained is which of them are there, or also which are turned around.

sources: Zhou et al., "Deconstructing Lottery Tickets", arXiv 1905.01067; Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", arXiv
1911.13299, whose edge-popup this is; Koster, Grothe & Rettinger, "Signing the Supermask: Keep, Hide, Invert", ICLR 2022, arXiv 2201.13361.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from modelcodec.errors import BadRecipe
from modelcodec.fit.chain import Fitting
from modelcodec.fit.kmeans import plan_of
from modelcodec.fit.training import signs as generated
from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.pranc import made_of, magnitude_of, stream_of, untied
from modelcodec.fit.training.weights import Planned, Weight
from modelcodec.kernels.philox import Signs
from modelcodec.stage import Plan
from modelcodec.stages.rans import Rans
from modelcodec.stages.seedbasis import MOST_SPAN, Basis, SeedBasis


class _Kept(torch.autograd.Function):
    """The values where their scores' magnitudes reach a bound, with `signed` turned around where the score is negative; else 0.

    Backward as if each were its value times its score.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, values: Tensor, bound: Tensor, signed: bool) -> Tensor:
        ctx.save_for_backward(scores, values)
        ctx.signed = signed
        turned = torch.where(scores < 0, -values, values) if signed else values
        return torch.where(scores.abs() >= bound, turned, torch.zeros_like(values))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_words: Tensor) -> tuple[Tensor, None, None, None]:
        scores, values = ctx.saved_tensors
        of_scores = (of_words * values).float()
        return (of_scores if ctx.signed else of_scores * scores.sign()), None, None, None


class Supermasked(nn.Module):
    """A parametrization: a weight as a `kept` share of pseudo-random signs, times one magnitude, those with the largest scores. Scores are what is trained.

    The variance of the weights stays that of the weight to begin with.
    """

    def __init__(self, weight: Tensor, seed: int, kept: float, signed: bool) -> None:
        super().__init__()
        self.signs, self.kept, self.signed = Signs(seed, MOST_SPAN, 1), kept, signed
        self.register_buffer("values", torch.empty_like(weight, requires_grad=False), persistent=False)
        self.values: Tensor
        self.scale(magnitude_of(weight) * kept**-0.5)

    def scale(self, magnitude: float) -> None:
        """Let all weights that are there have this magnitude, rounded to float32."""
        self.magnitude = float(np.float32(magnitude))
        units = generated.sums(torch.ones(1, 1, dtype=torch.int32, device=self.values.device), self.signs, self.values.numel())
        self.values.copy_((units.double() * self.magnitude).float().reshape(self.values.shape))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor]:
        """Scores (f4) to begin with: random, and all of one sign."""
        return (torch.rand(weight.shape, device=weight.device),)

    def forward(self, scores: Tensor) -> Tensor:
        flat = scores.detach().abs().reshape(-1)
        bound = flat.kthvalue(flat.numel() - max(round(self.kept * flat.numel()), 1) + 1).values
        words: Tensor = _Kept.apply(scores, self.values, bound, self.signed)  # type: ignore[no-untyped-call]
        return words

    @property
    def basis(self) -> Basis:
        """The words before they are masked."""
        return Basis(self.signs.seed, self.signs.span, np.ones((1, 1), np.int32), self.magnitude)


@dataclass(frozen=True, slots=True)
class Supermask(Method):
    """A share `kept` of each weight's random signs, times one magnitude a tensor; with `signed`, signs are trained, too. Biases and norms are trained as ever.

    Unsigned masks are stored by the stage seedbasis: the signs are in the seed, so that a weight takes the entropy of its mask. With `signed` the weights are
    plain ternary ones in a codebook: where a third of the signs has been turned, which training on digits does, a seed would save 2 % of the bits. The signed
    paper finds its zeros by thresholds; here their share is given, as edge-popup has it.
    """

    kept: float = 0.5
    signed: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.kept <= 1:
            raise BadRecipe(f"supermask: kept = {self.kept}, above 0 and up to 1 are possible")

    def begin(self, model: nn.Module, data: Data | None = None) -> Training:
        weights = untied(model)
        for number, weight in enumerate(weights.values()):
            weight.parametrize(Supermasked(weight.tensor, stream_of(self.seed, number), self.kept, self.signed))
        return _SupermaskTraining(model, weights)


class _SupermaskTraining(Training):
    def __init__(self, model: nn.Module, weights: Mapping[str, Weight]) -> None:
        super().__init__(model)
        self._weights = weights

    def state(self) -> dict[str, Any]:
        return {"magnitudes": [made_of(weight)[0].magnitude for weight in self._weights.values()]}

    def restore(self, state: Mapping[str, Any]) -> None:
        for weight, magnitude in zip(self._weights.values(), state["magnitudes"], strict=True):
            made_of(weight)[0].scale(magnitude)

    def harden(self) -> Fitting:
        plans = {}
        for name, weight in self._weights.items():
            how, _ = made_of(weight)
            mask = Plan(SeedBasis(how.basis), {"mask": Plan(Rans())})
            words = weight.values(weight.tensor)
            plans[name] = (plan_of(words, words.words, 1) or mask) if how.signed else mask
        return Planned(plans)
