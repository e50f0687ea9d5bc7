"""The arms of `rans` for processors that permute the bytes of a vector by another vector: as `rans_vector`, but 8 (AVX2) or 4 (SSE4.1, NEON) states at once.

Entries are read one by one: gathers, where there are any, are no faster than that, and on some processors much slower.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from modelcodec.kernels import memory
from modelcodec.kernels.rans_layout import ENTRIES
from modelcodec.kernels.rans_renormalisation import GIVING, LANES, TAKING, give_units, high_products, store_in_order, take_units
from modelcodec.kernels.rans_vector import coder, decoder, group_coder, ones, state_loop_backwards, word_of
from modelcodec.kernels.simd import collect, constant, element, load, offset, splat, store, unsigned

_I32, _I64 = ir.IntType(32), ir.IntType(64)


def _step(builder: Any, states: Any, units: Any, codes: Any, bits: Any, work: Any) -> Any:
    """As `rans_vector.lane_by_lane`."""
    table, taking = offset(builder, work, ENTRIES), constant(builder, TAKING)
    slots = ones(builder, bits)
    all_slots, shift, up = (splat(builder, x, 32, LANES) for x in (slots, bits, builder.sub(ir.Constant(_I64, 32), bits)))
    found = []
    for i in range(64 // LANES):
        at = offset(builder, states, 4 * LANES * i)
        here = [builder.and_(unsigned(builder, offset(builder, at, 4 * lane), 32), slots) for lane in range(LANES)]
        entry = collect(builder, [memory.load(builder, element(builder, table, 4, slot), _I32) for slot in here])
        x = (load(builder, at, 32, LANES) >> shift) * (entry >> up) + (entry & all_slots)
        x, units = take_units(builder, taking, x, units)
        store(at, x)
        found.append(entry >> shift)
    store_in_order(builder, codes, found)
    return units


def _step_backwards(builder: Any, states: Any, units: Any, codes: Any, bits: Any, work: Any) -> Any:
    """As `rans_vector.lane_by_lane_backwards`."""
    table, giving = offset(builder, work, ENTRIES), constant(builder, GIVING)
    total, top = splat(builder, builder.shl(ir.Constant(_I64, 1), bits), 32, LANES), splat(builder, builder.sub(ir.Constant(_I64, 32), bits), 32, LANES)
    found: list[Any] = [None] * (64 // LANES)
    for i in range(64 // LANES - 1, -1, -1):
        at = offset(builder, states, 4 * LANES * i)
        x = load(builder, at, 32, LANES)
        symbols = [unsigned(builder, offset(builder, codes, 2 * word_of(LANES * i + lane)), 16) for lane in range(LANES)]
        entries = [memory.load(builder, element(builder, table, 8, symbol), _I64) for symbol in symbols]
        even, odd = collect(builder, entries[::2]), collect(builder, entries[1::2])
        info = (even >> 32 | odd & 0xFFFFFFFF00000000).of(32)
        f, bias, more = info & 4095, info >> 12 & 8191, info >> 25 & 15
        x, units = give_units(builder, giving, x, f.least(x >> top).equals(f), units)
        store(at, x + bias + (high_products(x, even, odd) >> more) * (total - f))
        found[i] = info >> 16
    store_in_order(builder, codes, found)
    return units


unpack_rounds, pack_rounds = decoder(_step), coder(group_coder(state_loop_backwards(_step_backwards)))
