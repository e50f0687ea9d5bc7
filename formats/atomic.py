"""Files that appear complete or not at all, whatever happens meanwhile: an error, a full disk, kill -9, a power cut.

The bytes go to a file without a name (O_TMPFILE) in the destination's folder, are synced, and get their name in one step; then the folder is synced. A process
that is killed leaves nothing behind. To replace a file, the new one needs a name of its own for the moment before the rename; one that a killed process left in
that moment is removed by the next writer in the folder, which knows it by a lock that died with its owner. Systems without O_TMPFILE use such a name all along.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.mcodec-[0-9a-f]{16}\.tmp")
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)
_MODE = 0o666


@contextmanager
def atomic_file(destination: Path, *, overwrite: bool, like: os.stat_result | None = None) -> Iterator[BinaryIO]:
    """A binary file, open for reading and writing, that becomes `destination` when the block ends without an error.

    It takes the permission bits and the time of `like`; without it those of the file that is replaced are kept (owner, extended attributes and hard links are
    not), and a new file has those that the umask leaves. A symbolic link
    stays, and what it points to is replaced, as with a shell's `>`. What is no regular file (/dev/null, a fifo) is written directly.
    Raises FileExistsError without `overwrite`, also where the file appears while the block runs; IsADirectoryError; OSError. The destination is then as it was.
    """
    try:
        before = os.stat(destination)
    except FileNotFoundError:
        before = None
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file in it", str(destination))
    if before is not None and not stat.S_ISREG(before.st_mode):
        with open(destination, "wb") as file:
            yield file
        return
    if before is not None and not overwrite:
        raise _exists(destination)
    destination = destination.resolve() if destination.is_symlink() else destination.absolute()
    _remove_stale(destination.parent)
    temporary = _Temporary(destination.parent)
    try:
        with os.fdopen(temporary.descriptor, "w+b") as file:
            yield file
            file.flush()
            model = like or before
            if model is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), stat.S_IMODE(model.st_mode) & 0o777)
            if like is not None and os.utime in os.supports_fd:
                os.utime(file.fileno(), ns=(like.st_atime_ns, like.st_mtime_ns))
            os.fsync(file.fileno())
            if _RENAMES_OPEN_FILES:
                temporary.publish(destination, overwrite)
        if not _RENAMES_OPEN_FILES:
            temporary.publish(destination, overwrite)
        _sync_folder(destination.parent)
    finally:
        temporary.remove()


def spool() -> BinaryIO:
    """A temporary file without a name, for input or output that cannot seek: a context manager, and gone when closed."""
    return cast(BinaryIO, tempfile.TemporaryFile())


_RENAMES_OPEN_FILES = os.name != "nt"


class _Temporary:
    """The file that is being written. `path` is its name, None while it has none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path: Path | None = None
        if hasattr(os, "O_TMPFILE"):
            try:
                self.descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _MODE)
                _lock(self.descriptor)
                return
            except OSError as error:
                if error.errno not in _NO_TMPFILE or not folder.is_dir():
                    raise
        while True:
            path = self._fresh_path()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            self.descriptor = os.open(path, flags, _MODE)
            # Between open and lock another writer may take the file for a stale one and remove it: then once more.
            if not _lock(self.descriptor, wait=True) or _names_open_file(path, self.descriptor):
                self.path = path
                return
            os.close(self.descriptor)

    def publish(self, destination: Path, overwrite: bool) -> None:
        """Give the file its name in one step."""
        if overwrite:
            if self.path is None:
                path = self._fresh_path()
                self._link(path)
                self.path = path
            os.replace(self.path, destination)
            self.path = None
        elif self.path is None:
            try:
                self._link(destination)
            except FileExistsError:
                raise _exists(destination) from None
        else:
            self._rename_to_new(self.path, destination)

    def remove(self) -> None:
        if self.path is not None:
            with suppress(OSError):
                os.unlink(self.path)
            self.path = None

    def _fresh_path(self) -> Path:
        return self.folder / f".mcodec-{secrets.token_hex(8)}.tmp"

    def _link(self, path: Path) -> None:
        # The source is absolute, so src_dir_fd names nothing; it makes Python call linkat, which follows /proc's link. Plain os.link would link /proc's own
        # file and fail (cpython issue 81793).
        os.link(f"/proc/self/fd/{self.descriptor}", path, src_dir_fd=self.descriptor, follow_symlinks=True)

    def _rename_to_new(self, path: Path, destination: Path) -> None:
        """Rename, but never over a file: by a hard link, or where there are none by claiming the name first."""
        try:
            if os.name == "nt":
                os.rename(path, destination)
                self.path = None
                return
            try:
                os.link(path, destination)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                os.close(os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE))
                try:
                    os.replace(path, destination)
                except BaseException:
                    os.unlink(destination)  # the empty file that claimed the name
                    raise
                self.path = None
        except FileExistsError:
            raise _exists(destination) from None


def _exists(destination: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "exists already; allow overwriting or name another file", str(destination))


def _lock(descriptor: int, *, wait: bool = False) -> bool:
    """Hold the file as long as this process has it open; False where another one does, or where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _names_open_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@lru_cache(maxsize=1024)
def _remove_stale(folder: Path) -> None:
    """Remove what killed writers left: files with our temporary names that nobody holds. Whatever cannot be opened or locked is left alone.

    Looked for once a folder and process: many files may be written into one large folder.
    """
    if fcntl is None:
        return
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                    try:
                        if _lock(descriptor):
                            os.unlink(entry.path)
                    finally:
                        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where folders can be synced."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # a folder that may be written but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)
