"""A word given the word that stands in its place in a base: levels, symbols and low bits (docs/stages.md, delta).

A *level* tells in quarters of an octave how large a change is likely to be, against the base's word: the scales of row and column, less the log of the base's
magnitude. It picks the table that the word's symbol is coded with, and how many bits of the difference lie below the symbol.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numba import types
from numba.types import int64, uint64

from modelcodec.kernels.class_rans import SUMS, Classes
from modelcodec.kernels.frequencies import flat, require
from modelcodec.kernels.jit import inlined, kernel, piece
from modelcodec.kernels.memory import address_of, load_u8, load_u16, load_u32, load_u64, store_u8, store_u16, store_u32, store_u64
from modelcodec.kernels.scale_classes import PITCH

__all__ = ["Fault", "Scales", "Split", "count", "join", "level_shifts", "levels_of", "split", "with_levels"]

Array = np.ndarray[Any, Any]

STEPS = 4
"""Levels in an octave."""
LEVEL = 100
"""The level of a change as large as the word; at level 0 it is 2^25 times smaller."""
HIGHEST = LEVEL + 6 * STEPS
"""From here on the base's word says nothing but its sign: a magnitude 6 octaves below the scale stands for it."""
OFFSET = 128
"""What is taken off scales, so that none is negative."""
MOST_MANTISSA_BITS = 52
"""Those of float64; the low bits of a word and those that share their first byte are loaded as 64."""
REACH = 250
"""Differences of symbols are from -250 to 249, without and with the base's sign flipped."""
EQUAL, ZERO, FAR = 4 * REACH, 4 * REACH + 1, 4 * REACH + 2
"""Symbols of words that equal the base's, that are zero, and that stand as they are."""


class Fault(IntEnum):
    """What `join` found."""

    NONE = 0
    SYMBOL = 1
    RANGE = 2
    LOW = 3
    WORDS = 4


_SYMBOL, _RANGE, _LOW, _WORDS = int(Fault.SYMBOL), int(Fault.RANGE), int(Fault.LOW), int(Fault.WORDS)


def level_shifts(mantissa_bits: int) -> Array:
    """Bits of a difference below its symbol, by level (u1[127]), for floats with so many bits of mantissa."""
    octaves = (np.arange(SUMS) - LEVEL) // STEPS
    return np.clip(mantissa_bits + octaves - 1, 0, max(mantissa_bits - 3, 0)).astype(np.uint8)


def low_bound(n: int, mantissa_bits: int) -> int:
    """Room for the low bits of n words, and what is stored behind them to be overwritten."""
    return (n * max(mantissa_bits - 3, 0) + 7) // 8 + 8


@dataclass(frozen=True, slots=True)
class Scales:
    """How large changes are in the words of a group: scales of rows and columns (u1, below 64) in quarters of an octave, and their `offset`.

    The caller has proved that no sum of them, less 128, is a magnitude that words of `width` bytes with `mantissa_bits`, 2 or more, do not have.
    """

    rows: Array
    columns: Array
    offset: int
    mantissa_bits: int

    def holds(self, first: int, n: int) -> bool:
        """Whether n words from word `first` of the group on lie in its rows."""
        return first >= 0 and first + n <= self.rows.size * self.columns.size


@dataclass(frozen=True)
class _Levels(Classes):
    """Classes whose sums of scales are given, word by word, and whose tables are another one's."""

    known: Classes

    @property
    def decoding_entries(self) -> Array:
        return self.known.decoding_entries

    @property
    def coding_entries(self) -> Array:
        return self.known.coding_entries


def with_levels(classes: Classes, levels: Array) -> Classes:
    """These classes for words whose levels (u1, below 127) stand in the place of sums of scales."""
    return _Levels(np.zeros(1, np.uint8), levels, classes.class_of, classes.tables, classes)


@inlined
def _load(words, width, i):
    if width == 1:
        return load_u8(words + i)
    if width == 2:
        return load_u16(words + 2 * i)
    if width == 4:
        return load_u32(words + 4 * i)
    return int64(load_u64(words + 8 * i))


@inlined
def _store(words, width, i, word):
    if width == 1:
        store_u8(words + i, word)
    elif width == 2:
        store_u16(words + 2 * i, word)
    elif width == 4:
        store_u32(words + 4 * i, word)
    else:
        store_u64(words + 8 * i, uint64(word))


@piece(int64(int64))
def _magnitude_mask(width):
    """All bits of a word but the sign. With the complement, bits above the word are of no account: they are not stored."""
    return int64(uint64(0xFFFFFFFFFFFFFFFF) >> uint64(65 - 8 * width))


@piece(types.UniTuple(int64, 2)(int64, int64, int64))
def _foreseen(scale, magnitude, mantissa):
    """The level of a word, and the magnitude that its difference is from."""
    level = scale - (magnitude >> mantissa - 2) + LEVEL
    if level >= HIGHEST:
        return HIGHEST, scale - (HIGHEST - LEVEL) << mantissa - 2
    return max(level, 0), magnitude


