"""constant (1): one word, many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from modelcodec.errors import CorruptFile
from modelcodec.stage import Encoded, FrameContext, Layout, Stage
from modelcodec.types import Array


@dataclass(frozen=True)
class Constant(Stage):
    """All words are equal; applies only then. exact · no parts."""

    id: ClassVar[int] = 1
    name: ClassVar[str] = "constant"
    since: ClassVar[tuple[int, int]] = (0, 1)

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        if x.size == 0 or x[-1] != x[0] or not (x == x[0]).all():
            return None
        return Encoded(x[:1].tobytes())

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        if len(header) != width:
            raise CorruptFile(f"constant: the header has {len(header)} bytes, a word has {width}")
        return Layout((), 0)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        out[:] = int.from_bytes(header, "little")
