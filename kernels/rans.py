"""Interleaved rANS (docs/stages.md, section rans), alone and fused with split_float: the same bytes either way, but words go between memory and coder once.

Whole rounds of 64 lanes go through the vector code of this processor's arm, as long as every byte that it may touch is provably there; what is left goes
through the scalar code here, which proves each step. Sizes of the callers' arrays are checked in Python, everything else that is untrusted (units, states,
escaped words, the table) in the kernels, which return a status, raise nothing and allocate nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numba.types import int64, uint64

from modelcodec.kernels import arms
from modelcodec.kernels.frequencies import (
    MAX_BITS,
    MAX_FREQUENCIES,
    MIN_BITS,
    SPLIT2,
    SPLIT4,
    U1,
    U2,
    Status,
    Table,
    coded_bits,
    flat,
    histogram,
    histogram_split,
    normalise,
    read_table,
    reciprocal,
    require,
    write_table,
)
from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import (
    address_of,
    copy,
    fill,
    load_u8,
    load_u16,
    load_u32,
    load_u64,
    scratch,
    store_u8,
    store_u16,
    store_u32,
    store_u64,
    trailing_zeros,
)
from modelcodec.kernels.rans_layout import BLOCK, FREQUENCY, NOTES, NUMBERS, RANK, RECIPROCAL, START, STATES, VALUE, Frame, group_a
from modelcodec.kernels.xxh3 import xxh3_64

if arms.ARM == "scalar":
    from modelcodec.kernels.rans_layout import CONSTANTS as LANES_LOG2
    from modelcodec.kernels.rans_scalar import pack_rounds as pack_few_lanes
else:
    from modelcodec.kernels.rans_few_lanes import LANES_LOG2, pack_few_lanes

if arms.ARM == "avx512vbmi":
    from modelcodec.kernels.rans_avx512 import pack_rounds, unpack_pair_rounds, unpack_rounds
elif arms.ARM in ("avx2", "sse41", "neon"):
    from modelcodec.kernels.rans_permuted import pack_rounds, unpack_rounds
    from modelcodec.kernels.rans_scalar import unpack_pair_rounds
elif arms.ARM == "vector":
    from modelcodec.kernels.rans_scalar import unpack_pair_rounds
    from modelcodec.kernels.rans_vector import pack_rounds, unpack_rounds
else:
    from modelcodec.kernels.rans_scalar import pack_rounds, unpack_pair_rounds, unpack_rounds

__all__ = [
    "Packed", "Status", "Table", "coded_bits", "histogram", "histogram_split", "normalise", "pack", "pack_bound", "pack_reference", "pack_split", "read_table",
    "unpack", "unpack_reference", "unpack_split", "write_table",
]  # fmt: skip

Array = np.ndarray[Any, Any]

PACK_BYTES = NOTES + 8 + 512
MOST_FEW_LANES_LOG2 = 3

_OK, _TABLE, _SIZE, _UNITS = int(Status.OK), int(Status.TABLE), int(Status.SIZE), int(Status.UNITS)
_FINAL, _ESCAPES, _SYMBOL, _PADDING = int(Status.STATES), int(Status.ESCAPES), int(Status.SYMBOL), int(Status.PADDING)


@dataclass(frozen=True, slots=True)
class Packed:
    """What was packed: units of group A and of group B, escaped words, and the length of the payload in bytes. If `status` is not OK the rest is 0."""

    status: Status
    units_a: int
    units_b: int
    n_escapes: int
    n_bytes: int


@piece(int64(int64, int64))
def word_of(t, lanes_log2):
    """The word, within 64, that comes t-th in the order in which lanes take units."""
    return ((t & 15) << 2) | (t >> 4) if lanes_log2 == 6 else t


@piece(types.boolean(*(int64,) * 7))
def rank_tables(bits, symbols, frequencies, n_symbols, escape, most, work):
    """Write FREQUENCY, START and VALUE; False where the frequencies break a rule or a symbol is above `most`."""
    if n_symbols < 1 or n_symbols + (escape > 0) > MAX_FREQUENCIES:
        return False
    start = int64(0)
    for i in range(n_symbols + (escape > 0)):
        f = load_u16(frequencies + 2 * i) if i < n_symbols else escape
        value = load_u16(symbols + 2 * i) if i < n_symbols else int64(0)
        if f == 0 or f >= int64(1) << bits or value > most:
            return False
        store_u16(work + FREQUENCY + 2 * i, f)
        store_u16(work + START + 2 * i, start)
        store_u16(work + VALUE + 2 * i, value)
        start += f
    return start == int64(1) << bits


# split_float's own arithmetic, for 64 words at a time


@piece(types.void(*(int64,) * 6))
def _rest_numbers(rest, n, first, m, bits, to):
    """Read m numbers of `bits` bits, from number `first` (a multiple of 64) on, out of the bit planes of n numbers."""
    fill(to, 0, 128)
    plane, low, eighths = rest, 0, (m + 7) >> 3
    for log2 in range(3, -1, -1):
        p = 1 << log2
        if bits & p:
            stride, at = eighths * p, plane + (first >> 3) * p
            mask = (1 << p) - 1
            for i in range(stride):
                byte = load_u8(at + i)
                for j in range(8 >> log2):
                    number = to + 2 * (i + j * stride)
                    store_u16(number, load_u16(number) | ((byte >> (j << log2)) & mask) << low)
            plane += ((n + 7) >> 3) * p
            low += p


@piece(types.void(*(int64,) * 6))
def _put_rest_numbers(rest, n, first, m, bits, numbers):
    """The opposite of `_rest_numbers`; numbers past m, up to a multiple of 8, are zero."""
    plane, low, eighths = rest, 0, (m + 7) >> 3
    for log2 in range(3, -1, -1):
        p = 1 << log2
        if bits & p:
            stride, at = eighths * p, plane + (first >> 3) * p
            mask = (1 << p) - 1
            for i in range(stride):
                byte = int64(0)
                for j in range(8 >> log2):
                    byte |= ((load_u16(numbers + 2 * (i + j * stride)) >> low) & mask) << (j << log2)
                store_u8(at + i, byte)
            plane += ((n + 7) >> 3) * p
            low += p


@piece(types.void(*(int64,) * 9))
def join_block(kind, s, out, rest, low, n, first, m, work):
    """Store m words, from word `first` on, whose symbols lie in BLOCK."""
    if kind == U1:
        for i in range(m):
            store_u8(out + first + i, load_u16(work + BLOCK + 2 * i))
    elif kind == U2:
        copy(out + 2 * first, work + BLOCK, 2 * m)
    else:
        _rest_numbers(rest, n, first, m, s + 1, work + NUMBERS)
        below = (1 << s) - 1
        for i in range(m):
            number = load_u16(work + NUMBERS + 2 * i)
            high = load_u16(work + BLOCK + 2 * i) << s | number & below | (number >> s) << 15
            if kind == SPLIT2:
                store_u16(out + 2 * (first + i), high)
            else:
                store_u32(out + 4 * (first + i), high << 16 | load_u16(low + 2 * (first + i)))


@piece(int64(*(int64,) * 4))
def symbol_of(words, kind, s, i):
    """The symbol of word i."""
    if kind == U1:
        return load_u8(words + i)
    if kind == U2:
        return load_u16(words + 2 * i)
    return (load_u16(words + 2 * i if kind == SPLIT2 else words + 4 * i + 2) & 32767) >> s


@piece(types.void(*(int64,) * 9))
def split_block(kind, s, words, rest, low, n, first, m, work):
    """Write the rest and the low part of m words, from word `first` on."""
    below = (1 << s) - 1
    fill(work + NUMBERS, 0, 128)
    for i in range(m):
        high = load_u16(words + 2 * (first + i) if kind == SPLIT2 else words + 4 * (first + i) + 2)
        store_u16(work + NUMBERS + 2 * i, high & below | (high >> 15) << s)
        if kind == SPLIT4:
            store_u16(low + 2 * (first + i), load_u16(words + 4 * (first + i)))
    _put_rest_numbers(rest, n, first, m, s + 1, work + NUMBERS)


# Unpacking. A `Frame` is what is to be decoded: n words into `out`. Addresses: payload (untrusted), out, rest, low, symbols and frequencies (u2, n_symbols of
# them), work. Whoever makes one has proved: out has n words of the kind; for split kinds rest and low have the sizes that n and s imply; work has
# NOTES + n / 8 + 8 bytes; lanes and bits are in range, and no number is negative or above 2^32.


@piece(int64(*(int64,) * 15))
def _unpack_blocks(kind, s, out, rest, low, n, first, last, bits, lanes_log2, escape_rank, units, units_end, states, work):
    """Scalar: words `first` to `last`; `first` is a multiple of 64. Returns the place after the last unit taken, or 0 where the units run out."""
    slots = (int64(1) << bits) - 1
    lanes = (int64(1) << lanes_log2) - 1
    for base in range(first, last, 64):
        m = min(64, last - base)
        note = uint64(0)
        for t in range(64):
            word = word_of(t, lanes_log2)
            if word >= m:
                continue
            state = states + 4 * (t & lanes)
            x = load_u32(state)
            slot = x & slots
            rank = load_u8(work + RANK + slot)
            x = load_u16(work + FREQUENCY + 2 * rank) * (x >> bits) + slot - load_u16(work + START + 2 * rank)
            if x < 65536:
                if units + 2 > units_end:
                    return int64(0)
                x = x << 16 | load_u16(units)
                units += 2
            store_u32(state, x)
            store_u16(work + BLOCK + 2 * word, load_u16(work + VALUE + 2 * rank))
            note |= uint64(rank == escape_rank) << uint64(word)
        store_u64(work + NOTES + (base >> 3), note)
        join_block(kind, s, out, rest, low, n, base, m, work)
    return units


@piece(int64(*(int64,) * 7))
def patch_escapes(kind, s, out, n, escaped, n_escapes, work):
    """Put the untrusted escaped words where the notes say; their own symbols were decoded as 0."""
    k = int64(0)
    for i in range((n + 63) >> 6):
        note = load_u64(work + NOTES + 8 * i)
        while note:
            at = 64 * i + trailing_zeros(note)
            note &= note - uint64(1)
            if k == n_escapes:
                return _ESCAPES
            if kind == U1:
                store_u8(out + at, load_u8(escaped + k))
            elif kind == U2:
                store_u16(out + 2 * at, load_u16(escaped + 2 * k))
            else:
                value = load_u8(escaped + k) if s >= 7 else load_u16(escaped + 2 * k)
                if value >> (15 - s):
                    return _SYMBOL
                high = out + 2 * at if kind == SPLIT2 else out + 4 * at + 2
                store_u16(high, load_u16(high) | value << s)
            k += 1
    return _OK if k == n_escapes else _ESCAPES


@piece(int64(Frame))
def _begin_frame(frame):
    """Prove the payload's size, write the tables and the states. Returns a status."""
    kind, s, payload, n_payload, _, _, _, _, bits, lanes_log2, groups, units_a, units_b, n_escapes, symbols, frequencies, n_symbols, escape, work = frame
    width = 1 if kind == U1 or (kind != U2 and s >= 7) else 2
    n_states = groups << lanes_log2
    if n_payload != 2 * (units_a + units_b) + 4 * n_states + n_escapes * width:
        return _SIZE
    most = (1 << (15 - s)) - 1 if kind >= SPLIT2 else (1 << (8 * width)) - 1
    if not rank_tables(bits, symbols, frequencies, n_symbols, escape, most, work):
        return _TABLE
    for rank in range(n_symbols + (escape > 0)):
        fill(work + RANK + load_u16(work + START + 2 * rank), rank, load_u16(work + FREQUENCY + 2 * rank))
    copy(work + STATES, payload + 2 * (units_a + units_b), 4 * n_states)
    return _OK


