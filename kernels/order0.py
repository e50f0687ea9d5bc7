"""The bits of symbols at order 0 from their counts, in integers (see `modelcodec.entropy`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.types import int64

from modelcodec.kernels.frequencies import bit_length, require
from modelcodec.kernels.jit import kernel, piece

Array = np.ndarray[Any, Any]

FRACTION_BITS, INDEX_BITS = 16, 12


@piece(int64(int64, int64[::1]))
def _log2(v, fractions):
    """log2 of v >= 1, by the bits after the leading one, rounded down."""
    octave = bit_length(v) - 1
    index = v >> (octave - INDEX_BITS) if octave > INDEX_BITS else v << (INDEX_BITS - octave)
    return (octave << FRACTION_BITS) + fractions[index - (1 << INDEX_BITS)]


@kernel
def _order0_bits(counts, fractions):
    total, different, cost = int64(0), 0, int64(0)
    for i in range(counts.size):
        total += counts[i]
        different += counts[i] > 0
    if different < 2:
        return int64(0)
    whole = _log2(total, fractions)
    for i in range(counts.size):
        if counts[i] > 0:
            cost += counts[i] * (whole - _log2(counts[i], fractions))
    return (cost + (1 << FRACTION_BITS) - 1) >> FRACTION_BITS


def order0_bits(counts: Array, fractions: Array) -> int:
    """Bits that an ideal order-0 code takes for symbols with these counts (i8), rounded up. fractions: i8[4096], log2(1 + k / 4096) in 2^-16 bit."""
    require(fractions.size == 1 << INDEX_BITS, "not as many fractions as there are indices")
    return int(_order0_bits(counts, fractions))
