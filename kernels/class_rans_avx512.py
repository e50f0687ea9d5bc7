"""The AVX-512 VBMI arm of `class_rans`: rounds as in `rans_avx512`, but entries come by gathers, since the tables of all classes fit no registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.types import int64

from modelcodec.kernels.frequencies import SPLIT2, SPLIT4, U1
from modelcodec.kernels.jit import piece
from modelcodec.kernels.rans_avx512 import BACKWARDS, BYTES_A_ROUND, high_product, load_states, prepare_rest, renormalise, store_states, store_words
from modelcodec.kernels.rans_layout import HALVES, NOTES, NUMBERS, ROUNDS_AT_ONCE, STATES
from modelcodec.kernels.rans_words import Planes, block_places, join_u32, narrow_words, plane_places, split_u32, store_rest, widen_words
from modelcodec.kernels.simd import Vector, compress, emit, fence, load, loop, offset, permute2, splat, store

_ESCAPE = 1023


def _i64(number: int) -> Any:
    return ir.Constant(ir.IntType(64), number)


@emit(types.void(*(int64,) * 5))
def map_row(builder: Any, column_scales: Any, m: Any, scale: Any, class_of: Any, to: Any) -> None:
    """Classes of m neighbours in a row of this scale, and of up to 63 places after them."""
    low, high, row = load(builder, class_of, 8, 64), load(builder, offset(builder, class_of, 64), 8, 64), splat(builder, scale, 8, 64)

    def more(current: Any) -> Any:
        return builder.icmp_signed("<", current[0], m)

    def body(current: Any) -> Any:
        (i,) = current
        store(builder.add(to, i), permute2(low, high, load(builder, builder.add(column_scales, i), 8, 64) + row))
        return (builder.add(i, _i64(64)),)

    loop(builder, [_i64(0)], more, body)


def _gather(builder: Any, table: Any, index: Vector, scale: int) -> Vector:
    """u32s at a table's address, `scale` bytes apart."""
    pointer, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind, mask = index.value.type, ir.VectorType(ir.IntType(1), 16)
    name = "llvm.x86.avx512.mask.gather.dpi.512"
    function = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(kind, [kind, pointer, kind, mask, i32]), name)
    everywhere, nothing = ir.Constant(mask, [1] * 16), ir.Constant(kind, [0] * 16)
    return Vector(builder, builder.call(function, [nothing, builder.inttoptr(table, pointer), index.value, everywhere, ir.Constant(i32, scale)]))


def _classes(builder: Any, classes: Any, k: Any) -> Vector:
    """Of the k-th 64 words, as bytes."""
    return load(builder, builder.add(classes, builder.shl(k, _i64(6))), 8, 64)


def _keep_note(builder: Any, work: Any, k: Any, number: Any) -> None:
    """Keep which of the k-th 64 words are escapes."""
    place = builder.add(offset(builder, work, NOTES), builder.shl(k, _i64(3)))
    store(place, Vector(builder, builder.bitcast(number, ir.VectorType(ir.IntType(64), 1))))


# Unpacking

