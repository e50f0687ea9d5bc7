"""Words of split_float (docs/stages.md) from symbols that lie in memory, their rest in bit planes and their low part, 64 words at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.types import int64

from modelcodec.kernels import arms
from modelcodec.kernels.frequencies import SPLIT2, SPLIT4, Status, flat, require
from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import address_of, fill, load_u8, load_u16, scratch, store_u16
from modelcodec.kernels.rans import join_block, require_rest
from modelcodec.kernels.rans_layout import BLOCK, CONSTANTS, HALVES, NUMBERS, ROUNDS_AT_ONCE
from modelcodec.kernels.rans_words import Planes, block_places, join_u32, joined_words, plane_places
from modelcodec.kernels.simd import element, emit, load, loop, offset, store

Array = np.ndarray[Any, Any]

_OK, _SYMBOL, _PADDING = int(Status.OK), int(Status.SYMBOL), int(Status.PADDING)
_EVERY = CONSTANTS
"""16 u16, between them all bits that any symbol has"""
_WORK_BYTES = HALVES + 128 * ROUNDS_AT_ONCE


def _join_loop(width: int) -> Any:
    @emit(types.void(*(int64,) * 4, Planes, *(int64,) * 3))
    def rounds(builder: Any, symbols: Any, k: Any, count: Any, to: Any, planes: Any, s: Any, r: Any, work: Any) -> None:
        """Words of 16 bits from `count` times 64 symbols of `width` bytes, the k-th 64 first; adds the symbols' bits to those in memory."""

        def body(current: Any) -> Any:
            every, i = current
            source, at = element(builder, symbols, 64 * width, builder.add(k, i)), element(builder, to, 128, i)
            found = [load(builder, offset(builder, source, 16 * width * part), 8 * width, 16) for part in range(4)]
            found = [x.widen(16) for x in found] if width == 1 else found
            for part, word in enumerate(joined_words(builder, found, block_places(builder, planes, builder.add(k, i)), s, r)):
                store(offset(builder, at, 32 * part), word)
            return every | found[0] | found[1] | found[2] | found[3], builder.add(i, ir.Constant(ir.IntType(64), 1))

        state = [load(builder, offset(builder, work, _EVERY), 16, 16), ir.Constant(ir.IntType(64), 0)]
        every, _ = loop(builder, state, lambda current: builder.icmp_signed("<", current[1], count), body)
        store(offset(builder, work, _EVERY), every)

    return rounds


_join_bytes, _join_halves = _join_loop(1), _join_loop(2)
_VECTORS = arms.ARM != "scalar"


@piece(int64(*(int64,) * 9))
def join_words(kind, s, symbols, width, out, rest, low, n, work):
    """n words (SPLIT2 or SPLIT4) into `out` from symbols of `width` bytes and the other parts, all untrusted. Returns a status.

    The caller has proved: rest and low have the sizes that n and s imply, work has the bytes of rans_layout up to and with group A's HALVES.
    """
    fill(work + _EVERY, 0, 32)
    planes = plane_places(rest, n, s + 1, work + NUMBERS)
    whole = n >> 6 if _VECTORS else 0
    for first in range(0, whole, ROUNDS_AT_ONCE):
        count = min(ROUNDS_AT_ONCE, whole - first)
        to = out + 128 * first if kind == SPLIT2 else work + HALVES
        if width == 1:
            _join_bytes(symbols, first, count, to, planes, s, s + 1, work)
        else:
            _join_halves(symbols, first, count, to, planes, s, s + 1, work)
        if kind == SPLIT4:
            for i in range(first, first + count):
                join_u32(out + 256 * i, to + 128 * (i - first), low + 128 * i)
    every = int64(0)
    for i in range(16):
        every |= load_u16(work + _EVERY + 2 * i)
    for first in range(64 * whole, n, 64):
        m = min(64, n - first)
        for i in range(m):
            symbol = load_u8(symbols + first + i) if width == 1 else load_u16(symbols + 2 * (first + i))
            every |= symbol
            store_u16(work + BLOCK + 2 * i, symbol)
        join_block(kind, s, out, rest, low, n, first, m, work)
    if every >> (15 - s):
        return _SYMBOL
    for i in range(n & 63, ((n & 63) + 7) & ~7):  # the last block's numbers are still there, those past the end too
        if n & 7 and load_u16(work + NUMBERS + 2 * i):
            return _PADDING
    return _OK


@kernel
def _join(kind, s, symbols, width, out, rest, low, n, work):
    return join_words(kind, s, symbols, width, out, rest, low, n, work)


def join(symbols: Array, rest: Array, low: Array | None, s: int, out: Array) -> Status:
    """Join symbols (u1 or u2, untrusted) with their rest (u1, bit planes) and low part (u2, for `out` of u4 only) to split_float's words, `out` (u2 or u4)."""
    flat(symbols, (1, 2)), flat(out, (2, 4))
    require(symbols.size == out.size < 1 << 31 and out.flags.writeable, "symbols and out differ in size, or out is read-only")
    kind = require_rest(out, s, rest, low)
    low_at = 0 if low is None else address_of(low)
    work = scratch(_WORK_BYTES)
    return Status(_join(kind, s, address_of(symbols), symbols.dtype.itemsize, address_of(out), address_of(rest), low_at, out.size, work))
