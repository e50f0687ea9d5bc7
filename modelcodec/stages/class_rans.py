"""class_rans (10): like rans, with the table chosen by the scales of the word's row and column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from modelcodec.errors import CorruptFile
from modelcodec.kernels import class_rans as kernels
from modelcodec.kernels.frequencies import Status, Table, read_table, write_table
from modelcodec.kernels.scale_classes import MOST_CLASSES, SCALES, SUMS, map_classes
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
    tables: tuple[Table, ...]

    @property
    def bits(self) -> int:
        return self.tables[0].bits

    @cached_property
    def class_of(self) -> Array:
        """Class of each sum of scales (u1)."""
        return np.searchsorted(self.thresholds, np.arange(SUMS), side="right").astype(np.uint8)

    @cached_property
    def decoding_entries(self) -> Array:
        return kernels.decoding_entries(self.tables)

    @cached_property
    def coding_entries(self) -> Array:
        return kernels.coding_entries(self.tables)

    def classes(self, context: FrameContext) -> Array:
        """Class of each word of a frame (u1). Raises CorruptFile where the scales have too few rows."""
        out = np.empty(context.n, np.uint8)
        if not map_classes(self.row_scales, self.column_scales, self.class_of, context.first, out):
            raise CorruptFile("class_rans: the shared part has fewer rows than the frames")
        return out

    def write(self) -> bytes:
        head = varint(self.column_scales.size) + varint(self.row_scales.size) + self.row_scales.tobytes() + self.column_scales.tobytes()
        tables = b"".join(byte_string(write_table(table, TABLE_WIDTH)) for table in self.tables)
        return head + bytes([len(self.tables) - 1]) + self.thresholds.tobytes() + bytes([self.bits]) + tables

    @classmethod
    def of(cls, shared: Shared | None) -> ScaleClasses:
        """The classes of a group, parsed once. Raises CorruptFile."""
        if shared is None:
            raise CorruptFile("class_rans: the frame has no shared part")
        if not isinstance(shared.parsed, ScaleClasses):
            shared.parsed = cls.read(shared.data)
        return shared.parsed

    @classmethod
    def read(cls, data: bytes) -> ScaleClasses:
        """Check an untrusted shared part. Raises CorruptFile."""
        reader = Reader(data, "class_rans: shared part")
        n_columns, n_rows = reader.varint(len(data)), reader.varint(len(data))
        rows, columns = _scales(reader, n_rows), _scales(reader, n_columns)
        n_classes = reader.u8() + 1
        thresholds = np.frombuffer(bytearray(reader.take(n_classes - 1)), np.uint8)
        bits = reader.u8()
        if n_classes > MOST_CLASSES or not LEAST_BITS <= bits <= kernels.BITS or (thresholds >= SUMS + 1).any() or (np.diff(thresholds.astype(int)) < 0).any():
            raise reader.corrupt("classes, thresholds or bits are out of range")
        tables = []
        for _ in range(n_classes):
            table = read_table(bytes(reader.byte_string(len(data))), bits, TABLE_WIDTH)
            if table is None or table.symbols[-1] >= kernels.ESCAPE:
                raise reader.corrupt("a frequency table breaks its rules")
            tables.append(table)
        reader.end()
        return cls(rows, columns, thresholds, tuple(tables))


def _scales(reader: Reader, n: int) -> Array:
    scales = np.frombuffer(bytearray(reader.take(n)), np.uint8)
    if n == 0 or (scales >= SCALES).any():
        raise reader.corrupt("scales are missing or out of range")
    return scales


@dataclass(frozen=True, slots=True)
class _Stream:
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
    def read(cls, header: bytes, n: int) -> _Stream:
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
        shared = ScaleClasses.of(context.shared)
        classes, entries = shared.classes(context), shared.coding_entries
        lanes_log2, groups = lanes_for(x.size)
        units, states = np.empty(x.size, np.uint16), np.empty((2, 64), np.uint32)
        a, b = kernels.pack(x, classes, entries, shared.bits, lanes_log2, groups, units, states)
        n_a = x.size if groups == 1 else 64 * ((x.size + 127) // 128)
        escaped = np.empty_like(x)
        n_escapes = kernels.find_escapes(x, classes, entries, escaped)
        stream = _Stream(lanes_log2, groups, n_a - a, x.size - b if groups == 2 else 0, n_escapes)
        own_states = states.reshape(-1)[: groups << lanes_log2] if lanes_log2 == MOST_LANES_LOG2 else states[0, : 1 << lanes_log2]
        payload = units[a:n_a].tobytes() + (units[b:].tobytes() if groups == 2 else b"") + own_states.tobytes() + escaped[:n_escapes].tobytes()
        return Encoded(stream.write(), payload=payload)

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if width > 2:
            raise CorruptFile(f"class_rans: words of {width} bytes are not possible")
        return Layout((), _Stream.read(header, n).n_payload(width))

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        if context is None or context.n != out.size:
            raise CorruptFile("class_rans: stands where a word's row and column are not known")
        shared, stream = ScaleClasses.of(context.shared), _Stream.read(header, out.size)
        symbols = out if out.itemsize == 2 else np.empty(out.size, np.uint16)
        status = kernels.unpack(
            payload, stream.units_a, stream.units_b, stream.n_escapes, out.itemsize, stream.lanes_log2, stream.groups,
            shared.classes(context), shared.decoding_entries, shared.bits, 1 << (8 * out.itemsize), np.empty((2, 64), np.uint32), symbols,
        )  # fmt: skip
        if status:
            raise CorruptFile(f"class_rans: {Status(status).fact}")
        if symbols is not out:
            if int(symbols.max()) > 255:
                raise CorruptFile("class_rans: a symbol is out of range")
            out[:] = symbols
