"""widen (8): words stored wider than they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.kernels import planes as kernels
from modelcodec.stage import Encoded, FrameContext, Layout, PartShape, Stage
from modelcodec.types import Array
from modelcodec.wire import Reader

BFLOAT16, FLOAT16, FLOAT32 = 1, 2, 3
WIDTHS: dict[int, tuple[int, int]] = {BFLOAT16: (4, 2), FLOAT16: (4, 2), FLOAT32: (8, 4), 4: (4, 1), 5: (4, 2), 6: (8, 1), 7: (8, 2), 8: (8, 4)}
"""kind -> (width, narrow width), as docs/stages.md has them."""


@dataclass(frozen=True)
class Widen(Stage):
    """Words that a narrower type holds exactly; applies only where it does for all. exact · parts: narrow."""

    kind: int = BFLOAT16

    id: ClassVar[int] = 8
    name: ClassVar[str] = "widen"
    since: ClassVar[tuple[int, int]] = (0, 1)
    parts: ClassVar[tuple[str, ...]] = ("narrow",)

    def __post_init__(self) -> None:
        if self.kind not in WIDTHS:
            raise BadRecipe(f"widen: kind = {self.kind}, {min(WIDTHS)} to {max(WIDTHS)} are possible")

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        width, _ = WIDTHS[self.kind]
        if x.itemsize != width:
            return None
        narrow = _narrow(x, self.kind)
        back = np.empty_like(x)
        if _widen(narrow, self.kind, back) or not np.array_equal(back, x):
            return None
        return Encoded(bytes([self.kind]), (narrow,))

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        reader = Reader(header, "widen")
        kind = reader.u8()
        reader.end()
        if kind not in WIDTHS or WIDTHS[kind][0] != width:
            raise CorruptFile(f"widen: kind {kind} is not one for words of {width} bytes")
        return Layout((PartShape(WIDTHS[kind][1], n),), 0)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        if _widen(parts[0], header[0], out):
            raise CorruptFile("widen: a narrow number is not one")


def _narrow(x: Array, kind: int) -> Array:
    """The narrow words that x would have; wrong ones where it has none, which widening again shows."""
    narrow_type = np.dtype(f"<u{WIDTHS[kind][1]}")
    if kind == BFLOAT16:
        return (x >> np.uint32(16)).astype(narrow_type)
    if kind in (FLOAT16, FLOAT32):
        with np.errstate(all="ignore"):
            return x.view(f"<f{x.itemsize}").astype(f"<f{x.itemsize // 2}").view(narrow_type)
    return x.astype(narrow_type)


def _widen(narrow: Array, kind: int, out: Array) -> int:
    if kind == FLOAT16:
        return int(kernels.half_to_single(narrow, out))
    if kind == FLOAT32:
        return int(kernels.single_to_double(narrow, out))
    out[:] = narrow
    if kind == BFLOAT16:
        out <<= np.uint32(16)
    return 0
