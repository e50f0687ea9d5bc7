"""BatchNorm statistics measured again, on the network whose weights were made lossy (source: Sun et al., "Hybrid 8-bit floating point (HFP8) training and
inference for deep neural networks", NeurIPS 2019).

What weights lost moves the means of a layer's outputs, and shrinks or widens them; the norm that follows takes that up, at no bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modelcodec.errors import BadRecipe
from modelcodec.fit.bias import moved
from modelcodec.fit.chain import Fit
from modelcodec.fitted import Fitted, FittedTensor, Weights

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BatchNorms(Fit):
    """Running means, and unless `variances` is off running variances, of all BatchNorms change by what lossy weights do to them on the `batches`: means by a
    difference, variances by a ratio, one norm after the other. What batches and training data differ in so cancels out.

    It goes behind a fit of the weights, `Ruled(usual=Bits(2)) | BatchNorms(model, batches, run)`, and has to see all tensors. `model` is the network as it was,
    with the tensors' names and set to evaluate; it stays so. `run` gives it one batch. What torch computes may differ in its last bits from machine to machine.
    Raises BadRecipe where no norm was run.
    """

    model: torch.nn.Module
    batches: Iterable[Any]
    run: Callable[[torch.nn.Module, Any], object]
    variances: bool = True

    def __call__(self, tensors: Mapping[str, Weights], data: object = None) -> Fitted:
        if self.model.training:
            raise BadRecipe("batchnorm: the model is in training mode; call model.eval() first")
        found = self._measured(_with_words(self.model, tensors))
        found = {name: values for name, values in found.items() if name in tensors and tensors[name].spec.shape == values.shape}
        if not found:
            raise BadRecipe("batchnorm: none of the tensors is a statistic of a norm that was run; give the fit all of this very model's, and a batch")
        return Fitted({name: moved(tensors[name], values) for name, values in found.items()})

    def fit(self, weights: Weights, data: object = None) -> FittedTensor | None:
        return self({weights.spec.name: weights}).tensors.get(weights.spec.name)

    def _measured(self, lossy: torch.nn.Module) -> dict[str, Floats]:
        """New statistics by tensor name. Each norm works with those of the batch meanwhile, so that norms behind it see what they will see. Changes `lossy`."""
        import torch

        norms, lossy_norms, totals = _norms(self.model), _norms(lossy), dict[str, _Change]()
        of_batch: dict[str, _Sums] = {}

        def watch(norm: torch.nn.Module, given: tuple[torch.Tensor, ...], name: str) -> None:
            of_batch[name] = _Sums.of(given[0])

        def follow(norm: torch.nn.Module, given: tuple[torch.Tensor, ...], name: str) -> None:
            change = _Change(of_batch[name], _Sums.of(given[0]))
            totals[name] = totals[name] + change if name in totals else change
            self._put(norms[name], norm, change)

        hooks = [norm.register_forward_pre_hook(partial(watch, name=name)) for name, norm in norms.items()]
        for name, norm in lossy_norms.items():
            norm.register_forward_pre_hook(partial(follow, name=name))
        try:
            with torch.no_grad():
                for batch in self.batches:
                    self.run(self.model, batch)
                    self.run(lossy, batch)
        finally:
            for hook in hooks:
                hook.remove()
        for name, total in totals.items():
            self._put(norms[name], lossy_norms[name], total)
        kinds = ("running_mean", "running_var")[: 1 + self.variances]
        return {_joined(name, kind): getattr(lossy_norms[name], kind).double().numpy() for name in totals for kind in kinds}

    def _put(self, norm: Any, lossy: Any, change: _Change) -> None:
        """Statistics of a norm with a change, into the lossy model's."""
        import torch

        lossy.running_mean.copy_(norm.running_mean + torch.from_numpy(change.of_mean))
        if self.variances:
            lossy.running_var.copy_(norm.running_var * torch.from_numpy(change.of_variance))


def _norms(model: torch.nn.Module) -> dict[str, Any]:
    from torch.nn.modules.batchnorm import _BatchNorm

    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm) and module.running_mean is not None}


def _with_words(model: torch.nn.Module, tensors: Mapping[str, Weights]) -> torch.nn.Module:
    """A copy of the model with these tensors in it."""
    import torch

    changed = copy.deepcopy(model)
    with torch.no_grad():
        for name, held in changed.state_dict().items():
            if name in tensors and tensors[name].spec.shape == tuple(held.shape):
                held.copy_(torch.from_numpy(tensors[name].values().copy()).reshape(held.shape))
    return changed


def _joined(module: str, tensor: str) -> str:
    return f"{module}.{tensor}" if module else tensor


@dataclass(frozen=True, slots=True)
class _Sums:
    """Of a channel's numbers and of their squares."""

    n: int
    first: Floats
    second: Floats

    @classmethod
    def of(cls, given: torch.Tensor) -> _Sums:
        """given: samples x channels x any other dimensions."""
        rows = given.detach().cpu().double().transpose(0, 1).flatten(1)
        return cls(rows.shape[1], rows.sum(1).numpy(), rows.square().sum(1).numpy())

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.n + other.n, self.first + other.first, self.second + other.second)

    @property
    def mean(self) -> Floats:
        return self.first / self.n

    @property
    def variance(self) -> Floats:
        variance: Floats = np.maximum(self.second / self.n - np.square(self.mean), 0.0)
        return variance


@dataclass(frozen=True, slots=True)
class _Change:
    """Of what a norm is given, from the network as it was to the lossy one."""

    before: _Sums
    after: _Sums

    def __add__(self, other: _Change) -> _Change:
        return _Change(self.before + other.before, self.after + other.after)

    @property
    def of_mean(self) -> Floats:
        return self.after.mean - self.before.mean

    @property
    def of_variance(self) -> Floats:
        """1 for channels that never change."""
        before, after = self.before.variance, self.after.variance
        return np.divide(after, before, out=np.ones_like(before), where=(before > 0) & (after > 0))
