"""rans (3): words at their order-0 entropy, by interleaved rANS with a static table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.kernels import rans as kernels
from modelcodec.stage import Encoded, FrameContext, Layout, Stage
from modelcodec.types import Array
from modelcodec.wire import Reader, varint

VECTOR_WORDS = 1 << 16
"""From here on 64 lanes, which vector code takes at once. A lane's states cost two to three bytes."""
LANE_WORDS = 1 << 14
"""Fewer words have a lane for so many, up to 8, which is what a core does side by side."""
_MOST_SCALAR_LANES_LOG2 = 3
TWO_GROUPS = 1 << 18
MOST_LANES_LOG2 = 6
_HEADERS_KEPT = 8
"""A header is read for its layout, and again to decode."""
SAMPLED_WORDS = 1 << 17
"""A table may be made from a sample; one in k words is taken from so many words on. What it did not see is escaped."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A rans header, checked."""

    table: kernels.Table
    lanes_log2: int
    groups: int
    units_a: int
    units_b: int
    n_escapes: int

    def n_payload(self, width: int) -> int:
        return 2 * (self.units_a + self.units_b) + (4 * self.groups << self.lanes_log2) + width * self.n_escapes

    def write(self, width: int) -> bytes:
        groups = varint(self.units_a) + (varint(self.units_b) if self.groups == 2 else b"")
        lanes = self.lanes_log2 | (self.groups - 1) << 4
        return bytes([self.table.bits, lanes]) + groups + varint(self.n_escapes) + kernels.write_table(self.table, width)

    @classmethod
    @lru_cache(_HEADERS_KEPT)
    def read(cls, header: bytes, width: int, n: int) -> Stream:
        """Check an untrusted header. Raises CorruptFile."""
        reader = Reader(header, "rans")
        bits, lanes = reader.u8(), reader.u8()
        groups, lanes_log2 = 1 + (lanes >> 4), lanes & 15
        if not 8 <= bits <= 12 or lanes_log2 > MOST_LANES_LOG2 or groups > 2 or (groups == 2 and lanes_log2 != MOST_LANES_LOG2):
            raise CorruptFile(f"rans: a table of {bits} bits with lanes {lanes:#x} is not possible")
        units_a = reader.varint(n)
        units_b = reader.varint(n) if groups == 2 else 0
        n_escapes = reader.varint(n)
        table = kernels.read_table(bytes(reader.take(reader.remaining)), bits, width)
        if table is None:
            raise CorruptFile("rans: the frequency table breaks its rules")
        return cls(table, lanes_log2, groups, units_a, units_b, n_escapes)


def lanes_for(n: int, lane_words: int = LANE_WORDS) -> tuple[int, int]:
    """log2 of the lanes, and the groups, for n words."""
    lanes_log2 = MOST_LANES_LOG2 if n >= VECTOR_WORDS else min(max((n // lane_words).bit_length() - 1, 0), _MOST_SCALAR_LANES_LOG2)
    return lanes_log2, 2 if n >= TWO_GROUPS else 1


def sample_step(n: int, sample: int) -> int:
    """One in how many of n words is counted: a power of two, since a matrix with rows of three times something would otherwise show some columns only."""
    most = max(min(sample, n * sample // SAMPLED_WORDS), 1)
    return 1 << (most.bit_length() - 1)


def table_for(counts: Array, bits: int, width: int, *, sampled: bool) -> kernels.Table | None:
    """The table for these counts, None for words that are all alike: `constant` is for those."""
    return kernels.normalise(counts, bits, width, escape=sampled) if np.count_nonzero(counts) > 1 or sampled else None


@dataclass(frozen=True)
class Rans(Stage):
    """Static frequencies that sum to 2^table_bits, up to 128 coders side by side. 8 bits decode fastest and suit few symbols; 12 come closest to the entropy.

    `sample`: make the table from one in so many words, where that leaves enough of them. `lane_words`: fewer decode faster, by more lanes, which cost bytes.
    exact · words of 1 or 2 bytes · no parts. source: Duda, arXiv 1311.2540; interleaving: Giesen, arXiv 1402.3392.
    """

    table_bits: int = 12
    sample: int = 1
    lane_words: int = LANE_WORDS

    id: ClassVar[int] = 3
    name: ClassVar[str] = "rans"
    since: ClassVar[tuple[int, int]] = (0, 1)

    def __post_init__(self) -> None:
        if not 8 <= self.table_bits <= 12:
            raise BadRecipe(f"rans: table_bits = {self.table_bits}, 8 to 12 are possible")
        if self.sample < 1:
            raise BadRecipe(f"rans: sample = {self.sample}, 1 or more is possible")
        if self.lane_words < 1:
            raise BadRecipe(f"rans: lane_words = {self.lane_words}, 1 or more is possible")

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        if x.itemsize > 2 or x.size < 2:
            return None
        counts = np.zeros(1 << (8 * x.itemsize), np.int64)
        sample = sample_step(x.size, self.sample)
        kernels.histogram(x, counts, sample)
        table = table_for(counts, self.table_bits, x.itemsize, sampled=sample > 1)
        if table is None:
            return None
        lanes_log2, groups = lanes_for(x.size, self.lane_words)
        payload = np.empty(kernels.pack_bound(x.size, x.itemsize, lanes_log2, groups), np.uint8)
        packed = kernels.pack(x, table, lanes_log2, groups, payload)
        if packed.status:
            return None
        stream = Stream(table, lanes_log2, groups, packed.units_a, packed.units_b, packed.n_escapes)
        return Encoded(stream.write(x.itemsize), payload=payload[: packed.n_bytes])

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if width > 2:
            raise CorruptFile(f"rans: words of {width} bytes are not possible")
        return Layout((), Stream.read(header, width, n).n_payload(width))

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        stream = Stream.read(header, out.itemsize, out.size)
        status = kernels.unpack(payload, stream.table, stream.lanes_log2, stream.groups, stream.units_a, stream.units_b, stream.n_escapes, out)
        if status:
            raise CorruptFile(f"rans: {status.fact}")
