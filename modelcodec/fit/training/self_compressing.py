"""Self-compressing networks: each row's bits and step are trained, and the size is part of the loss (source: Cséfalvay & Imber, "Self-Compressing Neural
Networks", arXiv 2301.13142)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.learned_step import first_octaves
from modelcodec.fit.training.levels import LevelTraining, OnLevels, at_rows
from modelcodec.fit.training.method import Data, Method
from modelcodec.fit.training.weights import Weight, chosen_weights, straight_through


@dataclass(frozen=True, slots=True)
class SelfCompressing(Method):
    """A bit a weight, in the mean over all weights under this method, costs `price` of the loss. Rows begin with so many `bits`, and those that come to 0 are
    zero from then on; the file takes next to nothing for them.

    `speed`: bits and octaves of steps move so many times as fast as weights do. `exact`: patterns of names that stay out, as in `conv1* fc*`. Unlike in the
    paper, weights that multiply a channel that is gone still count: which these are, only the network's graph could tell.
    """

    price: float = 0.5
    bits: float = 4.0
    speed: float = 10.0
    exact: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.price < math.inf or not 2 <= self.bits <= 12 or not 0 < self.speed < math.inf:
            raise BadRecipe(
                f"self_compressing: price = {self.price}, bits = {self.bits}, speed = {self.speed}; prices from 0, 2 to 12 bits and speeds above 0 are possible"
            )

    def begin(self, model: nn.Module, data: Data | None = None) -> SelfCompressingTraining:
        return SelfCompressingTraining(model, chosen_weights(model, self.exact, embeddings=True), self)


class Depths(OnLevels):
    """The parametrization: `octaves` and `depths` are how far step and bits of each row have moved from where they began, over `speed`."""

    began: Tensor

    def __init__(self, weight: Tensor, bits: float, speed: float) -> None:
        super().__init__()
        self.first_bits, self.speed, self.row_weights = bits, speed, weight[0].numel()
        self.register_buffer("began", first_octaves(weight, bits, rows=True))
        self.octaves, self.depths = nn.Parameter(torch.zeros_like(self.began)), nn.Parameter(torch.zeros_like(self.began))

    def bits(self) -> Tensor:
        """Of each row's weights."""
        return (self.first_bits + self.speed * self.depths).relu()

    def step(self, weight: Tensor) -> Tensor:
        return at_rows((self.began + self.speed * self.octaves).exp2(), weight)

    def numbers(self, weight: Tensor, step: Tensor) -> Tensor:
        half = at_rows((self.bits() - 1).exp2(), weight)
        inside = torch.minimum(torch.maximum(weight / step, -half), half - 1)
        return straight_through(inside, inside.round())


class SelfCompressingTraining(LevelTraining):
    def __init__(self, model: nn.Module, weights: Sequence[Weight], method: SelfCompressing) -> None:
        super().__init__(model, weights, partial(Depths, bits=method.bits, speed=method.speed))
        self._price = method.price

    def bits_per_weight(self) -> Tensor:
        """Bits of the rows' depths, without entropy coding."""
        depths = [parametrization for _, parametrization in self.levels if isinstance(parametrization, Depths)]
        bits = torch.stack([depth.row_weights * depth.bits().sum() for depth in depths]).sum()
        return bits / sum(depth.row_weights * depth.depths.numel() for depth in depths)

    def penalty(self) -> Tensor:
        return self._price * self.bits_per_weight()
