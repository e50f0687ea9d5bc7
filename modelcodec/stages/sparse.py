"""sparse (7): which words are the fill, mostly zero, and the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.kernels import masks as kernels
from modelcodec.kernels.planes import PADDING, RANGE
from modelcodec.stage import Encoded, FrameContext, Layout, PartShape, Stage
from modelcodec.types import Array
from modelcodec.wire import Reader, varint

_FAULTS = {
    kernels.COUNT: "sparse: the mask's ones are not as many as the values",
    PADDING: "sparse: the mask's padding is not zero",
    RANGE: "sparse: a value is the fill",
}


@dataclass(frozen=True)
class Sparse(Stage):
    """The `fill`, nearly always zero, as a mask of bits; the other words as a shorter array. Applies where the fill occurs.

    Every pruning method ends here; weights that were multiplied by a mask hold -0 as well, which a second sparse inside the first takes.
    exact · parts: mask, values.
    """

    fill: int = 0

    id: ClassVar[int] = 7
    name: ClassVar[str] = "sparse"
    since: ClassVar[tuple[int, int]] = (0, 1)
    parts: ClassVar[tuple[str, ...]] = ("mask", "values")

    def __post_init__(self) -> None:
        if not 0 <= self.fill < 1 << 64:
            raise BadRecipe(f"sparse: fill is {self.fill}, no word has it")

    @classmethod
    def option(cls, name: str, text: str) -> int:
        """A word of up to 64 bits, as a decimal number."""
        if not (text.isascii() and text.isdecimal()) or len(text) > 20:
            raise BadRecipe(f"sparse: {name} = {text!r} is no whole number")
        return int(text)

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        if self.fill >> (8 * x.itemsize):
            return None
        mask = np.empty((x.size + 7) // 8, np.uint8)
        values = np.empty_like(x)
        n_values = kernels.split_mask(x, x.dtype.type(self.fill), mask, values)
        if n_values == x.size:
            return None
        fill = self.fill.to_bytes(x.itemsize, "little") if self.fill else b""
        return Encoded(varint(n_values) + fill, (mask, values[:n_values]))

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        n_values, _ = _read(header, width, n)
        return Layout((PartShape(1, (n + 7) // 8), PartShape(width, n_values)), 0)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        _, fill = _read(header, out.itemsize, out.size)
        fault = kernels.merge_mask(parts[0], parts[1], out.dtype.type(fill), out)
        if fault:
            raise CorruptFile(_FAULTS[fault])


def _read(header: bytes, width: int, n: int) -> tuple[int, int]:
    """Number of values, and fill, of an untrusted header."""
    reader = Reader(header, "sparse")
    n_values = reader.varint(n)
    if not reader.remaining:
        return n_values, 0
    fill = reader.uint(width)
    reader.end()
    if not fill:
        raise CorruptFile("sparse: a fill of zero is not written")
    return n_values, fill
