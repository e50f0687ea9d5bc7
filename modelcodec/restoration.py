"""From a container back to the source file, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from modelcodec.arena import Buffers
from modelcodec.decoding_jobs import Run, decoding_jobs
from modelcodec.errors import CorruptFile
from modelcodec.formats import container
from modelcodec.limits import LIMITS
from modelcodec.pool import ordered
from modelcodec.types import Array

RUN_FRAMES = 2
"""Frames of an entry that a thread decodes at a time: side by side where the processor's arm can."""
_JOB_BYTES = RUN_FRAMES * LIMITS.frame_bytes
"""What it decodes of several entries at a time, at most."""

Progress = Callable[[int, int], None]


class Sink(Protocol):
    """What restored bytes are written to, front to back."""

    def write(self, data: memoryview, /) -> object: ...


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

    def decode(job: Sequence[Run]) -> tuple[Sequence[Run], Array, list[list[int]]]:
        buffer = buffers.take(job[-1].at + job[-1].n_bytes)
        return job, buffer, source.decode_runs([(run.entry, run.first, buffer[run.at : run.at + run.n_bytes]) for run in job])

    jobs = decoding_jobs((source.resolve(entry) for entry in source.tensors), RUN_FRAMES, _JOB_BYTES)
    for job, buffer, digests in ordered(decode, jobs, threads):
        for run, of_run in zip(job, digests, strict=True):
            yield buffer.data[run.at : run.at + run.n_bytes], of_run
        buffers.give(buffer)
