"""The lossless suite: size, compress and decompress speed of every codec on every file, on one thread and on all."""

from __future__ import annotations

import csv
import ctypes
import os
import platform
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np

import modelcodec
from benchmarks.corpus import Source, data_folder, sources
from benchmarks.peers import PEERS, PeerRun, other_bytes
from modelcodec.compression import Settings, compress_view
from modelcodec.formats import container, identify
from modelcodec.mapping import mapped
from modelcodec.pool import thread_count
from modelcodec.recipe import Recipe
from modelcodec.restoration import restore

LEVELS = (1, 5, 9)
PROMISED_LEVEL = 5
RIVALS = ("zipnn", "openzl-entropy", "openzl-fse")
SYNTHETIC_BYTES, QUICK_BYTES = 1 << 28, 1 << 26
SECONDS, ROUNDS = 8.0, 5
"""Each file is measured for at least as long and as many rounds, on one thread and again on all."""
END = "<!-- end -->"


class Run(Protocol):
    """A codec at work on one file with a number of threads. `fresh` gives the input of a pass, made outside the clock."""

    name: str
    threads: int

    def fresh(self) -> Any: ...
    def compress(self, inputs: Any) -> Any: ...
    def decompress(self, coded: Any) -> Any: ...
    def n_bytes(self, coded: Any) -> int: ...
    def check(self, restored: Any) -> None: ...
    def close(self) -> None: ...


class Memory:
    """New memory of so many bytes as a file."""

    def __init__(self, n_bytes: int) -> None:
        self.data = np.empty(n_bytes, np.uint8)
        self.position = self.size = 0

    def write(self, data: Any) -> int:
        self.data[self.position : self.position + len(data)] = np.frombuffer(data, np.uint8)
        self.seek(self.position + len(data))
        self.size = max(self.size, self.position)
        return len(data)

    def seek(self, position: int) -> None:
        self.position = position

    def truncate(self) -> None:
        self.size = self.position


SPARE_BYTES = 1 << 20


@dataclass
class ModelCodecRun:
    """What `modelcodec.compress` and `load` do between file and tensors: a file's bytes, in memory as the peers get them, to a container in memory, that to all
    tensors in new memory."""

    source: Source
    level: int
    threads: int
    verify: bool

    def __post_init__(self) -> None:
        self.name = f"mcodec -{self.level}" + (" verified" if self.verify else "")
        self.settings = Settings(Recipe(), self.level, self.threads, self.verify, sha256=False)
        self.out: Memory | None = None

    def fresh(self) -> memoryview:
        return memoryview(self.source.path.read_bytes())

    def compress(self, inputs: memoryview) -> memoryview:
        # The same memory in each round, as the peers find theirs among what was freed; so large a piece would often be of new pages.
        out = self.out = self.out or Memory(len(inputs) + SPARE_BYTES)
        out.seek(0)
        compress_view(inputs, identify(inputs, self.source.path), cast(BinaryIO, out), self.settings, None)
        self.coded = out.data.data[: out.size]
        return self.coded

    def decompress(self, coded: memoryview) -> dict[str, Any]:
        return modelcodec.load(coded, threads=self.threads)

    def n_bytes(self, coded: memoryview) -> int:
        return len(coded)

    def check(self, restored: dict[str, Any]) -> None:
        """The tensors are those of the restored file, which is the source byte for byte."""
        archive = container.read(self.coded, self.source.name)
        back = Memory(archive.source_size)
        restore(archive, back, self.threads, None)
        with mapped(self.source.path) as view:
            whole = np.array_equal(back.data, np.frombuffer(view, np.uint8))
        n_views = len(archive.views()) or len(archive.tensors)
        if not whole or len(restored) != n_views:
            raise ValueError(f"{self.name}: {self.source.name} came back changed")

    def close(self) -> None:
        pass


