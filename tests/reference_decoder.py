"""A second decoder of the modelcodec container, written from docs/format.md and docs/stages.md alone.

It is the executable specification: plain Python, slow, one function a stage, one check for each thing that the documents call an error. It shares no code
with the package, so that a file which both restore to the same bytes is a file which the documents describe. Every refusal is a ValueError.

    python tests/reference_decoder.py FILE.mcodec OUT
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import copysign, inf, prod
from pathlib import Path
from typing import Any, NamedTuple

import grid_reference
import zstandard
from xxhash import xxh3_64_intdigest, xxh3_128_intdigest


class Corrupt(ValueError):
    """The file breaks a rule of the documents."""


class Unsupported(ValueError):
    """Not a container, or one that uses what version 0.3 does not define."""


def need(condition: bool, rule: str) -> None:
    """Refuse the file unless it keeps this rule."""
    if not condition:
        raise Corrupt(f"the file breaks a rule: {rule}")


# --- format.md, sections 1, 6 and 7: notation, dtypes, formats

VERSION = (0, 3)
MiB = 1 << 20
MAX_NODES, MAX_DEPTH, MAX_DIMENSIONS, MAX_GROUP = 64, 8, 64, 8
SHARED = 1 << 32
"""Number, for the seal, of the first group's shared part."""
N_FORMATS = 9
PREFIX = "__modelcodec__."
WORD_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}
Words = list[int]


class DType(NamedTuple):
    name: str
    bits: int
    word: int
    block: int
    elements: int
    """In a block; more than 1 for ggml's block types, whose blocks are counted in bytes and whose shapes in elements."""

    @property
    def in_safetensors(self) -> bool:
        return self.elements == 1 and self.name != "C128"

    def n_bytes(self, shape: tuple[int, ...]) -> int:
        if self.elements == 1:
            n = (prod(shape) * self.bits + 7) // 8
        else:
            need(prod(shape) % self.elements == 0, "a shape holds whole blocks")
            n = prod(shape) // self.elements * self.block
        need(n < 1 << 63, "a tensor has less than 2^63 bytes")
        return n


PLAIN = """0 BOOL 8 1 1, 1 U8 8 1 1, 2 I8 8 1 1, 3 F8_E5M2 8 1 1, 4 F8_E4M3 8 1 1, 5 F8_E8M0 8 1 1, 6 F8_E4M3FNUZ 8 1 1, 7 F8_E5M2FNUZ 8 1 1, 8 F4 4 1 1,
9 F6_E2M3 6 1 1, 10 F6_E3M2 6 1 1, 16 I16 16 2 1, 17 U16 16 2 1, 18 F16 16 2 1, 19 BF16 16 2 1, 32 I32 32 4 1, 33 U32 32 4 1, 34 F32 32 4 1, 48 I64 64 8 1,
49 U64 64 8 1, 50 F64 64 8 1, 51 C64 64 4 2, 52 C128 128 8 2"""
GGML = """2 Q4_0 32 18, 3 Q4_1 32 20, 6 Q5_0 32 22, 7 Q5_1 32 24, 8 Q8_0 32 34, 9 Q8_1 32 36, 10 Q2_K 256 84, 11 Q3_K 256 110, 12 Q4_K 256 144, 13 Q5_K 256 176,
14 Q6_K 256 210, 15 Q8_K 256 292, 16 IQ2_XXS 256 66, 17 IQ2_XS 256 74, 18 IQ3_XXS 256 98, 19 IQ1_S 256 50, 20 IQ4_NL 32 18, 21 IQ3_S 256 110, 22 IQ2_S 256 82,
23 IQ4_XS 256 136, 29 IQ1_M 256 56, 34 TQ1_0 256 54, 35 TQ2_0 256 66, 39 MXFP4 32 17, 40 NVFP4 64 36"""
DTYPES = {int(number): DType(name, int(bits), int(word), int(block), 1) for number, name, bits, word, block in map(str.split, PLAIN.split(","))}
DTYPES |= {64 + int(number): DType(name, 0, 1, int(n_bytes), int(elements)) for number, name, elements, n_bytes in map(str.split, GGML.split(","))}


class Cursor:
    """Reads the notation of section 1 out of a piece of the file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, n: int) -> bytes:
        need(n <= self.left, "what is announced is there")
        self.position += n
        return self.data[self.position - n : self.position]

    def uint(self, n_bytes: int) -> int:
        return int.from_bytes(self.take(n_bytes), "little")

    def varint(self) -> int:
        value = 0
        for i in range(9):
            byte = self.uint(1)
            value |= (byte & 127) << 7 * i
            if byte < 128:
                need(byte > 0 or i == 0, "a varint has its shortest form")
                return value
        raise Corrupt("the file breaks a rule: a varint has at most 9 bytes")

    def step(self) -> float:
        number: float = struct.unpack("<f", self.take(4))[0]
        need(0 < number < inf, "a step or scale is positive and finite")
        return number

    def dtype(self) -> DType:
        dtype = DTYPES.get(number := self.uint(1))
        if dtype is None:
            raise Unsupported(f"dtype {number}")
        return dtype

    def dimensions(self) -> tuple[int, ...]:
        need((n := self.varint()) <= MAX_DIMENSIONS, "a tensor has at most 64 dimensions")
        return tuple(self.varint() for _ in range(n))

    def end(self) -> None:
        need(self.left == 0, "no byte is left over")


class Bits:
    """A bit string: the first bit is bit 0 of the first byte, a number has its low bit first."""

    def __init__(self, data: bytes) -> None:
        self.value, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, k: int) -> int:
        need(k <= self.left, "what is announced is there")
        number = self.value & (1 << k) - 1
        self.value >>= k
        self.left -= k
        return number

    def end(self) -> None:
        need(self.left < 8 and self.value == 0, "a bit string ends with zero bits up to a whole byte")


def unpack(data: bytes, width: int) -> Words:
    return list(struct.unpack(f"<{len(data) // width}{WORD_CODES[width]}", data))


def pack(words: Words, width: int) -> bytes:
    return struct.pack(f"<{len(words)}{WORD_CODES[width]}", *words)


# --- stages.md: a stage reads its header and tells the shapes of its parts, the length of its payload, and how both become n words of width w; of the frame
# it may know the words, the first of them in its group of frames, the group's shared part, the base's words, its tensor and where it starts in that


class Shape(NamedTuple):
    n: int
    width: int


class Meaning(NamedTuple):
    parts: list[Shape]
    n_payload: int
    decode: Callable[[bytes, list[Words]], Words]


class Frame(NamedTuple):
    shape: Shape
    first: int = 0
    shared: bytes | None = None
    base: Words | None = None
    entry: Entry | None = None
    at: int = 0

    def tensor(self, n: int) -> Entry:
        """The tensor of a frame, for a stage that asks where its n words lie in it."""
        if self.entry is None or n != self.shape.n:
            raise Corrupt("the file breaks a rule: a stage that asks for the tensor has all words of a tensor's frame")
        return self.entry

    def spans(self, span: int) -> int:
        """Rows, blocks or other spans of so many words of the tensor that the frame touches."""
        return (self.at + self.shape.n - 1) // span - self.at // span + 1


def raw(header: Cursor, n: int, w: int) -> Meaning:
    return Meaning([], n * w, lambda payload, _: unpack(payload, w))


def constant(header: Cursor, n: int, w: int) -> Meaning:
    word = header.uint(w)
    return Meaning([], 0, lambda *_: [word] * n)


def zstd(header: Cursor, n: int, w: int) -> Meaning:
    n_payload, check = header.varint(), header.uint(4)

    def decode(payload: bytes, _: list[Words]) -> Words:
        need(xxh3_64_intdigest(payload) & 0xFFFFFFFF == check, "the check of a zstd payload matches")
        need(payload[:4] == b"\x28\xb5\x2f\xfd", "the payload is a zstd frame")
        frame, content, at = zstandard.ZstdDecompressor(max_window_size=8 * MiB).decompressobj(), bytearray(), 0
        try:
            need(zstandard.frame_content_size(payload) == n * w, "a zstd frame tells the size of its content")
            while at < len(payload) and not frame.eof and len(content) <= n * w:
                content += frame.decompress(payload[at : at + 64])
                at += 64
        except zstandard.ZstdError as error:
            raise Corrupt(f"zstd: {error}") from error
        need(frame.eof and not frame.unused_data and at >= len(payload), "the payload is one whole zstd frame and nothing else")
        need(len(content) == n * w, "a zstd frame holds the node's bytes")
        return unpack(bytes(content), w)

    return Meaning([], n_payload, decode)


class Slot(NamedTuple):
    symbol: int | None
    """None is escape."""
    frequency: int
    offset: int
    """Of this slot from the symbol's first."""


