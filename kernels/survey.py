"""A first look at the words of a float tensor: one pass over a sample, for the planner."""

from __future__ import annotations

from numba import int64, uint64

from modelcodec.kernels.frequencies import LOG2
from modelcodec.kernels.jit import kernel, piece

ZEROS, LOW = 0, 1
FOUND = 2
"""Numbers that `survey` finds: zero words, the or of all words' bits."""


@kernel
def survey(x, step, low_bits, counts, found):
    """Look at every step-th word of x (u2, u4 or u8): counts (i8) of its symbol above `low_bits` of the top 16 bits, and `found` (u8[2])."""
    shift = uint64(8 * x.itemsize - 16)
    zeros, every = uint64(0), uint64(0)
    for i in range(0, x.size, step):
        word = uint64(x[i])
        zeros += word == 0
        every |= word
        counts[(int64(word >> shift) & 0x7FFF) >> low_bits] += 1
    found[ZEROS], found[LOW] = zeros, every


@piece(int64(int64))
def _log2(v):
    """log2 of v >= 1 in 2^-16 bit, rounded down."""
    shift = 0
    while v > 4096:
        v >>= 1
        shift += 1
    return LOG2[v] + (int64(shift) << 16)


@kernel
def entropy_bits(counts, coarser):
    """Bits of symbols with these counts (i8), `coarser` bits coarser, at order 0, rounded up; and how many symbols there are."""
    total, cost, symbols = int64(0), int64(0), int64(0)
    group = 1 << coarser
    for first in range(0, counts.size, group):
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
