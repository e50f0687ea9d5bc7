"""What a thread decodes at a time: frames of one entry, or several short entries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from modelcodec.arena import ALIGNMENT
from modelcodec.formats.container_layout import Entry

_MOST_RUNS = 64


class Run(NamedTuple):
    """Frames of an entry from number `first` on: so many bytes when decoded, `at` that place in their job's bytes."""

    entry: Entry
    first: int
    at: int
    n_bytes: int


def decoding_jobs(entries: Iterable[Entry], run_frames: int, most_bytes: int) -> Iterator[Sequence[Run]]:
    """The frames of entries that have their own, in order: runs of `run_frames`, several of them together up to `most_bytes`, each aligned."""
    job: list[Run] = []
    at = 0
    for entry in entries:
        step = entry.frame_words * entry.spec.dtype.word
        for first in range(0, entry.n_frames, run_frames):
            n_bytes = min(run_frames * step, entry.spec.n_bytes - first * step)
            if job and (at + n_bytes > most_bytes or len(job) == _MOST_RUNS):
                yield job
                job, at = [], 0
            job.append(Run(entry, first, at, n_bytes))
            at += -(-n_bytes // ALIGNMENT) * ALIGNMENT
    if job:
        yield job
