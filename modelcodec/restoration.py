"""From a container back to the source file, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from modelcodec import frame as frames
from modelcodec.arena import Buffers
from modelcodec.errors import CorruptFile
from modelcodec.formats import container
from modelcodec.limits import LIMITS
from modelcodec.pool import ordered
from modelcodec.types import Array

Progress = Callable[[int, int], None]


class Sink(Protocol):
    """What restored bytes are written to, front to back."""

    def write(self, data: memoryview, /) -> object: ...


@dataclass(frozen=True, slots=True)
class _Job:
    entry: container.Entry
    number: int


def restore(source: container.Container, sink: Sink | None, threads: int, progress: Progress | None) -> None:
    """Decode everything, check every digest, and write the source file to `sink` (None: check only).

    memory: the skeleton and two frames a thread. Raises CorruptFile, LimitExceeded, UnsupportedFile, OSError.
    """
    sha256 = hashlib.sha256() if source.sha256 else None
    done = 0

    def put(data: memoryview) -> None:
        nonlocal done
        if sink:
            sink.write(data)
        if sha256:
            sha256.update(data)
        done += len(data)
        if progress:
            progress(done, source.source_size)

    skeleton = memoryview(source.decode_entry(source.skeleton))
    source.views()
    at = 0
    buffers = Buffers(LIMITS.frame_bytes)
    decoded = ordered(lambda job: _decode(source, job, buffers), _jobs(source), threads)
    for entry in source.tensors:
        put(skeleton[at : at + entry.gap])
        at += entry.gap
        digests = []
        for _ in range(source.resolve(entry).n_frames):
            buffer, n_bytes, digest = next(decoded)
            digests.append(digest)
            put(buffer.data[:n_bytes])
            buffers.give(buffer)
        container.check_tensor_digest(entry, digests, source.where)
    put(skeleton[at:])
    if sha256 and source.sha256 and sha256.digest() != source.sha256:
        raise CorruptFile(f"{source.where}: the restored file's SHA-256 is {sha256.hexdigest()}, it should be {source.sha256.hex()}")


def _jobs(source: container.Container) -> Iterator[_Job]:
    for entry in source.tensors:
        holder = source.resolve(entry)
        for number in range(holder.n_frames):
            yield _Job(holder, number)


def _decode(source: container.Container, job: _Job, buffers: Buffers) -> tuple[Array, int, int]:
    """A buffer, the bytes decoded into it, and their digest."""
    word = job.entry.spec.dtype.word
    n_bytes = job.entry.words_of(job.number) * word
    buffer = buffers.take(n_bytes)
    return buffer, n_bytes, source.decode_frame(job.entry, job.number, buffer[:n_bytes].view(frames.WORD[word]))
