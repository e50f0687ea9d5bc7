"""Packing with 1, 2, 4 or 8 lanes, as short tensors have them: states stay in registers, everything else goes as it does with 64 lanes (see `rans_vector`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.types import int64, uint64

from modelcodec.kernels import memory
from modelcodec.kernels.frequencies import reciprocal
from modelcodec.kernels.jit import piece
from modelcodec.kernels.memory import load_u8, load_u16, store_u64
from modelcodec.kernels.rans_layout import CONSTANTS, ENTRIES, FREQUENCY, START, VALUE
from modelcodec.kernels.rans_vector import coder, group_coder
from modelcodec.kernels.simd import element, emit, loop, offset, unsigned

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_UNROLLED = 8
LANES_LOG2 = CONSTANTS
"""Where the caller of `pack_few_lanes` has put the number of lanes, in the scratch memory (u8)."""


def _i64(number: int) -> Any:
    return ir.Constant(_I64, number)


def _rounds(lanes: int) -> Any:
    @emit(int64(*(int64,) * 6))
    def rounds(builder: Any, units: Any, count: Any, codes: Any, bits: Any, states: Any, work: Any) -> Any:
        """`count` times 64 words, the last one first. Leaves in the place of each code 16 bits, the highest set for an escape."""
        table = offset(builder, work, ENTRIES)

        def eight(current: Sequence[Any]) -> Sequence[Any]:
            units, left, *x = current
            i = builder.sub(left, _i64(1))
            codes_here = element(builder, codes, 2 * _UNROLLED, i)
            for t in range(_UNROLLED - 1, -1, -1):
                code, lane = offset(builder, codes_here, 2 * t), t % lanes
                entry = element(builder, table, _ENTRY_BYTES, unsigned(builder, code, 16))
                shift, reach, multiplier, bias, less = (unsigned(builder, offset(builder, entry, at), n) for at, n in _FIELDS)
                memory.store(builder, code, builder.trunc(shift, _I16))
                full = builder.icmp_unsigned(">=", x[lane], reach)
                memory.store(builder, units, builder.trunc(x[lane], _I16))
                units = element(builder, units, 2, builder.zext(full, _I64))
                rest = builder.select(full, builder.lshr(x[lane], _i64(16)), x[lane])
                q = builder.lshr(builder.mul(rest, multiplier), builder.and_(shift, _i64(63)))
                x[lane] = builder.add(builder.add(rest, bias), builder.mul(q, less))
            return [units, i, *x]

        first = [unsigned(builder, offset(builder, states, 4 * lane), 32) for lane in range(lanes)]
        blocks = builder.mul(count, _i64(64 // _UNROLLED))
        units, _, *last = loop(builder, [units, blocks, *first], lambda current: builder.icmp_signed(">", current[1], _i64(0)), eight)
        for lane, x in enumerate(last):
            memory.store(builder, offset(builder, states, 4 * lane), builder.trunc(x, _I32))
        return units

    return rounds


_ENTRY_BYTES, _N_NEAR = 16, 1024
_FIELDS = ((0, 16), (4, 32), (8, 32), (12, 16), (14, 16))
"""Offset and bits of what an entry says: the shift after the product, in the highest bit whether it is an escape; the state from which on 16 bits go out; the
multiplier; what is added to a state; what is added for each time that its frequency goes into it.
"""


@piece(types.void(*(int64,) * 4))
def _entries(bits, n_symbols, escape, work):
    """Write ENTRIES by codes. A frequency of 1 gets one less than the quotient, which its bias mends."""
    first = load_u16(work + VALUE)
    for rank in range(n_symbols, -1, -1):
        f, bias, m, k = int64(0), int64(0), int64(0), int64(32)
        if rank < n_symbols + (escape > 0):
            f, bias = load_u16(work + FREQUENCY + 2 * rank), load_u16(work + START + 2 * rank)
            m, k, _ = reciprocal(f, bits)
            if f == 1:
                m, k, bias = int64(0xFFFFFFFF), int64(32), bias + (1 << bits) - 1
        low = uint64(k | (rank == n_symbols) << 15) | uint64(f) << uint64(64 - bits)
        high = uint64(m) | uint64(bias) << uint64(32) | uint64((1 << bits) - f) << uint64(48)
        from_code, to_code = int64(0), int64(_N_NEAR)
        if rank < n_symbols:
            from_code = load_u16(work + VALUE + 2 * rank) - first
            to_code = from_code + 1
        for code in range(from_code, to_code):
            store_u64(work + ENTRIES + _ENTRY_BYTES * code, low)
            store_u64(work + ENTRIES + _ENTRY_BYTES * code + 8, high)


_rounds_1, _rounds_2, _rounds_4, _rounds_8 = (_rounds(lanes) for lanes in (1, 2, 4, 8))


@piece(int64(*(int64,) * 6))
def _few_lanes(units, count, codes, bits, states, work):
    lanes_log2 = load_u8(work + LANES_LOG2)
    if lanes_log2 == 0:
        return _rounds_1(units, count, codes, bits, states, work)
    if lanes_log2 == 1:
        return _rounds_2(units, count, codes, bits, states, work)
    if lanes_log2 == 2:
        return _rounds_4(units, count, codes, bits, states, work)
    return _rounds_8(units, count, codes, bits, states, work)


pack_few_lanes = coder(group_coder(_few_lanes, _N_NEAR - 1), _entries, _N_NEAR)
"""As `pack_rounds` of an arm, for one group of 1 to 8 lanes, which take words in their order; a round is 64 words."""
