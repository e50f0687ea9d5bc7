"""From a container back to the source file, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from modelcodec.arena import Buffers
from modelcodec.errors import CorruptFile
from modelcodec.formats import container
from modelcodec.limits import LIMITS
from modelcodec.pool import ordered
from modelcodec.types import Array

RUN_FRAMES = 2
"""Frames that a thread decodes at a time: side by side where the processor's arm can."""

Progress = Callable[[int, int], None]


class Sink(Protocol):
    """What restored bytes are written to, front to back."""

    def write(self, data: memoryview, /) -> object: ...


@dataclass(frozen=True, slots=True)
class _Job:
    """`n` frames of an entry, from number `first` on."""

    entry: container.Entry
    first: int
    n: int


def restore(source: container.Container, sink: Sink | None, threads: int, progress: Progress | None) -> None:
    """Decode everything, check every digest, and write the source file to `sink` (None: check only).

    memory: the skeleton and four frames a thread. Raises CorruptFile, LimitExceeded, UnsupportedFile, OSError.
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
    source.views(), source.losses()
    at = 0
    buffers = Buffers(RUN_FRAMES * LIMITS.frame_bytes)
    decoded = ordered(lambda job: _decode(source, job, buffers), _jobs(source), threads)
    for entry in source.tensors:
        put(skeleton[at : at + entry.gap])
        at += entry.gap
        digests: list[int] = []
        while len(digests) < source.resolve(entry).n_frames:
            buffer, n_bytes, run = next(decoded)
            digests += run
            put(buffer.data[:n_bytes])
            buffers.give(buffer)
        container.check_tensor_digest(entry, digests, source.where)
    put(skeleton[at:])
    if sha256 and source.sha256 and sha256.digest() != source.sha256:
        raise CorruptFile(f"{source.where}: the restored file's SHA-256 is {sha256.hexdigest()}, it should be {source.sha256.hex()}")


def _jobs(source: container.Container) -> Iterator[_Job]:
    for entry in source.tensors:
        holder = source.resolve(entry)
        for first in range(0, holder.n_frames, RUN_FRAMES):
            yield _Job(holder, first, min(RUN_FRAMES, holder.n_frames - first))


def _decode(source: container.Container, job: _Job, buffers: Buffers) -> tuple[Array, int, list[int]]:
    """A buffer, the bytes decoded into it, and the digests of their frames."""
    entry = job.entry
    n_bytes = min(job.n * entry.frame_words, entry.spec.n_words - job.first * entry.frame_words) * entry.spec.dtype.word
    buffer = buffers.take(n_bytes)
    return buffer, n_bytes, source.decode_frames(entry, job.first, buffer[:n_bytes])
