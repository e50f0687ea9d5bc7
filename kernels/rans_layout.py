"""Where the kernels of `rans` keep what they need during one call: offsets, in bytes, into the call's scratch memory.

Every part is written before it is read, except that vector code may load, and then not use, what lies after a table's last entry. Tables are indexed by *rank*:
symbols in their order, the escape last.
"""

from __future__ import annotations

from numba import types
from numba.types import int64

from modelcodec.kernels.jit import piece

FRAME_NUMBERS = 19
Frame = types.UniTuple(int64, FRAME_NUMBERS)
"""kind, s, payload, n_payload, out, rest, low, n, bits, lanes_log2, groups, units_a, units_b, n_escapes, symbols, frequencies, n_symbols, escape, work"""

STATES = 0
"""u32, 64 of group A, 64 of group B"""
BLOCK = STATES + 512
"""u16, the symbols of 64 words"""
NUMBERS = BLOCK + 128
"""u16, the rest of 64 words; also where vector code reads and writes planes that do not exist"""
CONSTANTS = NUMBERS + 128
"""vectors that a loop reads again and again"""
BY_SLOT = CONSTANTS + 1024
"""u8 by slot, for tables of 8 bits: 256 frequencies, then 256 distances from the symbol's first slot"""
FREQUENCY = BY_SLOT + 512
"""u16 by rank"""
START = FREQUENCY + 512
"""u16 by rank, the first slot"""
VALUE = START + 512
"""u16 by rank, the symbol; 0 for the escape"""
SHIFTED = VALUE + 512
"""u16 by rank, the symbol where it stands in a split word"""
RECIPROCAL = SHIFTED + 512
"""u64 by rank, multiplier * 64 + shift"""
DIVISOR = RECIPROCAL + 2048
"""u16 by rank, frequency + 4096 * shift (this one and the next three for vector code that packs)"""
BIAS = DIVISOR + 512
"""u16 by rank"""
MULTIPLIER_LOW = BIAS + 512
MULTIPLIER_HIGH = MULTIPLIER_LOW + 512
NEAR_RANK = MULTIPLIER_HIGH + 512
"""u8 by symbol, counted from the first one, up to 1023"""
RANK = NEAR_RANK + 1024
"""u8 by slot (unpacking), u16 by symbol (packing; the number of symbols stands for an escape)"""
HALVES = RANK + 2 * 65536
"""u16, the top 16 bits of ROUNDS_AT_ONCE * 64 words of group A, then of group B; or what stands for these words in between"""
ROUNDS_AT_ONCE = 64
ENTRIES = HALVES + 2 * 128 * ROUNDS_AT_ONCE
"""for arms that read tables entry by entry: u32 by slot (unpacking), u64 by symbol, counted from the first one (packing)"""
NOTES = ENTRIES + 4 * 4096
"""u64, which of 64 words are escapes; what follows them depends on the number of words"""


@piece(int64(int64, int64))
def group_a(n, groups):
    """Words of group A."""
    return n if groups == 1 else min(n, 64 * ((((n + 63) >> 6) + 1) >> 1))
