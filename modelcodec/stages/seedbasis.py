"""seedbasis (15): sums of pseudo-random signs, each times an integer."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from modelcodec.errors import CorruptFile
from modelcodec.kernels import philox
from modelcodec.kernels.casts import FLOATS, rounded
from modelcodec.kernels.philox import Signs
from modelcodec.limits import LIMITS
from modelcodec.stage import Encoded, FrameContext, Layout, PartShape, Shared, Stage
from modelcodec.stages import exceptions
from modelcodec.stages.integers import folded, octets, read_octets, unfolded
from modelcodec.types import Array, TensorSpec
from modelcodec.wire import Reader, varint

LEAST_SPAN, MOST_SPAN = 1 << 8, 1 << 32
"""Words that go with the same coefficients; for fewer than a byte has values, tables would take longer than the words themselves."""
MOST_COEFFICIENTS = 1 << 15
"""Of a span: sums of so many fit 32 bits with a sign."""
MOST_COEFFICIENT = (1 << 15) - 1
_SHARED, _WIDE, _MASKED = 1, 2, 4


@dataclass(frozen=True, eq=False, slots=True)
class Basis:
    """All words of a tensor: scale times the sum of the span's coefficients (i4, spans x k, a row for each span of the tensor), each with a sign of its own."""

    seed: int
    span: int
    coefficients: Array
    scale: float

    @property
    def signs(self) -> Signs:
        return Signs(self.seed, self.span, self.coefficients.shape[1])

    def of(self, at: int, n: int) -> Array:
        """The coefficients of the spans that n words from word `at` on touch."""
        return self.coefficients[at // self.span :][: self.signs.spans(at, n)]

    def words(self, at: int, n: int, dtype: str) -> Array:
        """The n words from word `at` on, as bit patterns of a dtype."""
        return _words(self.of(at, n), self.signs, self.scale, at, n, dtype)


def _words(coefficients: Array, signs: Signs, scale: float, at: int, n: int, dtype: str) -> Array:
    """Exact sums, one multiplication in float64, one rounding to float32, one to the dtype."""
    with np.errstate(over="ignore"):
        values = (philox.sums(coefficients, signs, at, n) * float(np.float32(scale))).astype(np.float32)
    return rounded(values, dtype)


@dataclass(frozen=True, eq=False, slots=True)
class Coefficients:
    """Those of a group of frames (i4, spans x k)."""

    rows: Array

    def write(self) -> bytes:
        numbers, (spans, k) = folded(self.rows), self.rows.shape
        return varint(k) + varint(spans) + bytes([numbers.itemsize]) + octets(numbers)

    @classmethod
    def of(cls, shared: Shared | None) -> Coefficients:
        """Those of a group, parsed once. Raises CorruptFile."""
        if shared is None:
            raise CorruptFile("seedbasis: the frame has no shared part")
        return shared.parsed_as(Coefficients, cls.read)

    @classmethod
    def read(cls, data: bytes) -> Coefficients:
        """Check an untrusted shared part. Raises CorruptFile."""
        reader = Reader(data, "seedbasis: shared part")
        k, spans, width = _read_k(reader), reader.varint(len(data)), reader.u8()
        if not spans or width not in (1, 2):
            raise reader.corrupt("spans or width are out of range")
        rows = read_octets(reader, spans * k, width)
        reader.end()
        return cls(rows.reshape(spans, k))

    def from_span(self, first: int, n: int) -> Array:
        """The coefficients of n spans from the first-th on. Raises CorruptFile."""
        if first + n > len(self.rows):
            raise CorruptFile("seedbasis: the shared part ends before the frame's spans do")
        return self.rows[first : first + n]


def _read_k(reader: Reader) -> int:
    k = reader.varint(MOST_COEFFICIENTS)
    if not k:
        raise reader.corrupt("there are no coefficients")
    return k


@dataclass(frozen=True, slots=True)
class Header:
    """A header, checked; `spans` of the frame's own coefficients of `width` bytes each, 0 where they are shared."""

    signs: Signs
    scale: float
    masked: bool
    n_exceptions: int
    spans: int = 0
    width: int = 1

    def write(self) -> bytes:
        flags = _SHARED * (not self.spans) | _WIDE * (self.width == 2) | _MASKED * self.masked
        own = varint(self.spans) if self.spans else b""
        return struct.pack("<BfQ", flags, self.scale, self.signs.seed) + varint(self.signs.span) + varint(self.signs.k) + own + varint(self.n_exceptions)

    @classmethod
    def read(cls, header: bytes, n: int) -> Header:
        """Check an untrusted header of n words. Raises CorruptFile."""
        reader = Reader(header, "seedbasis")
        flags, scale, seed = struct.unpack("<BfQ", reader.take(13))
        if flags > 7 or flags & (_SHARED | _WIDE) == _SHARED | _WIDE:
            raise CorruptFile(f"seedbasis: flags {flags:#x} are not possible")
        span, k = reader.varint(MOST_SPAN), _read_k(reader)
        if not 0 < scale < math.inf or span < LEAST_SPAN:
            raise CorruptFile("seedbasis: the scale is no positive number, or spans are too short")
        if n * k > LIMITS.frame_signs:
            raise CorruptFile(f"seedbasis: {n} words of {k} coefficients each are more than a frame may ask for")
        spans = 0 if flags & _SHARED else reader.varint(n // span + 2)
        if not spans and not flags & _SHARED:
            raise CorruptFile("seedbasis: coefficients are missing")
        n_exceptions = reader.varint(n)
        reader.end()
        return cls(Signs(seed, span, k), scale, bool(flags & _MASKED), n_exceptions, spans, 2 if flags & _WIDE else 1)


@dataclass(frozen=True)
class SeedBasis(Stage):
    """The words of a fit, as `basis` gives them. Zeros that the sums do not give are masked where there are many; other words that do not come out are kept as
    exceptions.

    exact · words of F32, BF16, F16 that are the tensor's own · parts: coefficients, mask.
    source: Nooralinejad et al., "PRANC", arXiv 2206.08464; Li et al., "Measuring the intrinsic dimension", arXiv 1804.08838.
    """

    basis: Basis | None = None

    id: ClassVar[int] = 15
    name: ClassVar[str] = "seedbasis"
    fitted: ClassVar[bool] = True
    since: ClassVar[tuple[int, int]] = (0, 3)
    loose: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("coefficients", "mask")
    shares: ClassVar[bool] = True

    def options(self) -> dict[str, str]:
        return {}

    def prepare(self, spec: TensorSpec, x: Array, at: int) -> Shared | None:
        """The coefficients of a group of several frames."""
        if self.basis is None or x.nbytes <= LIMITS.frame_bytes:
            return None
        coefficients = Coefficients(self.basis.of(at, x.size))
        data = coefficients.write()
        return Shared(data, coefficients) if len(data) <= LIMITS.frame_bytes else None

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        basis, spec = self.basis, context.spec
        if basis is None or spec.dtype.name not in FLOATS or x.size != context.n or not x.size or x.itemsize != spec.dtype.word:
            return None
        rows = basis.of(context.at, x.size)
        if len(rows) < basis.signs.spans(context.at, x.size) or x.size * basis.signs.k > LIMITS.frame_signs:
            return None
        found = basis.words(context.at, x.size, spec.dtype.name)
        mask, differs = exceptions.mask(x, found)
        header = Header(basis.signs, basis.scale, mask is not None, int(np.count_nonzero(differs)))
        part = folded(rows[:0])
        if context.shared is None or not isinstance(context.shared.parsed, Coefficients):
            part = folded(rows)
            header = replace(header, spans=len(rows), width=part.itemsize)
        return Encoded(header.write(), (part,) if mask is None else (part, mask), exceptions.write(x, differs))

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if width not in (2, 4):
            raise CorruptFile(f"seedbasis: words of {width} bytes are not possible")
        read = Header.read(header, n)
        part = PartShape(read.width, read.spans * read.signs.k)
        return Layout((part, PartShape(1, (n + 7) // 8)) if read.masked else (part,), read.n_exceptions * (exceptions.PLACE_BYTES + width))

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        read = Header.read(header, out.size)
        if context is None or context.n != out.size or context.spec.dtype.name not in FLOATS or context.spec.dtype.word != out.itemsize:
            raise CorruptFile("seedbasis: stands where it is not a frame's root or the dtype is none that it knows")
        out[:] = _words(_coefficients(read, parts[0], context), read.signs, read.scale, context.at, out.size, context.spec.dtype.name)
        if read.masked:
            exceptions.put_zeros(parts[1], out, "seedbasis")
        exceptions.put(payload, read.n_exceptions, out, "seedbasis")


def _coefficients(read: Header, part: Array, context: FrameContext) -> Array:
    """The untrusted coefficients of a frame's spans, from their part or out of the shared one."""
    n = read.signs.spans(context.at, context.n)
    if read.spans:
        if read.spans != n:
            raise CorruptFile(f"seedbasis: coefficients of {read.spans} spans, where the frame touches {n}")
        return unfolded(part).reshape(n, read.signs.k)
    shared = Coefficients.of(context.shared)
    if shared.rows.shape[1] != read.signs.k:
        raise CorruptFile("seedbasis: the shared part has another number of coefficients")
    begin = context.at - context.first  # of the group
    return shared.from_span(context.at // read.signs.span - begin // read.signs.span, n)
