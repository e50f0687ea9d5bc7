"""The gpu suite: frames decoded beside a device copy, and a decoder layer with compressed weights beside the plain one (docs/gpu.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelcodec import frame
from modelcodec.planner import LEVELS
from modelcodec.recipe import Recipe
from modelcodec.stage import FrameContext
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

if TYPE_CHECKING:
    import torch

    from modelcodec.runtime.gpu import FramePlace

LAYER_FRAMES, QUICK_FRAMES = 400, 64
"""Frames of 1 MiB that are decoded in one launch."""
DISTINCT_FRAMES = 8
FRAME_WORDS = 1 << 19
COLUMNS = 4096
ROUNDS, QUICK_ROUNDS = 20, 3
CACHED_TOKENS = 512
HIDDEN, HEADS, KV_HEADS, HEAD, INNER = 4096, 32, 8, 128, 14336
"""Of a layer of Llama 3 8B."""
MATRICES = {
    "q": (HEADS * HEAD, HIDDEN),
    "k": (KV_HEADS * HEAD, HIDDEN),
    "v": (KV_HEADS * HEAD, HIDDEN),
    "o": (HIDDEN, HEADS * HEAD),
    "gate": (INNER, HIDDEN),
    "up": (INNER, HIDDEN),
    "down": (HIDDEN, INNER),
}


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Measure and print; does nothing without a GPU."""
    if find_spec("torch") is None or find_spec("triton") is None:
        print('torch and triton are needed (pip install ".[gpu]"): nothing is measured.', file=sys.stderr)
        return 0
    import torch
    import triton

    if not torch.cuda.is_available():
        print("There is no GPU: nothing is measured.", file=sys.stderr)
        return 0
    print(f"{torch.cuda.get_device_name()}; torch {torch.__version__}, triton {triton.__version__}\n")
    rounds = QUICK_ROUNDS if quick else ROUNDS
    decoding(QUICK_FRAMES if quick else LAYER_FRAMES, rounds)
    layer(rounds)
    return 0


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
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
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


