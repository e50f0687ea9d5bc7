"""Work on a few threads, results in order, memory bounded. Kernels, zstd and digests release the GIL, so threads are enough."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def thread_count(threads: int | None) -> int:
    """The number asked for, or one for each processor that this process may use."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}, at least 1 is needed")
        return threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def ordered(work: Callable[[Job], Result], jobs: Iterable[Job], threads: int, ahead: int | None = None) -> Generator[Result, None, None]:
    """`work` on each job, results in the jobs' order; at most `ahead` (2 a thread) are under way or waiting. The output never depends on `threads`."""
    if threads == 1:
        for job in jobs:
            yield work(job)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(work, job))
                if len(waiting) >= (ahead or 2 * threads):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