@dataclass
class Memcpy:
    """Copies the tensors in pieces of 1 MiB into memory that is there already: the bound for any decoder."""

    source: Source
    threads: int
    name: str = "memcpy"

    def __post_init__(self) -> None:
        step = 1 << 20
        self.pairs = []
        for piece in self.source.pieces:
            to = np.ones_like(piece.data)
            self.pairs += [(to[at : at + step], piece.data[at : at + step]) for at in range(0, piece.data.size, step)]
        self.pool = ThreadPoolExecutor(self.threads) if self.threads > 1 else None

    def fresh(self) -> None:
        pass

    def compress(self, inputs: None) -> None:
        if self.pool:
            shares = [self.pairs[i :: self.threads] for i in range(self.threads)]
            list(self.pool.map(_copy, shares))
        else:
            _copy(self.pairs)

    def decompress(self, coded: None) -> None:
        self.compress(None)

    def n_bytes(self, coded: None) -> int:
        return self.source.n_bytes - len(self.source.other)

    def check(self, restored: None) -> None:
        pass

    def close(self) -> None:
        if self.pool:
            self.pool.shutdown()


def _copy(pairs: Iterable[tuple[Any, Any]]) -> None:
    for to, of in pairs:
        np.copyto(to, of)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the results. Speeds are in 10^9 bytes of the source a second."""

    file: str
    file_bytes: int
    codec: str
    threads: int
    result_bytes: int
    compress_gb_s: float
    decompress_gb_s: float
    rounds: int


def measure(source: Source, runs: Sequence[Run], seconds: float, rounds: int) -> list[Row]:
    """Warm every codec up, checking what it gives back, then let them take turns until time and rounds are over."""
    sizes: list[int] = []
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in runs]
    for run in runs:
        coded = run.compress(run.fresh())
        run.check(run.decompress(coded))
        rest = other_bytes(source.other) if isinstance(run, PeerRun | Memcpy) else 0
        sizes.append(run.n_bytes(coded) + rest)
    begin = time.perf_counter()
    while len(times[0][0]) < rounds or time.perf_counter() - begin < seconds:
        for run, (compress_times, decompress_times) in zip(runs, times, strict=True):
            inputs = run.fresh()
            start = time.perf_counter()
            coded = run.compress(inputs)
            middle = time.perf_counter()
            restored = run.decompress(coded)
            decompress_times.append(time.perf_counter() - middle)
            compress_times.append(middle - start)
            del restored
    for run in runs:
        run.close()

    def speed(passes: list[float]) -> float:
        return round(source.n_bytes / statistics.median(passes) / 1e9, 3)

    return [
        Row(source.name, source.n_bytes, run.name, run.threads, size, speed(compressing), speed(decompressing), len(compressing))
        for run, size, (compressing, decompressing) in zip(runs, sizes, times, strict=True)
    ]


def codecs(source: Source, threads: int) -> list[Run]:
    runs: list[Run] = [Memcpy(source, threads)]
    runs += [PeerRun(peer, source.pieces, threads) for peer in PEERS]
    for level in LEVELS:
        runs += [ModelCodecRun(source, level, threads, verify) for verify in (False, True)]
    return runs


def verdict(source: Source, rows: Sequence[Row]) -> tuple[str, bool]:
    """Whether the default level's file is no larger than any rival's, in a line."""
    sizes = {row.codec: row.result_bytes for row in rows}
    rival = min(RIVALS, key=lambda name: sizes[name])
    ours = {level: sizes[f"mcodec -{level}"] for level in LEVELS}
    held = ours[PROMISED_LEVEL] <= sizes[rival]
    each = ", ".join(f"-{level} {size:,} ({size / sizes[rival] - 1:+.2%})" for level, size in ours.items())
    stored = sizes[rival] - other_bytes(source.other) + len(source.other)
    return f"{'held' if held else 'BROKEN'}: {source.name}: {rival} {sizes[rival]:,} ({stored:,} with what is no tensor stored); mcodec {each}", held


# ---- the tables --------------------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """One table a file, a line a codec."""
    out = []
    most = max(row.threads for row in rows)
    for file in dict.fromkeys(row.file for row in rows):
        found = {(row.codec, row.threads): row for row in rows if row.file == file}
        n_bytes = next(iter(found.values())).file_bytes
        out += [
            "",
            f"**{file}**, {n_bytes:,} bytes",
            "",
            f"| codec | size % | compress, 1 thread | verified | decompress | compress, {most} threads | verified | decompress |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for codec in dict.fromkeys(name for name, _ in found if not name.endswith(" verified")):
            cells = ["100" if codec == "memcpy" else f"{100 * found[codec, 1].result_bytes / n_bytes:.2f}"]
            for threads in sorted({1, most}):
                plain, verified = found[codec, threads], found.get((f"{codec} verified", threads))
                cells += [f"{plain.compress_gb_s:.2f}", f"{verified.compress_gb_s:.2f}" if verified else "", f"{plain.decompress_gb_s:.2f}"]
            out.append(f"| {codec} | " + " | ".join(cells) + " |")
    return "\n".join(out[1:])


def summary(rows: Sequence[Row]) -> str:
    """The README's table: sizes, one line a file; then the speeds on the synthetic file."""
    columns = ("zstd -3", *RIVALS, *(f"mcodec -{level}" for level in LEVELS))
    out = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    one = {(row.file, row.codec): row for row in rows if row.threads == 1}
    files = list(dict.fromkeys(row.file for row in rows))
    for file in files:
        out.append(f"| {file} | " + " | ".join(f"{100 * one[file, c].result_bytes / one[file, c].file_bytes:.1f}" for c in columns) + " |")
    last = files[-1]
    for title, speed in (("compress", "compress_gb_s"), ("decompress", "decompress_gb_s")):
        out.append(f"| {title}, GB/s, on the last | " + " | ".join(f"{getattr(one[last, c], speed):.2f}" for c in columns) + " |")
    return "\n".join(out)


