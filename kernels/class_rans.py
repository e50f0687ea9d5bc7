"""rANS with a table for each word's class (docs/stages.md, class_rans), alone and fused with split_float; what it shares with `rans` is told there.

A decoding entry, by class and slot, is a u32: frequency in bits 0-10, the slot's distance from its symbol's first slot in bits 11-21, symbol in bits 22-31.
A coding entry, by class and symbol, is a u64: frequency in bits 0-10, what is added to the state in bits 11-22, the reciprocal's shift less 32 in bits 23-27,
bit 31 where the symbol is escaped, the reciprocal's multiplier in bits 32-63. The symbol 1023 stands for an escape in both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numba import types
from numba.types import int64, uint32, uint64

from modelcodec.kernels import arms
from modelcodec.kernels.frequencies import MIN_BITS, SPLIT2, SPLIT4, U1, U2, Status, Table, Tables, flat, reciprocal, require
from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import (
    address_of,
    copy,
    load_i64,
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
from modelcodec.kernels.rans import Packed, frame_of, join_block, pack_bound, patch_escapes, require_rest, reversed_units, split_block, symbol_of, word_of
from modelcodec.kernels.rans_layout import BLOCK, NOTES, NUMBERS, STATES, Frame, group_a
from modelcodec.kernels.xxh3 import xxh3_64

if arms.ARM == "avx512vbmi":
    from modelcodec.kernels.class_rans_avx512 import map_row, pack_rounds, unpack_rounds
elif arms.ARM in ("avx2", "sse41", "neon"):
    from modelcodec.kernels.class_rans_permuted import map_row, pack_rounds, unpack_rounds
elif arms.ARM == "vector":
    from modelcodec.kernels.class_rans_vector import map_row, pack_rounds, unpack_rounds
else:
    from modelcodec.kernels.class_rans_scalar import map_row, pack_rounds, unpack_rounds

__all__ = ["ESCAPE", "MOST_BITS", "MOST_CLASSES", "SCALES", "SUMS", "Classes", "map_row", "pack", "pack_bound", "pack_split", "unpack", "unpack_split"]

Array = np.ndarray[Any, Any]
Made = TypeVar("Made")

MOST_BITS = 11
"""The most that a decoding entry has room for."""
MOST_CLASSES = 32
SCALES = 64
SUMS = 2 * SCALES - 1
"""Sums of a row's and a column's scale, each below 64."""
ESCAPE = 1023
"""Symbols from here on are always escaped."""
SPARE = 64
"""Bytes after an array that vector code may load, and not use, or store, to be overwritten."""

_SIZE, _UNITS, _FINAL, _SYMBOL, _PADDING = int(Status.SIZE), int(Status.UNITS), int(Status.STATES), int(Status.SYMBOL), int(Status.PADDING)
_HIGH = -1
_AT_ONCE = 16
BITS, ENTRIES, LARGEST, ROOM = 32, 40, 48, 56
"""Where in `Classes.place` these are, in bytes: bits of the tables, address of the decoding entries, largest symbol, words of all rows."""


# Tables


@kernel
def _fill_decoding(symbols, frequencies, ends, escapes, entries):
    """Entries (u4[classes << bits], and room for _AT_ONCE more) of tables whose symbols and frequencies lie one after the other, up to `ends`."""
    first, at = 0, 0
    for c in range(ends.size):
        for i in range(first, ends[c] + 1):
            f = int64(escapes[c]) if i == ends[c] else int64(frequencies[i])
            symbol = int64(ESCAPE) if i == ends[c] else int64(symbols[i])
            entry = symbol << 22 | f
            for distance in range(0, f, _AT_ONCE):  # the last ones of them are overwritten
                for j in range(_AT_ONCE):
                    entries[at + distance + j] = uint32(entry + (distance + j << 11))
            at += f
        first = ends[c]


@kernel
def _fill_coding(symbols, frequencies, ends, escapes, bits, entries):
    """Entries (u8[classes, 1024]) of the same; every table has an escape."""
    first = 0
    for c in range(ends.size):
        start = int64(0)
        for i in range(first, ends[c] + 1):
            f = int64(escapes[c]) if i == ends[c] else int64(frequencies[i])
            m, k, _ = reciprocal(f, bits)
            bias = start
            if f == 1:  # a quotient that is one less than it should be, which the bias mends
                m, k, bias = 0xFFFFFFFF, 32, start + (1 << bits) - 1
            entry = uint64(m) << uint64(32) | uint64(k - 32 << 23 | bias << 11 | f)
            if i < ends[c]:
                entries[c, symbols[i]] = entry
            else:
                entry |= uint64(1) << uint64(31)
                for symbol in range(ESCAPE + 1):
                    if entries[c, symbol] == 0:
                        entries[c, symbol] = entry
            start += f
        first = ends[c]


class _Kept(Generic[Made]):
    """A property made when first asked for, which then stays: kernels have its address. Of threads that make it at a time all get the first one's.

    functools.cached_property would, from Python 3.12 on, put the last one's in its place and free the others.
    """

    def __init__(self, make: Callable[[Any], Made]) -> None:
        self._make = make

    def __get__(self, owner: Any, _: Any) -> Made:
        made: Made = vars(owner).setdefault(self._make.__name__, self._make(owner))
        return made


@dataclass(frozen=True)
class Classes:
    """A class for each word of a group: that of `class_of` (u1[127]) at the sum of its row's and its column's scale (u1, below 64). A table for each class.

    The caller has proved: no scale is 64 or above, class_of is below the number of tables; these have the same bits, between 8 and 11, frequencies that sum to
    2^bits, and symbols below 1023.
    """

    row_scales: Array
    column_scales: Array
    class_of: Array
    tables: Sequence[Table]

    @_Kept
    def bits(self) -> int:
        return self.tables[0].bits

    @_Kept
    def padded(self) -> tuple[Array, Array]:
        """Column scales with spare bytes after them, and class_of."""
        columns, class_of = np.zeros(self.column_scales.size + SPARE, np.uint8), np.zeros(SUMS + 1, np.uint8)
        columns[:-SPARE], class_of[:SUMS] = self.column_scales, self.class_of
        return columns, class_of

    @_Kept
    def place(self) -> Array:
        """What a `Frame` has the address of (i8): places and sizes of all that unpacking needs, as long as these classes live."""
        columns, class_of = self.padded
        return np.array(
            [
                address_of(self.row_scales), address_of(columns), self.column_scales.size, address_of(class_of), self.bits,
                address_of(self.decoding_entries), self.largest, self.row_scales.size * self.column_scales.size,
            ],
            np.int64,
        )  # fmt: skip

    @_Kept
    def largest(self) -> int:
        """The largest symbol of all tables."""
        tables = Tables.of(self.tables)
        return int(tables.symbols[tables.ends - 1].max())

    @_Kept
    def has_escapes(self) -> bool:
        """Whether any symbol can be coded in any class."""
        return bool((Tables.of(self.tables).escapes > 0).all())

    @_Kept
    def decoding_entries(self) -> Array:
        tables, entries = Tables.of(self.tables), np.empty((len(self.tables) << self.bits) + _AT_ONCE, np.uint32)
        _fill_decoding(tables.symbols, tables.frequencies, tables.ends, tables.escapes, entries)
        return entries

    @_Kept
    def coding_entries(self) -> Array:
        tables, entries = Tables.of(self.tables), np.zeros((len(self.tables), ESCAPE + 1), np.uint64)
        _fill_coding(tables.symbols, tables.frequencies, tables.ends, tables.escapes, self.bits, entries)
        return entries

    def holds(self, first: int, n: int) -> bool:
        """Whether n words from word `first` of the group on lie in its rows."""
        return first >= 0 and first + n <= self.row_scales.size * self.column_scales.size


@piece(types.void(*(int64,) * 7))
def _map_classes(row_scales, column_scales, columns, class_of, first, n, to):
    """The class of each word, n bytes and some spare ones."""
    row, column, i = first // columns, first % columns, int64(0)
    while i < n:
        m = min(columns - column, n - i)
        map_row(column_scales + column, m, load_u8(row_scales + row), class_of, to + i)
        i += m
        row += 1
        column = int64(0)


@piece(types.void(*(int64,) * 4))
def classes_at(place, first, n, to):
    """The same for classes whose `place` has this address."""
    _map_classes(load_i64(place), load_i64(place + 8), load_i64(place + 16), load_i64(place + 24), first, n, to)


# Unpacking


@piece(int64(*(int64,) * 17))
def _unpack_blocks(kind, s, out, rest, low, n, first, last, bits, lanes_log2, entries, classes, most, units, units_end, states, work):
    """Scalar: words `first` to `last`; `first` is a multiple of 64. Returns the place after the last unit taken, 0 where the units run out, _HIGH for a symbol
    above `most`.
    """
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
            entry = load_u32(entries + 4 * (load_u8(classes + base + word) << bits | x & slots))
            x = (entry & 2047) * (x >> bits) + (entry >> 11 & 2047)
            if x < 65536:
                if units + 2 > units_end:
                    return int64(0)
                x = x << 16 | load_u16(units)
                units += 2
            store_u32(state, x)
            symbol = entry >> 22
            escaped = symbol == ESCAPE
            if symbol > most and not escaped:
                return int64(_HIGH)
            store_u16(work + BLOCK + 2 * word, 0 if escaped else symbol)
            note |= uint64(escaped) << uint64(word)
        store_u64(work + NOTES + (base >> 3), note)
        join_block(kind, s, out, rest, low, n, base, m, work)
    return units


# A `Frame` is that of `rans_layout`, except that symbols stands for the address of `Classes.place`, frequencies for the word of the group that the frame starts
# with, n_symbols and escape for nothing, and that work has the bytes of `work_bytes`. Who makes one has proved as much, and that the words lie in the group's
# rows.


@piece(int64(Frame))
def unpack_frame(frame):
    """Decode a frame. Returns a status."""
    kind, s, payload, n_payload, out, rest, low, n, bits, lanes_log2, groups, units_a, units_b, n_escapes, place, at, _, _, work = frame
    entries, largest = load_i64(place + ENTRIES), load_i64(place + LARGEST)
    width = 1 if kind == U1 or (kind != U2 and s >= 7) else 2
    n_states = groups << lanes_log2
    if n_payload != 2 * (units_a + units_b) + 4 * n_states + n_escapes * width:
        return _SIZE
    classes = work + NOTES + ((n + 511) >> 9 << 6)
    classes_at(place, at, n, classes)
    middle = payload + 2 * units_a
    initial = middle + 2 * units_b
    copy(work + STATES, initial, 4 * n_states)
    n_a = group_a(n, groups)
    done, a, b = 0, payload, middle
    most = (1 << (15 - s)) - 1 if kind >= SPLIT2 else (1 << (8 * width)) - 1
    if lanes_log2 == 6 and largest <= most:  # only a symbol that comes up is an error, so foreign tables with more of them are left to scalar code
        done, a, b = unpack_rounds(kind, s, payload, payload + n_payload, middle, out, rest, low, n, n_a, bits, groups, entries, classes, work)
    for group in range(groups):
        first, last, units, end = (n_a, n, b, initial) if group else (int64(0), n_a, a, middle)
        states = work + STATES + 256 * group
        first += 64 * done
        units = _unpack_blocks(kind, s, out, rest, low, n, first, last, bits, lanes_log2, entries, classes, most, units, end, states, work)
        if units != end:
            return _SYMBOL if units == _HIGH else _UNITS
    for i in range(n_states):
        if load_u32(work + STATES + 4 * i) != 65536:
            return _FINAL
    if kind >= SPLIT2 and n & 7:
        # The last block was joined by scalar code, and its numbers are still there, those past the end too.
        for i in range(n & 63, ((n & 63) + 7) & ~7):
            if load_u16(work + NUMBERS + 2 * i):
                return _PADDING
    return patch_escapes(kind, s, out, n, initial + 4 * n_states, n_escapes, work)


@kernel
def _unpack(frames, statuses, digests):
    """Decode frames, i8[:, 19], one by one. Sets their statuses (i8), and where `digests` (u8) has room those of their words.

    A kind below 0 means no frame, and keeps its status.
    """
    for i in range(len(frames)):
        kind, out, n, work = frames[i, 0], frames[i, 4], frames[i, 7], frames[i, 18]
        if kind >= 0:
            statuses[i] = unpack_frame(frame_of(frames[i]))
            width = 4 if kind == SPLIT4 else 1 if kind == U1 else 2
            if i < len(digests):
                digests[i] = xxh3_64(out, n * width, uint64(0), work)


# Packing


@piece(int64(*(int64,) * 15))
def _pack_blocks(kind, s, words, rest, low, n, first, last, bits, lanes_log2, entries, classes, units, states, work):
    """Scalar: words `last - 1` down to `first`, a multiple of 64. Units are written upwards, so in reverse. Returns the place after them."""
    lanes = (int64(1) << lanes_log2) - 1
    for base in range(first + ((last - first - 1) & ~63), first - 1, -64):
        m = min(64, last - base)
        note = uint64(0)
        for t in range(63, -1, -1):
            word = word_of(t, lanes_log2)
            if word >= m:
                continue
            symbol = min(symbol_of(words, kind, s, base + word), ESCAPE)
            entry = load_u64(entries + 8 * (load_u8(classes + base + word) << 10 | symbol))
            fields = int64(entry & uint64(0xFFFFFFFF))
            note |= uint64(fields >> 31) << uint64(word)
            state = states + 4 * (t & lanes)
            x = load_u32(state)
            f = fields & 2047
            if x >> (32 - bits) >= f:
                store_u16(units, x)
                units += 2
                x >>= 16
            q = int64(uint64(x) * (entry >> uint64(32)) >> uint64(32 + (fields >> 23 & 31)))
            q -= q * f > x
            store_u32(state, x + (fields >> 11 & 4095) + q * ((1 << bits) - f))
        store_u64(work + NOTES + (base >> 3), note)
        if kind >= SPLIT2:
            split_block(kind, s, words, rest, low, n, base, m, work)
    return units


@kernel
def _pack(kind, s, words, out, rest, low, n, lanes_log2, groups, row_scales, column_scales, columns, class_of, at, bits, entries, work):
    """Code n words. Returns the units of both groups, the number of escapes. The caller has proved the same, and that out has the room of `pack_bound`."""
    width = 1 if kind == U1 or (kind != U2 and s >= 7) else 2
    n_states = groups << lanes_log2
    for i in range(n_states):
        store_u32(work + STATES + 4 * i, 65536)
    n_a = group_a(n, groups)
    classes = work + NOTES + ((n + 511) >> 9 << 6)
    _map_classes(row_scales, column_scales, columns, class_of, at, n, classes)
    area_a = classes + n + SPARE
    area_b = area_a + 2 * n_a + 128
    whole = (n - n_a if groups == 2 else n_a) >> 6 if lanes_log2 == 6 else 0
    a, b, left = area_a, area_b, whole
    for after in range(2):  # what comes after the whole rounds, the whole rounds, and what the vector code left of them
        if after and whole:
            left, a, b = pack_rounds(kind, s, words, rest, low, n, n_a, whole, bits, groups, entries, classes, a, b, work)
        for group in range(groups):
            begin, end = (n_a, n) if group else (int64(0), n_a)
            first, last = (begin, begin + 64 * left) if after else (begin + 64 * whole, end)
            states = work + STATES + 256 * group
            units = _pack_blocks(kind, s, words, rest, low, n, first, last, bits, lanes_log2, entries, classes, b if group else a, states, work)
            a, b = (a, units) if group else (units, b)
    to = out
    for group in range(groups):
        to = reversed_units(to, area_b if group else area_a, b if group else a)
    copy(to, work + STATES, 4 * n_states)
    to += 4 * n_states
    n_escapes = int64(0)
    for i in range((n + 63) >> 6):
        note = load_u64(work + NOTES + 8 * i)
        while note:
            symbol = symbol_of(words, kind, s, 64 * i + trailing_zeros(note))
            note &= note - uint64(1)
            if width == 1:
                store_u8(to + n_escapes, symbol)
            else:
                store_u16(to + 2 * n_escapes, symbol)
            n_escapes += 1
    return (a - area_a) >> 1, (b - area_b) >> 1, n_escapes


# The kernels as the stages call them


def _require_classes(classes: Classes, first: int, n: int, lanes_log2: int, groups: int) -> None:
    require(n < 1 << 31 and MIN_BITS <= classes.bits <= MOST_BITS and len(classes.tables) <= MOST_CLASSES, "too many words or classes, or no such tables")
    require(0 <= lanes_log2 <= 6 and (groups == 1 or (groups == 2 and lanes_log2 == 6)), "no such number of lanes and groups")
    require(classes.holds(first, n), "words lie past the last row")
    flat(classes.row_scales, (1,)), flat(classes.column_scales, (1,)), flat(classes.class_of, (1,))


def _place(classes: Classes, first: int) -> tuple[int, int, int, int, int, int]:
    columns, class_of = classes.padded
    return address_of(classes.row_scales), address_of(columns), classes.column_scales.size, address_of(class_of), first, classes.bits


def work_bytes(n: int) -> int:
    """Notes and classes of n words to be unpacked."""
    return NOTES + n // 8 + 64 + n + SPARE


def _work(n: int) -> int:
    """The same, and units of both groups in reverse."""
    return scratch(work_bytes(n) + 2 * n + 512)


def unpack_frames(frames: Array, *, digested: bool = False) -> tuple[Array, Array]:
    """Decode frames (i8[:, 19], the numbers of a `Frame`, whose rules the caller has proved): their statuses (i8), and the digests (u8) of their words.

    Kinds below 0 are no frames. Digests only if `digested`.
    """
    statuses, digests = np.full(len(frames), -1, np.int64), np.zeros(len(frames) if digested else 0, np.uint64)
    _unpack(frames, statuses, digests)
    return statuses, digests


def _call_unpack(
    kind: int, s: int, payload: Array, units: tuple[int, int], n_escapes: int, lanes_log2: int, groups: int, classes: Classes, first: int, out: Array,
    rest: int, low: int,
) -> Status:  # fmt: skip
    n = out.size
    _require_classes(classes, first, n, lanes_log2, groups)
    require(out.flags.writeable, "out is read-only")
    if not 0 <= min(*units, n_escapes) <= max(*units, n_escapes) <= n:
        return Status.SIZE
    frame = (
        kind, s, address_of(payload), payload.size, address_of(out), rest, low, n, classes.bits, lanes_log2, groups, *units, n_escapes,
        address_of(classes.place), first, 0, 0, scratch(work_bytes(n)),
    )  # fmt: skip
    return Status(int(unpack_frames(np.array([frame], np.int64))[0][0]))


def unpack(payload: Array, lanes_log2: int, groups: int, units_a: int, units_b: int, n_escapes: int, classes: Classes, first: int, out: Array) -> Status:
    """Decode the untrusted `payload` (u1) into `out` (u1 or u2): words of the group from word `first` on.

    What `out` holds after an error is unspecified.
    """
    flat(payload, (1,)), flat(out, (1, 2))
    kind = U1 if out.dtype.itemsize == 1 else U2
    return _call_unpack(kind, 0, payload, (units_a, units_b), n_escapes, lanes_log2, groups, classes, first, out, 0, 0)


def unpack_split(
    payload: Array, lanes_log2: int, groups: int, units_a: int, units_b: int, n_escapes: int, classes: Classes, first: int,
    s: int, rest: Array, low: Array | None, out: Array,
) -> Status:  # fmt: skip
    """Decode symbols as `unpack` does and join them with their rest to split_float's words, straight into `out` (u2 or u4).

    rest: u1, bit planes. low: u2, for `out` of u4 only.
    """
    flat(payload, (1,)), flat(out, (2, 4))
    kind = require_rest(out, s, rest, low)
    low_at = 0 if low is None else address_of(low)
    return _call_unpack(kind, s, payload, (units_a, units_b), n_escapes, lanes_log2, groups, classes, first, out, address_of(rest), low_at)


def _call_pack(
    kind: int, s: int, words: Array, width: int, lanes_log2: int, groups: int, classes: Classes, first: int, out: Array, rest: int, low: int
) -> Packed:  # fmt: skip
    n = words.size
    _require_classes(classes, first, n, lanes_log2, groups)
    require(classes.has_escapes, "a table has no escape")
    require(flat(out, (1,)).flags.writeable and out.size >= pack_bound(n, width, lanes_log2, groups), "out is smaller than pack_bound")
    entries = classes.coding_entries
    units_a, units_b, n_escapes = _pack(
        kind, s, address_of(words), address_of(out), rest, low, n, lanes_log2, groups, *_place(classes, first), address_of(entries), _work(n)
    )
    return Packed(Status.OK, units_a, units_b, n_escapes, 2 * (units_a + units_b) + (4 * groups << lanes_log2) + width * n_escapes)


def pack(x: Array, lanes_log2: int, groups: int, classes: Classes, first: int, out: Array) -> Packed:
    """Code the symbols x (u1 or u2), from word `first` of the group on, into `out` (u1, `pack_bound` bytes). Every table has an escape."""
    width = flat(x, (1, 2)).dtype.itemsize
    return _call_pack(U1 if width == 1 else U2, 0, x, width, lanes_log2, groups, classes, first, out, 0, 0)


def pack_split(words: Array, s: int, lanes_log2: int, groups: int, classes: Classes, first: int, out: Array, rest: Array, low: Array | None) -> Packed:
    """split_float and `pack` of its symbols in one: words are u2 or u4, `rest` (u1) gets the bit planes, `low` (u2, for u4 only) the low halves."""
    kind = require_rest(flat(words, (2, 4)), s, rest, low)
    require(rest.flags.writeable and (low is None or low.flags.writeable), "rest or low is read-only")
    low_at = 0 if low is None else address_of(low)
    return _call_pack(kind, s, words, 1 if s >= 7 else 2, lanes_log2, groups, classes, first, out, address_of(rest), low_at)
