"""Logarithms, powers and the logistic function of base 2 in integers of 64 bits, from tables: the same on every machine (docs/stages.md: grid)."""

from __future__ import annotations

import math

import numpy as np

from modelcodec.kernels.jit import inlined

_TAIL, _PER_OCTAVE = 20, 64
LOG2 = np.array([round(256 * math.log2(1 + i / 256)) for i in range(256)], np.int64)
"""256 * log2(1 + i / 256)"""
EXP2 = np.array([round(65536 * 2 ** (i / 256)) for i in range(256)], np.int64)
"""2^16 * 2^(i / 256)"""
LOGISTIC = np.array([round(2**30 / (1 + 2.0 ** (_TAIL - i / _PER_OCTAVE))) for i in range(2 * _TAIL * _PER_OCTAVE + 2)], np.int64)
"""2^30 / (1 + 2^-t) for t from -20 in steps of 1/64"""

ONE = 1 << 30
"""A certain event, as `logistic` counts."""
_LAST = (_TAIL << 10) - 1


@inlined
def log2(x):
    """256 * log2(x), its fraction out of the table for the 8 bits after the leading one; x from 1 to 2^52."""
    bits = np.float64(x).view(np.int64)
    return (((bits >> 52) - 1023) << 8) + LOG2[(bits >> 44) & 255]


@inlined
def exp2(x):
    """2^(x / 256), rounded down; x from 0 to 44 * 256."""
    return (EXP2[x & 255] << (x >> 8)) >> 16


@inlined
def logistic(t):
    """2^30 / (1 + 2^-t), t in 1/1024; between two entries of the table along a line."""
    t = min(max(t, -_LAST - 1), _LAST) + _LAST + 1
    low = LOGISTIC[t >> 4]
    return low + (((LOGISTIC[(t >> 4) + 1] - low) * (t & 15)) >> 4)