@piece(types.UniTuple(int64, 3)(Frame))
def _unpack_rounds(frame):
    """Whole rounds by the arm's vector code: how many in each group, and the places after their units."""
    kind, s, payload, n_payload, out, rest, low, n, bits, lanes_log2, groups, units_a, _, _, _, _, n_symbols, escape, work = frame
    middle = payload + 2 * units_a
    if lanes_log2 < 6:
        return int64(0), payload, middle
    return unpack_rounds(kind, s, payload, payload + n_payload, middle, out, rest, low, n, group_a(n, groups), bits, groups, n_symbols, escape, work)


@piece(int64(Frame, int64, int64, int64))
def _finish_frame(frame, done, a, b):
    """What is left after `done` rounds of each group, whose next units stand at a and b; the final checks. Returns a status."""
    kind, s, payload, _, out, rest, low, n, bits, lanes_log2, groups, units_a, units_b, n_escapes, _, _, n_symbols, _, work = frame
    middle = payload + 2 * units_a
    initial = middle + 2 * units_b
    n_states = groups << lanes_log2
    n_a = group_a(n, groups)
    for group in range(groups):
        first, last, units, end = (n_a, n, b, initial) if group else (int64(0), n_a, a, middle)
        states = work + STATES + 256 * group
        if _unpack_blocks(kind, s, out, rest, low, n, first + 64 * done, last, bits, lanes_log2, n_symbols, units, end, states, work) != end:
            return _UNITS
    for i in range(n_states):
        if load_u32(work + STATES + 4 * i) != 65536:
            return _FINAL
    if kind >= SPLIT2 and n & 7:
        _rest_numbers(rest, n, n & ~63, n & 63, s + 1, work + NUMBERS)
        for i in range(n & 63, ((n & 63) + 7) & ~7):
            if load_u16(work + NUMBERS + 2 * i):
                return _PADDING
    return patch_escapes(kind, s, out, n, initial + 4 * n_states, n_escapes, work)


