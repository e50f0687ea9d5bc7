"""Kernel rows: what each kernel is run on, and the same in plain Python, slowly, from docs/stages.md. `rows.py` has the other rows."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import isnan, log2
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from modelcodec.errors import CorruptFile
from modelcodec.kernels import class_rans, delta, frequencies, masks, order0, philox, planes, rans, scale_classes, split_float, stored, survey, xxh3
from modelcodec.kernels.memory import address_of
from modelcodec.wire import Reader, byte_string

Array = NDArray[Any]
WORD = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
FLOAT = {2: ("<e", 5, 10), 4: ("<f", 8, 23), 8: ("<d", 11, 52)}
"""Width -> struct code, bits of the exponent, bits of the mantissa."""


@dataclass(frozen=True)
class KernelRow:
    """A kernel: `inputs` draws arguments, `run` calls the kernel and gives everything that it promises, `reference` gives the same in plain Python."""

    name: str
    inputs: Callable[[random.Random], tuple[Any, ...]]
    run: Callable[..., Any]
    reference: Callable[..., Any]


# ---- inputs ------------------------------------------------------------------------------------------------------------------------


def _length(source: random.Random) -> int:
    return source.choice((0, 1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129, source.randrange(400)))


def _words(source: random.Random, width: int, n: int, below: int | None = None) -> Array:
    """n words of one of several kinds: random, few values, mostly zero, small."""
    most = below or 1 << (8 * width)
    few = [source.randrange(most) for _ in range(source.choice((1, 2, 3, 200, 300)))]
    draw = source.choice(
        (
            lambda: source.randrange(most),
            lambda: source.choice(few),
            lambda: source.choice((0, 0, 0, source.randrange(most))),
            lambda: source.randrange(min(5, most)),
        )
    )
    return np.array([draw() for _ in range(n)], WORD[width])


def _some_words(source: random.Random, *widths: int) -> Array:
    return _words(source, source.choice(widths or (1, 2, 4, 8)), _length(source))


# ---- bit planes ----------------------------------------------------------------------------------------------------------------------


def _numbers(source: random.Random) -> tuple[Array, int]:
    bits = source.randrange(1, 16)
    return _words(source, 2, _length(source), 1 << bits), bits


def pack_planes(x: Array, bits: int) -> list[int]:
    out = np.full(planes.planes_size(x.size, bits), 0xAA, np.uint8)
    planes.pack_planes(x, bits, out)
    return out.tolist()


def pack_planes_reference(x: Array, bits: int) -> list[int]:
    out, low = [], 0
    for p in (p for p in (8, 4, 2, 1) if bits & p):
        for first in range(0, x.size, 64):
            block = [int(v) >> low & ((1 << p) - 1) for v in x[first : first + 64]]
            m = 8 * -(-len(block) // 8)
            size = m * p // 8
            block += [0] * (m - len(block))
            out += [sum(block[i + j * size] << (p * j) for j in range(8 // p)) for i in range(size)]
        low += p
    return out


def _plane_bytes(source: random.Random) -> tuple[list[int], int, int]:
    """Planes, sometimes with a byte changed, which may set a number past the end."""
    numbers, bits = _numbers(source)
    data = pack_planes_reference(numbers, bits)
    if source.randrange(2) and data:
        data[source.randrange(len(data))] = source.randrange(256)
    return data, bits, numbers.size


def unpack_planes(data: list[int], bits: int, n: int) -> list[int] | None:
    out = np.full(n, 0xAAAA, np.uint16)
    return None if planes.unpack_planes(np.array(data, np.uint8), bits, out) else out.tolist()


def unpack_planes_reference(data: list[int], bits: int, n: int) -> list[int] | None:
    at, low, numbers = 0, 0, [0] * n
    for p in (p for p in (8, 4, 2, 1) if bits & p):
        for first in range(0, n, 64):
            m = 8 * -(-min(64, n - first) // 8)
            size = m * p // 8
            for i in range(size):
                for j in range(8 // p):
                    value, place = data[at + i] >> (p * j) & ((1 << p) - 1), first + i + j * size
                    if place < n:
                        numbers[place] |= value << low
                    elif value:
                        return None
            at += size
        low += p
    return numbers


# ---- masks ---------------------------------------------------------------------------------------------------------------------------


def _words_and_fill(source: random.Random) -> tuple[Array, int]:
    x = _some_words(source)
    return x, source.choice((0, 0, 1, int(x[0]) if x.size else 3))


def split_mask(x: Array, fill: int) -> tuple[list[int], list[int]]:
    mask, values = np.full((x.size + 7) // 8, 0xAA, np.uint8), np.empty_like(x)
    z = int(masks.split_mask(x, x.dtype.type(fill), mask, values))
    return mask.tolist(), values[:z].tolist()


def split_mask_reference(x: Array, fill: int) -> tuple[list[int], list[int]]:
    words = x.tolist()
    mask = [sum((word != fill) << j for j, word in enumerate(words[i : i + 8])) for i in range(0, len(words), 8)]
    return mask, [word for word in words if word != fill]


def _mask_parts(source: random.Random) -> tuple[Array, Array, int, int]:
    """Mask and values, mostly damaged in one of the ways that a decoder must notice."""
    x, fill = _words_and_fill(source)
    mask, values = split_mask_reference(x, fill)
    match source.randrange(4):
        case 1 if mask:
            mask[source.randrange(len(mask))] ^= 1 << source.randrange(8)
        case 2:
            values = values[:-1] if source.randrange(2) else [*values, fill ^ 1]
        case 3 if values:
            values[source.randrange(len(values))] = fill
    return np.array(mask, np.uint8), np.array(values, x.dtype), fill, x.size


def merge_mask(mask: Array, values: Array, fill: int, n: int) -> list[int] | None:
    out = np.full(n, 0x55, values.dtype)
    return None if masks.merge_mask(mask, values, values.dtype.type(fill), out) else out.tolist()


def merge_mask_reference(mask: Array, values: Array, fill: int, n: int) -> list[int] | None:
    bits = [int(byte) >> j & 1 for byte in mask for j in range(8)]
    if any(bits[n:]) or sum(bits) != values.size or fill in values.tolist():
        return None
    left = iter(values.tolist())
    return [next(left) if bit else fill for bit in bits[:n]]


# ---- palettes ------------------------------------------------------------------------------------------------------------------------


def find_palette(x: Array, most: int) -> tuple[int, list[int]]:
    table, used, _ = planes.scratch()
    values = np.empty(most, np.uint64)
    k = int(planes.find_palette(x, table, used, values, most))
    return k, values[:k].tolist() if k <= most else []


def find_palette_reference(x: Array, most: int) -> tuple[int, list[int]]:
    different = list(dict.fromkeys(x.tolist()))
    return (len(different), different) if len(different) <= most else (most + 1, [])


def _words_and_palette(source: random.Random) -> tuple[Array, list[int]]:
    x = _some_words(source)
    palette = sorted(set(x.tolist()))[:256]
    return x[np.isin(x, np.array(palette, x.dtype))], palette


def index_palette(x: Array, palette: list[int]) -> list[int]:
    table, _, places = planes.scratch()
    out = np.empty(x.size, np.uint8)
    planes.index_palette(x, np.array(palette, np.uint64), table, places, out)
    return out.tolist()


def index_palette_reference(x: Array, palette: list[int]) -> list[int]:
    return [palette.index(word) for word in x.tolist()]


def _indices(source: random.Random) -> tuple[Array, Array]:
    k = source.choice((1, 2, 16, 255, 256))
    return _words(source, 1, _length(source), min(256, k + source.randrange(2))), _words(source, source.choice((1, 2, 4, 8)), k)


def look_up(indices: Array, palette: Array) -> list[int] | None:
    out = np.empty(indices.size, palette.dtype)
    return None if planes.look_up(indices, palette, out) else out.tolist()


def look_up_reference(indices: Array, palette: Array) -> list[int] | None:
    return None if any(i >= palette.size for i in indices.tolist()) else [int(palette[i]) for i in indices.tolist()]


# ---- floats --------------------------------------------------------------------------------------------------------------------------


def _float_words(source: random.Random, width: int) -> tuple[Array]:
    """Bit patterns of floats, specials among them; in three of four draws without a NaN."""
    _, exponent, mantissa = FLOAT[width]
    infinity, sign = ((1 << exponent) - 1) << mantissa, 1 << (8 * width - 1)
    special = (0, sign, infinity, infinity | sign, 1, (1 << mantissa) - 1, 1 << mantissa)
    words = [source.choice((source.getrandbits(8 * width), source.choice(special))) for _ in range(_length(source))]
    if source.randrange(4):
        words = [word for word in words if word & ~sign <= infinity]
    return (np.array(words, WORD[width]),)


def half_to_single(narrow: Array) -> list[int] | None:
    out = np.empty(narrow.size, np.uint32)
    return None if planes.half_to_single(narrow, out) else out.tolist()


def single_to_double(narrow: Array) -> list[int] | None:
    out = np.empty(narrow.size, np.uint64)
    return None if planes.single_to_double(narrow, out) else out.tolist()


def widen_reference(narrow: Array) -> list[int] | None:
    values = [value for (value,) in struct.iter_unpack(FLOAT[narrow.itemsize][0], narrow.tobytes())]
    if any(map(isnan, values)):
        return None
    return [int.from_bytes(struct.pack(FLOAT[2 * narrow.itemsize][0], value), "little") for value in values]


def split_words(x: Array, low_bits: int) -> tuple[list[int], list[int]]:
    symbols, rest = np.empty(x.size, np.uint8 if low_bits >= 7 else np.uint16), np.empty(x.size, np.uint16)
    planes.split_words(x, 8 * x.itemsize - 16, low_bits, symbols, rest)
    return symbols.tolist(), rest.tolist()


def split_words_reference(x: Array, low_bits: int) -> tuple[list[int], list[int]]:
    high = [word >> (8 * x.itemsize - 16) for word in x.tolist()]
    return [h % (1 << 15) >> low_bits for h in high], [(h >> 15 << low_bits) + h % (1 << low_bits) for h in high]


def _symbols_and_rest(source: random.Random) -> tuple[Array, Array, int]:
    low_bits, n = source.randrange(14), _length(source)
    width = 1 if low_bits >= 7 else 2
    below = min((1 << (15 - low_bits)) + source.randrange(2), 1 << (8 * width))
    return _words(source, width, n, below), _words(source, 2, n, 1 << (low_bits + 1)), low_bits


def join(symbols: Array, rest: Array, low_bits: int) -> list[list[int] | None]:
    """As words of 16 bits, as words of 32 bits whose low halves are the rest, and as the former where the padding of a plane is not zero."""
    planes_of_rest, found = np.array(pack_planes_reference(rest, low_bits + 1), np.uint8), []
    padded = planes_of_rest.copy()
    padded[-1:] |= 128
    for low, kept in ((None, planes_of_rest), (rest, planes_of_rest), (None, padded)):
        out = np.empty(symbols.size, np.uint16 if low is None else np.uint32)
        found.append(None if split_float.join(symbols, kept, low, low_bits, out) else out.tolist())
    return found[: 3 if symbols.size % 8 else 2]


def join_reference(symbols: Array, rest: Array, low_bits: int) -> list[list[int] | None]:
    high = merge_words_reference(symbols, rest, low_bits)
    wide = None if high is None else [(h << 16) + r for h, r in zip(high, rest.tolist(), strict=True)]
    return [high, wide] + [None] * (symbols.size % 8 > 0)


def merge_words_reference(symbols: Array, rest: Array, low_bits: int) -> list[int] | None:
    if any(symbol >= 1 << (15 - low_bits) for symbol in symbols.tolist()):
        return None
    pairs = zip(symbols.tolist(), rest.tolist(), strict=True)
    return [(r >> low_bits << 15) + (symbol << low_bits) + r % (1 << low_bits) for symbol, r in pairs]


# ---- frequencies ---------------------------------------------------------------------------------------------------------------------


def _sampled(source: random.Random, *widths: int) -> tuple[Array, int]:
    return _words(source, source.choice(widths), source.choice((0, 1, 64, 65, 1000, source.randrange(2000)))), source.choice((1, 1, 2, 4))


def histogram(x: Array, sample: int) -> list[int]:
    counts = np.zeros(1 << (8 * x.itemsize), np.int64)
    frequencies.histogram(x, counts, sample)
    return counts.tolist()


def histogram_reference(x: Array, sample: int) -> list[int]:
    counts = [0] * (1 << (8 * x.itemsize))
    for i, symbol in enumerate(x.tolist()):
        counts[symbol] += i // 64 % sample == i // (64 * sample) % sample
    return counts


def _words_to_split(source: random.Random) -> tuple[Array, int, int]:
    x, sample = _sampled(source, 2, 4)
    return x, source.randrange(14), sample


def histogram_split(x: Array, low_bits: int, sample: int) -> list[int]:
    counts = np.zeros(max(1 << (15 - low_bits), 256), np.int64)
    frequencies.histogram_split(x, low_bits, counts, sample)
    return counts.tolist()


def histogram_split_reference(x: Array, low_bits: int, sample: int) -> list[int]:
    symbols = np.array(split_words_reference(x, low_bits)[0], np.uint16)
    return histogram_reference(symbols, sample)[: max(1 << (15 - low_bits), 256)]


def _counts(source: random.Random) -> tuple[Array, int, int, bool]:
    """Counts of symbols, bits of the table, bytes of a symbol, whether an escape is wanted."""
    width = source.choice((1, 1, 2))
    n = source.choice((1, 2, 3, 60, 70, 256, source.randrange(1, 257 if width == 1 else 5000)))
    draw = source.choice((lambda: source.randrange(1000), lambda: source.choice((0, 0, 1, 10**6)), lambda: int(source.expovariate(0.01)), lambda: 0))
    counts = np.array([draw() for _ in range(n)], np.int64)
    return counts, source.randrange(8, 13), width, bool(source.randrange(2))


def _table_facts(table: frequencies.Table, counts: Array) -> tuple[bool, ...]:
    symbols, f = table.symbols.tolist(), table.frequencies.tolist()
    coded = set(symbols)
    return (
        sum(f) + table.escape == 1 << table.bits,
        symbols == sorted(coded) and bool(symbols),
        all(0 < frequency < 1 << table.bits for frequency in f),
        len(symbols) <= (63 if table.bits == 8 else 255),
        table.escape > 0 or all(int(symbol) in coded for symbol in np.flatnonzero(counts)),
    )


def normalise(counts: Array, bits: int, width: int, escape: bool) -> tuple[bool, ...]:
    """Frequencies are the encoder's choice, so what is compared is what each choice must keep to, and that it comes near the entropy."""
    table = frequencies.normalise(counts, bits, width, escape=escape)
    cost = frequencies.coded_bits(counts, table, width)
    total = int(counts.sum())
    entropy = -sum(c * log2(c / total) for c in counts.tolist() if c)
    near = cost is not None and (np.count_nonzero(counts) > 60 or cost <= entropy + total * 60 / 2 ** (bits - 2) + 40 * (np.count_nonzero(counts) + 2))
    return (*_table_facts(table, counts), not escape or table.escape > 0, near)


