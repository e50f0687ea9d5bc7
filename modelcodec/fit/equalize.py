"""Cross-layer range equalization: rows of one layer and columns of the next are scaled against each other, so that one step suits all (source: Nagel et al.,
"Data-free quantization", DFQ, arXiv 1906.04721).

It pays before a fit that gives a tensor one step out of its largest weight. Where a network's function does not change, its file does: weights differ from the
source's by their factors, and so do the losses that are told of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelcodec.errors import BadRecipe
from modelcodec.fit.bias import moved
from modelcodec.fit.chain import Fit
from modelcodec.fitted import DTYPES, Fitted, FittedTensor, Weights

_ROUNDS = 20
_SETTLED = 0.01
"""Pairs are gone through again while a factor changes by more than that share."""
_MOST_FACTOR = 2.0**12
"""A channel's factors stay within that, either way."""
_LARGEST = {"F32": 2.0**127, "BF16": 2.0**127, "F16": 2.0**15}
"""What may become larger than that is not scaled."""

Floats = NDArray[np.float64]
Arrays = dict[str, Floats]


@dataclass(frozen=True, slots=True)
class Norm:
    """A BatchNorm in use: its name, and what it adds to variances."""

    name: str
    epsilon: float

    @property
    def tensors(self) -> tuple[str, str, str, str]:
        """Weight, bias, running mean, running variance."""
        weight, bias, mean, variance = (f"{self.name}.{kind}" for kind in ("weight", "bias", "running_mean", "running_var"))
        return weight, bias, mean, variance


@dataclass(frozen=True, slots=True)
class Pair:
    """Weight tensors of which `second` takes what `first` gives, through its `bias` and its `norm` and nothing else but maps that keep a channel's factor, such
    as ReLU. `groups` of the second's channels. Without a second one only the norm's factors go into the weights. `fit.tracing.pairs` finds them."""

    first: str
    second: str | None = None
    bias: str | None = None
    norm: Norm | None = None
    groups: int = 1

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(name for name in (self.first, self.second, self.bias, *(self.norm.tensors if self.norm else ())) if name is not None)


@dataclass(frozen=True, slots=True)
class Equalize(Fit):
    """Channels of each pair get the same range on both sides; the norm's factors go into the rows before it, as where it is folded into them.

    All tensors of a pair have to be among those that are fitted: give it before rules, `Equalize(pairs(model)) | Ruled(usual=Bits(4))`. Raises BadRecipe for
    pairs of another model.
    """

    pairs: Sequence[Pair]

    def __call__(self, tensors: Mapping[str, Weights], data: object = None) -> Fitted:
        for pair in self.pairs:
            _check(pair, tensors)
        names = dict.fromkeys(name for pair in self.pairs for name in pair.tensors)
        arrays = {name: tensors[name].values().astype(np.float64).reshape(tensors[name].spec.shape) for name in names}
        limits = {name: _LARGEST[tensors[name].spec.dtype.name] for name in names}
        usable = [pair for pair in self.pairs if _is_finite(pair, arrays)]
        for pair in usable:
            if pair.norm is not None:
                _absorb(pair, pair.norm, arrays, limits)
        factors = {pair: np.ones(len(arrays[pair.first])) for pair in usable if pair.second is not None}
        for _ in range(_ROUNDS):
            before = dict(factors)
            for pair in factors:
                factors[pair] = _balanced(pair, factors[pair], arrays, limits)
            if all(np.allclose(factors[pair], before[pair], rtol=_SETTLED) for pair in factors):
                break
        return Fitted({name: moved(tensors[name], array) for name, array in arrays.items()})

    def fit(self, weights: Weights, data: object = None) -> FittedTensor | None:
        return self({weights.spec.name: weights}).tensors.get(weights.spec.name)


