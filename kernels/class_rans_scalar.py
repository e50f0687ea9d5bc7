"""The arm without vector code: it leaves every round to the scalar code of `class_rans.py`."""

from __future__ import annotations

from numba import types
from numba.types import int64

from modelcodec.kernels.jit import piece
from modelcodec.kernels.memory import load_u8, store_u8


@piece(types.void(*(int64,) * 5))
def map_row(column_scales, m, scale, class_of, to):
    """Classes of m neighbours in a row of this scale."""
    for j in range(m):
        store_u8(to + j, load_u8(class_of + scale + load_u8(column_scales + j)))


@piece(types.UniTuple(int64, 3)(*(int64,) * 15))
def unpack_rounds(kind, s, payload, payload_end, middle, out, rest, low, n, n_a, bits, groups, entries, classes, work):
    """Rounds that were decoded in each group, and the places after the units of A and B that were taken."""
    return 0, payload, middle


@piece(types.UniTuple(int64, 3)(*(int64,) * 15))
def pack_rounds(kind, s, words, rest, low, n, n_a, whole, bits, groups, entries, classes, a, b, work):
    """Rounds that are left to code in each group, and the places after the units of A and B that were written."""
    return whole, a, b
