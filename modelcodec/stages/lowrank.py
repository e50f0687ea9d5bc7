"""lowrank (14): the product of a tall and a wide matrix of integers."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from modelcodec.errors import CorruptFile
from modelcodec.kernels.casts import FLOATS, rounded
from modelcodec.limits import LIMITS
from modelcodec.stage import Encoded, FrameContext, Layout, PartShape, Shared, Stage
from modelcodec.stages import exceptions
from modelcodec.stages.integers import folded, octets, read_octets, unfolded
from modelcodec.types import Array, TensorSpec
from modelcodec.wire import Reader, varint

MOST_RANK = 1024
MOST_SHIFT = 15
MOST_FACTOR = (1 << 15) - 1
"""Largest magnitude of a factor's integers."""
_EXACT = 1 << 53
"""Sums of integers below this are exact in float64, whatever their order."""
_SHARED, _WIDE, _WIDE_RIGHT, _MASKED = 1, 2, 4, 8


@dataclass(frozen=True, eq=False, slots=True)
class Factors:
    """Rows of a matrix from row `first` on: scale * sum over k of left[i, k] * right[k, j] * 2^shifts[k]; all integers (i4), the scale a float32."""

    first: int
    left: Array
    right: Array
    shifts: Array
    scale: float

    def product(self) -> Array:
        """The rows as float32. Raises CorruptFile where a sum may be too large to be exact."""
        return product(self.left, self.right, self.shifts, self.scale)


def product(left: Array, right: Array, shifts: Array, scale: float) -> Array:
    """The rows (f4) of checked or untrusted integer factors: exact sums, one multiplication in float64, one rounding. Raises CorruptFile."""
    bounds = np.abs(left).max(axis=0, initial=0).astype(np.int64) * np.abs(right).max(axis=1, initial=0) << shifts
    if sum(map(int, bounds)) >= _EXACT:
        raise CorruptFile("lowrank: the factors' product is not exact")
    with np.errstate(over="ignore"):
        sums = np.ldexp(left.astype(np.float64), shifts) @ right.astype(np.float64) + 0.0  # a library may give -0.0 for an empty sum
        rows: Array = (sums * float(np.float32(scale))).astype(np.float32)
    return rows


@dataclass(frozen=True, eq=False, slots=True)
class Right:
    """The wide factor and its shifts, which the frames of a group share."""

    right: Array
    shifts: Array

    def write(self) -> bytes:
        numbers, (rank, columns) = folded(self.right), self.right.shape
        return varint(rank) + varint(columns) + bytes([numbers.itemsize]) + self.shifts.astype(np.uint8).tobytes() + octets(numbers)

    @classmethod
    def of(cls, shared: Shared | None) -> Right:
        """That of a group, parsed once. Raises CorruptFile."""
        if shared is None:
            raise CorruptFile("lowrank: the frame has no shared part")
        return shared.parsed_as(Right, cls.read)

    @classmethod
    def read(cls, data: bytes) -> Right:
        """Check an untrusted shared part. Raises CorruptFile."""
        reader = Reader(data, "lowrank: shared part")
        rank, columns, width = _read_rank(reader), reader.varint(len(data)), reader.u8()
        if not columns or width not in (1, 2):
            raise reader.corrupt("columns or width are out of range")
        shifts = _read_shifts(reader, rank)
        right = read_octets(reader, rank * columns, width)
        reader.end()
        return cls(right.reshape(rank, columns), shifts)


def _read_rank(reader: Reader) -> int:
    rank = reader.varint(MOST_RANK)
    if not rank:
        raise reader.corrupt("the rank is zero")
    return rank


def _read_shifts(reader: Reader, rank: int) -> Array:
    shifts = np.frombuffer(reader.take(rank), np.uint8).astype(np.int64)
    if (shifts > MOST_SHIFT).any():
        raise reader.corrupt("a shift is too large")
    return shifts


@dataclass(frozen=True, slots=True)
class Header:
    """A header, checked: the frame's rows, the factors' rank, bytes of a word of the left one, the scale, whether there is a mask; where the right factor is
    not shared, its `columns`, bytes of a word and `shifts`."""

    rows: int
    rank: int
    width: int
    scale: float
    masked: bool
    n_exceptions: int
    columns: int = 0
    width_right: int = 1
    shifts: tuple[int, ...] = ()

    def write(self) -> bytes:
        flags = _SHARED * (not self.columns) | _WIDE * (self.width == 2) | _WIDE_RIGHT * (self.width_right == 2) | _MASKED * self.masked
        own = varint(self.columns) + bytes(self.shifts) if self.columns else b""
        return bytes([flags]) + struct.pack("<f", self.scale) + varint(self.rows) + varint(self.rank) + own + varint(self.n_exceptions)

    @classmethod
    def read(cls, header: bytes, n: int) -> Header:
        """Check an untrusted header of n words. Raises CorruptFile."""
        reader = Reader(header, "lowrank")
        flags = reader.u8()
        if flags > 15 or flags & (_SHARED | _WIDE_RIGHT) == _SHARED | _WIDE_RIGHT:
            raise CorruptFile(f"lowrank: flags {flags:#x} are not possible")
        (scale,) = struct.unpack("<f", reader.take(4))
        rows, rank = reader.varint(n), _read_rank(reader)
        columns, shifts = 0, np.empty(0, np.int64)
        if not flags & _SHARED:
            columns, shifts = reader.varint(n), _read_shifts(reader, rank)
        if not 0 < scale < math.inf or (not columns and not flags & _SHARED):
            raise CorruptFile("lowrank: the scale is no positive number, or there are no columns")
        n_exceptions = reader.varint(n)
        reader.end()
        widths = 2 if flags & _WIDE else 1, 2 if flags & _WIDE_RIGHT else 1
        return cls(rows, rank, widths[0], scale, bool(flags & _MASKED), n_exceptions, columns, widths[1], tuple(map(int, shifts)))


