"""Ternary weights: plus, minus or nothing (sources: Ma et al., "The Era of 1-bit LLMs", arXiv 2402.17764, BitNet b1.58; Li et al., "Ternary Weight Networks",
arXiv 1605.04711)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.levels import LevelTraining, OnLevels, mean_magnitude
from modelcodec.fit.training.method import Data, Method
from modelcodec.fit.training.weights import chosen_weights, straight_through

KINDS = ("absmean", "twn")
_THRESHOLD = 0.7
"""Of the mean magnitude: close to the best one for normal and for uniform weights."""


@dataclass(frozen=True, slots=True)
class Ternary(Method):
    """Each weight is 0 or plus or minus one magnitude of its tensor, or with `rows` of its row.

    `absmean`: the mean magnitude, and 0 below half of it (BitNet b1.58; only its weights, activations stay as they are). `twn`: 0 below 0.7 of the mean
    magnitude, and the mean of those above. `exact`: patterns of names that stay out, as in `conv1* fc*`.
    """

    kind: str = "absmean"
    rows: bool = False
    exact: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadRecipe(f"ternary: there is no kind {self.kind!r}; the kinds are {', '.join(KINDS)}")

    def begin(self, model: nn.Module, data: Data | None = None) -> LevelTraining:
        return LevelTraining(model, chosen_weights(model, self.exact, embeddings=False), partial(Trits, kind=self.kind, rows=self.rows))


class Trits(OnLevels):
    """The parametrization. Gradients go to the weights as if these were not rounded, and none through the magnitude."""

    def __init__(self, weight: Tensor, kind: str, rows: bool) -> None:
        super().__init__()
        self.kind, self.rows = kind, rows

    def step(self, weight: Tensor) -> Tensor:
        mean = mean_magnitude(weight.detach(), self.rows)
        if self.kind == "absmean":
            return mean
        magnitude = weight.detach().abs()
        above = magnitude > _THRESHOLD * mean
        axes = tuple(range(1 if self.rows else 0, weight.dim()))
        return (magnitude * above).sum(axes, keepdim=self.rows) / above.sum(axes, keepdim=self.rows).clamp_min(1)

    def numbers(self, weight: Tensor, step: Tensor) -> Tensor:
        mean = mean_magnitude(weight.detach(), self.rows)
        threshold = mean / 2 if self.kind == "absmean" else _THRESHOLD * mean
        return straight_through(weight / step.detach(), weight.sign() * (weight.abs() > threshold))