def replace_block(document: Path, block: str, suite: str = "lossless") -> None:
    """Put the block between the document's markers of that suite."""
    text = document.read_text()
    begin = text.index(marker := f"<!-- benchmarks: {suite} -->") + len(marker)
    end = text.index(END, begin)
    document.write_text(f"{text[:begin]}\n{block}\n{text[end:]}")


def keep_freed_memory() -> None:
    """Let the C library reuse what codecs free: each allocates its results, and new pages from the system would cost more than decoding does."""
    mmap_most, trim_threshold = -4, -1  # malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(mmap_most, 0)
        library.mallopt(trim_threshold, 2**31 - 1)


def machine() -> str:
    """The processor's model."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def conditions(threads: int) -> str:
    packages = ("modelcodec", "numpy", "numba", "zstandard", "zipnn", "openzl")
    versions = ", ".join(f"{name} {modelcodec.__version__ if name == 'modelcodec' else version(name)}" for name in packages)
    return f"{machine()}, {threads} threads, {platform.system()}, Python {platform.python_version()}; {versions}."


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Measure, print, write the results (not with `quick` or a choice of files). Returns 1 if a promise of size is broken."""
    keep_freed_memory()
    threads = thread_count(None)
    folder = data_folder(root, data)
    if folder is None:
        print("No data folder (--data, $MODELCODEC_DATA or ../shared/data): only the example and the synthetic file are measured.", file=sys.stderr)
    rows: list[Row] = []
    verdicts: list[tuple[str, bool]] = []
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        for source in sources(root, folder, Path(scratch), QUICK_BYTES if quick else SYNTHETIC_BYTES, only):
            mine: list[Row] = []
            for n in sorted({1, threads}):
                mine += measure(source, codecs(source, n), *((0.0, 1) if quick else (SECONDS, ROUNDS)))
            print(table(mine), flush=True)
            if source.promised:
                verdicts.append(verdict(source, mine))
                print(f"\n{verdicts[-1][0]}\n", flush=True)
            rows += mine
    if not rows:
        print(f"No file's name contains any of {only}.", file=sys.stderr)
        return 2
    print("\n".join(line for line, _ in verdicts))
    if not (quick or only):
        slug = re.sub(r"[^a-z0-9]+", "-", machine().lower()).strip("-")
        results = root / "benchmarks" / "results"
        results.mkdir(exist_ok=True)
        with (results / f"{slug}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([field.name for field in fields(Row)])
            writer.writerows(astuple(row) for row in rows)
        replace_block(root / "docs" / "benchmarks.md", f"{conditions(threads)}\n\n{table(rows)}")
        replace_block(root / "README.md", summary(rows))
    return 0 if all(held for _, held in verdicts) else 1
