"""k-means: weights become the mean of their cluster (sources: Han et al., arXiv 1510.00149; kernels/kmeans.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelcodec import planner
from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit, cheapest
from modelcodec.fitted import FittedTensor, Weights, values_of
from modelcodec.kernels import kmeans as kernels
from modelcodec.kernels.casts import rounded
from modelcodec.limits import LIMITS
from modelcodec.stage import Plan
from modelcodec.stages.codebook import MOST_DIMENSION, MOST_ENTRIES, Codebook
from modelcodec.stages.rans import Rans
from modelcodec.types import Array

_POINTS, _PRICED_POINTS = 1 << 15, 1 << 11
"""More different weights than that are first put into as many bins, so that clusters begin and end at bins; with a price, time grows with their square."""
_ALONE = 1 << 8
"""So many of the outermost weights on either side are bins of their own: one far-off weight must not drag others along."""
_ZERO_SHARE = 32
"""Zeros stay where they are one weight in so many, or more: they are a mask then."""
_ROUNDS = 30
_CLOSE = 256
"""Centroids are rounded to a shorter dtype where that adds one part in so many to the squared error, or less."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Kept:
    """Weights that a codebook does not touch: those that are `exact`, NaN and infinities among them, and zeros that are a mask."""

    exact: NDArray[np.bool_]
    zero: NDArray[np.bool_]

    @classmethod
    def of(cls, weights: Weights) -> Kept:
        values = weights.values()
        zero = values == 0
        return cls(~np.isfinite(values), zero if int(zero.sum()) * _ZERO_SHARE >= zero.size else np.zeros_like(zero))

    @property
    def free(self) -> NDArray[np.bool_]:
        return ~(self.exact | self.zero)

    def put(self, weights: Weights, words: Array) -> Array:
        """Words with what is kept in its place; masked zeros lose their sign."""
        return np.where(self.exact, weights.words, np.where(self.zero, weights.words.dtype.type(0), words))


def within(weights: Weights, words: Array, max_error: float | None) -> Array:
    """Words, but the original ones where they are further off than the bound."""
    if max_error is None:
        return words
    dtype = weights.spec.dtype.name
    with np.errstate(invalid="ignore"):
        off = np.abs(values_of(words, dtype).astype(np.float64) - weights.values())
    return np.where(off <= max_error, words, weights.words)


def check_bound(name: str, max_error: float | None) -> None:
    if max_error is not None and not max_error >= 0:
        raise BadRecipe(f"{name}: max_error = {max_error}, it is 0 or more")


def cluster(values: Floats, importance: Floats, k: int, price: float = 0.0) -> Floats:
    """For each weight the mean of its cluster: at most k clusters of least weighted squared error (and price * bits)."""
    points, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    counted = counts.astype(np.float64)
    masses = np.bincount(places, importance, points.size) + 1e-12 * importance.mean() * counted  # weights of no importance still go to their neighbours
    edges = _edges(points.size, _PRICED_POINTS if price else _POINTS)
    mass = np.add.reduceat(masses, edges)
    centres = np.add.reduceat(points * (masses / np.repeat(mass, np.diff(edges, append=points.size))), edges)
    found = kernels.segments(centres, mass, k, np.add.reduceat(counted, edges), price)
    starts = edges[found.starts[:-1]]
    for _ in range(_ROUNDS if edges.size < points.size and not price else 1):
        means = _means(points, masses, starts)
        moved = np.unique(np.concatenate(([0], np.searchsorted(points, means[:-1] + (means[1:] - means[:-1]) / 2))))
        if price or edges.size == points.size or np.array_equal(moved, starts):
            break
        starts = moved[moved < points.size]
    means = _means(points, masses, starts)
    return np.repeat(means, np.diff(starts, append=points.size))[places]


def _edges(n: int, most: int) -> NDArray[np.int64]:
    """Where bins of n sorted points begin: about equally many points in each, outermost ones alone."""
    if n <= most:
        return np.arange(n)
    inner = np.linspace(_ALONE, n - _ALONE, most - 2 * _ALONE + 1).astype(np.int64)
    return np.concatenate((np.arange(_ALONE), inner, np.arange(n - _ALONE + 1, n)))


def _means(points: Floats, masses: Floats, starts: NDArray[np.int64]) -> Floats:
    mass = np.add.reduceat(masses, starts)
    means: Floats = np.add.reduceat(points * (masses / np.repeat(mass, np.diff(starts, append=points.size))), starts)
    return means