def decoding(n_frames: int, rounds: int) -> None:
    """GB/s of bf16 out, in one launch over so many frames, beside a device copy of as many bytes."""
    import torch

    from modelcodec.runtime.gpu import FramePlace, StagedFrames

    x = weights(DISTINCT_FRAMES * FRAME_WORDS // COLUMNS, COLUMNS, 0)
    out = torch.empty(n_frames * FRAME_WORDS, dtype=torch.bfloat16, device="cuda")
    expected = torch.from_numpy(x.view(np.int16)).cuda().repeat(n_frames // DISTINCT_FRAMES)
    copy = torch.empty_like(out)
    print(f"| {out.nbytes / 1e6:.0f} MB of bf16 | size % | GB/s out | part of a copy |\n|---|---|---|---|")
    for level in LEVELS:
        own = framed(x, COLUMNS, level, 0)
        places = [FramePlace(p.data, p.number, p.at + k * x.size, p.n, p.where, p.context) for k in range(n_frames // DISTINCT_FRAMES) for p in own]
        staged = StagedFrames(places, 2, "cuda")
        staged.decode(out)
        staged.check(out)
        if not torch.equal(out.view(torch.int16), expected):
            raise ValueError(f"level {level}: decoded words are not those that were encoded")
        seconds = fastest({"decode": graphed(lambda staged=staged: staged.decode(out)), "copy": graphed(lambda: copy.copy_(out))}, rounds)
        share = sum(len(p.data) for p in places) / out.nbytes
        speed = out.nbytes / seconds["decode"] / 1e9
        print(f"| -{level} | {100 * share:.1f} | {speed:.0f} | {seconds['copy'] / seconds['decode']:.2f} |")
    print(f"| device copy | 100 | {out.nbytes / seconds['copy'] / 1e9:.0f} | 1 |\n")


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to hold a layer's matrices: `linear` multiplies with one, `begin` comes before the layer."""

    linear: Callable[[str, torch.Tensor], torch.Tensor]
    begin: Callable[[], None]
    n_bytes: int


def layer(rounds: int) -> None:
    """A decoder layer under a CUDA graph, for one token and for 32: plain weights, frames decoded into one buffer before use, the fixed-length form."""
    import torch

    from modelcodec.runtime.fixed_length import FixedLength
    from modelcodec.runtime.gpu import StagedFrames

    words = {name: weights(*shape, seed) for seed, (name, shape) in enumerate(MATRICES.items())}
    plain = {name: torch.from_numpy(w.view(np.int16)).cuda().view(torch.bfloat16).view(MATRICES[name]) for name, w in words.items()}
    sizes = [w.size for w in words.values()]
    starts = dict(zip(words, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    buffer = torch.empty(sum(sizes), dtype=torch.bfloat16, device="cuda")
    views = {name: buffer[starts[name] : starts[name] + words[name].size].view(shape) for name, shape in MATRICES.items()}
    staged = StagedFrames([place for name, w in words.items() for place in framed(w, MATRICES[name][1], 1, starts[name])], 2, "cuda")
    forms = {name: form for name, weight in plain.items() if (form := FixedLength.of(weight))}
    if forms.keys() != plain.keys():
        raise ValueError("a matrix has no fixed-length form")
    arms = {
        "plain": Arm(lambda name, x: torch.nn.functional.linear(x, plain[name]), lambda: None, 2 * sum(sizes)),
        "frames, -1": Arm(lambda name, x: torch.nn.functional.linear(x, views[name]), lambda: staged.decode(buffer), staged.n_bytes),
        "fixed length": Arm(lambda name, x: _by_form(forms[name], x, views[name]), lambda: None, sum(form.n_bytes for form in forms.values())),
    }
    print("| a layer's weights | bits a weight | 1 token, µs | to plain | 32 tokens, µs | to plain |\n|---|---|---|---|---|---|")
    times = {n: fastest({name: graphed(_layer_of(arm, n)) for name, arm in arms.items()}, rounds) for n in (1, 32)}
    for name, arm in arms.items():
        cells = [f"{1e6 * times[n][name]:.0f} | {times[n][name] / times[n]['plain']:.2f}" for n in (1, 32)]
        print(f"| {name} | {8 * arm.n_bytes / sum(sizes):.2f} | {' | '.join(cells)} |")


def _by_form(form: Any, x: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """One vector is multiplied as it is read; for more, the matrix is unpacked first."""
    import torch

    if x.shape[0] == 1:
        return form.matvec(x)  # type: ignore[no-any-return]
    form.unpack(buffer)
    return torch.nn.functional.linear(x, buffer)


def _layer_of(arm: Arm, n_tokens: int) -> Callable[[], torch.Tensor]:
    """The layer's forward pass for tokens of as many sequences, each with a cache of CACHED_TOKENS."""
    import torch
    from torch.nn import functional

    tokens = torch.randn(n_tokens, HIDDEN, dtype=torch.bfloat16, device="cuda")
    keys, values = torch.randn(2, n_tokens, KV_HEADS, CACHED_TOKENS, HEAD, dtype=torch.bfloat16, device="cuda")

    def forward() -> torch.Tensor:
        arm.begin()
        x = functional.rms_norm(tokens, (HIDDEN,))
        query, key, value = (arm.linear(name, x).view(n_tokens, -1, 1, HEAD) for name in ("q", "k", "v"))
        keys[:, :, -1:], values[:, :, -1:] = key, value
        attended = functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)
        hidden = tokens + arm.linear("o", attended.reshape(n_tokens, -1))
        x = functional.rms_norm(hidden, (HIDDEN,))
        return hidden + arm.linear("down", functional.silu(arm.linear("gate", x)) * arm.linear("up", x))

    return forward
