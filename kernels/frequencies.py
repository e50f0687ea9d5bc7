"""Frequency tables for rANS (docs/stages.md, section rans): counting symbols, choosing frequencies, and the table's bits.

All arithmetic is on integers, so that every machine chooses the same table. A table is sparse here: at most 256 symbols have a frequency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, overload

import numpy as np
from numba import types
from numba.types import int64, uint64

from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import address_of, fill, load_u8, load_u16, load_u32, load_u64, scratch, store_u16, store_u32, store_u64
from modelcodec.kernels.varint import varint

Array = np.ndarray[Any, Any]

MIN_BITS, MAX_BITS = 8, 12
MAX_FREQUENCIES = 256
FEW_SYMBOLS, MANY_SYMBOLS = 63, 255
"""The most symbols of a table of 8 bits, which a decoder then holds in registers, and of others, beside the escape."""


class Status(IntEnum):
    """What a kernel found. Anything but OK means damaged input or, for packing, words that the table cannot code."""

    OK = 0
    TABLE = 1
    SIZE = 2
    UNITS = 3
    STATES = 4
    ESCAPES = 5
    SYMBOL = 6
    PADDING = 7

    @property
    def fact(self) -> str:
        """For the middle of an error message."""
        return _FACTS[self]


_FACTS = {
    Status.OK: "nothing is wrong",
    Status.TABLE: "the frequency table breaks its rules",
    Status.SIZE: "the payload does not have the size that the header implies",
    Status.UNITS: "the coded units do not end where they should",
    Status.STATES: "a coder does not end in its final state",
    Status.ESCAPES: "the number of escaped words is wrong",
    Status.SYMBOL: "a symbol is out of range",
    Status.PADDING: "the padding of a bit plane is not zero",
}

U1, U2, SPLIT2, SPLIT4 = 0, 1, 2, 3
"""What words are: symbols of 1 or 2 bytes, or words of 2 or 4 bytes that split_float cuts into symbol, rest and low part. Kernels compare these by order."""


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Static frequencies: `symbols` (u2, ascending, at least one) have `frequencies` (u2, at least 1).

    With `escape`, which is 0 where nothing is escaped, they sum to `2 ** bits`.
    """

    bits: int
    symbols: Array
    frequencies: Array
    escape: int


@dataclass(frozen=True, slots=True, eq=False)
class Tables(Sequence[Table]):
    """Tables of the same bits, one after the other: the symbols and frequencies (u2) of the k-th end before ends[k] (i8), its escape is escapes[k] (i8)."""

    bits: int
    symbols: Array
    frequencies: Array
    ends: Array
    escapes: Array

    @classmethod
    def of(cls, tables: Sequence[Table]) -> Tables:
        """These tables, at least one, whose bits are those of the first."""
        if isinstance(tables, Tables):
            return tables
        symbols, frequencies = (np.concatenate(parts) for parts in zip(*((table.symbols, table.frequencies) for table in tables), strict=True))
        require(symbols.size == frequencies.size, "tables whose arrays do not fit together")
        ends = np.cumsum([table.symbols.size for table in tables])
        return cls(tables[0].bits, symbols, frequencies, ends, np.array([table.escape for table in tables]))

    def __len__(self) -> int:
        return int(self.ends.size)

    @overload
    def __getitem__(self, k: int) -> Table: ...
    @overload
    def __getitem__(self, k: slice) -> Tables: ...
    def __getitem__(self, k: int | slice) -> Table | Tables:
        if isinstance(k, slice):
            return Tables.of([self[i] for i in range(*k.indices(len(self)))])
        if not -len(self) <= k < len(self):
            raise IndexError(f"there are {len(self)} tables")
        k %= len(self)
        own = slice(int(self.ends[k - 1]) if k else 0, int(self.ends[k]))
        return Table(self.bits, self.symbols[own], self.frequencies[own], int(self.escapes[k]))


def require(condition: bool, fact: str) -> None:
    """A caller's mistake, found before memory is touched."""
    if not condition:
        raise ValueError(fact)


