"""The arm of `rans` for any processor: whole rounds of 64 lanes, where states go lane by lane and everything else through plain LLVM vectors.

What belongs to a slot (unpacking) or a symbol (packing) lies in one entry of a table, so that a lane reads memory once. For some rounds at a time, one loop
takes the states through a *step* for each round, and others turn what that left, a *code* of 16 bits for each word, into words; packing, the other way round.
`decoder`, `group_coder` and `coder` make an arm out of its steps; those here suit any processor. `class_rans_vector` has steps of its own.

Word r of a round belongs to lane 16 * (r mod 4) + r / 4. Codes lie in the order of the words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.types import int64, uint64

from modelcodec.kernels import memory
from modelcodec.kernels.frequencies import SPLIT2, SPLIT4, U1, reciprocal
from modelcodec.kernels.jit import piece
from modelcodec.kernels.memory import load_u16, store_u32, store_u64
from modelcodec.kernels.rans_layout import ENTRIES, FREQUENCY, HALVES, NOTES, NUMBERS, ROUNDS_AT_ONCE, START, STATES, VALUE
from modelcodec.kernels.rans_words import (
    Planes,
    block_places,
    join_u32,
    joined_bfloat16,
    joined_words,
    narrow_words,
    plane_places,
    split_u32,
    store_rest,
    widen_words,
)
from modelcodec.kernels.simd import Vector, element, emit, load, loop, offset, opaque, splat, store, unsigned

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
BYTES_A_ROUND = 128
"""A round takes at most this many bytes of units, and a step touches no more."""

Step = Callable[..., Any]
"""`step(builder, states, units, codes, bits, table)` brings 64 states at an address through a round and gives the place after its units.

`table` is an address from which the step finds its entries: in `rans` that of the scratch memory.
"""


def _i64(number: int) -> Any:
    return ir.Constant(_I64, number)


def ones(builder: Any, n: Any) -> Any:
    """The number whose n lowest bits are set."""
    return builder.sub(builder.shl(_i64(1), n), _i64(1))


def word_of(lane: int) -> int:
    """The word of a round that belongs to a lane."""
    return 4 * (lane % 16) + lane // 16


def codes_of_eight(builder: Any, codes: Any, i: Any) -> Any:
    """Address of the code of lane 8 i; the next lanes' codes lie 8 bytes further each."""
    one = _i64(1)
    first = builder.add(builder.shl(builder.and_(i, one), _i64(5)), builder.lshr(i, one))
    return element(builder, codes, 2, first)


def loop_over(builder: Any, count: Any, body: Callable[[Any], None]) -> None:
    """Emit `for i in range(count): body(i)`."""

    def step(current: Sequence[Any]) -> Sequence[Any]:
        body(current[0])
        return [builder.add(current[0], _i64(1))]

    loop(builder, [_i64(0)], lambda current: builder.icmp_signed("<", current[0], count), step)


def _store_note(builder: Any, work: Any, k: Any, half: int, mask: Vector) -> None:
    """Keep which words of a half of the k-th 64 ones are escapes."""
    place = element(builder, offset(builder, work, NOTES + 4 * half), 8, k)
    memory.store(builder, place, builder.trunc(mask.as_number(), _I32))


# Unpacking: states. An entry: distance from the symbol's first slot in the lowest B bits, frequency in the highest B, a code for the symbol between


def lane_by_lane(builder: Any, states: Any, units: Any, codes: Any, bits: Any, work: Any) -> Any:
    """A step of unpacking; stores codes, with something else in the bits above."""
    slots, up, table = ones(builder, bits), builder.sub(_i64(32), bits), offset(builder, work, ENTRIES)

    def eight(current: Sequence[Any]) -> Sequence[Any]:
        units, i = current
        states_here, codes_here = element(builder, states, 32, i), codes_of_eight(builder, codes, i)
        for lane in range(8):
            state = offset(builder, states_here, 4 * lane)
            x = unsigned(builder, state, 32)
            entry = unsigned(builder, element(builder, table, 4, builder.and_(x, slots)), 32)
            memory.store(builder, offset(builder, codes_here, 8 * lane), builder.trunc(builder.lshr(entry, bits), _I16))
            x = builder.add(builder.mul(builder.lshr(x, bits), builder.lshr(entry, up)), builder.and_(entry, slots))
            low = builder.icmp_unsigned("<", x, _i64(1 << 16))
            x = builder.select(low, builder.or_(builder.shl(x, _i64(16)), opaque(builder, unsigned(builder, units, 16))), x)
            units = element(builder, units, 2, builder.zext(low, _I64))
            memory.store(builder, state, builder.trunc(x, _I32))
        return units, builder.add(i, _i64(1))

    return loop(builder, [units, _i64(0)], lambda current: builder.icmp_signed("<", current[1], _i64(8)), eight)[0]


