"""The gpu suite: frames decoded beside a device copy, a decoder layer with compressed weights beside a plain one, loading beside safetensors (docs/gpu.md)."""

from __future__ import annotations

import copy
import csv
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

import modelcodec
from benchmarks.lossless import machine, replace_block
from modelcodec import frame
from modelcodec.planner import LEVELS
from modelcodec.recipe import Recipe
from modelcodec.stage import FrameContext
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

if TYPE_CHECKING:
    import torch

    from modelcodec.runtime.gpu import FramePlace

DEVICE = "cuda"
LAYER_FRAMES, QUICK_FRAMES = 400, 64
"""Frames of 1 MiB that are decoded in one launch."""
DISTINCT_FRAMES = 8
FRAME_WORDS = 1 << 19
COLUMNS = 4096
ROUNDS, QUICK_ROUNDS = 20, 3
CACHED_TOKENS = 512
HIDDEN, HEADS, KV_HEADS, HEAD, INNER = 4096, 32, 8, 128, 14336
"""Of a layer of Llama 3 8B."""
TOKENS = (1, 4, 32)
"""At a time, each of a sequence of its own."""
LOADED_LAYERS, QUICK_LOADED_LAYERS = 4, 1
LOADING_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """A row of the results: the best of several rounds. `to_peer`: of what the table compares with, in the same unit."""

    suite: str
    case: str
    arm: str
    value: float
    unit: str
    to_peer: float


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Measure, print, and write results and docs/gpu.md unless `quick`; does nothing without a GPU. Returns 0."""
    if find_spec("torch") is None or find_spec("triton") is None:
        print('torch and triton are needed (pip install ".[gpu]"): nothing is measured.', file=sys.stderr)
        return 0
    import torch
    import triton

    if not torch.cuda.is_available():
        print("There is no GPU: nothing is measured.", file=sys.stderr)
        return 0
    head = f"{torch.cuda.get_device_name()}, {machine()}; torch {torch.__version__}, triton {triton.__version__}."
    print(f"{head}\n", flush=True)
    rows: list[Measured] = []
    blocks = [head]
    for measured, block in suites(quick):
        print(f"{block}\n", flush=True)
        rows += measured
        blocks.append(block)
    if not quick:
        replace_block(root / "docs" / "gpu.md", "\n\n".join(blocks), "gpu")
        write(root / "benchmarks" / "results" / f"{re.sub('[^a-z0-9]+', '-', torch.cuda.get_device_name().lower())}.csv", rows)
    return 0


def suites(quick: bool) -> Iterator[tuple[list[Measured], str]]:
    """Rows and a table of each."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    yield decoding(QUICK_FRAMES if quick else LAYER_FRAMES, rounds)
    yield layers(rounds)
    yield loading(QUICK_LOADED_LAYERS if quick else LOADED_LAYERS)


def write(path: Path, rows: Sequence[Measured]) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(field.name for field in fields(Measured))
        table.writerows(astuple(row) for row in rows)


def weights(n_rows: int, n_columns: int, seed: int) -> np.ndarray[Any, Any]:
    """Words of bf16 as trained: rows and columns have scales of their own."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n_rows, n_columns), np.float32) * np.float32(0.02)
    values *= np.exp(rng.standard_normal((n_rows, 1)) * 0.2).astype(np.float32)
    values *= np.exp(rng.standard_normal((1, n_columns)) * 0.2).astype(np.float32)
    return (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).reshape(-1)


def framed(x: np.ndarray[Any, Any], n_columns: int, level: int, at: int) -> list[FramePlace]:
    """The frames of a matrix, as the compressor makes them, for word `at` of an output on."""
    from modelcodec.runtime.gpu import FramePlace

    spec = TensorSpec("w", DTYPE_BY_NAME["BF16"], (x.size // n_columns, n_columns))
    step = FRAME_WORDS // n_columns * n_columns
    group = 8 * step
    places = []
    for start in range(0, x.size, group):
        words = x[start : start + group]
        planned = Recipe().plan_group(spec, words, step, level, start)
        for k, plan in enumerate(planned.plans):
            first = k * step
            piece = words[first : first + step]
            context = FrameContext(spec, first, piece.size, planned.shared, start + first)
            number = (start + first) // step
            data = bytes(frame.encode(piece, plan, context, number).data)
            places.append(FramePlace(data, number, at + start + first, piece.size, f"frame {number}", context))
    return places


def fastest(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each action by the GPU's clock: the best of some rounds in which they take turns."""
    import torch

    best = dict.fromkeys(actions, float("inf"))
    for action in actions.values():
        action()
    for _ in range(rounds):
        for name, action in actions.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            action()
            end.record()
            end.synchronize()
            best[name] = min(best[name], begin.elapsed_time(end) / 1000)
    return best


