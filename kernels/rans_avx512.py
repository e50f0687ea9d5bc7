"""The AVX-512 VBMI arm of `rans`: whole rounds of 64 lanes, both groups side by side, since one alone would wait for itself.

A group's 64 states are four vectors of 16, and word r of a round belongs to place r / 4 of vector r mod 4. So quantities of the words, as bytes in the order
of the words, are taken apart by shifts into the four vectors, by way of u16s: those of vectors 0 and 2 ("even") and of 1 and 3 ("odd"). No table is read by
gathers, which are slow: tables are permuted, 128 bytes at a time.

Coding itself knows words of 16 bits only: symbols above a rest, or symbols alone. Other words are narrowed or widened in pieces that stay in the first cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.types import int64, uint64

from modelcodec.kernels.frequencies import SPLIT2, SPLIT4, U1, reciprocal
from modelcodec.kernels.jit import piece
from modelcodec.kernels.memory import copy, fill, load_u8, load_u16, store_u8, store_u16
from modelcodec.kernels.rans_layout import (
    BIAS,
    BY_SLOT,
    CONSTANTS,
    DIVISOR,
    FREQUENCY,
    HALVES,
    MULTIPLIER_HIGH,
    MULTIPLIER_LOW,
    NEAR_RANK,
    NOTES,
    NUMBERS,
    RANK,
    ROUNDS_AT_ONCE,
    SHIFTED,
    START,
    STATES,
    VALUE,
    Frame,
    group_a,
)  # fmt: skip
from modelcodec.kernels.rans_words import Planes, block_places, join_u32, narrow_words, plane_masks, plane_places, split_u32, store_rest, widen_words
from modelcodec.kernels.simd import Vector, bit_fields, compress, emit, expand, fence, load, loop, offset, permute, permute2, prefetch, splat, store

_I64 = ir.IntType(64)
AHEAD = 512
"""Bytes between what is decoded and what is asked for from memory, for a pair of frames: more streams than the processor foresees by itself."""
BYTES_A_ROUND = 128
"""A round takes at most this many bytes of units and, loading whole vectors, touches no more."""


def _i64(number: int) -> Any:
    return ir.Constant(_I64, number)


# Tables


def _lookup(builder: Any, table: Any, n: int, bits: int, indices: Sequence[Vector], choices: Callable[[int, Vector], Vector]) -> list[Vector]:
    """The entries, of 8 or 16 bits, of a table of n (a power of two, at least two vectors of them) at an address, for each of some index vectors.

    An index vector itself chooses within two vectors of the table; `choices(k, index)` is the mask of its k-th bit above those.
    """
    lanes = 512 // bits
    masks = [[choices(level, index) for level in range((n // lanes).bit_length() - 2)] for index in indices]
    open_: list[tuple[int, list[Vector]]] = []  # results for 2 ** level double vectors each, to be joined with their neighbours
    for first in range(0, n, 2 * lanes):
        low, high = (load(builder, offset(builder, table, (first + part) * bits // 8), bits, lanes) for part in (0, lanes))
        level, found = 0, [permute2(low, high, index) for index in indices]
        while open_ and open_[-1][0] == level:
            _, before = open_.pop()
            found = [mask[level].where(odd, even) for mask, even, odd in zip(masks, before, found, strict=True)]
            level += 1
        open_.append((level, found))
    return open_[0][1]


def _lookup_u16(builder: Any, table: Any, n: int, indices: Sequence[Vector]) -> list[Vector]:
    return _lookup(builder, table, n, 16, indices, lambda level, index: index.has(6 + level))


def _lookup_u8(builder: Any, table: Any, n: int, lows: Sequence[Vector], highs: Sequence[Vector]) -> list[Vector]:
    """The same for bytes; the index comes as low and high bytes."""
    high_of = dict(zip(map(id, lows), highs, strict=True))
    return _lookup(builder, table, n, 8, lows, lambda level, index: index.top_bit() if level == 0 else high_of[id(index)].has(level - 1))


def _even_odd(vector: Vector) -> tuple[Vector, Vector]:
    """u16s for vectors 0 and 2, and for 1 and 3, from bytes in the order of the words."""
    return vector.of(16) & 255, vector.of(16) >> 8


def _part(even: Vector, odd: Vector, v: int) -> Vector:
    """The u32s of vector v."""
    pair = (odd if v & 1 else even).of(32)
    return pair & 65535 if v < 2 else pair >> 16


# Split words: symbol and rest in 16 bits


def prepare_rest(builder: Any, s: Any, r: Any, work: Any) -> None:
    """Write what `_rest_words` needs and does not change in a loop. It comes from memory there, since registers are better kept for states."""
    there, low = plane_masks(builder, r)
    deep = builder.icmp_unsigned(">=", s, _i64(8))
    below = builder.sub(builder.shl(_i64(1), s), _i64(1))
    nothing, all8 = _i64(0), _i64(255)
    masks = (
        *(builder.shl(builder.and_(there[log2], _i64((1 << p) - 1)), low[log2]) for log2, p in ((1, 4), (2, 2), (3, 1))),
        builder.select(builder.icmp_unsigned("==", s, _i64(7)), all8, nothing),
        builder.select(deep, nothing, below),
        builder.select(deep, all8, nothing),
        builder.select(deep, builder.lshr(below, _i64(8)), nothing),
    )
    vectors = [splat(builder, mask, 8, 64) for mask in masks]
    for log2, p in ((1, 4), (2, 2), (3, 1)):
        vectors.append(vectors[0].each([8 * (k % 8) + p * (k // (8 * p)) for k in range(64)]) - splat(builder, low[log2], 8, 64))
    vectors.append(splat(builder, builder.and_(builder.sub(_i64(7), s), _i64(7)), 16, 32))
    for i, vector in enumerate(vectors):
        store(offset(builder, work, CONSTANTS + 64 * i), vector)


def _rest_words(builder: Any, planes: Sequence[Any], work: Any) -> list[Vector]:
    """Sign and lowest s bits of 64 words of 16 bits, from the places of their rest in its planes; a plane that does not exist has the address of any 64 bytes.

    Made as low and high bytes. The lowest 8 bits are the plane of 8, if there is one; the other planes make up one byte, where the sign is the highest bit.
    """
    *constants, up = [load(builder, offset(builder, work, CONSTANTS + 64 * i), bits, 512 // bits) for i, bits in enumerate([8] * 10 + [16])]
    is_seven, low_top, low_8, high_top = constants[3:7]
    plane8 = load(builder, planes[0], 8, 64)
    top = plane8 & is_seven
    for log2, p in ((1, 4), (2, 2), (3, 1)):
        copies = load(builder, planes[log2], 8, 8 * p).pick([*range(8 * p)] * (8 // p))
        top = top | bit_fields(copies, constants[6 + log2]) & constants[log2 - 1]
    sign = (top.of(16) << up).of(8) & 128
    low_byte, high_byte = top & low_top | plane8 & low_8, sign | top & high_top
    return [low_byte.pick([x for j in range(half, half + 32) for x in (j, 64 + j)], high_byte).of(16) for half in (0, 32)]


# States in memory: the same vectors as in the registers, or with everything reversed


def _state_places(builder: Any, work: Any, states_b: Any, order: Sequence[int]) -> list[Any]:
    return [offset(builder, place, 64 * v) for place in (offset(builder, work, STATES), states_b) for v in order]


def load_states(builder: Any, work: Any, states_b: Any, order: Sequence[int] = range(4), places: Sequence[int] = range(16)) -> list[Vector]:
    return [load(builder, at, 32, 16).pick(places) for at in _state_places(builder, work, states_b, order)]


def store_states(builder: Any, work: Any, states_b: Any, states: Sequence[Vector], order: Sequence[int] = range(4), places: Sequence[int] = range(16)) -> None:
    for at, x in zip(_state_places(builder, work, states_b, order), states, strict=True):
        store(at, x.pick(places))


BACKWARDS = range(3, -1, -1), range(15, -1, -1)


# Unpacking


def renormalise(builder: Any, states: Sequence[Vector], units: Any) -> tuple[list[Vector], Any]:
    """States below 2^16 take a unit each, in the order of the lanes."""
    lows = [x.below(1 << 16) for x in states]
    counts = [builder.ctpop(low.as_number()) for low in lows]
    result = []
    for x, low, count in zip(states, lows, counts, strict=True):
        result.append(low.where(x << 16, x) | expand(load(builder, units, 16, 16).widen(32), low))
        units = builder.add(units, builder.shl(count, _i64(1)))
    return result, units


def _renormalise_pairs(builder: Any, states: Sequence[Vector], units: Any) -> tuple[list[Vector], Any]:
    """The same with fewer instructions, whose results come later: better where there are other rounds to go on with meanwhile."""
    result = []
    for first in range(0, len(states), 2):
        pair = states[first : first + 2]
        lows = [x.below(1 << 16) for x in pair]
        both = lows[0].pick(range(32), lows[1])
        taken = expand(load(builder, units, 16, 32), both)
        for x, low, half in zip(pair, lows, (0, 16), strict=True):
            result.append(low.where(x << 16, x) | taken.pick(range(half, half + 16)).widen(32))
        units = builder.add(units, builder.shl(builder.ctpop(both.as_number()), _i64(1)))
    return result, units


def _note(builder: Any, work: Any, k: Any, escapes: Vector) -> None:
    """Keep which of the k-th 64 words are escapes."""
    place = builder.add(offset(builder, work, NOTES), builder.shl(k, _i64(3)))
    store(place, Vector(builder, builder.bitcast(escapes.as_number(), ir.VectorType(_I64, 1))))


def _two_rounds_of_256(bfloat16: bool, renormalise: Any = renormalise) -> Any:
    """A round of each group with a table of 8 bits and at most 64 ranks. Words are any split ones or, faster, those with 8 bits of symbol above 7 of rest."""

    def rounds(builder: Any, states: Any, a: Any, b: Any, k_a: Any, k_b: Any, to_a: Any, to_b: Any, planes: Any, bits: Any, escape: Any, work: Any) -> Any:
        groups = states[:4], states[4:]
        slots = [(x0 & 255 | (x1 & 255) << 8 | (x2 & 255) << 16 | x3 << 24).of(8) for x0, x1, x2, x3 in groups]
        by_slot = [_lookup_u8(builder, offset(builder, work, at), 256, slots, slots) for at in (BY_SLOT, BY_SLOT + 256, RANK)]
        result, places = [], []
        for xs, units, f, bias in zip(groups, (a, b), by_slot[0], by_slot[1], strict=True):
            f, bias = f.of(32), bias.of(32)
            moved = [(x >> 8) * (f >> 8 * v & 255) + (bias >> 8 * v & 255) for v, x in enumerate(xs)]
            moved, units = renormalise(builder, moved, units)
            result += moved
            places.append(units)
        values = load(builder, offset(builder, work, VALUE), 16, 64).narrow(8)
        for rank, k, to in zip(by_slot[2], (k_a, k_b), (to_a, to_b), strict=True):
            _note(builder, work, k, rank.equals(splat(builder, escape, 8, 64)))
            if bfloat16:
                number = load(builder, block_places(builder, planes, k)[0], 8, 64)
                low, high = permute(values << 7, rank) | number & 127, permute(values >> 1, rank) | number & 128
                for half in (0, 32):
                    store(offset(builder, to, 2 * half), low.pick([x for j in range(half, half + 32) for x in (j, 64 + j)], high))
            else:
                ranks = [rank.pick(range(half, half + 32)).widen(16) for half in (0, 32)]
                store_words(builder, to, _lookup_u16(builder, offset(builder, work, SHIFTED), 64, ranks), block_places(builder, planes, k), work)
        return *result, *places

    return rounds


def store_words(builder: Any, to: Any, symbols: Sequence[Vector], planes: Sequence[Any], work: Any) -> None:
    """64 words of 16 bits from their symbols, which stand in place already, and the places of their rest."""
    for half, symbol, rest in zip((0, 64), symbols, _rest_words(builder, planes, work), strict=True):
        store(offset(builder, to, half), symbol | rest)


def _two_rounds(n_slots: int, n_ranks: int) -> Any:
    """A round of each group with a table of at most n_slots slots and n_ranks ranks."""

    def one(builder: Any, xs: Any, units: Any, k: Any, to: Any, planes: Any, bits: Any, escape: Any, work: Any) -> tuple[list[Vector], Any]:
        mask, shift = splat(builder, builder.sub(builder.shl(_i64(1), bits), _i64(1)), 32, 16), splat(builder, bits, 32, 16)
        even, odd = xs[0] & mask | (xs[2] & mask) << 16, xs[1] & mask | (xs[3] & mask) << 16
        low = (even & 0x00FF00FF | (odd & 0x00FF00FF) << 8).of(8)
        high = (even >> 8 & 0x00FF00FF | odd & 0xFF00FF00).of(8)
        (rank,) = _lookup_u8(builder, offset(builder, work, RANK), n_slots, [low], [high])
        split = _even_odd(rank)
        f = _lookup_u16(builder, offset(builder, work, FREQUENCY), n_ranks, split)
        start = _lookup_u16(builder, offset(builder, work, START), n_ranks, split)
        bias = even.of(16) - start[0], odd.of(16) - start[1]
        moved, units = renormalise(builder, [(x >> shift) * _part(f[0], f[1], v) + _part(bias[0], bias[1], v) for v, x in enumerate(xs)], units)
        fence(builder)
        even, odd = _lookup_u16(builder, offset(builder, work, SHIFTED), n_ranks, split)
        order = [2 * (j // 4) + (j % 4 >> 1) + 32 * (j & 1) for j in range(64)]
        _note(builder, work, k, rank.equals(splat(builder, escape, 8, 64)))
        store_words(builder, to, [even.pick(order[:32], odd), even.pick(order[32:], odd)], block_places(builder, planes, k), work)
        fence(builder)
        return moved, units

    def rounds(builder: Any, states: Any, a: Any, b: Any, k_a: Any, k_b: Any, to_a: Any, to_b: Any, *others: Any) -> Any:
        first, a = one(builder, states[:4], a, k_a, to_a, *others)
        second, b = one(builder, states[4:], b, k_b, to_b, *others)
        return *first, *second, a, b

    return rounds


def _unpack_loop(two_rounds: Any) -> Any:
    @emit(types.UniTuple(int64, 3)(*(int64,) * 8, Planes, *(int64,) * 6))
    def rounds(
        builder: Any, a: Any, b: Any, limit: Any, count: Any, k_a: Any, k_b: Any, to_a: Any, to_b: Any, planes: Any,
        s: Any, r: Any, bits: Any, escape: Any, work: Any, states_b: Any,
    ) -> Any:  # fmt: skip
        """`count` rounds of each group from the k_a-th and k_b-th 64 words on, less where units could be read past `limit`. Returns rounds, places."""

        def more(current: Any) -> Any:
            i, a, b = current[-1], current[-3], current[-2]
            inside = builder.and_(builder.icmp_signed("<=", a, limit), builder.icmp_signed("<=", b, limit))
            return builder.and_(builder.icmp_signed("<", i, count), inside)

        def body(current: Any) -> Any:
            *states, a, b, i = current
            at = builder.shl(i, _i64(7))
            k_places = builder.add(k_a, i), builder.add(k_b, i), builder.add(to_a, at), builder.add(to_b, at)
            return *two_rounds(builder, states, a, b, *k_places, planes, bits, escape, work), builder.add(i, _i64(1))

        prepare_rest(builder, s, r, work)
        *states, a, b, i = loop(builder, [*load_states(builder, work, states_b), a, b, _i64(0)], more, body)
        store_states(builder, work, states_b, states)
        return i, a, b

    return rounds


_unpack_256_bfloat16, _unpack_256 = _unpack_loop(_two_rounds_of_256(True)), _unpack_loop(_two_rounds_of_256(False))
_unpack_2048, _unpack_2048_many, _unpack_4096 = _unpack_loop(_two_rounds(2048, 64)), _unpack_loop(_two_rounds(2048, 256)), _unpack_loop(_two_rounds(4096, 256))


@emit(types.UniTuple(int64, 5)(*(int64,) * 16))
def _unpack_pair_256(
    builder: Any, a_1: Any, b_1: Any, limit_1: Any, a_2: Any, b_2: Any, limit_2: Any, count: Any, k_b: Any,
    to_1: Any, to_2: Any, rest_1: Any, rest_2: Any, escape_1: Any, escape_2: Any, work_1: Any, work_2: Any,
) -> Any:  # fmt: skip
    """`count` rounds of both groups of two frames of bfloat16, less where units could be read past a limit. Returns rounds, places."""
    two_rounds = _two_rounds_of_256(bfloat16=True, renormalise=_renormalise_pairs)
    frames = ((to_1, rest_1, escape_1, work_1), (to_2, rest_2, escape_2, work_2))
    works_b = [offset(builder, work, STATES + 256) for work in (work_1, work_2)]

    def more(current: Any) -> Any:
        *_, a_1, b_1, a_2, b_2, i = current
        go_on = builder.icmp_signed("<", i, count)
        for place, limit in ((a_1, limit_1), (b_1, limit_1), (a_2, limit_2), (b_2, limit_2)):
            go_on = builder.and_(go_on, builder.icmp_signed("<=", place, limit))
        return go_on

    def body(current: Any) -> Any:
        *states, a_1, b_1, a_2, b_2, i = current
        k = i, builder.add(k_b, i)
        result, places = [], []
        for which, ((to, rest, escape, work), a, b) in enumerate(zip(frames, (a_1, a_2), (b_1, b_2), strict=True)):
            at = [builder.add(to, builder.shl(each, _i64(7))) for each in k]
            planes = [rest] * 4 + [_i64(64)] * 4
            for each, place in zip(k, at, strict=True):
                for line in (0, 64):
                    prefetch(builder, offset(builder, place, AHEAD + line), write=True)
                prefetch(builder, offset(builder, builder.add(rest, builder.shl(each, _i64(6))), AHEAD))
            for place in (a, b):
                prefetch(builder, offset(builder, place, AHEAD))
            *moved, a, b = two_rounds(builder, states[8 * which :][:8], a, b, *k, *at, planes, _i64(8), escape, work)
            fence(builder)
            result += moved
            places += [a, b]
        return *result, *places, builder.add(i, _i64(1))

    states = [state for work, states_b in zip((work_1, work_2), works_b, strict=True) for state in load_states(builder, work, states_b)]
    *states, a_1, b_1, a_2, b_2, i = loop(builder, [*states, a_1, b_1, a_2, b_2, _i64(0)], more, body)
    for which, (work, states_b) in enumerate(zip((work_1, work_2), works_b, strict=True)):
        store_states(builder, work, states_b, states[8 * which :][:8])
    return i, a_1, b_1, a_2, b_2


@piece(types.void(int64))
def _by_slot(work):
    """BY_SLOT, for tables of 8 bits."""
    for slot in range(256):
        rank = load_u8(work + RANK + slot)
        store_u8(work + BY_SLOT + slot, load_u16(work + FREQUENCY + 2 * rank))
        store_u8(work + BY_SLOT + 256 + slot, slot - load_u16(work + START + 2 * rank))


@piece(types.UniTuple(int64, 5)(Frame, Frame))
def unpack_pair_rounds(first, second):
    """Decode rounds of two frames side by side, since one alone waits for itself, while nothing outside the payloads can be read: bfloat16, tables of 8 bits.

    Returns how many in each group, -1 where these frames are no such pair, and the places after units A and B of each.
    """
    kind_1, s_1, payload_1, n_payload_1, out_1, rest_1, _, n_1, bits_1, _, groups_1, units_1, _, _, _, _, ranks_1, _, work_1 = first
    kind_2, s_2, payload_2, n_payload_2, out_2, rest_2, _, n_2, bits_2, _, groups_2, units_2, _, _, _, _, ranks_2, _, work_2 = second
    same = kind_1 == SPLIT2 and kind_2 == SPLIT2 and s_1 == 7 and s_2 == 7 and bits_1 == 8 and bits_2 == 8 and n_1 == n_2
    if not same or groups_1 != 2 or groups_2 != 2 or ranks_1 > 63 or ranks_2 > 63:
        return -1, 0, 0, 0, 0
    _by_slot(work_1)
    _by_slot(work_2)
    n_a = group_a(n_1, 2)
    return _unpack_pair_256(
        payload_1, payload_1 + 2 * units_1, payload_1 + n_payload_1 - BYTES_A_ROUND,
        payload_2, payload_2 + 2 * units_2, payload_2 + n_payload_2 - BYTES_A_ROUND,
        (n_1 - n_a) >> 6, n_a >> 6, out_1, out_2, rest_1, rest_2, ranks_1, ranks_2, work_1, work_2,
    )  # fmt: skip


@piece(types.UniTuple(int64, 3)(*(int64,) * 15))
def unpack_rounds(kind, s, payload, payload_end, middle, out, rest, low, n, n_a, bits, groups, n_symbols, escape, work):
    """Decode rounds of 64 lanes while nothing outside the payload can be read. Returns how many in each group, and the places after their units.

    A single group is decoded twice at once, both times to the same place.
    """
    whole, b, k_b, states_b = n >> 6, payload, int64(0), work + STATES
    if groups == 2:
        whole, b, k_b, states_b = (n - n_a) >> 6, middle, n_a >> 6, work + STATES + 256
    a, done = payload, int64(0)
    if n_symbols > 255 or whole == 0:
        return done, payload, middle
    if bits == 8:
        _by_slot(work)
    for rank in range(n_symbols + (escape > 0)):
        store_u16(work + SHIFTED + 2 * rank, load_u16(work + VALUE + 2 * rank) << s)
    limit = payload_end - BYTES_A_ROUND
    split = kind >= SPLIT2
    r = s + 1 if split else 0
    planes = plane_places(rest, n, r, work + NUMBERS)
    direct = U1 < kind < SPLIT4
    at_once = whole if direct else ROUNDS_AT_ONCE
    go_on = True
    while go_on and done < whole:
        count = min(at_once, whole - done)
        k_a, l_b = done, k_b + done
        to_a = out + 128 * k_a if direct else work + HALVES
        to_b = out + 128 * l_b if direct else work + HALVES + 128 * ROUNDS_AT_ONCE
        if bits == 8 and n_symbols < 64:
            if s == 7 and split:
                i, a, b = _unpack_256_bfloat16(a, b, limit, count, k_a, l_b, to_a, to_b, planes, s, r, bits, n_symbols, work, states_b)
            else:
                i, a, b = _unpack_256(a, b, limit, count, k_a, l_b, to_a, to_b, planes, s, r, bits, n_symbols, work, states_b)
        elif bits < 12 and n_symbols < 64:
            i, a, b = _unpack_2048(a, b, limit, count, k_a, l_b, to_a, to_b, planes, s, r, bits, n_symbols, work, states_b)
        elif bits < 12:
            i, a, b = _unpack_2048_many(a, b, limit, count, k_a, l_b, to_a, to_b, planes, s, r, bits, n_symbols, work, states_b)
        else:
            i, a, b = _unpack_4096(a, b, limit, count, k_a, l_b, to_a, to_b, planes, s, r, bits, n_symbols, work, states_b)
        if not direct:
            for k, halves in ((k_a, to_a), (l_b, to_b)):
                for j in range(i):
                    if kind == U1:
                        narrow_words(out + 64 * (k + j), halves + 128 * j)
                    else:
                        join_u32(out + 256 * (k + j), halves + 128 * j, low + 128 * (k + j))
        done += i
        go_on = i == count
    return done, a, b if groups == 2 else middle


# Packing


def _rounds_packed(n_near: int, n_ranks: int, groups: int = 2) -> Any:
    """A round of each group, for symbols among n_near - 1 neighbours, at most n_ranks ranks. Gives states, places after the units, and the escapes so far.

    With one group what belongs to the other is left as it is.
    """

    def rounds(
        builder: Any, states: Any, a: Any, b: Any, escapes: Any, k_a: Any, k_b: Any, from_a: Any, from_b: Any, planes: Any,
        s: Any, r: Any, mask: Any, first: Any, bits: Any, escape: Any, work: Any,
    ) -> Any:  # fmt: skip
        shift, all_bits = splat(builder, s, 16, 32), splat(builder, mask, 16, 32)
        base, below = splat(builder, first, 16, 32), splat(builder, builder.sub(builder.shl(_i64(1), s), _i64(1)), 16, 32)
        lows, highs = [], []
        for source, k in ((from_a, k_a), (from_b, k_b))[:groups]:
            words = [load(builder, offset(builder, source, half), 16, 32) for half in (0, 64)]
            near = [((word & all_bits) >> shift) - base for word in words]
            near = [x.least(n_near - 1) for x in near]
            lows.append(near[0].narrow(8).pick(range(64), near[1].narrow(8)))
            highs.append((near[0] >> 8).narrow(8).pick(range(64), (near[1] >> 8).narrow(8)) if n_near > 256 else lows[-1])
            store_rest(builder, block_places(builder, planes, k), r, [word & below | (word >> 15) << shift for word in words])
        ranks = _lookup_u8(builder, offset(builder, work, NEAR_RANK), n_near, lows, highs)
        for rank, k in zip(ranks, (k_a, k_b)[:groups], strict=True):
            escaped = rank.equals(splat(builder, escape, 8, 64))
            _note(builder, work, k, escaped)
            escapes = builder.or_(escapes, escaped.as_number())
        # Backwards: the last word first, so that units can be stored upwards. All four vectors, and the places in each, are reversed.
        split = [half for rank in ranks for half in _even_odd(rank.pick(range(63, -1, -1)))]
        divisors, biases, m_low, m_high = (
            _lookup_u16(builder, offset(builder, work, at), n_ranks, split) for at in (DIVISOR, BIAS, MULTIPLIER_LOW, MULTIPLIER_HIGH)
        )
        total, top = splat(builder, builder.shl(_i64(1), bits), 32, 16), splat(builder, builder.sub(_i64(32), bits), 32, 16)
        result, places = [], []
        for group, units in enumerate((a, b)[:groups]):
            even, odd = 2 * group, 2 * group + 1
            kept = []
            for v, x in enumerate(states[4 * group :][:4]):
                divisor, bias = _part(divisors[even], divisors[odd], v), _part(biases[even], biases[odd], v)
                f, more = divisor & 4095, divisor >> 12
                low, high = (pair[even + (v & 1)].of(32) for pair in (m_low, m_high))
                m = low & 65535 | high << 16 if v < 2 else low >> 16 | high & 0xFFFF0000
                full = f.least(x >> top).equals(f)
                kept.append((x, full))
                if v & 1:
                    before, full_before = kept[-2]
                    both = full_before.pick(range(32), full)
                    store(units, compress(before.of(16).pick(range(0, 64, 2), x.of(16)), both))
                    units = builder.add(units, builder.shl(builder.ctpop(both.as_number()), _i64(1)))
                x = full.where(x >> 16, x)
                q = high_product(x, m) >> more
                result.append(x + bias + q * (total - f))
            places.append(units)
        return *result, *states[4 * groups :], *places, *(a, b)[groups:], escapes

    return rounds


def high_product(x: Vector, y: Vector) -> Vector:
    """The upper halves of the lanes' products."""
    even = (x.of(64) & 0xFFFFFFFF) * (y.of(64) & 0xFFFFFFFF) >> 32
    odd = (x.of(64) >> 32) * (y.of(64) >> 32) & 0xFFFFFFFF00000000
    return (even | odd).of(32)


