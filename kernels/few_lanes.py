"""split_float over streams of `rans` and `class_rans` with at most 8 lanes: up to four frames side by side, since one alone would wait for its own states.

Each frame has a slot of scratch memory, laid out as in `rans_layout` with what follows here behind it. The frames of a loop take steps together until one of
them ends, and the next that waits takes its slot. Symbols lie in the second half of `out`, or all over it where words have 16 bits, until the frame is joined.
Rounds go unproved as long as no frame can read units past its payload; what is left is proved step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.types import int64, uint64

from modelcodec.kernels import memory
from modelcodec.kernels.class_rans import ENTRIES, ESCAPE, SPARE, classes_at
from modelcodec.kernels.frequencies import MAX_BITS, MIN_BITS, SPLIT2, Status
from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import copy, fill, load_i64, load_u8, load_u16, load_u32, load_u64, scratch, store_u16, store_u32, store_u64
from modelcodec.kernels.rans import frame_of, patch_escapes, rank_tables
from modelcodec.kernels.rans_layout import FREQUENCY, HALVES, NOTES, RANK, START, STATES, VALUE, Frame
from modelcodec.kernels.simd import element, emit, loop, offset, opaque, unsigned
from modelcodec.kernels.split_float import join_words
from modelcodec.kernels.xxh3 import xxh3_64

Array = np.ndarray[Any, Any]

MOST_LANES_LOG2 = 3
MOST_WORDS = 1 << 16
_UNITS = NOTES + MOST_WORDS // 8 + 64
"""i64 each: where the next unit is, the last place from which a round may go on, where the next symbol goes, where the next word's class is and the entries of
`class_rans`, the number of the frame, rounds that are left"""
_LIMIT, _SYMBOLS, _CLASSES, _ENTRIES, _NUMBER, _LEFT = (_UNITS + 8 * i for i in range(1, 7))
_OF_WORDS = _UNITS + 64
"""u8, the classes of all words"""
_SLOT_BYTES = _OF_WORDS + MOST_WORDS + SPARE
_SIDE_BY_SIDE = 4, 4, 2, 1
"""Frames, by log2 of their lanes."""
SCRATCH_BYTES = max(_SIDE_BY_SIDE) * _SLOT_BYTES
_NONE = -1
_IDLE_ROUNDS = 512
"""At a time, beside a slot without a frame, whose symbols go where `join_words` has its HALVES."""
_ESCAPED = 0xFFFF
"""Stands for a symbol until the frame is joined."""

_OK, _TABLE, _SIZE = int(Status.OK), int(Status.TABLE), int(Status.SIZE)
_UNITS_LEFT, _FINAL = int(Status.UNITS), int(Status.STATES)
_I64 = ir.IntType(64)


def _i64(number: int) -> Any:
    return ir.Constant(_I64, number)


def _by_rank(builder: Any, slot: Any, x: Any, t: Any, bits: Any, mask: Any) -> tuple[Any, Any]:
    """The state before it takes a unit, and the symbol, of word t."""
    place = builder.and_(x, mask)
    rank = builder.shl(unsigned(builder, builder.add(offset(builder, slot, RANK), place), 8), _i64(1))
    f, start, value = (unsigned(builder, builder.add(offset(builder, slot, table), rank), 16) for table in (FREQUENCY, START, VALUE))
    return builder.sub(builder.add(builder.mul(f, builder.lshr(x, bits)), place), start), value


def _by_class(builder: Any, slot: Any, x: Any, t: Any, bits: Any, mask: Any) -> tuple[Any, Any]:
    """The same for `class_rans`."""
    classes, entries = (memory.load(builder, offset(builder, slot, at), _I64) for at in (_CLASSES, _ENTRIES))
    of_word = builder.shl(unsigned(builder, builder.add(classes, t), 8), bits)
    entry = unsigned(builder, element(builder, entries, 4, builder.or_(of_word, builder.and_(x, mask))), 32)
    fields = builder.and_(entry, _i64(2047)), builder.and_(builder.lshr(entry, _i64(11)), _i64(2047))
    return builder.add(builder.mul(fields[0], builder.lshr(x, bits)), fields[1]), builder.lshr(entry, _i64(22))


def _round_loop(lanes_log2: int, look_up: Any) -> Any:
    lanes, frames = 1 << lanes_log2, _SIDE_BY_SIDE[lanes_log2]

    @emit(int64(int64, int64, int64))
    def rounds(builder: Any, work: Any, count: Any, bits: Any) -> Any:
        """`count` rounds of all slots, fewer where units could be read past a limit. Returns rounds."""
        slots = [offset(builder, work, j * _SLOT_BYTES) for j in range(frames)]
        mask = builder.sub(builder.shl(_i64(1), bits), _i64(1))

        def more(current: Sequence[Any]) -> Any:
            *_, i = current
            go_on = builder.icmp_signed("<", i, count)
            for slot, units in zip(slots, current[-1 - frames : -1], strict=True):
                limit = memory.load(builder, offset(builder, slot, _LIMIT), _I64)
                go_on = builder.and_(go_on, builder.icmp_signed("<=", units, limit))
            return go_on

        def body(current: Sequence[Any]) -> Sequence[Any]:
            states, units, i = list(current[: lanes * frames]), list(current[lanes * frames : -1]), current[-1]
            first = builder.shl(i, _i64(lanes_log2))
            to = [element(builder, memory.load(builder, offset(builder, slot, _SYMBOLS), _I64), 2, first) for slot in slots]
            for lane in range(lanes):
                for j, slot in enumerate(slots):
                    k = lanes * j + lane
                    x, symbol = look_up(builder, slot, states[k], offset(builder, first, lane), bits, mask)
                    memory.store(builder, offset(builder, to[j], 2 * lane), builder.trunc(symbol, ir.IntType(16)))
                    low = builder.icmp_unsigned("<", x, _i64(1 << 16))
                    unit = opaque(builder, unsigned(builder, units[j], 16))
                    states[k] = builder.select(low, builder.or_(builder.shl(x, _i64(16)), unit), x)
                    units[j] = element(builder, units[j], 2, builder.zext(low, _I64))
            return *states, *units, builder.add(i, _i64(1))

        places = [offset(builder, slot, STATES + 4 * lane) for slot in slots for lane in range(lanes)]
        ends = [offset(builder, slot, _UNITS) for slot in slots]
        start = [*(unsigned(builder, at, 32) for at in places), *(memory.load(builder, at, _I64) for at in ends), _i64(0)]
        *last, i = loop(builder, start, more, body)
        for at, x in zip(places, last, strict=False):
            memory.store(builder, at, builder.trunc(x, ir.IntType(32)))
        for at, units in zip(ends, last[lanes * frames :], strict=True):
            memory.store(builder, at, units)
        return i

    return rounds


_ranks_1, _ranks_2, _ranks_4, _ranks_8 = (_round_loop(log2, _by_rank) for log2 in range(4))
_classes_1, _classes_2, _classes_4, _classes_8 = (_round_loop(log2, _by_class) for log2 in range(4))


@piece(int64(*(int64,) * 5))
def _rounds(work, count, bits, lanes_log2, classed):
    if classed:
        if lanes_log2 == 0:
            return _classes_1(work, count, bits)
        if lanes_log2 == 1:
            return _classes_2(work, count, bits)
        return _classes_4(work, count, bits) if lanes_log2 == 2 else _classes_8(work, count, bits)
    if lanes_log2 == 0:
        return _ranks_1(work, count, bits)
    if lanes_log2 == 1:
        return _ranks_2(work, count, bits)
    return _ranks_4(work, count, bits) if lanes_log2 == 2 else _ranks_8(work, count, bits)


@piece(types.void(*(int64,) * 3))
def _set(slot, place, number):
    store_u64(slot + place, uint64(number))


@piece(types.void(int64))
def _idle(slot):
    """A slot without a frame. What it decodes to means nothing, but for _IDLE_ROUNDS rounds it reads and writes its own memory only."""
    _set(slot, _NUMBER, int64(_NONE))
    _set(slot, _UNITS, slot + NOTES)
    _set(slot, _LIMIT, slot + NOTES + MOST_WORDS // 16)
    _set(slot, _SYMBOLS, slot + HALVES)
    _set(slot, _CLASSES, slot + _OF_WORDS)
    _set(slot, _ENTRIES, slot + RANK)
    fill(slot + _OF_WORDS, 0, 8 * _IDLE_ROUNDS)


@piece(int64(Frame, int64, int64, int64))
def _begin(frame, number, classed, slot):
    """Prove the payload's size, write tables, classes and states. Returns a status."""
    kind, s, payload, n_payload, out, _, _, n, bits, lanes_log2, _, units_a, _, n_escapes, symbols, frequencies, n_symbols, escape, _ = frame
    if n_payload != 2 * units_a + (4 << lanes_log2) + n_escapes * (1 if s >= 7 else 2):
        return _SIZE
    if classed:
        _set(slot, _CLASSES, slot + _OF_WORDS)
        _set(slot, _ENTRIES, load_i64(symbols + ENTRIES))
        classes_at(symbols, frequencies, n, slot + _OF_WORDS)
    else:
        if not rank_tables(bits, symbols, frequencies, n_symbols, escape, (int64(1) << (15 - s)) - 1, slot):
            return _TABLE
        for rank in range(n_symbols + (escape > 0)):
            fill(slot + RANK + load_u16(slot + START + 2 * rank), rank, load_u16(slot + FREQUENCY + 2 * rank))
        if escape:
            store_u16(slot + VALUE + 2 * n_symbols, _ESCAPED)
    copy(slot + STATES, payload + 2 * units_a, 4 << lanes_log2)
    _set(slot, _UNITS, payload)
    _set(slot, _LIMIT, payload + n_payload - (2 << lanes_log2))
    _set(slot, _SYMBOLS, out if kind == SPLIT2 else out + 2 * n)
    _set(slot, _NUMBER, number)
    _set(slot, _LEFT, n >> lanes_log2)
    return _OK