@emit(types.void(*(int64,) * 4))
def _no_classes(builder: Any, codes: Any, classes: Any, count: Any, bits: Any) -> None:
    """What a step of `rans` needs to find in codes: nothing more."""


def _state_loop(step: Step) -> Any:
    @emit(types.UniTuple(int64, 2)(*(int64,) * 7))
    def rounds(builder: Any, units: Any, limit: Any, count: Any, codes: Any, bits: Any, states: Any, table: Any) -> Any:
        """Codes of `count` rounds, less where units could be read past `limit`. Returns rounds, place after the units."""

        def more(current: Any) -> Any:
            units, i = current
            return builder.and_(builder.icmp_signed("<", i, count), builder.icmp_signed("<=", units, limit))

        def body(current: Any) -> Any:
            units, i = current
            return step(builder, states, units, element(builder, codes, 128, i), bits, table), builder.add(i, _i64(1))

        units, i = loop(builder, [units, _i64(0)], more, body)
        return i, units

    return rounds


# Unpacking: words


def _word_loop(by_rank: bool, join: Callable[..., list[Vector]]) -> Any:
    @emit(types.void(*(int64,) * 4, Planes, *(int64,) * 6))
    def rounds(
        builder: Any, codes: Any, count: Any, k: Any, to: Any, planes: Any, s: Any, r: Any, first: Any, escape: Any, most: Any, work: Any
    ) -> None:  # fmt: skip
        """Words, and notes, from the codes of `count` rounds, of which the first is the k-th 64 words."""
        mask, base, escape_code = (splat(builder, x, 16, 16) for x in (most, first, escape))

        def body(i: Any) -> None:
            source, at = element(builder, codes, 128, i), builder.add(k, i)
            found = [load(builder, offset(builder, source, 32 * part), 16, 16) & mask for part in range(4)]
            escaped = [code.equals(escape_code) for code in found]
            for half in (0, 1):
                _store_note(builder, work, at, half, escaped[2 * half].pick(range(32), escaped[2 * half + 1]))
            if by_rank:
                symbols = [_values(builder, code, work) for code in found]
            else:
                symbols = [is_escape.where(code.each([0] * 16), code + base) for code, is_escape in zip(found, escaped, strict=True)]
            for part, word in enumerate(join(builder, symbols, block_places(builder, planes, at), s, r)):
                store(offset(builder, element(builder, to, 128, i), 32 * part), word)

        loop_over(builder, count, body)

    return rounds


def _values(builder: Any, ranks: Vector, work: Any) -> Vector:
    """The symbols of 16 ranks."""
    result, values = ranks.value, offset(builder, work, VALUE)
    for i in range(16):
        place = ir.Constant(_I32, i)
        rank = builder.zext(builder.extract_element(ranks.value, place), _I64)
        result = builder.insert_element(result, memory.load(builder, element(builder, values, 2, rank), _I16), place)
    return Vector(builder, result)


_words_bfloat16, _words, _words_by_rank = _word_loop(False, joined_bfloat16), _word_loop(False, joined_words), _word_loop(True, joined_words)


@piece(int64(*(int64,) * 4))
def _free_code(base, n_symbols, n_codes, work):
    """The lowest code that no symbol has, codes being symbols less `base`; -1 where there are not codes enough."""
    code = int64(0)
    while code < n_symbols and load_u16(work + VALUE + 2 * code) - base == code:
        code += 1
    last = load_u16(work + VALUE + 2 * (n_symbols - 1)) - base
    return code if max(code, last) < n_codes else int64(-1)


