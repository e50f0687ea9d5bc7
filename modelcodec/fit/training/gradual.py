"""Pruning by magnitude while training, along a cubic schedule (source: Zhu & Gupta, "To prune, or not to prune", arXiv 1710.01878)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.masks import MaskedTraining, prune
from modelcodec.fit.training.method import Data, Method


@dataclass(frozen=True, slots=True)
class Gradual(Method):
    """Between `begin` and `end`, shares of the training, zeros grow in `updates` steps to `share` of the weights: many at first, few at last.

    Each tensor's, or with `whole_model` those of all together, which spares layers of large weights. `block`: so many neighbours of a row go together.
    """

    share: float
    whole_model: bool = False
    block: int = 1
    start: float = 0.0
    end: float = 0.6
    updates: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or not 0 <= self.start < self.end <= 1 or self.block < 1 or self.updates < 1:
            raise BadRecipe(f"{self}: share is 0 up to 1, start comes before end, both are shares of the training, block and updates are 1 or more")

    def begin(self, model: nn.Module, data: Data | None = None) -> GradualTraining:
        return GradualTraining(self, model)

    def share_at(self, update: int) -> float:
        return self.share * (1 - (1 - update / self.updates) ** 3)


class GradualTraining(MaskedTraining):
    def __init__(self, method: Gradual, model: nn.Module) -> None:
        super().__init__(model)
        self._method, self._update = method, 0

    def after_step(self, done: float) -> None:
        method = self._method
        update = int(min(max((done - method.start) / (method.end - method.start), 0.0), 1.0) * method.updates)
        if update > self._update:
            prune(self.weights, self.masks, method.share_at(update), method.whole_model, method.block)
            self._update = update

    def state(self) -> dict[str, Any]:
        return {"update": self._update}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._update = state["update"]
