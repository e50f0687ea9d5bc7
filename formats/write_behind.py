"""Writing to disk while more is being produced: else all of it waits for the last byte, and the final sync takes as long again as the work did."""

from __future__ import annotations

import errno
import os
from threading import Condition, Thread
from types import TracebackType
from typing import Any, BinaryIO, Self

STEP_BYTES = 32 << 20


class WriteBehind:
    """A file object's `write`, and a thread that has the system write out what came so far, every 32 MiB. Use as a context manager; the file stays open.

    An error of writing out is raised at the end of the block: the system tells it once, so that a later sync need not see it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._since = 0
        self._wanted = Condition()
        self._asked = self._ended = False
        self._thread: Thread | None = None
        self._error: OSError | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, data: Any) -> int:
        self._since += len(data)
        written = self._file.write(data)
        if self._since >= STEP_BYTES:
            self._since = 0
            self._ask()
        return written

    def _ask(self) -> None:
        with self._wanted:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="write-behind", daemon=True)
                self._thread.start()
            self._asked = True
            self._wanted.notify()

    def _run(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._asked or self._ended)
                if self._ended:
                    return
                self._asked = False
            try:
                _sync(self._file.fileno())
            except OSError as error:
                self._error = error
                return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._wanted:
            self._ended = True
            self._wanted.notify()
        if self._thread is not None:
            self._thread.join()
        if self._error and error is None and self._error.errno not in _NO_SYNC:
            raise self._error


_sync = getattr(os, "fdatasync", os.fsync)
_NO_SYNC = (errno.EINVAL, errno.EROFS, errno.ENOTSUP)
"""What a pipe or a device answers, which has nothing to sync."""