@piece(int64(Frame, int64, int64))
def _rest(frame, classed, slot):
    """Symbols that no round has decoded. Returns the place after the last unit taken, 0 where the units run out."""
    kind, _, payload, _, out, _, _, n, bits, lanes_log2, _, units_a, _, _, _, _, _, _, _ = frame
    units, end, to = load_i64(slot + _UNITS), payload + 2 * units_a, load_i64(slot + _SYMBOLS)
    first = (to - (out if kind == SPLIT2 else out + 2 * n)) >> 1
    mask = (int64(1) << bits) - 1
    for t in range(first, n):
        state = slot + STATES + 4 * (t & ((1 << lanes_log2) - 1))
        x = load_u32(state)
        if classed:
            entry = load_u32(load_i64(slot + _ENTRIES) + 4 * (load_u8(slot + _OF_WORDS + t) << bits | x & mask))
            x, symbol = (entry & 2047) * (x >> bits) + (entry >> 11 & 2047), entry >> 22
        else:
            rank = 2 * load_u8(slot + RANK + (x & mask))
            symbol = load_u16(slot + VALUE + rank)
            x = load_u16(slot + FREQUENCY + rank) * (x >> bits) + (x & mask) - load_u16(slot + START + rank)
        if x < 65536:
            if units + 2 > end:
                return int64(0)
            x = x << 16 | load_u16(units)
            units += 2
        store_u32(state, x)
        store_u16(to + 2 * (t - first), symbol)
    return units


