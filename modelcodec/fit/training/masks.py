"""Weights that stay zero while a model is trained: a mask as a parametrization, which no optimizer, momentum or weight decay gets around."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modelcodec.fit.training.method import Training
from modelcodec.fit.training.weights import Weight, usual_weights


class Masked(nn.Module):
    """The parametrization: zero where `mask` is false. What is below keeps its last value, and gets no gradient there."""

    mask: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(like, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


class MaskedTraining(Training):
    """A model whose usual weights have masks, at first of ones."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.weights = usual_weights(model)
        self.masks = [Masked(weight.tensor) for weight in self.weights]
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.parametrize(mask)

    def zeros(self) -> float:
        """The share of the weights that are masked."""
        return 1 - sum(int(each.mask.sum()) for each in self.masks) / sum(each.mask.numel() for each in self.masks)

    def harden(self) -> None:
        """Zeros are found, and coded at their entropy, by the planner."""


def prune(weights: Sequence[Weight], masks: Sequence[Masked], share: float, whole_model: bool, block: int = 1) -> None:
    """Let the masks keep all but `share` of the weights of least magnitude, of each tensor or of all together; or of `block` neighbours in a row, by their
    mean square. What was masked counts as zero, so that it goes again first."""
    with torch.no_grad():
        scores = [_scores(weight.tensor, block) for weight in weights]
        if whole_model:
            keep = torch.split(_largest(torch.cat([score.reshape(-1) for score in scores]), share), [score.numel() for score in scores])
        else:
            keep = tuple(_largest(score.reshape(-1), share) for score in scores)
        for masked, score, kept in zip(masks, scores, keep, strict=True):
            spread = kept.reshape(score.shape).repeat_interleave(block, 1)[:, : masked.mask[0].numel()]
            masked.mask.copy_(spread.reshape(masked.mask.shape))


def _scores(tensor: Tensor, block: int) -> Tensor:
    """Squares, rows by blocks; a block at a row's end that is cut off has the mean of what is there."""
    rows = tensor.detach().float().square().reshape(len(tensor), -1)
    if block == 1:
        return rows
    n = rows.shape[1]
    filled = nn.functional.pad(rows, (0, -n % block)).reshape(len(rows), -1, block)
    counts = nn.functional.pad(torch.ones(n, device=rows.device), (0, -n % block)).reshape(-1, block)
    return filled.sum(2) / counts.sum(1)


def _largest(scores: Tensor, share: float) -> Tensor:
    keep = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    keep[scores.argsort(stable=True)[: int(share * scores.numel())]] = False
    return keep
