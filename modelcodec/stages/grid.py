"""grid (11): places on a uniform grid, reached along a trellis."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelcodec.errors import CorruptFile
from modelcodec.kernels import context_coder
from modelcodec.kernels import trellis as kernels
from modelcodec.kernels.casts import rounded
from modelcodec.kernels.context_coder import Geometry
from modelcodec.kernels.logistic import EXP2
from modelcodec.kernels.trellis import CODES, MOST_INDEX, Code
from modelcodec.stage import Encoded, FrameContext, Layout, PartShape, Stage
from modelcodec.stages import exceptions
from modelcodec.stages.integers import folded, unfolded
from modelcodec.types import Array
from modelcodec.wire import Reader, varint

DTYPES = ("F32", "BF16", "F16")
NO_SHIFTS = (0, 0, 0, 0)

_STATES, _MODELLED, _SHIFTED, _WIDE, _ROWS = 0x0F, 0x10, 0x20, 0x40, 0x80
_MOST_MEAN = 224
"""The first mean magnitude is 2^(m / 8) in 1/256 steps; m is at most that."""
FACTORS = np.array([int(EXP2[32 * (e & 7)]) * 2.0 ** ((e >> 3) - 16) for e in range(256)], np.float32)
"""Steps of rows: 2^(e / 8), exact multiples of 2^-16."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows that a frame goes through, from `column` of the first on: their steps are 2^(exponent / 8) times the path's."""

    exponents: Array
    columns: int
    column: int

    @classmethod
    def count(cls, columns: int, at: int, n: int) -> int:
        """Rows of n words from word `at` on."""
        return -(-(at % columns + n) // columns)


@dataclass(frozen=True, slots=True)
class Path:
    """What a frame's indices need beside themselves: the trellis and where it starts, the step (of 1/256), how far the places 1 and beyond are shifted."""

    code: Code
    state: int
    step: float
    shifts: tuple[int, int, int, int]

    def restore(self, indices: Array, dtype: str, rows: Rows | None = None) -> Array:
        """Words of indices (i4) as bit patterns of a dtype."""
        values, step = np.empty(indices.size, np.float32), np.float32(self.step)
        with np.errstate(over="ignore"):
            steps = np.full(1, step) if rows is None else step * FACTORS[rows.exponents]
        columns, column = (indices.size + 1, 0) if rows is None else (rows.columns, rows.column)
        kernels.restore(indices, self.code.h0, self.code.h1, self.state, np.array(self.shifts, np.int64), steps, columns, column, values)
        return rounded(values, dtype)

    def look_up(self, folded: Array, dtype: str, out: Array) -> None:
        """Fill `out` with the words of folded indices (u1)."""
        values = np.empty(512, np.float32)
        kernels.tabulate(np.array(self.shifts, np.int64), np.float32(self.step), values)
        kernels.look_up(folded, rounded(values, dtype), self.code.h0, self.code.h1, self.state, out)


@dataclass(frozen=True, slots=True)
class Header:
    """A header, checked. `n_coded` bytes of context-coded indices, or None where they are a part of `width` bytes each."""

    path: Path
    n_coded: int | None
    first_mean: int
    width: int
    n_exceptions: int
    n_rows: int = 0

    def write(self) -> bytes:
        path = self.path
        modelled = self.n_coded is not None
        flags = path.code.states.bit_length() - 1 | _MODELLED * modelled | _SHIFTED * (path.shifts != NO_SHIFTS) | _WIDE * (self.width == 2 and not modelled)
        flags |= _ROWS * (self.n_rows > 0)
        fields = [bytes([flags, path.state]), struct.pack("<f", path.step)]
        if path.shifts != NO_SHIFTS:
            fields.append(struct.pack("4b", *path.shifts))
        if self.n_coded is not None:
            fields += [bytes([self.first_mean]), varint(self.n_coded)]
        return b"".join((*fields, varint(self.n_exceptions), varint(self.n_rows) if self.n_rows else b""))

    @classmethod
    def read(cls, header: bytes, n: int) -> Header:
        """Check an untrusted header of n words. Raises CorruptFile."""
        reader = Reader(header, "grid")
        flags, state = reader.u8(), reader.u8()
        code = CODES.get(1 << (flags & _STATES))
        if code is None or state >= code.states or flags & (_MODELLED | _WIDE) == _MODELLED | _WIDE:
            raise CorruptFile(f"grid: flags {flags:#x} with state {state} are not possible")
        (step,) = struct.unpack("<f", reader.take(4))
        if not 0 < step < math.inf:
            raise CorruptFile("grid: the step is no positive number")
        shifts = struct.unpack("4b", reader.take(4)) if flags & _SHIFTED else NO_SHIFTS
        n_coded, first_mean = None, 0
        if flags & _MODELLED:
            first_mean, n_coded = reader.u8(), reader.varint(1 << 32)
            if first_mean > _MOST_MEAN:
                raise CorruptFile(f"grid: a first mean of {first_mean}, {_MOST_MEAN} at most is possible")
        n_exceptions = reader.varint(n)
        n_rows = reader.varint(n) if flags & _ROWS else 0
        if flags & _ROWS and not n_rows:
            raise CorruptFile("grid: rows are missing")
        reader.end()
        return cls(Path(code, state, step, shifts), n_coded, first_mean, 2 if flags & _WIDE else 1, n_exceptions, n_rows)


@dataclass(frozen=True, eq=False)
class Grid(Stage):
    """The words of a fit: `indices` (i4) of all words of the tensor along one path from state 0, its `states`, the `step` (float32, 1/256 of the grid's),
    `shifts` towards zero of magnitude 1 and of larger ones, for each union. Words that do not come out of them are kept as exceptions.

    `rows` (u1): e where a row's step is 2^(e / 8) times `step`. `modelled`: the context coder, smallest; else indices are a part for any plan, fastest.
    exact · words of F32, BF16, F16 that are the tensor's own · parts: indices, unless modelled. source: see kernels/trellis.py, kernels/context_coder.py.
    """

    indices: Array | None = None
    step: float = 1.0
    states: int = 8
    shifts: tuple[int, int, int, int] = NO_SHIFTS
    modelled: bool = True
    rows: Array | None = None

    id: ClassVar[int] = 11
    name: ClassVar[str] = "grid"
    fitted: ClassVar[bool] = True
    since: ClassVar[tuple[int, int]] = (0, 3)
    loose: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("indices",)

    def options(self) -> dict[str, str]:
        return {"states": str(self.states), "step": f"{256 * self.step:.6g}"}

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        dtype = context.spec.dtype.name
        if self.indices is None or dtype not in DTYPES or x.size != context.n or context.at + x.size > self.indices.size:
            return None
        code = CODES[self.states]
        indices = self.indices[context.at : context.at + x.size]
        path = Path(code, int(kernels.walk(self.indices[: context.at], code.h0, code.h1, 0)), self.step, self.shifts)
        rows = self._rows(context)
        differs = path.restore(indices, dtype, rows) != x
        n_exceptions = int(np.count_nonzero(differs))
        kept, n_rows = exceptions.write(x, differs), 0
        if rows is not None:
            kept, n_rows = kept + rows.exponents.tobytes(), rows.exponents.size
        if self.modelled:
            first_mean, mean = first_mean_of(indices)
            data = context_coder.pack(indices, _geometry(context), mean, code, path.state).data
            if data is not None:
                header = Header(path, data.size, first_mean, 1, n_exceptions, n_rows)
                return Encoded(header.write(), payload=data.tobytes() + kept)
        part = folded(indices)
        return Encoded(Header(path, None, 0, part.itemsize, n_exceptions, n_rows).write(), (part,), kept)

    def _rows(self, context: FrameContext) -> Rows | None:
        columns = context.spec.row_words
        if self.rows is None or not context.n:
            return None
        first = context.at // columns
        return Rows(self.rows[first : first + Rows.count(columns, context.at, context.n)], columns, context.at % columns)

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if width not in (2, 4):
            raise CorruptFile(f"grid: words of {width} bytes are not possible")
        read = Header.read(header, n)
        n_kept = read.n_exceptions * (exceptions.PLACE_BYTES + width) + read.n_rows
        return Layout((PartShape(read.width, n),), n_kept) if read.n_coded is None else Layout((), read.n_coded + n_kept)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        read = Header.read(header, out.size)
        if context is None or context.n != out.size or context.spec.dtype.name not in DTYPES or context.spec.dtype.word != out.itemsize:
            raise CorruptFile("grid: stands where words are not the tensor's, or the dtype is none that it knows")
        dtype, n_coded = context.spec.dtype.name, read.n_coded or 0
        rows = _rows_of(payload, read, context)
        if read.n_coded is None and read.width == 1 and rows is None:
            read.path.look_up(parts[0], dtype, out)
        else:
            out[:] = read.path.restore(_indices(read, payload[:n_coded], parts, context), dtype, rows)
        exceptions.put(payload[n_coded : payload.size - read.n_rows], read.n_exceptions, out, "grid")


def _rows_of(payload: Array, read: Header, context: FrameContext) -> Rows | None:
    """The rows' exponents at the end of an untrusted payload."""
    if read.n_rows == 0:
        return None
    columns = context.spec.row_words
    if columns < 1 or read.n_rows != Rows.count(columns, context.at, context.n):
        raise CorruptFile("grid: there are not as many steps as rows")
    exponents = payload[payload.size - read.n_rows :]
    if read.path.step * float(FACTORS[exponents].max()) >= 2.0**128 - 2.0**103:
        raise CorruptFile("grid: the step of a row is infinite")
    return Rows(exponents, columns, context.at % columns)


def _indices(read: Header, coded: Array, parts: Sequence[Array], context: FrameContext) -> Array:
    """Indices (i4) of a frame, from their part or out of the context coder."""
    if read.n_coded is None:
        if parts[0].max(initial=0) > 2 * MOST_INDEX:
            raise CorruptFile("grid: an index is too large")
        return unfolded(parts[0])
    indices = np.empty(context.n, np.int32)
    if not context_coder.unpack(coded, _geometry(context), _mean(read.first_mean), read.path.code, read.path.state, indices):
        raise CorruptFile("grid: bytes are left over behind the last index")
    return indices


def _geometry(context: FrameContext) -> Geometry:
    return Geometry.of(context.spec.shape, context.at, context.n)


def first_mean_of(indices: Array) -> tuple[int, int]:
    """A header's byte for the mean magnitude of these indices, most of which their neighbours do not foretell, and the mean that it stands for."""
    mean = max(1, int(np.abs(indices).sum(dtype=np.int64)) * 448 // max(indices.size, 1))
    number = min(round(8 * math.log2(mean)), _MOST_MEAN)
    return number, _mean(number)


def _mean(number: int) -> int:
    """The first mean magnitude, in 1/256 steps, that a header's byte stands for."""
    return int(EXP2[32 * number & 255]) << (32 * number >> 8) >> 16
