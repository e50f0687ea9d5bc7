"""planes (5): the bytes of each word, apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelcodec.errors import CorruptFile
from modelcodec.stage import Encoded, FrameContext, Layout, PartShape, Stage
from modelcodec.types import Array


@dataclass(frozen=True)
class Planes(Stage):
    """Byte k of every word to part k: high bytes of integers repeat, low ones may not. exact."""

    id: ClassVar[int] = 5
    name: ClassVar[str] = "planes"
    since: ClassVar[tuple[int, int]] = (0, 1)
    parts: ClassVar[tuple[str, ...]] = tuple(f"plane {k}" for k in range(8))

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        if x.itemsize == 1:
            return None
        return Encoded(b"", tuple(np.ascontiguousarray(x.view(np.uint8)[k :: x.itemsize]) for k in range(x.itemsize)))

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if header or width == 1:
            raise CorruptFile("planes: has a header, or words of one byte")
        return Layout((PartShape(1, n),) * width, 0)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        octets = out.view(np.uint8)
        for k, part in enumerate(parts):
            octets[k :: out.itemsize] = part
