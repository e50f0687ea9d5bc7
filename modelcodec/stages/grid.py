"""grid (11): places on a uniform grid, reached along a trellis."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

_STATES, _MODELLED, _SHIFTED, _WIDE, _SPANS = 0x0F, 0x10, 0x20, 0x40, 0x80
_MOST_MEAN = 224
"""The first mean magnitude is 2^(m / 8) in 1/256 steps; m is at most that."""
FACTORS = np.array([int(EXP2[32 * (e & 7)]) * 2.0 ** ((e >> 3) - 16) for e in range(256)], np.float32)
"""Steps of spans: 2^(e / 8), exact multiples of 2^-16."""


@dataclass(frozen=True, eq=False, slots=True)
class Steps:
    """Steps of spans, a span being a row, a block or any other number of words that follow each other: 2^(exponent / 8) times that of the path.

    `exponents` (u1): of all spans of a tensor, the last of which may be shorter; or of those that a frame touches, which begins `skipped` words into the first.
    """

    exponents: Array
    span: int
    skipped: int = 0

    @classmethod
    def count(cls, span: int, at: int, n: int) -> int:
        """Spans that n words from word `at` of the tensor on touch."""
        return -(-(at % span + n) // span)

    def of(self, at: int, n: int) -> Steps:
        """Of all the tensor's, those that n words from word `at` on touch."""
        first = at // self.span
        touched = self.exponents[first : first + self.count(self.span, at, n)]
        return Steps(np.ascontiguousarray(touched), self.span, at % self.span)

    @property
    def largest(self) -> float:
        """The largest factor."""
        return float(FACTORS[self.exponents].max(initial=0))

    def of_words(self, n: int) -> Array:
        """The factor (f4) of each of the first n words of the tensor."""
        factors: Array = np.repeat(FACTORS[self.exponents], min(self.span, n))[:n]
        return factors


@dataclass(frozen=True, slots=True)
class Path:
    """What a frame's indices need beside themselves: the trellis and where it starts, the step (of 1/256), how far the places 1 and beyond are shifted."""

    code: Code
    state: int
    step: float
    shifts: tuple[int, int, int, int]

    def restore(self, indices: Array, dtype: str, steps: Steps | None = None) -> Array:
        """Words of indices (i4) as bit patterns of a dtype; `steps` has one for every span that they touch."""
        values = np.empty(indices.size, np.float32)
        of_spans = (np.full(1, np.float32(self.step)), indices.size + 1, 0) if steps is None else self._of_spans(steps)
        kernels.restore(indices, self.code.h0, self.code.h1, self.state, np.array(self.shifts, np.int64), *of_spans, values)
        return rounded(values, dtype)

    def look_up(self, folded: Array, dtype: str, steps: Steps | None, out: Array) -> None:
        """Fill `out` with the words of folded indices (u1); `steps` as in `restore`."""
        table, path = np.empty(512, np.float32), (self.code.h0, self.code.h1, self.state)
        kernels.tabulate(np.array(self.shifts, np.int64), np.float32(self.step if steps is None else 1.0), table)
        if steps is None:
            kernels.look_up(folded, rounded(table, dtype), *path, out)
            return
        values = np.empty(folded.size, np.float32)
        kernels.look_up_in_steps(folded, table, *path, *self._of_spans(steps), values)
        out[:] = rounded(values, dtype)

    def _of_spans(self, steps: Steps) -> tuple[Array, int, int]:
        """The steps (f4) of spans, the words of a span, and how many of the first stand before the path's."""
        with np.errstate(over="ignore"):
            return np.float32(self.step) * FACTORS[steps.exponents], steps.span, steps.skipped


@dataclass(frozen=True, slots=True)
class Header:
    """A header, checked. `n_coded` bytes of context-coded indices, or None where they are a part of `width` bytes each.

    `span` words have a step each, the frame touches `n_steps` of these spans; 0 where there is one step for all.
    """

    path: Path
    n_coded: int | None
    first_mean: int
    width: int
    n_exceptions: int
    span: int = 0
    n_steps: int = 0

    def write(self) -> bytes:
        path = self.path
        modelled = self.n_coded is not None
        flags = path.code.states.bit_length() - 1 | _MODELLED * modelled | _SHIFTED * (path.shifts != NO_SHIFTS) | _WIDE * (self.width == 2 and not modelled)
        flags |= _SPANS * (self.span > 0)
        fields = [bytes([flags, path.state]), struct.pack("<f", path.step)]
        if path.shifts != NO_SHIFTS:
            fields.append(struct.pack("4b", *path.shifts))
        if self.n_coded is not None:
            fields += [bytes([self.first_mean]), varint(self.n_coded)]
        return b"".join((*fields, varint(self.n_exceptions), varint(self.span) + varint(self.n_steps) if self.span else b""))

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
        span, n_steps = (reader.varint(), reader.varint(n)) if flags & _SPANS else (0, 0)
        if flags & _SPANS and not (span and n_steps):
            raise CorruptFile("grid: there are no spans, or no words in them")
        reader.end()
        return cls(Path(code, state, step, shifts), n_coded, first_mean, 2 if flags & _WIDE else 1, n_exceptions, span, n_steps)


