"""Bytes that an upload to the Hub sends, plain and compressed, measured by the Hub's own chunker against a store in a local folder; and sizes of fine-tunes and
later steps given their bases. No clock, no network.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import ml_dtypes
import numpy as np
import zstandard

import modelcodec
from benchmarks.corpus import data_folder, write
from benchmarks.lossless import replace_block
from modelcodec import formats
from modelcodec.hub.traffic import bytes_sent

LEVELS = (1, 5, 9)
TENSORS, ROWS, COLUMNS = 24, 1024, 1024
TABLE_ROWS = 16384
ZSTD_LEVEL = 9


@dataclass(frozen=True, slots=True)
class Promise:
    """A checkpoint and how much of its bytes an upload at level 9 may send."""

    name: str
    file: str
    most: float


PROMISES = (
    Promise("bf16 3-D ResNet", "merlin_base_subset_bf16.safetensors", 0.67),
    Promise("fp32 MiniLM", "minilm/model.safetensors", 0.82),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A checkpoint, what it is to be a delta to, and how large that may be, as part of level 9 without base or of the raw bytes."""

    name: str
    base: str
    file: str
    most: float
    of_raw: bool = False


MOVED = "moved"
PAIRS = (
    Pair("astra given merlin", "merlin_base_subset_bf16.safetensors", "astra_finetuned_subset_bf16.safetensors", 0.95),
    Pair("dllm step 2000 given 1000", "dllm_policy/ckpt1000_model.safetensors", "dllm_policy/ckpt2000_model.safetensors", 0.88),
    Pair("its optimizer", "dllm_policy/ckpt1000_optimizer.pt", "dllm_policy/ckpt2000_optimizer.pt", 1),
    Pair("stories15M, each weight moved by 1 %", "stories15M_f32.safetensors", MOVED, 0.62, of_raw=True),
)


class Store:
    """Uploads of one kind, into one store: `level` None for the file as it is."""

    def __init__(self, scratch: Path, level: int | None) -> None:
        self.scratch, self.level = scratch, level

    def sent(self, path: Path) -> int:
        """Bytes sent for a file, given all that was sent before."""
        if self.level is not None:
            packed = self.scratch / f"packed-{self.level}"
            modelcodec.compress(path, packed, level=self.level, overwrite=True)
            path = packed
        return bytes_sent([path], self.scratch / f"store-{self.level}")


def stores(scratch: Path) -> list[Store]:
    return [Store(scratch, level) for level in (None, *LEVELS)]


def first_uploads(data: Path, only: Sequence[str] | None) -> Iterator[tuple[str, bool]]:
    """A table row for each checkpoint that is there, parts of its raw bytes, and whether its promise holds."""
    for promise in PROMISES:
        path = data / promise.file
        if not path.is_file():
            print(f"{promise.file} is not in {data}: left out.", file=sys.stderr)
        elif not only or any(part in promise.file for part in only):
            with tempfile.TemporaryDirectory() as scratch:
                parts = [store.sent(path) / path.stat().st_size for store in stores(Path(scratch))]
            cells = [promise.name, f"{path.stat().st_size / 1e6:.1f}", *(f"{part:.3f}" for part in parts), f"{promise.most:.2f}"]
            yield "| " + " | ".join(cells) + " |", parts[-1] <= promise.most


Tensors = dict[str, np.ndarray]


def weights(seed: int, rows: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, COLUMNS), np.float32) * np.float32(0.02)).astype(ml_dtypes.bfloat16)


