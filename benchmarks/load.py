"""The load suite: seconds from a file to tensors whose every byte was touched, from a warm cache and from a source of 1 GB/s."""

from __future__ import annotations

import gc
import io
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

import modelcodec
from benchmarks.corpus import gaussian
from benchmarks.lossless import conditions, replace_block
from benchmarks.peers import ZipNN
from modelcodec.pool import thread_count

N_BYTES, QUICK_BYTES = 2 << 30, 1 << 28
ROUNDS = 7
LEVELS = (1, 5)
THREADS = (1, 2)
RATE = 1e9
"""Bytes a second of the slow source."""
BURST_BYTES = 4 << 20
"""What a network's buffers hold for a reader that was busy."""
RECEIVED_BYTES = 1 << 20
"""What comes at a time at most."""

Tensors = Iterable[tuple[str, torch.Tensor]]


class Limited(io.RawIOBase):
    """A file that gives so many bytes a second and cannot seek."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._due = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = self._file.readinto(memoryview(buffer)[:RECEIVED_BYTES]) or 0
        now = time.perf_counter()
        self._due = max(self._due, now - BURST_BYTES / RATE) + n / RATE
        if self._due > now:
            time.sleep(self._due - now)
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Loader:
    """`load` takes a path, where it is `warm`, or a slow source, where it is `slow`."""

    name: str
    threads: int
    path: Path
    load: Callable[[Any], Tensors]
    warm: bool = True
    slow: bool = True


def _safetensors(backend: str) -> Callable[[Any], Tensors]:
    def load(path: Path) -> Tensors:
        with safetensors.safe_open(path, "pt", backend=backend) as file:
            return [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118

    return load


def _safetensors_of_bytes(source: Any) -> Tensors:
    return safetensors.torch.load(source.read()).items()


def _read_into(source: Any) -> Tensors:
    """The least that a loader of uncompressed tensors can do: each is read to where it stays."""
    header = json.loads(_exactly(source, int.from_bytes(_exactly(source, 8).tobytes(), "little")).tobytes())
    for name, row in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        data = _exactly(source, row["data_offsets"][1] - row["data_offsets"][0])
        yield name, torch.from_numpy(data).view(torch.bfloat16).reshape(row["shape"])


def _exactly(source: Any, n: int) -> Any:
    out, at = np.empty(n, np.uint8), 0
    while at < n:
        got = source.readinto(out.data[at:])
        if not got:
            raise EOFError(f"{n - at} bytes are missing")
        at += got
    return out


def _zipnn(threads: int) -> Callable[[Any], Tensors]:
    """Tensors in ZipNN's own format, one after the other, each behind its size."""

    def load(source: Any) -> Tensors:
        decode = ZipNN().decoder("BF16", threads)
        with source.open("rb", buffering=0) if isinstance(source, Path) else source as file:
            i = 0
            while True:
                size = np.empty(8, np.uint8)
                if not file.readinto(size.data):
                    return
                data = decode(_exactly(file, int(size.view("<u8")[0])).tobytes())
                yield f"layers.{i}.weight", torch.frombuffer(data, dtype=torch.bfloat16).reshape(2048, 2048)
                i += 1

    return load


def _write_zipnn(path: Path, to: Path) -> None:
    encode = ZipNN().encoder("BF16", 1)
    with safetensors.safe_open(path, "pt") as file, to.open("wb") as out:
        for i in range(len(file.keys())):
            code = encode(bytearray(file.get_tensor(f"layers.{i}.weight").view(torch.uint8).numpy().tobytes()))
            out.write(len(code).to_bytes(8, "little"))
            out.write(code)


def _load_model(threads: int, n_layers: int) -> Callable[[Any], Tensors]:
    """Into a model without memory, which gets new memory as the others do."""

    def load(source: Any) -> Tensors:
        with torch.device("meta"):
            model = nn.Module()
            model.layers = nn.ModuleList(nn.Linear(2048, 2048, bias=False, dtype=torch.bfloat16) for _ in range(n_layers))
        modelcodec.load_model(model, source, threads=threads)
        return model.state_dict().items()

    return load