@piece(types.UniTuple(int64, 3)(int64, int64, int64, int64, int64, int64))
def _symbol(x, b, scale, mantissa, mask, shifts):
    """The level, the symbol and the difference of a word."""
    level, reference = _foreseen(scale, b & mask, mantissa)
    shift = load_u8(shifts + level)
    difference = (x & mask) - reference
    cell = difference >> shift
    flip = (x ^ b) & ~mask != 0
    if x == b and (cell or shift):
        return level, EQUAL, difference
    if -REACH <= cell < REACH:
        return level, cell + (3 * REACH if flip else REACH), difference
    return level, ZERO if x == 0 else FAR, difference


@kernel
def _count(x, b, width, n, rows, columns, n_rows, n_columns, offset, mantissa, shifts, sample, counts):
    mask = _magnitude_mask(width)
    counted = 0
    for r in range(n_rows):
        first = r * n_columns
        m = min(n_columns, n - first)
        row = load_u8(rows + r) + offset
        for begin in range(r % sample * 64, m, 64 * sample):
            end = min(begin + 64, m)
            counted += end - begin
            for j in range(begin, end):
                x_j, b_j = _load(x, width, first + j), _load(b, width, first + j)
                level, symbol, _ = _symbol(x_j, b_j, row + load_u8(columns + j), mantissa, mask, shifts)
                counter = counts + 4 * (PITCH * level + symbol)
                store_u32(counter, load_u32(counter) + 1)
    return counted


@kernel
def _split(x, b, width, first, n, rows, columns, n_columns, offset, mantissa, shifts, levels, symbols, low, far):
    """Returns bits of `low`, words of `far`."""
    mask = _magnitude_mask(width)
    position, n_far, i = int64(0), int64(0), int64(0)
    store_u64(low, uint64(0))
    row, column = first // n_columns, first % n_columns
    while i < n:
        scale = load_u8(rows + row) + offset
        for j in range(column, min(n_columns, column + n - i)):
            word = _load(x, width, i)
            level, symbol, difference = _symbol(word, _load(b, width, i), scale + load_u8(columns + j), mantissa, mask, shifts)
            store_u8(levels + i, level)
            store_u16(symbols + 2 * i, symbol)
            if symbol < EQUAL:
                shift = load_u8(shifts + level)
                at = low + (position >> 3)
                bits = uint64(difference & (int64(1) << shift) - 1) << uint64(position & 7)
                store_u64(at, uint64(load_u8(at)) | bits)
                position += shift
            elif symbol == FAR:
                _store(far, width, n_far, word)
                n_far += 1
            i += 1
        row += 1
        column = int64(0)
    return position, n_far


@kernel
def _levels_of(b, width, first, n, rows, columns, n_columns, offset, mantissa, levels):
    mask = _magnitude_mask(width)
    i = int64(0)
    row, column = first // n_columns, first % n_columns
    while i < n:
        scale = load_u8(rows + row) + offset
        for j in range(column, min(n_columns, column + n - i)):
            level, _ = _foreseen(scale + load_u8(columns + j), _load(b, width, i) & mask, mantissa)
            store_u8(levels + i, level)
            i += 1
        row += 1
        column = int64(0)


@piece(uint64(int64, int64))
def _tail(address, end):
    """Up to 8 bytes before an end, as a number."""
    number = uint64(0)
    for k in range(min(end - address, 8)):
        number |= uint64(load_u8(address + k)) << uint64(8 * k)
    return number


