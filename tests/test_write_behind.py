"""What is written behind the producer's back is written, and an error on the way is told."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from modelcodec.formats import write_behind
from modelcodec.formats.write_behind import WriteBehind


def _until(seen: list[int]) -> None:
    for _ in range(5000):
        if seen:
            return
        time.sleep(0.002)
    raise AssertionError("the thread never synced")


def test_bytes_arrive_and_are_synced_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(write_behind, "STEP_BYTES", 1000)
    monkeypatch.setattr(write_behind, "_sync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    with open(tmp_path / "out", "w+b", buffering=0) as file:
        with WriteBehind(file) as sink:
            for k in range(100):
                sink.write(bytes([k]) * 100)
            _until(synced)
        assert not file.closed
    assert (tmp_path / "out").read_bytes() == b"".join(bytes([k]) * 100 for k in range(100))
    assert synced
    assert all(size >= 1000 for size in synced)


def test_an_error_of_syncing_is_raised_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def full(descriptor: int) -> None:
        asked.append(descriptor)
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(write_behind, "STEP_BYTES", 10)
    monkeypatch.setattr(write_behind, "_sync", full)
    def write() -> None:
        with open(tmp_path / "out", "wb") as file, WriteBehind(file) as sink:
            sink.write(bytes(100))
            _until(asked)

    with pytest.raises(OSError, match="no space"):
        write()


def test_an_error_of_the_block_is_the_one_that_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_behind, "STEP_BYTES", 10)

    def write() -> None:
        with open(tmp_path / "out", "wb") as file, WriteBehind(file) as sink:
            sink.write(bytes(100))
            raise KeyError

    with pytest.raises(KeyError):
        write()