def flat(words: Array, widths: tuple[int, ...]) -> Array:
    """The words as they are, once they are known to be contiguous, one-dimensional, unsigned and of one of the widths."""
    kind = words.dtype
    if words.ndim != 1 or not words.flags.c_contiguous or kind.kind != "u" or kind.itemsize not in widths or not kind.isnative:
        raise ValueError(f"one contiguous dimension of unsigned integers of {widths} bytes is wanted, not {words.ndim} of {kind}")
    return words


# Counting


_PART_GAP = 192
"""Bytes between partial histograms: counters of one symbol must not lie a multiple of 4096 apart, where processors take them for the same."""


@piece(types.void(int64, int64))
def _tally(parts, symbol):
    counter = parts + 4 * symbol
    store_u32(counter, load_u32(counter) + 1)


def histogram_scratch(bins: int) -> int:
    """Bytes of memory that `count_symbols` needs at `parts`."""
    return 8 * (4 * bins + _PART_GAP)


@piece(types.void(*(int64,) * 9))
def count_symbols(words, n, kind, shift, block, step, bins, counts, parts):
    """Add to `counts` the symbols of `block` out of every `step` words.

    Neighbours go to different ones of 8 partial histograms (u32, at `parts`), since a counter that was just written is slow to read.
    """
    size = 4 * bins + _PART_GAP
    fill(parts, 0, 8 * size)
    width = 1 if kind == U1 else 4 if kind == SPLIT4 else 2
    most = bins - 1 if kind < SPLIT2 else min(bins, 1 << (15 - shift)) - 1
    ones = uint64(most)
    fields = ones | ones << uint64(16) | ones << uint64(32) | ones << uint64(48)
    down = uint64(shift)
    for stratum in range(0, n, step):
        # Not the same place in each stratum, which might always be the same columns of a matrix.
        first = stratum + stratum // step * block % step
        m = max(min(block, n - first), 0)
        at = words + first * width
        for i in range(m >> 3):
            if kind == U1:
                x = load_u64(at + 8 * i)
                for j in range(8):
                    _tally(parts + j * size, int64(x >> uint64(8 * j) & uint64(255)))
            elif kind == SPLIT4:
                for j in range(4):
                    x = load_u64(at + 32 * i + 8 * j) >> down & fields
                    _tally(parts + 2 * j * size, int64(x >> uint64(16) & uint64(65535)))
                    _tally(parts + (2 * j + 1) * size, int64(x >> uint64(48)))
            else:
                for j in range(2):
                    x = load_u64(at + 16 * i + 8 * j) >> down & fields
                    _tally(parts + 4 * j * size, int64(x & uint64(65535)))
                    _tally(parts + (4 * j + 1) * size, int64(x >> uint64(16) & uint64(65535)))
                    _tally(parts + (4 * j + 2) * size, int64(x >> uint64(32) & uint64(65535)))
                    _tally(parts + (4 * j + 3) * size, int64(x >> uint64(48)))
        for i in range(m & ~7, m):
            x = load_u8(at + i) if kind == U1 else load_u16(at + width * i + width - 2)
            _tally(parts, x >> shift & most)
    for i in range(bins):
        total = int64(0)
        for j in range(8):
            total += load_u32(parts + j * size + 4 * i)
        store_u64(counts + 8 * i, load_u64(counts + 8 * i) + uint64(total))


@kernel
def _histogram(words, n, kind, shift, block, step, bins, counts, parts):
    count_symbols(words, n, kind, shift, block, step, bins, counts, parts)


SAMPLE_BLOCK = 64
"""Words that are counted together where only some are."""


def _count(words: Array, kind: int, shift: int, counts: Array, sample: int) -> None:
    require(counts.dtype == np.int64 and counts.flags.c_contiguous and counts.flags.writeable, "counts are no contiguous array of int64")
    require(256 <= counts.size <= 65536 and counts.size & (counts.size - 1) == 0, "the number of counts is no power of two from 256 to 65536")
    require(words.size < 1 << 31 and sample >= 1, "too many words for one histogram, or nothing to sample")
    block = SAMPLE_BLOCK if sample > 1 else max(words.size, 1)
    parts = scratch(histogram_scratch(counts.size))
    _histogram(address_of(words), words.size, kind, shift, block, block * sample, counts.size, address_of(counts), parts)


