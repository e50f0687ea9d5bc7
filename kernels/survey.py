"""A first look at the words of a float tensor: passes over samples, for the planner."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, types, uint64

from modelcodec.kernels.frequencies import LOG2, flat, require
from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import address_of, fill, load_u8, load_u16, load_u32, load_u64, store_u8, store_u32

Array = np.ndarray[Any, Any]

ZEROS, LOW = 0, 1
FOUND = 2
"""Numbers that `survey` finds: zero words, the or of all words' bits."""


@piece(types.UniTuple(uint64, 2)(*(int64,) * 5, int64[::1]))
def look_over(x, n, width, step, low_bits, counts):
    """Look at every step-th of n words: counts of the symbol above `low_bits` of their top 16 bits. Returns zero words, and the or of all words' bits."""
    zeros, every = uint64(0), uint64(0)
    if width == 2:
        for i in range(0, n, step):
            word = load_u16(x + 2 * i)
            zeros += uint64(word == 0)
            every |= uint64(word)
            counts[(word & 0x7FFF) >> low_bits] += 1
    elif width == 4:
        for i in range(0, n, step):
            word = load_u32(x + 4 * i)
            zeros += uint64(word == 0)
            every |= uint64(word)
            counts[(word >> 16 & 0x7FFF) >> low_bits] += 1
    else:
        for i in range(0, n, step):
            long = load_u64(x + 8 * i)
            zeros += uint64(long == 0)
            every |= long
            counts[(int64(long >> uint64(48)) & 0x7FFF) >> low_bits] += 1
    return zeros, every


@kernel
def _survey(x, n, width, step, low_bits, counts, found):
    found[ZEROS], found[LOW] = look_over(x, n, width, step, low_bits, counts)


def survey(x: Array, step: int, low_bits: int, counts: Array, found: Array) -> None:
    """Look at every step-th word of x (u2, u4 or u8): counts (i8) of its symbol above `low_bits` of the top 16 bits, and `found` (u8[2])."""
    require(counts.size >= 1 << (15 - low_bits), "too few counts for these symbols")
    _survey(address_of(flat(x, (2, 4, 8))), x.size, x.itemsize, step, low_bits, counts, found)


@piece(int64(int64))
def _log2(v):
    """log2 of v >= 1 in 2^-16 bit, rounded down."""
    shift = 0
    while v > 4096:
        v >>= 1
        shift += 1
    return LOG2[v] + (int64(shift) << 16)


@piece(types.UniTuple(int64, 2)(int64[::1], int64, int64))
def symbol_bits(counts, n_counts, coarser):
    """Bits of symbols with the first so many counts, `coarser` bits coarser, at order 0, rounded up; and how many symbols there are."""
    total, cost, symbols = int64(0), int64(0), int64(0)
    group = 1 << coarser
    for first in range(0, n_counts, group):
        c = int64(0)
        for i in range(group):
            c += counts[first + i]
        if c:
            total += c
            symbols += 1
            cost -= c * _log2(c)
    if total:
        cost += total * _log2(total)
    return (cost + 65535) >> 16, symbols


@kernel
def entropy_bits(counts, coarser):
    """Bits of symbols with these counts (i8), `coarser` bits coarser, at order 0, rounded up; and how many symbols there are."""
    return symbol_bits(counts, counts.size, coarser)


_FIRST_WORDS = 4096
_SLOTS = 1024
DIFFERENT_BYTES = 9 * _SLOTS
"""Memory that `has_many` needs."""


@piece(types.boolean(*(int64,) * 5))
def has_many(x, n, width, most, memory):
    """Whether n words of 2 or 4 bytes are of more than `most` (<= 256) kinds. What the first ones do not show may be missed."""
    used, values, different = memory, memory + _SLOTS, 0
    fill(used, 0, _SLOTS)
    for i in range(min(n, _FIRST_WORDS)):
        value = load_u16(x + 2 * i) if width == 2 else load_u32(x + 4 * i)
        slot = int64(uint64(value) * uint64(0x9E3779B97F4A7C15) >> uint64(54))
        while load_u8(used + slot) and load_u32(values + 8 * slot) != value:
            slot = (slot + 1) & (_SLOTS - 1)
        if not load_u8(used + slot):
            if different == most:
                return True
            store_u8(used + slot, 1)
            store_u32(values + 8 * slot, value)
            different += 1
    return False


_BYTES_LOOKED_AT = 2048


@piece(types.boolean(*(int64,) * 3, int64[::1]))
def low_halves_are_random(x, n, words, counts):
    """Whether the low two bytes of n words of 4 bytes take all but all of their 8 bits each, by some of what a sample of `words` shows. counts: 512."""
    step = n // words | 1
    sampled = -(-n // step)
    step *= max(sampled // _BYTES_LOOKED_AT, 1)
    counts[:512] = 0
    for i in range(0, n, step):
        word = load_u32(x + 4 * i)
        counts[word & 255] += 1
        counts[256 + (word >> 8 & 255)] += 1
    looked_at = -(-n // step)
    for k in range(2):
        bits, different = symbol_bits(counts[256 * k : 256 * k + 256], 256, 0)
        if 256 * (bits * sampled // looked_at + 8 * different) < 253 * 8 * sampled:
            return False
    return True


@kernel
def _low_halves_are_random(x, n, words, counts):
    return low_halves_are_random(x, n, words, counts)


def random_below(x: Array, words: int) -> bool:
    """Whether the low halves of x (u4) are random for sure, by some of what a sample of `words` shows."""
    return bool(_low_halves_are_random(address_of(flat(x, (4,))), x.size, words, np.empty(512, np.int64)))


_PIECES, _PIECE_WORDS = 64, 1 << 13
_PAIRS = 1 << 14
REPEATS_BYTES = 4 * _PAIRS


@piece(types.boolean(*(int64,) * 5, int64[::1]))
def is_without_repeats(x, n, width, columns, memory, counts):
    """Whether what zstd could find in n words of 2 or 4 bytes is next to nothing: hardly any 4 bytes come again in pieces of some rows, and the low byte of
    their top 16 bits takes nearly 8 bits. counts: 256. memory: REPEATS_BYTES.
    """
    if not 0 < columns <= n // _PIECES:
        columns = n // 2
    rows = n // columns
    step = max(rows // _PIECES, 1)
    taken = min(columns, _PIECE_WORDS // min(-(-rows // step), _PIECES))
    fill(memory, 0, REPEATS_BYTES)
    counts[:256] = 0
    again, looked_at = 0, 0
    for row in range(0, rows, step):
        at = x + row * columns * width
        for i in range(taken - (width == 2)):
            four = load_u32(at + width * i)
            counts[load_u8(at + width * i + width - 2)] += 1
            slot = memory + 4 * int64(uint64(four) * uint64(0x9E3779B97F4A7C15) >> uint64(50))
            again += load_u32(slot) == four
            store_u32(slot, four)
            looked_at += 1
    bits, _ = symbol_bits(counts, 256, 0)
    return again * 40 < looked_at and bits * 20 > 19 * 8 * looked_at
