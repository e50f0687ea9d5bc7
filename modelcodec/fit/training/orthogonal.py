"""Dynamical isometry after pruning: rows that are orthogonal let gradients through unchanged (source: Wang, Qin, Bai & Fu, arXiv 2105.05916)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.weights import Weight, usual_weights

_ROUNDS = 20
"""Of making orthogonal and masking, by turns."""


@dataclass(frozen=True, slots=True)
class Orthogonal(Method):
    """`recover`: first puts in place of each weight the nearest matrix of orthogonal rows (or columns, where there are fewer), of the same norm and zeros in
    the same places. Adds `strength` times the squared cosines between rows to the loss. For a pruned model: `filter_norm(0.5) | orthogonal(1e-3)`.

    The paper's OrthP takes Q of a QR decomposition instead of the nearest matrix, which forgets more of what was learned. It pays for long trainings at a
    rate that would otherwise be too low, not for short ones, which need what the recovery forgets.
    """

    strength: float = 1e-4
    recover: bool = False

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise BadRecipe(f"orthogonal: strength = {self.strength}, it is 0 or more")

    def begin(self, model: nn.Module, data: Data | None = None) -> OrthogonalTraining:
        weights = usual_weights(model)
        if self.recover:
            with torch.no_grad():
                for weight in weights:
                    _stored(weight).copy_(isometric(weight.tensor))
        return OrthogonalTraining(self.strength, model, weights)


class OrthogonalTraining(Training):
    def __init__(self, strength: float, model: nn.Module, weights: list[Weight]) -> None:
        super().__init__(model)
        self._strength, self._weights = strength, weights

    def penalty(self) -> Tensor:
        return self._strength * torch.stack([squared_cosines(weight.tensor) for weight in self._weights]).sum()

    def harden(self) -> None:
        """What zeros there are come from the method that pruned."""


def _stored(weight: Weight) -> Tensor:
    """What an optimizer moves: below a mask, the weight as it was."""
    layer = weight.layers[0]
    stored: Tensor = layer.parametrizations["weight"].original if parametrize.is_parametrized(layer, "weight") else layer.weight  # type: ignore[index, assignment, union-attr]
    return stored


def squared_cosines(weight: Tensor) -> Tensor:
    """The sum over pairs of rows, or of columns where there are fewer, of their squared cosine."""
    rows = _wide(weight)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-8)
    products = rows @ rows.T
    both: Tensor = products.square().sum() - products.diagonal().square().sum()
    return both / 2


def isometric(weight: Tensor) -> Tensor:
    """The nearest matrix with orthogonal rows, of the same norm and zeros in the same places, as near as turns of the two demands come."""
    given = _wide(weight.detach().float())
    zero, norm = given == 0, given.norm()
    found = given
    for _ in range(_ROUNDS if bool(zero.any()) else 1):
        u, _, v = torch.linalg.svd(found, full_matrices=False)
        found = torch.where(zero, 0.0, u @ v)
    found = found * (norm / found.norm().clamp_min(1e-12))
    turned = found if len(weight) <= weight[0].numel() else found.T
    matrix: Tensor = turned.reshape(weight.shape).to(weight.dtype)
    return matrix


def _wide(weight: Tensor) -> Tensor:
    """A weight as a matrix of at most as many rows as columns."""
    rows = weight.reshape(len(weight), -1)
    return rows if len(rows) <= rows.shape[1] else rows.T