def histogram(x: Array, counts: Array, sample: int = 1) -> None:
    """Add to `counts` how often each symbol occurs in x (u1 or u2).

    counts: int64, its size a power of two from 256 to 65536 and above every symbol (a larger symbol is counted modulo the size).
    sample: count 64 words out of every 64 * sample, from stratum k on the 64 at k modulo sample.
    """
    _count(flat(x, (1, 2)), U1 if x.dtype.itemsize == 1 else U2, 0, counts, sample)


def histogram_split(words: Array, s: int, counts: Array, sample: int = 1) -> None:
    """The same for the symbols that split_float with `s` makes of words (u2 or u4)."""
    require(0 <= s <= 13, "s is not between 0 and 13")
    _count(flat(words, (2, 4)), SPLIT2 if words.dtype.itemsize == 2 else SPLIT4, s, counts, sample)


# Choosing frequencies


def _log2_table() -> Array:
    """Binary logarithms of 1 to 4096 with 16 binary places, rounded down."""
    x = np.arange(4097, dtype=np.uint64)
    x[0] = 1
    result = np.zeros(4097, np.uint64)
    for shift in (8, 4, 2, 1):
        result += np.where(x >> result >= 1 << shift, np.uint64(shift), np.uint64(0))
    x <<= np.uint64(31) - result
    for _ in range(16):
        x = x * x >> np.uint64(31)
        bit = x >> np.uint64(32)
        x >>= bit
        result = result << np.uint64(1) | bit
    return result.astype(np.int64)


LOG2 = _log2_table()
_PLACES = 16


@piece(int64(int64))
def bit_length(x):
    n = 0
    while x:
        x >>= 1
        n += 1
    return n


@piece(types.Tuple((int64, int64, types.boolean))(int64, int64))
def reciprocal(f, bits):
    """(m, k, exact): floor(x / f) is x * m >> k, for every state x that a symbol of frequency f can meet if `exact`, else sometimes one less than that."""
    length = bit_length(f)
    if f & (f - 1) == 0:
        return int64(1) << 31, 30 + length, True
    k = 31 + length
    m = ((int64(1) << k) + f - 1) // f
    return m, k, (m * f - (int64(1) << k)) * f <= int64(1) << (k - 32 + bits)


_MOVES = 2 * (MAX_FREQUENCIES + 1)
CHOICE_NUMBERS = 3 * (MAX_FREQUENCIES + 1) + _MOVES
"""Numbers that `choose_frequencies` keeps."""


@piece(types.void(int64, int64, int64, int64, int64[::1], int64[::1]))
def _weigh_moves(i, count, f, most, log2, moves):
    """What symbol i gains by one slot more, and loses by one less."""
    moves[2 * i] = count * (log2[f + 1] - log2[f]) if f < most else int64(-1)
    moves[2 * i + 1] = count * (log2[f] - log2[f - 1]) if f > 1 else int64(1) << 62