def revisions() -> Iterator[tuple[str, Tensors, Tensors]]:
    """Pairs of revisions of a synthetic bf16 model: what became of it, before and after."""
    model = {f"layers.{i:02}.weight": weights(i, ROWS) for i in range(TENSORS)}
    yield f"one of {TENSORS} tensors changed", model, model | {"layers.07.weight": weights(100, ROWS)}
    yield f"a tensor inserted before {TENSORS}", model, {"embed.weight": weights(101, ROWS // 8)} | model
    table = weights(0, TABLE_ROWS)
    edited = table.copy()
    edited[5000] = weights(102, 1)
    yield "one row edited in a tensor", {"table": table}, {"table": edited}
    yield "eight rows appended to it", {"table": table}, {"table": np.concatenate([table, weights(103, 8)])}


def second_uploads() -> Iterator[tuple[str, bool]]:
    """A table row for each pair of revisions, megabytes sent for the second one, and whether none is more than without compression.

    Edits of rows are not held against that: they send whole frames.
    """
    for name, before, after in revisions():
        with tempfile.TemporaryDirectory() as folder:
            scratch, cells = Path(folder), []
            paths = scratch / "before", scratch / "after"
            for path, tensors in zip(paths, (before, after), strict=True):
                write({key: ("BF16", list(x.shape), x) for key, x in tensors.items()}, path)
            for store in stores(scratch):
                store.sent(paths[0])
                cells.append(store.sent(paths[1]))
            size = paths[0].stat().st_size
        yield f"| {name} | {size / 1e6:.1f} | " + " | ".join(f"{n / 1e6:.2f}" for n in cells) + " |", len(before) == 1 or max(cells) <= cells[0] * 1.02


def moved(source: Path, to: Path) -> None:
    """A copy of an fp32 safetensors file with each weight multiplied by 1 + 0.01 g, g normal."""
    data = bytearray(source.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    weights = np.frombuffer(data, "<f4", offset=start)
    weights *= 1 + np.float32(0.01) * np.random.default_rng(1).standard_normal(weights.size, np.float32)
    to.write_bytes(data)


def exclusive_or(base: Path, file: Path) -> int:
    """Size by the simplest delta: XOR with the base's tensor of the same name and size, its byte planes apart, zstd; other bytes as they are."""
    coder, total = zstandard.ZstdCompressor(ZSTD_LEVEL), file.stat().st_size
    old, new = base.read_bytes(), file.read_bytes()
    known = {extent.spec.name: extent for extent in formats.identify(memoryview(old), base).extents}
    for extent in formats.identify(memoryview(new), file).extents:
        words = np.frombuffer(new, np.uint8)[extent.offset : extent.end]
        other = known.get(extent.spec.name)
        if other is not None and other.end - other.offset == words.size:
            words = words ^ np.frombuffer(old, np.uint8)[other.offset : other.end]
        planes = words.reshape(-1, extent.spec.dtype.word).T
        total += sum(len(coder.compress(np.ascontiguousarray(plane))) for plane in planes) - words.size
    return total


def deltas(data: Path, only: Sequence[str] | None) -> Iterator[tuple[str, bool]]:
    """A table row for each pair that is there, parts of the raw bytes, and whether its promise holds."""
    for pair in PAIRS:
        if not (data / pair.base).is_file() or (only and not any(part in pair.file for part in only)):
            continue
        with tempfile.TemporaryDirectory() as folder:
            file, packed = data / pair.file, Path(folder) / "packed"
            if pair.file == MOVED:
                file = Path(folder) / MOVED
                moved(data / pair.base, file)
            raw = file.stat().st_size
            plain = modelcodec.compress(file, packed, level=LEVELS[-1]).ratio
            delta = modelcodec.compress(file, packed, level=LEVELS[-1], base=data / pair.base, overwrite=True).ratio
            modelcodec.decompress(packed, Path(folder) / "back", base=data / pair.base)
            if (Path(folder) / "back").read_bytes() != file.read_bytes():
                raise AssertionError(f"{pair.name} did not come back")
            simple = exclusive_or(data / pair.base, file) / raw
        most = pair.most if pair.of_raw else pair.most * plain
        yield f"| {pair.name} | {raw / 1e6:.1f} | {simple:.3f} | {plain:.3f} | {delta:.3f} | {most:.3f} |", delta <= most and delta < simple


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Print the tables; write them to docs/hub.md unless `quick` or a choice of files. Returns 1 if a promise is broken."""
    columns = f"Xet alone | {' | '.join(f'mcodec -{level}' for level in LEVELS)}"
    rule = "|---" * (3 + len(LEVELS))
    folder = data_folder(root, data)
    if folder is None:
        print("No data folder (--data, $MODELCODEC_DATA or ../shared/data): only synthetic revisions are measured.", file=sys.stderr)
    first = list(first_uploads(folder, only)) if folder else []
    third = list(deltas(folder, only)) if folder and not quick else []
    second = [] if quick or only else list(second_uploads())
    lines = [f"| sent, part of the raw bytes | MB | {columns} | promised |", f"{rule}|---|", *(row for row, _ in first)]
    lines += ["", f"| second revision, MB sent | MB | {columns} |", f"{rule}|", *(row for row, _ in second)]
    lines += ["", f"| part of the raw bytes | MB | XOR, planes, zstd -{ZSTD_LEVEL} | mcodec -9 | mcodec -9 --base | promised |", "|---|---|---|---|---|---|"]
    lines += [row for row, _ in third]
    lines += ["", f"modelcodec {modelcodec.__version__}, hf_xet {version('hf_xet')}."]
    print("\n".join(lines))
    if not (quick or only):
        replace_block(root / "docs" / "hub.md", "\n".join(lines), "hub")
    return 0 if all(held for _, held in (*first, *second, *third)) else 1
