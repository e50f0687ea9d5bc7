"""split_float (4): sign, exponent with perhaps leading mantissa bits, and the rest of a float, each to its own part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.kernels import planes as kernels
from modelcodec.kernels.split_float import join
from modelcodec.stage import Encoded, FrameContext, Layout, PartShape, Stage
from modelcodec.types import Array
from modelcodec.wire import Reader

MOST_LOW_BITS = 13


@dataclass(frozen=True)
class SplitFloat(Stage):
    """Cut each word's top 16 bits below bit `low_bits`: what stands above, less the sign, is the symbol; the rest is nearly random in trained weights.

    parts: symbols, rest (bit planes), low (what a 4 or 8 byte word has below its top 16 bits). exact.
    source: the split of exponents from the rest is that of ZipNN (arXiv 2411.05239) and NeuZip (arXiv 2410.20650); leading mantissa bits in the symbol are
    ours.
    """

    low_bits: int = 7

    id: ClassVar[int] = 4
    name: ClassVar[str] = "split_float"
    since: ClassVar[tuple[int, int]] = (0, 1)
    parts: ClassVar[tuple[str, ...]] = ("symbols", "rest", "low")

    def __post_init__(self) -> None:
        if not 0 <= self.low_bits <= MOST_LOW_BITS:
            raise BadRecipe(f"split_float: low_bits = {self.low_bits}, 0 to {MOST_LOW_BITS} are possible")

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        if x.itemsize == 1:
            return None
        symbols = np.empty(x.size, np.uint8 if self.low_bits >= 7 else np.uint16)
        numbers = np.empty(x.size, np.uint16)
        kernels.split_words(x, 8 * x.itemsize - 16, self.low_bits, symbols, numbers)
        rest = np.empty(kernels.planes_size(x.size, self.low_bits + 1), np.uint8)
        kernels.pack_planes(numbers, self.low_bits + 1, rest)
        parts: tuple[Array, ...] = (symbols, rest)
        if x.itemsize > 2:
            parts += (_low_of(x),)
        return Encoded(bytes([self.low_bits]), parts)

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        reader = Reader(header, "split_float")
        low_bits = reader.u8()
        reader.end()
        if low_bits > MOST_LOW_BITS or width == 1:
            raise CorruptFile(f"split_float: {low_bits} low bits of words of {width} bytes are not possible")
        parts = [PartShape(1 if low_bits >= 7 else 2, n), PartShape(1, kernels.planes_size(n, low_bits + 1))]
        if width > 2:
            parts.append(PartShape(2, n * (width // 2 - 1)))
        return Layout(tuple(parts), 0)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        words = np.empty(out.size, np.uint16) if out.itemsize == 8 else out
        status = join(parts[0], parts[1], parts[2] if out.itemsize == 4 else None, header[0], words)
        if status:
            raise CorruptFile(f"split_float: {status.fact}")
        if out.itemsize == 8:
            halves = out.view(np.uint16).reshape(-1, 4)
            halves[:, 3] = words
            halves[:, :3] = parts[2].reshape(3, -1).T


def _low_of(x: Array) -> Array:
    """The bits below the top 16 as u2 words: for u4 the low half, for u8 three runs, lowest first."""
    if x.itemsize == 4:
        return x.astype(np.uint16)
    return np.ascontiguousarray(x.view(np.uint16).reshape(-1, 4)[:, :3].T).reshape(-1)