@piece(types.void(*(int64,) * 4))
def _note_escapes(symbols, n, escaped, slot):
    """Note where the symbol that stands for an escape is among n, and make it 0."""
    fill(slot + NOTES, 0, (n + 63) >> 6 << 3)
    fours = uint64(escaped) * uint64(0x0001000100010001)
    for first in range(0, n, 4):
        differs = load_u64(symbols + 2 * first) ^ fours if first + 4 <= n else uint64(0)
        if (differs - uint64(0x0001000100010001)) & ~differs & uint64(0x8000800080008000):  # one of them may be
            for i in range(first, min(first + 4, n)):
                if load_u16(symbols + 2 * i) == escaped:
                    store_u16(symbols + 2 * i, 0)
                    note = slot + NOTES + (i >> 6 << 3)
                    store_u64(note, load_u64(note) | uint64(1) << uint64(i & 63))


@piece(int64(Frame, int64, int64))
def _finish(frame, classed, slot):
    """What rounds have left, the final checks, and the words. Returns a status."""
    kind, s, payload, _, out, rest, low, n, _, lanes_log2, _, units_a, _, n_escapes, _, _, _, _, _ = frame
    initial = payload + 2 * units_a
    if _rest(frame, classed, slot) != initial:
        return _UNITS_LEFT
    for lane in range(1 << lanes_log2):
        if load_u32(slot + STATES + 4 * lane) != 65536:
            return _FINAL
    symbols = out if kind == SPLIT2 else out + 2 * n
    _note_escapes(symbols, n, int64(ESCAPE if classed else _ESCAPED), slot)
    status = join_words(kind, s, symbols, 2, out, rest, low, n, slot)
    return status if status else patch_escapes(kind, s, out, n, initial + (4 << lanes_log2), n_escapes, slot)


