"""Words of 2 and 4 bytes and their rest in bit planes (docs/stages.md, split_float), 64 words at a time, for every arm of `rans` that has vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.types import int64

from modelcodec.kernels.jit import piece
from modelcodec.kernels.simd import Vector, emit, load, offset, splat, store

_I64 = ir.IntType(64)
Planes = types.UniTuple(int64, 8)
"""Places of the planes of 8, 4, 2, 1 bits, then the bytes from block_places to block_places in each."""


def _i64(number: int) -> Any:
    return ir.Constant(_I64, number)


def plane_masks(builder: Any, r: Any) -> tuple[list[Any], list[Any]]:
    """For the planes of 8, 4, 2, 1 bits: all ones where r-bit numbers have it, else zero; and where its bits stand in the byte above the plane of 8."""
    one = _i64(1)
    there = [builder.and_(builder.lshr(r, _i64(at)), one) for at in (3, 2, 1, 0)]
    low2 = builder.shl(there[1], _i64(2))
    low1 = builder.add(low2, builder.shl(there[2], one))
    return [builder.neg(bit) for bit in there], [_i64(0), _i64(0), low2, low1]


def _bytes_above(builder: Any, planes: Sequence[Any], there: Sequence[Any], low: Sequence[Any], half: int) -> Vector:
    """What the planes of 4, 2 and 1 bits give 32 words, as bytes."""

    def shaped(bits: Vector, log2: int, mask: int) -> Vector:
        bits = bits.of(8) & splat(builder, builder.and_(there[log2], _i64(mask)), 8, 32)
        return (bits.of(16) << splat(builder, low[log2], 16, 16)).of(8)

    four = load(builder, planes[1], 8, 32).of(16) >> 4 * half
    two = load(builder, planes[2], 32, 4).pick([*range(4)] * 2)
    two = two >> two.each([4 * half] * 4 + [4 * half + 2] * 4)
    one = load(builder, planes[3], 64, 1).pick([0] * 4)
    one = one >> one.each([4 * half + i for i in range(4)])
    return shaped(four, 1, 15) | shaped(two, 2, 3) | shaped(one, 3, 1)


def joined_words(builder: Any, symbols: Sequence[Vector], planes: Sequence[Any], s: Any, r: Any) -> list[Vector]:
    """64 words of 16 bits from their symbols (four vectors of 16) and the places of their rest; a plane that does not exist has the address of any 64 bytes."""
    there, low = plane_masks(builder, r)
    up = splat(builder, builder.and_(there[0], _i64(8)), 16, 16)
    all8 = splat(builder, builder.and_(there[0], _i64(255)), 16, 16)
    below = splat(builder, builder.sub(builder.shl(_i64(1), s), _i64(1)), 16, 16)
    shift, sign = splat(builder, s, 16, 16), splat(builder, builder.sub(_i64(15), s), 16, 16)
    words = []
    for half in (0, 1):
        above = _bytes_above(builder, planes, there, low, half)
        for i in (2 * half, 2 * half + 1):
            number = above.pick(range(16 * (i % 2), 16 * (i % 2) + 16)).widen(16) << up
            number = number | load(builder, offset(builder, planes[0], 16 * i), 8, 16).widen(16) & all8
            words.append(symbols[i] << shift | number & below | number << sign & 0x8000)
    return words


def joined_bfloat16(builder: Any, symbols: Sequence[Vector], planes: Sequence[Any], s: Any, r: Any) -> list[Vector]:
    """The same for 8 bits of symbol above 7 of rest."""
    numbers = [load(builder, offset(builder, planes[0], 16 * i), 8, 16).widen(16) for i in range(4)]
    return [symbol << 7 | number & 127 | number << 8 & 0x8000 for symbol, number in zip(symbols, numbers, strict=True)]


def store_rest(builder: Any, planes: Sequence[Any], r: Any, numbers: Sequence[Vector]) -> None:
    """Write 64 numbers of r bits to the places in their planes; what belongs to no plane is stored to the address that stands for one."""
    there, low = plane_masks(builder, r)
    up = splat(builder, builder.and_(there[0], _i64(8)), 16, 32)
    for half in (0, 1):
        store(offset(builder, planes[0], 32 * half), numbers[half].narrow(8))
    above = (numbers[0] >> up).narrow(8).pick(range(64), (numbers[1] >> up).narrow(8))
    v4 = above.of(32) & 0x0F0F0F0F
    v4 = (v4 << v4.each([0] * 8 + [4] * 8)).of(8)
    store(planes[1], v4.pick(range(32)) | v4.pick(range(32, 64)))
    v2 = above.of(32) >> splat(builder, low[2], 32, 16) & 0x03030303
    v2 = (v2 << v2.each([0] * 4 + [2] * 4 + [4] * 4 + [6] * 4)).of(8)
    v2 = v2.pick(range(32)) | v2.pick(range(32, 64))
    store(planes[2], v2.pick(range(16)) | v2.pick(range(16, 32)))
    v1 = above.of(64) >> splat(builder, low[3], 64, 8) & 0x0101010101010101
    v1 = (v1 << v1.each(range(8))).of(8)
    for n in (32, 16, 8):
        v1 = v1.pick(range(n)) | v1.pick(range(n, 2 * n))
    store(planes[3], v1)


@piece(Planes(*(int64,) * 4))
def plane_places(rest, n, r, nowhere):
    """(address, bytes a block_places) of the planes of 8, 4, 2 and 1 bits; planes that do not exist lie at `nowhere`, and stay there."""
    eighths = (n + 7) >> 3
    p8, p4, p2, p1 = nowhere, nowhere, nowhere, nowhere
    if r & 8:
        p8, rest = rest, rest + 8 * eighths
    if r & 4:
        p4, rest = rest, rest + 4 * eighths
    if r & 2:
        p2, rest = rest, rest + 2 * eighths
    if r & 1:
        p1 = rest
    return p8, p4, p2, p1, 8 * (r & 8), 8 * (r & 4), 8 * (r & 2), 8 * (r & 1)


def block_places(builder: Any, planes: Sequence[Any], k: Any) -> list[Any]:
    """The k-th block_places in each plane."""
    return [builder.add(place, builder.mul(step, k)) for place, step in zip(planes[:4], planes[4:], strict=True)]


@emit(types.void(int64, int64, int64))
def join_u32(builder: Any, to: Any, highs: Any, lows: Any) -> None:
    """64 words of 32 bits from their halves."""
    for i in (0, 64):
        high, low = load(builder, offset(builder, highs, i), 16, 32), load(builder, offset(builder, lows, i), 16, 32)
        for half in (0, 16):
            store(offset(builder, to, 2 * i + 4 * half), low.pick([x for j in range(half, half + 16) for x in (j, 32 + j)], high))


@emit(types.void(int64, int64))
def narrow_words(builder: Any, to: Any, words: Any) -> None:
    """64 bytes from as many u16s."""
    store(to, load(builder, words, 16, 64).narrow(8))


@emit(types.void(int64, int64, int64))
def split_u32(builder: Any, words: Any, highs: Any, lows: Any) -> None:
    """Halves of 64 words of 32 bits."""
    for i in (0, 128):
        first, second = load(builder, offset(builder, words, i), 16, 32), load(builder, offset(builder, words, i + 64), 16, 32)
        store(builder.add(lows, _i64(i // 2)), first.pick(range(0, 64, 2), second))
        store(builder.add(highs, _i64(i // 2)), first.pick(range(1, 64, 2), second))


@emit(types.void(int64, int64))
def widen_words(builder: Any, words: Any, to: Any) -> None:
    """64 u16s from as many bytes."""
    for half in (0, 32):
        store(offset(builder, to, 2 * half), load(builder, offset(builder, words, half), 8, 32).widen(16))
