"""Scale classes: how large a weight is likely to be, from the scale of its row and of its column (docs/stages.md, class_rans).

All in integers. A *log* is a number's magnitude in 128ths of an octave: a float's exponent and top 7 bits of mantissa; a one-byte word's is looked up. Scales
are *places*, below 64, of logs on a grid. Words x, at an address, are those of one group of frames: whole rows, but for the last one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.types import int32, int64, uint16

from modelcodec.kernels.class_rans import ESCAPE, MOST_CLASSES, SUMS
from modelcodec.kernels.frequencies import LOG2, bit_length
from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import address_of, load_u8, load_u16, load_u32, store_u32

__all__ = ["NO_LOGS", "OCTAVE", "PITCH", "Groups", "count", "fit", "of_classes", "order0_bits"]

Array = np.ndarray[Any, Any]

OCTAVE = 128
NO_LOGS = np.zeros(256, np.uint16)
SYMBOLS = 1 << 10
_SPREAD = 8 * OCTAVE
"""At first, nothing is further from the middle: zeros and outliers say nothing about a scale."""
_BLOCK = 64
PITCH = SYMBOLS + 48
"""Counters of a sum; those of one symbol must not lie a multiple of 4096 bytes apart, where processors take them for the same."""
_PLACES = 16
_FEW_LOG2 = 11
"""Neighbouring sums are put together from the start until they have one in 2^11 words."""


@piece(types.void(int64, int64, int64, int64, int64, int64, uint16[::1]))
def _logs(x, width, down, of_bytes, first, m, to):
    """Logs of m words from word `first` on. of_bytes: address of the logs of bytes, for one-byte words."""
    if width == 1:
        for i in range(m):
            to[i] = load_u16(of_bytes + 2 * load_u8(x + first + i))
    elif width == 2:
        for i in range(m):
            to[i] = (load_u16(x + 2 * (first + i)) & 0x7FFF) >> down
    else:
        for i in range(m):
            to[i] = (load_u16(x + 4 * (first + i) + 2) & 0x7FFF) >> down


@piece(int64(int64))
def _log2(v):
    """log2 of v >= 1 in 2^-16 bit."""
    shift = max(bit_length(v) - 12, 0)
    return LOG2[v >> shift] + (shift << _PLACES)


@piece(int32(int32))
def _square(log):
    """About the square of what has this log, in 1024ths, between 1 and 2^14: large ones tell most about a scale, outliers nothing."""
    z = min(max(2 * log, -10 * OCTAVE), 4 * OCTAVE) + 10 * OCTAVE
    return int32((OCTAVE + (z & OCTAVE - 1)) << (z >> 7) >> 7)


@piece(int64(int64))
def _half_log(mean):
    """The log by which a scale is off whose words have this mean square."""
    return (_log2(max(mean, 1)) - (10 << _PLACES)) * (OCTAVE // 2) >> _PLACES


@kernel
def _fit(x, width, down, of_bytes, n, columns, every, middle, row_logs, column_logs, sums, line):
    rows = row_logs.size
    whole = n // columns
    counted = (whole + every - 1) // every
    for after in range(2):
        sums[:] = 0
        for r in range(rows):
            m = min(columns, n - r * columns)
            _logs(x, width, down, of_bytes, r * columns, m, line)
            total = int64(0)
            counts = r % every == 0 and r < whole
            if after:
                base = int32(middle + row_logs[r])
                for j in range(m):
                    total += _square(int32(int32(line[j]) - base - column_logs[j]))
                row_logs[r] += _half_log(total // m)
                base = int32(middle + row_logs[r])
                for j in range(m if counts else 0):
                    sums[j] += _square(int32(int32(line[j]) - base - column_logs[j]))
            else:
                base = int32(middle)
                for j in range(m):
                    total += min(max(int32(line[j]) - base, -_SPREAD), _SPREAD)
                mean = total // m
                row_logs[r] = mean
                for j in range(m if counts else 0):
                    sums[j] += min(max(int32(line[j]) - base, -_SPREAD), _SPREAD) - mean
        for j in range(columns):
            mean = sums[j] // counted
            column_logs[j] = column_logs[j] + _half_log(mean) if after else mean


@kernel
def _middle(x, width, down, of_bytes, n, step, counts, line):
    """The median log of every step-th word, in quarters of an octave."""
    counted = 0
    for i in range(0, n, step):
        _logs(x, width, down, of_bytes, i, 1, line)
        counts[line[0] >> 5] += 1
        counted += 1
    level, below = 0, counts[0]
    while 2 * below < counted:
        level += 1
        below += counts[level]
    return level << 5


def fit(x: Array, exponent_at: int, columns: int, every: int, of_bytes: Array = NO_LOGS) -> tuple[Array, Array]:
    """Logs of the scales of rows and of columns (i4), around 0: the additive model log = row + column.

    First by means of logs, then by mean squares of what is left. x: u1, u2 or u4. exponent_at: the exponent's lowest bit in the top 16 of a wider word, at
    least 7. every: one row in so many counts for the columns. of_bytes: the log of each byte (u2[256], below 2^15), for words of one byte. source: a two-way
    analysis of variance.
    """
    rows = -(-x.size // columns)
    row_logs, column_logs, sums, line = np.empty(rows, np.int32), np.zeros(columns, np.int32), np.empty(columns, np.int64), np.empty(columns, np.uint16)
    words = address_of(x), x.itemsize, exponent_at - 7, address_of(of_bytes), x.size
    middle = _middle(*words, x.size >> 14 | 1, np.zeros(1 << 10, np.int64), line)
    _fit(*words, columns, every, middle, row_logs, column_logs, sums, line)
    return row_logs, column_logs


@piece(int64(int64, int64, int64, int64))
def _symbol(x, width, low_bits, i):
    return load_u8(x + i) if width == 1 else (load_u16(x + width * i + width - 2) & 0x7FFF) >> low_bits


@kernel
def _count(x, width, low_bits, n, columns, rows, row_scales, column_scales, sample, counts):
    counted = 0
    for r in range(rows):
        first = r * columns
        m = min(columns, n - first)
        row = counts + 4 * PITCH * load_u8(row_scales + r)
        for begin in range(r % sample * _BLOCK, m, _BLOCK * sample):
            end = min(begin + _BLOCK, m)
            counted += end - begin
            for j in range(begin, end):
                counter = row + 4 * PITCH * load_u8(column_scales + j) + 4 * min(_symbol(x, width, low_bits, first + j), SYMBOLS - 1)
                store_u32(counter, load_u32(counter) + 1)
    return counted


def count(x: Array, low_bits: int, columns: int, row_scales: Array, column_scales: Array, sample: int) -> tuple[Array, int]:
    """How often each symbol (1023: all from there on) occurs with each sum of a row's and a column's scale (u4[127, PITCH]), and how many words that are.

    x: u1, its own symbols, u2 or u4. scales: u1, below 64. sample: blocks of 64 words in a row that are counted: one out of so many, another one in each row.
    """
    counts = np.zeros((SUMS, PITCH), np.uint32)
    rows, scales = row_scales.size, (address_of(row_scales), address_of(column_scales))
    counted = _count(address_of(x), x.itemsize, low_bits, x.size, columns, rows, *scales, sample, address_of(counts))
    return counts, counted


# Merging


@piece(int64(int64[:, ::1], int64, int64, int64, int64, int64, int64))
def _cost(cells, a, b, n_symbols, sample, entry_cost, class_cost):
    """2^-16 bits of the words of buckets a and b with one table, and of that table; b may be -1."""
    total, cost, entries = int64(0), int64(0), int64(0)
    for i in range(n_symbols):
        c = cells[a, i] + (cells[b, i] if b >= 0 else 0)
        if c:
            total += c
            cost -= c * _log2(c)
            entries += 1
    return (cost + total * _log2(max(total, 1))) * sample + entries * entry_cost + class_cost


@kernel
def _merge(cells, buckets, n_symbols, sample, entry_cost, class_cost, most, after, before, own, saved):
    """Put neighbouring buckets together, those that save most first, while that saves anything or there are more than `most`.

    Leaves the first bucket of the next class in `after`, for the first bucket of each class. Returns the bits.
    """
    for k in range(buckets):
        own[k] = _cost(cells, k, -1, n_symbols, sample, entry_cost, class_cost)
        after[k], before[k] = k + 1, k - 1
    for k in range(buckets - 1):
        saved[k] = own[k] + own[k + 1] - _cost(cells, k, k + 1, n_symbols, sample, entry_cost, class_cost)
    left = buckets
    while left > 1:
        best, k = 0, 0
        while after[k] < buckets:
            if saved[k] > saved[best]:
                best = k
            k = after[k]
        if saved[best] <= 0 and left <= most:
            break
        gone = after[best]
        for i in range(n_symbols):
            cells[best, i] += cells[gone, i]
        own[best] += own[gone] - saved[best]
        after[best] = after[gone]
        saved[best] = -(int64(1) << 62)
        if after[best] < buckets:
            before[after[best]] = best
            saved[best] = own[best] + own[after[best]] - _cost(cells, best, after[best], n_symbols, sample, entry_cost, class_cost)
        if before[best] >= 0:
            k = before[best]
            saved[k] = own[k] + own[best] - _cost(cells, k, best, n_symbols, sample, entry_cost, class_cost)
        left -= 1
    bits, k = int64(0), 0
    while k < buckets:
        bits += own[k]
        k = after[k]
    return bits >> _PLACES


class Groups:
    """Counts (u4[127, PITCH]) by sums, made ready to be merged into classes."""

    def __init__(self, counts: Array, counted: int, sample: int) -> None:
        starts, total = [0], 0
        for k, n in enumerate(counts.sum(axis=1).tolist()):
            if total >= max(counted >> _FEW_LOG2, 1) and n:
                starts.append(k)
                total = 0
            total += n
        self._starts, self._sample = np.array(starts), sample
        self._symbols = np.flatnonzero(counts.any(axis=0))
        self._cells = np.add.reduceat(counts[:, self._symbols], self._starts, axis=0, dtype=np.int64)

    def merge(self, coarser: int, entry_cost: int, class_cost: int) -> tuple[int, Array]:
        """Bits of the words, for symbols with so many bits less, and thresholds (u1) of the sums. Costs of tables: bits an entry, and beside those."""
        symbols, firsts = np.unique(self._symbols >> coarser, return_index=True)
        cells = np.ascontiguousarray(np.add.reduceat(self._cells, firsts, axis=1))
        after, before, own, saved = np.empty((4, SUMS), np.int64)
        costs = entry_cost << _PLACES, class_cost << _PLACES
        bits = _merge(cells, self._starts.size, symbols.size, self._sample, *costs, MOST_CLASSES, after, before, own, saved)
        firsts_of, bucket = [], int(after[0])
        while bucket < self._starts.size:
            firsts_of.append(bucket)
            bucket = int(after[bucket])
        return bits, self._starts[np.array(firsts_of, np.int64)].astype(np.uint8)


@kernel
def _of_classes(counts, class_of, coarser, sample, result):
    for k in range(SUMS):
        c = class_of[k]
        for s in range(SYMBOLS):
            result[c, s >> coarser] += sample * int64(counts[k, s])


def of_classes(counts: Array, thresholds: Array, coarser: int, sample: int) -> Array:
    """Counts (i8[classes, symbols]) of classes out of counts (u4[127, PITCH]) by sums, one in `sample` words of which was counted.

    What is always escaped is left out.
    """
    result = np.zeros((thresholds.size + 1, SYMBOLS >> coarser), np.int64)
    _of_classes(counts, np.searchsorted(thresholds, np.arange(SUMS), side="right"), coarser, sample, result)
    result[:, ESCAPE:] = 0
    return result


@kernel
def _order0_bits(x, n, counts):
    for i in range(n):
        counts[load_u8(x + i)] += 1
    cost = n * _log2(n)
    for c in counts:
        if c:
            cost -= c * _log2(c)
    return (cost >> _PLACES) + 1


def order0_bits(x: Array) -> int:
    """Bits that bytes (u1, not empty) take at their order-0 entropy."""
    bits: int = _order0_bits(address_of(x), x.size, np.zeros(256, np.int64))
    return bits
