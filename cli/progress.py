"""Progress bars with rate and time left: on standard error, only on a terminal, only once work has taken a moment."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from modelcodec.cli.messages import is_terminal, printable

if TYPE_CHECKING:
    from rich.progress import Progress

QUICK_SECONDS = 0.5
"""Work that ends sooner shows no bar, and does not pay for importing rich."""

Callback = Callable[[int, int], None]


class Bar:
    """A callback for `progress=`, called with the bytes done and the bytes in total."""

    def __init__(self, label: str) -> None:
        self._label = printable(label)
        self._begin = time.monotonic()
        self._progress: Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._progress is None:
            if time.monotonic() - self._begin < QUICK_SECONDS:
                return
            self._progress = _progress()
            self._task = self._progress.add_task(self._label, total=total)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    label = TextColumn("{task.description}", markup=False)
    columns = (label, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
    return Progress(*columns, console=Console(stderr=True), transient=True)


@contextmanager
def bar(label: str, *, wanted: bool) -> Iterator[Callback | None]:
    """A bar for the work inside the block; None, which means no progress, where nobody would see it."""
    if not wanted or not is_terminal(sys.stderr) or os.environ.get("TERM") == "dumb":
        yield None
        return
    shown = Bar(label)
    try:
        yield shown
    finally:
        shown.close()