@piece(types.void(*(int64,) * 6))
def _decoding_entries(bits, n_symbols, escape, base, escape_code, work):
    """Write ENTRIES; a code is the symbol less `base`, or the rank if that is negative."""
    at = work + ENTRIES
    for rank in range(n_symbols + (escape > 0)):
        f = load_u16(work + FREQUENCY + 2 * rank)
        code = escape_code if rank == n_symbols else rank if base < 0 else load_u16(work + VALUE + 2 * rank) - base
        entry = f << (32 - bits) | code << bits
        for distance in range(f):
            store_u32(at, entry | distance)
            at += 4


def group_decoder(step: Step, put_classes: Any = _no_classes) -> Any:
    """What unpacks a group, from an arm's step and what puts classes into codes for it."""
    state_rounds = _state_loop(step)

    @piece(types.UniTuple(int64, 2)(*(int64,) * 18))
    def unpack_group(kind, s, units, limit, out, rest, low, n, bits, k, count, base, escape_code, most, table, classes, work, states):
        """`count` rounds of a group from the k-th 64 words on, fewer where units run out. Returns rounds, place after the units.

        A code, in the bits of `most`, is the symbol less `base`, or the rank if that is negative.
        """
        split = kind >= SPLIT2
        r = s + 1 if split else 0
        planes = plane_places(rest, n, r, work + NUMBERS)
        codes = work + HALVES
        done, i, now = int64(0), int64(0), int64(0)
        while i == now and done < count:
            now = min(count - done, ROUNDS_AT_ONCE)
            here = k + done
            put_classes(codes, classes + 64 * here, now, bits)
            i, units = state_rounds(units, limit, now, codes, bits, states, table)
            to = out + 128 * here if U1 < kind < SPLIT4 else codes
            if s == 7 and split and base == 0:
                _words_bfloat16(codes, i, here, to, planes, s, r, base, escape_code, most, work)
            elif base >= 0:
                _words(codes, i, here, to, planes, s, r, base, escape_code, most, work)
            else:
                _words_by_rank(codes, i, here, to, planes, s, r, base, escape_code, most, work)
            if kind == U1:
                for j in range(i):
                    narrow_words(out + 64 * (here + j), to + 128 * j)
            elif kind == SPLIT4:
                for j in range(i):
                    join_u32(out + 256 * (here + j), to + 128 * j, low + 128 * (here + j))
            done += i
        return done, units

    return unpack_group


def decoder(step: Step) -> Any:
    """`unpack_rounds` of an arm, from its step."""
    unpack_group = group_decoder(step)

    @piece(types.UniTuple(int64, 3)(*(int64,) * 15))
    def unpack_rounds(kind, s, payload, payload_end, middle, out, rest, low, n, n_a, bits, groups, n_symbols, escape, work):
        """Decode rounds of 64 lanes while nothing outside the payload can be read. Returns how many in each group, and the places after their units.

        Where one group stops early its units have reached into the states, so that the payload is damaged however far the other one came.
        """
        whole = (n - n_a if groups == 2 else n_a) >> 6
        if whole == 0 or n_symbols > 255:
            return int64(0), payload, middle
        base = int64(0) if s >= 7 else load_u16(work + VALUE)
        escape_code = _free_code(base, n_symbols, int64(1) << (32 - 2 * bits), work)
        if escape_code < 0:
            base, escape_code = int64(-1), n_symbols
        _decoding_entries(bits, n_symbols, escape, base, escape_code, work)
        limit, most = payload_end - BYTES_A_ROUND, (int64(1) << (32 - 2 * bits)) - 1
        done, a = unpack_group(kind, s, payload, limit, out, rest, low, n, bits, int64(0), whole, base, escape_code, most, work, 0, work, work + STATES)
        if groups == 1:
            return done, a, middle
        done_b, b = unpack_group(kind, s, middle, limit, out, rest, low, n, bits, n_a >> 6, whole, base, escape_code, most, work, 0, work, work + STATES + 256)
        return min(done, done_b), a, b

    return unpack_rounds


# Packing. A code is the symbol less the first one. An entry: multiplier in the low half; in the high one 12 bits of frequency, 13 of bias, 4 of shift, and at
# the top whether it is an escape

N_NEAR = 2048
"""Symbols that have entries, from the first one on; the last of these is always an escape."""


