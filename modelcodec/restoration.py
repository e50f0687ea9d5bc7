"""From a container back to the source file, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelcodec.arena import ALIGNMENT, Buffers
from modelcodec.errors import CorruptFile
from modelcodec.formats import container
from modelcodec.formats.container_layout import Entry
from modelcodec.limits import LIMITS
from modelcodec.pool import ordered
from modelcodec.types import Array

RUN_FRAMES = 2
"""Frames of an entry that a thread decodes at a time: side by side where the processor's arm can."""
_JOB_BYTES, _JOB_RUNS = RUN_FRAMES * LIMITS.frame_bytes, 64
"""What it decodes of several entries at a time, at most."""

Progress = Callable[[int, int], None]


class Sink(Protocol):
    """What restored bytes are written to, front to back."""

    def write(self, data: memoryview, /) -> object: ...


@dataclass(frozen=True, slots=True)
class _Run:
    """Frames of an entry from number `first` on, and the bytes of a buffer that they fill, from `at` on."""

    entry: Entry
    first: int
    at: int
    n_bytes: int


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
    decoded = _decoded(source, threads)
    for entry in source.tensors:
        put(skeleton[at : at + entry.gap])
        at += entry.gap
        digests: list[int] = []
        while len(digests) < source.resolve(entry).n_frames:
            data, run = next(decoded)
            digests += run
            put(data)
        container.check_tensor_digest(entry, digests, source.where)
    put(skeleton[at:])
    if sha256 and source.sha256 and sha256.digest() != source.sha256:
        raise CorruptFile(f"{source.where}: the restored file's SHA-256 is {sha256.hexdigest()}, it should be {source.sha256.hex()}")


def _decoded(source: container.Container, threads: int) -> Iterator[tuple[memoryview, list[int]]]:
    """All tensors' bytes, front to back, each piece until the next one is asked for, and the digests of their frames."""
    buffers = Buffers(_JOB_BYTES)

    def decode(job: Sequence[_Run]) -> tuple[Sequence[_Run], Array, list[list[int]]]:
        buffer = buffers.take(job[-1].at + job[-1].n_bytes)
        return job, buffer, source.decode_runs([(run.entry, run.first, buffer[run.at : run.at + run.n_bytes]) for run in job])

    for job, buffer, digests in ordered(decode, _jobs(source), threads):
        for run, of_run in zip(job, digests, strict=True):
            yield buffer.data[run.at : run.at + run.n_bytes], of_run
        buffers.give(buffer)


def _jobs(source: container.Container) -> Iterator[Sequence[_Run]]:
    """Runs that a thread decodes at a time: frames of one entry, or several short entries."""
    job: list[_Run] = []
    at = 0
    for entry in source.tensors:
        holder = source.resolve(entry)
        step = holder.frame_words * holder.spec.dtype.word
        for first in range(0, holder.n_frames, RUN_FRAMES):
            n_bytes = min(RUN_FRAMES * step, holder.spec.n_bytes - first * step)
            if job and (at + n_bytes > _JOB_BYTES or len(job) == _JOB_RUNS):
                yield job
                job, at = [], 0
            job.append(_Run(holder, first, at, n_bytes))
            at += -(-n_bytes // ALIGNMENT) * ALIGNMENT
    if job:
        yield job
