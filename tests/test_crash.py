"""Promise: whatever stops the work (kill -9, a full or failing disk), the destination is the old file or the new one, whole, and nothing lies beside it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rows
import sources

import modelcodec
from modelcodec import compression
from modelcodec.formats import atomic

ROOT = Path(__file__).resolve().parent.parent
KILLS = 100

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals, limits and unnamed files of Linux")


def checkpoint(n: int = 250_000) -> bytes:
    return sources.safetensors_bytes(
        {"a": ("BF16", (n,), rows.gaussian(n, "BF16").tobytes()), "b": ("F32", (n // 8,), rows.gaussian(n // 8, "F32", 1).tobytes())}
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prepared(folder: Path) -> tuple[dict[str, Callable[[], Any]], dict[str, Path], dict[str, str]]:
    """Two jobs that overwrite, where each writes, and the digest of what it writes."""
    apart, work = folder / "apart", folder / "work"
    apart.mkdir()
    work.mkdir()
    (apart / "source").write_bytes(checkpoint())
    modelcodec.compress(apart / "source", apart / "packed", threads=1)
    targets = {"compress": work / "packed", "decompress": work / "restored"}
    jobs: dict[str, Callable[[], Any]] = {
        "compress": lambda: modelcodec.compress(apart / "source", targets["compress"], threads=1, overwrite=True),
        "decompress": lambda: modelcodec.decompress(apart / "packed", targets["decompress"], threads=1, overwrite=True),
    }
    return jobs, targets, {"compress": digest(apart / "packed"), "decompress": digest(apart / "source")}


def kill_many(folder: Path, kills: int) -> None:
    """Children of this process start a job and are killed at random moments. Prints what was found."""
    jobs, targets, new = prepared(folder)
    draw = random.Random(5)
    durations = {}
    for name, job in jobs.items():
        job()
        start = time.perf_counter()
        for _ in range(3):
            os.waitpid(_forked(job), 0)
        durations[name] = (time.perf_counter() - start) / 3
    found = {"old": 0, "new": 0, "other": 0}
    left_over: set[Path] = set()
    for number in range(kills):
        name = ("compress", "decompress")[number % 2]
        old = f"old {number}".encode()
        targets[name].write_bytes(old)
        child = _forked(jobs[name])
        time.sleep(draw.uniform(0, 1.4 * durations[name]))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state = "old" if targets[name].read_bytes() == old else "new" if digest(targets[name]) == new[name] else "other"
        found[state] += 1
        durations[name] *= 1.1 if state == "old" else 1 / 1.1  # half of them shall come too early, however busy the machine is
        # A file between its two names is the next writer's to remove: a process killed just there cannot.
        left_over |= set((folder / "work").iterdir()) - set(targets.values())
    found["left over"] = len(left_over)
    subprocess.run([sys.executable, "-c", f"import modelcodec; modelcodec.save_file({{}}, {str(folder / 'work' / 'packed')!r})"], cwd=ROOT, check=True)
    found["left at the end"] = len(set((folder / "work").iterdir()) - set(targets.values()))
    print(json.dumps(found))


def _forked(job: Callable[[], Any]) -> int:
    """Start a job in a child of this process, which has all that it needs in memory already."""
    child = os.fork()
    if child == 0:
        atomic._remove_stale.cache_clear()  # a process of its own has looked into no folder yet
        job()
        os._exit(0)
    return child


def in_process(call: str, folder: Path) -> Any:
    """Run one of these functions in a process of its own; what it prints last."""
    script = f"import sys; sys.path[:0] = ['tests', '.']; from pathlib import Path; import test_crash; test_crash.{call.format(folder=repr(str(folder)))}"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_100_kills_leave_the_old_file_or_the_new(tmp_path: Path) -> None:
    found = in_process(f"kill_many(Path({{folder}}), {KILLS})", tmp_path)
    assert found["other"] == 0
    assert found["old"] + found["new"] == KILLS
    assert min(found["old"], found["new"]) >= 5, "kills came too early or too late to tell anything"
    assert found["left over"] <= 2  # a kill meets the moment between two names once in some hundred
    assert found["left at the end"] == 0


@pytest.mark.slow
def test_1000_kills_leave_the_old_file_or_the_new(tmp_path: Path) -> None:
    found = in_process("kill_many(Path({folder}), 1000)", tmp_path)
    assert (found["other"], found["left at the end"]) == (0, 0)


def fill_disk(folder: Path) -> None:
    """The system lets files grow only so far, as on a full disk: at each of many sizes. Prints the error of each."""
    import resource

    jobs, targets, _ = prepared(folder)
    sizes = dict.fromkeys(jobs, 0)
    for name, job in jobs.items():
        job()
        sizes[name] = targets[name].stat().st_size
    found = []
    for reserve in (False, True):
        compression.IN_MEMORY_BYTES = 0 if reserve else 64 << 20
        for name, job in jobs.items():
            for eighths in range(8):
                targets[name].write_bytes(b"old")
                resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[name] * eighths // 8, resource.RLIM_INFINITY))
                try:
                    job()
                    error = "none"
                except OSError as caught:
                    error = errno.errorcode[caught.errno or 0]
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                found.append([error, targets[name].read_bytes() == b"old", len(list((folder / "work").iterdir()))])
    print(json.dumps(found))


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    found = in_process("fill_disk(Path({folder}))", tmp_path)
    assert len(found) == 32
    for error, is_old, n_files in found:
        assert (error, is_old, n_files) == ("EFBIG", True, 2)


@pytest.mark.parametrize("call", ["fsync", "replace", "link", "open", "fchmod", "fdopen"])
@pytest.mark.parametrize("verb", ["compress", "decompress"])
def test_an_error_of_the_system_keeps_the_old_file(call: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The N-th call of each kind fails, for every N that there is."""
    source, packed, target = tmp_path / "source", tmp_path / "packed", tmp_path / "sub" / "target"
    target.parent.mkdir()
    source.write_bytes(checkpoint(3000))
    modelcodec.compress(source, packed)
    original, calls = getattr(os, call), [0, 0]

    def failing(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == calls[1]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return original(*args, **options)

    monkeypatch.setattr(os, call, failing)
    for number in range(1, 20):
        target.write_bytes(b"old")
        calls[:] = [0, number]
        try:
            (modelcodec.compress if verb == "compress" else modelcodec.decompress)(source if verb == "compress" else packed, target, overwrite=True)
        except OSError as error:
            assert error.errno == errno.EIO  # noqa: PT017
            # Only the folder's own sync comes after the new name; the file is whole then.
            assert target.read_bytes() == b"old" or call in ("fsync", "open")
        if target.read_bytes() != b"old":
            assert digest(target) == digest(packed if verb == "compress" else source)
        assert [path.name for path in target.parent.iterdir()] == ["target"]
        if calls[0] < number:
            break
    else:
        raise AssertionError(f"{call} is called without end")


def test_an_interrupt_keeps_the_old_file(tmp_path: Path) -> None:
    """Control-C, at any report of progress."""
    (tmp_path / "source").write_bytes(checkpoint(100_000))
    modelcodec.compress(tmp_path / "source", tmp_path / "packed")
    target = tmp_path / "sub" / "target"
    target.parent.mkdir()
    for verb, source in ((modelcodec.compress, "source"), (modelcodec.decompress, "packed")):
        for number in range(3):
            target.write_bytes(b"old")
            left = [number]

            def tick(done: int, total: int, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                verb(tmp_path / source, target, overwrite=True, progress=tick)
            assert target.read_bytes() == b"old"
            assert [path.name for path in target.parent.iterdir()] == ["target"]
