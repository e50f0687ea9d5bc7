"""Entropy in integers, for planning: so that every machine decides alike. Logarithms are in units of 2^-16 bit."""

from __future__ import annotations

from functools import cache

import numpy as np

from modelcodec.kernels import order0
from modelcodec.kernels.order0 import FRACTION_BITS, INDEX_BITS
from modelcodec.types import Array

__all__ = ["FRACTION_BITS", "log2_fixed", "order0_bits"]


@cache
def _fractions() -> Array:
    """log2(1 + k / 4096) in 2^-16 bit, by repeated squaring in integers."""
    mantissa = (np.arange(1 << INDEX_BITS, dtype=np.uint64) + np.uint64(1 << INDEX_BITS)) << np.uint64(31 - INDEX_BITS)
    result = np.zeros(mantissa.size, np.int64)
    for _ in range(FRACTION_BITS):
        mantissa = (mantissa * mantissa) >> np.uint64(31)
        over = mantissa >> np.uint64(32)
        result = (result << 1) | over.astype(np.int64)
        mantissa >>= over
    return result


def log2_fixed(values: Array) -> Array:
    """log2 of positive integers below 2^53, in 2^-16 bit, rounded down (i8)."""
    v = np.asarray(values, np.int64)
    exponent = np.frexp(v.astype(np.float64))[1].astype(np.int64) - 1  # exact: the conversion is
    index = np.where(exponent >= INDEX_BITS, v >> np.maximum(exponent - INDEX_BITS, 0), v << np.maximum(INDEX_BITS - exponent, 0))
    result: Array = (exponent << FRACTION_BITS) + _fractions()[index - (1 << INDEX_BITS)]
    return result


def order0_bits(counts: Array) -> int:
    """Bits that an ideal order-0 code takes for symbols with these counts, rounded up."""
    return order0.order0_bits(np.ascontiguousarray(counts, np.int64).reshape(-1), _fractions())
