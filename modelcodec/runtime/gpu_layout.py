"""Frames laid out for the GPU's kernel: parsed and checked on the CPU, their parts aligned in one piece of memory, a task for each group.

The kernel knows split_float over rans or class_rans with 64 lanes, rest and low part raw: what the encoder makes of large tensors of bf16, f16 and f32. Any
other frame is decoded here, its digest checked, and laid out as words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from modelcodec import frame as frames
from modelcodec.errors import CorruptFile
from modelcodec.kernels.class_rans import Classes
from modelcodec.kernels.frequencies import Status, Table
from modelcodec.kernels.planes import unpack_planes
from modelcodec.kernels.triton.task import ESCAPE, LANES, RANKS, Task
from modelcodec.runtime.xxh3 import LEAST_BYTES
from modelcodec.stage import FrameContext
from modelcodec.stages import class_rans, rans
from modelcodec.stages.class_rans import ClassRans, place_of
from modelcodec.stages.rans import Rans
from modelcodec.stages.raw import Raw
from modelcodec.stages.split_float import SplitFloat
from modelcodec.types import Array

WIDTHS = (2, 4)
"""Bytes of the words that the kernel decodes."""
ALIGNMENT = 16
"""Of a part in bytes, and of a frame's place in the output in words: the widest store of a thread."""


@dataclass(frozen=True, slots=True)
class FramePlace:
    """An untrusted frame: its number in its tensor, the `n` words from word `at` of the output on that it stands for, `where` for messages.

    `context` for frames with a shared part.
    """

    data: bytes | memoryview
    number: int
    at: int
    n: int
    where: str
    context: FrameContext | None = None


@dataclass(frozen=True, slots=True)
class Copy:
    """A frame, the `number`-th that was added, that is laid out as words: n of them, from byte `start` on, to word `at` of the output."""

    number: int
    at: int
    n: int
    start: int


@dataclass(frozen=True, slots=True)
class Coded:
    """A frame, the `number`-th that was added, that the kernel decodes: what must come out of it."""

    number: int
    where: str
    at: int
    n: int
    n_escapes: int
    digest: int


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a frame that the kernel can decode; `symbols` is the payload of rans or class_rans."""

    stream: rans.Stream | class_rans.Stream
    low_bits: int
    symbols: Array
    rest: Array
    low: Array | None

    @property
    def n_coded(self) -> int:
        """Bytes of units and states, which escaped words follow."""
        return 2 * (self.stream.units_a + self.stream.units_b) + 4 * LANES * self.stream.groups


@dataclass(frozen=True, slots=True)
class Tables:
    """The fields of a task that tell of a frame's tables, and, where each class has one, of its classes."""

    entries: int
    values: int
    bits: int
    of_classes: bool = False
    at: int = 0
    columns: int = 1
    row_scales: int = 0
    column_scales: int = 0
    class_of: int = 0


