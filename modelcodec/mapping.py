"""Files as memory: mapped read-only, so that a file larger than memory works and nothing can change it through us."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def mapped(source: Path | BinaryIO) -> Iterator[memoryview]:
    """A file's bytes as a memoryview, valid inside the block. Raises OSError."""
    if isinstance(source, Path):
        with open(source, "rb") as file, mapped(file) as view:
            yield view
        return
    source.seek(0, 2)
    if source.tell() == 0:
        yield memoryview(b"")
        return
    area = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    view = memoryview(area)
    try:
        yield view
    finally:
        # An error's traceback may still hold arrays over the mapping; it then lives as long as they do.
        with suppress(BufferError):
            view.release()
            area.close()
