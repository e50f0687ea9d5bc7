"""MPDCompress: linear layers that are block-diagonal once rows and columns are permuted (source: Supic et al., arXiv 1805.12085)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.masks import MaskedTraining
from modelcodec.fit.training.method import Data, Method


@dataclass(frozen=True, slots=True)
class BlockDiagonal(Method):
    """Each linear layer keeps one in `blocks` of its weights: those whose row and column drew the same block, from a `seed`. The permutations are in the file
    as the mask, which repeats from row to row and so takes few bits. Layers of fewer rows or columns than blocks stay whole."""

    blocks: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.blocks < 2:
            raise BadRecipe(f"mpd: blocks = {self.blocks}, 2 or more are possible")

    def begin(self, model: nn.Module, data: Data | None = None) -> MaskedTraining:
        training = MaskedTraining(model)
        generator = torch.Generator().manual_seed(self.seed)
        for weight, masked in zip(training.weights, training.masks, strict=True):
            if isinstance(weight.layers[0], nn.Linear) and min(masked.mask.shape) >= self.blocks:
                rows, columns = (self._drawn(n, generator).to(masked.mask.device) for n in masked.mask.shape)
                masked.mask.copy_(rows[:, None] == columns[None, :])
        return training

    def _drawn(self, n: int, generator: torch.Generator) -> Tensor:
        """The block of each of n rows or columns, blocks as alike in size as can be."""
        return torch.randperm(n, generator=generator) * self.blocks // n
