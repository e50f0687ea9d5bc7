"""What all methods share that remove filters first and train what is left: the network gets smaller tensors, the loop fine-tunes it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.chain import Fitting
from modelcodec.fit.training.budget import OF, Costs, Floats, evenly, remove
from modelcodec.fit.training.channels import Channels, Ints, Layer, Mask, evaluating, trace
from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.narrow import Size, narrow

Batches = Sequence[tuple[tuple[Tensor, ...], Any]]
"""Inputs, as the arguments of the model, and labels."""


class Narrowed(Training):
    """A model without the channels that were removed: what it cost before, what it costs now."""

    def __init__(self, model: nn.Module, before: Size, after: Size) -> None:
        super().__init__(model)
        self.before, self.after = before, after

    def harden(self) -> Fitting | None:
        """Nothing: the tensors are smaller, and coded as any others."""
        return None

    def remarks(self) -> tuple[str, ...]:
        return (self.before.shrunk_to(self.after),)


@dataclass(frozen=True, slots=True)
class FilterPruning(Method):
    """Channels of low score go, of each family an equal share, until the share `keep` of the `of` (flops or bytes) is left; `least` stay in each layer.

    `residual`: also channels that several layers add up to, which all of a residual network hangs on.
    """

    keep: float
    of: str = "flops"
    least: int = 1
    residual: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1 or self.of not in OF or self.least < 1 or self._n_batches() < 1:
            raise BadRecipe(f"{self}: keep is over 0 and up to 1, of flops or bytes; least and batches are 1 or more")

    def begin(self, model: nn.Module, data: Data | None = None) -> Narrowed:
        batches = first_batches(model, data, self._n_batches())
        example = tuple(x[:2] for x in batches[0][0])
        channels = trace(model, *example)
        before = Size.of(model, *example)
        with evaluating(model):
            kept = self._select(channels, self._scores(model, channels, batches), ~channels.summed | self.residual)
        narrow(model, channels, kept)
        return Narrowed(model, before, Size.of(model, *example))

    def _n_batches(self) -> int:
        """How many batches the scores are taken from."""
        return 1

    def _select(self, channels: Channels, scores: Floats, free: Mask) -> Mask:
        """Which units stay; only `free` ones may go."""
        order = evenly(scores, channels.families)
        return remove(Costs.of(channels, self.of), order[free[order]], self.keep, self.least)

    @abstractmethod
    def _scores(self, model: nn.Module, channels: Channels, batches: Batches) -> Floats:
        """One number a unit; those of one family are compared."""


def first_batches(model: nn.Module, data: Data | None, n: int) -> Batches:
    """The first batches, on the model's device. Raises BadRecipe where there are none."""
    device = next(model.parameters()).device
    found = []
    for inputs, labels in islice(() if data is None else data, n):
        given = inputs if isinstance(inputs, tuple | list) else (inputs,)
        if not all(isinstance(x, Tensor) for x in given):
            raise BadRecipe("the inputs of a batch are no tensors; give a tensor, or a tuple of those that the model takes, one sample a row")
        found.append((tuple(x.to(device) for x in given), labels.to(device) if isinstance(labels, Tensor) else labels))
    if not found:
        raise BadRecipe("there is no batch of data, but shapes and scores of channels are taken from some; give begin() the data")
    return found


def by_unit(pairs: Mapping[str, tuple[Ints, Floats]], n_units: int) -> Floats:
    """The mean of what layers say of a unit, each layer's scores being divided by their mean, since a unit may be part of several. Per layer: units, scores."""
    total, count = np.zeros(n_units), np.zeros(n_units)
    for units, scores in pairs.values():
        free = units >= 0
        scale = np.abs(scores).mean() or 1.0
        np.add.at(total, units[free], scores[free] / scale)
        np.add.at(count, units[free], 1)
    return np.divide(total, count, out=np.zeros(n_units), where=count > 0)


def watch_inputs(model: nn.Module, channels: Channels, watch: Callable[[str, Layer, Tensor], None]) -> list[Any]:
    """Call `watch` with what each layer that has free inputs is given, whenever the model runs. Returns the hooks, to be removed."""
    hooks = []
    for name, layer in channels.layers.items():
        if (layer.inputs >= 0).any():

            def seen(module: nn.Module, given: tuple[Tensor, ...], name: str = name, layer: Layer = layer) -> None:
                watch(name, layer, given[0])

            hooks.append(model.get_submodule(name).register_forward_pre_hook(seen))
    return hooks


def unit_of_channels(layer: Layer) -> Ints:
    """The unit of each channel that a layer is given."""
    return np.asarray(layer.inputs[np.unique(layer.channels, return_index=True)[1]])


def feature_maps(layer: Layer, module: nn.Module, given: Tensor) -> Tensor:
    """A layer's input as samples x channels x places; what a flattening put in a row is put together again."""
    flat = (given.movedim(-1, 1) if isinstance(module, nn.Linear) else given).flatten(2) if given.dim() > 2 else given[:, :, None]
    counts = np.bincount(layer.channels)
    if counts.max() == 1:
        return flat
    order = np.argsort(layer.channels, kind="stable")
    ranks = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    places = np.full((counts.size, counts.max()), layer.channels.size)  # a feature of zeros where a channel has fewer places
    places[layer.channels[order], ranks] = order
    padded = torch.cat((flat, flat.new_zeros(len(flat), 1, flat.shape[2])), 1)
    return padded[:, torch.from_numpy(places).to(given.device)].flatten(2)


def map_scores(model: nn.Module, channels: Channels, batches: Batches, score: Callable[[Tensor, Any], Tensor]) -> Floats:
    """`score(maps, labels)`, a number a channel, of what each layer is given: maps after normalization and activation."""
    sums: dict[str, Tensor] = {}
    labels: Any = None

    def watch(name: str, layer: Layer, given: Tensor) -> None:
        found = score(feature_maps(layer, model.get_submodule(name), given), labels).double().cpu()
        sums[name] = sums.get(name, torch.zeros(())) + found

    hooks = watch_inputs(model, channels, watch)
    try:
        with torch.no_grad():
            for inputs, labels in batches:  # noqa: B007 - read by watch
                model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return by_unit({name: (unit_of_channels(channels.layers[name]), total.numpy()) for name, total in sums.items()}, channels.n_units)
