"""Packing with 1, 2, 4 or 8 lanes, as short tensors have them: states stay in registers, everything else goes as it does with 64 lanes (see `rans_vector`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.types import int64

from modelcodec.kernels import memory
from modelcodec.kernels.jit import piece
from modelcodec.kernels.memory import load_u8
from modelcodec.kernels.rans_layout import CONSTANTS, ENTRIES
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
        total, top, table = builder.shl(_i64(1), bits), builder.sub(_i64(32), bits), offset(builder, work, ENTRIES)

        def eight(current: Sequence[Any]) -> Sequence[Any]:
            units, left, *x = current
            i = builder.sub(left, _i64(1))
            codes_here = element(builder, codes, 2 * _UNROLLED, i)
            for t in range(_UNROLLED - 1, -1, -1):
                code, lane = offset(builder, codes_here, 2 * t), t % lanes
                entry = memory.load(builder, element(builder, table, 8, unsigned(builder, code, 16)), _I64)
                memory.store(builder, code, builder.trunc(builder.lshr(entry, _i64(48)), _I16))
                f, bias, more = (builder.and_(builder.lshr(entry, _i64(32 + at)), _i64(mask)) for at, mask in ((0, 4095), (12, 8191), (25, 15)))
                full = builder.icmp_unsigned(">=", builder.lshr(x[lane], top), f)
                memory.store(builder, units, builder.trunc(x[lane], _I16))
                units = element(builder, units, 2, builder.zext(full, _I64))
                rest = builder.select(full, builder.lshr(x[lane], _i64(16)), x[lane])
                q = builder.lshr(builder.mul(rest, builder.and_(entry, _i64(0xFFFFFFFF))), builder.add(more, _i64(32)))
                x[lane] = builder.add(builder.add(rest, bias), builder.mul(q, builder.sub(total, f)))
            return [units, i, *x]

        first = [unsigned(builder, offset(builder, states, 4 * lane), 32) for lane in range(lanes)]
        blocks = builder.mul(count, _i64(64 // _UNROLLED))
        units, _, *last = loop(builder, [units, blocks, *first], lambda current: builder.icmp_signed(">", current[1], _i64(0)), eight)
        for lane, x in enumerate(last):
            memory.store(builder, offset(builder, states, 4 * lane), builder.trunc(x, _I32))
        return units

    return rounds


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


pack_few_lanes = coder(group_coder(_few_lanes))
"""As `pack_rounds` of an arm, for one group of 1 to 8 lanes, which take words in their order; a round is 64 words."""