@piece(int64(Frame))
def unpack_frame(frame):
    """Decode a frame. Returns a status."""
    status = _begin_frame(frame)
    if status:
        return status
    done, a, b = _unpack_rounds(frame)
    return _finish_frame(frame, done, a, b)


@piece(types.UniTuple(int64, 2)(Frame, Frame))
def unpack_two(first, second):
    """Decode two frames, whose work does not overlap, side by side where the arm has code for it, else one after the other. Returns their statuses."""
    status_1, status_2 = _begin_frame(first), _begin_frame(second)
    done, a_1, b_1, a_2, b_2 = int64(-1), int64(0), int64(0), int64(0), int64(0)
    if status_1 == _OK and status_2 == _OK:
        done, a_1, b_1, a_2, b_2 = unpack_pair_rounds(first, second)
    for i in range(2):
        frame, status, a, b = (second, status_2, a_2, b_2) if i else (first, status_1, a_1, b_1)
        if status == _OK:
            rounds = done
            if done < 0:
                rounds, a, b = _unpack_rounds(frame)
            status = _finish_frame(frame, rounds, a, b)
        if i:
            status_2 = status
        else:
            status_1 = status
    return status_1, status_2


@piece(Frame(int64[::1]))
def frame_of(row):
    return (
        row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9],
        row[10], row[11], row[12], row[13], row[14], row[15], row[16], row[17], row[18],
    )  # fmt: skip


