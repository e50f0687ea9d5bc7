"""Units to and from 8 (AVX2) or 4 (SSE4.1, NEON) states at once: lanes learn where theirs lie, or go, from a permutation of bytes for each mask of lanes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from modelcodec.kernels import arms
from modelcodec.kernels.simd import Vector, load, offset, shuffle_bytes, store

LANES = 8 if arms.ARM == "avx2" else 4
_QUARTER = 16 // LANES
"""Vectors that hold 16 lanes: those of each fourth word."""
_I64 = ir.IntType(64)
_NOTHING = 255
"""In a permutation: a zero."""


def _chosen(mask: int) -> list[int]:
    return [lane for lane in range(LANES) if mask >> lane & 1]


def _taking(mask: int) -> list[int]:
    """Permutation of units, in their order, to the lanes of a mask: to 16 bits each, or to 32 where these fill 16 bytes."""
    chosen = _chosen(mask)
    units = [(2 * chosen.index(lane), 2 * chosen.index(lane) + 1) if lane in chosen else (_NOTHING, _NOTHING) for lane in range(LANES)]
    return [byte for pair in units for byte in (pair if LANES == 8 else (*pair, _NOTHING, _NOTHING))]


def _giving(mask: int) -> list[int]:
    """Permutation of the low halves of a mask's states, the last lane first, to units. States come in 16 bits, or in 32 where these fill 16 bytes."""
    size = 16 // LANES
    bytes_ = [byte for lane in reversed(_chosen(mask)) for byte in (size * lane, size * lane + 1)]
    return bytes_ + [_NOTHING] * (16 - len(bytes_))


TAKING, GIVING = ([byte for mask in range(1 << LANES) for byte in permutation(mask)] for permutation in (_taking, _giving))
"""The permutations of all masks, for `simd.constant`: once in a step, since they take up to 4096 bytes."""


def _measure(builder: Any, mask: Vector, x: Vector) -> tuple[Any, Any]:
    """16 times a mask of the lanes of x, as a number, and twice how many lanes it has."""
    if arms.ARM == "neon":  # which has no instruction that gives a mask as a number, so both come as a sum
        weights = mask.where(x.each([(16 << lane) + 512 for lane in range(LANES)]), x.each([0] * LANES))
        total = builder.zext(weights.total(), _I64)
        return builder.and_(total, ir.Constant(_I64, 511)), builder.lshr(total, ir.Constant(_I64, 8))
    lanes = mask.as_number()
    return builder.shl(lanes, ir.Constant(_I64, 4)), builder.shl(builder.ctpop(lanes), ir.Constant(_I64, 1))


def take_units(builder: Any, taking: Any, x: Vector, units: Any) -> tuple[Vector, Any]:
    """States of which each that is below 2^16 has taken a unit, and the place after these; `taking`: address of TAKING. Reads 2 * LANES bytes of units."""
    low = x.below(1 << 16)
    index, n_bytes = _measure(builder, low, x)
    unit = load(builder, units, 64, LANES // 4).pick([0, LANES // 4 - 1]).of(8)
    unit = shuffle_bytes(unit, load(builder, builder.add(taking, index), 8, 16))
    return low.where(x << 16, x) | (unit.of(16).widen(32) if LANES == 8 else unit.of(32)), builder.add(units, n_bytes)


def give_units(builder: Any, giving: Any, x: Vector, full: Vector, units: Any) -> tuple[Vector, Any]:
    """States of which a mask's have given a unit, the last lane first, and the place after these; `giving`: address of GIVING. Stores 2 * LANES bytes."""
    index, n_bytes = _measure(builder, full, x)
    unit = shuffle_bytes((x.narrow(16) if LANES == 8 else x).of(8), load(builder, builder.add(giving, index), 8, 16))
    store(units, unit.pick(range(2 * LANES)))
    return full.where(x >> 16, x), builder.add(units, n_bytes)


def high_products(x: Vector, even: Vector, odd: Vector) -> Vector:
    """The high halves of the products of u32s with u32s that lie in the low halves of u64s, those of lanes 0, 2, 4 ... and of lanes 1, 3, 5 ..."""
    return ((x.of(64) & 0xFFFFFFFF) * (even & 0xFFFFFFFF) >> 32 | (x.of(64) >> 32) * (odd & 0xFFFFFFFF) & 0xFFFFFFFF00000000).of(32)


def store_in_order(builder: Any, codes: Any, found: Sequence[Vector]) -> None:
    """Store the low halves of the 64 lanes, LANES to a vector, in the order of their words."""
    for i in range(_QUARTER):
        x = found[i::_QUARTER]
        even, odd = (x[0] & 0xFFFF | x[2] << 16).of(16), (x[1] & 0xFFFF | x[3] << 16).of(16)
        store(offset(builder, codes, 8 * LANES * i), even.pick([k for j in range(2 * LANES) for k in (j, 2 * LANES + j)], odd))
