"""A plain training loop for those who bring none: seeded, and killed at any moment it goes on from its checkpoint to the same result."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.method import Method, Trained, Training
from modelcodec.fit.training.task import Task
from modelcodec.formats.atomic import atomic_file

SAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Passed:
    """Where a training is: `step` batches into pass `epoch`, `loss` of the last one; `score` once a pass has ended, where the task has one."""

    epoch: int
    step: int
    n_steps: int | None
    loss: float
    score: float | None = None


Watch = Callable[[Passed], None]


def train(
    task: Task, method: Method, *, seed: int = 0, checkpoint: Path | None = None, save_seconds: float = SAVE_SECONDS, watch: Watch | None = None
) -> Trained:
    """Train the task's model by a method. `checkpoint`: written every `save_seconds` and after each pass; where there is one, the training goes on from it.

    Runs give the same weights, killed or not, where the task itself is deterministic: its functions are called with the generators of Python, numpy and torch
    seeded from `seed` and the pass. Raises BadRecipe for a checkpoint of another training.
    """
    _seed(seed, -1)
    training = method.begin(task.model(), ((task.inputs(batch), task.labels(batch)) for batch in task.batches(0)))
    optimizer = task.optimizer([p for p in training.model.parameters() if p.requires_grad])
    run = _Run(task, training, optimizer, f"{method!r} seed {seed} epochs {task.epochs}", checkpoint)
    epoch, step, generators = run.resumed()
    saved = time.monotonic()
    while epoch < task.epochs:
        for passed in run.epoch(epoch, step, seed, generators):
            if watch is not None:
                watch(passed)
            if time.monotonic() - saved > save_seconds:
                run.save(epoch, passed.step)
                saved = time.monotonic()
        epoch, step, generators = epoch + 1, 0, None
        run.save(epoch, 0)
    return training.finish()


@dataclass(frozen=True, slots=True)
class _Run:
    task: Task
    training: Training
    optimizer: torch.optim.Optimizer
    of: str
    checkpoint: Path | None

    def epoch(self, epoch: int, begin: int, seed: int, generators: dict[str, Any] | None) -> Iterator[Passed]:
        """One pass from batch `begin` on."""
        task, training = self.task, self.training
        _seed(seed, epoch)
        batches = task.batches(epoch)
        n_steps = len(batches) if isinstance(batches, Sized) else None
        rates = [group["initial_lr"] for group in self.optimizer.param_groups]
        training.model.train()
        passed = None
        for step, batch in enumerate(batches):
            if step < begin:
                continue
            if step == begin and generators is not None:
                _set_generators(generators)
            before, after = ((epoch + (s / n_steps if n_steps else 0.0)) / task.epochs for s in (step, step + 1))
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * task.rate(before)
            self.optimizer.zero_grad()
            loss = task.loss(training.model, batch) + training.penalty()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            training.after_step(after)
            passed = Passed(epoch, step + 1, n_steps, float(loss.detach()))
            yield passed
        if passed is None and not begin:
            raise BadRecipe(f"batches({epoch}) gives no batch")
        if passed is not None and task.score is not None:
            training.model.eval()
            with torch.no_grad():
                yield replace(passed, score=float(task.score(training.model)))

    def save(self, epoch: int, step: int) -> None:
        if self.checkpoint is None:
            return
        state = {
            "of": self.of, "epoch": epoch, "step": step, "generators": _generators(), "model": self.training.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "training": self.training.state(),
        }  # fmt: skip
        with atomic_file(self.checkpoint, overwrite=True) as file:
            torch.save(state, file)

    def resumed(self) -> tuple[int, int, dict[str, Any] | None]:
        """Pass, batch and generators to go on from."""
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        if self.checkpoint is None or not self.checkpoint.exists():
            return 0, 0, None
        state = torch.load(self.checkpoint, weights_only=True)
        if state["of"] != self.of:
            raise BadRecipe(f"{self.checkpoint}: this is the checkpoint of {state['of']}, not of {self.of}; remove it to begin anew")
        self.training.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.training.restore(state["training"])
        return state["epoch"], state["step"], state["generators"] if state["step"] else None


def _seed(seed: int, epoch: int) -> None:
    number = int(np.random.SeedSequence((seed, epoch + 1)).generate_state(1)[0])
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def _generators() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state(legacy=True)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    found = {"python": [version, list(words), gauss], "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest]}
    return {**found, "torch": torch.get_rng_state(), "cuda": cuda}


def _set_generators(state: dict[str, Any]) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
