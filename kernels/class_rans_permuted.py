"""The arms of `class_rans` for AVX2, SSE4.1 and NEON: as `class_rans_vector`, but 8 or 4 states at once, as in `rans_permuted`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.types import int64

from modelcodec.kernels import memory
from modelcodec.kernels.class_rans_vector import coder, decoder
from modelcodec.kernels.rans_renormalisation import GIVING, LANES, TAKING, give_units, high_products, store_in_order, take_units
from modelcodec.kernels.rans_vector import ones, word_of
from modelcodec.kernels.simd import collect, constant, element, emit, load, loop, offset, shuffle_bytes, splat, store, unsigned

_I32, _I64 = ir.IntType(32), ir.IntType(64)


@emit(types.void(*(int64,) * 5))
def map_row(builder: Any, column_scales: Any, m: Any, scale: Any, class_of: Any, to: Any) -> None:
    """Classes of m neighbours in a row of this scale, and of up to 15 places after them."""
    parts = [load(builder, offset(builder, builder.add(class_of, scale), 16 * part), 8, 16) for part in range(4)]

    def body(current: Any) -> Any:
        (i,) = current
        column = load(builder, builder.add(column_scales, i), 8, 16)
        place, nothing = column & 15, column.each([255] * 16)
        found = shuffle_bytes(parts[0], place)
        for part in range(1, 4):  # from each part on, its difference to the one before
            found = found ^ shuffle_bytes(parts[part] ^ parts[part - 1], column.below(16 * part).where(nothing, place))
        store(builder.add(to, i), found)
        return (builder.add(i, ir.Constant(_I64, 16)),)

    loop(builder, [ir.Constant(_I64, 0)], lambda current: builder.icmp_signed("<", current[0], m), body)


def _codes_of(builder: Any, codes: Any, i: int) -> list[Any]:
    """The codes of the i-th LANES lanes."""
    return [unsigned(builder, offset(builder, codes, 2 * word_of(LANES * i + lane)), 16) for lane in range(LANES)]


def _step(builder: Any, states: Any, units: Any, codes: Any, bits: Any, entries: Any) -> Any:
    """As `class_rans_vector.lane_by_lane`."""
    slots, shift, taking = ones(builder, bits), splat(builder, bits, 32, LANES), constant(builder, TAKING)
    found = []
    for i in range(64 // LANES):
        at = offset(builder, states, 4 * LANES * i)
        xs = [unsigned(builder, offset(builder, at, 4 * lane), 32) for lane in range(LANES)]
        places = [builder.or_(code, builder.and_(x, slots)) for code, x in zip(_codes_of(builder, codes, i), xs, strict=True)]
        entry = collect(builder, [memory.load(builder, element(builder, entries, 4, place), _I32) for place in places])
        x, units = take_units(builder, taking, (load(builder, at, 32, LANES) >> shift) * (entry & 2047) + (entry >> 11 & 2047), units)
        store(at, x)
        found.append(entry >> 22)
    store_in_order(builder, codes, found)
    return units


def _step_backwards(builder: Any, states: Any, units: Any, codes: Any, bits: Any, entries: Any) -> Any:
    """As `class_rans_vector.lane_by_lane_backwards`."""
    total, top = (splat(builder, x, 32, LANES) for x in (builder.shl(ir.Constant(_I64, 1), bits), builder.sub(ir.Constant(_I64, 32), bits)))
    found, giving = [], constant(builder, GIVING)
    for i in range(64 // LANES - 1, -1, -1):
        at = offset(builder, states, 4 * LANES * i)
        loaded = [memory.load(builder, element(builder, entries, 8, code), _I64) for code in _codes_of(builder, codes, i)]
        even, odd = collect(builder, loaded[::2]), collect(builder, loaded[1::2])
        info = (even & 0xFFFFFFFF | odd << 32).of(32)
        x, f = load(builder, at, 32, LANES), info & 2047
        x, units = give_units(builder, giving, x, f.least(x >> top).equals(f), units)
        q = high_products(x, even >> 32, odd >> 32) >> (info >> 23 & 31)
        q = (x - q * f).top_bit().where(q - 1, q)
        store(at, x + (info >> 11 & 4095) + q * (total - f))
        found.append(info >> 16)
    store_in_order(builder, codes, found[::-1])
    return units


unpack_rounds, pack_rounds = decoder(_step), coder(_step_backwards)
