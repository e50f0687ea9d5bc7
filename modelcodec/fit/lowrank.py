"""Low rank: a matrix as the product of two thin ones, of integers (sources: Eckart & Young 1936; ranks by a threshold common to all layers, as in Liebenwein et
al., arXiv 2107.11442; whitening by the input's second moments as in Wang et al., "SVD-LLM", arXiv 2403.07378)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit, holds_weights
from modelcodec.fit.kmeans import Kept
from modelcodec.fitted import Fitted, FittedTensor, Weights, values_of
from modelcodec.formats.container_layout import MOST_GROUP_FRAMES, full_frame_words
from modelcodec.kernels.casts import rounded
from modelcodec.limits import LIMITS
from modelcodec.stage import Plan
from modelcodec.stages.lowrank import MOST_FACTOR, MOST_RANK, MOST_SHIFT, Factors, Lowrank
from modelcodec.stages.rans import Rans
from modelcodec.types import Array

_DAMPING = 0.01
"""Of the mean second moment, added to all: directions that the samples missed count, too."""
_WORTH = 0.1155
"""Squared steps of error that a bit is worth at a high rate: 2 ln 2 / 12."""
_SHARED_SLACK = 4096
_FINEST, _BISECTIONS = -40, 14

Floats = NDArray[np.float64]
_PLAN = {"left": Plan(Rans()), "right": Plan(Rans()), "mask": Plan(Rans())}


@dataclass(frozen=True, slots=True)
class LowRank(Fit):
    """The fewest bits, by estimate, whose squared error over all tensors together is at most `error` of their squares: one step for the factors of all tensors
    decides their ranks, too.

    data: with input moments a tensor's error is that of its layer's output, relative to the output, and each layer counts alike. Groups of frames (8 MiB) of a
    large tensor have factors of their own. The bound holds for the words that come out; a tensor for which no step does that stays as it is.
    """

    error: float

    def __post_init__(self) -> None:
        if not 0 <= self.error < 1:
            raise BadRecipe(f"lowrank: error = {self.error}, from 0 to less than 1 is possible")

    def __call__(self, tensors: Mapping[str, Weights], data: Calibration | None = None) -> Fitted:
        layers = {name: _Layer.of(weights, data) for name, weights in tensors.items() if holds_weights(weights.spec)}
        energy = sum(layer.energy for layer in layers.values())
        low, high = float(_FINEST), 8.0  # log2 of the step, in root mean squares of all weights
        unit = (energy / max(sum(layer.values.size for layer in layers.values()), 1)) ** 0.5
        best: dict[str, _Coded] = {}
        for _ in range(_BISECTIONS if unit and self.error else 0):
            middle = (low + high) / 2
            coded = {name: layer.coded(unit * 2.0**middle) for name, layer in layers.items()}
            if sum(found.error for found in coded.values()) <= self.error * energy:
                low, best = middle, coded
            else:
                high = middle
        return Fitted({name: found.fitted(tensors[name]) for name, found in best.items() if found.blocks})

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        return self({weights.spec.name: weights}, data).tensors.get(weights.spec.name)


@dataclass(frozen=True, slots=True)
class _Coded:
    """A tensor coded with some step, and its error in the layer's measure. Without blocks it stays as it is."""

    words: Array
    blocks: tuple[Factors, ...]
    error: float

    def fitted(self, weights: Weights) -> FittedTensor:
        return weights.fitted(self.words, Plan(Lowrank(self.blocks), _PLAN))


@dataclass(frozen=True, slots=True)
class _Svd:
    """Some rows of a tensor, measured: the tall factor times its singular values, these, and the wide factor as it multiplies to the rows themselves."""

    first: int
    left: Floats
    sizes: Floats
    right: Floats

    def bits(self, step: float) -> Floats:
        """What each component takes, about: Gaussian numbers of its size at this step."""
        (rows, _), (_, columns) = self.left.shape, self.right.shape
        tall, wide = np.square(self.sizes / step) / rows, np.square(self.sizes / step) / columns
        bits: Floats = (rows * np.log2(1 + 17.08 * tall) + columns * np.log2(1 + 17.08 * wide)) / 2
        return bits

    def factors(self, step: float, right_unit: float, most: int) -> Factors | None:
        """Integers of the components that are worth their bits; None where they do not fit the stage. `right_unit` scales the wide factor's step."""
        n = self.left.shape[0] + self.right.shape[1]
        gain = np.square(self.sizes) - n * step * step / 12 - _WORTH * step * step * self.bits(step)
        rank = max(1, int(np.count_nonzero(np.logical_and.accumulate(gain > 0))))
        powers = np.floor(np.log2(np.maximum(self.sizes[:rank], np.finfo(np.float64).tiny)) + 0.5)
        powers = np.maximum(powers, powers[0] - MOST_SHIFT)
        left = np.rint(self.left[:, :rank] / step)
        right = np.rint(self.right[:rank] * right_unit * np.exp2(powers)[:, None] / step)
        with np.errstate(over="ignore"):
            scale = np.float32(step * step / right_unit * 2.0 ** -powers[0])
        if rank > most or max(np.abs(left).max(), np.abs(right).max()) > MOST_FACTOR or not 0 < scale < np.inf:
            return None
        return Factors(self.first, left.astype(np.int32), right.astype(np.int32), (powers[0] - powers).astype(np.int64), float(scale))


