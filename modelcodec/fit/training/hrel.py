"""Channels whose feature maps tell little about the labels go (source: Sarvani et al., HRel, arXiv 2202.10716)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.budget import Floats
from modelcodec.fit.training.channels import Channels
from modelcodec.fit.training.filter_pruning import Batches, FilterPruning, map_scores

_AT_ONCE = 1 << 23
"""So many numbers of maps, or of kernel matrices, at a time."""


@dataclass(frozen=True, slots=True)
class HRel(FilterPruning):
    """A channel's score is its relevance: the mutual information of its feature map and the labels over the samples of a batch; the mean of so many `batches`.

    It is estimated from matrices of kernels between samples, as Renyi's entropy of an `order` near 1 (Giraldo, Rao & Principe, arXiv 1211.2459).
    Labels are classes, one a sample.
    """

    batches: int = 1
    order: float = 1.01

    def __post_init__(self) -> None:
        FilterPruning.__post_init__(self)
        if not self.order > 0 or self.order == 1:
            raise BadRecipe(f"{self}: the order is over 0, and not 1")

    def _n_batches(self) -> int:
        return self.batches

    def _scores(self, model: nn.Module, channels: Channels, batches: Batches) -> Floats:
        for inputs, labels in batches:
            if not isinstance(labels, Tensor) or labels.shape != inputs[0].shape[:1]:
                raise BadRecipe("hrel: the labels of a batch are not one class a sample; give such ones")
        return map_scores(model, channels, batches, partial(relevance, order=self.order))


def relevance(maps: Tensor, labels: Any, order: float = 1.01) -> Tensor:
    """Samples x channels x places, and a class a sample, to bits of mutual information a channel. memory: some 300 MB beside the maps.

    I(A; B) = S(A) + S(B) - S(A o B / tr(A o B)), S(A) = log2(tr(A^order)) / (1 - order), for kernel matrices A, B of trace 1. The kernel of maps is Gaussian,
    as wide as the mean squared distance, so that a map's scale does not matter; that of labels is 1 where they are the same.
    """
    x, n = maps.transpose(0, 1), len(maps)
    same = (labels[:, None] == labels[None, :]).double() / n
    found = []
    for part in torch.split(x, max(1, _AT_ONCE // (n * max(n, x.shape[2])))):
        points = part.double()
        squares = torch.cdist(points, points).square()
        kernels = torch.exp(-squares / squares.mean((1, 2), keepdim=True).clamp(min=1e-30)) / n
        found.append(_entropy(kernels, order) + _entropy(same, order) - _entropy(kernels * same * n, order))
    return torch.cat(found)


def _entropy(kernels: Tensor, order: float) -> Tensor:
    values: Tensor = torch.linalg.eigvalsh(kernels).clamp(min=0)
    return values.pow(order).sum(-1).log2() / (1 - order)
