"""Binary weights: a sign each, and a magnitude a row (source: Rastegari et al., "XNOR-Net", arXiv 1603.05279, its binary-weight networks)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from modelcodec.fit.training.levels import LevelTraining, OnLevels, mean_magnitude
from modelcodec.fit.training.method import Data, Method
from modelcodec.fit.training.weights import chosen_weights, straight_through


@dataclass(frozen=True, slots=True)
class Binary(Method):
    """Each weight is plus or minus the mean magnitude of its row, or without `rows` of its tensor. Gradients reach weights between -1 and 1.

    The paper keeps the first and the last layer as they are: name them in `exact`, as in `conv1* fc2*`.
    """

    rows: bool = True
    exact: str = ""

    def begin(self, model: nn.Module, data: Data | None = None) -> LevelTraining:
        return LevelTraining(model, chosen_weights(model, self.exact, embeddings=False), partial(Signs, rows=self.rows))


class Signs(OnLevels):
    """The parametrization. Gradients go through the magnitude, too."""

    def __init__(self, weight: Tensor, rows: bool) -> None:
        super().__init__()
        self.rows = rows

    def step(self, weight: Tensor) -> Tensor:
        return mean_magnitude(weight, self.rows)

    def numbers(self, weight: Tensor, step: Tensor) -> Tensor:
        return straight_through(weight.clamp(-1, 1), torch.where(weight < 0, -1.0, 1.0))