def loaders(plain: Path, folder: Path, n_layers: int) -> list[Loader]:
    zipnn = folder / "zipnn"
    _write_zipnn(plain, zipnn)
    found = [
        Loader("safetensors mmap", 1, plain, _safetensors("mmap"), slow=False),
        Loader("safetensors pread", 1, plain, _safetensors("pread"), slow=False),
        Loader("safetensors load(bytes)", 1, plain, _safetensors_of_bytes, warm=False),
        Loader("uncompressed, read into tensors", 1, plain, _read_into, warm=False),
    ]
    found += [Loader("zipnn", threads, zipnn, _zipnn(threads)) for threads in THREADS]
    for level in LEVELS:
        packed = folder / f"packed-{level}"
        modelcodec.compress(plain, packed, level=level, verify=False)
        for n in THREADS:
            found += [
                Loader(f"mcodec -{level} load_file", n, packed, lambda path, n=n: modelcodec.load_file(path, "pt", threads=n).items(), slow=False),
                Loader(f"mcodec -{level} stream", n, packed, lambda source, n=n: modelcodec.stream(source, "pt", threads=n)),
                Loader(f"mcodec -{level} load_model", n, packed, _load_model(n, n_layers)),
            ]
    return found


def seconds(loader: Loader, source: Path | Limited) -> tuple[float, int]:
    """Of a load, and the sum of all words, which touches every byte and is the same for all."""
    gc.collect()
    start = time.perf_counter()
    tensors = dict(loader.load(source))
    total = sum(int(x.view(torch.int64).sum()) for x in tensors.values()) & 0xFFFFFFFF
    return time.perf_counter() - start, total


def measure(chosen: Sequence[Loader], source_of: Callable[[Loader], Path | Limited], rounds: int) -> list[float]:
    """The best of the rounds, in which all take turns, after one that is not counted. Raises ValueError where tensors differ.

    Each round has another order: memory that one gives back is the next one's, at once or page by page anew, and no loader shall always follow the same one.
    """
    best = [float("inf")] * len(chosen)
    totals = {seconds(loader, source_of(loader))[1] for loader in chosen}
    if len(totals) > 1:
        raise ValueError("the loaders do not give the same tensors")
    draw, turns = random.Random(1), list(enumerate(chosen))
    for _ in range(rounds):
        draw.shuffle(turns)
        for i, loader in turns:
            best[i] = min(best[i], seconds(loader, source_of(loader))[0])
    return best


def table(chosen: Sequence[Loader], best: Sequence[float], reference: str) -> str:
    base = next(s for loader, s in zip(chosen, best, strict=True) if loader.name == reference)
    lines = [f"| loader | threads | file, MB | seconds | times {reference} |", "|---|---|---|---|---|"]
    for loader, s in zip(chosen, best, strict=True):
        lines.append(f"| {loader.name} | {loader.threads} | {loader.path.stat().st_size / 1e6:,.0f} | {s:.3f} | {s / base:.2f} |")
    return "\n".join(lines)


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Print the tables; write them to docs/benchmarks.md unless `quick`. `only` chooses loaders beside safetensors' by parts of their names. Returns 0."""
    torch.set_num_threads(1)
    n_bytes, rounds = (QUICK_BYTES, 2) if quick else (N_BYTES, ROUNDS)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        plain = Path(scratch) / "plain.safetensors"
        gaussian(n_bytes, plain)
        found = [x for x in loaders(plain, Path(scratch), n_bytes >> 23) if not only or x.path == plain or any(part in x.name for part in only)]
        warm, slow = [x for x in found if x.warm], [x for x in found if x.slow]
        block = f"From a warm cache, {n_bytes >> 20} MiB of bf16:\n\n" + table(warm, measure(warm, lambda x: x.path, rounds), "safetensors pread")
        best = measure(slow, lambda x: Limited(x.path), max(rounds // 2, 1))
        block += f"\n\nFrom a source of {RATE / 1e9:g} GB/s:\n\n" + table(slow, best, "uncompressed, read into tensors")
    print(block)
    if not (quick or only):
        threads = thread_count(None)
        replace_block(root / "docs" / "benchmarks.md", f"{conditions(threads)}\n\n{block}", "load")
    return 0