def read_slots(table: Bits, n_bits: int, w: int) -> list[Slot]:
    lo, size = table.take(8 * w), table.take(8 * w) + 1
    need(lo + size <= 1 << 8 * w, "no symbol is above the largest word")
    b = table.take(4)
    escape = (1 << b - 1) + table.take(b - 1) if b else 0
    frequencies: list[tuple[int | None, int]] = []
    symbol = lo
    while symbol < lo + size:
        if b := table.take(4):
            frequencies.append((symbol, (1 << b - 1) + table.take(b - 1)))
            symbol += 1
        else:
            symbol += (1 << (e := table.take(4))) + table.take(e)
    need(symbol == lo + size, "a run of zero frequencies ends with the table")
    table.end()
    if escape:
        frequencies.append((None, escape))
    need(all(f < 1 << n_bits for _, f in frequencies) and sum(f for _, f in frequencies) == 1 << n_bits, "frequencies are below 2^B and sum to 2^B")
    need(len(frequencies) <= 256, "at most 256 frequencies are not zero")
    return [Slot(symbol, f, offset) for symbol, f in frequencies for offset in range(f)]


def rans_group(tables: list[list[Slot]], n_bits: int, units: Iterator[int], states: Words) -> Iterator[int | None]:
    """The symbols of a group, whose words have each a table."""
    n_lanes, mask = len(states), (1 << n_bits) - 1
    lane_of_word = [16 * (r % 4) + r // 4 for r in range(64)] if n_lanes == 64 else list(range(n_lanes))
    for start in range(0, len(tables), n_lanes):
        lanes = lane_of_word[: len(tables) - start]
        for r, lane in enumerate(lanes):
            slot = tables[start + r][states[lane] & mask]
            states[lane] = slot.frequency * (states[lane] >> n_bits) + slot.offset
            yield slot.symbol
        for lane in sorted(lanes):
            if states[lane] < 1 << 16:
                need((unit := next(units, -1)) >= 0, "a group has units enough")
                states[lane] = states[lane] << 16 | unit
    need(states == [1 << 16] * n_lanes, "every final state is 2^16")
    need(next(units, -1) < 0, "every unit is used")


def read_groups(header: Cursor, n: int, w: int) -> tuple[int, Callable[[bytes, list[list[Slot]], int], Words]]:
    """What rans and class_rans have in common: the length of the payload, and how it becomes words, given each word's table and B."""
    need((lanes := header.uint(1)) <= 6 or lanes == 0x16, "lanes are 1 to 64, two groups only with 64")
    n_lanes, first = 1 << (lanes & 15), 64 * ((n + 63) // 64 + 1 >> 1)
    bounds = [(0, min(n, first)), (min(n, first), n)] if lanes & 16 else [(0, n)]
    n_units = [header.varint() for _ in bounds]
    n_escaped = header.varint()

    def decode(data: bytes, tables: list[list[Slot]], n_bits: int) -> Words:
        payload = Cursor(data)
        units = [unpack(payload.take(2 * k), 2) for k in n_units]
        states = [unpack(payload.take(4 * n_lanes), 4) for _ in bounds]
        escaped = unpack(payload.take(n_escaped * w), w)
        symbols = [s for (a, b), u, x in zip(bounds, units, states, strict=True) for s in rans_group(tables[a:b], n_bits, iter(u), x)]
        need(symbols.count(None) == n_escaped, "there are as many escape symbols as escaped words")
        each = iter(escaped)
        return [next(each) if symbol is None else symbol for symbol in symbols]

    return 2 * sum(n_units) + 4 * n_lanes * len(bounds) + n_escaped * w, decode


def rans(header: Cursor, n: int, w: int) -> Meaning:
    need(8 <= (n_bits := header.uint(1)) <= 12, "frequencies sum to 2^8 .. 2^12")
    n_payload, decode = read_groups(header, n, w)
    slots = read_slots(Bits(header.take(header.left)), n_bits, w)
    return Meaning([], n_payload, lambda payload, _: decode(payload, [slots] * n, n_bits))


class Classes(NamedTuple):
    """The shared part of class_rans."""

    row_scales: bytes
    column_scales: bytes
    thresholds: bytes
    n_bits: int
    tables: list[list[Slot]]

    def scales(self, first: int, n: int) -> list[int]:
        """The sums of scales of n words from one of the group on."""
        columns = len(self.column_scales)
        need(first + n <= len(self.row_scales) * columns, "a word lies in a row that there is")
        places = (divmod(first + i, columns) for i in range(n))
        return [self.row_scales[row] + self.column_scales[column] for row, column in places]

    def table(self, scale: int) -> list[Slot]:
        return self.tables[bisect_right(self.thresholds, scale)]


def read_classes(shared: Cursor) -> Classes:
    need((columns := shared.varint()) > 0 and (rows := shared.varint()) > 0, "there are rows and columns")
    row_scales, column_scales = shared.take(rows), shared.take(columns)
    need(max(row_scales + column_scales) < 64, "a scale is below 64")
    need((n_classes := shared.uint(1) + 1) <= 32, "there are at most 32 classes")
    thresholds = shared.take(n_classes - 1)
    need(list(thresholds) == sorted(thresholds) and max(thresholds, default=0) <= 127, "thresholds ascend to 127 at most")
    need(8 <= (n_bits := shared.uint(1)) <= 11, "frequencies sum to 2^8 .. 2^11")
    tables = [read_slots(Bits(shared.take(shared.varint())), n_bits, 2) for _ in range(n_classes)]
    shared.end()
    need(all(slot.symbol is None or slot.symbol < 1023 for table in tables for slot in table), "a symbol is below 2^10 - 1")
    return Classes(row_scales, column_scales, thresholds, n_bits, tables)


def class_rans(header: Cursor, n: int, w: int, frame: Frame) -> Meaning:
    if frame.shared is None:
        raise Corrupt("the file breaks a rule: class_rans stands only in a frame with a shared part")
    need(n == frame.shape.n, "class_rans has the frame's words")
    n_payload, decode = read_groups(header, n, w)
    classes = read_classes(Cursor(frame.shared))
    table_of_word = [classes.table(scale) for scale in classes.scales(frame.first, n)]

    def decode_words(payload: bytes, _: list[Words]) -> Words:
        words = decode(payload, table_of_word, classes.n_bits)
        need(all(word < 1 << 8 * w for word in words), "a symbol fits the node's width")
        return words

    return Meaning([], n_payload, decode_words)


def read_bit_planes(data: Words, n: int, r: int) -> Words:
    """The n numbers of r bits out of their r * ceil(n / 8) bytes."""
    numbers, at, low = [0] * n, 0, 0
    for p in (p for p in (8, 4, 2, 1) if r & p):
        for start in range(0, n, 64):
            t = min(64, n - start)
            n_bytes = (t + 7) // 8 * p
            for i in range(n_bytes):
                for j in range(8 // p):
                    bits = data[at + i] >> p * j & (1 << p) - 1
                    if i + j * n_bytes < t:
                        numbers[start + i + j * n_bytes] |= bits << low
                    else:
                        need(bits == 0, "numbers past the end of a bit plane are zero")
            at += n_bytes
        low += p
    return numbers


def split_float(header: Cursor, n: int, w: int) -> Meaning:
    need((s := header.uint(1)) <= 13, "s is 0 to 13")
    shapes = [Shape(n, 1 if 15 - s <= 8 else 2), Shape((s + 1) * ((n + 7) // 8), 1), Shape(n * (w // 2 - 1), 2)]

    def decode(_: bytes, parts: list[Words]) -> Words:
        need(all(symbol < 1 << 15 - s for symbol in parts[0]), "a symbol has 15 - s bits")
        words = [(x >> s) << 15 | symbol << s | x & (1 << s) - 1 for symbol, x in zip(parts[0], read_bit_planes(parts[1], n, s + 1), strict=True)]
        for k in reversed(range(w // 2 - 1)):
            words = [word << 16 | low for word, low in zip(words, parts[2][k * n : (k + 1) * n], strict=True)]
        return words

    return Meaning(shapes if w > 2 else shapes[:2], 0, decode)


def planes(header: Cursor, n: int, w: int) -> Meaning:
    return Meaning([Shape(n, 1)] * w, 0, lambda _, parts: [int.from_bytes(word, "little") for word in zip(*parts, strict=True)])


def palette(header: Cursor, n: int, w: int) -> Meaning:
    need((size := header.varint() + 1) <= 256, "a palette has 1 to 256 words")
    entries = [header.uint(w) for _ in range(size)]

    def decode(_: bytes, parts: list[Words]) -> Words:
        need(all(index < size for index in parts[0]), "an index is below the size of the palette")
        return [entries[index] for index in parts[0]]

    return Meaning([Shape(n, 1)], 0, decode)


def sparse(header: Cursor, n: int, w: int) -> Meaning:
    need((n_values := header.varint()) <= n, "there are at most n values")
    told = header.left > 0
    fill = header.uint(w) if told else 0
    need(fill > 0 or not told, "a fill of zero is not written")

    def decode(_: bytes, parts: list[Words]) -> Words:
        mask, values = int.from_bytes(bytes(parts[0]), "little"), iter(parts[1])
        need(mask >> n == 0, "unused bits of the mask are zero")
        need(mask.bit_count() == n_values, "the mask has as many ones as there are values")
        need(fill not in parts[1], "no value is the fill")
        return [next(values) if parts[0][i // 8] >> i % 8 & 1 else fill for i in range(n)]

    return Meaning([Shape((n + 7) // 8, 1), Shape(n_values, w)], 0, decode)


def convert_float(word: int, narrow: str, wide: str) -> int:
    """The wide float with the value of the narrow one, both as bit patterns; the codes are those of `struct`."""
    value = struct.unpack(f"<{narrow}", word.to_bytes(struct.calcsize(narrow), "little"))[0]
    need(value == value, "no NaN is widened")
    return int.from_bytes(struct.pack(f"<{wide}", value), "little")


WIDEN_KINDS: dict[int, tuple[int, int, Callable[[int], int]]] = {
    1: (4, 2, lambda word: word << 16),
    2: (4, 2, lambda word: convert_float(word, "e", "f")),
    3: (8, 4, lambda word: convert_float(word, "f", "d")),
    **{kind: (w, narrow, lambda word: word) for kind, w, narrow in ((4, 4, 1), (5, 4, 2), (6, 8, 1), (7, 8, 2), (8, 8, 4))},
}


def widen(header: Cursor, n: int, w: int) -> Meaning:
    need((kind := header.uint(1)) in WIDEN_KINDS, "a kind of widening is 1 to 8")
    wide, narrow, convert = WIDEN_KINDS[kind]
    need(wide == w, "a kind of widening has the node's width")
    return Meaning([Shape(n, narrow)], 0, lambda _, parts: [convert(word) for word in parts[0]])


def fields(header: Cursor, n: int, w: int) -> Meaning:
    need(1 <= (k := header.varint()) <= 16, "a record has 1 to 16 fields")
    layout = [(header.uint(1), header.varint()) for _ in range(k)]
    need(all(width in WORD_CODES and number for width, number in layout), "a field has words of 1, 2, 4 or 8 bytes, one or more")
    size = sum(width * number for width, number in layout)
    need(n % size == 0, "records are whole")

    def decode(_: bytes, parts: list[Words]) -> Words:
        sources = [(Cursor(pack(part, width)), width * number) for part, (width, number) in zip(parts, layout, strict=True)]
        return list(b"".join(source.take(n_bytes) for _ in range(n // size) for source, n_bytes in sources))

    return Meaning([Shape(n // size * number, width) for width, number in layout], 0, decode)


def foreseen(scale: int, magnitude: int, mantissa: int) -> tuple[int, int, int]:
    """Of a word of delta, given the base's magnitude: level, shift and reference."""
    t = scale - (magnitude >> mantissa - 2) + 100
    level, reference = (124, scale - 24 << mantissa - 2) if t >= 124 else (max(t, 0), magnitude)
    return level, min(max(mantissa - 1 + (level - 100 >> 2), 0), max(mantissa - 3, 0)), reference


def delta(header: Cursor, n: int, w: int, frame: Frame) -> Meaning:
    if frame.base is None:
        raise Corrupt("the file breaks a rule: delta stands only in a frame with a base")
    need(Shape(n, w) == frame.shape, "delta has the frame's words")
    base, sign = frame.base, 1 << 8 * w - 1
    if not header.left:
        return Meaning([], 0, lambda *_: base)
    if frame.shared is None:
        raise Corrupt("the file breaks a rule: delta has a shared part, unless it has no header")
    n_low, n_far = header.varint(), header.varint()
    n_symbols, decode = read_groups(header, n, 2)
    shared = Cursor(frame.shared)
    mantissa, offset = shared.uint(1), shared.uint(2)
    classes = read_classes(shared)
    need(2 <= mantissa <= min(8 * w - 2, 52), "there are 2 to 8 w - 2 bits of mantissa, 52 at most")
    need(max(classes.row_scales) + max(classes.column_scales) + offset - 128 < 1 << 8 * w + 1 - mantissa, "a scale is one of a word")
    known = [foreseen(scale + offset - 128, b % sign, mantissa) for scale, b in zip(classes.scales(frame.first, n), base, strict=True)]

    def decode_words(payload: bytes, _: list[Words]) -> Words:
        symbols = decode(payload[:n_symbols], [classes.table(level) for level, _, _ in known], classes.n_bits)
        low, far, words = Bits(payload[n_symbols : n_symbols + n_low]), iter(unpack(payload[n_symbols + n_low :], w)), []
        for s, b, (_, shift, reference) in zip(symbols, base, known, strict=True):
            if s < 1000:
                magnitude = reference + ((s % 500 - 250) << shift) + low.take(shift)
                need(0 <= magnitude < sign, "a magnitude is one of a word")
                words.append(magnitude | (b & sign) ^ (sign if s >= 500 else 0))
            else:
                need(s <= 1002, "a symbol is at most 1002")
                words.append(next(far, -1) if s == 1002 else (b, 0)[s - 1000])
        need(-1 not in words and next(far, -1) == -1, "there are as many far words as symbols of them")
        low.end()
        return words

    return Meaning([], n_symbols + n_low + n_far * w, decode_words)


def unfold(number: int) -> int:
    """0, 1, 2, 3, 4 ... as 0, -1, 1, -2, 2 ..."""
    return -(number // 2) - 1 if number % 2 else number // 2


def float_bits(value: float, code: str) -> int:
    """The nearest float of a kind of `struct`, ties to even, as a bit pattern."""
    try:
        data = struct.pack(f"<{code}", value)
    except OverflowError:
        data = struct.pack(f"<{code}", copysign(inf, value))
    return int.from_bytes(data, "little")


def float32(value: float) -> float:
    number: float = struct.unpack("<f", float_bits(value, "f").to_bytes(4, "little"))[0]
    return number


ROUND: dict[str, Callable[[float], int]] = {
    "F32": lambda value: float_bits(value, "f"),
    "BF16": lambda value: (bits := float_bits(value, "f")) + 0x7FFF + (bits >> 16 & 1) >> 16,
    "F16": lambda value: float_bits(float32(value), "e"),
}
"""A number rounded to float32, then to the dtype."""


def put_exceptions(payload: Cursor, n: int, words: Words, w: int) -> None:
    places = unpack(payload.take(4 * n), 4)
    need(places == sorted(set(places)) and max(places, default=-1) < len(words), "places of exceptions ascend, and lie in the node")
    for place, word in zip(places, unpack(payload.take(n * w), w), strict=True):
        words[place] = word


TRELLISES = {0: (0, 0), 2: (0o5, 0o2), 3: (0o13, 0o4), 4: (0o23, 0o4), 5: (0o45, 0o10), 6: (0o103, 0o24), 7: (0o235, 0o126), 8: (0o515, 0o362)}


def walk(indices: Iterable[int], s: int, state: int, shifts: Sequence[int]) -> Iterator[int]:
    """The places of the indices of grid."""
    h0, h1 = TRELLISES[s]
    for k in indices:
        union, size = state % 2, abs(k)
        place = 512 * size - 256 * union - shifts[2 * union + (size > 1)] if k else 0
        yield place if k >= 0 else -place
        state = state // 2 ^ (h0 // 2 if union else 0) ^ (h1 // 2 if k % 2 else 0)


def grid(header: Cursor, n: int, w: int, frame: Frame) -> Meaning:
    entry = frame.tensor(n)
    need(entry.dtype.name in ROUND and w == entry.dtype.word, "grid has words of the tensor's dtype, F32, BF16 or F16")
    flags, state = header.uint(1), header.uint(1)
    s, modelled = flags & 15, bool(flags & 16)
    need(s in TRELLISES and state < 1 << s and not (modelled and flags & 64), "a trellis has 1 or 4 to 256 states, modelled indices no width")
    step = header.step()
    shifts = struct.unpack("4b", header.take(4)) if flags & 32 else (0, 0, 0, 0)
    mean, n_coded = (header.uint(1), header.varint()) if modelled else (0, 0)
    need(mean <= 224, "m is at most 224")
    need((n_exceptions := header.varint()) <= n, "there are at most n exceptions")
    span, n_steps = (header.varint(), header.varint()) if flags & 128 else (1, 0)
    need(span > 0 and (not flags & 128 or n_steps == frame.spans(span)), "there are as many steps as spans")

    def decode(data: bytes, parts: list[Words]) -> Words:
        payload, exponents = Cursor(data), parts[1] if flags & 128 else []
        if modelled:
            indices = grid_reference.decode(payload.take(n_coded), n, entry.shape, frame.at, mean, state, *TRELLISES[s])
        else:
            need(max(parts[0]) <= 65534, "an index has 16 bits, its sign included")
            indices = list(map(unfold, parts[0]))
        steps = [float32(step * grid_reference.EXP2[32 * (e % 8)] * 2.0 ** (e // 8 - 16)) for e in exponents]
        need(inf not in steps, "the step of a span is finite")
        of_words = (steps[(frame.at + i) // span - frame.at // span] if steps else step for i in range(n))
        words = [ROUND[entry.dtype.name](place * of_word) for place, of_word in zip(walk(indices, s, state, shifts), of_words, strict=True)]
        put_exceptions(payload, n_exceptions, words, w)
        return words

    shapes = [Shape(0 if modelled else n, 2 if flags & 64 else 1), Shape(n_steps, 1)]
    return Meaning(shapes if flags & 128 else [] if modelled else shapes[:1], n_coded + n_exceptions * (4 + w), decode)


def read_dimension(file: Cursor) -> int:
    need(1 <= (dimension := file.varint()) <= 1024, "a vector has 1 to 1024 words")
    return dimension


def read_lists(file: Cursor) -> list[int]:
    """How many vectors each list has."""
    need((n := file.varint() + 1) <= 256, "there are 1 to 256 lists")
    sizes = [file.varint() + 1 for _ in range(n)]
    need(sum(sizes) <= 65536, "all lists have at most 65536 vectors")
    return sizes


def read_book(shared: Cursor, dimension: int, w: int) -> tuple[list[int], Words]:
    """The shared part of codebook: the lists, and their entries."""
    need(read_dimension(shared) == dimension, "the shared part's vectors have as many words")
    sizes = read_lists(shared)
    n = dimension * sum(sizes)
    need((is_palette := shared.uint(1)) <= 1, "entries are told in one of two ways")
    if is_palette:
        need((size := shared.varint() + 1) <= 256, "a palette has 1 to 256 words")
        words, places = unpack(shared.take(size * w), w), shared.take(n)
        need(max(places) < size, "a place is one of the palette")
        entries = [words[place] for place in places]
    else:
        entries = unpack(shared.take(n * w), w)
    shared.end()
    return sizes, entries


def codebook(header: Cursor, n: int, w: int, frame: Frame) -> Meaning:
    need((flags := header.uint(1)) < 16 and flags & 6 != 6, "context-coded indices have no width")
    is_shared, modelled, grouped = bool(flags & 1), bool(flags & 4), bool(flags & 8)
    entry = frame.tensor(n) if is_shared or modelled or grouped else None
    d = read_dimension(header)
    need(not modelled or (d == 1 and w in (2, 4)), "context-coded indices are of single words of width 2 or 4")
    need((lead := header.varint()) < d and lead <= n, "words before the first vector are fewer than it has")
    need(not is_shared or frame.shared is not None, "shared lists stand only in a frame with a shared part")
    sizes, shared_entries = read_book(Cursor(frame.shared or b""), d, w) if is_shared else (read_lists(header), [])
    columns = entry.row_words if entry else 1
    n_rows = header.varint() if grouped else 0
    need(n_rows == frame.spans(columns) if grouped else len(sizes) == 1, "the frame's rows have a list each, or there is one")
    mean, n_coded = (header.uint(1), header.varint()) if modelled else (0, 0)
    need(mean <= 224, "M is at most 224")
    n_vectors = (n - lead) // d

    def decode(data: bytes, parts: list[Words]) -> Words:
        payload, entries, groups = Cursor(data), shared_entries or parts[0], parts[1] or [0]
        need(max(groups) < len(sizes), "a row has a list that there is")
        row_of = [(frame.at + lead + d * i) // columns - frame.at // columns if grouped else 0 for i in range(n_vectors)]
        starts = list(accumulate(sizes, initial=0))
        if entry and modelled:
            magnitudes = [[word % (1 << 8 * w - 1) for word in entries[start : start + size]] for start, size in zip(starts, sizes, strict=False)]
            zeros = [each.index(min(each)) for each in magnitudes]
            places = grid_reference.decode(payload.take(n_coded), n, entry.shape, frame.at, mean, 0, 0, 0)
            indices = [zeros[groups[row]] + place for row, place in zip(row_of, places, strict=True)]
        else:
            indices = parts[2]
        need(all(0 <= i < sizes[groups[row]] for row, i in zip(row_of, indices, strict=True)), "an index is inside its list")
        outer = unpack(payload.take(payload.left), w)
        vectors = [d * (starts[groups[row]] + i) for row, i in zip(row_of, indices, strict=True)]
        return outer[:lead] + [word for at in vectors for word in entries[at : at + d]] + outer[lead:]

    shapes = [Shape(0 if is_shared else sum(sizes) * d, w), Shape(n_rows, 1)]
    return Meaning(shapes if modelled else [*shapes, Shape(n_vectors, 2 if flags & 2 else 1)], n_coded + (n - n_vectors * d) * w, decode)


class Right(NamedTuple):
    """What frames of lowrank may share; its words are a part where they do not."""

    columns: int
    shifts: bytes
    words: Words


def read_rank(file: Cursor) -> int:
    need(1 <= (rank := file.varint()) <= 1024, "a rank is 1 to 1024")
    return rank


def read_shifts(file: Cursor, rank: int) -> bytes:
    shifts = file.take(rank)
    need(max(shifts) <= 15, "a shift is at most 15")
    return shifts


def read_right(shared: Cursor, rank: int) -> Right:
    """The shared part of lowrank."""
    need(read_rank(shared) == rank, "the shared part has the rank of the frame")
    columns, width = shared.varint(), shared.uint(1)
    need(width in (1, 2), "words of a matrix have width 1 or 2")
    shifts, planes_of_words = read_shifts(shared, rank), [shared.take(rank * columns) for _ in range(width)]
    shared.end()
    return Right(columns, shifts, [int.from_bytes(word, "little") for word in zip(*planes_of_words, strict=True)])


def matrix(words: Words, columns: int) -> list[Words]:
    """Rows of the integers that folded words stand for."""
    return [list(map(unfold, words[i : i + columns])) for i in range(0, len(words), columns)]


def products(left: list[Words], right: list[Words], shifts: bytes) -> Iterator[int]:
    """The sums S(i, j), row after row."""
    bounds = [max(map(abs, a)) * max(map(abs, b)) << e for a, b, e in zip(zip(*left, strict=True), right, shifts, strict=True)]
    need(sum(bounds) < 1 << 53, "every sum is exact in float64")
    return (sum(a * b << e for a, b, e in zip(row, column, shifts, strict=True)) for row in left for column in zip(*right, strict=True))


def lowrank(header: Cursor, n: int, w: int, frame: Frame) -> Meaning:
    entry = frame.tensor(n)
    need(entry.dtype.name in ROUND and w == entry.dtype.word, "lowrank has words of the tensor's dtype, F32, BF16 or F16")
    need((flags := header.uint(1)) < 16 and flags & 5 != 5, "a right matrix that is shared has no width here")
    is_shared, masked = bool(flags & 1), bool(flags & 8)
    scale, rows, rank = header.step(), header.varint(), read_rank(header)
    if is_shared:
        need(frame.shared is not None, "a shared matrix stands only in a frame with a shared part")
        right = read_right(Cursor(frame.shared or b""), rank)
    else:
        right = Right(header.varint(), read_shifts(header, rank), [])
    need((n_exceptions := header.varint()) <= n, "there are at most n exceptions")
    need(rank <= right.columns == entry.row_words, "the right matrix has the columns of the tensor, and at least the rank")
    need(is_shared or right.columns <= n, "the columns of a matrix that is not shared are at most n")
    need(rows == frame.spans(right.columns) <= n, "the left matrix has the frame's rows")

    def decode(data: bytes, parts: list[Words]) -> Words:
        start = frame.at % right.columns
        sums = list(products(matrix(parts[0], rank), matrix(right.words or parts[1], right.columns), right.shifts))[start : start + n]
        words = [ROUND[entry.dtype.name](float(total) * scale) for total in sums]
        if masked:
            mask = int.from_bytes(bytes(parts[2]), "little")
            need(mask >> n == 0, "unused bits of the mask are zero")
            words = [word if mask >> i & 1 else 0 for i, word in enumerate(words)]
        put_exceptions(Cursor(data), n_exceptions, words, w)
        return words

    widths = (2 if flags & 2 else 1, 2 if flags & 4 else 1)
    shapes = [Shape(rows * rank, widths[0]), Shape(0 if is_shared else rank * right.columns, widths[1])]
    return Meaning([*shapes, Shape((n + 7) // 8, 1)] if masked else shapes, n_exceptions * (4 + w), decode)


PHILOX = ((0xD2511F53, 0x9E3779B9), (0xCD9E8D57, 0xBB67AE85))
"""A multiplier, and what a half of the key grows by in each round."""


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10 of a counter of four and a key of two numbers."""
    for _ in range(10):
        left, right = counter[0] * PHILOX[0][0], counter[2] * PHILOX[1][0]
        counter = [right >> 32 ^ counter[1] ^ key[0], right % (1 << 32), left >> 32 ^ counter[3] ^ key[1], left % (1 << 32)]
        key = [(part + growth) % (1 << 32) for part, (_, growth) in zip(key, PHILOX, strict=True)]
    return counter


def signs_of(seed: int, span: int, place: int, k: int) -> Iterator[int]:
    """The k signs of a word."""
    n_bytes = (k + 7) // 8
    first, last = place * n_bytes // 16, (place * n_bytes + n_bytes - 1) // 16
    key, upper = [seed % (1 << 32), seed >> 32], [span % (1 << 32), span >> 32]
    stream = b"".join(struct.pack("<4I", *philox([block % (1 << 32), block >> 32, *upper], key)) for block in range(first, last + 1))
    own = int.from_bytes(stream[place * n_bytes - 16 * first :][:n_bytes], "little")
    return (1 if own >> t & 1 else -1 for t in range(k))


def read_k(file: Cursor) -> int:
    need(1 <= (k := file.varint()) <= 32768, "a span has 1 to 32768 coefficients")
    return k


def read_coefficients(shared: Cursor, k: int) -> list[Words]:
    """The shared part of seedbasis: a row for each span."""
    need(read_k(shared) == k, "the shared part has as many coefficients a span")
    spans, width = shared.varint(), shared.uint(1)
    need(spans > 0 and width in (1, 2), "coefficients of at least a span have width 1 or 2")
    planes_of_words = [shared.take(spans * k) for _ in range(width)]
    shared.end()
    return matrix([int.from_bytes(word, "little") for word in zip(*planes_of_words, strict=True)], k)


def seedbasis(header: Cursor, n: int, w: int, frame: Frame) -> Meaning:
    entry = frame.tensor(n)
    need(entry.dtype.name in ROUND and w == entry.dtype.word, "seedbasis has words of the tensor's dtype, F32, BF16 or F16")
    need((flags := header.uint(1)) < 8 and flags & 3 != 3, "coefficients that are shared have no width here")
    is_shared, masked = bool(flags & 1), bool(flags & 4)
    scale, seed, span, k = header.step(), header.uint(8), header.varint(), read_k(header)
    need(256 <= span <= 1 << 32 and n * k <= 1 << 28, "spans have 256 to 2^32 words, and a frame at most 2^28 signs")
    start, first = frame.at // span, 0
    spans = (frame.at + n - 1) // span - start + 1
    need(is_shared or header.varint() == spans, "the frame has the coefficients of the spans that it touches")
    need((n_exceptions := header.varint()) <= n, "there are at most n exceptions")
    shared: list[Words] = []
    if is_shared:
        need(frame.shared is not None, "shared coefficients stand only in a frame with a shared part")
        shared = read_coefficients(Cursor(frame.shared or b""), k)
        first = start - (frame.at - frame.first) // span
        need(first + spans <= len(shared), "the shared part has the frame's spans")

    def decode(data: bytes, parts: list[Words]) -> Words:
        coefficients, words = shared[first:] if is_shared else matrix(parts[0], k), []
        for at in range(frame.at, frame.at + n):
            total = sum(sign * c for sign, c in zip(signs_of(seed, at // span, at % span, k), coefficients[at // span - start], strict=True))
            words.append(ROUND[entry.dtype.name](float(total) * scale))
        if masked:
            mask = int.from_bytes(bytes(parts[1]), "little")
            need(mask >> n == 0, "unused bits of the mask are zero")
            words = [word if mask >> i & 1 else 0 for i, word in enumerate(words)]
        put_exceptions(Cursor(data), n_exceptions, words, w)
        return words

    shape = Shape(0 if is_shared else spans * k, 2 if flags & 2 else 1)
    return Meaning([shape, Shape((n + 7) // 8, 1)] if masked else [shape], n_exceptions * (4 + w), decode)


STAGES: dict[int, tuple[Callable[..., Meaning], tuple[int, ...]]] = {
    0: (raw, (1, 2, 4, 8)),
    1: (constant, (1, 2, 4, 8)),
    2: (zstd, (1, 2, 4, 8)),
    3: (rans, (1, 2)),
    4: (split_float, (2, 4, 8)),
    5: (planes, (2, 4, 8)),
    6: (palette, (1, 2, 4, 8)),
    7: (sparse, (1, 2, 4, 8)),
    8: (widen, (4, 8)),
    9: (fields, (1,)),
    10: (class_rans, (1, 2)),
    11: (grid, (2, 4)),
    12: (delta, (1, 2, 4, 8)),
    13: (codebook, (1, 2, 4, 8)),
    14: (lowrank, (2, 4)),
    15: (seedbasis, (2, 4)),
}
KNOW_THE_FRAME = (class_rans, grid, delta, codebook, lowrank, seedbasis)


# --- format.md, section 4: a frame


LOOSE = (11, 13, 14, 15)
"""Stages not every bit of whose payload changes what is decoded."""


@dataclass
class Node:
    shape: Shape
    meaning: Meaning
    number: int
    parts: list[Node] = field(default_factory=list)
    payload: bytes = b""

    def words(self) -> Words:
        return self.meaning.decode(self.payload, [part.words() for part in self.parts])


def read_node(head: Cursor, shape: Shape, depth: int, nodes: list[Node], frame: Frame) -> Node:
    """One node and all below it, which are added to `nodes` in the order in which they stand."""
    need(len(nodes) < MAX_NODES, "a frame has at most 64 nodes")
    need(depth <= MAX_DEPTH, "a tree is at most 8 deep")
    if (number := head.uint(1)) not in STAGES:
        raise Unsupported(f"stage {number}")
    stage, widths = STAGES[number]
    need(shape.width in widths, "a stage has a width that its section allows")
    header = Cursor(head.take(head.varint()))
    node = Node(shape, stage(header, *shape, frame) if stage in KNOW_THE_FRAME else stage(header, *shape), number)
    header.end()
    nodes.append(node)
    node.parts = [read_node(head, part, depth + 1, nodes, frame) for part in node.meaning.parts]
    return node


def read_frame(data: bytes, number: int, frame: Frame) -> tuple[bytes, int]:
    """The decoded bytes of a frame, and their digest."""
    file = Cursor(data)
    head = Cursor(file.take(file.varint()))
    need(head.left >= 12, "a head ends with a digest and a seal")
    sealed, seal = data[: file.position - 4], data[file.position - 4 : file.position]
    need(xxh3_64_intdigest(sealed, number) & 0xFFFFFFFF == int.from_bytes(seal, "little"), "a frame's seal fits its head")
    nodes: list[Node] = []
    root = read_node(head, frame.shape, 1, nodes, frame)
    digest = head.uint(8)
    need(head.left == 4, "no byte is left over in a frame's head")
    need(sum(prod(node.shape) for node in nodes) <= 8 * prod(frame.shape) + 65536, "a frame's arrays hold at most 8 times its bytes and 64 KiB")
    for node in nodes:
        node.payload = file.take(node.meaning.n_payload)
    if any(node.number in LOOSE for node in nodes):
        payload = data[file.position - sum(node.meaning.n_payload for node in nodes) : file.position]
        need(file.uint(4) == xxh3_64_intdigest(payload) & 0xFFFFFFFF, "the payload fits its check")
    file.end()
    decoded = pack(root.words(), frame.shape.width)
    need(xxh3_64_intdigest(decoded) == digest, "a frame has its digest")
    return decoded, digest


# --- format.md, sections 2, 3 and 5: envelope, directory, identity


class Stored(NamedTuple):
    """An entry as the safetensors header tells it; offsets count from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Piece(NamedTuple):
    """A frame, or the shared part of a group of frames (none, if it has no words), of a coded entry: its number for the seal, and its length in the payload."""

    number: int
    shape: Shape
    first: int
    length: int


class BaseTensor(NamedTuple):
    """A tensor of a base: the base's number, the tensor's name in it, the digest of its bytes."""

    number: int
    name: str
    digest: int


class Entry(NamedTuple):
    """An entry as the directory tells it."""

    stored: Stored
    role: int
    kind: int
    dtype: DType
    shape: tuple[int, ...]
    gap: int
    digest: int
    digests: tuple[int, ...]
    """Of an ordinary entry's frames."""
    pieces: tuple[Piece, ...]
    """Of a coded entry, as they follow each other in the payload."""
    same_as: int
    base: BaseTensor | None

    @property
    def n_bytes(self) -> int:
        return self.dtype.n_bytes(self.shape)

    @property
    def row_words(self) -> int:
        n_words = self.n_bytes // self.dtype.word
        return max(n_words // self.shape[0], 1) if len(self.shape) > 1 else n_words


class Container(NamedTuple):
    entries: list[Entry]
    tail: int
    n_bytes: int
    sha256: bytes | None
    bases: list[str]


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    need(len(names) == len(pairs), "no name stands twice in the JSON header")
    return names


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def read_envelope(data: bytes) -> tuple[list[Stored], int]:
    """The entries in the order of the data, and where the data begin."""
    file = Cursor(data)
    header = file.take(file.uint(8))
    need(header[:1] == b"{" and header.rstrip(b" ")[-1:] == b"}" and file.position % 8 == 0, "the header is JSON, padded with spaces to a multiple of 8")
    try:
        names = json.loads(header.decode(), object_pairs_hook=no_twins)
        metadata = names.pop("__metadata__", {})
        stored = [Stored(name, e["dtype"], tuple(e["shape"]), *e["data_offsets"]) for name, e in names.items()]
        marker = metadata.get("modelcodec")
    except Corrupt:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Corrupt(f"no safetensors header: {error!r}") from error
    if marker is None and PREFIX + "directory" not in names:
        raise Unsupported("not a modelcodec container")
    need(all(isinstance(text, str) for text in metadata.values()), "metadata are strings")
    need(marker is not None and bool(stored) and stored[0].name == PREFIX + "directory", "marker and directory stand together, the directory first")
    need(isinstance(marker, str) and bool(re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)", marker, re.ASCII)), "the marker is major.minor")
    major, minor = (int(number) for number in marker.split("."))
    if major != VERSION[0] or minor > VERSION[1]:
        raise Unsupported(f"version {marker}")
    need(all(set(e) == {"dtype", "shape", "data_offsets"} for e in names.values()), "entries have their three keys")
    need(all(is_count(number) for e in stored for number in (*e.shape, e.begin, e.end)), "shapes and offsets are numbers")
    ends = [0, *(e.end for e in stored)]
    need(ends[-1] == file.left and all(e.begin == end <= e.end for e, end in zip(stored, ends, strict=False)), "entries follow each other without holes")
    return [e._replace(begin=file.position + e.begin, end=file.position + e.end) for e in stored], file.position


def read_text(directory: Cursor) -> str:
    try:
        return directory.take(directory.varint()).decode()
    except UnicodeDecodeError as error:
        raise Corrupt("the file breaks a rule: the names of bases and their tensors are UTF-8") from error


def read_entry(directory: Cursor, stored: Stored, earlier: list[Entry], n_bases: int) -> Entry:
    role, kind, dtype, shape = directory.uint(1), directory.uint(1), directory.dtype(), directory.dimensions()
    own = {1: PREFIX + "skeleton", 2: PREFIX + "views", 3: PREFIX + "losses"}.get(role)
    need(role <= 3 and (stored.name == own if own else not stored.name.startswith(PREFIX)), "an entry's role fits its name")
    before = earlier[-1].role if earlier else None
    need(before in {0: (0, 1, 2, 3), 1: (None,), 2: (1,), 3: (1, 2)}[role], "the skeleton is first, views follow, losses, then tensors")
    need(own is None or (dtype.name == "U8" and len(shape) == 1), "skeleton, views and losses are U8 with one dimension")
    gap, digest = directory.varint() if role == 0 else 0, directory.uint(8)
    n_bytes, n_stored, same_as = dtype.n_bytes(shape), stored.end - stored.begin, 0
    most = MiB // dtype.word // dtype.block * dtype.block
    digests: tuple[int, ...] = ()
    pieces: tuple[Piece, ...] = ()
    base: BaseTensor | None = None
    as_itself = (dtype.name, shape) if dtype.in_safetensors else ("U8", (n_bytes,))
    need((stored.dtype, stored.shape) == (as_itself if kind == 0 else ("U8", (n_stored,))), "an ordinary entry is stored as itself, any other as U8")
    if kind == 0:
        need(n_stored == n_bytes, "an ordinary entry has the tensor's bytes")
        digests = tuple(directory.uint(8) for _ in range(-(-n_bytes // dtype.word // most)))
    elif kind in (1, 3, 4):
        if kind == 4:
            need(role == 0, "a delta is a tensor")
            base = BaseTensor(directory.varint(), read_text(directory), directory.uint(8))
            need(base.number < n_bases, "a base is one of those that are named")
        need(1 <= (frame_words := directory.varint()) <= most and frame_words % dtype.block == 0, "a frame has at most 1 MiB, in whole blocks")
        need(n_bytes > 0, "a coded entry has frames")
        pieces = tuple(read_pieces(directory, n_bytes // dtype.word, dtype.word, frame_words, directory.varint() if kind > 1 else None))
    else:
        need(kind == 2 and n_stored == 0, "a kind is 0 to 4, and `same` has no bytes")
        need((same_as := directory.varint()) < len(earlier) and earlier[same_as].kind != 2, "`same` names an earlier entry that has bytes of its own")
        need((earlier[same_as].n_bytes, earlier[same_as].digest) == (n_bytes, digest), "`same` has the size and the digest of the earlier entry")
    return Entry(stored, role, kind, dtype, shape, gap, digest, digests, pieces, same_as, base)


def read_pieces(directory: Cursor, n_words: int, width: int, frame_words: int, group: int | None) -> Iterator[Piece]:
    """The frames of a coded entry, before each group of them its shared part, if there are groups."""
    need(group is None or 1 <= group <= MAX_GROUP, "a group has 1 to 8 frames")
    for number in range(-(-n_words // frame_words)):
        position = number % group if group else 0
        if group and position == 0:
            need((n_bytes := directory.varint()) <= MiB, "a shared part has at most 1 MiB")
            yield Piece(SHARED + number // group, Shape(n_bytes, 1), 0, directory.varint() if n_bytes else 0)
        shape = Shape(min(frame_words, n_words - number * frame_words), width)
        yield Piece(number, shape, position * frame_words, directory.varint())


def concatenated(digests: Iterable[int]) -> bytes:
    return b"".join(digest.to_bytes(8, "little") for digest in digests)


def read_container(data: bytes) -> Container:
    stored, begin = read_envelope(data)
    directory = Cursor(data[begin : stored[0].end])
    need((stored[0].dtype, stored[0].shape) == ("U8", (directory.left,)), "the directory is U8 with one dimension")
    need(directory.uint(8) == xxh3_64_intdigest(data[:begin]), "the header has its digest")
    need(directory.uint(8) == xxh3_64_intdigest(directory.data[16:]), "the directory has its digest")
    if (flags := directory.uint(1)) > 3:
        raise Unsupported(f"directory flags {flags:#x}")
    sha256 = directory.take(32) if flags & 1 else None
    identity, n_bytes = directory.uint(16), directory.varint()
    if (source_format := directory.uint(1)) >= N_FORMATS:
        raise Unsupported(f"source format {source_format}")
    bases = [read_text(directory) for _ in range(directory.varint())] if flags & 2 else []
    need(bool(bases) == bool(flags & 2), "bases are named where the flag says so")
    need(directory.varint() == len(stored) - 1 >= 1, "the directory has all entries, the skeleton at least")
    entries: list[Entry] = []
    for each in stored[1:]:
        entries.append(read_entry(directory, each, entries, len(bases)))
    tail = directory.varint()
    need((begin + len(directory.data)) % 8 == 0 and not any(directory.take(directory.left)), "the directory ends with zero bytes at a multiple of 8")
    need(identity == xxh3_128_intdigest(concatenated(e.digest for e in entries if e.role < 2)), "the identity fits the tensor digests")
    return Container(entries, tail, n_bytes, sha256, bases)


def base_words(entry: Entry, bases: Sequence[Mapping[str, bytes]]) -> Words | None:
    """The base's words, as many as the tensor has."""
    if entry.base is None:
        return None
    need(entry.base.number < len(bases), "the base is there")
    data = bases[entry.base.number].get(entry.base.name, b"")
    need(xxh3_64_intdigest(data) == entry.base.digest and len(data) % entry.dtype.word == 0, "the base is the one that it was")
    n_words = entry.n_bytes // entry.dtype.word
    return (unpack(data, entry.dtype.word) + [0] * n_words)[:n_words]


def read_frames(data: bytes, entry: Entry, base: Words | None) -> Iterator[tuple[bytes, int]]:
    """Each frame's decoded bytes with the digest of the frame as it was written."""
    payload = Cursor(data[entry.stored.begin : entry.stored.end])
    for digest in entry.digests:
        decoded = payload.take(min(payload.left, MiB // entry.dtype.word // entry.dtype.block * entry.dtype.block * entry.dtype.word))
        need(xxh3_64_intdigest(decoded) == digest, "a frame has its digest")
        yield decoded, digest
    shared, at = None, 0
    for number, shape, first, length in entry.pieces:
        if number < SHARED:
            yield read_frame(payload.take(length), number, Frame(shape, first, shared, None if base is None else base[at : at + shape.n], entry, at))
            at += shape.n
        else:
            shared = read_frame(payload.take(length), number, Frame(shape))[0] if shape.n else None
    if entry.pieces:
        need(payload.left < 8 and entry.stored.end % 8 == 0 and not any(payload.take(payload.left)), "frames end with zero bytes up to a multiple of 8")


def decode_entries(data: bytes, container: Container, bases: Sequence[Mapping[str, bytes]] = ()) -> list[bytes]:
    """The bytes of every entry as they stand in the source, given the tensors of the bases in their order."""
    decoded: list[bytes] = []
    for entry in container.entries:
        if entry.kind == 2:
            decoded.append(decoded[entry.same_as])
            continue
        pieces = list(read_frames(data, entry, base_words(entry, bases)))
        need(xxh3_64_intdigest(concatenated(digest for _, digest in pieces)) == entry.digest, "a tensor has its digest")
        decoded.append(b"".join(piece for piece, _ in pieces))
    return decoded


class View(NamedTuple):
    name: str
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    entry: int
    first: int


def read_views(container: Container, decoded: list[bytes]) -> list[View]:
    views: list[View] = []
    if len(container.entries) < 2 or container.entries[1].role != 2:
        return views
    table = Cursor(decoded[1])
    for _ in range(table.varint()):
        try:
            name = table.take(table.varint()).decode()
        except UnicodeDecodeError as error:
            raise Corrupt("a view's name is not UTF-8") from error
        dtype, shape = table.dtype(), table.dimensions()
        view = View(name, dtype, shape, tuple(table.varint() for _ in shape), table.varint(), table.varint())
        need(view.entry < len(decoded) and container.entries[view.entry].role == 0, "a view is one of a tensor")
        need(dtype.elements == 1 and dtype.bits % 8 == 0, "a view's elements are whole bytes")
        dtype.n_bytes(shape)
        last = view.first + sum((size - 1) * stride for size, stride in zip(shape, view.strides, strict=True))
        need(0 in shape or (last + 1) * dtype.bits // 8 <= len(decoded[view.entry]), "a view lies inside its entry")
        views.append(view)
    table.end()
    need(len({view.name for view in views}) == len(views), "no view stands twice")
    return views


def read_losses(container: Container, decoded: list[bytes]) -> dict[int, tuple[float, float]]:
    """Of each lossy tensor, by its entry's index: the largest error, and the mean squared error over the mean square."""
    losses: dict[int, tuple[float, float]] = {}
    for entry, data in zip(container.entries, decoded, strict=True):
        if entry.role == 3:
            table = Cursor(data)
            need((n := table.varint()) > 0, "there are losses")
            for _ in range(n):
                index = table.varint()
                need(max(losses, default=0) < index < len(decoded) and container.entries[index].role == 0, "a loss is of a tensor, in order")
                losses[index] = struct.unpack("<ff", table.take(8))
                need(all(0 <= number < float("inf") for number in losses[index]), "a loss is a number")
            table.end()
    return losses


def gather(data: bytes, size: int, first: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """The elements of a view, row after row."""
    if all(stride == prod(shape[i + 1 :]) for i, stride in enumerate(strides)):
        return data[first * size : (first + prod(shape)) * size]
    return b"".join(gather(data, size, first + i * strides[0], shape[1:], strides[1:]) for i in range(shape[0]))


def restore(data: bytes, *bases: Mapping[str, bytes]) -> bytes:
    """The source file, from a container, and from the tensors of its bases in their order. Everything in it is checked. Raises Corrupt, Unsupported."""
    container = read_container(data)
    decoded = decode_entries(data, container, bases)
    read_views(container, decoded)
    read_losses(container, decoded)
    skeleton, source = Cursor(decoded[0]), bytearray()
    for entry, tensor in zip(container.entries, decoded, strict=True):
        if entry.role == 0:
            source += skeleton.take(entry.gap) + tensor
    source += skeleton.take(container.tail)
    skeleton.end()
    need(len(source) == container.n_bytes, "the source has its size")
    need(container.sha256 in (None, hashlib.sha256(source).digest()), "the source has its SHA-256")
    return bytes(source)


def tensors(data: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype name, shape and bytes of each tensor by its name; where the entries are storages, of each view on them, gathered."""
    container = read_container(data)
    decoded = decode_entries(data, container)
    if views := read_views(container, decoded):
        return {v.name: (v.dtype.name, v.shape, gather(decoded[v.entry], v.dtype.bits // 8, v.first, v.shape, v.strides)) for v in views}
    return {e.stored.name: (e.dtype.name, e.shape, raw) for e, raw in zip(container.entries, decoded, strict=True) if e.role == 0}


if __name__ == "__main__":
    source_path, target_path = sys.argv[1:]
    Path(target_path).write_bytes(restore(Path(source_path).read_bytes()))
