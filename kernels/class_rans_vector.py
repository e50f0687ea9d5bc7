"""The arm of `class_rans` for any processor: as `rans_vector`, except that every class has its own table, which `class_rans` has made.

A word's code says its class before a step: the first slot of its table (unpacking); the first symbol of its table, plus the symbol (packing). After it the code
is the symbol (unpacking), or has its highest bit set for an escape (packing). `decoder` and `coder` make an arm out of such steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.types import int64

from modelcodec.kernels import memory
from modelcodec.kernels.class_rans_scalar import map_row
from modelcodec.kernels.jit import piece
from modelcodec.kernels.rans_layout import STATES
from modelcodec.kernels.rans_vector import BYTES_A_ROUND, Step, codes_of_eight, group_coder, group_decoder, loop_over, ones, state_loop_backwards
from modelcodec.kernels.simd import element, emit, load, loop, offset, opaque, splat, store, unsigned

__all__ = ["coder", "decoder", "map_row", "pack_rounds", "unpack_rounds"]

_ESCAPE = 1023
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _i64(number: int) -> Any:
    return ir.Constant(_I64, number)


# Unpacking


@emit(types.void(*(int64,) * 4))
def _put_first_slots(builder: Any, codes: Any, classes: Any, count: Any, bits: Any) -> None:
    """Codes for `count` rounds of words with these classes."""

    def body(i: Any) -> None:
        of_word = load(builder, element(builder, classes, 64, i), 8, 64).widen(16)
        store(element(builder, codes, 128, i), of_word << splat(builder, bits, 16, 64))

    loop_over(builder, count, body)


def lane_by_lane(builder: Any, states: Any, units: Any, codes: Any, bits: Any, entries: Any) -> Any:
    """A step of unpacking."""
    slots = ones(builder, bits)

    def eight(current: Sequence[Any]) -> Sequence[Any]:
        units, i = current
        states_here, codes_here = element(builder, states, 32, i), codes_of_eight(builder, codes, i)
        for lane in range(8):
            state, code = offset(builder, states_here, 4 * lane), offset(builder, codes_here, 8 * lane)
            x = unsigned(builder, state, 32)
            place = builder.or_(unsigned(builder, code, 16), builder.and_(x, slots))
            entry = unsigned(builder, element(builder, entries, 4, place), 32)
            f, distance, symbol = (builder.and_(builder.lshr(entry, _i64(at)), _i64(mask)) for at, mask in ((0, 2047), (11, 2047), (22, 1023)))
            memory.store(builder, code, builder.trunc(symbol, _I16))
            x = builder.add(builder.mul(builder.lshr(x, bits), f), distance)
            low = builder.icmp_unsigned("<", x, _i64(1 << 16))
            x = builder.select(low, builder.or_(builder.shl(x, _i64(16)), opaque(builder, unsigned(builder, units, 16))), x)
            units = element(builder, units, 2, builder.zext(low, _I64))
            memory.store(builder, state, builder.trunc(x, _I32))
        return units, builder.add(i, _i64(1))

    return loop(builder, [units, _i64(0)], lambda current: builder.icmp_signed("<", current[1], _i64(8)), eight)[0]


def decoder(step: Step) -> Any:
    """`unpack_rounds` of an arm, from its step."""
    unpack_group = group_decoder(step, _put_first_slots)

    @piece(types.UniTuple(int64, 3)(*(int64,) * 15))
    def unpack_rounds(kind, s, payload, payload_end, middle, out, rest, low, n, n_a, bits, groups, entries, classes, work):
        """Decode rounds of 64 lanes while nothing outside the payload can be read. Returns how many in each group, and the places after their units.

        Where one group stops early its units have reached into the states, so that the payload is damaged however far the other one came.
        """
        whole, limit = (n - n_a if groups == 2 else n_a) >> 6, payload_end - BYTES_A_ROUND
        first, second = work + STATES, work + STATES + 256
        done, a = unpack_group(kind, s, payload, limit, out, rest, low, n, bits, 0, whole, 0, _ESCAPE, _ESCAPE, entries, classes, work, first)
        if groups == 1:
            return done, a, middle
        done_b, b = unpack_group(kind, s, middle, limit, out, rest, low, n, bits, n_a >> 6, whole, 0, _ESCAPE, _ESCAPE, entries, classes, work, second)
        return min(done, done_b), a, b

    return unpack_rounds


# Packing


@emit(types.void(*(int64,) * 4))
def _put_first_symbols(builder: Any, codes: Any, classes: Any, count: Any, bits: Any) -> None:
    """Add to the symbols of `count` rounds of words what these classes put before them."""

    def body(i: Any) -> None:
        of_word, code = load(builder, element(builder, classes, 64, i), 8, 64).widen(16), element(builder, codes, 128, i)
        store(code, load(builder, code, 16, 64) | of_word << 10)

    loop_over(builder, count, body)


def lane_by_lane_backwards(builder: Any, states: Any, units: Any, codes: Any, bits: Any, entries: Any) -> Any:
    """A step of packing, the last lane first, so that units are stored upwards."""
    total, top = builder.shl(_i64(1), bits), builder.sub(_i64(32), bits)

    def eight(current: Sequence[Any]) -> Sequence[Any]:
        units, left = current
        i = builder.sub(left, _i64(1))
        states_here, codes_here = element(builder, states, 32, i), codes_of_eight(builder, codes, i)
        for lane in range(7, -1, -1):
            state, code = offset(builder, states_here, 4 * lane), offset(builder, codes_here, 8 * lane)
            entry = memory.load(builder, element(builder, entries, 8, unsigned(builder, code, 16)), _I64)
            memory.store(builder, code, builder.trunc(builder.lshr(entry, _i64(16)), _I16))
            f, bias, more = (builder.and_(builder.lshr(entry, _i64(at)), _i64(mask)) for at, mask in ((0, 2047), (11, 4095), (23, 31)))
            x = unsigned(builder, state, 32)
            full = builder.icmp_unsigned(">=", builder.lshr(x, top), f)
            memory.store(builder, units, builder.trunc(x, _I16))
            units = element(builder, units, 2, builder.zext(full, _I64))
            x = builder.select(full, builder.lshr(x, _i64(16)), x)
            q = builder.lshr(builder.lshr(builder.mul(x, builder.lshr(entry, _i64(32))), _i64(32)), more)
            q = builder.sub(q, builder.zext(builder.icmp_unsigned(">", builder.mul(q, f), x), _I64))
            x = builder.add(builder.add(x, bias), builder.mul(q, builder.sub(total, f)))
            memory.store(builder, state, builder.trunc(x, _I32))
        return units, i

    return loop(builder, [units, _i64(8)], lambda current: builder.icmp_signed(">", current[1], _i64(0)), eight)[0]


def coder(step: Step) -> Any:
    """`pack_rounds` of an arm, from its step."""
    pack_group = group_coder(state_loop_backwards(step), _ESCAPE, _put_first_symbols)

    @piece(types.UniTuple(int64, 3)(*(int64,) * 15))
    def pack_rounds(kind, s, words, rest, low, n, n_a, whole, bits, groups, entries, classes, a, b, work):
        """Code the first `whole` rounds of each group, backwards. Returns rounds that are left, and the places after the units."""
        a, _ = pack_group(kind, s, words, rest, low, n, 0, whole, bits, a, 0, entries, classes, work, work + STATES)
        if groups == 2:
            b, _ = pack_group(kind, s, words, rest, low, n, n_a >> 6, whole, bits, b, 0, entries, classes, work, work + STATES + 256)
        return int64(0), a, b

    return pack_rounds


unpack_rounds, pack_rounds = decoder(lane_by_lane), coder(lane_by_lane_backwards)
