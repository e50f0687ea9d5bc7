"""Promise: memory does not grow with the file. Measured is anonymous memory, of which a mapped file takes none, over that of a process warmed up."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rows
from safetensors.numpy import save_file

import modelcodec

ROOT = Path(__file__).resolve().parent.parent
MB = 1 << 20
THREADS = 2
ALLOWED = 128 * MB + 2 * THREADS * MB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells anonymous memory apart")


def write_checkpoint(path: Path, n_bytes: int) -> None:
    """One bfloat16 tensor, and an index of integers, of so many bytes together."""
    block = rows.gaussian(1 << 20, "BF16").tobytes()
    n = n_bytes // len(block)
    header = json.dumps({"w": {"dtype": "BF16", "shape": [n, 1 << 20], "data_offsets": [0, n * len(block)]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for number in range(n):
            file.write(block[2 * number :] + block[: 2 * number])


def anonymous() -> int:
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")).split()[1]) << 10


def peak_of(work: Callable[[], Any]) -> int:
    """The most anonymous memory while it works, above what there was before."""
    before, most, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return most - before


def measure(folder: Path, sizes: list[int]) -> None:
    """Peaks of compressing and decompressing files of these sizes, in bytes, printed."""
    write_checkpoint(folder / "warm", 20 * MB)
    modelcodec.compress(folder / "warm", folder / "warm.mcodec", threads=THREADS)
    modelcodec.decompress(folder / "warm.mcodec", folder / "warm.back", threads=THREADS)
    found = {}
    for size in sizes:
        source, packed = folder / f"{size}", folder / f"{size}.mcodec"
        write_checkpoint(source, size)
        found[f"compress {size // MB} MB"] = peak_of(lambda source=source, packed=packed: modelcodec.compress(source, packed, threads=THREADS))
        source.unlink()
        found[f"decompress {size // MB} MB"] = peak_of(lambda source=source, packed=packed: modelcodec.decompress(packed, source, threads=THREADS))
        found[f"verify {size // MB} MB"] = peak_of(lambda packed=packed: modelcodec.verify(packed, threads=THREADS))
        found[f"slice {size // MB} MB"] = peak_of(lambda packed=packed: _slice(packed))
        source.unlink()
        packed.unlink()
    print(json.dumps(found))


def _slice(packed: Path) -> None:
    with modelcodec.open(packed, threads=THREADS) as file:
        file.get_slice("w")[3:5]


def peaks(folder: Path, sizes: list[int]) -> dict[str, int]:
    script = f"import sys; sys.path[:0] = ['tests', '.']; from pathlib import Path; import test_memory; test_memory.measure(Path({str(folder)!r}), {sizes})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    print({name: f"{n / MB:.1f} MB" for name, n in found.items()})
    return found


def check(found: dict[str, int], small: int, large: int) -> None:
    for verb in ("compress", "decompress", "verify", "slice"):
        assert found[f"{verb} {large} MB"] <= ALLOWED
        assert found[f"{verb} {large} MB"] <= max(found[f"{verb} {small} MB"], 0) + 32 * MB, verb


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    check(peaks(tmp_path, [64 * MB, 192 * MB]), 64, 192)


@pytest.mark.slow
def test_memory_does_not_grow_with_a_large_file(tmp_path: Path) -> None:
    check(peaks(tmp_path, [64 * MB, 512 * MB, 2048 * MB]), 64, 2048)


def test_a_frame_is_decoded_without_the_others(tmp_path: Path) -> None:
    """A slice of a large tensor takes memory for itself and a frame."""
    found = peaks(tmp_path, [128 * MB])
    assert found["slice 128 MB"] <= 24 * MB


def measure_random(folder: Path) -> None:
    """Peak of compressing what does not shrink, printed."""
    words = np.random.default_rng(0).integers(0, 1 << 16, (96, 1 << 19), np.uint16)
    save_file({"w": words[:8].view(np.float16)}, folder / "warm")
    modelcodec.compress(folder / "warm", folder / "warm.mcodec", threads=THREADS)
    save_file({"w": words.view(np.float16)}, folder / "random")
    del words
    print(peak_of(lambda: modelcodec.compress(folder / "random", folder / "random.mcodec", threads=THREADS)))


def test_what_does_not_shrink_takes_twenty_frames_a_thread(tmp_path: Path) -> None:
    script = f"import sys; sys.path[:0] = ['tests', '.']; from pathlib import Path; import test_memory; test_memory.measure_random(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) <= 20 * THREADS * MB
