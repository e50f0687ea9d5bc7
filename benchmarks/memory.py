"""The memory suite: inference and training with weights that stay compressed, beside the same with plain ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.llama import Llama, Shape, bf16_llama
from benchmarks.lossless import machine, replace_block
from modelcodec.runtime.compressed_module import MemoryReport, compress_module
from modelcodec.runtime.training import UpdatesInBackward

FULL = Shape(vocabulary=32000, width=1024, hidden=2816, layers=16, heads=16, kv_heads=8)
QUICK = Shape(vocabulary=4000, width=512, hidden=1408, layers=4, heads=8, kv_heads=4)
TOKENS = 512
ROUNDS, QUICK_ROUNDS = 3, 2
RATE = 1e-4

ARMS = {
    "inference": ("plain", "compressed"),
    "training": ("plain", "plain, updates in backward", "compressed", "compressed, with its state"),
}


def memory_now(peak: bool = False) -> int:
    """Bytes of this process in memory, or the most since `forget_peak`."""
    key = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def batch(shape: Shape, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randint(shape.vocabulary, (1, tokens), generator=torch.Generator().manual_seed(1))


def loss_of(model: Llama, tokens: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(tokens)[0, :-1].float(), tokens[0, 1:])


def inference(model: Llama, tokens: torch.Tensor) -> Callable[[], Any]:
    def run() -> Any:
        with torch.inference_mode():
            return model(tokens)

    return run


def training(model: Llama, tokens: torch.Tensor, arm: str) -> Callable[[], Any]:
    """One step of AdamW."""
    if arm == "plain":
        plain = torch.optim.AdamW(model.parameters(), lr=RATE)

        def step() -> float:
            loss = loss_of(model, tokens)
            loss.backward()
            plain.step()
            plain.zero_grad()
            return loss.item()

        return step
    updates = UpdatesInBackward(model.parameters(), torch.optim.AdamW, compress_state=arm.endswith("state"), lr=RATE)

    def step_inside() -> float:
        loss = loss_of(model, tokens)
        updates.backward(loss)
        updates.step()
        return loss.item()

    return step_inside


def prepared(kind: str, arm: str, shape: Shape) -> tuple[Callable[[], Any], MemoryReport | None]:
    model = bf16_llama(shape)
    report = compress_module(model) if arm.startswith("compressed") else None
    tokens = batch(shape)
    return (inference(model, tokens) if kind == "inference" else training(model, tokens, arm)), report


def print_peak(kind: str, arm: str, quick: bool) -> None:
    """Run in a process of its own: what the model takes before and while it works, beside what torch and the kernels take."""
    small, _ = prepared(kind, arm, QUICK)
    small()
    del small
    before = memory_now()
    work, _ = prepared(kind, arm, QUICK if quick else FULL)
    held = memory_now() - before
    forget_peak()
    for _ in range(2):
        work()
    print(json.dumps({"held": held, "peak": memory_now(peak=True) - before}))


def peak_of(root: Path, kind: str, arm: str, quick: bool) -> dict[str, int]:
    code = f"from benchmarks.memory import print_peak; print_peak({kind!r}, {arm!r}, {quick})"
    # What is freed goes back to the system at once, so that the peak shows what is needed, not what the C library keeps.
    environment = {**os.environ, "PYTHONPATH": str(root), "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True)
    result: dict[str, int] = json.loads(done.stdout)
    return result


def best_times(works: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each, the best of several rounds in which all take turns; what they give must be the same."""
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        results = []
        for arm, work in works.items():
            start = time.perf_counter()
            results.append(work())
            best[arm] = min(best[arm], time.perf_counter() - start)
        if any(not torch.equal(torch.as_tensor(results[0]), torch.as_tensor(result)) for result in results[1:]):
            raise AssertionError(f"{', '.join(works)} give different results")
    return best


def table(root: Path, kind: str, quick: bool) -> str:
    """Peak memory and time of each way, for one kind of work."""
    shape = QUICK if quick else FULL
    peaks = {arm: peak_of(root, kind, arm, quick) for arm in ARMS[kind]}
    works = {arm: prepared(kind, arm, shape)[0] for arm in ARMS[kind]}
    best = best_times(works, QUICK_ROUNDS if quick else ROUNDS)
    plain = best["plain"]
    lines = [f"| {kind}, {TOKENS} tokens | model, MB | peak, MB | of plain | s | of plain |", "|---|---|---|---|---|---|"]
    for arm in ARMS[kind]:
        held, peak = peaks[arm]["held"], peaks[arm]["peak"]
        share = 100 * peak / peaks["plain"]["peak"]
        lines.append(f"| {arm} | {held / 1e6:.0f} | {peak / 1e6:.0f} | {share:.0f} % | {best[arm]:.2f} | {best[arm] / plain:.2f} |")
    return "\n".join(lines)


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Print the tables; write them to docs/compressed_weights.md unless `quick`. Returns 0."""
    if not Path("/proc/self/clear_refs").exists():
        print("Peak memory is measured through /proc, which is not there.", file=sys.stderr)
        return 1
    # On several threads torch's small operations wait for each other, and a busy machine shows that more than anything else.
    torch.set_num_threads(1)
    shape = QUICK if quick else FULL
    _, report = prepared("inference", "compressed", shape)
    head = f"{machine()}, one thread, torch {torch.__version__}; bf16, {shape}.\n\n{report}."
    block = "\n\n".join((head, table(root, "inference", quick), table(root, "training", quick)))
    print(block)
    if not quick:
        replace_block(root / "docs" / "compressed_weights.md", block, "memory")
    return 0