@kernel
def _unpack(frames, statuses, digests):
    """Decode frames, i8[:, 19], two at a time; their work must not overlap. Sets their statuses (i8), and where `digests` (u8) has room those of their words.

    A kind below 0 means no frame, and keeps its status.
    """
    n_frames = len(frames)
    for first in range(0, n_frames, 2):
        both = first + 1 < n_frames and frames[first, 0] >= 0 and frames[first + 1, 0] >= 0
        if both:
            statuses[first], statuses[first + 1] = unpack_two(frame_of(frames[first]), frame_of(frames[first + 1]))
        for i in range(min(first + 1, n_frames - 1), first - 1, -1):  # the second was written last
            kind, out, n, work = frames[i, 0], frames[i, 4], frames[i, 7], frames[i, 18]
            if kind >= 0 and not both:
                statuses[i] = unpack_frame(frame_of(frames[i]))
            width = 4 if kind == SPLIT4 else 1 if kind == U1 else 2
            if kind >= 0 and i < len(digests):
                digests[i] = xxh3_64(out, n * width, uint64(0), work)


# Packing


@piece(int64(*(int64,) * 15))
def _pack_blocks(kind, s, words, rest, low, n, first, last, bits, lanes_log2, n_symbols, escape, units, states, work):
    """Scalar: words `last - 1` down to `first`, a multiple of 64. Units are written upwards, so in reverse. Returns the place after them.

    Returns 0 where a word has no code.
    """
    lanes = (int64(1) << lanes_log2) - 1
    for base in range(first + ((last - first - 1) & ~63), first - 1, -64):
        m = min(64, last - base)
        note = uint64(0)
        for t in range(63, -1, -1):
            word = word_of(t, lanes_log2)
            if word >= m:
                continue
            rank = load_u16(work + RANK + 2 * symbol_of(words, kind, s, base + word))
            if rank == n_symbols:
                if escape == 0:
                    return int64(0)
                note |= uint64(1) << uint64(word)
            state = states + 4 * (t & lanes)
            x = load_u32(state)
            f = load_u16(work + FREQUENCY + 2 * rank)
            if x >> (32 - bits) >= f:
                store_u16(units, x)
                units += 2
                x >>= 16
            divisor = load_u64(work + RECIPROCAL + 8 * rank)
            q = int64((uint64(x) * (divisor >> uint64(6))) >> (divisor & uint64(63)))
            q -= q * f > x
            store_u32(state, (q << bits) + x - q * f + load_u16(work + START + 2 * rank))
        store_u64(work + NOTES + (base >> 3), note)
        if kind >= SPLIT2:
            split_block(kind, s, words, rest, low, n, base, m, work)
    return units