@dataclass(frozen=True, eq=False)
class Grid(Stage):
    """The words of a fit: `indices` (i4) of all words of the tensor along one path from state 0, its `states`, the `step` (float32, 1/256 of the grid's),
    `shifts` towards zero of magnitude 1 and of larger ones, for each union. Words that do not come out of them are kept as exceptions.

    `steps`: of the tensor's spans. `modelled`: the context coder, smallest; else indices are a part for any plan, fastest.
    exact · words of F32, BF16, F16 that are the tensor's own · parts: indices (no words where modelled), exponents (where there are steps).
    source: see kernels/trellis.py, kernels/context_coder.py.
    """

    indices: Array | None = None
    step: float = 1.0
    states: int = 8
    shifts: tuple[int, int, int, int] = NO_SHIFTS
    modelled: bool = True
    steps: Steps | None = None

    id: ClassVar[int] = 11
    name: ClassVar[str] = "grid"
    fitted: ClassVar[bool] = True
    since: ClassVar[tuple[int, int]] = (0, 3)
    loose: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("indices", "exponents")

    def options(self) -> dict[str, str]:
        return {"states": str(self.states), "step": f"{256 * self.step:.6g}"}

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        dtype = context.spec.dtype.name
        if self.indices is None or dtype not in DTYPES or x.size != context.n or context.at + x.size > self.indices.size:
            return None
        if self.steps is not None and self.steps.exponents.size * self.steps.span < self.indices.size:
            return None
        code = CODES[self.states]
        indices = self.indices[context.at : context.at + x.size]
        path, steps = self._path(context, code, int(kernels.walk(self.indices[: context.at], code.h0, code.h1, 0)))
        exponents = () if steps is None else (steps.exponents,)
        differs = path.restore(indices, dtype, steps) != x
        header = Header(path, None, 0, 1, int(np.count_nonzero(differs)), *(0, 0) if steps is None else (steps.span, steps.exponents.size))
        kept = exceptions.write(x, differs)
        if self.modelled:
            first_mean, mean = first_mean_of(indices)
            data = context_coder.pack(indices, _geometry(context), mean, code, path.state).data
            if data is not None:
                parts = (np.empty(0, np.uint8), *exponents) if exponents else ()
                return Encoded(replace(header, n_coded=data.size, first_mean=first_mean).write(), parts, data.tobytes() + kept)
        part = folded(indices)
        return Encoded(replace(header, width=part.itemsize).write(), (part, *exponents), kept)

    def _path(self, context: FrameContext, code: Code, state: int) -> tuple[Path, Steps | None]:
        """A frame's path from a state, and the steps of its spans; where these are all the same, that is the path's."""
        path = Path(code, state, self.step, self.shifts)
        if self.steps is None or not context.n:
            return path, None
        steps = self.steps.of(context.at, context.n)
        if (steps.exponents != steps.exponents[0]).any():
            return path, steps
        return replace(path, step=float(np.float32(self.step) * FACTORS[steps.exponents[0]])), None

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if width not in (2, 4):
            raise CorruptFile(f"grid: words of {width} bytes are not possible")
        read = Header.read(header, n)
        n_kept = read.n_exceptions * (exceptions.PLACE_BYTES + width)
        parts = (PartShape(read.width, n if read.n_coded is None else 0), PartShape(1, read.n_steps))
        return Layout(parts[: 2 if read.span else 1 if read.n_coded is None else 0], (read.n_coded or 0) + n_kept)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        read = Header.read(header, out.size)
        if context is None or context.n != out.size or context.spec.dtype.name not in DTYPES or context.spec.dtype.word != out.itemsize:
            raise CorruptFile("grid: stands where words are not the tensor's, or the dtype is none that it knows")
        dtype, n_coded = context.spec.dtype.name, read.n_coded or 0
        steps = _steps_of(read, parts, context)
        if read.n_coded is None and read.width == 1:
            read.path.look_up(parts[0], dtype, steps, out)
        else:
            out[:] = read.path.restore(_indices(read, payload[:n_coded], parts, context), dtype, steps)
        exceptions.put(payload[n_coded:], read.n_exceptions, out, "grid")


def _steps_of(read: Header, parts: Sequence[Array], context: FrameContext) -> Steps | None:
    """Those of a frame's spans, whose exponents are an untrusted part; None where there is one step for all."""
    if not read.span:
        return None
    if read.n_steps != Steps.count(read.span, context.at, context.n):
        raise CorruptFile("grid: there are not as many steps as spans")
    if read.path.step * (steps := Steps(parts[1], read.span, context.at % read.span)).largest >= 2.0**128 - 2.0**103:
        raise CorruptFile("grid: the step of a span is infinite")
    return steps


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
