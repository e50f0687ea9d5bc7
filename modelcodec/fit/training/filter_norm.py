"""Filters of small weights go (source: Li et al., arXiv 1608.08710)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from modelcodec.fit.training.budget import Floats
from modelcodec.fit.training.channels import Channels
from modelcodec.fit.training.filter_pruning import Batches, FilterPruning, by_unit
from modelcodec.fit.training.narrow import filter_rows


@dataclass(frozen=True, slots=True)
class FilterNorm(FilterPruning):
    """A channel's score is the sum of its filter's magnitudes; of several filters that go together, the mean. data: one batch, for its shape."""

    def _scores(self, model: nn.Module, channels: Channels, batches: Batches) -> Floats:
        norms = {name: filter_rows(model.get_submodule(name)).detach().abs().sum(1).double().cpu().numpy() for name in channels.layers}
        return by_unit({name: (layer.outputs, norms[name]) for name, layer in channels.layers.items()}, channels.n_units)
