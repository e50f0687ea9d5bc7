"""The arms of `rans` for processors that permute the bytes of a vector by another vector: as `rans_vector`, but 8 (AVX2) or 4 (SSE4.1, NEON) states at once.

Lanes learn where their units lie, or go, from a table that has a permutation for each mask of lanes. Entries are read one by one: gathers, where there are any,
are no faster than that, and on some processors much slower.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from modelcodec.kernels import arms, memory
from modelcodec.kernels.rans_layout import ENTRIES
from modelcodec.kernels.rans_vector import coder, decoder, word_of
from modelcodec.kernels.simd import Vector, collect, constant, element, load, offset, shuffle_bytes, splat, store, unsigned

_LANES = 8 if arms.ARM == "avx2" else 4
_QUARTER = 16 // _LANES
"""Vectors that hold 16 lanes: those of each fourth word."""
_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_NOTHING = 255
"""In a permutation: a zero."""


def _i64(number: int) -> Any:
    return ir.Constant(_I64, number)


def _chosen(mask: int) -> list[int]:
    return [lane for lane in range(_LANES) if mask >> lane & 1]


def _taking(mask: int) -> list[int]:
    """Permutation of units, in their order, to the lanes of a mask: to 16 bits each, or to 32 where these fill 16 bytes."""
    chosen = _chosen(mask)
    units = [(2 * chosen.index(lane), 2 * chosen.index(lane) + 1) if lane in chosen else (_NOTHING, _NOTHING) for lane in range(_LANES)]
    return [byte for pair in units for byte in (pair if _LANES == 8 else (*pair, _NOTHING, _NOTHING))]


def _giving(mask: int) -> list[int]:
    """Permutation of the low halves of a mask's states, the last lane first, to units. States come in 16 bits, or in 32 where these fill 16 bytes."""
    size = 16 // _LANES
    bytes_ = [byte for lane in reversed(_chosen(mask)) for byte in (size * lane, size * lane + 1)]
    return bytes_ + [_NOTHING] * (16 - len(bytes_))


_TAKING, _GIVING = ([byte for mask in range(1 << _LANES) for byte in permutation(mask)] for permutation in (_taking, _giving))


def _measure(builder: Any, mask: Vector, x: Vector) -> tuple[Any, Any]:
    """16 times a mask of the lanes of x, as a number, and twice how many lanes it has."""
    if arms.ARM == "neon":  # which has no instruction that gives a mask as a number, so both come as a sum
        weights = mask.where(x.each([(16 << lane) + 512 for lane in range(_LANES)]), x.each([0] * _LANES))
        total = builder.zext(weights.total(), _I64)
        return builder.and_(total, _i64(511)), builder.lshr(total, _i64(8))
    lanes = mask.as_number()
    return builder.shl(lanes, _i64(4)), builder.shl(builder.ctpop(lanes), _i64(1))


def _interleaved(x: list[Vector]) -> Vector:
    """Numbers of 16 bits in the order of the words, out of the low halves of four vectors that each hold every fourth one."""
    even, odd = (x[0] & 0xFFFF | x[2] << 16).of(16), (x[1] & 0xFFFF | x[3] << 16).of(16)
    return even.pick([k for j in range(2 * _LANES) for k in (j, 2 * _LANES + j)], odd)


def _step(builder: Any, states: Any, units: Any, codes: Any, bits: Any, work: Any) -> Any:
    """As `rans_vector.lane_by_lane`."""
    table, taking = offset(builder, work, ENTRIES), constant(builder, _TAKING)
    slots = builder.sub(builder.shl(_i64(1), bits), _i64(1))
    all_slots, shift, up = (splat(builder, x, 32, _LANES) for x in (slots, bits, builder.sub(_i64(32), bits)))
    found = []
    for i in range(64 // _LANES):
        at = offset(builder, states, 4 * _LANES * i)
        here = [builder.and_(unsigned(builder, offset(builder, at, 4 * lane), 32), slots) for lane in range(_LANES)]
        entry = collect(builder, [memory.load(builder, element(builder, table, 4, slot), _I32) for slot in here])
        x = (load(builder, at, 32, _LANES) >> shift) * (entry >> up) + (entry & all_slots)
        low = x.below(1 << 16)
        index, n_bytes = _measure(builder, low, x)
        unit = load(builder, units, 64, _LANES // 4).pick([0, _LANES // 4 - 1]).of(8)
        unit = shuffle_bytes(unit, load(builder, builder.add(taking, index), 8, 16))
        store(at, low.where(x << 16, x) | (unit.of(16).widen(32) if _LANES == 8 else unit.of(32)))
        units = builder.add(units, n_bytes)
        found.append(entry >> shift)
    for i in range(_QUARTER):
        store(offset(builder, codes, 8 * _LANES * i), _interleaved(found[i::_QUARTER]))
    return units


def _step_backwards(builder: Any, states: Any, units: Any, codes: Any, bits: Any, work: Any) -> Any:
    """As `rans_vector.lane_by_lane_backwards`."""
    table, giving = offset(builder, work, ENTRIES), constant(builder, _GIVING)
    total, top = splat(builder, builder.shl(_i64(1), bits), 32, _LANES), splat(builder, builder.sub(_i64(32), bits), 32, _LANES)
    found: list[Any] = [None] * (64 // _LANES)
    for i in range(64 // _LANES - 1, -1, -1):
        at = offset(builder, states, 4 * _LANES * i)
        x = load(builder, at, 32, _LANES)
        symbols = [unsigned(builder, offset(builder, codes, 2 * word_of(_LANES * i + lane)), 16) for lane in range(_LANES)]
        entries = [memory.load(builder, element(builder, table, 8, symbol), _I64) for symbol in symbols]
        even, odd = collect(builder, entries[::2]), collect(builder, entries[1::2])
        info = (even >> 32 | odd & 0xFFFFFFFF00000000).of(32)
        f, bias, more = info & 4095, info >> 12 & 8191, info >> 25 & 15
        full = f.least(x >> top).equals(f)
        index, n_bytes = _measure(builder, full, x)
        unit = shuffle_bytes((x.narrow(16) if _LANES == 8 else x).of(8), load(builder, builder.add(giving, index), 8, 16))
        store(units, unit.pick(range(2 * _LANES)))
        units = builder.add(units, n_bytes)
        x = full.where(x >> 16, x)
        products = (x.of(64) & 0xFFFFFFFF) * (even & 0xFFFFFFFF) >> 32 | (x.of(64) >> 32) * (odd & 0xFFFFFFFF) & 0xFFFFFFFF00000000
        store(at, x + bias + (products.of(32) >> more) * (total - f))
        found[i] = info >> 16
    for i in range(_QUARTER):
        store(offset(builder, codes, 8 * _LANES * i), _interleaved(found[i::_QUARTER]))
    return units


unpack_rounds, pack_rounds = decoder(_step), coder(_step_backwards)
