"""Channels whose feature maps the others can replace go (source: Sui et al., CHIP, arXiv 2110.13981)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelcodec.fit.training.budget import Floats
from modelcodec.fit.training.channels import Channels
from modelcodec.fit.training.filter_pruning import Batches, FilterPruning, map_scores

_AT_ONCE = 1 << 24
"""So many numbers of Gram matrices at a time."""


@dataclass(frozen=True, slots=True)
class Chip(FilterPruning):
    """A channel's score is its independence: by how much the nuclear norm of a sample's feature maps, channels x places, falls without the channel's row; the
    mean over the samples of so many `batches`.

    Maps without places, of linear layers, have the samples of a batch in their stead.
    """

    batches: int = 1

    def _n_batches(self) -> int:
        return self.batches

    def _scores(self, model: nn.Module, channels: Channels, batches: Batches) -> Floats:
        return map_scores(model, channels, batches, independence)


def independence(maps: Tensor, labels: Any = None) -> Tensor:
    """Samples x channels x places to a number a channel, the sum over the samples. memory: some 500 MB beside the maps."""
    if maps.shape[2] == 1:
        maps = maps.permute(2, 1, 0)
    n, places = maps.shape[1:]
    total = torch.zeros(n, dtype=torch.double, device=maps.device)
    for x in maps:
        sample = x.double()
        gram = sample @ sample.T if n <= places else sample.T @ sample
        whole = nuclear(gram)
        for part in torch.split(torch.arange(n, device=maps.device), max(1, _AT_ONCE // gram.numel())):
            if n <= places:
                mask = gram.new_ones(len(part), n).scatter_(1, part[:, None], 0)
                without = gram * mask[:, :, None] * mask[:, None, :]
            else:
                without = gram - sample[part, :, None] * sample[part, None, :]
            total[part] += whole - nuclear(without)
    return total


def nuclear(gram: Tensor) -> Tensor:
    """The sum of a matrix's singular values, from its Gram matrix in float64."""
    values: Tensor = torch.linalg.eigvalsh(gram).clamp(min=0)
    return values.sqrt().sum(-1)