@piece(int64(int64, int64, int64))
def reversed_units(to, source, end):
    """Copy u16s from `source` up to `end` in reverse; returns the place after them."""
    n = (end - source) >> 1
    for i in range(n):
        store_u16(to + 2 * i, load_u16(end - 2 - 2 * i))
    return to + 2 * n


@piece(types.UniTuple(int64, 3)(*(int64,) * 14))
def code_words(kind, s, words, rest, low, n, bits, lanes_log2, groups, symbols, frequencies, n_symbols, escape, work):
    """Code n words: rest and low get theirs, the units stay in `work`, in reverse, until `put_payload` takes them. Returns a status and each group's units.

    The caller has proved: words are n of the kind, rest and low (split kinds) have the sizes that n and s imply, and work has PACK_BYTES + n / 8 + 2 * n bytes.
    """
    width = 1 if kind == U1 or (kind != U2 and s >= 7) else 2
    space = 1 << (15 - s) if kind >= SPLIT2 else 1 << (8 * width)
    if not rank_tables(bits, symbols, frequencies, n_symbols, escape, space - 1, work):
        return _TABLE, 0, 0
    for symbol in range(space):
        store_u16(work + RANK + 2 * symbol, n_symbols)
    exact = True
    for rank in range(n_symbols + (escape > 0)):
        m, k, all_exact = reciprocal(load_u16(work + FREQUENCY + 2 * rank), bits)
        store_u64(work + RECIPROCAL + 8 * rank, uint64(m << 6 | k))
        exact &= all_exact
        if rank < n_symbols:
            store_u16(work + RANK + 2 * load_u16(work + VALUE + 2 * rank), rank)
    for i in range(groups << lanes_log2):
        store_u32(work + STATES + 4 * i, 65536)
    n_a = group_a(n, groups)
    area_a, area_b = _unit_areas(n, n_a, work)
    whole = (n - n_a if groups == 2 else n_a) >> 6 if exact else 0
    a, b, left = area_a, area_b, whole
    for after in range(2):  # what comes after the whole rounds, the whole rounds, and what the vector code left of them
        if after and whole:
            if lanes_log2 == 6:
                left, a, b = pack_rounds(kind, s, words, rest, low, n, n_a, whole, bits, groups, n_symbols, escape, a, b, work)
            elif lanes_log2 <= MOST_FEW_LANES_LOG2:
                store_u8(work + LANES_LOG2, lanes_log2)
                left, a, b = pack_few_lanes(kind, s, words, rest, low, n, n_a, whole, bits, groups, n_symbols, escape, a, b, work)
        for group in range(groups):
            begin, end = (n_a, n) if group else (int64(0), n_a)
            first, last = (begin, begin + 64 * left) if after else (begin + 64 * whole, end)
            units = _pack_blocks(
                kind, s, words, rest, low, n, first, last, bits, lanes_log2, n_symbols, escape, b if group else a, work + STATES + 256 * group, work
            )
            a, b = (a, units) if group else (units, b)
        if a == 0 or b == 0:
            return _SYMBOL, 0, 0
    return _OK, (a - area_a) >> 1, (b - area_b) >> 1


