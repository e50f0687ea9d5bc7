"""class_rans (10): like rans, with the table chosen by the scales of the word's row and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from modelcodec.errors import CorruptFile
from modelcodec.kernels import class_rans as kernels
from modelcodec.kernels.class_rans import MOST_CLASSES, SCALES, SUMS
from modelcodec.kernels.frequencies import Table, read_tables, write_table
from modelcodec.stage import Encoded, FrameContext, Layout, Shared, Stage
from modelcodec.stages.rans import MOST_LANES_LOG2, lanes_for
from modelcodec.types import Array
from modelcodec.wire import Reader, byte_string, varint

LEAST_BITS = 8
TABLE_WIDTH = 2
"""Tables are written for words of 2 bytes, whatever the width of the node."""


@dataclass(frozen=True)
class ScaleClasses:
    """A group's shared part: scales of rows and columns (u1, below 64), thresholds of their sum (u1), and a table for each class, all of the same bits."""

    row_scales: Array
    column_scales: Array
    thresholds: Array
    tables: Sequence[Table]

    @property
    def bits(self) -> int:
        return self.tables[0].bits

    @cached_property
    def coder(self) -> kernels.Classes:
        """What the kernels take."""
        class_of = np.searchsorted(self.thresholds, np.arange(SUMS), side="right").astype(np.uint8)
        return kernels.Classes(self.row_scales, self.column_scales, class_of, self.tables)

    def write(self) -> bytes:
        head = varint(self.column_scales.size) + varint(self.row_scales.size) + self.row_scales.tobytes() + self.column_scales.tobytes()
        tables = b"".join(byte_string(write_table(table, TABLE_WIDTH)) for table in self.tables)
        return head + bytes([len(self.tables) - 1]) + self.thresholds.tobytes() + bytes([self.bits]) + tables

    @classmethod
    def of(cls, shared: Shared | None) -> ScaleClasses:
        """The classes of a group, parsed once. Raises CorruptFile."""
        if shared is None:
            raise CorruptFile("class_rans: the frame has no shared part")
        return shared.parsed_as(ScaleClasses, cls.read)

    @classmethod
    def read(cls, data: bytes) -> ScaleClasses:
        """Check an untrusted shared part. Raises CorruptFile."""
        reader = Reader(data, "class_rans: shared part")
        n_columns, n_rows = reader.varint(len(data)), reader.varint(len(data))
        rows, columns = _scales(reader, n_rows), _scales(reader, n_columns)
        n_classes = reader.u8() + 1
        thresholds = np.frombuffer(bytearray(reader.take(n_classes - 1)), np.uint8)
        bits = reader.u8()
        ascending = bool((thresholds[1:] >= thresholds[:-1]).all())
        if n_classes > MOST_CLASSES or not LEAST_BITS <= bits <= kernels.MOST_BITS or (thresholds > SUMS).any() or not ascending:
            raise reader.corrupt("classes, thresholds or bits are out of range")
        tables = read_tables(reader.take(reader.remaining), n_classes, bits, TABLE_WIDTH, kernels.ESCAPE - 1)
        if tables is None:
            raise reader.corrupt("a frequency table breaks its rules")
        return cls(rows, columns, thresholds, tables)


def _scales(reader: Reader, n: int) -> Array:
    scales = np.frombuffer(bytearray(reader.take(n)), np.uint8)
    if n == 0 or (scales >= SCALES).any():
        raise reader.corrupt("scales are missing or out of range")
    return scales


@dataclass(frozen=True, slots=True)
class Stream:
    """A header, checked."""

    lanes_log2: int
    groups: int
    units_a: int
    units_b: int
    n_escapes: int

    def n_payload(self, width: int) -> int:
        return 2 * (self.units_a + self.units_b) + (4 * self.groups << self.lanes_log2) + width * self.n_escapes

    def write(self) -> bytes:
        units = varint(self.units_a) + (varint(self.units_b) if self.groups == 2 else b"")
        return bytes([self.lanes_log2 | (self.groups - 1) << 4]) + units + varint(self.n_escapes)

    @classmethod
    def read(cls, header: bytes, n: int) -> Stream:
        reader = Reader(header, "class_rans")
        lanes = reader.u8()
        groups, lanes_log2 = 1 + (lanes >> 4), lanes & 15
        if lanes_log2 > MOST_LANES_LOG2 or groups > 2 or (groups == 2 and lanes_log2 != MOST_LANES_LOG2):
            raise CorruptFile(f"class_rans: lanes {lanes:#x} are not possible")
        units_a = reader.varint(n)
        units_b = reader.varint(n) if groups == 2 else 0
        n_escapes = reader.varint(n)
        reader.end()
        return cls(lanes_log2, groups, units_a, units_b, n_escapes)


@dataclass(frozen=True)
class ClassRans(Stage):
    """Weights whose scale is known need fewer bits: in a trained matrix rows and columns have scales of their own. Applies in groups whose shared part has
    classes.

    exact · words of 1 or 2 bytes · no parts.
    """

    id: ClassVar[int] = 10
    name: ClassVar[str] = "class_rans"
    since: ClassVar[tuple[int, int]] = (0, 2)

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        if x.itemsize > 2 or x.size == 0 or x.size != context.n or context.shared is None:
            return None
        classes = ScaleClasses.of(context.shared).coder
        if not classes.has_escapes or not classes.holds(context.first, x.size):
            return None
        lanes_log2, groups = lanes_for(x.size)
        payload = np.empty(kernels.pack_bound(x.size, x.itemsize, lanes_log2, groups), np.uint8)
        packed = kernels.pack(x, lanes_log2, groups, classes, context.first, payload)
        stream = Stream(lanes_log2, groups, packed.units_a, packed.units_b, packed.n_escapes)
        return Encoded(stream.write(), payload=payload[: packed.n_bytes])

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if width > 2:
            raise CorruptFile(f"class_rans: words of {width} bytes are not possible")
        return Layout((), Stream.read(header, n).n_payload(width))

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        stream = Stream.read(header, out.size)
        classes, first = place_of(context, out.size)
        status = kernels.unpack(payload, stream.lanes_log2, stream.groups, stream.units_a, stream.units_b, stream.n_escapes, classes, first, out)
        if status:
            raise CorruptFile(f"class_rans: {status.fact}")


def place_of(context: FrameContext | None, n: int) -> tuple[kernels.Classes, int]:
    """The classes of a frame of n words, and its first word in the group. Raises CorruptFile."""
    if context is None or context.n != n:
        raise CorruptFile("class_rans: stands where a word's row and column are not known")
    classes = ScaleClasses.of(context.shared).coder
    if not classes.holds(context.first, n):
        raise CorruptFile("class_rans: the shared part has fewer rows than the frames")
    return classes, context.first