class GpuLayout:
    """Builds the bytes, tasks and copies for frames of words of `width` bytes, one frame after the other."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.coded: list[Coded] = []
        self.copies: list[Copy] = []
        self.tasks: dict[bool, list[tuple[int, Task]]] = {False: [], True: []}
        """By whether there are classes: the number of the frame, and the task."""
        self.sizes: list[int] = []
        """Words of each frame."""
        self.digests: list[int] = []
        """Of each frame, decoded; those of coded ones are what their heads say."""
        self.n_positions = 0
        self.end = 0
        self._parts: list[tuple[int, Array]] = []
        self._size = 0
        self._class_tables: dict[int, tuple[Classes, Tables]] = {}
        """By the id of classes, which are kept so that no others get it."""

    def add(self, place: FramePlace) -> None:
        """Check a frame and lay it out. Raises CorruptFile, LimitExceeded, UnsupportedFile."""
        data, number = memoryview(place.data), len(self.sizes)
        head = frames.read_head(data, place.number, self.width, place.n, place.where)
        self.sizes.append(place.n)
        self.digests.append(head.digest)
        self.end = max(self.end, place.at + place.n)
        parts = _parts_of(head, data) if self.width * place.n >= LEAST_BYTES else None
        if parts is None:
            words = np.empty(place.n, frames.WORD[self.width])
            frames.decode(data, place.number, words, place.where, place.context)
            self.copies.append(Copy(number, place.at, place.n, self._put(words)))
            return
        try:
            n_escapes = self._add_tasks(number, place, parts)
        except CorruptFile as error:
            raise CorruptFile(f"{place.where}: {error}; the file is damaged, fetch it again") from None
        self.coded.append(Coded(number, place.where, place.at, place.n, n_escapes, head.digest))

    @property
    def n_bytes(self) -> int:
        """Bytes of all parts with what lies between them."""
        return max(self._size, ALIGNMENT)

    def write(self, out: Array) -> None:
        """Put all parts into their places in `out` (u1, n_bytes of any contents); between them are zeros."""
        end = 0
        for start, part in self._parts:
            out[end:start] = 0
            end = start + part.nbytes
            out[start:end] = part.view(np.uint8)
        out[end:] = 0

    def _put(self, part: Array) -> int:
        start = self._size
        self._parts.append((start, part))
        self._size += part.nbytes + -part.nbytes % ALIGNMENT
        return start

    def _add_tasks(self, number: int, place: FramePlace, parts: Parts) -> int:
        """Lay the parts out, a task for each group. Returns the number of escaped words."""
        stream, n = parts.stream, place.n
        tables = self._tables(parts, place)
        planes = self._planes(parts, n)
        low = 0 if parts.low is None else self._put(parts.low) // 2
        escaped = parts.symbols[parts.n_coded :].view(f"<u{1 if parts.low_bits >= 7 else 2}").astype("<u2")
        if (escaped >> np.uint16(15 - parts.low_bits)).any():
            raise CorruptFile(f"rans: {Status.SYMBOL.fact}")
        escaped_at = self._put(escaped) // 2
        split = n if stream.groups == 1 else min(n, LANES * ((-(-n // LANES) + 1) // 2))
        groups = ((stream.units_a, 0, split), (stream.units_b, split, n))[: stream.groups]
        unit_at, state_at = 0, 2 * (stream.units_a + stream.units_b)
        for second, (n_units, first, end) in enumerate(groups):
            units = self._put(parts.symbols[unit_at : unit_at + 2 * n_units]) // 4
            states = self._put(parts.symbols[state_at : state_at + 4 * LANES]) // 4
            task = Task(
                units, n_units, states, tables.entries, tables.values, tables.bits, parts.low_bits, *planes, low, escaped_at + second * escaped.size,
                escaped.size, second, self.n_positions, place.at, n, first, end,
                tables.at, tables.columns, tables.row_scales, tables.column_scales, tables.class_of,
            )  # fmt: skip
            self.tasks[tables.of_classes].append((number, task))
            self.n_positions += escaped.size
            unit_at, state_at = unit_at + 2 * n_units, state_at + 4 * LANES
        return escaped.size

    def _planes(self, parts: Parts, n: int) -> tuple[int, int, int, int]:
        """Places of the planes of 8, 4, 2 and 1 bits."""
        places, ends, at = [], [], 0
        tail = -(-(n % LANES) // 8)
        for bits in (8, 4, 2, 1):
            size = -(-n // 8) * bits if parts.low_bits + 1 & bits else 0
            places.append(self._put(parts.rest[at : at + size]) if size else 0)
            at += size
            ends.append(parts.rest[at - tail * bits : at] if size else parts.rest[:0])
        if tail and unpack_planes(np.concatenate(ends), parts.low_bits + 1, np.empty(n % LANES, np.uint16)):
            raise CorruptFile(f"split_float: {Status.PADDING.fact}")
        return places[0], places[1], places[2], places[3]

    def _tables(self, parts: Parts, place: FramePlace) -> Tables:
        if isinstance(parts.stream, rans.Stream):
            table = parts.stream.table
            if table.symbols[-1] >> (15 - parts.low_bits):
                raise CorruptFile(f"rans: {Status.TABLE.fact}")
            return Tables(self._put(_entries(table)) // 4, self._put(_values(table)) // 2, table.bits)
        classes, first = place_of(place.context, place.n)
        if id(classes) not in self._class_tables:
            scales = (self._put(part) for part in (classes.row_scales, classes.column_scales, classes.class_of))
            entries, values = (self._put(np.concatenate([of(table) for table in classes.tables])) for of in (_entries, _values))
            laid_out = Tables(entries // 4, values // 2, classes.bits, True, 0, classes.column_scales.size, *scales)
            self._class_tables[id(classes)] = classes, laid_out
        return replace(self._class_tables[id(classes)][1], at=first)


def is_known(data: memoryview, number: int, width: int, n: int, where: str) -> bool:
    """Whether the kernel decodes such a frame. Raises what `frame.read_head` raises."""
    return _parts_of(frames.read_head(data, number, width, n, where), data) is not None


def _parts_of(head: frames.Head, data: memoryview) -> Parts | None:
    """The parts of a frame that the kernel knows, else None."""
    root = head.root
    if root.stage is not SplitFloat or root.width > 4:
        return None
    symbols, *others = root.children
    if symbols.stage not in (Rans, ClassRans) or any(other.stage is not Raw for other in others):
        return None
    stream = rans.Stream.read(symbols.header, symbols.width, symbols.n) if symbols.stage is Rans else class_rans.Stream.read(symbols.header, symbols.n)
    if 1 << stream.lanes_log2 != LANES:
        return None
    payload = frames.as_bytes(data)[head.start :]
    coded, rest, *low = (payload[node.start : node.start + node.layout.n_payload] for node in root.children)
    return Parts(stream, root.header[0], coded, rest, low[0] if low else None)


def _entries(table: Table) -> Array:
    """A table by slot, as the kernel reads it (u4)."""
    frequencies = table.frequencies.astype(np.uint32)
    if table.escape:
        frequencies = np.append(frequencies, np.uint32(table.escape))
    ranks = np.repeat(np.arange(frequencies.size, dtype=np.uint32), frequencies)
    distances = np.arange(ranks.size, dtype=np.uint32) - (np.cumsum(frequencies, dtype=np.uint32) - frequencies)[ranks]
    entries: Array = frequencies[ranks] | distances << np.uint32(12) | ranks << np.uint32(24)
    return entries


def _values(table: Table) -> Array:
    """A table by rank (u2)."""
    values = np.zeros(RANKS, np.uint16)
    values[: table.symbols.size] = table.symbols
    if table.escape:
        values[table.symbols.size] = ESCAPE
    return values