@piece(types.UniTuple(int64, 2)(int64, int64, int64))
def _unit_areas(n, n_a, work):
    """Where in `work` the units of both groups lie."""
    area_a = work + NOTES + ((n + 511) >> 9 << 6)
    return area_a, area_a + 2 * n_a + 128


@piece(int64(int64, int64))
def count_escapes(n, work):
    """How many of n words the notes tell to be escapes."""
    n_escapes = int64(0)
    for i in range((n + 63) >> 6):
        note = load_u64(work + NOTES + 8 * i)
        while note:
            note &= note - uint64(1)
            n_escapes += 1
    return n_escapes


@piece(types.void(*(int64,) * 10))
def put_payload(kind, s, words, n, lanes_log2, groups, units_a, units_b, out, work):
    """Write what `code_words` left in `work`: units, states, escaped words."""
    area_a, area_b = _unit_areas(n, group_a(n, groups), work)
    n_states = groups << lanes_log2
    at = reversed_units(out, area_a, area_a + 2 * units_a)
    if groups == 2:
        at = reversed_units(at, area_b, area_b + 2 * units_b)
    copy(at, work + STATES, 4 * n_states)
    at += 4 * n_states
    narrow = kind == U1 or (kind != U2 and s >= 7)
    for i in range((n + 63) >> 6):
        note = load_u64(work + NOTES + 8 * i)
        while note:
            symbol = symbol_of(words, kind, s, 64 * i + trailing_zeros(note))
            note &= note - uint64(1)
            if narrow:
                store_u8(at, symbol)
                at += 1
            else:
                store_u16(at, symbol)
                at += 2


@kernel
def _pack(kind, s, words, out, rest, low, n, bits, lanes_log2, groups, symbols, frequencies, n_symbols, escape, work):
    status, units_a, units_b = code_words(kind, s, words, rest, low, n, bits, lanes_log2, groups, symbols, frequencies, n_symbols, escape, work)
    if status:
        return status, units_a, units_b, int64(0)
    put_payload(kind, s, words, n, lanes_log2, groups, units_a, units_b, out, work)
    return status, units_a, units_b, count_escapes(n, work)


# The kernels as the stages call them


def pack_scratch(n: int) -> int:
    """Bytes of memory that `code_words` needs at `work`."""
    return PACK_BYTES + n // 8 + 2 * n


def pack_bound(n: int, width: int, lanes_log2: int, groups: int) -> int:
    """The most bytes that a payload for n symbols of `width` bytes can take."""
    return (2 + width) * n + (4 * groups << lanes_log2)


def _require_lanes(n: int, lanes_log2: int, groups: int, table: Table) -> None:
    require(n < 1 << 31 and MIN_BITS <= table.bits <= MAX_BITS, "too many words for one payload, or no such table")
    require(0 <= lanes_log2 <= 6 and (groups == 1 or (groups == 2 and lanes_log2 == 6)), "no such number of lanes and groups")
    require(
        table.symbols.dtype == np.uint16 and table.frequencies.dtype == np.uint16 and table.symbols.size == table.frequencies.size,
        "the table's arrays are not u2",
    )


