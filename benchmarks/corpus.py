"""What is measured: the files of a data folder, casts of one of them, the example, a synthetic file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from benchmarks.peers import Piece
from modelcodec import formats

SUFFIXES = (".safetensors", ".pt", ".th", ".pth", ".bin", ".gguf")
CAST = "stories15M_f32.safetensors"
CASTS = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2")}


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on disk, the tensors in it, and its other bytes. `promised`: a real file, on which no peer may be smaller."""

    name: str
    path: Path
    n_bytes: int
    pieces: Sequence[Piece]
    other: bytes
    promised: bool = False


def read(path: Path, name: str, *, promised: bool = False) -> Source:
    """Find the tensors of a checkpoint in any format that modelcodec reads."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    checkpoint = formats.identify(data.data, path)
    pieces, other, position = [], [], 0
    for extent in checkpoint.extents:
        other.append(data[position : extent.offset].tobytes())
        pieces.append(Piece(extent.spec.dtype.name, data[extent.offset : extent.end].copy()))
        position = extent.end
    other.append(data[position:].tobytes())
    return Source(name, path, data.size, pieces, b"".join(other), promised)


def cast(source: Path, dtype: str, to: Path) -> None:
    """A safetensors file of fp32 tensors as another dtype, rounded to nearest even."""
    data = source.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = (dtype, entry["shape"], np.frombuffer(data[start + begin : start + end], "<f4").astype(CASTS[dtype]))
    write(tensors, to)


def write(tensors: dict[str, tuple[str, list[int], np.ndarray]], to: Path) -> None:
    header, offset = {}, 0
    for name, (dtype, shape, array) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with to.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, array in tensors.values():
            file.write(array.tobytes())


def gaussian(n_bytes: int, to: Path) -> None:
    """Gaussian weights in bf16, a log-normal scale for each row: matrices of 8 MiB, the shape of a small language model's layers."""
    generator = np.random.default_rng(2024)
    tensors = {}
    for i in range(n_bytes >> 23):
        weights = generator.standard_normal((2048, 2048), np.float32)
        weights *= np.float32(0.02) * np.exp(np.float32(0.4) * generator.standard_normal((2048, 1), np.float32))
        tensors[f"layers.{i}.weight"] = ("BF16", [2048, 2048], weights.astype(ml_dtypes.bfloat16))
    write(tensors, to)


def data_folder(root: Path, given: Path | None) -> Path | None:
    """The folder with real checkpoints, or None where there is none."""
    if given is None:
        named = os.environ.get("MODELCODEC_DATA")
        given = Path(named) if named else root.parent / "shared" / "data"
    return given if given.is_dir() else None


def sources(root: Path, data: Path | None, scratch: Path, synthetic_bytes: int, only: Sequence[str] | None) -> Iterator[Source]:
    """All sources, one at a time; `scratch` is a folder, in memory if possible, where they are put while they are measured."""

    def wanted(name: str) -> bool:
        return not only or any(part in name for part in only)

    found = sorted(path for path in data.rglob("*") if path.suffix in SUFFIXES and path.is_file()) if data else []
    for path, promised in [(root / "examples" / "resnet20-cifar10.safetensors", False), *((path, True) for path in found)]:
        if wanted(path.name):
            copy = scratch / path.name
            copy.write_bytes(path.read_bytes())
            yield read(copy, path.name, promised=promised)
            copy.unlink()
    for dtype in CASTS:
        name = CAST.replace("f32", f"cast_{dtype.lower()}")
        base = next((path for path in found if path.name == CAST), None)
        if base and wanted(name):
            cast(base, dtype, scratch / name)
            yield read(scratch / name, name)
            (scratch / name).unlink()
    name = f"gaussian_bf16_{synthetic_bytes >> 20}MiB.safetensors"
    if wanted(name):
        gaussian(synthetic_bytes, scratch / name)
        yield read(scratch / name, name)
        (scratch / name).unlink()
