"""Learned step size: rounding to few bits whose step is trained with the weights (source: Esser et al., "Learned Step Size Quantization", arXiv 1902.08153)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.levels import STEPS, LevelTraining, OnLevels, at_rows, mean_magnitude
from modelcodec.fit.training.method import Data, Method
from modelcodec.fit.training.weights import chosen_weights, straight_through


@dataclass(frozen=True, slots=True)
class LearnedStep(Method):
    """Each weight is one of 2^`bits` levels around zero, times the step of its tensor, or with `rows` of its row; 2 to 8 bits.

    Steps are learned as powers of two, so that they stay positive and one learning rate suits them and the weights under Adam; under plain gradient descent
    they move as the paper's do. They go to the nearest eighth of an octave, which is what stage grid keeps. `exact`: patterns of names that stay out, as in
    `conv1* fc*`.
    """

    bits: int = 4
    rows: bool = False
    exact: str = ""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise BadRecipe(f"lsq: bits = {self.bits}, 2 to 8 are possible; for one bit there are binary and ternary")

    def begin(self, model: nn.Module, data: Data | None = None) -> LevelTraining:
        return LevelTraining(model, chosen_weights(model, self.exact, embeddings=True), partial(Stepped, bits=self.bits, rows=self.rows))


class _Rescaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


def first_octaves(weight: Tensor, bits: float, rows: bool) -> Tensor:
    """The logarithm to base 2 of the paper's first step, 2 <|w|> / sqrt(largest level)."""
    mean = mean_magnitude(weight, rows)
    return (2 * mean / math.sqrt(2 ** (bits - 1) - 1)).clamp_min(float(STEPS[0])).log2().reshape(-1 if rows else ())


class Stepped(OnLevels):
    """The parametrization: `octaves` is how far the step has moved from where it began, in octaves."""

    began: Tensor

    def __init__(self, weight: Tensor, bits: int, rows: bool) -> None:
        super().__init__()
        self.least, self.most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.register_buffer("began", first_octaves(weight, bits, rows))
        self.octaves = nn.Parameter(torch.zeros_like(self.began))

    def step(self, weight: Tensor) -> Tensor:
        octaves = (self.began + self.octaves).detach()
        per_step = weight.numel() / self.began.numel()
        # The paper scales a step's gradient by 1 / sqrt(weights * levels). That of the logarithm is ln 2 * step times the step's, and so is what it moves.
        factor = 1 / (math.sqrt(per_step * self.most) * (math.log(2) * octaves.exp2()).square())
        moved: Tensor = _Rescaled.apply(self.octaves, factor)  # type: ignore[no-untyped-call]
        return at_rows((self.began + moved).exp2(), weight)

    def numbers(self, weight: Tensor, step: Tensor) -> Tensor:
        inside = (weight / step).clamp(self.least, self.most)
        return straight_through(inside, inside.round())