def shortened(values: Floats, wanted: Floats, importance: Floats, dtype: str) -> Array:
    """Words of centroids: rounded to the shortest dtype that adds next to nothing to the error, and shorter to code."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
        exact = rounded(single, dtype)
        errors = {"": _error(exact, wanted, importance, dtype)}
        for short in ("BF16", "F16"):
            narrow = rounded(values_of(rounded(single, short), short), dtype)
            if dtype != short and _error(narrow, wanted, importance, dtype) * _CLOSE <= errors[""] * (_CLOSE + 1):
                return narrow
    return exact


def _error(words: Array, wanted: Floats, importance: Floats, dtype: str) -> float:
    with np.errstate(over="ignore", invalid="ignore"):  # a centroid that a short dtype does not hold
        off = values_of(words, dtype) - wanted
        return float((off * off * importance).sum())


def plan_of(weights: Weights, words: Array, dimension: int = 1, lists: bytes = b"") -> Plan | None:
    """The cheapest plan that codes words by a codebook; None where they are too many different ones."""
    stage = Codebook(dimension, lists=lists)
    step = LIMITS.frame_bytes // words.itemsize
    books = [stage.book(words[at : at + step], weights.spec, at) for at in range(0, words.size, step)]
    if None in books or books[0] is None:
        return None
    then = {"entries": planner.plan(weights.spec, books[0].entries, planner.SMALL), "groups": Plan(Rans()), "indices": Plan(Rans())}
    plans = [Plan(stage, then)]
    if dimension == 1:
        plans.append(Plan(Codebook(1, True, lists), then))
    return cheapest(weights.spec, words, plans)


@dataclass(frozen=True, slots=True)
class KMeans(Fit):
    """At most `k` different weights a tensor, or, with a `dimension`, k different vectors of so many weights that follow each other in memory.

    One dimension: exact, and with a `price` the best sum of squared error and price * bits. Vectors: Lloyd's iterations from a `seed`. Weights that would be
    off by more than `max_error` stay exact, beyond the k. data: importance or input moments, if any, weigh the squared error.
    """

    k: int
    dimension: int = 1
    price: float = 0.0
    max_error: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MOST_ENTRIES or not 1 <= self.dimension <= MOST_DIMENSION:
            raise BadRecipe(f"kmeans: k = {self.k}, dimension = {self.dimension}; up to {MOST_ENTRIES} and {MOST_DIMENSION} are possible")
        if not 0 <= self.price < np.inf or (self.price and self.dimension > 1):
            raise BadRecipe(f"kmeans: price = {self.price}; it is 0 or more, and for single weights only")
        check_bound("kmeans", self.max_error)

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        kept, importance = Kept.of(weights), importance_of(weights, data)
        scalar = self.dimension == 1
        words = self._scalars(weights, kept, importance) if scalar else vector_words(weights, kept, importance, self.dimension, self.k, self.seed)
        words = within(weights, words, self.max_error)
        plan = plan_of(weights, words, self.dimension)
        return None if plan is None else weights.fitted(words, plan)

    def _scalars(self, weights: Weights, kept: Kept, importance: Floats) -> Array:
        free = kept.free
        words = weights.words.copy()
        if free.any():
            values = weights.values()[free].astype(np.float64)
            k = self.k - bool(kept.zero.any())
            means = cluster(values, importance[free], k, self.price) if k else np.zeros(values.size)
            words[free] = shortened(means, values, importance[free], weights.spec.dtype.name)
        return kept.put(weights, words)


def importance_of(weights: Weights, data: Calibration | None) -> Floats:
    """One number a weight: what its squared error costs; 1 where nothing is known, or nothing counts."""
    importance = data.importance_of(weights.spec) if data else None
    return importance if importance is not None and importance.any() else np.ones(weights.words.size)


def vector_words(weights: Weights, kept: Kept, importance: Floats, dimension: int, k: int, seed: int, bits: int | None = None) -> Array:
    """Words of vectors that became the centre of their cluster; `bits`: all centres together have at most 2^bits different numbers. Words after the last
    whole vector, and of what is kept, stay."""
    n_vectors = weights.words.size // dimension
    words = weights.words.copy()
    if n_vectors:
        whole = slice(n_vectors * dimension)
        values = np.where(kept.free, weights.values(), 0)[whole].astype(np.float64).reshape(n_vectors, dimension)
        counted = np.where(kept.free, importance + 1e-12 * importance.mean(), 0)[whole].reshape(n_vectors, dimension)
        centres, nearest = kernels.vectors(values, counted, k, _ROUNDS, seed)
        if bits is not None:
            mass = np.zeros_like(centres)
            np.add.at(mass, nearest, counted)
            levels = cluster(centres.reshape(-1), mass.reshape(-1) + 1e-12 * mass.mean(), 1 << bits)
            centres = levels.reshape(centres.shape)
            nearest = kernels.nearest(values, counted, centres)
        words[whole] = shortened(centres[nearest].reshape(-1), values.reshape(-1), counted.reshape(-1), weights.spec.dtype.name)
    return kept.put(weights, words)