@piece(int64(int64[:, ::1], int64, int64, int64, int64))
def _next(frames, first, classed, bits, lanes_log2):
    """The number of the next frame of this kind from `first` on, or how many frames there are."""
    while first < len(frames):
        if frames[first, 0] >= 0 and frames[first, 8] == bits and frames[first, 9] == lanes_log2 and frames[first, 19] == classed:
            break
        first += 1
    return first


@piece(types.void(int64[:, ::1], int64, int64, int64, int64[::1], int64))
def _unpack_alike(frames, classed, bits, lanes_log2, statuses, work):
    """Decode the frames of one kind, each in a slot until it ends."""
    side_by_side = _SIDE_BY_SIDE[lanes_log2]
    waiting = _next(frames, int64(0), classed, bits, lanes_log2)
    for j in range(side_by_side):
        _set(work + j * _SLOT_BYTES, _NUMBER, int64(_NONE))
    active = int64(0)
    while active or waiting < len(frames):
        count = int64(MOST_WORDS)
        for j in range(side_by_side):
            slot = work + j * _SLOT_BYTES
            while load_i64(slot + _NUMBER) < 0 and waiting < len(frames):
                statuses[waiting] = _begin(frame_of(frames[waiting]), waiting, classed, slot)
                active += statuses[waiting] == _OK
                waiting = _next(frames, waiting + 1, classed, bits, lanes_log2)
            if load_i64(slot + _NUMBER) < 0:
                _idle(slot)
                count = min(count, int64(_IDLE_ROUNDS))
            else:
                count = min(count, load_i64(slot + _LEFT))
        done = _rounds(work, count, bits, lanes_log2, classed)
        for j in range(side_by_side):
            slot = work + j * _SLOT_BYTES
            number, left = load_i64(slot + _NUMBER), load_i64(slot + _LEFT) - done
            if number >= 0:
                _set(slot, _LEFT, left)
                _set(slot, _SYMBOLS, load_i64(slot + _SYMBOLS) + (done << lanes_log2) * 2)
                _set(slot, _CLASSES, load_i64(slot + _CLASSES) + (done << lanes_log2))
                if left == 0 or load_i64(slot + _UNITS) > load_i64(slot + _LIMIT):
                    statuses[number] = _finish(frame_of(frames[number]), classed, slot)
                    _set(slot, _NUMBER, int64(_NONE))
                    active -= 1


@kernel
def _unpack(frames, statuses, digests, work):
    """Decode frames, i8[:, 20]. Sets their statuses (i8), and where `digests` (u8) has room those of their words. A kind below 0 means no frame."""
    for classed in range(2):
        for bits in range(MIN_BITS, MAX_BITS + 1):
            for lanes_log2 in range(MOST_LANES_LOG2 + 1):
                _unpack_alike(frames, classed, bits, lanes_log2, statuses, work)
    for i in range(len(digests)):
        if statuses[i] == _OK:
            digests[i] = xxh3_64(frames[i, 4], frames[i, 7] * (2 if frames[i, 0] == SPLIT2 else 4), uint64(0), work)


def unpack_frames(frames: Array, *, digested: bool = False) -> tuple[Array, Array]:
    """Decode frames (i8[:, 20], the numbers of a `Frame` of `rans`, or, where the last is 1, of `class_rans`): their statuses (i8), and the digests (u8).

    The caller has proved the rules of a `Frame`, but for its work, and that there are at most MOST_WORDS split words in one group of at most 2^MOST_LANES_LOG2
    lanes. Kinds below 0 are no frames. Digests only if `digested`.
    """
    statuses, digests = np.full(len(frames), -1, np.int64), np.zeros(len(frames) if digested else 0, np.uint64)
    _unpack(frames, statuses, digests, scratch(SCRATCH_BYTES))
    return statuses, digests