@piece(types.void(int64[::1], int64, int64[::1], int64, int64, int64[::1], int64[::1]))
def _fit(counts, n, frequencies, bits, total, log2, moves):
    """Frequencies of at least 1 that sum to 2 ** bits, for the n counts that sum to `total`: proportional, then moved one by one to where they save most."""
    most = (int64(1) << bits) - 1
    left = most + 1
    for i in range(n):
        f = min(max((((counts[i] << (bits + 1)) + total) // (2 * total)), 1), most)
        frequencies[i] = f
        left -= f
        _weigh_moves(i, counts[i], f, most, log2, moves)
    for _ in range(4 * n + abs(left)):
        gain, gainer, loss, loser = int64(-1), -1, int64(1) << 62, -1
        for i in range(n):
            if moves[2 * i] > gain:
                gain, gainer = moves[2 * i], i
            if moves[2 * i + 1] < loss:
                loss, loser = moves[2 * i + 1], i
        if left == 0 and (gain <= loss or gainer == loser):
            break
        if left >= 0:
            frequencies[gainer] += 1
            _weigh_moves(gainer, counts[gainer], frequencies[gainer], most, log2, moves)
        if left <= 0:
            frequencies[loser] -= 1
            _weigh_moves(loser, counts[loser], frequencies[loser], most, log2, moves)
        left -= (left > 0) - (left < 0)


@piece(int64(int64[::1], int64[::1], int64, int64, int64))
def _table_cost(symbols, frequencies, n, escape, width):
    """Bits of the table on the wire."""
    cost = 16 * width + 4 + max(bit_length(escape) - 1, 0)
    for i in range(n):
        cost += 3 + bit_length(frequencies[i])
        zeros = int64(symbols[i]) - int64(symbols[i - 1]) - 1 if i else 0
        if zeros:
            cost += 7 + bit_length(zeros)
    return cost


_I8, _U2 = int64[::1], types.uint16[::1]


@piece(types.UniTuple(int64, 2)(_I8, int64, int64, int64, types.boolean, _I8, _I8, _U2, _U2))
def choose_frequencies(counts, bits, width, limit, always, log2, space, best_symbols, best_frequencies):
    """Try several bounds below which a symbol is escaped; keep what costs least. Returns the number of symbols and the frequency of the escape.

    space: CHOICE_NUMBERS, of any contents.
    """
    symbols, frequencies, kept = space[: MAX_FREQUENCIES + 1], space[MAX_FREQUENCIES + 1 : _MOVES], space[_MOVES : _MOVES + MAX_FREQUENCIES + 1]
    moves = space[_MOVES + MAX_FREQUENCIES + 1 :]
    total, different, largest = int64(0), 0, int64(0)
    for i in range(counts.size):
        total += counts[i]
        different += counts[i] > 0
        largest = max(largest, counts[i])
    if total == 0:
        best_symbols[0], best_frequencies[0] = 0, (1 << bits) - 1
        return 1, 1
    low, high = int64(1), largest + 1  # the smallest bound that keeps at most `limit` symbols
    while low < high and different > limit:
        middle = (low + high) >> 1
        over = 0
        for i in range(counts.size):
            over += counts[i] >= middle
        if over > limit:
            low = middle + 1
        else:
            high = middle
    best, best_n, best_escape, before = int64(1) << 62, 0, 0, -1
    for eighths in (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32):
        bound = max(low, (total * eighths) >> (bits + 3))
        n, coded = 0, int64(0)
        for i in range(counts.size):
            if counts[i] >= bound:
                symbols[n], kept[n] = i, counts[i]
                coded += counts[i]
                n += 1
        if n == before or (n == 0 and best_n + best_escape > 0):
            continue
        before = n
        escaped = total - coded
        if n == 0:
            symbols[0], kept[0], n = 0, 0, 1
        m = n
        if escaped or always or n == 1:
            kept[m] = escaped
            m += 1
        _fit(kept, m, frequencies, bits, total, log2, moves)
        escape = frequencies[n] if m > n else int64(0)
        cost = escaped * 8 * width + _table_cost(symbols, frequencies, n, escape, width) << 16
        for i in range(m):
            cost += kept[i] * ((bits << 16) - log2[frequencies[i]])
        if cost < best:
            best, best_n, best_escape = cost, n, escape
            for i in range(n):
                best_symbols[i], best_frequencies[i] = symbols[i], frequencies[i]
    for i in range(best_n):  # at most one frequency is above half; let vector code divide by it exactly
        f = int64(best_frequencies[i])
        while not reciprocal(f, bits)[2]:
            f -= 1
            if best_escape:
                best_escape += 1
            else:
                best_frequencies[1 if i == 0 else 0] += 1
        best_frequencies[i] = f
    return best_n, best_escape


@kernel
def _normalise(counts, bits, width, limit, always, log2, space, best_symbols, best_frequencies):
    return choose_frequencies(counts, bits, width, limit, always, log2, space, best_symbols, best_frequencies)


def normalise(counts: Array, bits: int, width: int, *, escape: bool = False) -> Table:
    """Choose the frequencies that code these counts of symbols in the fewest bits, table and escaped words (8 * width bits each) included.

    counts: int64, index = symbol, not negative, their sum below 2^40. escape: keep an escape even if all counted symbols have a frequency, for words that were
    not counted. A table of 8 bits has at most 63 symbols beside the escape, so that a decoder can hold it in registers; others have at most 255. Raises
    ValueError.
    """
    require(MIN_BITS <= bits <= MAX_BITS, f"a table has 8 to 12 bits, not {bits}")
    require(
        counts.dtype == np.int64 and counts.flags.c_contiguous and counts.ndim == 1 and 1 <= counts.size <= 256**width,
        "counts are no array of int64, one a symbol",
    )
    best_symbols, best_frequencies = np.empty(257, np.uint16), np.empty(257, np.uint16)
    limit = FEW_SYMBOLS if bits == 8 else MANY_SYMBOLS
    n, rest = _normalise(counts, bits, width, limit, escape, LOG2, np.empty(CHOICE_NUMBERS, np.int64), best_symbols, best_frequencies)
    return Table(bits, best_symbols[:n].copy(), best_frequencies[:n].copy(), rest)


def coded_bits(counts: Array, table: Table, width: int) -> int | None:
    """Bits for words with these counts (int64, index = symbol) and for the table itself; None where a word has no code. Final states do not count."""
    known = table.symbols < counts.size
    coded, frequencies = counts[table.symbols[known]], table.frequencies[known]
    escaped = int(counts.sum()) - int(coded.sum())
    if escaped and not table.escape:
        return None
    cost = int((coded * ((table.bits << _PLACES) - LOG2[frequencies])).sum())
    cost += escaped * ((table.bits + 8 * width << _PLACES) - int(LOG2[table.escape]))
    return (cost >> _PLACES) + 1 + table_bits(table, width)


def table_bits(table: Table, width: int) -> int:
    """Bits of the table on the wire."""
    zeros = np.diff(table.symbols.astype(np.int64)) - 1
    zeros = zeros[zeros > 0]
    lengths = int((LOG2[table.frequencies] >> _PLACES).sum()) + 4 * table.frequencies.size
    runs = int(sum(int(z).bit_length() + 7 for z in zeros))
    return 16 * width + 4 + max(table.escape.bit_length() - 1, 0) + lengths + runs


# The table's bits


_SPARE = 8
"""Bytes after a bit string that may be loaded and stored together with its last bits."""
TABLE_BYTES = _SPARE + 6 * MAX_FREQUENCIES
"""Room for any table."""


@piece(int64(*(int64,) * 4))
def _put(out, position, value, n):
    """Write n bits, at most 16, from bit `position` on, low bit first; all bits from there on are zero."""
    at = out + (position >> 3)
    store_u32(at, load_u32(at) | (value & ((1 << n) - 1)) << (position & 7))
    return position + n


@piece(int64(_U2, _U2, *(int64,) * 4))
def put_table(symbols, frequencies, n, escape, width, out):
    """Write a table of n symbols to an address, TABLE_BYTES of zeros. Returns its bytes."""
    position = _put(out, 0, int64(symbols[0]), 8 * width)
    position = _put(out, position, int64(symbols[n - 1]) - int64(symbols[0]), 8 * width)
    for i in range(-1, n):
        f = int64(escape) if i < 0 else int64(frequencies[i])
        zeros = int64(symbols[i]) - int64(symbols[i - 1]) - 1 if i > 0 else int64(0)
        if zeros:
            length = bit_length(zeros)
            position = _put(out, position, (length - 1) << 4, 8)
            position = _put(out, position, zeros, length - 1)
        length = bit_length(f)
        position = _put(out, position, length, 4)
        position = _put(out, position, f, max(length - 1, 0))
    return (position + 7) >> 3


@kernel
def _write_table(symbols, frequencies, n, escape, width, out):
    return put_table(symbols, frequencies, n, escape, width, out)


def write_table(table: Table, width: int) -> bytes:
    """The table as docs/stages.md has it, for words of `width` bytes."""
    out = np.zeros(TABLE_BYTES, np.uint8)
    return out[: _write_table(table.symbols, table.frequencies, table.symbols.size, table.escape, width, address_of(out))].tobytes()


@piece(int64(*(int64,) * 3))
def _get(data, position, n):
    """The n bits, at most 16, from bit `position` on; the caller has proved that they are there."""
    return (load_u32(data + (position >> 3)) >> (position & 7)) & ((1 << n) - 1)


@piece(types.UniTuple(int64, 2)(*(int64,) * 6))
def parse_table(data, n_bytes, bits, width, symbols, frequencies):
    """Read untrusted bytes, with _SPARE more after them, into symbols and frequencies (addresses of u2, MAX_FREQUENCIES + 1).

    Returns the number of symbols, or -1 where the bytes break a rule, and the frequency of the escape.
    """
    end, position, n, escape, left = 8 * n_bytes, 16 * width, 0, int64(0), int64(1) << bits
    if position > end:
        return -1, escape
    symbol = _get(data, 0, 8 * width) - 1  # the place before the first one stands for the escape
    last = symbol + 1 + _get(data, 8 * width, 8 * width)
    if last >= int64(1) << (8 * width):
        return -1, escape
    first = True
    while symbol <= last:
        if position + 4 > end:
            return -1, escape
        b = _get(data, position, 4)
        position += 4
        zeros = b == 0 and not first
        if zeros:
            if position + 4 > end:
                return -1, escape
            b = _get(data, position, 4) + 1
            position += 4
        more = max(b - 1, 0)
        if position + more > end:
            return -1, escape
        value = _get(data, position, more) + (int64(1) << more if b else int64(0))
        position += more
        if zeros:
            symbol += value
            if symbol > last + 1:
                return -1, escape
            continue
        left -= value
        if left < 0 or value >= int64(1) << bits or n + (value > 0) + (escape > 0) > MAX_FREQUENCIES:
            return -1, escape
        if first:
            escape, first = value, False
        else:
            store_u16(symbols + 2 * n, symbol)
            store_u16(frequencies + 2 * n, value)
            n += 1
        symbol += 1
    padding = end - position
    if left or padding > 7 or _get(data, position, padding):
        return -1, escape
    return n, escape


@kernel
def _read_table(data, n_bytes, bits, width, symbols, frequencies):
    return parse_table(data, n_bytes, bits, width, symbols, frequencies)


def read_table(data: Array | bytes | memoryview, bits: int, width: int) -> Table | None:
    """Read untrusted bytes that hold a table and nothing else; None where they break a rule of docs/stages.md.

    A table without any symbol beside the escape, which no sum of frequencies below 2 ** bits allows, is refused too.
    """
    require(MIN_BITS <= bits <= MAX_BITS and width in (1, 2), "bits or width of a table out of range")
    given = np.frombuffer(data, np.uint8)
    source = np.zeros(given.size + _SPARE, np.uint8)
    source[: given.size] = given
    symbols, frequencies = np.empty(MAX_FREQUENCIES + 1, np.uint16), np.empty(MAX_FREQUENCIES + 1, np.uint16)
    n, escape = _read_table(address_of(source), given.size, bits, width, address_of(symbols), address_of(frequencies))
    return None if n < 1 else Table(bits, symbols[:n], frequencies[:n], escape)


@kernel
def _read_tables(data, n_bytes, bits, width, most, symbols, frequencies, ends, escapes):
    """Read as many tables as `ends` has room for, each after its length, and nothing else. False where they break a rule or a symbol is above `most`."""
    at, end = int64(0), int64(0)
    for k in range(ends.size):
        size, at = varint(data, at, n_bytes, n_bytes)
        if size < 0 or size > n_bytes - at:
            return False
        n, escape = parse_table(data + at, size, bits, width, symbols + 2 * end, frequencies + 2 * end)
        if n < 1 or load_u16(symbols + 2 * (end + n - 1)) > most:
            return False
        at += size
        end += n
        ends[k], escapes[k] = end, escape
    return at == n_bytes


def read_tables(data: Array | bytes | memoryview, n_tables: int, bits: int, width: int, most: int) -> Tables | None:
    """Read untrusted bytes that hold so many tables, each after its length, and nothing else; None where they break a rule or a symbol is above `most`."""
    require(MIN_BITS <= bits <= MAX_BITS and width in (1, 2) and 0 < n_tables <= 256, "bits, width or number of tables out of range")
    given = np.frombuffer(data, np.uint8)
    source = np.zeros(given.size + _SPARE, np.uint8)
    source[: given.size] = given
    symbols, frequencies = (np.empty(n_tables * MAX_FREQUENCIES + 1, np.uint16) for _ in range(2))
    ends, escapes = np.empty(n_tables, np.int64), np.empty(n_tables, np.int64)
    if not _read_tables(address_of(source), given.size, bits, width, most, address_of(symbols), address_of(frequencies), ends, escapes):
        return None
    return Tables(bits, symbols[: ends[-1]], frequencies[: ends[-1]], ends, escapes)