def lane_by_lane_backwards(builder: Any, states: Any, units: Any, codes: Any, bits: Any, work: Any) -> Any:
    """A step of packing, the last lane first, so that units are stored upwards. Leaves in the place of each code 16 bits, the highest set for an escape."""
    total, top, table = builder.shl(_i64(1), bits), builder.sub(_i64(32), bits), offset(builder, work, ENTRIES)

    def eight(current: Sequence[Any]) -> Sequence[Any]:
        units, left = current
        i = builder.sub(left, _i64(1))
        states_here, codes_here = element(builder, states, 32, i), codes_of_eight(builder, codes, i)
        for lane in range(7, -1, -1):
            state, code = offset(builder, states_here, 4 * lane), offset(builder, codes_here, 8 * lane)
            entry = memory.load(builder, element(builder, table, 8, unsigned(builder, code, 16)), _I64)
            memory.store(builder, code, builder.trunc(builder.lshr(entry, _i64(48)), _I16))
            f, bias, more = (builder.and_(builder.lshr(entry, _i64(32 + at)), _i64(mask)) for at, mask in ((0, 4095), (12, 8191), (25, 15)))
            x = unsigned(builder, state, 32)
            full = builder.icmp_unsigned(">=", builder.lshr(x, top), f)
            memory.store(builder, units, builder.trunc(x, _I16))
            units = element(builder, units, 2, builder.zext(full, _I64))
            x = builder.select(full, builder.lshr(x, _i64(16)), x)
            q = builder.lshr(builder.lshr(builder.mul(x, builder.and_(entry, _i64(0xFFFFFFFF))), _i64(32)), more)
            x = builder.add(builder.add(x, bias), builder.mul(q, builder.sub(total, f)))
            memory.store(builder, state, builder.trunc(x, _I32))
        return units, i

    return loop(builder, [units, _i64(8)], lambda current: builder.icmp_signed(">", current[1], _i64(0)), eight)[0]


def state_loop_backwards(step: Step) -> Any:
    """What brings states through rounds, from what brings them through one."""

    @emit(int64(*(int64,) * 6))
    def rounds(builder: Any, units: Any, count: Any, codes: Any, bits: Any, states: Any, table: Any) -> Any:
        """`count` rounds, the last one first. Returns the place after the units."""

        def body(current: Any) -> Any:
            units, left = current
            i = builder.sub(left, _i64(1))
            return step(builder, states, units, element(builder, codes, 128, i), bits, table), i

        return loop(builder, [units, count], lambda current: builder.icmp_signed(">", current[1], _i64(0)), body)[0]

    return rounds


def _code_loop(most: int) -> Any:
    @emit(types.void(*(int64,) * 4, Planes, *(int64,) * 4))
    def rounds(builder: Any, codes: Any, words: Any, count: Any, k: Any, planes: Any, s: Any, r: Any, mask: Any, first: Any) -> None:
        """Codes of `count` rounds, of which the first is the k-th 64 words, and their rest. A code is the symbol less `first`, but at most `most`."""
        shift, all_bits, base, below = (splat(builder, x, 16, 32) for x in (s, mask, first, ones(builder, s)))

        def body(i: Any) -> None:
            source, to = element(builder, words, 128, i), element(builder, codes, 128, i)
            here = [load(builder, offset(builder, source, half), 16, 32) for half in (0, 64)]
            store_rest(builder, block_places(builder, planes, builder.add(k, i)), r, [word & below | (word >> 15) << shift for word in here])
            for half, word in zip((0, 64), here, strict=True):
                store(offset(builder, to, half), (((word & all_bits) >> shift) - base).least(most))

        loop_over(builder, count, body)

    return rounds


@emit(uint64(*(int64,) * 4))
def _notes(builder: Any, codes: Any, count: Any, k: Any, work: Any) -> Any:
    """Note the escapes of `count` rounds, of which the first is the k-th 64 words. Returns a number that is 0 if there are none."""

    def body(current: Any) -> Any:
        found, i = current
        source, at = element(builder, codes, 128, i), builder.add(k, i)
        for half in (0, 1):
            flags = [load(builder, offset(builder, source, 64 * half + part), 16, 16) for part in (0, 32)]
            _store_note(builder, work, at, half, flags[0].top_bit().pick(range(32), flags[1].top_bit()))
            found = found | flags[0] | flags[1]
        return found, builder.add(i, _i64(1))

    found, _ = loop(builder, [splat(builder, _i64(0), 16, 16), _i64(0)], lambda current: builder.icmp_signed("<", current[1], count), body)
    return found.top_bit().as_number()