def normalise_reference(counts: Array, bits: int, width: int, escape: bool) -> tuple[bool, ...]:
    return (True,) * 7


def _table(source: random.Random) -> tuple[Array, int, frequencies.Table, int]:
    counts, bits, width, escape = _counts(source)
    table = frequencies.normalise(counts, bits, width, escape=escape)
    if source.randrange(2):
        counts = np.array([source.randrange(5) for _ in range(counts.size)], np.int64)
    return counts, width, table, bits


def coded_bits(counts: Array, width: int, table: frequencies.Table, bits: int) -> int | None:
    cost = frequencies.coded_bits(counts, table, width)
    exact = coded_bits_reference(counts, width, table, bits)
    # Its logarithms are rounded to 2^-16, a word each.
    return exact if cost is not None and exact is not None and abs(cost - exact) <= 2 + (int(counts.sum()) >> 16) else cost


def coded_bits_reference(counts: Array, width: int, table: frequencies.Table, bits: int) -> int | None:
    f = dict(zip(table.symbols.tolist(), table.frequencies.tolist(), strict=True))
    escaped = sum(c for symbol, c in enumerate(counts.tolist()) if symbol not in f)
    if escaped and not table.escape:
        return None
    cost = sum(c * (bits - log2(f[symbol])) for symbol, c in enumerate(counts.tolist()) if symbol in f)
    cost += escaped * (bits + 8 * width - log2(table.escape)) if escaped else 0
    return int(cost) + len(table_bits_reference(table, width))


