"""A container whose bytes are elsewhere, or still on their way: what is decoded is fetched, or waited for."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import TypeAlias, get_args

import numpy as np

from modelcodec.base import Found, Source
from modelcodec.errors import CorruptFile, TruncatedFile
from modelcodec.formats import container
from modelcodec.formats.container import Container
from modelcodec.formats.container_layout import Entry
from modelcodec.hub.bases import find_base
from modelcodec.hub.remote_file import RemoteFile
from modelcodec.hub.repository import Address, snapshot
from modelcodec.limits import LIMITS
from modelcodec.pool import thread_count
from modelcodec.tensor_file import Framework, TensorFile
from modelcodec.types import Array

Take: TypeAlias = "Callable[[int, int], memoryview]"
"""Bytes start .. end - 1 of a file, which has them. Raises OSError."""

FRONT_BYTES = 1 << 14
"""Asked for at once of a file that is opened: the header and directory of most small files, and the length of the header of all."""


def _not_there(start: int, end: int) -> memoryview:
    raise AssertionError("a remote container is given its bytes")


@dataclass(frozen=True)
class RemoteContainer(Container):
    """A container that asks `take` for the bytes of the frames that are decoded; `buffer` has header and directory alone."""

    take: Take = _not_there

    def decode_frames(self, entry: Entry, first: int, out: Array) -> list[int]:
        """As Container's. Frames that share a part are fetched from that on."""
        start, end = self._stretch(entry, first, -(-out.size // (entry.frame_words * entry.spec.dtype.word)))
        window = _plain(self, self.take(start, end), f"{self.where}, counted from byte {start}")
        return window.decode_frames(entry.moved(start), first, out)

    def decode_runs(self, runs: Sequence[tuple[Entry, int, Array]]) -> list[list[int]]:
        return [self.decode_frames(*run) for run in runs]

    def decode_frame(self, entry: Entry, number: int, out: Array) -> int:
        return self.decode_frames(entry, number, out.view(np.uint8))[0]

    def _stretch(self, entry: Entry, first: int, n: int) -> tuple[int, int]:
        """Where the bytes of n frames lie, shared parts before them and padding behind the last frame included."""
        whole = entry.start + entry.size
        if not entry.coded:
            step = entry.frame_words * entry.spec.dtype.word
            return entry.start + first * step, min(entry.start + (first + n) * step, whole)
        low = entry.shared[first // entry.group_frames][0] if entry.shared else int(entry.frame_starts[first])
        return entry.start + low, whole if first + n == entry.n_frames else entry.span(first + n - 1)[1]


def _plain(source: Container, buffer: memoryview, where: str) -> Container:
    """The same archive over other bytes, without what it has decoded so far."""
    kept = {field.name: getattr(source, field.name) for field in fields(Container) if field.init and not field.name.startswith("_")}
    return Container(**kept | {"buffer": buffer, "where": where})


def is_container(take: Take, size: int) -> bool:
    """Whether a file of `size` bytes starts like a container. Reads no more than a header."""
    n_header = int.from_bytes(take(0, 8), "little") if size >= 8 else size
    return n_header <= min(LIMITS.header_bytes, size - 8) and container.is_container(take(0, 8 + n_header))


def read_container(take: Take, size: int, where: str) -> RemoteContainer:
    """Parse header and directory of an untrusted container of `size` bytes. Raises what `container.read` raises, OSError."""
    position = 0

    def following(n: int) -> memoryview:
        nonlocal position
        if position + n > size:
            raise TruncatedFile(f"{where}: header and directory end at byte {position + n}, the file at {size}; upload it again")
        position += n
        return take(position - n, position)

    archive = container.read_front(following, where)
    end = archive.entries[-1].start + archive.entries[-1].size
    if end > size:
        raise TruncatedFile(f"{where}: {archive.entries[-1].name} ends at byte {end}, the file at {size}; upload it again")
    if end < size:
        raise CorruptFile(f"{where}: {size - end} bytes follow the last entry; the file is damaged, upload it again")
    plain = _plain(archive, archive.buffer, where)
    return RemoteContainer(**{field.name: getattr(plain, field.name) for field in fields(Container) if field.init}, take=take)


def open_remote(address: str, name: str, framework: Framework = "np", *, threads: int | None = None, base: Source | None = None) -> TensorFile:
    """Open a compressed checkpoint in a repository, as `modelcodec.open` does a local one.

    `address`: `user/repo` or `user/repo@revision`. Only header and directory travel, and then the frames of the tensors and slices that are asked for; at level
    9, where up to 8 frames share a part, what stands before them in their group too. Nothing is kept on disk, but for the base of a delta (`base`: as for
    `pull`).

    raises: OSError; UnsupportedFile for a file that modelcodec did not write; CorruptFile, TruncatedFile, LimitExceeded, where they are met.
    """
    if framework not in get_args(Framework):
        raise ValueError(f"framework is {framework!r}, 'np' and 'pt' are possible")
    found = snapshot(Address.parse(address))
    stored = next((file for file in found.files if file.name == name), None)
    if stored is None:
        raise FileNotFoundError(errno.ENOENT, "the repository has no such file; check its name", f"{address}/{name}")
    remote = RemoteFile(found, stored)
    return _RemoteTensorFile(read_container(fetching(remote), remote.size, remote.where), framework, threads, base or find_base)


def fetching(remote: RemoteFile) -> Take:
    """What fetches the bytes of a remote file, of which the first are asked for once."""
    front = remote.read(0, min(FRONT_BYTES, remote.size))

    def take(start: int, end: int) -> memoryview:
        return front[start:end] if end <= len(front) else memoryview(bytes(front[start:]) + remote.read(max(start, len(front)), end))

    return take


class _RemoteTensorFile(TensorFile):
    """A TensorFile over a container that is fetched."""

    def __init__(self, archive: Container, framework: Framework, threads: int | None, base: Source) -> None:
        self._torch, self._threads, self._stack = framework in ("pt", "torch"), thread_count(threads), ExitStack()
        self._open(Found.of(archive, None, base, self._stack))
