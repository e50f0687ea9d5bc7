"""Adaptive Regularized Training: weights that would be pruned are driven to zero first (source: Glandorf, Kaiser & Rosenhahn, arXiv 2308.07163)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.masks import MaskedTraining, prune
from modelcodec.fit.training.method import Data, Method

_INFLECTION = 0.6585
"""Where the third derivative of tanh is zero: the largest weight to be pruned is put there."""


@dataclass(frozen=True, slots=True)
class HyperSparse(Method):
    """Up to `prune_at`, a share of the training, the loss gets the paper's L_HS, which pulls weights below the boundary of the `share` to be pruned to zero
    and hardly moves those above; its factor grows from `strength` by `growth` times. Then the smallest weights of the whole model are masked, and the rest
    trained on.

    The paper ends the first part where the pruned model is as accurate as the dense one, which only the training's owner can tell; here it is a share.
    """

    share: float
    strength: float = 1e-5
    growth: float = 1000.0
    prune_at: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or self.strength < 0 or self.growth < 1 or not 0 < self.prune_at <= 1:
            raise BadRecipe(f"{self}: share is between 0 and 1, prune_at a share of the training, strength 0 or more, growth 1 or more")

    def begin(self, model: nn.Module, data: Data | None = None) -> HyperSparseTraining:
        return HyperSparseTraining(self, model)


class HyperSparseTraining(MaskedTraining):
    def __init__(self, method: HyperSparse, model: nn.Module) -> None:
        super().__init__(model)
        self._method = method
        self._factor, self._pruned = method.strength, False

    def penalty(self) -> Tensor:
        if self._pruned:
            return super().penalty()
        return self._factor * hyper_sparse([weight.tensor for weight in self.weights], self._method.share)

    def after_step(self, done: float) -> None:
        method = self._method
        self._factor = method.strength * method.growth ** min(done / method.prune_at, 1.0)
        if done >= method.prune_at and not self._pruned:
            prune(self.weights, self.masks, method.share, whole_model=True)
            self._pruned = True

    def state(self) -> dict[str, Any]:
        return {"factor": self._factor, "pruned": self._pruned}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._factor, self._pruned = state["factor"], state["pruned"]


def hyper_sparse(tensors: list[Tensor], share: float) -> Tensor:
    """A term with the gradient of L_HS, sign(w) * s * tanh'(s |w|) * sum|w| / sum tanh(s |w|), s such that the boundary of `share` lies at the inflection."""
    with torch.no_grad():
        sizes = torch.cat([tensor.abs().reshape(-1) for tensor in tensors])
        boundary = sizes.kthvalue(min(int(share * sizes.numel()) + 1, sizes.numel())).values.clamp_min(1e-12)
        slopes = _INFLECTION / boundary
        total = sizes.sum() / torch.tanh(slopes * sizes).sum().clamp_min(1e-12)
        pulls = [slopes * (1 - torch.tanh(slopes * tensor.abs()).square()) * total for tensor in tensors]
    return torch.stack([(pull * tensor.abs()).sum() for pull, tensor in zip(pulls, tensors, strict=True)]).sum()
