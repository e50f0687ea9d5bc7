"""Where checkpoints are read from, front to back: local files and folders, pipes and other file objects, URLs through fsspec."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modelcodec.errors import BadRecipe, UnsupportedFile
from modelcodec.formats.folder import INDEX_PART
from modelcodec.formats.paths import inside, shard_names

HTTP = ("http", "https")
STREAMED = (*HTTP, "hf")
"""Protocols whose fsspec files come over one connection when opened with a block size of 0."""
BLOCK_BYTES = 32 << 20
"""What is asked for at a time from the others: object stores take tens of milliseconds for each request."""
SILENT_SECONDS = 60
"""A connection that gives nothing for so long is taken for dead."""
SAFETENSORS = ".safetensors"
ENDINGS = (SAFETENSORS, ".mcodec")


class Readable(Protocol):
    """What is needed of a file object."""

    def readinto(self, buffer: Any, /) -> int | None: ...


Location = str | os.PathLike[str] | Readable


@dataclass(frozen=True, slots=True)
class Source:
    """An open source. `size` is known of local files, in which going back costs nothing."""

    file: Any
    name: str
    size: int | None


def name_of(location: Location) -> str:
    """For messages."""
    return os.fspath(location) if isinstance(location, str | os.PathLike) else str(getattr(location, "name", "-"))


@contextmanager
def opened(location: Location) -> Iterator[Source]:
    """A source to be read front to back, closed afterwards unless it is the caller's file object. Raises OSError, BadRecipe."""
    if not isinstance(location, str | os.PathLike):
        yield Source(location, name_of(location), None)
    elif _is_url(place := os.fspath(location)):
        with _opened_remote(place) as file:
            yield Source(file, place, None)
    else:
        with open(place, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            regular = stat.S_ISREG(status.st_mode)
            if regular and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            yield Source(file, place, status.st_size if regular else None)


def files_of(location: Location) -> tuple[Location, ...]:
    """The files that a location stands for: itself, or the shards of a folder or of an index of shards, in the index's order.

    Raises OSError, UnsupportedFile for a folder that holds no one checkpoint, UnsafeInput and CorruptFile for an index that cannot be used.
    """
    if not isinstance(location, str | os.PathLike):
        return (location,)
    place = os.fspath(location)
    if _is_url(place):
        filesystem, path = _filesystem(place)
        if _protocol(place) not in HTTP and filesystem.isdir(path):
            names = [found.rstrip("/").rpartition("/")[2] for found in filesystem.ls(path, detail=False)]
            place = f"{place.rstrip('/')}/{_checkpoint_of(names, place)}"
        if not _is_index(place.rpartition("/")[2]):
            return (place,)
        shards = shard_names(filesystem.cat_file(_filesystem(place)[1]))
        return tuple(f"{place.rpartition('/')[0]}/{name}" for name in shards)
    local = Path(place)
    if local.is_dir():
        local = local / _checkpoint_of(os.listdir(local), place)
    if not _is_index(local.name):
        return (local,)
    return tuple(inside(local.parent, name, cached=True) for name in shard_names(local.read_bytes()))


def _is_url(place: str) -> bool:
    return "://" in place


def _is_index(name: str) -> bool:
    return INDEX_PART in name and name.endswith(".json")


def _checkpoint_of(names: Sequence[str], where: str) -> str:
    """The index of a folder's shards, or its only checkpoint: safetensors before other formats."""
    for found in (
        [name for name in names if _is_index(name) and SAFETENSORS in name],
        [name for name in names if _is_index(name)],
        [name for name in names if name.endswith(ENDINGS)],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            raise UnsupportedFile(f"{where}: a folder with several checkpoints ({', '.join(sorted(found)[:4])}); name one of them")
    raise UnsupportedFile(f"{where}: a folder without a checkpoint (*.safetensors, *.mcodec or an index of shards); name the file")


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(url, **_options(url))
    except (ImportError, ValueError) as error:
        raise BadRecipe(f"{url}: this kind of address needs fsspec and its package for it ({error}); pip install 'modelcodec[remote]'") from error
    return filesystem, path


def _options(url: str) -> dict[str, Any]:
    """For HTTP: a request lasts as long as bytes come, not five minutes at most, and goes through the proxy that the environment names."""
    if _protocol(url) not in HTTP:
        return {}
    from fsspec.implementations.http import aiohttp

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=SILENT_SECONDS, sock_read=SILENT_SECONDS), "trust_env": True}}


def _protocol(url: str) -> str:
    return url.partition("://")[0]


@contextmanager
def _opened_remote(url: str) -> Iterator[Any]:
    filesystem, path = _filesystem(url)
    try:
        file = filesystem.open(path, "rb", block_size=0 if _protocol(url) in STREAMED else BLOCK_BYTES)
    except OSError:
        raise
    except Exception as error:  # each filesystem has errors of its own
        raise OSError(f"{url}: {error}") from error
    try:
        yield file
    finally:
        with suppress(Exception):
            file.close()
