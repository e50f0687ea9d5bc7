"""torch's own files, opened compressed."""

from __future__ import annotations

from io import BufferedReader
from pathlib import Path
from typing import Any

from modelcodec.formats import container
from modelcodec.mapping import mapped
from modelcodec.runtime.restored_file import RestoredFile


def torch_load(path: str | Path, map_location: Any = None, *, threads: int | None = None) -> Any:
    """What `torch.load(path, map_location, weights_only=True)` gives, from a compressed `.pt`, `.pth`, `.bin` or `.ckpt`, or from one that is not compressed.

    torch reads the file while it is decoded: nothing is written to disk, and its pickle runs under the rules of `weights_only`, as with the original.

    memory: the tensors, the skeleton, and one frame. raises: CorruptFile, UnsupportedFile, LimitExceeded, and what torch.load raises.
    """
    import torch

    with mapped(Path(path)) as view:
        compressed = container.is_container(view)
    if not compressed:
        return torch.load(path, map_location, weights_only=True)
    file = RestoredFile(path, threads=threads)
    with BufferedReader(file) as reader:
        try:
            return torch.load(reader, map_location, weights_only=True)
        except Exception:
            # torch's readers in C++ turn a file object's error into one of their own.
            if file.damage is not None:
                raise file.damage from None
            raise