def _pack_loop(two_rounds: Any) -> Any:
    @emit(types.Tuple((int64, int64, uint64))(*(int64,) * 7, Planes, *(int64,) * 8))
    def rounds(
        builder: Any, a: Any, b: Any, count: Any, k_a: Any, k_b: Any, from_a: Any, from_b: Any, planes: Any,
        s: Any, r: Any, mask: Any, first: Any, bits: Any, escape: Any, work: Any, states_b: Any,
    ) -> Any:  # fmt: skip
        """`count` rounds of each group, backwards, down to the k_a-th and k_b-th 64 words. Returns places after the units, and the escapes together."""

        def more(current: Any) -> Any:
            return builder.icmp_signed(">", current[-1], _i64(0))

        def body(current: Any) -> Any:
            *states, a, b, escapes, left = current
            i = builder.sub(left, _i64(1))
            at = builder.shl(i, _i64(7))
            places = builder.add(k_a, i), builder.add(k_b, i), builder.add(from_a, at), builder.add(from_b, at)
            return *two_rounds(builder, states, a, b, escapes, *places, planes, s, r, mask, first, bits, escape, work), i

        *states, a, b, escapes, _ = loop(builder, [*load_states(builder, work, states_b, *BACKWARDS), a, b, _i64(0), count], more, body)
        store_states(builder, work, states_b, states, *BACKWARDS)
        return a, b, escapes

    return rounds