def write_table(counts: Array, width: int, table: frequencies.Table, bits: int) -> bytes:
    return frequencies.write_table(table, width)


def table_bits_reference(table: frequencies.Table, width: int) -> list[int]:
    out: list[int] = []

    def put(value: int, n: int) -> None:
        out.extend(value >> i & 1 for i in range(n))

    def number(value: int) -> None:
        put(value.bit_length(), 4)
        put(value, max(value.bit_length() - 1, 0))

    f = dict(zip(table.symbols.tolist(), table.frequencies.tolist(), strict=True))
    symbols = sorted(f)
    put(symbols[0], 8 * width)
    put(symbols[-1] - symbols[0], 8 * width)
    number(table.escape)
    for before, symbol in zip([symbols[0] - 1, *symbols], symbols, strict=False):
        zeros = symbol - before - 1
        if zeros:
            put(0, 4)
            put(zeros.bit_length() - 1, 4)
            put(zeros, zeros.bit_length() - 1)
        number(f[symbol])
    return out


def write_table_reference(counts: Array, width: int, table: frequencies.Table, bits: int) -> bytes:
    return np.packbits(np.array(table_bits_reference(table, width), np.uint8), bitorder="little").tobytes()


def _table_bytes(source: random.Random) -> tuple[bytes, int, int]:
    """A table's bytes, half of them damaged."""
    _, width, table, bits = _table(source)
    data = bytearray(frequencies.write_table(table, width))
    match source.randrange(6):
        case 0:
            data[source.randrange(len(data))] ^= 1 << source.randrange(8)
        case 1:
            del data[source.randrange(len(data)) :]
        case 2:
            data.append(source.choice((0, 1)))
    return bytes(data), bits, width


def read_table(data: bytes, bits: int, width: int) -> tuple[list[int], list[int], int] | None:
    table = frequencies.read_table(data, bits, width)
    return None if table is None else (table.symbols.tolist(), table.frequencies.tolist(), table.escape)


def read_table_reference(data: bytes, bits: int, width: int) -> tuple[list[int], list[int], int] | None:
    stream = [byte >> i & 1 for byte in data for i in range(8)]
    at = 0

    def get(n: int) -> int:
        nonlocal at
        if at + n > len(stream):
            raise EOFError
        at += n
        return sum(bit << i for i, bit in enumerate(stream[at - n : at]))

    found: dict[int, int] = {}
    try:
        lo = get(8 * width)
        end = lo + get(8 * width) + 1
        if end > 1 << (8 * width):
            return None
        b = get(4)
        escape = (1 << (b - 1)) + get(b - 1) if b else 0
        symbol = lo
        while symbol < end:
            b = get(4)
            if b:
                found[symbol] = (1 << (b - 1)) + get(b - 1)
                symbol += 1
            else:
                e = get(4)
                symbol += (1 << e) + get(e)
    except EOFError:
        return None
    fits = symbol == end and sum(found.values()) + escape == 1 << bits and max([escape, *found.values()]) < 1 << bits
    if not fits or not found or len(found) + (escape > 0) > 256 or len(stream) - at > 7 or any(stream[at:]):
        return None
    return list(found), list(found.values()), escape


def _bytes_of_tables(source: random.Random) -> tuple[bytes, int, int, int, int]:
    """Some tables after their lengths, most of them undamaged."""
    width, bits, n = source.choice((1, 2)), source.randrange(8, 13), source.randrange(1, 5)
    data = b""
    for _ in range(n):
        found, of_bits, of_width = _table_bytes(source)
        while (of_bits, of_width) != (bits, width) or (frequencies.read_table(found, bits, width) is None and source.randrange(4)):
            found, of_bits, of_width = _table_bytes(source)
        data += byte_string(found)
    data += bytes(source.randrange(8) == 0) + bytes(source.randrange(2) if source.randrange(4) == 0 else 0)
    return data, max(n + source.choice((0, 0, 0, 0, 0, 1, -1)), 1), bits, width, source.choice(((1 << 8 * width) - 1, source.randrange(1 << 8 * width)))


def read_tables(data: bytes, n: int, bits: int, width: int, most: int) -> list[tuple[list[int], list[int], int]] | None:
    tables = frequencies.read_tables(data, n, bits, width, most)
    return None if tables is None else [(table.symbols.tolist(), table.frequencies.tolist(), table.escape) for table in tables]


def read_tables_reference(data: bytes, n: int, bits: int, width: int, most: int) -> list[tuple[list[int], list[int], int]] | None:
    reader, found = Reader(data, ""), []
    try:
        for _ in range(n):
            table = read_table_reference(bytes(reader.byte_string(len(data))), bits, width)
            if table is None or table[0][-1] > most:
                return None
            found.append(table)
        reader.end()
    except CorruptFile:
        return None
    return found


# ---- rans ----------------------------------------------------------------------------------------------------------------------------

Lanes = tuple[int, int]


def _stream(source: random.Random) -> tuple[Array, frequencies.Table, int, int]:
    """Words, a table that codes them all, log2 of the lanes, groups."""
    width = source.choice((1, 1, 2))
    n = source.choice((1, 2, 63, 64, 65, 127, 128, 129, 300, 2000, source.randrange(1, 1500)))
    x = np.minimum(_words(source, width, n), WORD[width].type(source.choice((3, 40, 255))))
    counts = np.bincount(x.astype(np.int64), minlength=2)
    table = frequencies.normalise(counts.astype(np.int64), source.randrange(8, 13), width, escape=bool(source.randrange(2)))
    lanes_log2, groups = source.choice(((0, 1), (1, 1), (3, 1), (5, 1), (6, 1), (6, 2), (6, 2)))
    return x, table, lanes_log2, groups


