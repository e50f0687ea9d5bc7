"""Finding scale classes for a group of frames: scales of rows and columns, and how many classes and mantissa bits pay for their tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelcodec.kernels import scale_classes as kernels
from modelcodec.kernels.class_rans import MOST_BITS, SCALES
from modelcodec.kernels.frequencies import normalise
from modelcodec.stages.class_rans import TABLE_WIDTH, ScaleClasses
from modelcodec.types import Array

LEAST_WORDS = 1 << 12
MOST_COLUMNS = 1 << 17
"""Longer rows would be told apart by scales that cost more than they save, and the shared part has at most 1 MiB."""
_STEPS_LOG2 = (5, 6, 4)
"""Steps of scales that are tried, in 128ths of an octave: finer ones cost a bit more for each row and column."""
_ENTRY_BITS = 8
"""About what an entry in a class's table costs."""
_CLASS_BITS = 60
_ROWS_FOR_COLUMNS = 2048
"""So many rows are enough to know a column's scale."""
_COUNTED_WORDS = 1 << 19
_SURVEYED_WORDS = 1 << 17
"""Of longer groups, every 2nd, 4th, 8th ... block of 64 words is counted: for tables, and, before, for choosing steps and cuts."""


@dataclass(frozen=True, slots=True)
class Found:
    """Classes, and where the floats are best cut for them; `bits` is what the group takes: symbols, tables, scales and what lies below the cut."""

    classes: ScaleClasses
    low_bits: int
    bits: int


@dataclass(frozen=True, slots=True)
class _Choice:
    bits: int
    low_bits: int
    row_scales: Array
    column_scales: Array
    thresholds: Array
    counts: Array
    """as `kernels.count` gives them: symbols with `coarser` bits more, out of every `sample` blocks of words"""
    coarser: int
    sample: int


def find(x: Array, columns: int, exponent_at: int, cuts: tuple[int, ...]) -> Found | None:
    """The best classes for whole rows x (u2 or u4) of `columns` words; None where there is nothing to tell apart.

    exponent_at: the exponent's lowest bit in a word's top 16, at least 7. cuts: low_bits to choose from, each at least 5.
    memory: about 3 MB. source: the additive model of log magnitudes by rows and columns is a two-way analysis of variance.
    """
    if x.size < LEAST_WORDS or columns < 2 or columns > MOST_COLUMNS or columns >= x.size:
        return None
    rows = -(-x.size // columns)
    row_logs, column_logs = kernels.fit(x, exponent_at, columns, max(rows // _ROWS_FOR_COLUMNS, 1))
    best: _Choice | None = None
    for log2 in _STEPS_LOG2:
        choice = _choose(x, _places(row_logs, log2), _places(column_logs, log2), cuts if best is None else (best.low_bits,), _SURVEYED_WORDS)
        best = choice if best is None or choice.bits < best.bits else best
    assert best is not None
    if x.size >= 2 * _SURVEYED_WORDS:
        best = _choose(x, best.row_scales, best.column_scales, (best.low_bits,), _COUNTED_WORDS)
    of_classes = kernels.of_classes(best.counts, best.thresholds, best.coarser, best.sample)
    tables = tuple(normalise(counts, MOST_BITS, TABLE_WIDTH, escape=True) for counts in of_classes)
    return Found(ScaleClasses(best.row_scales, best.column_scales, best.thresholds, tables), best.low_bits, best.bits)


def _places(logs: Array, step_log2: int) -> Array:
    """Scales on a grid around their median."""
    some = logs[:: (logs.size >> 16) + 1]
    centre = int(np.partition(some, some.size // 2)[some.size // 2]) - (1 << step_log2 >> 1)
    places: Array = np.clip((logs - centre >> step_log2) + SCALES // 2, 0, SCALES - 1).astype(np.uint8)
    return places


def _choose(x: Array, row_scales: Array, column_scales: Array, cuts: tuple[int, ...], words: int) -> _Choice:
    """The cheapest of the cuts with these scales, by counting about so many words."""
    sample = 1 << max((x.size // words).bit_length() - 1, 0)
    finest = min(cuts)
    counts, counted = kernels.count(x, finest, column_scales.size, row_scales, column_scales, sample)
    groups = kernels.Groups(counts, counted, sample)
    fixed = kernels.order0_bits(row_scales) + kernels.order0_bits(column_scales)
    best: tuple[int, int, Array] | None = None
    for low_bits in cuts:
        bits, thresholds = groups.merge(low_bits - finest, _ENTRY_BITS, _CLASS_BITS)
        bits = bits * x.size // (counted * sample) + x.size * (low_bits + 1)
        if best is None or bits < best[0]:
            best = bits, low_bits, thresholds
    assert best is not None
    return _Choice(best[0] + fixed, best[1], row_scales, column_scales, best[2], counts, best[1] - finest, sample)