_pack_128, _pack_256, _pack_1024 = (_pack_loop(_rounds_packed(n_near, n_ranks)) for n_near, n_ranks in ((128, 64), (256, 128), (1024, 256)))
_pack_128_alone, _pack_256_alone = (_pack_loop(_rounds_packed(n_near, n_ranks, 1)) for n_near, n_ranks in ((128, 64), (256, 128)))


@piece(types.void(int64, int64, int64))
def _packing_tables(bits, n_ranks, work):
    """DIVISOR, BIAS, multipliers: quotients by a 32-bit product and a shift; a frequency of 1 gets one less than the quotient, which its bias mends."""
    for rank in range(n_ranks):
        f, bias = load_u16(work + FREQUENCY + 2 * rank), load_u16(work + START + 2 * rank)
        m, k, _ = reciprocal(f, bits)
        if f == 1:
            m, k, bias = 0xFFFFFFFF, 32, bias + (1 << bits) - 1
        store_u16(work + DIVISOR + 2 * rank, f | (k - 32) << 12)
        store_u16(work + BIAS + 2 * rank, bias)
        store_u16(work + MULTIPLIER_LOW + 2 * rank, m)
        store_u16(work + MULTIPLIER_HIGH + 2 * rank, m >> 16)


@piece(types.UniTuple(int64, 3)(*(int64,) * 15))
def pack_rounds(kind, s, words, rest, low, n, n_a, whole, bits, groups, n_symbols, escape, a, b, work):
    """Code the first `whole` rounds of each group, backwards, if the table suits. Returns rounds that are left, and the places after the units.

    A single group with a large table is coded twice at once, both times to the same place.
    """
    first = load_u16(work + VALUE)
    spread = load_u16(work + VALUE + 2 * (n_symbols - 1)) - first + 1
    if n_symbols > 255 or spread > 1023:
        return whole, a, b
    _packing_tables(bits, n_symbols + (escape > 0), work)
    fill(work + NEAR_RANK, n_symbols, 1024)
    for rank in range(n_symbols):
        store_u8(work + NEAR_RANK + load_u16(work + VALUE + 2 * rank) - first, rank)
    k_b, states_b, unused = n_a >> 6, work + STATES + 256, b
    if groups == 1:
        k_b, b = int64(0), a
        copy(states_b, work + STATES, 256)
    split = kind >= SPLIT2
    r, mask = (s + 1, 32767) if split else (0, 65535)
    planes = plane_places(rest, n, r, work + NUMBERS)
    direct = U1 < kind < SPLIT4
    at_once = whole if direct else ROUNDS_AT_ONCE
    escapes = uint64(0)
    left = whole
    while left:
        count = min(at_once, left)
        left -= count
        k_a, l_b = left, k_b + left
        from_a = words + 128 * k_a if direct else work + HALVES
        from_b = words + 128 * l_b if direct else work + HALVES + 128 * ROUNDS_AT_ONCE * (groups - 1)
        if not direct:
            for group in range(groups):
                k, halves = (l_b, from_b) if group else (k_a, from_a)
                for j in range(count):
                    if kind == U1:
                        widen_words(words + 64 * (k + j), halves + 128 * j)
                    else:
                        split_u32(words + 256 * (k + j), halves + 128 * j, low + 128 * (k + j))
        if spread < 128 and n_symbols < 64 and groups == 1:
            a, b, found = _pack_128_alone(a, b, count, k_a, l_b, from_a, from_b, planes, s, r, mask, first, bits, n_symbols, work, states_b)
        elif spread < 128 and n_symbols < 64:
            a, b, found = _pack_128(a, b, count, k_a, l_b, from_a, from_b, planes, s, r, mask, first, bits, n_symbols, work, states_b)
        elif spread < 256 and n_symbols < 128 and groups == 1:
            a, b, found = _pack_256_alone(a, b, count, k_a, l_b, from_a, from_b, planes, s, r, mask, first, bits, n_symbols, work, states_b)
        elif spread < 256 and n_symbols < 128:
            a, b, found = _pack_256(a, b, count, k_a, l_b, from_a, from_b, planes, s, r, mask, first, bits, n_symbols, work, states_b)
        else:
            a, b, found = _pack_1024(a, b, count, k_a, l_b, from_a, from_b, planes, s, r, mask, first, bits, n_symbols, work, states_b)
        escapes |= found
    if escapes and escape == 0:
        return left, int64(0), int64(0)
    return left, a, b if groups == 2 else unused
