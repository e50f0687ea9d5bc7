"""Promise: a destination is the old file or the whole new one, whatever happens, and nothing is left beside it."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelcodec.formats.atomic import atomic_file, spool

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, modes and signals of POSIX systems")

OLD, NEW = b"old", b"new" * 1000


@pytest.fixture(params=["unnamed", "named", "named, no links"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way of writing: O_TMPFILE, the fallback for systems without it, and that on a file system without hard links."""
    way: str = request.param
    if way != "unnamed":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("no O_TMPFILE")
    if way == "named, no links":

        def link(*args: object, **options: object) -> None:
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", link)
    return way


def write(path: Path, data: bytes = NEW, overwrite: bool = False) -> None:
    with atomic_file(path, overwrite=overwrite) as file:
        file.write(data)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# ---- what every way keeps ----------------------------------------------------------------------------------------------------------


def test_a_new_file_appears_whole(tmp_path: Path, way: str) -> None:
    path = tmp_path / "new"
    with atomic_file(path, overwrite=False) as file:
        file.write(b"x" * 100_000)
        assert not path.exists()
        file.seek(0)
        file.write(NEW)
        file.truncate()
        file.seek(0)
        assert file.read() == NEW
    assert path.read_bytes() == NEW
    assert names(tmp_path) == ["new"]


def test_an_old_file_is_replaced_at_the_end(tmp_path: Path, way: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with atomic_file(path, overwrite=True) as file:
        file.write(NEW)
        assert path.read_bytes() == OLD
    assert path.read_bytes() == NEW
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, way: str, overwrite: bool) -> None:
    path = tmp_path / "file"
    if overwrite:
        path.write_bytes(OLD)

    def interrupted(error: type[BaseException]) -> None:
        with atomic_file(path, overwrite=overwrite) as file:
            file.write(NEW)
            raise error

    for error in (ValueError, KeyboardInterrupt, OSError):
        with pytest.raises(error):
            interrupted(error)
    assert names(tmp_path) == (["file"] if overwrite else [])
    assert not overwrite or path.read_bytes() == OLD


def test_without_overwrite_an_old_file_stays(tmp_path: Path, way: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with pytest.raises(FileExistsError):
        write(path)
    path.unlink()

    def overtaken() -> None:
        with atomic_file(path, overwrite=False) as file:
            file.write(NEW)
            path.write_bytes(OLD)

    with pytest.raises(FileExistsError) as caught:
        overtaken()
    assert str(path) in str(caught.value)
    assert path.read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_of_many_writers_without_overwrite_one_wins(tmp_path: Path, way: str) -> None:
    path, won, barrier = tmp_path / "file", [], threading.Barrier(8)

    def writer(i: int) -> None:
        try:
            with atomic_file(path, overwrite=False) as file:
                file.write(bytes([i]) * 1000)
                barrier.wait()
            won.append(i)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert path.read_bytes() == bytes(won) * 1000
    assert names(tmp_path) == ["file"]


def test_of_many_writers_with_overwrite_each_is_whole(tmp_path: Path, way: str) -> None:
    """Also: nobody takes another's temporary file for a stale one."""
    path = tmp_path / "file"
    errors: list[BaseException] = []

    def writer(i: int) -> None:
        try:
            for _ in range(10):
                write(path, bytes([i]) * 5000, overwrite=True)
                assert len(set(path.read_bytes())) == 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=writer, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert names(tmp_path) == ["file"]


def test_permission_bits(tmp_path: Path, way: str) -> None:
    path = tmp_path / "file"
    mask = os.umask(0o027)
    try:
        write(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write(path, overwrite=True)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(mask)


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, way: str) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "target", tmp_path / "link"
    link.symlink_to(target)
    write(link)
    assert (link.is_symlink(), target.read_bytes()) == (True, NEW)
    with pytest.raises(FileExistsError):
        write(link)
    write(link, OLD, overwrite=True)
    assert (link.is_symlink(), target.read_bytes()) == (True, OLD)
    assert names(tmp_path / "there") == ["target"]


def test_folders_are_refused(tmp_path: Path, way: str) -> None:
    with pytest.raises(IsADirectoryError):
        write(tmp_path, overwrite=True)
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "no" / "file")
    path = tmp_path / "file"
    with pytest.raises(OSError), atomic_file(path, overwrite=True):  # noqa: PT011
        path.mkdir()
    assert names(tmp_path) == ["file"]


