"""raw (0): the words as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelcodec.errors import CorruptFile
from modelcodec.stage import Encoded, FrameContext, Layout, Stage
from modelcodec.types import Array


@dataclass(frozen=True)
class Raw(Stage):
    """Words stored as they are. exact · no parts."""

    id: ClassVar[int] = 0
    name: ClassVar[str] = "raw"
    since: ClassVar[tuple[int, int]] = (0, 1)

    def encode(self, x: Array, context: FrameContext) -> Encoded:
        return Encoded(b"", payload=x.view(np.uint8))

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if header:
            raise CorruptFile("raw: has a header")
        return Layout((), width * n)

    @classmethod
    def bytes_of(cls, header: bytes, payload: Array, n_bytes: int) -> Array:
        return payload

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        out.view(np.uint8)[:] = payload