@piece(types.void(*(int64,) * 4))
def coding_entries(bits, n_symbols, escape, work):
    """Write ENTRIES: quotients by a 32-bit product and a shift; a frequency of 1 gets one less than the quotient, which its bias mends."""
    first = load_u16(work + VALUE)
    for rank in range(n_symbols, -1, -1):
        entry = uint64(1) << uint64(63)
        if rank < n_symbols + (escape > 0):
            f, bias = load_u16(work + FREQUENCY + 2 * rank), load_u16(work + START + 2 * rank)
            m, k, _ = reciprocal(f, bits)
            if f == 1:
                m, k, bias = int64(0xFFFFFFFF), int64(32), bias + (1 << bits) - 1
            entry = uint64(m) | uint64(f | bias << 12 | (k - 32) << 25 | (rank == n_symbols) << 31) << uint64(32)
        if rank == n_symbols:
            for code in range(N_NEAR):
                store_u64(work + ENTRIES + 8 * code, entry)
        else:
            store_u64(work + ENTRIES + 8 * (load_u16(work + VALUE + 2 * rank) - first), entry)


def group_coder(state_rounds: Any, most: int = N_NEAR - 1, put_classes: Any = _no_classes) -> Any:
    """What packs a group, from what brings its states through rounds, the largest code, which is always an escape, and what puts classes into codes."""
    code_rounds = _code_loop(most)

    @piece(types.Tuple((int64, uint64))(*(int64,) * 15))
    def pack_group(kind, s, words, rest, low, n, k, count, bits, units, first, table, classes, work, states):
        """`count` rounds of a group, backwards, down to the k-th 64 words. Returns the place after the units, and a number that is 0 if nothing was escaped."""
        split = kind >= SPLIT2
        r, mask = (s + 1, 32767) if split else (0, 65535)
        planes = plane_places(rest, n, r, work + NUMBERS)
        codes, escapes = work + HALVES, uint64(0)
        while count:
            now = min(count, ROUNDS_AT_ONCE)
            count -= now
            here = k + count
            source = words + 128 * here
            if kind == U1:
                source = codes
                for j in range(now):
                    widen_words(words + 64 * (here + j), codes + 128 * j)
            elif kind == SPLIT4:
                source = codes
                for j in range(now):
                    split_u32(words + 256 * (here + j), codes + 128 * j, low + 128 * (here + j))
            code_rounds(codes, source, now, here, planes, s, r, mask, first)
            put_classes(codes, classes + 64 * here, now, bits)
            units = state_rounds(units, now, codes, bits, states, table)
            escapes |= _notes(codes, now, here, work)
        return units, escapes

    return pack_group


def coder(pack_group: Any, write_entries: Any = coding_entries, n_near: int = N_NEAR) -> Any:
    """`pack_rounds` of an arm, from what packs a group, what writes its entries, and for how many symbols it does."""

    @piece(types.UniTuple(int64, 3)(*(int64,) * 15))
    def pack_rounds(kind, s, words, rest, low, n, n_a, whole, bits, groups, n_symbols, escape, a, b, work):
        """Code the first `whole` rounds of each group, backwards, if the table suits. Returns rounds that are left, and the places after the units."""
        base = load_u16(work + VALUE)
        if n_symbols > 255 or load_u16(work + VALUE + 2 * (n_symbols - 1)) - base >= n_near - 1:
            return whole, a, b
        write_entries(bits, n_symbols, escape, work)
        a, escapes = pack_group(kind, s, words, rest, low, n, int64(0), whole, bits, a, base, work, 0, work, work + STATES)
        if groups == 2:
            b, found = pack_group(kind, s, words, rest, low, n, n_a >> 6, whole, bits, b, base, work, 0, work, work + STATES + 256)
            escapes |= found
        if escapes and escape == 0:
            return int64(0), int64(0), int64(0)
        return int64(0), a, b

    return pack_rounds


unpack_rounds, pack_rounds = decoder(lane_by_lane), coder(group_coder(state_loop_backwards(lane_by_lane_backwards)))
