"""Scale classes: how large a weight is likely to be, from the scale of its row and of its column (docs/stages.md, class_rans).

All in integers. A *level* is a float's magnitude in quarters of an octave: its exponent and top two mantissa bits, cut to 8 octaves around the group's
middle, since zeros
and outliers say nothing about a scale. Rows are those of one group of frames; x holds whole rows, but for the last one.
"""

from __future__ import annotations

from numba import int64

from modelcodec.kernels.frequencies import LOG2
from modelcodec.kernels.jit import inlined, kernel

SPREAD = 32
"""Levels that are told apart below and above the middle, and places of a row's or column's scale."""
SCALES = 2 * SPREAD
SUMS = 2 * SCALES - 1
SYMBOLS = 1 << 10
MOST_CLASSES = 32
_FRACTION = 16
_PLACES = 16


@inlined
def _high(word, width):
    return int64(word) >> (8 * width - 16) & 0x7FFF


@kernel
def count_levels(x, width, below, step, counts):
    """Add to `counts` (i8[32768]) the levels of every step-th word; `below` is the number of bits below a level in a word's top 16."""
    for i in range(0, x.size, step):
        counts[_high(x[i], width) >> below] += 1


@kernel
def fit_scales(x, width, below, columns, middle, row_sums, column_sums, row_scales, column_scales):
    """The additive model level = row + column, by sums.

    row_scales (u1[rows]) and column_scales (u1[columns]) get values below 64 around 32; the sums (i8) are scratch.
    """
    rows = row_sums.size
    column_sums[:] = 0
    for r in range(rows):
        first = r * columns
        n = min(columns, x.size - first)
        total = int64(0)
        for j in range(n):
            total += min(max((_high(x[first + j], width) >> below) - middle, -SPREAD), SPREAD)
        mean = (total * _FRACTION) // n
        row_sums[r] = mean
        for j in range(n):
            column_sums[j] += _FRACTION * min(max((_high(x[first + j], width) >> below) - middle, -SPREAD), SPREAD) - mean
        row_scales[r] = min(max((mean + _FRACTION // 2) // _FRACTION + SPREAD, 0), SCALES - 1)
    whole = x.size // columns
    for j in range(columns):
        n = whole + (j < x.size - whole * columns)
        column_scales[j] = min(max((column_sums[j] // max(n, 1) + _FRACTION // 2) // _FRACTION + SPREAD, 0), SCALES - 1)


@kernel
def count_classed(x, width, low_bits, columns, row_scales, column_scales, counts):
    """Add each word's symbol to counts (i8[127, 1024]) at the sum of its row's and column's scale; a symbol above 1023 is counted at 1023."""
    for r in range(row_scales.size):
        first = r * columns
        scale = int64(row_scales[r])
        for j in range(min(columns, x.size - first)):
            symbol = _high(x[first + j], width) >> low_bits
            counts[scale + int64(column_scales[j]), min(symbol, SYMBOLS - 1)] += 1


@inlined
def _log2(v, table):
    """log2 of v >= 1 in 2^-16 bit."""
    shift = 0
    while v > 4096:
        v >>= 1
        shift += 1
    return table[v] + (int64(shift) << _PLACES)


@kernel
def class_cost(counts, class_of, coarser, n_classes, log2, merged, symbol_cost):
    """Bits of the symbols, coarser by so many bits, with a table for each class; `symbol_cost` bits for each entry of a table.

    merged (i8[32, 1024]) is scratch.
    """
    merged[:] = 0
    for k in range(counts.shape[0]):
        c = class_of[k]
        for s in range(counts.shape[1]):
            merged[c, s >> coarser] += counts[k, s]
    cost, entries = int64(0), int64(0)
    for c in range(n_classes):
        total = int64(0)
        for s in range(counts.shape[1] >> coarser):
            m = merged[c, s]
            if m:
                total += m
                cost -= (m * _log2(m, log2)) >> 8
                entries += 1
        if total:
            cost += (total * _log2(total, log2)) >> 8
    return (cost >> 8) + entries * symbol_cost


@kernel
def map_classes(row_scales, column_scales, class_of, first, out):
    """Class of each word: out (u1[n]) from word `first` of the group on. Returns False where a row is past the last."""
    columns = column_scales.size
    row, column = first // columns, first % columns
    i, n = 0, out.size
    while i < n:
        if row >= row_scales.size:
            return False
        scale = int64(row_scales[row])
        m = min(columns - column, n - i)
        for j in range(m):
            out[i + j] = class_of[scale + int64(column_scales[column + j])]
        i += m
        row += 1
        column = 0
    return True


__all__ = ["LOG2", "MOST_CLASSES", "SCALES", "SUMS", "SYMBOLS", "class_cost", "count_classed", "count_levels", "fit_scales", "map_classes"]
