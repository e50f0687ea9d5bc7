"""The tokens suite: one token at a time on the CPU, with plain weights, with frames, and with the fixed-length form."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.llama import Shape, bf16_llama
from benchmarks.lossless import machine, replace_block
from modelcodec.kernels.fixed_length import MOST_VECTORS
from modelcodec.pool import thread_count
from modelcodec.runtime.compressed_module import compress_module

MATRICES = ((4096, 4096), (11008, 4096), (14336, 4096), (32000, 2048))
"""Rows and columns, of layers and vocabularies of Llamas."""
QUICK_MATRICES = ((1024, 4096),)
MODEL = Shape(vocabulary=32000, width=2048, hidden=5632, layers=6, heads=32, kv_heads=4)
QUICK_MODEL = Shape(vocabulary=4000, width=1024, hidden=2816, layers=2, heads=16, kv_heads=4)
ROTATED_BYTES = 1 << 28
"""Matrices take turns until they are so large together that none is in a cache when its turn comes."""
ROUNDS, QUICK_ROUNDS = 12, 2
NEAR = 2**-4
"""Of the largest logit: what sums in another order, rounded to bf16 after each layer, may come to."""


def best_times(works: dict[str, list[Callable[[], Any]]], rounds: int, threads: int) -> dict[str, float]:
    """Seconds of each way, the best of rounds in which all take turns; on one thread those in which it really ran."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    torch.set_num_threads(threads)
    best = dict.fromkeys(works, float("inf"))
    with torch.inference_mode():
        for _ in range(rounds):
            for turns in zip(*works.values(), strict=True):
                for arm, work in zip(works, turns, strict=True):
                    start = clock()
                    work()
                    best[arm] = min(best[arm], clock() - start)
    return best


def layers(n_rows: int, n_columns: int) -> dict[str, list[nn.Linear]]:
    """The same matrices in each way."""
    found: dict[str, list[nn.Linear]] = {"bf16": [], "f32": [], "fixed length": []}
    for _ in range(max(ROTATED_BYTES // (2 * n_rows * n_columns), 2)):
        layer = nn.Linear(n_columns, n_rows, bias=False, dtype=torch.bfloat16)
        nn.init.normal_(layer.weight, std=0.02)
        found["bf16"].append(layer)
        found["f32"].append(copy.deepcopy(layer).float())
        found["fixed length"].append(copy.deepcopy(layer))
        compress_module(found["fixed length"][-1], fixed_length=True)
    return found


def products(n_rows: int, n_columns: int, all_threads: Sequence[int], rounds: int) -> list[str]:
    """Rows of the table of products."""
    made = layers(n_rows, n_columns)
    rows = []
    for n in (1, MOST_VECTORS):
        x = torch.randn(n, n_columns).bfloat16()
        inputs = {"bf16": x, "f32": x.float(), "fixed length": x}
        with torch.inference_mode():
            for plain, form in zip(made["f32"], made["fixed length"], strict=True):
                torch.testing.assert_close(form(x).float(), plain(x.float()), rtol=2**-7, atol=2**-7)
        for threads in all_threads:
            works = {arm: [lambda layer=layer, x=inputs[arm]: layer(x) for layer in those] for arm, those in made.items()}
            best = best_times(works, rounds, threads)
            gbps = 1.5 * n_rows * n_columns / best["fixed length"] / 1e9
            times = " | ".join(f"{1e3 * seconds:.2f}" for seconds in best.values())
            rows.append(f"| {n_rows} x {n_columns} | {n} | {threads} | {times} | {best['bf16'] / best['fixed length']:.2f} | {gbps:.0f} |")
    return rows


def generation(shape: Shape, all_threads: Sequence[int], rounds: int) -> str:
    """Tokens a second of a whole model, whose last layers must give the same."""
    models = {"plain": bf16_llama(shape)}
    reports = {"plain": "100 %"}
    for arm, fixed_length in (("frames", False), ("fixed length", True)):
        models[arm] = copy.deepcopy(models["plain"])
        report = compress_module(models[arm], fixed_length=fixed_length)
        reports[arm] = f"{100 * report.kept_bytes / report.dense_bytes:.0f} %"
    token = torch.zeros(1, 1, dtype=torch.int64)
    with torch.inference_mode():
        logits = {arm: model(token).float() for arm, model in models.items()}
    error = (logits["fixed length"] - logits["plain"]).abs().max() / logits["plain"].abs().max()
    if not torch.equal(logits["frames"], logits["plain"]) or error > NEAR:
        raise AssertionError(f"different logits, by {error:.2g} of the largest")
    works = {arm: [lambda model=model: model(token)] for arm, model in models.items()}
    times = {threads: best_times(works, rounds, threads) for threads in all_threads}
    lines = ["| weights | kept | " + " | ".join(f"tokens/s, {threads} thread{'s' * (threads > 1)}" for threads in all_threads) + " |"]
    lines.append("|---|---|" + "---|" * len(all_threads))
    for arm in models:
        speeds = " | ".join(f"{1 / best[arm]:.1f} ({best['plain'] / best[arm]:.2f})" for best in times.values())
        lines.append(f"| {arm} | {reports[arm]} | {speeds} |")
    return "\n".join(lines)


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Print the tables; write them to docs/compressed_weights.md unless `quick`. Returns 0."""
    all_threads = sorted({1, thread_count(None)})
    rounds = QUICK_ROUNDS if quick else ROUNDS
    model = QUICK_MODEL if quick else MODEL
    lines = ["| matrix | vectors | threads | torch, bf16, ms | torch, f32, ms | fixed length, ms | times as fast as bf16 | GB/s read |", "|---" * 8 + "|"]
    for n_rows, n_columns in QUICK_MATRICES if quick else MATRICES:
        lines += products(n_rows, n_columns, all_threads, rounds)
    of_model = f"Of a model ({model}), without a cache of keys and values; in brackets, times as fast as plain:"
    head = f"{machine()}, torch {torch.__version__}. The module's whole call, the best of {rounds} rounds; on one thread, the thread's own time."
    block = "\n\n".join((head, "\n".join(lines), of_model, generation(model, all_threads, rounds)))
    print(block)
    if not quick:
        replace_block(root / "docs" / "compressed_weights.md", block, "tokens")
    return 0
