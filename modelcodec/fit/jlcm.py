"""Grouped codebooks: rows that are alike share one (source: joint learning of clusters and mappings, JLCM, its abstract; there with training)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit
from modelcodec.fit.kmeans import Floats, Kept, check_bound, cluster, importance_of, plan_of, shortened, within
from modelcodec.fitted import FittedTensor, Weights
from modelcodec.kernels import kmeans as kernels
from modelcodec.stages.codebook import MOST_ENTRIES, MOST_GROUPS
from modelcodec.types import Array

_QUANTILES = np.linspace(0.05, 0.95, 10)
"""What rows are first compared by."""
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class GroupedKMeans(Fit):
    """At most `k` different weights a row, out of `groups` codebooks a tensor: rows go to the codebook that serves them best, and codebooks follow their rows.

    Weights that would be off by more than `max_error` stay exact, beyond the k. data: importance or input moments, if any, weigh the squared error.
    """

    k: int
    groups: int
    max_error: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.k * self.groups <= MOST_ENTRIES or not 1 <= self.groups <= MOST_GROUPS or self.k < 1:
            raise BadRecipe(f"jlcm: k = {self.k}, groups = {self.groups}; up to {MOST_GROUPS} groups and {MOST_ENTRIES} weights are possible")
        check_bound("jlcm", self.max_error)

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        kept, importance = Kept.of(weights), importance_of(weights, data)
        rows = _Rows.of(weights, kept, importance)
        k = self.k - bool(kept.zero.any())
        lists = rows.alike(self.groups, self.seed)
        for _ in range(_ROUNDS):
            books = [rows.codebook(lists == number, k) for number in range(self.groups)]
            moved = rows.best(books)
            if np.array_equal(moved, lists):
                break
            lists = moved
        words = weights.words.copy()
        for number in range(self.groups):
            free = kept.free & np.repeat(lists == number, weights.spec.row_words)
            if free.any():
                values = weights.values()[free].astype(np.float64)
                means = cluster(values, importance[free], k) if k else np.zeros(values.size)
                words[free] = shortened(means, values, importance[free], weights.spec.dtype.name)
        words = within(weights, kept.put(weights, words), self.max_error)
        plan = plan_of(weights, words, 1, np.unique(lists, return_inverse=True)[1].astype(np.uint8).tobytes())
        return None if plan is None else weights.fitted(words, plan)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A matrix's rows: their numbers, and what an error of each costs (nothing where it is kept)."""

    values: Floats
    importance: Floats

    @classmethod
    def of(cls, weights: Weights, kept: Kept, importance: Floats) -> _Rows:
        shape = -1, weights.spec.row_words
        return cls(np.where(kept.free, weights.values(), 0).astype(np.float64).reshape(shape), np.where(kept.free, importance, 0).reshape(shape))

    def alike(self, groups: int, seed: int) -> NDArray[np.int64]:
        """Rows of similar quantiles in one group."""
        quantiles = np.quantile(self.values, _QUANTILES, axis=1).T.copy()
        return kernels.vectors(quantiles, np.ones_like(quantiles), groups, _ROUNDS, seed)[1]

    def codebook(self, rows: NDArray[np.bool_], k: int) -> Floats:
        """The centroids of some rows, in order."""
        values, importance = self.values[rows], self.importance[rows]
        counted = importance > 0
        if not counted.any() or not k:
            return np.zeros(1)
        return np.unique(cluster(values[counted], importance[counted], k))

    def best(self, books: list[Floats]) -> NDArray[np.int64]:
        """The codebook that serves each row with the least error."""
        errors = [(np.square(self.values - _nearest(self.values, book)) * self.importance).sum(axis=1) for book in books]
        best: NDArray[np.int64] = np.argmin(errors, axis=0)
        return best


def _nearest(values: Floats, book: Floats) -> Floats:
    found: Array = book[np.searchsorted(book[:-1] + (book[1:] - book[:-1]) / 2, values)]
    return found