def require_rest(words: Array, s: int, rest: Array, low: Array | None) -> int:
    """The kind of these words, once rest and low are known to have their sizes; the address of `low` may be taken from any array where there is none."""
    width, n = words.dtype.itemsize, words.size
    require(0 <= s <= 13, "s is not between 0 and 13")
    require(flat(rest, (1,)).size == (n + 7) // 8 * (s + 1), "rest does not have the size of its bit planes")
    if width == 4:
        require(low is not None and flat(low, (2,)).size == n, "low has not as many words as there are")
        return SPLIT4
    return SPLIT2


def _call_unpack(
    kind: int, s: int, payload: Array, units: tuple[int, int], n_escapes: int, table: Table, lanes_log2: int, groups: int, out: Array, rest: int, low: int
) -> Status:
    _require_lanes(out.size, lanes_log2, groups, table)
    require(out.flags.writeable, "out is read-only")
    if not 0 <= min(*units, n_escapes) <= max(*units, n_escapes) <= out.size:
        return Status.SIZE
    n = out.size
    work = scratch(NOTES + n // 8 + 8)
    symbols, frequencies = address_of(table.symbols), address_of(table.frequencies)
    frame = (
        kind, s, address_of(payload), payload.size, address_of(out), rest, low, n, table.bits, lanes_log2, groups, *units, n_escapes,
        symbols, frequencies, table.symbols.size, table.escape, work,
    )  # fmt: skip
    return Status(int(unpack_frames(np.array([frame], np.int64))[0][0]))


def unpack_frames(frames: Array, *, digested: bool = False) -> tuple[Array, Array]:
    """Decode frames (i8[:, 19], the numbers of a `Frame`, whose rules the caller has proved): their statuses (i8), and the digests (u8) of their words.

    Kinds below 0 are no frames. Digests only if `digested`.
    """
    statuses, digests = np.full(len(frames), -1, np.int64), np.zeros(len(frames) if digested else 0, np.uint64)
    _unpack(frames, statuses, digests)
    return statuses, digests


def unpack(payload: Array, table: Table, lanes_log2: int, groups: int, units_a: int, units_b: int, n_escapes: int, out: Array) -> Status:
    """Decode the untrusted `payload` (u1) into `out` (u1 or u2, its size is the number of symbols). What `out` holds after an error is unspecified."""
    flat(payload, (1,)), flat(out, (1, 2))
    kind = U1 if out.dtype.itemsize == 1 else U2
    return _call_unpack(kind, 0, payload, (units_a, units_b), n_escapes, table, lanes_log2, groups, out, 0, 0)


def unpack_split(
    payload: Array, table: Table, lanes_log2: int, groups: int, units_a: int, units_b: int, n_escapes: int, s: int, rest: Array, low: Array | None, out: Array
) -> Status:
    """Decode symbols as `unpack` does and join them with their rest to split_float's words, straight into `out` (u2 or u4).

    rest: u1, bit planes. low: u2, for `out` of u4 only.
    """
    flat(payload, (1,)), flat(out, (2, 4))
    kind = require_rest(out, s, rest, low)
    return _call_unpack(
        kind, s, payload, (units_a, units_b), n_escapes, table, lanes_log2, groups, out, address_of(rest), 0 if low is None else address_of(low)
    )


def _call_pack(kind: int, s: int, words: Array, width: int, table: Table, lanes_log2: int, groups: int, out: Array, rest: int, low: int) -> Packed:
    n = words.size
    _require_lanes(n, lanes_log2, groups, table)
    require(flat(out, (1,)).flags.writeable and out.size >= pack_bound(n, width, lanes_log2, groups), "out is smaller than pack_bound")
    work = scratch(pack_scratch(n))
    symbols, frequencies = address_of(table.symbols), address_of(table.frequencies)
    found, units_a, units_b, n_escapes = _pack(
        kind, s, address_of(words), address_of(out), rest, low, n, table.bits, lanes_log2, groups, symbols, frequencies, table.symbols.size, table.escape, work
    )
    n_bytes = 2 * (units_a + units_b) + (4 * groups << lanes_log2) + width * n_escapes if found == 0 else 0
    return Packed(Status(found), units_a, units_b, n_escapes, n_bytes)


def pack(x: Array, table: Table, lanes_log2: int, groups: int, out: Array) -> Packed:
    """Code the symbols x (u1 or u2) into `out` (u1, `pack_bound` bytes). A symbol without a frequency is escaped; without an escape it gives Status.SYMBOL."""
    width = flat(x, (1, 2)).dtype.itemsize
    return _call_pack(U1 if width == 1 else U2, 0, x, width, table, lanes_log2, groups, out, 0, 0)


def pack_split(words: Array, s: int, table: Table, lanes_log2: int, groups: int, out: Array, rest: Array, low: Array | None) -> Packed:
    """split_float and `pack` of its symbols in one: words are u2 or u4, `rest` (u1) gets the bit planes, `low` (u2, for u4 only) the low halves."""
    kind = require_rest(flat(words, (2, 4)), s, rest, low)
    require(rest.flags.writeable and (low is None or low.flags.writeable), "rest or low is read-only")
    return _call_pack(kind, s, words, 1 if s >= 7 else 2, table, lanes_log2, groups, out, address_of(rest), 0 if low is None else address_of(low))


# References: the specification in plain Python


def _reference_order(n: int, lanes_log2: int, groups: int) -> list[list[list[tuple[int, int]]]]:
    """For each group, for each round, the (lane, word) pairs in the order in which they take units."""
    lanes = 1 << lanes_log2
    rounds = (n + 63) // 64
    n_a = n if groups == 1 else min(n, 64 * ((rounds + 1) // 2))
    lane_of = [16 * (r % 4) + r // 4 if lanes == 64 else r for r in range(lanes)]
    return [
        [sorted((lane_of[r], first + r) for r in range(min(lanes, end - first))) for first in range(begin, end, lanes)]
        for begin, end in [(0, n_a), (n_a, n)][:groups]
    ]


def _reference_slots(table: Table) -> list[tuple[int | None, int, int]]:
    """(symbol or None for the escape, frequency, first slot)."""
    pairs: list[tuple[int | None, int]] = list(zip(table.symbols.tolist(), table.frequencies.tolist(), strict=True))
    if table.escape:
        pairs.append((None, table.escape))
    starts = np.cumsum([0, *(f for _, f in pairs)]).tolist()
    return [(symbol, f, start) for (symbol, f), start in zip(pairs, starts, strict=False)]


def pack_reference(x: Array, table: Table, lanes_log2: int, groups: int) -> tuple[bytes, Packed]:
    """What `pack` must write, slowly; every symbol must have a code."""
    code = {symbol: (f, start) for symbol, f, start in _reference_slots(table)}
    all_units, all_states = [], []
    for rounds in _reference_order(x.size, lanes_log2, groups):
        states, units = [1 << 16] * (1 << lanes_log2), []
        for pairs in reversed(rounds):
            for lane, word in reversed(pairs):
                f, start = code.get(int(x[word]), code.get(None, (0, 0)))
                if states[lane] >= f << (32 - table.bits):
                    units.append(states[lane] & 0xFFFF)
                    states[lane] >>= 16
                states[lane] = (states[lane] // f << table.bits) + states[lane] % f + start
        all_units.append(units[::-1])
        all_states += states
    escaped = x[~np.isin(x, table.symbols)]
    n_units = [len(units) for units in all_units] + [0]
    payload = np.array([unit for units in all_units for unit in units], "<u2").tobytes() + np.array(all_states, "<u4").tobytes() + escaped.tobytes()
    return payload, Packed(Status.OK, n_units[0], n_units[1], escaped.size, len(payload))


def unpack_reference(payload: bytes, table: Table, lanes_log2: int, groups: int, units_a: int, units_b: int, n_escapes: int, out: Array) -> Status:
    """What `unpack` must do, slowly."""
    n_states = groups << lanes_log2
    if len(payload) != 2 * (units_a + units_b) + 4 * n_states + out.itemsize * n_escapes:
        return Status.SIZE
    slots = [entry for entry in _reference_slots(table) for _ in range(entry[1])]
    units = np.frombuffer(payload, "<u2", units_a + units_b).tolist()
    states = np.frombuffer(payload, "<u4", n_states, 2 * len(units)).tolist()
    escaped = np.frombuffer(payload, out.dtype, n_escapes, 2 * len(units) + 4 * n_states)
    at, escapes = 0, []
    for group, rounds in enumerate(_reference_order(out.size, lanes_log2, groups)):
        end = units_a if group == 0 else units_a + units_b
        for pairs in rounds:
            for lane, word in pairs:
                x = states[64 * group + lane]
                symbol, f, start = slots[x % (1 << table.bits)]
                x = f * (x >> table.bits) + x % (1 << table.bits) - start
                if x < 1 << 16:
                    if at == end:
                        return Status.UNITS
                    x, at = x << 16 | units[at], at + 1
                states[64 * group + lane] = x
                if symbol is None:
                    escapes.append(word)
                else:
                    out[word] = symbol
        if at != end:
            return Status.UNITS
    if any(state != 1 << 16 for state in states):
        return Status.STATES
    if len(escapes) != n_escapes:
        return Status.ESCAPES
    out[sorted(escapes)] = escaped
    return Status.OK