def _joining(width):
    """`_join` for words of one width, which spares each word the question."""
    mask = (1 << 8 * width - 1) - 1

    @piece(int64(*(int64,) * 16))
    def join(symbols, levels, low, n_low, far, n_far, b, first, n, rows, columns, n_columns, offset, mantissa, shifts, out):
        position, taken, end = int64(0), int64(0), low + n_low
        for i in range(n):
            symbol, word = load_u16(symbols + 2 * i), _load(b, width, i)
            if symbol < EQUAL:
                level, reference = load_u8(levels + i), word & mask
                if level == HIGHEST:
                    scale = load_u8(rows + (first + i) // n_columns) + load_u8(columns + (first + i) % n_columns) + offset
                    reference = scale - (HIGHEST - LEVEL) << mantissa - 2
                shift = load_u8(shifts + level)
                at = low + (position >> 3)
                bits = load_u64(at) if at + 8 <= end else _tail(at, end)
                bits = bits >> uint64(position & 7) & (uint64(1) << uint64(shift)) - uint64(1)
                position += shift
                flip = symbol >= 2 * REACH
                magnitude = reference + ((symbol - (3 * REACH if flip else REACH)) << shift | int64(bits))
                if magnitude < 0 or magnitude > mask:
                    return _RANGE
                word = magnitude | (word ^ (~mask if flip else 0)) & ~mask
            elif symbol == ZERO:
                word = int64(0)
            elif symbol == FAR:
                if taken == n_far:
                    return _WORDS
                word = _load(far, width, taken)
                taken += 1
            elif symbol != EQUAL:
                return _SYMBOL
            _store(out, width, i, word)
        if (position + 7) >> 3 != n_low or (position & 7 and load_u8(end - 1) >> (position & 7)):
            return _LOW
        return _WORDS if taken != n_far else 0

    return join


_join_u1, _join_u2, _join_u4, _join_u8 = map(_joining, (1, 2, 4, 8))


@kernel
def _join(symbols, levels, low, n_low, far, n_far, b, width, first, n, rows, columns, n_columns, offset, mantissa, shifts, out):
    """Untrusted: symbols, low, far, b. Returns a fault."""
    if width == 1:
        return _join_u1(symbols, levels, low, n_low, far, n_far, b, first, n, rows, columns, n_columns, offset, mantissa, shifts, out)
    if width == 2:
        return _join_u2(symbols, levels, low, n_low, far, n_far, b, first, n, rows, columns, n_columns, offset, mantissa, shifts, out)
    if width == 4:
        return _join_u4(symbols, levels, low, n_low, far, n_far, b, first, n, rows, columns, n_columns, offset, mantissa, shifts, out)
    return _join_u8(symbols, levels, low, n_low, far, n_far, b, first, n, rows, columns, n_columns, offset, mantissa, shifts, out)


# The kernels as the stage calls them


def _address(words: Array) -> int:
    return address_of(flat(words, (1, 2, 4, 8)))


def _place(scales: Scales, first: int) -> tuple[int, int, int, int, int]:
    return address_of(flat(scales.rows, (1,))), address_of(flat(scales.columns, (1,))), scales.columns.size, scales.offset - OFFSET, scales.mantissa_bits


def _require_fit(x: Array, b: Array, scales: Scales, first: int) -> None:
    require(x.size == b.size and x.itemsize == b.itemsize, "words and base differ in number or width")
    require(2 <= scales.mantissa_bits <= min(8 * x.itemsize - 2, MOST_MANTISSA_BITS), "no such mantissa")
    require(scales.holds(first, x.size), "words lie past the last row")


@dataclass(frozen=True, slots=True)
class Split:
    """What words are coded as: levels (u1) and symbols (u2) of all, low bits (u1), words that stand as they are."""

    levels: Array
    symbols: Array
    low: Array
    far: Array


def count(x: Array, b: Array, scales: Scales, sample: int) -> tuple[Array, int]:
    """How often each symbol occurs at each level (u4[127, PITCH]) in the words x of a group, given the base's b, and how many words that are.

    sample: blocks of 64 words in a row that are counted: one out of so many, another one in each row.
    """
    _require_fit(x, b, scales, 0)
    counts = np.zeros((SUMS, PITCH), np.uint32)
    rows, columns, n_columns, offset, mantissa = _place(scales, 0)
    n_rows, shifts = -(-x.size // n_columns), level_shifts(mantissa)
    counted = _count(
        _address(x), _address(b), x.itemsize, x.size, rows, columns, n_rows, n_columns, offset, mantissa, address_of(shifts), sample, address_of(counts)
    )
    return counts, counted


def split(x: Array, b: Array, scales: Scales, first: int) -> Split:
    """The words x, from word `first` of the group on, given the base's b."""
    _require_fit(x, b, scales, first)
    levels, symbols, far = np.empty(x.size, np.uint8), np.empty(x.size, np.uint16), np.empty_like(x)
    low, shifts = np.empty(low_bound(x.size, scales.mantissa_bits), np.uint8), level_shifts(scales.mantissa_bits)
    rows, columns, n_columns, offset, mantissa = _place(scales, first)
    n_bits, n_far = _split(
        _address(x), _address(b), x.itemsize, first, x.size, rows, columns, n_columns, offset, mantissa, address_of(shifts),
        address_of(levels), address_of(symbols), address_of(low), address_of(far),
    )  # fmt: skip
    return Split(levels, symbols, low[: (n_bits + 7) // 8], far[:n_far])


def levels_of(b: Array, scales: Scales, first: int) -> Array:
    """The levels (u1) of the words that stand in the place of the base's b."""
    _require_fit(b, b, scales, first)
    levels = np.empty(b.size, np.uint8)
    _levels_of(_address(b), b.itemsize, first, b.size, *_place(scales, first), address_of(levels))
    return levels


def join(symbols: Array, levels: Array, low: Array, far: Array, b: Array, scales: Scales, first: int, out: Array) -> Fault:
    """Put words together in `out`. Symbols (u2), low (u1), far and b are untrusted; after a fault, what `out` holds is unspecified.

    levels: what `levels_of` gives for b.
    """
    _require_fit(out, b, scales, first)
    require(flat(symbols, (2,)).size == flat(levels, (1,)).size == out.size and far.itemsize == out.itemsize, "symbols or words do not fit out")
    require(out.flags.writeable, "out is read-only")
    rows, columns, n_columns, offset, mantissa = _place(scales, first)
    shifts = level_shifts(mantissa)
    return Fault(
        _join(
            _address(symbols), _address(levels), address_of(flat(low, (1,))), low.size, _address(far), far.size, _address(b), out.itemsize,
            first, out.size, rows, columns, n_columns, offset, mantissa, address_of(shifts), _address(out),
        )
    )  # fmt: skip
