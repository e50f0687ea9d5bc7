"""delta (12): words given the words that stand in their place in a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelcodec.arena import of_thread
from modelcodec.errors import CorruptFile
from modelcodec.kernels import class_rans, delta
from modelcodec.kernels.delta import MOST_MANTISSA_BITS, OFFSET, Fault, Scales
from modelcodec.stage import Encoded, FrameContext, Layout, Shared, Stage
from modelcodec.stages.class_rans import ScaleClasses, Stream
from modelcodec.stages.rans import lanes_for
from modelcodec.types import Array
from modelcodec.wire import Reader, varint

_SYMBOL_WIDTH = 2
_FACTS = {
    Fault.SYMBOL: "a symbol is none",
    Fault.RANGE: "a difference leads out of the words' range",
    Fault.LOW: "the low bits are not used up, or padded with ones",
    Fault.WORDS: "the words that stand as they are are not as many as their symbols",
}


@dataclass(frozen=True)
class Changes:
    """A group's shared part: how large its changes are likely to be, and the table of symbols for each class of levels."""

    mantissa_bits: int
    offset: int
    classes: ScaleClasses

    @property
    def scales(self) -> Scales:
        return Scales(self.classes.row_scales, self.classes.column_scales, self.offset, self.mantissa_bits)

    def write(self) -> bytes:
        return bytes([self.mantissa_bits]) + self.offset.to_bytes(2, "little") + self.classes.write()

    @classmethod
    def read(cls, data: bytes) -> Changes:
        """Check an untrusted shared part. Raises CorruptFile."""
        reader = Reader(data, "delta: shared part")
        mantissa_bits, offset = reader.u8(), reader.uint(2)
        return cls(mantissa_bits, offset, ScaleClasses.read(bytes(reader.take(reader.remaining))))

    @classmethod
    def of(cls, shared: Shared | None, width: int) -> Changes:
        """The changes of a group of words of this width, parsed once. Raises CorruptFile."""
        if shared is None:
            raise CorruptFile("delta: the frame has no shared part")
        changes = shared.parsed_as(Changes, cls.read)
        largest = int(changes.classes.row_scales.max()) + int(changes.classes.column_scales.max()) + changes.offset - OFFSET
        if not 2 <= changes.mantissa_bits <= min(8 * width - 2, MOST_MANTISSA_BITS) or largest >= most_scale(width, changes.mantissa_bits):
            raise CorruptFile(f"delta: scales up to {largest} and {changes.mantissa_bits} bits of mantissa are none of words of {width} bytes")
        return changes


def most_scale(width: int, mantissa_bits: int) -> int:
    """Sums of scales are below this: the quarters of an octave that magnitudes of such words have."""
    return 1 << 8 * width + 1 - mantissa_bits


@dataclass(frozen=True, slots=True)
class _Header:
    """A header that is not empty, checked: bytes of low bits, words that stand as they are, the symbols' stream."""

    n_low: int
    n_far: int
    stream: Stream

    def write(self) -> bytes:
        return varint(self.n_low) + varint(self.n_far) + self.stream.write()

    @classmethod
    def read(cls, header: bytes, width: int, n: int) -> _Header:
        reader = Reader(header, "delta")
        n_low, n_far = reader.varint(n * width), reader.varint(n)
        return cls(n_low, n_far, Stream.read(bytes(reader.take(reader.remaining)), n))


@dataclass(frozen=True)
class Delta(Stage):
    """Fine-tunes and later steps of a training run: floats whose changes are small, or of a size that row and column tell, against those of a base. A frame
    that is the base's takes no payload at all.

    exact · words of 1, 2, 4 or 8 bytes with a base · no parts. source: differences of ordered bit patterns are those of fpzip (Lindstrom and Isenburg 2006) and
    FM-Delta (NeurIPS 2024); levels and classes are ours.
    """

    id: ClassVar[int] = 12
    name: ClassVar[str] = "delta"
    since: ClassVar[tuple[int, int]] = (0, 3)

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        base = context.base
        if base is None or x.size == 0 or base.size != x.size or base.itemsize != x.itemsize:
            return None
        if np.array_equal(x, base):
            return Encoded(b"")
        if context.shared is None:
            return None
        changes = Changes.of(context.shared, x.itemsize)
        classes = changes.classes.coder
        if not classes.has_escapes or not changes.scales.holds(context.first, x.size):
            return None
        split = delta.split(x, base, changes.scales, context.first)
        lanes_log2, groups = lanes_for(x.size)
        room = class_rans.pack_bound(x.size, _SYMBOL_WIDTH, lanes_log2, groups)
        payload = of_thread.encoding.bytes(room + split.low.size + split.far.nbytes)
        packed = class_rans.pack(split.symbols, lanes_log2, groups, delta.with_levels(classes, split.levels), 0, payload[:room])
        end = packed.n_bytes
        for piece in (split.low, split.far.view(np.uint8)):
            payload[end : end + piece.size] = piece
            end += piece.size
        stream = Stream(lanes_log2, groups, packed.units_a, packed.units_b, packed.n_escapes)
        return Encoded(_Header(split.low.size, split.far.size, stream).write(), payload=payload[:end])

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if not header:
            return Layout((), 0)
        read = _Header.read(header, width, n)
        return Layout((), read.stream.n_payload(_SYMBOL_WIDTH) + read.n_low + read.n_far * width)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        base = None if context is None or context.n != out.size else context.base
        if context is None or base is None or base.itemsize != out.itemsize:
            raise CorruptFile("delta: stands where no word of a base is known")
        if not header:
            out[:] = base
            return
        read, changes = _Header.read(header, out.itemsize, out.size), Changes.of(context.shared, out.itemsize)
        if not changes.scales.holds(context.first, out.size):
            raise CorruptFile("delta: the shared part has fewer rows than the frames")
        levels = delta.levels_of(base, changes.scales, context.first)
        classes = delta.with_levels(changes.classes.coder, levels)
        stream, symbols = read.stream, of_thread.decoding.words(out.size, _SYMBOL_WIDTH)
        low_at = stream.n_payload(_SYMBOL_WIDTH)
        status = class_rans.unpack(
            payload[:low_at], stream.lanes_log2, stream.groups, stream.units_a, stream.units_b, stream.n_escapes, classes, 0, symbols
        )
        if status:
            raise CorruptFile(f"delta: {status.fact}")
        far = np.frombuffer(payload[low_at + read.n_low :].tobytes(), out.dtype)
        fault = delta.join(symbols, levels, payload[low_at : low_at + read.n_low], far, base, changes.scales, context.first, out)
        if fault:
            raise CorruptFile(f"delta: {_FACTS[fault]}")