def pack(x: Array, table: frequencies.Table, lanes_log2: int, groups: int) -> tuple[bytes, rans.Packed]:
    out = np.full(rans.pack_bound(x.size, x.itemsize, lanes_log2, groups), 0xAA, np.uint8)
    packed = rans.pack(x, table, lanes_log2, groups, out)
    return out[: packed.n_bytes].tobytes(), packed


def _payload(source: random.Random) -> tuple[bytes, frequencies.Table, int, int, rans.Packed, int, int]:
    """A payload, mostly damaged, with what its header says."""
    x, table, lanes_log2, groups = _stream(source)
    data, packed = rans.pack_reference(x, table, lanes_log2, groups)
    damaged = bytearray(data)
    if source.randrange(3):
        for _ in range(source.choice((1, 1, 5))):
            damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
    n = x.size + source.choice((0, 0, 0, 1, -1))
    return bytes(damaged), table, lanes_log2, groups, packed, max(n, 0), x.itemsize


def unpack(data: bytes, table: frequencies.Table, lanes_log2: int, groups: int, packed: rans.Packed, n: int, width: int) -> list[int] | None:
    out = np.full(n, 0x55, WORD[width])
    status = rans.unpack(np.frombuffer(data, np.uint8), table, lanes_log2, groups, packed.units_a, packed.units_b, packed.n_escapes, out)
    return None if status else out.tolist()


def unpack_reference(data: bytes, table: frequencies.Table, lanes_log2: int, groups: int, packed: rans.Packed, n: int, width: int) -> list[int] | None:
    out = np.full(n, 0x55, WORD[width])
    status = rans.unpack_reference(data, table, lanes_log2, groups, packed.units_a, packed.units_b, packed.n_escapes, out)
    return None if status else out.tolist()


def _float_stream(source: random.Random) -> tuple[Array, int, frequencies.Table, int, int]:
    """Words of 2 or 4 bytes whose symbols take few values, the cut, a table, lanes, groups."""
    low_bits, width = source.randrange(14), source.choice((2, 4))
    n = source.choice((1, 63, 64, 65, 130, 1000, source.randrange(1, 1500)))
    symbol = np.array([min(int(source.expovariate(0.3)), (1 << (15 - low_bits)) - 1) for _ in range(n)], np.uint64)
    noise = np.array([source.getrandbits(8 * width) for _ in range(n)], np.uint64)
    kept = ~np.uint64(((1 << 15) - (1 << low_bits)) << (8 * width - 16))
    x = (noise & kept | symbol << np.uint64(8 * width - 16 + low_bits)).astype(WORD[width])
    counts = np.bincount(symbol.astype(np.int64), minlength=2).astype(np.int64)
    table = frequencies.normalise(counts, source.randrange(8, 13), 1 if low_bits >= 7 else 2, escape=bool(source.randrange(2)))
    return x, low_bits, table, *source.choice(((0, 1), (4, 1), (6, 1), (6, 2)))


def pack_split(x: Array, low_bits: int, table: frequencies.Table, lanes_log2: int, groups: int) -> tuple[bytes, rans.Packed, list[int], list[int]]:
    out = np.empty(rans.pack_bound(x.size, 1 if low_bits >= 7 else 2, lanes_log2, groups), np.uint8)
    rest, low = np.full(planes.planes_size(x.size, low_bits + 1), 0xAA, np.uint8), np.empty(x.size, np.uint16) if x.itemsize == 4 else None
    packed = rans.pack_split(x, low_bits, table, lanes_log2, groups, out, rest, low)
    return out[: packed.n_bytes].tobytes(), packed, rest.tolist(), [] if low is None else low.tolist()


def pack_split_reference(x: Array, low_bits: int, table: frequencies.Table, lanes_log2: int, groups: int) -> tuple[bytes, rans.Packed, list[int], list[int]]:
    symbols, rest = split_words_reference(x, low_bits)
    data, packed = rans.pack_reference(np.array(symbols, np.uint8 if low_bits >= 7 else np.uint16), table, lanes_log2, groups)
    low = [word % (1 << 16) for word in x.tolist()] if x.itemsize == 4 else []
    return data, packed, pack_planes_reference(np.array(rest, np.uint16), low_bits + 1), low


def _split_payload(source: random.Random) -> tuple[bytes, int, frequencies.Table, int, int, rans.Packed, list[int], list[int], int, int]:
    x, low_bits, table, lanes_log2, groups = _float_stream(source)
    data, packed, rest, low = pack_split_reference(x, low_bits, table, lanes_log2, groups)
    damaged = bytearray(data)
    if source.randrange(3) == 0:
        damaged[source.randrange(len(damaged))] ^= 1 << source.randrange(8)
    return bytes(damaged), low_bits, table, lanes_log2, groups, packed, rest, low, x.size, x.itemsize


def unpack_split(
    data: bytes, low_bits: int, table: frequencies.Table, lanes_log2: int, groups: int, packed: rans.Packed, rest: list[int], low: list[int], n: int, width: int
) -> list[int] | None:
    out = np.full(n, 0x55, WORD[width])
    rest_array, low_array = np.array(rest, np.uint8), np.array(low, np.uint16) if width == 4 else None
    counts = packed.units_a, packed.units_b, packed.n_escapes
    status = rans.unpack_split(np.frombuffer(data, np.uint8), table, lanes_log2, groups, *counts, low_bits, rest_array, low_array, out)
    return None if status else out.tolist()


def unpack_split_reference(
    data: bytes, low_bits: int, table: frequencies.Table, lanes_log2: int, groups: int, packed: rans.Packed, rest: list[int], low: list[int], n: int, width: int
) -> list[int] | None:
    symbols = unpack_reference(data, table, lanes_log2, groups, packed, n, 1 if low_bits >= 7 else 2)
    numbers = unpack_planes_reference(rest, low_bits + 1, n)
    if symbols is None or numbers is None or any(symbol >> (15 - low_bits) for symbol in symbols):
        return None
    high = merge_words_reference(np.array(symbols, np.uint16), np.array(numbers, np.uint16), low_bits)
    return high if high is None or width == 2 else [h << 16 | number for h, number in zip(high, low, strict=True)]


# ---- classes -------------------------------------------------------------------------------------------------------------------------


