"""The start suite: what a command takes on a machine that has compiled nothing yet, and what it takes from then on, beside `import numba`."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FIRST_RUNS, LATER_RUNS = 3, 12
NUMBA = 'python -c "import numba"'


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds on the clock, and of all processors."""

    wall: float
    cpu: float

    def least(self, other: Taken) -> Taken:
        return Taken(min(self.wall, other.wall), min(self.cpu, other.cpu))


def timed(command: Sequence[str], environment: Mapping[str, str]) -> Taken:
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=environment, capture_output=True, check=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def commands(source: Path, folder: Path) -> dict[str, list[str]]:
    """What is timed, by its name in the table; files that are restored are made before."""
    program = [sys.executable, "-m", "modelcodec"]
    found = {NUMBA: [sys.executable, "-c", "import numba"]}
    for level in (1, 5, 9):
        found[f"compress -{level}"] = [*program, "compress", f"-{level}", "-f", str(source), "-o", str(folder / f"{level}.mcodec")]
    for level in (5, 9):
        found[f"decompress what -{level} wrote"] = [*program, "decompress", "-f", str(folder / f"{level}.mcodec"), "-o", str(folder / "restored")]
    return found


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Measure the example, print, write the block (not with `quick`)."""
    from benchmarks.lossless import machine, replace_block
    from modelcodec.pool import thread_count

    source = root / "examples" / "resnet20-cifar10.safetensors"
    first: dict[str, Taken] = {}
    later: dict[str, Taken] = {}
    with tempfile.TemporaryDirectory() as scratch:
        cache, folder = Path(scratch) / "cache", Path(scratch)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPATH": str(root), "PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "XDG_CACHE_HOME": str(cache), "LOCALAPPDATA": str(cache)}
        chosen = commands(source, folder)
        for command in chosen.values():  # so that Python has its bytecode, and restoring its files
            timed(command, environment)
        for into, rounds, anew in ((first, 1 if quick else FIRST_RUNS, True), (later, 2 if quick else LATER_RUNS, False)):
            for _ in range(rounds):
                for name, command in chosen.items():
                    if anew:
                        shutil.rmtree(cache, ignore_errors=True)
                    taken = timed(command, environment)
                    into[name] = taken.least(into.get(name, taken))
            for command in chosen.values():  # the cache has all kernels for the later runs
                timed(command, environment)
    lines = ["| | first run | of processors | later runs | of processors | beyond numba |", "|---|---|---|---|---|---|"]
    for name in chosen:
        cells = [first[name].wall, first[name].cpu, later[name].wall, later[name].cpu, later[name].wall - later[NUMBA].wall]
        lines.append(f"| `{name}` | {' | '.join(f'{seconds:.2f}' for seconds in cells)} |")
    print("\n".join(lines))
    if not quick:
        processors = thread_count(None)
        replace_block(root / "docs" / "benchmarks.md", f"{machine()}, {processors} processors, seconds.\n\n" + "\n".join(lines), "start")
    return 0