_IN_ORDER = [2 * (j // 4) + (j % 4 >> 1) + 32 * (j & 1) for j in range(64)]
"""Where the words of a round are, in their order, among the u16s of vectors 0 and 2, then of 1 and 3."""


@emit(types.UniTuple(int64, 3)(*(int64,) * 8, Planes, *(int64,) * 7))
def _unpack_loop(
    builder: Any, a: Any, b: Any, limit: Any, count: Any, k_a: Any, k_b: Any, to_a: Any, to_b: Any, planes: Any,
    s: Any, r: Any, bits: Any, entries: Any, classes: Any, work: Any, states_b: Any,
) -> Any:  # fmt: skip
    """`count` rounds of each group from the k_a-th and k_b-th 64 words on, less where units could be read past `limit`. Returns rounds, places."""

    def one(xs: Sequence[Vector], units: Any, k: Any, to: Any) -> tuple[list[Vector], Any]:
        shift, mask = splat(builder, bits, 32, 16), splat(builder, builder.sub(builder.shl(_i64(1), bits), _i64(1)), 32, 16)
        of_word = _classes(builder, classes, k).of(32)
        found = [_gather(builder, entries, (of_word >> 8 * v & 255) << shift | x & mask, 4) for v, x in enumerate(xs)]
        moved, units = renormalise(builder, [(x >> shift) * (entry & 2047) + (entry >> 11 & 2047) for x, entry in zip(xs, found, strict=True)], units)
        even, odd = (found[v] >> 22 | found[v + 2] >> 22 << 16 for v in (0, 1))
        symbols = [even.of(16).pick(_IN_ORDER[half : half + 32], odd.of(16)) for half in (0, 32)]
        escapes = [x.equals(_ESCAPE) for x in symbols]
        _keep_note(builder, work, k, builder.or_(escapes[0].as_number(), builder.shl(escapes[1].as_number(), _i64(32))))
        up, nothing = splat(builder, s, 16, 32), symbols[0].each([0] * 32)
        placed = [escape.where(nothing, x) << up for escape, x in zip(escapes, symbols, strict=True)]
        store_words(builder, to, placed, block_places(builder, planes, k), work)
        fence(builder)
        return moved, units

    def more(current: Any) -> Any:
        i, a, b = current[-1], current[-3], current[-2]
        inside = builder.and_(builder.icmp_signed("<=", a, limit), builder.icmp_signed("<=", b, limit))
        return builder.and_(builder.icmp_signed("<", i, count), inside)

    def body(current: Any) -> Any:
        *states, a, b, i = current
        at = builder.shl(i, _i64(7))
        first, a = one(states[:4], a, builder.add(k_a, i), builder.add(to_a, at))
        second, b = one(states[4:], b, builder.add(k_b, i), builder.add(to_b, at))
        return *first, *second, a, b, builder.add(i, _i64(1))

    prepare_rest(builder, s, r, work)
    *states, a, b, i = loop(builder, [*load_states(builder, work, states_b), a, b, _i64(0)], more, body)
    store_states(builder, work, states_b, states)
    return i, a, b


@piece(types.UniTuple(int64, 3)(*(int64,) * 15))
def unpack_rounds(kind, s, payload, payload_end, middle, out, rest, low, n, n_a, bits, groups, entries, classes, work):
    """Decode rounds of 64 lanes while nothing outside the payload can be read. Returns how many in each group, and the places after their units.

    A single group is decoded twice at once, both times to the same place.
    """
    whole, b, k_b, states_b = n >> 6, payload, int64(0), work + STATES
    if groups == 2:
        whole, b, k_b, states_b = (n - n_a) >> 6, middle, n_a >> 6, work + STATES + 256
    a, done = payload, int64(0)
    limit = payload_end - BYTES_A_ROUND
    r = s + 1 if kind >= SPLIT2 else 0
    planes = plane_places(rest, n, r, work + NUMBERS)
    direct = U1 < kind < SPLIT4
    at_once = whole if direct else ROUNDS_AT_ONCE
    go_on = True
    while go_on and done < whole:
        count = min(at_once, whole - done)
        k_a, l_b = done, k_b + done
        to_a = out + 128 * k_a if direct else work + HALVES
        to_b = out + 128 * l_b if direct else work + HALVES + 128 * ROUNDS_AT_ONCE
        i, a, b = _unpack_loop(a, b, limit, count, k_a, l_b, to_a, to_b, planes, s, r, bits, entries, classes, work, states_b)
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

_EVEN_ODD_BACKWARDS = [[63 - 2 * j - odd for j in range(32)] for odd in (0, 1)]
"""The words of a round, the last one first, as u16s of vectors 0 and 2, then of 1 and 3."""


@emit(types.UniTuple(int64, 2)(*(int64,) * 7, Planes, *(int64,) * 8))
def _pack_loop(
    builder: Any, a: Any, b: Any, count: Any, k_a: Any, k_b: Any, from_a: Any, from_b: Any, planes: Any,
    s: Any, r: Any, sign: Any, bits: Any, entries: Any, classes: Any, work: Any, states_b: Any,
) -> Any:  # fmt: skip
    """`count` rounds of each group, backwards, down to the k_a-th and k_b-th 64 words. Returns the places after the units.

    As in `rans_avx512`, units are stored upwards, so all is reversed: vectors, and places in each.
    """

    def one(states: Sequence[Vector], units: Any, k: Any, source: Any) -> tuple[list[Vector], Any]:
        shift, below = splat(builder, s, 16, 32), splat(builder, builder.sub(builder.shl(_i64(1), s), _i64(1)), 16, 32)
        magnitude = splat(builder, builder.xor(sign, _i64(65535)), 16, 32)
        words = [load(builder, offset(builder, source, half), 16, 32) for half in (0, 64)]
        symbols = [((word & magnitude) >> shift).least(_ESCAPE) for word in words]
        store_rest(builder, block_places(builder, planes, k), r, [word & below | (word >> 15) << shift for word in words])
        even, odd = (symbols[0].pick(order, symbols[1]).of(32) for order in _EVEN_ODD_BACKWARDS)
        of_word = _classes(builder, classes, k).pick(range(63, -1, -1)).of(32)
        total, top = splat(builder, builder.shl(_i64(1), bits), 32, 16), splat(builder, builder.sub(_i64(32), bits), 32, 16)
        escapes = of_word.each([0] * 16)
        result = []
        for v, x in enumerate(states):
            symbol = (odd if v & 1 else even) & 65535 if v < 2 else (odd if v & 1 else even) >> 16
            index = (of_word >> 8 * v & 255) << 10 | symbol
            entry, m = (_gather(builder, offset(builder, entries, part), index, 8) for part in (0, 4))
            escapes = escapes | (entry & 1 << 31) >> 24 - 8 * v
            f = entry & 2047
            full = f.least(x >> top).equals(f)
            store(units, compress(x, full).narrow(16))
            units = builder.add(units, builder.shl(builder.ctpop(full.as_number()), _i64(1)))
            x = full.where(x >> 16, x)
            q = high_product(x, m) >> (entry >> 23 & 31)
            q = (x - q * f).top_bit().where(q - 1, q)
            result.append(x + (entry >> 11 & 4095) + q * (total - f))
        _keep_note(builder, work, k, escapes.of(8).pick(range(63, -1, -1)).top_bit().as_number())
        fence(builder)
        return result, units

    def more(current: Any) -> Any:
        return builder.icmp_signed(">", current[-1], _i64(0))

    def body(current: Any) -> Any:
        *states, a, b, left = current
        i = builder.sub(left, _i64(1))
        at = builder.shl(i, _i64(7))
        first, a = one(states[:4], a, builder.add(k_a, i), builder.add(from_a, at))
        second, b = one(states[4:], b, builder.add(k_b, i), builder.add(from_b, at))
        return *first, *second, a, b, i

    *states, a, b, _ = loop(builder, [*load_states(builder, work, states_b, *BACKWARDS), a, b, count], more, body)
    store_states(builder, work, states_b, states, *BACKWARDS)
    return a, b


@piece(types.UniTuple(int64, 3)(*(int64,) * 15))
def pack_rounds(kind, s, words, rest, low, n, n_a, whole, bits, groups, entries, classes, a, b, work):
    """Code the first `whole` rounds of each group, backwards. Returns rounds that are left, and the places after the units."""
    k_b, states_b, unused = int64(0), work + STATES, b
    if groups == 2:
        k_b, states_b = n_a >> 6, work + STATES + 256
    else:
        b = a
    split = kind >= SPLIT2
    r, sign = (s + 1, 32768) if split else (0, 0)
    planes = plane_places(rest, n, r, work + NUMBERS)
    direct = U1 < kind < SPLIT4
    at_once = whole if direct else ROUNDS_AT_ONCE
    left = whole
    while left:
        count = min(at_once, left)
        left -= count
        k_a, l_b = left, k_b + left
        from_a = words + 128 * k_a if direct else work + HALVES
        from_b = words + 128 * l_b if direct else work + HALVES + 128 * ROUNDS_AT_ONCE
        if not direct:
            for k, halves in ((k_a, from_a), (l_b, from_b)):
                for j in range(count):
                    if kind == U1:
                        widen_words(words + 64 * (k + j), halves + 128 * j)
                    else:
                        split_u32(words + 256 * (k + j), halves + 128 * j, low + 128 * (k + j))
        a, b = _pack_loop(a, b, count, k_a, l_b, from_a, from_b, planes, s, r, sign, bits, entries, classes, work, states_b)
    return left, a, b if groups == 2 else unused