def graphed(action: Callable[[], object]) -> Callable[[], None]:
    """The action as a CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        action()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return lambda: graph.replay()


def decoding(n_frames: int, rounds: int) -> tuple[list[Measured], str]:
    """GB/s of bf16 out, in one launch over so many frames, beside a device copy of as many bytes."""
    import torch

    from modelcodec.runtime.gpu import FramePlace, StagedFrames

    x = weights(DISTINCT_FRAMES * FRAME_WORDS // COLUMNS, COLUMNS, 0)
    out = torch.empty(n_frames * FRAME_WORDS, dtype=torch.bfloat16, device=DEVICE)
    expected = torch.from_numpy(x.view(np.int16)).to(DEVICE).repeat(n_frames // DISTINCT_FRAMES)
    other = torch.empty_like(out)
    lines = [f"| {out.nbytes / 1e6:.0f} MB of bf16, one launch | size % | GB/s out | part of a copy |", "|---|---|---|---|"]
    rows = []
    for level in LEVELS:
        own = framed(x, COLUMNS, level, 0)
        places = [FramePlace(p.data, p.number, p.at + k * x.size, p.n, p.where, p.context) for k in range(n_frames // DISTINCT_FRAMES) for p in own]
        staged = StagedFrames(places, 2, DEVICE)
        staged.decode(out)
        staged.check(out)
        if not torch.equal(out.view(torch.int16), expected):
            raise ValueError(f"level {level}: decoded words are not those that were encoded")
        seconds = fastest({"decode": graphed(partial(staged.decode, out)), "copy": graphed(partial(other.copy_, out))}, rounds)
        share = sum(len(p.data) for p in places) / out.nbytes
        speeds = {name: out.nbytes / taken / 1e9 for name, taken in seconds.items()}
        to_copy = speeds["decode"] / speeds["copy"]
        rows.append(Measured("decoding", f"{out.nbytes} bytes", f"-{level}", speeds["decode"], "GB/s", to_copy))
        lines.append(f"| -{level} | {100 * share:.1f} | {speeds['decode']:.0f} | {to_copy:.2f} |")
    lines.append(f"| device copy | 100 | {speeds['copy']:.0f} | 1 |")
    return rows, "\n".join(lines)


def decoder_layer() -> torch.nn.Module:
    """A decoder layer of Llama 3 8B for one token of each sequence, whose caches have CACHED_TOKENS already; weights as trained."""
    import torch
    from torch.nn import functional

    class DecoderLayer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shapes = {
                "q": (HIDDEN, HEADS * HEAD), "k": (HIDDEN, KV_HEADS * HEAD), "v": (HIDDEN, KV_HEADS * HEAD), "o": (HEADS * HEAD, HIDDEN),
                "gate": (HIDDEN, INNER), "up": (HIDDEN, INNER), "down": (INNER, HIDDEN),
            }  # fmt: skip
            for seed, (name, (n_in, n_out)) in enumerate(shapes.items()):
                linear = torch.nn.Linear(n_in, n_out, bias=False, device="meta", dtype=torch.bfloat16)
                words = torch.from_numpy(weights(n_out, n_in, seed).view(np.int16))
                linear.weight = torch.nn.Parameter(words.view(torch.bfloat16).view(n_out, n_in), requires_grad=False)
                self.add_module(name, linear)

        def forward(self, tokens: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            x = functional.rms_norm(tokens, (HIDDEN,))
            query, key, value = (self.get_submodule(name)(x).view(len(x), -1, 1, HEAD) for name in ("q", "k", "v"))
            keys[:, :, -1:], values[:, :, -1:] = key, value
            attended = functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
            hidden = tokens + self.get_submodule("o")(attended.reshape(len(x), -1))
            x = functional.rms_norm(hidden, (HIDDEN,))
            gate, up, down = (self.get_submodule(name) for name in ("gate", "up", "down"))
            result: torch.Tensor = hidden + down(functional.silu(gate(x)) * up(x))
            return result

    return DecoderLayer()


def layers(rounds: int) -> tuple[list[Measured], str]:
    """A decoder layer as `compress_module` leaves it, for a few sequences, one operation after the other and as a CUDA graph."""
    import torch

    plain = torch.nn.ModuleList([decoder_layer()])
    arms = {"plain": plain, "frames, -1": copy.deepcopy(plain), "fixed length": copy.deepcopy(plain)}
    n_bytes = {"plain": sum(p.nbytes for p in plain.parameters())}
    for arm, fixed_length in (("frames, -1", False), ("fixed length", True)):
        n_bytes[arm] = modelcodec.compress_module(arms[arm].to(DEVICE), level=1, fixed_length=fixed_length).gpu_bytes
    plain.to(DEVICE)
    n_weights = n_bytes["plain"] // 2
    cells = {arm: [f"{8 * n / n_weights:.2f}"] for arm, n in n_bytes.items()}
    rows = []
    for n in TOKENS:
        tokens = torch.randn(n, HIDDEN, dtype=torch.bfloat16, device=DEVICE)
        cache = torch.randn(2, n, KV_HEADS, CACHED_TOKENS, HEAD, dtype=torch.bfloat16, device=DEVICE)
        works = {arm: _forward(model[0], tokens, cache) for arm, model in arms.items()}
        _compare({arm: work() for arm, work in works.items()}, n)
        for how, timed in (("eager", works), ("graph", {arm: graphed(work) for arm, work in works.items()})):
            seconds = fastest(timed, rounds)
            for arm, taken in seconds.items():
                to_plain = taken / seconds["plain"]
                rows.append(Measured("layer", f"{n} tokens, {how}", arm, 1e6 * taken, "us", to_plain))
                cells[arm].append(f"{1e6 * taken:.0f} ({to_plain:.2f})")
    titles = [f"{n} token{'s' * (n > 1)}, {how}" for n in TOKENS for how in ("eager", "graph")]
    lines = [f"| a layer, µs (of plain) | bits a weight | {' | '.join(titles)} |", "|---" * (2 + len(titles)) + "|"]
    lines += [f"| {arm} | {' | '.join(row)} |" for arm, row in cells.items()]
    return rows, "\n".join(lines)


def _forward(layer: torch.nn.Module, tokens: torch.Tensor, cache: torch.Tensor) -> Callable[[], torch.Tensor]:
    import torch

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = layer(tokens, *cache)
            return result

    return forward


def _compare(results: Mapping[str, torch.Tensor], n_tokens: int) -> None:
    """Decoded weights give plain results; products in the fixed-length form are summed in another order."""
    import torch

    from modelcodec.kernels.fixed_length import MOST_VECTORS

    for arm, result in results.items():
        near = torch.allclose(result, results["plain"], rtol=0.05, atol=0.05)
        if not near or ((arm != "fixed length" or n_tokens > MOST_VECTORS) and not torch.equal(result, results["plain"])):
            raise ValueError(f"{n_tokens} tokens: {arm} gives other results than plain weights")


def loading(n_layers: int) -> tuple[list[Measured], str]:
    """GB/s of tensors from a warm file to the GPU: whole layers of bf16, by `stream` and by safetensors."""
    import safetensors.torch
    import torch

    layer = decoder_layer().state_dict()
    tensors = {f"{k}.{name}": tensor for k in range(n_layers) for name, tensor in layer.items()}
    n_bytes = sum(tensor.nbytes for tensor in tensors.values())
    with TemporaryDirectory() as folder:
        packed, ordinary = Path(folder) / "packed.safetensors", Path(folder) / "ordinary.safetensors"
        modelcodec.save_file(tensors, packed, level=1)
        safetensors.torch.save_file(tensors, ordinary)
        works: dict[str, Callable[[], dict[str, Any]]] = {
            "safetensors": lambda: safetensors.torch.load_file(ordinary, device=DEVICE),
            "stream, decoded by the GPU": lambda: dict(modelcodec.stream(packed, "pt", device=DEVICE)),
            "stream, decoded by the CPU": lambda: {name: tensor.to(DEVICE) for name, tensor in modelcodec.stream(packed, "pt")},
        }
        best = dict.fromkeys(works, float("inf"))
        for _ in range(LOADING_ROUNDS):
            for arm, work in works.items():
                start = time.perf_counter()
                found = work()
                torch.cuda.synchronize()
                best[arm] = min(best[arm], time.perf_counter() - start)
                if not all(torch.equal(found[name].cpu(), tensor) for name, tensor in tensors.items()):
                    raise ValueError(f"{arm}: other tensors than were saved")
                del found
    lines = [f"| {n_bytes / 1e6:.0f} MB of bf16, warm file to GPU | GB/s | of safetensors |", "|---|---|---|"]
    rows = []
    for arm, taken in best.items():
        to_peer = best["safetensors"] / taken
        rows.append(Measured("loading", f"{n_bytes} bytes", arm, n_bytes / taken / 1e9, "GB/s", to_peer))
        lines.append(f"| {arm} | {n_bytes / taken / 1e9:.1f} | {to_peer:.2f} |")
    return rows, "\n".join(lines)
