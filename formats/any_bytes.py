"""Any file, as one tensor of bytes: the format for what no other reader understands."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from modelcodec.types import U8, Checkpoint, Extent, TensorSpec


class AnyBytes:
    name: ClassVar[str] = "bytes"

    def sniff(self, source: memoryview, path: Path | None) -> bool:
        return True

    def read(self, source: memoryview, path: Path | None) -> Checkpoint:
        """One extent named `bytes` over the whole file; an empty file has none."""
        extents = (Extent(TensorSpec("bytes", U8, (len(source),)), 0),) if len(source) else ()
        return Checkpoint(self.name, extents)