@dataclass(frozen=True)
class Lowrank(Stage):
    """The words of a fit: `blocks` of rows of the tensor, each with its own factors. Zeros that the product does not give are masked where there are many;
    other words that do not come out of it are kept as exceptions.

    exact · words of F32, BF16, F16 that are the tensor's own · parts: left, right, mask.
    """

    blocks: tuple[Factors, ...] = ()

    id: ClassVar[int] = 14
    name: ClassVar[str] = "lowrank"
    fitted: ClassVar[bool] = True
    since: ClassVar[tuple[int, int]] = (0, 3)
    loose: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("left", "right", "mask")
    shares: ClassVar[bool] = True

    def options(self) -> dict[str, str]:
        return {}

    def _block(self, spec: TensorSpec, at: int, n: int) -> Factors | None:
        """The block that words from `at` on are in; None where there is none for all of them."""
        first, last = at // spec.row_words, (at + n - 1) // spec.row_words
        for block in self.blocks:
            if block.first <= first and last < block.first + len(block.left) and block.right.shape[1] == spec.row_words:
                return block
        return None

    def prepare(self, spec: TensorSpec, x: Array, at: int) -> Shared | None:
        """The right factor of a group of several frames."""
        block = self._block(spec, at, x.size) if x.nbytes > LIMITS.frame_bytes else None
        if block is None:
            return None
        right = Right(block.right, block.shifts)
        data = right.write()
        return Shared(data, right) if len(data) <= LIMITS.frame_bytes else None

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        spec = context.spec
        if spec.dtype.name not in FLOATS or x.size != context.n or not x.size or x.itemsize != spec.dtype.word:
            return None
        block = self._block(spec, context.at, x.size)
        if block is None:
            return None
        first = context.at // spec.row_words
        n_rows = (context.at + x.size - 1) // spec.row_words + 1 - first
        left = block.left[first - block.first :][:n_rows]
        skipped = context.at % spec.row_words
        found = rounded(product(left, block.right, block.shifts, block.scale).reshape(-1)[skipped : skipped + x.size], spec.dtype.name)
        mask, differs = exceptions.mask(x, found)
        own = context.shared is None or not isinstance(context.shared.parsed, Right) or context.shared.parsed.right is not block.right
        left_part, right_part = folded(left), folded(block.right if own else block.right[:0])
        header = Header(n_rows, left.shape[1], left_part.itemsize, block.scale, mask is not None, int(np.count_nonzero(differs)))
        if own:
            header = replace(header, columns=spec.row_words, width_right=right_part.itemsize, shifts=tuple(map(int, block.shifts)))
        parts = (left_part, right_part) if mask is None else (left_part, right_part, mask)
        return Encoded(header.write(), parts, exceptions.write(x, differs))

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if width not in (2, 4):
            raise CorruptFile(f"lowrank: words of {width} bytes are not possible")
        read = Header.read(header, n)
        parts = (PartShape(read.width, read.rows * read.rank), PartShape(read.width_right, read.rank * read.columns))
        return Layout((*parts, PartShape(1, (n + 7) // 8)) if read.masked else parts, read.n_exceptions * (exceptions.PLACE_BYTES + width))

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        read = Header.read(header, out.size)
        if context is None or context.n != out.size or context.spec.dtype.name not in FLOATS or context.spec.dtype.word != out.itemsize:
            raise CorruptFile("lowrank: stands where it is not a frame's root or the dtype is none that it knows")
        own = Right(unfolded(parts[1]).reshape(read.rank, read.columns), np.array(read.shifts)) if read.columns else None
        factor = own or Right.of(context.shared)
        rank, columns = factor.right.shape
        skipped = context.at % columns
        if rank != read.rank or columns != context.spec.row_words or rank > columns or read.rows != (skipped + out.size - 1) // columns + 1:
            raise CorruptFile("lowrank: rows, columns and rank do not fit the tensor")
        rows = product(unfolded(parts[0]).reshape(read.rows, rank), factor.right, factor.shifts, read.scale)
        out[:] = rounded(rows.reshape(-1)[skipped : skipped + out.size], context.spec.dtype.name)
        if read.masked:
            exceptions.put_zeros(parts[2], out, "lowrank")
        exceptions.put(payload, read.n_exceptions, out, "lowrank")
