"""A remote file on its way to disk, read while it comes; what came stays there, so that the next attempt goes on from it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Condition, Lock, Thread
from types import TracebackType
from typing import Self

from modelcodec.hub.remote_file import RemoteFile

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STOP_SECONDS = 5.0
"""How long an early end waits for the thread that downloads, which may be waiting for bytes that do not come."""


class Arrival:
    """A context manager that downloads `remote` into the file `path`, from where an earlier attempt left off, in a thread.

    memory: what is taken, and a piece of the download. raises: OSError where the download fails, in `take` and `wait`; BlockingIOError where another process
    is at work on the same file.
    """

    def __init__(self, remote: RemoteFile, path: Path) -> None:
        self._remote, self._path = remote, path
        self._stack = ExitStack()
        self._changed, self._reading = Condition(), Lock()
        self._arrived, self._stopped = 0, False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="modelcodec-download", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._writer = self._stack.enter_context(self._path.open("ab"))
            self._reader = self._stack.enter_context(self._path.open("rb"))
            if fcntl is not None:
                fcntl.flock(self._writer.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._arrived = os.fstat(self._writer.fileno()).st_size
            if self._arrived > self._remote.size:
                self._writer.truncate(0)
                self._arrived = 0
        except BlockingIOError:
            self._stack.close()
            raise BlockingIOError(errno.EAGAIN, "another process is downloading it into this folder; wait for its end", self._remote.where) from None
        except BaseException:
            self._stack.close()
            raise
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopped = True
        self._thread.join(STOP_SECONDS)
        self._stack.close()

    def take(self, start: int, end: int) -> memoryview:
        """Bytes start .. end - 1, once they have come."""
        self._until(end)
        with self._reading:
            self._reader.seek(start)
            return memoryview(self._reader.read(end - start))

    def wait(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Until all has come."""
        size, at = self._remote.size, self._arrived
        while progress and at < size:
            at = self._until(at + 1)
            progress(at, size)
        self._until(size)

    def sync(self) -> None:
        """Have what came written to disk."""
        os.fsync(self._writer.fileno())

    def _until(self, end: int) -> int:
        """Wait for so many bytes; returns how many there are."""
        with self._changed:
            while self._arrived < end:
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            return self._arrived

    def _run(self) -> None:
        try:
            for piece in self._remote.stream(self._arrived, self._remote.size):
                if self._stopped:
                    return
                self._writer.write(piece)
                self._writer.flush()
                with self._changed:
                    self._arrived += len(piece)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
