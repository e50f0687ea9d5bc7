"""Logarithms, powers and the logistic function of base 2 in integers of 64 bits, from tables: the same on every machine (docs/stages.md: grid)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import int64, uint64

from modelcodec.kernels.jit import inlined
from modelcodec.kernels.memory import leading_zeros

_TAIL, _PER_OCTAVE = 20, 64
LOG2 = np.array([round(256 * math.log2(1 + i / 256)) for i in range(256)], np.int64)
"""256 * log2(1 + i / 256)"""
EXP2 = np.array([round(65536 * 2 ** (i / 256)) for i in range(256)], np.int64)
"""2^16 * 2^(i / 256)"""
LOGISTIC = np.array([round(2**30 / (1 + 2.0 ** (_TAIL - i / _PER_OCTAVE))) for i in range(2 * _TAIL * _PER_OCTAVE + 2)], np.int64)
"""2^30 / (1 + 2^-t) for t from -20 in steps of 1/64"""

ONE = 1 << 30
"""A certain event, as `logistic` counts."""
LEAST = 24
"""Lowest probability of either outcome of a decision, in 2^-16."""
MODERATE = 2047
"""Largest logit, in 1/256, that `squash` takes: odds of 1 to 255."""

_FIRST = _TAIL << 10
_LOG2_OF_TOP = np.concatenate([np.zeros(256, np.int64), LOG2 + 63 * 256])
"""256 * log2(x) for x from 2^63 on, by the 9 highest bits."""
_LINES = np.stack([LOGISTIC[:-1], np.diff(LOGISTIC)], axis=1).reshape(-1)
"""Each entry of `LOGISTIC`, and how far it is from there to the next."""


def _logistic(t: Any) -> Any:
    """`logistic` of many t inside the table."""
    low = LOGISTIC[(t + _FIRST) >> 4]
    return low + (((LOGISTIC[((t + _FIRST) >> 4) + 1] - low) * (t & 15)) >> 4)


def _stretched() -> Any:
    p = np.clip(np.arange((1 << 16) + 1), LEAST, (1 << 16) - LEAST)
    bits = np.stack([p, (1 << 16) - p]).astype(np.float64).view(np.int64)
    yes, no = (((bits >> 52) - 1023) << 8) + LOG2[(bits >> 44) & 255]
    return (yes - no).astype(np.int16)


_LOWEST, _HIGHEST = int(_logistic(-_FIRST)), int(_logistic(_FIRST - 1))
_SQUASHED = (_logistic(4 * np.arange(-MODERATE, MODERATE + 1)) >> 14).astype(np.uint16)
LOGITS = _stretched()
"""256 * log2(p / (1 - p)) for a probability p from 0 to 2^16, in 2^-16, which is `LEAST` at least and as far from certain at most (i2)."""


@inlined
def log2(x):
    """256 * log2(x), its fraction out of the table for the 8 bits after the leading one; x from 1 to 2^62."""
    zeros = leading_zeros(x)
    return _LOG2_OF_TOP[uint64(x << zeros) >> uint64(55)] - (zeros << 8)


@inlined
def exp2(x):
    """2^(x / 256), rounded down; x from 0 to 44 * 256."""
    return (EXP2[x & 255] << (x >> 8)) >> 16


@inlined
def logistic(t):
    """2^30 / (1 + 2^-t), t in 1/1024; between two entries of the table along a line."""
    place = uint64(t + _FIRST)
    if place < uint64(2 * _FIRST):  # a jump that is nearly always foreseen: what follows does not wait for it
        line = (place >> uint64(4)) * uint64(2)
        return _LINES[line] + ((_LINES[line + uint64(1)] * (t & 15)) >> 4)
    return int64(_LOWEST) if t < 0 else int64(_HIGHEST)


@inlined
def squash(logit):
    """The probability of a logit of at most `MODERATE` either way, in 2^-16: logistic(4 * logit) >> 14."""
    return int64(_SQUASHED[logit + MODERATE])