@dataclass(frozen=True, slots=True)
class _Layer:
    """A tensor with what its errors count: `root` (columns x columns; None: 1) times its rows' errors, times `unit`."""

    weights: Weights
    kept: Kept
    values: Floats
    root: Floats | None
    unit: float
    energy: float
    svds: tuple[_Svd, ...]

    @classmethod
    def of(cls, weights: Weights, data: Calibration | None) -> _Layer:
        kept = Kept.of(weights)
        values = np.where(kept.exact, 0, weights.values()).astype(np.float64).reshape(-1, weights.spec.row_words)
        moments = data.moments_of(weights.spec) if data else None
        root = None if moments is None or not moments.any() else _root(moments)
        measured = values if root is None else values @ root
        energy = float(np.square(measured).sum())
        unit = energy**-0.5 if root is not None and energy else 1.0
        svds = tuple(_decomposed(first, measured[first : first + rows] * unit, root, unit) for first, rows in _blocks(weights))
        return cls(weights, kept, values, root, unit, energy * unit * unit, svds)

    def coded(self, step: float) -> _Coded:
        """The words of factors at this step, and their error."""
        spec = self.weights.spec
        right_unit = self.unit if self.root is None else self.unit * float(np.square(self.root).mean(axis=0).sum()) ** 0.5
        blocks = [svd.factors(step, right_unit, _most_rank(self.weights)) for svd in self.svds]
        whole = tuple(block for block in blocks if block is not None)
        if len(whole) < len(blocks):
            return _Coded(self.weights.words, (), 0.0)
        try:
            words = rounded(np.concatenate([block.product() for block in whole]).reshape(-1), spec.dtype.name)
        except CorruptFile:  # sums that float64 does not hold
            return _Coded(self.weights.words, (), 0.0)
        words = self.kept.put(self.weights, words)
        off = np.where(self.kept.exact, 0, values_of(words, spec.dtype.name)).astype(np.float64).reshape(self.values.shape) - self.values
        with np.errstate(invalid="ignore"):  # products that overflow have an error that no budget allows
            measured = (off if self.root is None else off @ self.root) * self.unit
        return _Coded(words, whole, float(np.square(measured).sum()))


def _root(moments: Floats) -> Floats:
    """Lower triangular L with L L^T = moments, damped."""
    damped = moments + _DAMPING * float(np.diag(moments).mean()) * np.eye(len(moments))
    try:
        root: Floats = np.linalg.cholesky((damped + damped.T) / 2).astype(np.float64)
    except np.linalg.LinAlgError:
        raise BadRecipe("lowrank: moments are no matrix of second moments; they have a negative direction") from None
    return root


def _decomposed(first: int, measured: Floats, root: Floats | None, unit: float) -> _Svd:
    tall, sizes, wide = np.linalg.svd(measured, full_matrices=False)
    right = wide / unit if root is None else np.linalg.solve(root.T, wide.T).T / unit
    return _Svd(first, tall * sizes, sizes, right)


def _blocks(weights: Weights) -> Iterator[tuple[int, int]]:
    """First row and number of rows of the parts that have factors of their own: the container's groups of frames."""
    spec, n_rows = weights.spec, weights.words.size // weights.spec.row_words
    words = full_frame_words(spec.dtype, spec.row_words) * MOST_GROUP_FRAMES
    rows = words // spec.row_words if spec.row_words <= words // MOST_GROUP_FRAMES else n_rows
    for first in range(0, n_rows, rows):
        yield first, min(rows, n_rows - first)


def _most_rank(weights: Weights) -> int:
    """A right factor that frames share is at most as large as a frame."""
    several = weights.words.nbytes > LIMITS.frame_bytes
    return min(MOST_RANK, (LIMITS.frame_bytes - _SHARED_SLACK) // (2 * weights.spec.row_words)) if several else MOST_RANK