def test_long_names_fit(tmp_path: Path, way: str) -> None:
    write(tmp_path / ("x" * 255))
    write(tmp_path / ("x" * 255), overwrite=True)


# ---- what is no regular file -------------------------------------------------------------------------------------------------------


def test_a_device_is_written_directly() -> None:
    write(Path("/dev/null"))
    write(Path("/dev/null"), overwrite=True)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_fifo_is_written_directly(tmp_path: Path) -> None:
    path, read = tmp_path / "fifo", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    write(path)
    reader.join()
    assert read == [NEW]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_spool_has_no_name() -> None:
    with spool() as file:
        file.write(NEW)
        file.seek(0)
        assert file.read() == NEW
        assert os.fstat(file.fileno()).st_nlink == 0


# ---- order and failures of system calls --------------------------------------------------------------------------------------------


@contextmanager
def _system_calls(monkeypatch: pytest.MonkeyPatch, fail_at: int = -1) -> Iterator[list[str]]:
    """Record the calls that make a file durable, in order; the one numbered `fail_at` fails with a full disk."""
    calls: list[str] = []

    def wrap(name: str, kind: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*args: object, **options: object) -> object:
            calls.append(kind(*args))
            if len(calls) - 1 == fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **options)

        patch.setattr(os, name, call)

    with monkeypatch.context() as patch:
        wrap("fsync", lambda fd, *_: "sync folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "sync file")
        wrap("fchmod", lambda *_: "chmod")
        wrap("link", lambda *_: "link")
        wrap("replace", lambda *_: "replace")
        yield calls


def test_the_order_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    with _system_calls(monkeypatch) as calls:
        write(path)
    assert calls == ["sync file", "link", "sync folder"]
    with _system_calls(monkeypatch) as calls:
        write(path, overwrite=True)
    assert calls == ["chmod", "sync file", "link", "replace", "sync folder"]


@pytest.mark.parametrize("fail_at", range(5))
def test_a_full_disk_at_any_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, fail_at: int) -> None:
    """Before the new name is there, the old file stays; after it, the new one is whole."""
    path = tmp_path / "file"
    path.write_bytes(OLD)
    with _system_calls(monkeypatch, fail_at) as calls:
        try:
            write(path, overwrite=True)
        except OSError:
            assert len(calls) == fail_at + 1
    assert path.read_bytes() == (NEW if "sync folder" in calls else OLD)
    assert names(tmp_path) == ["file"]


# ---- death -------------------------------------------------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from modelcodec.formats.atomic import atomic_file
while True:
    with atomic_file(Path(sys.argv[1]), overwrite=True) as file:
        for _ in range(50):
            file.write(b"new" * 1000)
    print(flush=True)
"""


def test_kill_9_leaves_old_or_new_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(OLD)
    whole = b"new" * 50_000
    for i in range(12):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent)
        assert writer.stdout is not None
        if i:
            writer.stdout.readline()
        time.sleep(0.002 * i)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        assert path.read_bytes() in (OLD, whole)
    with atomic_file(path, overwrite=True) as file:  # a kill between link and rename leaves a name, which the next writer removes
        file.write(NEW)
    assert names(tmp_path) == ["file"]


def test_stale_files_are_removed_and_live_ones_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / f".mcodec-{secrets.token_hex(8)}.tmp"
    stale.write_bytes(b"half")
    similar = [".mcodec-x.tmp", f".mcodec-{secrets.token_hex(8)}.tmp.safetensors", f"mcodec-{secrets.token_hex(8)}.tmp"]
    for name in similar:
        (tmp_path / name).touch()
    pointer = tmp_path / f".mcodec-{secrets.token_hex(8)}.tmp"
    pointer.symlink_to(tmp_path / "elsewhere")
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    with atomic_file(tmp_path / "slow", overwrite=False) as file:
        file.write(NEW)
        (live,) = set(names(tmp_path)) - {*similar, pointer.name}
        assert live != stale.name
        write(tmp_path / "quick")
        assert live in names(tmp_path)
    assert names(tmp_path) == sorted([*similar, pointer.name, "quick", "slow"])
