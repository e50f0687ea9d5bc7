"""Sizes of quantized, sparse and few-valued tensors beside their entropy, and of ggml's block types: no clock, so the figures are the same everywhere."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import zstandard

import modelcodec
from benchmarks.corpus import data_folder
from benchmarks.lossless import replace_block

LEVELS = (1, 5, 9)
SOURCE = "stories15M_f32.safetensors"
ZSTD_LEVEL = 19


def entropy_table(root: Path) -> str:
    """The rows of tests/test_near_entropy.py: what each holds at order 0, and what it takes."""
    sys.path.insert(0, str(root / "tests"))
    from test_near_entropy import ENTROPY_ROWS

    lines = ["| tensor | entropy % | -1 | -5 | -9 |", "|---|---|---|---|---|"]
    for row in ENTROPY_ROWS:
        tensors, bits = row.make()
        n_bytes = sum(x.nbytes for x in tensors.values())
        coded = [100 * len(modelcodec.save(tensors, level=level)) / n_bytes for level in LEVELS]
        lines.append(f"| {row.make.__name__.replace('_', ' ')} | {100 * bits / 8 / n_bytes:.2f} | " + " | ".join(f"{x:.2f}" for x in coded) + " |")
    return "\n".join(lines)


def matrices(path: Path) -> dict[str, np.ndarray]:
    """The float32 matrices of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    spans = {name: (row["shape"], *row["data_offsets"]) for name, row in header.items() if name != "__metadata__" and len(row["shape"]) > 1}
    return {name: np.frombuffer(data[start + a : start + b], "<f4").reshape(shape) for name, (shape, a, b) in spans.items()}


def ggml_rows(weights: dict[str, np.ndarray], scratch: Path) -> Iterator[str]:
    """A GGUF file of each type that the gguf package can quantize to."""
    import gguf

    for kind in gguf.GGMLQuantizationType:
        block = gguf.GGML_QUANT_SIZES[kind][0]
        try:
            tensors = {name: gguf.quants.quantize(w, kind) for name, w in weights.items() if w.shape[1] % block == 0}
        except NotImplementedError:
            continue
        if not tensors:
            continue
        path = scratch / f"{kind.name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        data = path.read_bytes()
        coded = [100 * modelcodec.compress(path, scratch / "coded", level=level, overwrite=True).ratio for level in LEVELS]
        modelcodec.decompress(scratch / "coded", scratch / "back", overwrite=True)
        if (scratch / "back").read_bytes() != data:
            raise AssertionError(f"{kind.name} did not come back")
        cells = [kind.name, str(len(tensors)), *(f"{x:.2f}" for x in coded), f"{100 * len(zstandard.compress(data, ZSTD_LEVEL)) / len(data):.2f}"]
        yield "| " + " | ".join(cells) + " |"


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Print the tables; write them to docs/benchmarks.md unless `quick`. Returns 0."""
    block = entropy_table(root)
    folder = data_folder(root, data)
    if folder is None or not (folder / SOURCE).exists():
        print(f"{SOURCE} is not there (--data, $MODELCODEC_DATA or ../shared/data): GGUF types are left out.", file=sys.stderr)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            rows = "\n".join(ggml_rows(matrices(folder / SOURCE), Path(scratch)))
        block += f"\n\n| GGUF, {SOURCE} | tensors | -1 | -5 | -9 | zstd -{ZSTD_LEVEL} |\n|---|---|---|---|---|---|\n{rows}"
    print(block)
    if not quick:
        replace_block(root / "docs" / "benchmarks.md", block, "quantized")
    return 0
