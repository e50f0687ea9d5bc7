"""The two functions through which everything in safetensors reads, made to read containers too.

This module is imported wherever the hook is on: what decodes is imported with the first container.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from modelcodec.formats import MARKER, OWN_PREFIX
from modelcodec.limits import LIMITS

_LENGTH_BYTES = 8
_DIRECTORY = f"{OWN_PREFIX}directory"


def is_marked(data: bytes) -> bool:
    """Whether a safetensors file, of which at least the header is there, says that it is a container: cheap, and exact, so that no other file is taken for one.

    A header that cannot be parsed is not: safetensors tells what is wrong with it.
    """
    n_header = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = data[_LENGTH_BYTES : _LENGTH_BYTES + min(n_header, LIMITS.header_bytes)]
    if MARKER.encode() not in header:
        return False
    try:
        table = json.loads(header)
    except (ValueError, RecursionError):
        return False
    metadata = table.get("__metadata__") if isinstance(table, dict) else None
    return isinstance(table, dict) and (_DIRECTORY in table or (isinstance(metadata, dict) and MARKER in metadata))


def is_marked_file(path: object) -> bool:
    """The same of a file; False for what cannot be opened, which safetensors reports in its own words."""
    if not isinstance(path, str | os.PathLike):
        return False
    try:
        with Path(path).open("rb") as file:
            start = file.read(_LENGTH_BYTES)
            return is_marked(start + file.read(min(int.from_bytes(start, "little"), LIMITS.header_bytes)))
    except (OSError, TypeError, ValueError):
        return False


class _SafeOpen(type):
    """Metaclass of a class that stands for `safe_open`: calling it gives what `safe_open` gives, or a Shard where the file is a container.

    A class, because `safe_open` is one: it stands in annotations and in `isinstance`.
    """

    real: Any

    def __call__(cls, filename: Any, framework: Any, device: Any = "cpu", **options: Any) -> Any:
        if is_marked_file(filename):
            from modelcodec.runtime.shard import open_shard

            # Checks its own arguments, in its own words.
            return open_shard(filename, framework, device, lambda: cls.real(filename, framework, device, **options))
        return cls.real(filename, framework, device, **options)

    def __instancecheck__(cls, instance: object) -> bool:
        from modelcodec.runtime.shard import Shard

        return isinstance(instance, (cls.real, Shard))

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls.real, name)


def reading_safe_open(real: Any) -> Any:
    """A `safe_open` that also opens containers."""
    return _SafeOpen(real.__name__, (), {"real": real, "__doc__": real.__doc__, "__module__": "safetensors"})


def reading_deserialize(real: Callable[..., Any]) -> Callable[..., Any]:
    """A `deserialize` that also takes the bytes of a container."""

    @wraps(real)
    def deserialize(data: Any, /) -> Any:
        if isinstance(data, bytes) and is_marked(data):
            from modelcodec.runtime.shard import deserialized

            return deserialized(data)
        return real(data)

    return deserialize
