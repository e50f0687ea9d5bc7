"""The arm without vector code: it leaves every round to the scalar code of `rans.py`."""

from __future__ import annotations

from numba import types
from numba.types import int64

from modelcodec.kernels.jit import piece
from modelcodec.kernels.rans_layout import Frame


@piece(types.UniTuple(int64, 3)(*(int64,) * 15))
def unpack_rounds(kind, s, payload, payload_end, middle, out, rest, low, n, n_a, bits, groups, n_symbols, escape, work):
    """Rounds that were decoded in each group, and the places after the units of A and B that were taken."""
    return 0, payload, middle


@piece(types.UniTuple(int64, 5)(Frame, Frame))
def unpack_pair_rounds(first, second):
    """Rounds decoded in each group of two frames side by side, -1 where there is no code for these two, and the places after units A and B of each."""
    return -1, 0, 0, 0, 0


@piece(types.UniTuple(int64, 3)(*(int64,) * 15))
def pack_rounds(kind, s, words, rest, low, n, n_a, whole, bits, groups, n_symbols, escape, a, b, work):
    """Rounds that are left to code in each group, and the places after the units of A and B that were written; 0 where a word has no code."""
    return whole, a, b
