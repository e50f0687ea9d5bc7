"""palette (6): few different words, by their place in a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.kernels import planes as kernels
from modelcodec.stage import Encoded, FrameContext, Layout, PartShape, Stage
from modelcodec.types import Array
from modelcodec.wire import Reader, varint

MOST = 256


@dataclass(frozen=True)
class Palette(Stage):
    """At most `most` different words; applies only then. Dequantized, clustered and palettized tensors. exact · parts: indices."""

    most: int = MOST

    id: ClassVar[int] = 6
    name: ClassVar[str] = "palette"
    since: ClassVar[tuple[int, int]] = (0, 1)
    parts: ClassVar[tuple[str, ...]] = ("indices",)

    def __post_init__(self) -> None:
        if not 1 <= self.most <= MOST:
            raise BadRecipe(f"palette: most = {self.most}, 1 to {MOST} are possible")

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        table, used, places = kernels.scratch()
        values = np.empty(self.most, np.uint64)
        k = kernels.find_palette(x, table, used, values, self.most)
        if not 0 < k <= self.most:
            return None
        palette = np.sort(values[:k])
        indices = np.empty(x.size, np.uint8)
        kernels.index_palette(x, palette, table, places, indices)
        return Encoded(varint(k - 1) + palette.astype(x.dtype).tobytes(), (indices,))

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        _values(header, width)
        return Layout((PartShape(1, n),), 0)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        palette = _values(header, out.itemsize).view(out.dtype)
        if kernels.look_up(parts[0], palette, out):
            raise CorruptFile("palette: an index is past the palette's end")


def _values(header: bytes, width: int) -> Array:
    """The palette's bytes of an untrusted header."""
    reader = Reader(header, "palette")
    k = reader.varint(MOST - 1) + 1
    values = np.frombuffer(bytearray(reader.take(k * width)), np.uint8)
    reader.end()
    return values
