"""Which file names may be read or written because an untrusted file says so.

The rule holds on every system for every other: a name that is harmless here but leaves its folder, opens a device or replaces a neighbour elsewhere is refused.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from modelcodec.errors import CorruptFile, LimitExceeded, UnsafeInput
from modelcodec.limits import LIMITS

_PART_BYTES_MOST = 255
_QUOTED_MOST = 100
_WEIGHT_MAP = "weight_map"

# Windows takes these for devices in every folder, whatever the case and whatever follows the first dot.
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|$)", re.IGNORECASE)


def check_name(name: str) -> PurePosixPath:
    """The relative path that `name` spells with slashes. Raises UnsafeInput unless it stays in its folder and means the same on every system."""
    try:
        n_bytes = len(name.encode())
    except UnicodeEncodeError as error:
        raise _unsafe(name, "is no Unicode text") from error
    if not n_bytes or n_bytes > LIMITS.path_bytes:
        raise _unsafe(name, f"has {n_bytes} bytes, 1 to {LIMITS.path_bytes} are allowed")
    if "\\" in name or ":" in name:
        raise _unsafe(name, "has a backslash or a colon, which Windows takes for a path or a drive")
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in name):
        raise _unsafe(name, "has a control character")
    for part in name.split("/"):
        if part in ("", ".", ".."):
            raise _unsafe(name, "is absolute, or leaves its folder, or has an empty part")
        if part[-1] in ". ":
            raise _unsafe(name, "has a part that ends in a dot or a space, which Windows drops")
        if _DEVICE.match(part):
            raise _unsafe(name, f"has the part {part[:_QUOTED_MOST]!a}, a device on Windows")
        if len(part.encode()) > _PART_BYTES_MOST:
            raise _unsafe(name, f"has a part of more than {_PART_BYTES_MOST} bytes")
    return PurePosixPath(name)


def check_names(names: Iterable[str]) -> tuple[PurePosixPath, ...]:
    """As `check_name` for files that will stand together. Raises UnsafeInput also where two differ only in case or Unicode form, or are the same."""
    spelled: dict[tuple[str, ...], str] = {}
    files: set[tuple[str, ...]] = set()
    folders: set[tuple[str, ...]] = set()
    paths = []
    for name in names:
        path = check_name(name)
        folded = tuple(unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold()) for part in path.parts)
        for n in range(1, len(folded) + 1):
            spelling = "/".join(path.parts[:n])
            if spelled.setdefault(folded[:n], spelling) != spelling:
                raise _unsafe(name, f"differs from {spelled[folded[:n]][:_QUOTED_MOST]!a} only in case")
        if folded in files:
            raise _unsafe(name, "stands there twice")
        files.add(folded)
        folders.update(folded[:n] for n in range(1, len(folded)))
        paths.append(path)
    if both := files & folders:
        raise _unsafe(spelled[min(both)], "is both a file and a folder")
    return tuple(paths)


def inside(folder: Path, name: str, *, cached: bool = False) -> Path:
    """The path of the file `name` in `folder`, also where symbolic links are on the way. Raises UnsafeInput where it leaves the folder.

    `cached` lets the file itself, but no folder on the way, be a link to elsewhere, as in Hugging Face's cache: for reading only.
    """
    path = folder / check_name(name)
    if not (path.parent if cached else path).resolve().is_relative_to(folder.resolve()):
        raise _unsafe(name, f"leads out of {folder} through a symbolic link")
    return path


def shard_names(index: bytes | memoryview) -> tuple[str, ...]:
    """The file names in a sharded checkpoint's index, each once, in order, checked. Raises UnsafeInput, CorruptFile for what is no index, LimitExceeded.

    Every `weight_map` in the file is looked at: where a key is repeated, other readers may take another one than Python does.
    """
    if len(index) > LIMITS.header_bytes:
        raise LimitExceeded(f"index of {len(index)} bytes, at most {LIMITS.header_bytes} are read; the file is damaged or hostile")
    maps: list[object] = []

    def note(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        maps.extend(value for key, value in pairs if key == _WEIGHT_MAP)
        return _RepeatedKeys(pairs)

    try:
        json.loads(bytes(index), object_pairs_hook=note)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"index of shards is no JSON ({error}); the file is damaged, fetch it again") from error
    names: dict[str, None] = {}
    for weight_map in maps:
        if not isinstance(weight_map, _RepeatedKeys) or not all(type(value) is str for _, value in weight_map.pairs):
            raise CorruptFile("index of shards: weight_map does not map names to file names; the file is damaged, fetch it again")
        names.update((value, None) for _, value in weight_map.pairs)
    check_names(names)
    return tuple(names)


class _RepeatedKeys(dict[str, Any]):
    """A JSON object that also remembers the values of keys that occur twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def _unsafe(name: str, fact: str) -> UnsafeInput:
    return UnsafeInput(f"file name {name[:_QUOTED_MOST]!a} {fact}; do not use this file unless you trust its author")
