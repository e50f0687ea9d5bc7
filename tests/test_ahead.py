"""Promise: the first run on a machine has kernels compiled by several processes, and is none the worse where these do not help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from modelcodec.kernels import ahead, jit

ROOT = Path(__file__).parent.parent
KERNEL = "frequencies._read_table"
"""A small one."""


def test_what_another_process_has_begun_comes_from_the_cache(tmp_path: Path) -> None:
    script = f"""
import time
from modelcodec.kernels import ahead, frequencies
context = ahead.compiled_ahead(("{KERNEL}",), 2)
with context:
    while context._waiting:
        time.sleep(0.01)
    frequencies._read_table.compile(ahead.parameters("{KERNEL}"))
print(sum(frequencies._read_table.stats.cache_hits.values()), sum(frequencies._read_table.stats.cache_misses.values()))
print(type(ahead.compiled_ahead(("{KERNEL}",), 2)).__name__)
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "1 0\nnullcontext\n", done.stderr


def test_an_isolated_process_has_isolated_ones(tmp_path: Path) -> None:
    for name in ("json", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    script = f"""
import pathlib, sys, time
sys.path[:0] = [{str(ROOT)!r}]
sys.path.append(pathlib.Path("nowhere"))  # which Python leaves alone
from modelcodec.kernels import ahead
context = ahead.compiled_ahead(("{KERNEL}",), 2)
with context:
    while context._waiting and context._processes[0].poll() is None:
        time.sleep(0.01)
print(len(context._begun))
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "1\n", done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture
def one() -> ahead._Ahead:
    return ahead._Ahead(deque((KERNEL,)), 1)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_a_process_that_cannot_begin_leaves_the_kernel_to_this_one(one: ahead._Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", lambda _: "[]")  # nothing can be imported
    with one:
        one._processes[0].wait(60)
        assert not one._elsewhere(KERNEL)
    assert one._elsewhere not in jit.ELSEWHERE


def test_too_many_threads_leave_the_kernel_to_this_process(one: ahead._Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with one:
        assert not one._elsewhere(KERNEL)
    assert all(process.poll() is not None for process in one._processes)


def test_a_process_that_dies_is_not_waited_for(one: ahead._Ahead) -> None:
    with one:
        until(lambda: KERNEL in one._begun)
        one._processes[0].kill()
        assert one._elsewhere(KERNEL)  # the cache is worth a look: it may have been done before
    assert one._elsewhere not in jit.ELSEWHERE


def test_no_process_outlives_the_work(one: ahead._Ahead) -> None:
    with one:
        pass
    assert all(process.poll() is not None for process in one._processes)


def test_a_kernel_that_nobody_has_begun_is_taken_off_the_list() -> None:
    waiting = ahead._Ahead(deque((KERNEL,)), 0)
    with waiting:
        assert not waiting._elsewhere(KERNEL)
        assert not waiting._waiting


def test_one_processor_compiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "is_kept", lambda _: False)
    assert isinstance(ahead.compiled_ahead(ahead.TO_DECODE, 1), nullcontext)
    monkeypatch.setattr(jit, "folder", lambda: None)
    assert isinstance(ahead.compiled_ahead(ahead.TO_DECODE, 2), nullcontext)
