"""Saving compressed: what any library writes with safetensors becomes a container of the same name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any

from modelcodec.errors import BadRecipe
from modelcodec.runtime.rebinding import rebind


class _Wish:
    """That saves be compressed, at this level. The latest one decides."""

    def __init__(self, level: int | None) -> None:
        self.level = level


_LOCK = RLock()
_wishes: list[_Wish] = []
_put_back: list[Callable[[], None]] = []


@contextmanager
def compressed_saves(*, level: int | None = None) -> Iterator[None]:
    """Within the block, `save_pretrained`, Trainer, Accelerator and all else that writes safetensors files writes them compressed, under the same names.

    Which tensors go to which file, the index and the metadata stay as they were; each file appears complete or not at all. Holds for the whole process. Reading
    them back takes `install()`. `level`: 1, 5 (default) or 9.

    disk: for a while the uncompressed file lies in a hidden folder beside the compressed one. raises: BadRecipe for a level that does not exist.
    """
    end = begin_saving(level)
    try:
        yield
    finally:
        end()


def begin_saving(level: int | None) -> Callable[[], None]:
    """Let saves be compressed until the function that this gives is called, or longer where somebody else wants it, too."""
    if level is not None:
        _check(level)
    wish = _Wish(level)
    with _LOCK:
        if not _wishes:
            import safetensors

            _put_back.append(rebind([(safetensors.serialize_file, _compressing(safetensors.serialize_file))]))
        _wishes.append(wish)

    def end() -> None:
        with _LOCK:
            _wishes.remove(wish)
            if not _wishes:
                _put_back.pop()()

    return end


def _check(level: int) -> None:
    """Before anything is trained for hours."""
    from modelcodec.recipe import LEVELS

    if level not in LEVELS:
        raise BadRecipe(f"level {level} does not exist; the levels are {', '.join(map(str, LEVELS))}")


def _compressing(real: Callable[..., None]) -> Callable[..., None]:
    @wraps(real)
    def serialize_file(tensor_dict: Any, filename: Any, metadata: Any = None) -> None:
        with _LOCK:
            level = _wishes[-1].level if _wishes else None
        target = Path(filename)
        with TemporaryDirectory(prefix=".mcodec-", dir=target.parent) as folder:
            plain, packed = Path(folder, "plain"), Path(folder, "packed")
            real(tensor_dict, plain, metadata)
            os.replace(packed if _compress(plain, packed, level) else plain, target)

    return serialize_file


def _compress(plain: Path, packed: Path, level: int | None) -> bool:
    """Whether the tensors could be compressed one by one: a file that has a name which the container keeps for itself is better left as it is."""
    from modelcodec.api import compress

    return compress(plain, packed, level=level).format == "safetensors"