def _classed_stream(source: random.Random, width: int = 0) -> tuple[Array, class_rans.Classes, int, int, int]:
    """Symbols, classes with a table with an escape for each, the first word in the group, log2 of the lanes, groups."""
    width, bits, k = width or source.choice((1, 2)), source.randrange(8, 12), source.choice((1, 2, 5))
    n, first = source.choice((1, 63, 64, 65, 130, 400, source.randrange(1, 1500))), source.randrange(200)
    columns = source.choice((1, 7, 64, 100, source.randrange(1, 2000)))
    scales = [np.array([source.randrange(64) for _ in range(size)], np.uint8) for size in (-(-(first + n) // columns) + source.randrange(2), columns)]
    class_of = np.array([source.randrange(k) for _ in range(127)], np.uint8)
    own = np.array(_classes_of(scales[0], scales[1], class_of, first, n))
    x = np.array([min(int(source.expovariate(0.2 / (1 + c))), 255 if width == 1 else 1500) for c in own.tolist()], WORD[width])
    tables = []
    for c in range(k):
        counts = np.bincount(np.minimum(x[own == c][::2].astype(np.int64), 1022), minlength=2)[:1023]
        tables.append(frequencies.normalise(counts.astype(np.int64), bits, 2, escape=True))
    return x, class_rans.Classes(scales[0], scales[1], class_of, tuple(tables)), first, *source.choice(((0, 1), (3, 1), (6, 1), (6, 2)))


def _classes_of(rows: Array, columns: Array, class_of: Array, first: int, n: int) -> list[int]:
    places = (divmod(i, len(columns)) for i in range(first, first + n))
    return [int(class_of[int(rows[row]) + int(columns[column])]) for row, column in places]


def _classes(classes: class_rans.Classes, first: int, n: int) -> list[int]:
    return _classes_of(classes.row_scales, classes.column_scales, classes.class_of, first, n)


def _order(n: int, lanes_log2: int, groups: int) -> list[list[list[tuple[int, int]]]]:
    """For each group, for each round, (lane, word) in the order in which they take units (docs/stages.md, rans)."""
    lanes = 1 << lanes_log2
    n_a = n if groups == 1 else min(n, 64 * ((n + 127) // 128))
    lane_of = [16 * (r % 4) + r // 4 if lanes == 64 else r for r in range(lanes)]
    spans = [(0, n_a), (n_a, n)][:groups]
    return [[sorted((lane_of[r], first + r) for r in range(min(lanes, end - first))) for first in range(start, end, lanes)] for start, end in spans]


def _slots_of(table: frequencies.Table) -> dict[int | None, tuple[int, int]]:
    """symbol (None: escape) -> frequency, first slot"""
    found: dict[int | None, tuple[int, int]] = {}
    start = 0
    for symbol, frequency in [*zip(table.symbols.tolist(), table.frequencies.tolist(), strict=True), (None, table.escape)]:
        found[symbol] = (frequency, start)
        start += frequency
    return found


def pack_classed(x: Array, classes: class_rans.Classes, first: int, lanes_log2: int, groups: int) -> tuple[bytes, int, int, int]:
    out = np.empty(class_rans.pack_bound(x.size, x.itemsize, lanes_log2, groups), np.uint8)
    packed = class_rans.pack(x, lanes_log2, groups, classes, first, out)
    return out[: packed.n_bytes].tobytes(), packed.units_a, packed.units_b, packed.n_escapes


def pack_classed_reference(x: Array, classes: class_rans.Classes, first: int, lanes_log2: int, groups: int) -> tuple[bytes, int, int, int]:
    slots, own, bits = [_slots_of(table) for table in classes.tables], _classes(classes, first, x.size), classes.bits
    all_units, all_states = [], []
    for rounds in _order(x.size, lanes_log2, groups):
        states, units = [1 << 16] * (1 << lanes_log2), []
        for pairs in reversed(rounds):
            for lane, word in reversed(pairs):
                known = slots[own[word]]
                f, start = known[int(x[word])] if int(x[word]) in known else known[None]
                if states[lane] >= f << (32 - bits):
                    units.append(states[lane] & 0xFFFF)
                    states[lane] >>= 16
                states[lane] = (states[lane] // f << bits) + states[lane] % f + start
        all_units.append(units[::-1])
        all_states += states
    escaped = [word for word, c in zip(x.tolist(), own, strict=True) if word not in slots[c]]
    units = [unit for units in all_units for unit in units]
    data = np.array(units, "<u2").tobytes() + np.array(all_states, "<u4").tobytes() + np.array(escaped, x.dtype).tobytes()
    return data, len(all_units[0]), len(all_units[1]) if groups == 2 else 0, len(escaped)


def _classed_payload(source: random.Random) -> tuple[bytes, tuple[int, int, int], class_rans.Classes, int, int, int, int, int]:
    """A payload, mostly damaged, what its header says, classes, first word, log2 of the lanes, groups, words, their width."""
    x, classes, first, lanes_log2, groups = _classed_stream(source)
    packed, units_a, units_b, n_escapes = pack_classed_reference(x, classes, first, lanes_log2, groups)
    data = bytearray(packed)
    if source.randrange(3):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(data), (units_a, units_b, n_escapes), classes, first, lanes_log2, groups, x.size, x.itemsize


def unpack_classed(
    data: bytes, counts: tuple[int, int, int], classes: class_rans.Classes, first: int, lanes_log2: int, groups: int, n: int, width: int
) -> list[int] | None:
    out = np.empty(n, WORD[width])
    status = class_rans.unpack(np.frombuffer(bytearray(data), np.uint8), lanes_log2, groups, *counts, classes, first, out)
    return None if status else out.tolist()


def unpack_classed_reference(
    data: bytes, counts: tuple[int, int, int], classes: class_rans.Classes, first: int, lanes_log2: int, groups: int, n: int, width: int
) -> list[int] | None:
    bits, own = classes.bits, _classes(classes, first, n)
    slots = [[(symbol, f, start) for symbol, (f, start) in _slots_of(table).items() for _ in range(f)] for table in classes.tables]
    n_units, n_states = counts[0] + counts[1], groups << lanes_log2
    units = np.frombuffer(data, "<u2", n_units).tolist()
    states = np.frombuffer(data, "<u4", n_states, 2 * n_units).tolist()
    escaped = np.frombuffer(data, WORD[width], counts[2], 2 * n_units + 4 * n_states).tolist()
    out: list[int | None] = [None] * n
    at = 0
    for group, rounds in enumerate(_order(n, lanes_log2, groups)):
        end = counts[0] if group == 0 else n_units
        for pairs in rounds:
            for lane, word in pairs:
                x = states[64 * group + lane]
                out[word], f, start = slots[own[word]][x % (1 << bits)]
                x = f * (x >> bits) + x % (1 << bits) - start
                if x < 1 << 16:
                    if at == end:
                        return None
                    x, at = x << 16 | units[at], at + 1
                states[64 * group + lane] = x
        if at != end:
            return None
    if any(state != 1 << 16 for state in states) or out.count(None) != len(escaped):
        return None
    left = iter(escaped)
    return [next(left) if word is None else word for word in out]


def _classed_floats(source: random.Random) -> tuple[Array, Array, Array, int, class_rans.Classes, int, int, int]:
    """Words, and the symbols and rest that they are made of, low_bits; classes, first word, log2 of the lanes, groups."""
    low_bits = source.choice((0, 4, 5, 7, 8, 13))
    x, classes, first, lanes_log2, groups = _classed_stream(source, 1 if low_bits >= 7 else 2)
    symbols = np.minimum(x, (1 << (15 - low_bits)) - 1)
    rest = _words(source, 2, x.size, 1 << (low_bits + 1))
    words = np.array(merge_words_reference(symbols, rest, low_bits), np.uint16)
    if source.randrange(2):
        words = words.astype(np.uint32) << np.uint32(16) | _words(source, 2, x.size)
    return words, symbols, rest, low_bits, classes, first, lanes_log2, groups


def pack_classed_split(
    words: Array, symbols: Array, rest: Array, low_bits: int, classes: class_rans.Classes, first: int, lanes_log2: int, groups: int
) -> tuple[bytes, bytes, list[int]]:
    out = np.empty(class_rans.pack_bound(words.size, symbols.itemsize, lanes_log2, groups), np.uint8)
    planes_of = np.empty((words.size + 7) // 8 * (low_bits + 1), np.uint8)
    low = np.empty(words.size, np.uint16) if words.itemsize == 4 else None
    packed = class_rans.pack_split(words, low_bits, lanes_log2, groups, classes, first, out, planes_of, low)
    return out[: packed.n_bytes].tobytes(), planes_of.tobytes(), [] if low is None else low.tolist()


def pack_classed_split_reference(
    words: Array, symbols: Array, rest: Array, low_bits: int, classes: class_rans.Classes, first: int, lanes_log2: int, groups: int
) -> tuple[bytes, bytes, list[int]]:
    low = (words & np.uint32(0xFFFF)).tolist() if words.itemsize == 4 else []
    return pack_classed_reference(symbols, classes, first, lanes_log2, groups)[0], bytes(pack_planes_reference(rest, low_bits + 1)), low


def unpack_classed_split(
    words: Array, symbols: Array, rest: Array, low_bits: int, classes: class_rans.Classes, first: int, lanes_log2: int, groups: int
) -> list[int]:
    data, *counts = pack_classed_reference(symbols, classes, first, lanes_log2, groups)
    planes_of = np.frombuffer(bytearray(pack_planes_reference(rest, low_bits + 1)), np.uint8)
    low, out = (words & np.uint32(0xFFFF)).astype(np.uint16) if words.itemsize == 4 else None, np.empty_like(words)
    status = class_rans.unpack_split(np.frombuffer(bytearray(data), np.uint8), lanes_log2, groups, *counts, classes, first, low_bits, planes_of, low, out)
    return [] if status else out.tolist()


def _float_words_in_rows(source: random.Random) -> tuple[Array, int]:
    """Words of 2 or 4 bytes, and columns; the last row may be shorter."""
    x = _words(source, source.choice((2, 4)), source.choice((2, 7, 64, 200, source.randrange(2, 600))))
    return x, source.randrange(1, x.size)


def fit(x: Array, columns: int, exponent_at: int, every: int) -> tuple[list[int], list[int]]:
    rows, of_columns = scale_classes.fit(x, exponent_at, columns, every)
    return rows.tolist(), of_columns.tolist()


def fit_reference(x: Array, columns: int, exponent_at: int, every: int) -> tuple[list[int], list[int]]:
    """Means of rows, then of what columns have beyond them; then both moved by half the log of the mean square of what is left."""
    logs = [(word >> (8 * x.itemsize - 16) & 0x7FFF) >> (exponent_at - 7) for word in x.tolist()]
    middle = sorted(log >> 5 for log in logs[:: x.size >> 14 | 1])[(x.size - 1) // 2] << 5
    rows = [[log - middle for log in logs[i : i + columns]] for i in range(0, len(logs), columns)]
    counted = range(0, x.size // columns, every)
    near = [[min(max(log, -1024), 1024) for log in row] for row in rows]
    of_rows = [sum(row) // len(row) for row in near]
    of_columns = [sum(near[r][j] - of_rows[r] for r in counted) // len(counted) for j in range(columns)]

    def square(log: int) -> int:
        z = min(max(2 * log, -1280), 512) + 1280
        return (128 + z % 128) << z // 128 >> 7

    def half_log(mean: int) -> int:
        log = max(mean, 1)
        shift = max(log.bit_length() - 12, 0)
        return (int(frequencies.LOG2[log >> shift]) + (shift << 16) - (10 << 16)) * 64 >> 16

    of_rows = [a + half_log(sum(square(log - a - of_columns[j]) for j, log in enumerate(row)) // len(row)) for a, row in zip(of_rows, rows, strict=True)]
    sums = [sum(square(rows[r][j] - of_rows[r] - of_columns[j]) for r in counted) for j in range(columns)]
    return of_rows, [b + half_log(total // len(counted)) for b, total in zip(of_columns, sums, strict=True)]


def _scaled_words(source: random.Random) -> tuple[Array, int, int, list[int], list[int], int]:
    x, columns = _float_words_in_rows(source)
    scales = [[source.randrange(64) for _ in range(n)] for n in (-(-x.size // columns), columns)]
    return x, source.randrange(5, 12), columns, scales[0], scales[1], source.choice((1, 1, 2, 4))


def count(x: Array, low_bits: int, columns: int, rows: list[int], of_columns: list[int], sample: int) -> tuple[list[int], int]:
    counts, counted = scale_classes.count(x, low_bits, columns, np.array(rows, np.uint8), np.array(of_columns, np.uint8), sample)
    return counts[:, :1024].reshape(-1).tolist(), counted


def count_reference(x: Array, low_bits: int, columns: int, rows: list[int], of_columns: list[int], sample: int) -> tuple[list[int], int]:
    counts = [0] * (127 * 1024)
    for i, word in enumerate(x.tolist()):
        row, column = divmod(i, columns)
        if column // 64 % sample == row % sample:
            counts[1024 * (rows[row] + of_columns[column]) + min((word >> (8 * x.itemsize - 16) & 0x7FFF) >> low_bits, 1023)] += 1
    return counts, sum(counts)


def _counts_of_sums(source: random.Random) -> tuple[Array, list[int], int, int]:
    """Counts by sum and symbol, thresholds, bits that symbols are made coarser by, the sample."""
    counts = np.zeros((127, scale_classes.PITCH), np.uint32)
    for _ in range(source.choice((0, 1, 300))):
        counts[source.randrange(127), int(source.expovariate(0.02)) % 1024] += source.choice((1, 100, 10**6))
    return counts, sorted(source.randrange(127) for _ in range(source.choice((0, 1, 31)))), source.randrange(4), source.choice((1, 8))


def of_classes(counts: Array, thresholds: list[int], coarser: int, sample: int) -> list[list[int]]:
    found: list[list[int]] = scale_classes.of_classes(counts, np.array(thresholds, np.uint8), coarser, sample).tolist()
    return found


def of_classes_reference(counts: Array, thresholds: list[int], coarser: int, sample: int) -> list[list[int]]:
    result = [[0] * (1024 >> coarser) for _ in range(len(thresholds) + 1)]
    for k, row in enumerate(counts.tolist()):
        for symbol, c in enumerate(row[:1024]):
            if symbol >> coarser < 1023:
                result[sum(threshold <= k for threshold in thresholds)][symbol >> coarser] += sample * c
    return result


def order0_bits_is_near(x: Array) -> bool:
    counts = [n for n in np.bincount(x).tolist() if n]
    return abs(scale_classes.order0_bits(x) - sum(n * log2(x.size / n) for n in counts)) <= 2 + x.size / 2**10


def _words_to_survey(source: random.Random) -> tuple[Array, int, int]:
    return _words(source, source.choice((2, 4, 8)), source.choice((1, 2, 100, source.randrange(1, 3000)))), source.choice((1, 3, 31)), source.randrange(3, 11)


def look_over(x: Array, step: int, low_bits: int) -> tuple[list[int], list[int]]:
    counts, found = np.zeros(1 << (15 - low_bits), np.int64), np.empty(survey.FOUND, np.uint64)
    survey.survey(x, step, low_bits, counts, found)
    return counts.tolist(), found.tolist()


def look_over_reference(x: Array, step: int, low_bits: int) -> tuple[list[int], list[int]]:
    words, counts, every = x.tolist()[::step], [0] * (1 << (15 - low_bits)), 0
    for word in words:
        counts[(word >> (8 * x.itemsize - 16) & 0x7FFF) >> low_bits] += 1
        every |= word
    return counts, [words.count(0), every]


def _counts_to_merge(source: random.Random) -> tuple[Array, int]:
    draw = source.choice((lambda: source.randrange(1000), lambda: source.choice((0, 0, 1, 10**6)), lambda: 0))
    return np.array([draw() for _ in range(256)], np.int64), source.randrange(4)


def _counts_and_fractions(source: random.Random) -> tuple[Array, Array]:
    most = source.choice((1, 2, 1000, 2**30))
    counts = np.array([source.choice((0, source.randrange(most + 1))) for _ in range(source.randrange(1, 300))], np.int64)
    return counts, np.array([int(log2(1 + k / 4096) * 65536) for k in range(4096)], np.int64)


def order0_reference(counts: Array, fractions: Array) -> int:
    def log(v: int) -> int:
        octave = v.bit_length() - 1
        return (octave << 16) + int(fractions[((v << 12) >> octave) - 4096])

    found = [n for n in counts.tolist() if n]
    return -(-sum(n * (log(sum(found)) - log(n)) for n in found) >> 16) if len(found) > 1 else 0


def entropy_bits(counts: Array, coarser: int) -> tuple[int, int]:
    bits, symbols = (int(number) for number in survey.entropy_bits(counts, coarser))
    exact = entropy_bits_reference(counts, coarser)[0]
    return exact if abs(bits - exact) <= 2 + int(counts.sum()) / 2**10 else bits, symbols


def entropy_bits_reference(counts: Array, coarser: int) -> tuple[int, int]:
    merged = [n for n in counts.reshape(-1, 1 << coarser).sum(axis=1).tolist() if n]
    return int(sum(n * log2(sum(merged) / n) for n in merged)), len(merged)


def _bytes_and_seed(source: random.Random) -> tuple[Array, int]:
    n = source.choice((source.randrange(20), source.randrange(700), 1024 * source.randrange(1, 5) + source.randrange(-1, 66)))
    return np.frombuffer(source.randbytes(n), np.uint8), source.choice((0, 1, source.randrange(1 << 64)))


def copied(data: bytes, cuts: list[int]) -> tuple[bytes, list[int]]:
    source, out, ends = np.frombuffer(data, np.uint8), np.zeros(len(data), np.uint8), sorted((*cuts, 0))
    at, to = address_of(source), address_of(out)
    digests = stored.copied(np.array([(at + start, to + start, end - start) for start, end in pairwise(ends)]))
    return out.tobytes(), digests.tolist()


def copied_reference(data: bytes, cuts: list[int]) -> tuple[bytes, list[int]]:
    ends = sorted((*cuts, 0))
    return data[: ends[-1]].ljust(len(data), b"\0"), [xxhash.xxh3_64_intdigest(data[start:end]) for start, end in pairwise(ends)]


# ---- deltas --------------------------------------------------------------------------------------------------------------------------


def _delta_words(source: random.Random) -> tuple[Array, Array, delta.Scales, int]:
    """Words of a group from one of them on, the base's words, how large the changes are."""
    width = source.choice((1, 2, 4, 8))
    x, columns = _words(source, width, source.randrange(1, 300)), source.choice((1, 7, 100, 400))
    near = np.array([word ^ source.randrange(source.choice((1, 2, 9, 1 << 8 * width))) for word in x.tolist()], x.dtype)
    mantissa_bits, first = source.randrange(2, min(8 * width - 1, 53)), source.choice((0, 1, columns))
    rows = -(-(first + x.size) // columns)
    scales = [np.array([source.randrange(64) for _ in range(n)], np.uint8) for n in (rows, columns)]
    offset = source.randrange(max((1 << 8 * width + 1 - mantissa_bits) + 128 - int(scales[0].max()) - int(scales[1].max()), 1))
    if int(scales[0].max()) + int(scales[1].max()) + offset - 128 >= 1 << 8 * width + 1 - mantissa_bits:
        scales = [scale // np.uint8(64) for scale in scales]
    return x, near, delta.Scales(scales[0], scales[1], offset, mantissa_bits), first


def _foreseen(b: int, at: int, scales: delta.Scales, width: int) -> tuple[int, int, int]:
    """Level, shift and reference, given the base's word and the place in the group."""
    row, column = divmod(at, scales.columns.size)
    scale, mantissa_bits = int(scales.rows[row]) + int(scales.columns[column]) + scales.offset - 128, scales.mantissa_bits
    magnitude = b % (1 << 8 * width - 1)
    level = max(scale - (magnitude >> mantissa_bits - 2) + 100, 0)
    reference = scale - 24 << mantissa_bits - 2 if level >= 124 else magnitude
    level = min(level, 124)
    return level, min(max(mantissa_bits - 1 + (level - 100 >> 2), 0), max(mantissa_bits - 3, 0)), reference


def split_changes(x: Array, b: Array, scales: delta.Scales, first: int) -> tuple[list[int], list[int], bytes, list[int]]:
    found = delta.split(x, b, scales, first)
    assert delta.levels_of(b, scales, first).tolist() == found.levels.tolist()
    return found.levels.tolist(), found.symbols.tolist(), found.low.tobytes(), found.far.tolist()


def split_changes_reference(x: Array, b: Array, scales: delta.Scales, first: int) -> tuple[list[int], list[int], bytes, list[int]]:
    sign, levels, symbols, bits, far = 1 << 8 * x.itemsize - 1, [], [], "", []
    for i, (word, old) in enumerate(zip(x.tolist(), b.tolist(), strict=True)):
        level, shift, reference = _foreseen(old, first + i, scales, x.itemsize)
        cell, rest = divmod(word % sign - reference, 1 << shift)
        symbol = cell + (250 if (word ^ old) < sign else 750) if -250 <= cell < 250 else 1002 if word else 1001
        symbol = 1000 if word == old and (cell or shift) else symbol
        bits += f"{rest:0{shift}b}"[::-1] if symbol < 1000 and shift else ""
        far += [word] if symbol == 1002 else []
        levels.append(level)
        symbols.append(symbol)
    return levels, symbols, int("0" + bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little"), far


def join_changes(x: Array, b: Array, scales: delta.Scales, first: int) -> list[int]:
    found, out = delta.split(x, b, scales, first), np.empty_like(x)
    assert delta.join(found.symbols, found.levels, found.low, found.far, b, scales, first, out) == delta.Fault.NONE
    return out.tolist()


def count_changes(x: Array, b: Array, scales: delta.Scales, sample: int) -> tuple[list[int], int]:
    counts, counted = delta.count(x, b, scales, sample)
    return counts[:, :1024].reshape(-1).tolist(), counted


def count_changes_reference(x: Array, b: Array, scales: delta.Scales, sample: int) -> tuple[list[int], int]:
    counts = [0] * (127 * 1024)
    levels, symbols, _, _ = split_changes_reference(x, b, scales, 0)
    for i, (level, symbol) in enumerate(zip(levels, symbols, strict=True)):
        row, column = divmod(i, scales.columns.size)
        counts[1024 * level + symbol] += column // 64 % sample == row % sample
    return counts, sum(counts)


# ---- pseudo-random signs ---------------------------------------------------------------------------------------------------------------


def _counters(source: random.Random) -> tuple[int, int, int, int]:
    near_the_end = source.choice((0, (1 << 32) - 2, (1 << 64) - 9, source.randrange(1 << 63)))
    return near_the_end, source.randrange(9), source.choice((0, source.randrange(1 << 64))), source.randrange(1 << 64)


def philox_reference(counter: int, high: int, seed: int) -> list[int]:
    """A block of the generator: the counter's lower and upper 64 bits, and the key."""
    most = (1 << 32) - 1
    a, b, c, d = counter & most, counter >> 32, high & most, high >> 32
    for i in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = right >> 32 ^ b ^ (seed + i * 0x9E3779B9 & most), right & most, left >> 32 ^ d ^ ((seed >> 32) + i * 0xBB67AE85 & most), left & most
    return [a, b, c, d]


def blocks_reference(first: int, n: int, high: int, seed: int) -> list[list[int]]:
    return [philox_reference((first + i) % (1 << 64), high, seed) for i in range(n)]


def _signs(source: random.Random) -> tuple[philox.Signs, int, int]:
    """Signs, the word that begins, and how many words there are: near the end of a span, and with one stream after many others."""
    span, k = source.choice((256, 300, 1 << 30)), source.choice((1, 7, 8, 9, 33))
    at = source.choice((0, span - 3, span * source.randrange(1 << 20) + source.randrange(span)))
    return philox.Signs(source.randrange(1 << 64), span, k), at, source.choice((0, 1, 40))


def _coefficients(source: random.Random) -> tuple[Array, philox.Signs, int, int]:
    signs, at, n = _signs(source)
    most = source.choice((3, 32767))
    flat = [source.randrange(-most, most + 1) for _ in range(signs.spans(at, n) * signs.k)]
    return np.array(flat, np.int32).reshape(-1, signs.k), signs, at, n


def _values(source: random.Random) -> tuple[Array, philox.Signs, int]:
    """Values that sum up without rounding."""
    signs, at, n = _signs(source)
    return np.array([source.randrange(-(1 << 20), 1 << 20) / 1024 for _ in range(n)], np.float32), signs, at


def _sign_rows(signs: philox.Signs, at: int, n: int) -> list[tuple[int, list[int]]]:
    """The span of each word, counted from the first, and its signs."""
    found, n_bytes = [], (signs.k + 7) // 8
    for number, place in (divmod(at + i, signs.span) for i in range(n)):
        pieces = [philox_reference(block, number, signs.seed) for block in range(place * n_bytes // 16, (place * n_bytes + n_bytes - 1) // 16 + 1)]
        stream = struct.pack(f"<{4 * len(pieces)}I", *(word for piece in pieces for word in piece))[place * n_bytes % 16 :]
        found.append((number - at // signs.span, [1 if stream[t // 8] >> t % 8 & 1 else -1 for t in range(signs.k)]))
    return found


def sums_reference(coefficients: Array, signs: philox.Signs, at: int, n: int) -> list[int]:
    return [sum(sign * c for sign, c in zip(row, coefficients[number].tolist(), strict=True)) for number, row in _sign_rows(signs, at, n)]


def correlations_reference(values: Array, signs: philox.Signs, at: int) -> list[list[float]]:
    totals = [[0.0] * signs.k for _ in range(signs.spans(at, values.size))]
    for value, (number, row) in zip(values.tolist(), _sign_rows(signs, at, values.size), strict=True):
        totals[number] = [total + sign * value for total, sign in zip(totals[number], row, strict=True)]
    return totals


KERNEL_ROWS: tuple[KernelRow, ...] = (
    KernelRow("planes.pack_planes", _numbers, pack_planes, pack_planes_reference),
    KernelRow("planes.unpack_planes", _plane_bytes, unpack_planes, unpack_planes_reference),
    KernelRow("masks.split_mask", _words_and_fill, split_mask, split_mask_reference),
    KernelRow("masks.merge_mask", _mask_parts, merge_mask, merge_mask_reference),
    KernelRow("planes.find_palette", lambda source: (_some_words(source), source.choice((1, 2, 16, 255, 256))), find_palette, find_palette_reference),
    KernelRow("planes.index_palette", _words_and_palette, index_palette, index_palette_reference),
    KernelRow("planes.look_up", _indices, look_up, look_up_reference),
    KernelRow("planes.half_to_single", lambda source: _float_words(source, 2), half_to_single, widen_reference),
    KernelRow("planes.single_to_double", lambda source: _float_words(source, 4), single_to_double, widen_reference),
    KernelRow("planes.split_words", lambda source: (_some_words(source, 2, 4, 8), source.randrange(14)), split_words, split_words_reference),
    KernelRow("split_float.join", _symbols_and_rest, join, join_reference),
    KernelRow("frequencies.histogram", lambda source: _sampled(source, 1, 2), histogram, histogram_reference),
    KernelRow("frequencies.histogram_split", _words_to_split, histogram_split, histogram_split_reference),
    KernelRow("frequencies.normalise", _counts, normalise, normalise_reference),
    KernelRow("frequencies.coded_bits", _table, coded_bits, coded_bits_reference),
    KernelRow("frequencies.write_table", _table, write_table, write_table_reference),
    KernelRow("frequencies.read_table", _table_bytes, read_table, read_table_reference),
    KernelRow("frequencies.read_tables", _bytes_of_tables, read_tables, read_tables_reference),
    KernelRow("rans.pack", _stream, pack, rans.pack_reference),
    KernelRow("rans.unpack", _payload, unpack, unpack_reference),
    KernelRow("rans.pack_split", _float_stream, pack_split, pack_split_reference),
    KernelRow("rans.unpack_split", _split_payload, unpack_split, unpack_split_reference),
    KernelRow("class_rans.pack", _classed_stream, pack_classed, pack_classed_reference),
    KernelRow("class_rans.unpack", _classed_payload, unpack_classed, unpack_classed_reference),
    KernelRow("class_rans.pack_split", _classed_floats, pack_classed_split, pack_classed_split_reference),
    KernelRow("class_rans.unpack_split", _classed_floats, unpack_classed_split, lambda words, *_: words.tolist()),
    KernelRow("scale_classes.fit", lambda source: (*_float_words_in_rows(source), source.choice((7, 10)), source.choice((1, 1, 3))), fit, fit_reference),
    KernelRow("scale_classes.count", _scaled_words, count, count_reference),
    KernelRow("scale_classes.of_classes", _counts_of_sums, of_classes, of_classes_reference),
    KernelRow("scale_classes.order0_bits", lambda source: (_words(source, 1, source.randrange(1, 500), 64),), order0_bits_is_near, lambda x: True),
    KernelRow("delta.count", lambda source: (*_delta_words(source)[:3], source.choice((1, 2))), count_changes, count_changes_reference),
    KernelRow("delta.split", _delta_words, split_changes, split_changes_reference),
    KernelRow("delta.levels_of", _delta_words, lambda x, *place: delta.levels_of(*place).tolist(), lambda x, *place: split_changes_reference(x, *place)[0]),
    KernelRow("delta.join", _delta_words, join_changes, lambda x, *_: x.tolist()),
    KernelRow("stored.copied", lambda source: (source.randbytes(1000), [source.randrange(1000) for _ in range(9)]), copied, copied_reference),
    KernelRow("xxh3.digest", _bytes_and_seed, xxh3.digest, lambda data, seed: xxhash.xxh3_64_intdigest(data, seed=seed)),
    KernelRow("survey.survey", _words_to_survey, look_over, look_over_reference),
    KernelRow("survey.entropy_bits", _counts_to_merge, entropy_bits, entropy_bits_reference),
    KernelRow("order0.order0_bits", _counts_and_fractions, lambda *given: order0.order0_bits(*given), order0_reference),
    KernelRow("philox.blocks", _counters, lambda *where: philox.blocks(*where).tolist(), blocks_reference),
    KernelRow("philox.sums", _coefficients, lambda *given: philox.sums(*given).tolist(), sums_reference),
    KernelRow("philox.correlations", _values, lambda *given: philox.correlations(*given).tolist(), correlations_reference),
)