def _check(pair: Pair, tensors: Mapping[str, Weights]) -> None:
    absent = [name for name in pair.tensors if name not in tensors or tensors[name].spec.dtype.name not in DTYPES]
    if absent:
        raise BadRecipe(f"equalize: {absent[0]} is not among the tensors; give the fit all of this very model's")
    shape = tensors[pair.first].spec.shape
    rows = shape[0] if len(shape) > 1 else 0
    vectors = (pair.bias, *(pair.norm.tensors if pair.norm else ()))
    if not rows or any(tensors[name].spec.shape != (rows,) for name in vectors if name is not None):
        raise BadRecipe(f"equalize: {pair.first} is no matrix or kernel, or what follows it has not one number for each of its rows")
    if pair.second is not None:
        second = tensors[pair.second].spec
        channels = rows // pair.groups if pair.groups > 0 and rows % pair.groups == 0 else 0
        matches = channels and second.n_words and len(second.shape) > 1 and second.shape[0] % pair.groups == 0 and second.row_words % channels == 0
        if not matches or pair.second == pair.first:
            raise BadRecipe(f"equalize: {pair.second} does not take the {rows} channels of {pair.first} in {pair.groups} groups")


def _is_finite(pair: Pair, arrays: Arrays) -> bool:
    """Whether all vectors between the two layers can be scaled."""
    between = [arrays[name] for name in pair.tensors if name not in (pair.first, pair.second)]
    variance = pair.norm is None or bool((arrays[pair.norm.tensors[3]] + pair.norm.epsilon > 0).all())
    return variance and all(bool(np.isfinite(array).all()) for array in between)


def _absorb(pair: Pair, norm: Norm, arrays: Arrays, limits: Mapping[str, float]) -> None:
    """The norm's factors become 1, those of the rows what it made of them. A norm that gives a constant stays."""
    weight, _, mean, variance = norm.tensors
    spread = np.sqrt(arrays[variance] + norm.epsilon)
    factor = np.abs(arrays[weight]) / spread
    usable = (factor > 1 / _MOST_FACTOR) & (factor < _MOST_FACTOR)
    factor = np.where(usable, factor, 1.0)
    _replace(arrays, limits, {**_scaled(arrays, (pair.first, pair.bias, mean), factor), weight: arrays[weight] / factor})


def _balanced(pair: Pair, before: Floats, arrays: Arrays, limits: Mapping[str, float]) -> Floats:
    """Scale a pair's channels, which have these factors, to equal ranges; returns their factors from then on."""
    assert pair.second is not None
    first, second = arrays[pair.first], arrays[pair.second]
    channels = second.reshape(pair.groups, second.shape[0] // pair.groups, len(first) // pair.groups, -1)
    gives, takes = _ranges(first.reshape(len(first), -1), (1,)), _ranges(channels, (1, 3)).reshape(-1)
    usable = (gives > 0) & (takes > 0)
    factor = np.sqrt(np.divide(takes, gives, where=usable, out=np.ones_like(gives)))
    after = np.clip(before * factor, 1 / _MOST_FACTOR, _MOST_FACTOR)
    factor = after / before
    names = (pair.first, pair.bias, *((pair.norm.tensors[1], pair.norm.tensors[2]) if pair.norm else ()))
    made = _scaled(arrays, names, factor)
    made[pair.second] = (channels / factor.reshape(pair.groups, 1, -1, 1)).reshape(second.shape)
    return after if _replace(arrays, limits, made) else before


def _ranges(values: Floats, axes: tuple[int, ...]) -> Floats:
    """The largest magnitudes along some axes."""
    ranges: Floats = np.where(np.isfinite(values), np.abs(values), 0.0).max(axis=axes)
    return ranges


def _scaled(arrays: Arrays, names: Sequence[str | None], factor: Floats) -> Arrays:
    """Tensors with each row (a number of a vector) times its factor."""
    return {name: arrays[name] * factor.reshape(-1, *(1,) * (arrays[name].ndim - 1)) for name in names if name is not None}


def _replace(arrays: Arrays, limits: Mapping[str, float], made: Arrays) -> bool:
    """Take the arrays, unless one would hold what its dtype does not."""
    for name, array in made.items():
        before, after = (float(_ranges(found.reshape(-1), (0,))) for found in (arrays[name], array))
        if after > max(limits[name], before):
            return False
    arrays.update(made)
    return True

