"""Finding scale classes for a group of frames: rows' and columns' scales, thresholds, and how many classes and mantissa bits pay for their tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelcodec.kernels import scale_classes as kernels
from modelcodec.kernels.class_rans import BITS
from modelcodec.stages.class_rans import ScaleClasses
from modelcodec.stages.rans import table_for
from modelcodec.types import Array

LEAST_WORDS = 1 << 12
MOST_COLUMNS = 1 << 17
"""Longer rows would be told apart by scales that cost more than they save, and the shared part has at most 1 MiB."""
SCALE_BITS = 5
"""What a row's or column's scale costs about, coded."""
SYMBOL_COST = 9
"""Bits of an entry in a class's table."""
_CLASS_COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
_SAMPLE_STEP = 7
_TAIL = 200
"""One word in this many may lie outside the span that the classes divide evenly, at either end."""


@dataclass(frozen=True, slots=True)
class Found:
    """Classes, and where the floats are best cut for them; `bits` is what the group takes: symbols, tables, scales and what lies below the cut."""

    classes: ScaleClasses
    low_bits: int
    bits: int


def find(x: Array, columns: int, exponent_at: int, cuts: tuple[int, ...]) -> Found | None:
    """The best classes for whole rows x (u2 or u4) of `columns` words; None where there is nothing to tell apart.

    exponent_at: the exponent's lowest bit in a word's top 16. cuts: low_bits to choose from, each at least 5.
    memory: about 1.5 MB. source: DESIGN, section 8; the additive model of log magnitudes by rows and columns is a two-way analysis of variance.
    """
    if x.size < LEAST_WORDS or columns < 2 or columns > MOST_COLUMNS or columns >= x.size:
        return None
    rows = -(-x.size // columns)
    levels = np.zeros(1 << 15, np.int64)
    kernels.count_levels(x, x.itemsize, exponent_at - 2, _SAMPLE_STEP, levels)
    middle = int(np.searchsorted(np.cumsum(levels), levels.sum() // 2))
    row_scales, column_scales = np.empty(rows, np.uint8), np.empty(columns, np.uint8)
    kernels.fit_scales(x, x.itemsize, exponent_at - 2, columns, middle, np.empty(rows, np.int64), np.empty(columns, np.int64), row_scales, column_scales)
    finest = min(cuts)
    counts = np.zeros((kernels.SUMS, kernels.SYMBOLS), np.int64)
    kernels.count_classed(x, x.itemsize, finest, columns, row_scales, column_scales, counts)
    return _cheapest(x.size, row_scales, column_scales, counts, finest, cuts)


def _cheapest(n: int, row_scales: Array, column_scales: Array, counts: Array, finest: int, cuts: tuple[int, ...]) -> Found | None:
    sums = counts.sum(axis=1)
    merged = np.empty((kernels.MOST_CLASSES, kernels.SYMBOLS), np.int64)
    best: tuple[int, int, Array] | None = None
    for n_classes in _CLASS_COUNTS:
        thresholds = _thresholds(sums, n_classes)
        class_of = _class_of(thresholds)
        for low_bits in cuts:
            bits = int(kernels.class_cost(counts, class_of, low_bits - finest, n_classes, kernels.LOG2, merged, SYMBOL_COST)) + n * (low_bits + 1)
            if best is None or bits < best[0]:
                best = bits, low_bits, thresholds
    if best is None:
        return None
    bits, low_bits, thresholds = best
    class_of = _class_of(thresholds)
    tables = []
    for c in range(thresholds.size + 1):
        of_class = counts[class_of == c].sum(axis=0).reshape(-1, 1 << (low_bits - finest)).sum(axis=1)
        tables.append(table_for(np.ascontiguousarray(of_class), BITS, 2, sampled=True))
    classes = ScaleClasses(row_scales, column_scales, thresholds, tuple(tables))
    return Found(classes, low_bits, bits + SCALE_BITS * (row_scales.size + column_scales.size))


def _thresholds(sums: Array, n_classes: int) -> Array:
    """Sums at which the next class begins: even steps over the span that holds nearly all words."""
    below = np.cumsum(sums)
    low = int(np.searchsorted(below, below[-1] // _TAIL))
    high = int(np.searchsorted(below, below[-1] - below[-1] // _TAIL))
    return np.array([low + (high + 1 - low) * c // n_classes for c in range(1, n_classes)], np.uint8)


def _class_of(thresholds: Array) -> Array:
    """Class of each sum of scales."""
    return np.searchsorted(thresholds, np.arange(kernels.SUMS), side="right").astype(np.uint8)
