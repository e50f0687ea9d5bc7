"""Numbers of the format (docs/format.md, section 1) inside kernels."""

from __future__ import annotations

from numba import types
from numba.types import int64

from modelcodec.kernels.jit import piece
from modelcodec.kernels.memory import load_u8, store_u8


@piece(types.UniTuple(int64, 2)(*(int64,) * 4))
def varint(data, at, end, most):
    """A number of at most 35 bits in shortest form, not above `most`, in untrusted bytes `at` to `end`, and the place after it; -1 where there is none."""
    value, shift = int64(0), 0
    while at < end and shift < 35:
        byte = load_u8(data + at)
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (value, at) if value <= most and (byte > 0 or shift == 7) else (int64(-1), at)
    return int64(-1), at


@piece(int64(int64, int64))
def put_varint(to, value):
    """Write a number, 0 or more, to an address. Returns the place after it."""
    while value > 127:
        store_u8(to, value & 127 | 128)
        value >>= 7
        to += 1
    store_u8(to, value)
    return to + 1
