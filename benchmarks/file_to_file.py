"""The file_to_file suite: whole commands from file to file, synced, the start of Python in them, beside `cp` and `sync`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks.corpus import gaussian
from benchmarks.lossless import conditions, replace_block
from modelcodec.pool import thread_count

N_BYTES, QUICK_BYTES = 1000 << 20, 1 << 26
ROUNDS = 9
LEVELS = (1, 5, 9)
COPY = "cp --reflink=never, sync"


def commands(plain: Path, folder: Path) -> dict[str, Sequence[str]]:
    """What is timed, by its name in the table. Each writes one new file, `out`; what is restored is made here."""
    out, program = str(folder / "out"), [sys.executable, "-m", "modelcodec"]
    found: dict[str, Sequence[str]] = {COPY: ["sh", "-c", f"cp --reflink=never '{plain}' '{out}' && sync '{out}'"]}
    for level in LEVELS:
        packed = str(folder / f"packed-{level}")
        subprocess.run([*program, "compress", "-q", f"-{level}", str(plain), "-o", packed], check=True)
        found[f"mcodec compress -{level}"] = [*program, "compress", "-q", f"-{level}", str(plain), "-o", out]
        found[f"mcodec decompress -{level}"] = [*program, "decompress", "-q", packed, "-o", out]
    return found


def measure(chosen: Mapping[str, Sequence[str]], out: Path, rounds: int) -> dict[str, float]:
    """Median seconds of rounds in which all take turns, each round in another order, after one that is not counted. Nothing waits to be written at a start."""
    taken: dict[str, list[float]] = {name: [] for name in chosen}
    draw, turns = random.Random(1), list(chosen.items())
    for counted in range(-1, rounds):
        draw.shuffle(turns)
        for name, command in turns:
            os.sync()
            start = time.perf_counter()
            subprocess.run(command, check=True)
            if counted >= 0:
                taken[name].append(time.perf_counter() - start)
            out.unlink()
    return {name: median(seconds) for name, seconds in taken.items()}


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Print the table; write it to docs/benchmarks.md unless `quick`. Returns 0."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, plain = Path(scratch), Path(scratch) / "plain.safetensors"
        gaussian(QUICK_BYTES if quick else N_BYTES, plain)
        found = measure(commands(plain, folder), folder / "out", 2 if quick else ROUNDS)
        sizes = {f"mcodec {verb} -{level}": (folder / f"packed-{level}").stat().st_size for level in LEVELS for verb in ("compress", "decompress")}
        n_bytes = plain.stat().st_size
    lines = ["| | file, MB | seconds | times cp |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {sizes.get(name, n_bytes) / 1e6:,.0f} | {s:.2f} | {s / found[COPY]:.2f} |" for name, s in found.items()]
    print("\n".join(lines))
    if not quick:
        threads = thread_count(None)
        replace_block(root / "docs" / "benchmarks.md", f"{conditions(threads)}\n\n" + "\n".join(lines), "file_to_file")
    return 0
