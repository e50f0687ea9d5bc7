"""A plain training loop for those who bring none: seeded, and killed at any moment it goes on from its checkpoint to the same result."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.method import Method, Trained, Training
from modelcodec.fit.training.task import Task
from modelcodec.formats.atomic import atomic_file
from modelcodec.version import VERSION

SAVE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Passed:
    """Where a training is: `step` batches into pass `epoch`, `loss` of the last one. Told again when a pass has `ended`, with a `score` if there is one."""

    epoch: int
    step: int
    n_steps: int | None
    loss: float
    ended: bool = False
    score: float | None = None


Watch = Callable[[Passed], None]


def train(
    task: Task,
    method: Method,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    watch: Watch | None = None,
    identity: str = "",
) -> Trained:
    """Train the task's model by a method.

    checkpoint: written every `save_seconds`, after each pass, and where `watch` raises KeyboardInterrupt; where there is one, the training goes on from it.
    identity: what tells the task from others, since a checkpoint is of one task, method, seed and number of passes. Runs give the same weights, killed or
    not, where the task itself is deterministic: its functions are called with the generators of Python, numpy and torch seeded from `seed` and the pass.
    Raises BadRecipe for a checkpoint of another training, and where the loss is no number any more.
    """
    _seed(seed, -1)
    model = task.model()
    if not isinstance(model, nn.Module):
        raise BadRecipe(f"model() gives a {type(model).__name__}; return the network")
    training = method.begin(model, _Samples(task))
    optimizer = task.optimizer([p for p in training.model.parameters() if p.requires_grad])
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise BadRecipe(f"optimizer(parameters) gives a {type(optimizer).__name__}; return one of torch.optim")
    of = {"method": repr(method), "seed": seed, "passes": task.epochs, "task": identity, "modelcodec": VERSION, "torch": str(torch.__version__)}
    run = _Run(task, training, optimizer, of, checkpoint)
    epoch, step, generators = run.resumed()
    saved = time.monotonic()
    remarks: tuple[str, ...] = ()
    while epoch < task.epochs:
        for passed in run.epoch(epoch, step, seed, generators):
            place = (epoch + 1, 0) if passed.ended else (epoch, passed.step)
            try:
                if watch is not None:
                    watch(passed)
            except KeyboardInterrupt:
                run.save(*place)
                raise
            if time.monotonic() - saved > save_seconds:
                run.save(*place)
                saved = time.monotonic()
            if passed.ended:
                remarks = _of_length(passed)
        epoch, step, generators = epoch + 1, 0, None
        run.save(epoch, 0)
    training.model.eval()
    trained = training.finish()
    return replace(trained, remarks=trained.remarks + remarks)


def _of_length(passed: Passed) -> tuple[str, ...]:
    """What there is to tell of a pass that gave more or fewer batches than its length told."""
    if passed.n_steps in (None, passed.step):
        return ()
    told = f"batches({passed.epoch}) has the length {passed.n_steps} and gave {passed.step} batches, so that rates and schedules moved by leaps"
    return (f"{told}; let its length be their number, or give it none",)


@dataclass(frozen=True, slots=True)
class _Samples:
    """The first pass's inputs and labels, as often as they are asked for."""

    task: Task

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return ((self.task.inputs(batch), self.task.labels(batch)) for batch in self.task.batches(0))


@dataclass(frozen=True, slots=True)
class _Run:
    task: Task
    training: Training
    optimizer: torch.optim.Optimizer
    of: Mapping[str, Any]
    """What a checkpoint must be of."""
    checkpoint: Path | None

    def epoch(self, epoch: int, begin: int, seed: int, generators: dict[str, Any] | None) -> Iterator[Passed]:
        """One pass from batch `begin` on."""
        task, training = self.task, self.training
        _seed(seed, epoch)
        batches = task.batches(epoch)
        n_steps = len(batches) if isinstance(batches, Sized) else None
        training.model.train()
        left = iter(batches)
        n_skipped = sum(1 for _ in islice(left, begin))
        if generators is not None:  # only now: the next batch may be made when it is asked for
            _set_generators(generators)

        def done(step: int) -> float:
            return (epoch + (min(step / n_steps, 1.0) if n_steps else 0.0)) / task.epochs

        passed = None
        for step, batch in enumerate(left, begin):
            passed = Passed(epoch, step + 1, n_steps, self._step(batch, done(step), f"pass {epoch + 1}, batch {step + 1}"))
            training.after_step(done(step + 1))
            yield passed
        if passed is None and (n_skipped < begin or not begin):
            raise BadRecipe(f"batches({epoch}) gives {n_skipped} batches, at least {max(begin, 1)} are needed")
        if n_steps is None or (passed is not None and passed.step < n_steps):
            training.after_step((epoch + 1) / task.epochs)
        if passed is not None:
            yield replace(passed, ended=True, score=scored(task, training.model))

    def _step(self, batch: Any, done: float, where: str) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.task.rate(done)
        self.optimizer.zero_grad()
        loss = self.task.loss(self.training.model, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise BadRecipe(f"{where}: loss(model, batch) gives {type(loss).__name__}, and a training takes a tensor of one number; return the mean")
        loss = loss + self.training.penalty()
        if not loss.requires_grad:
            raise BadRecipe(f"{where}: the loss does not depend on any parameter that is trained")
        value = float(loss.detach())
        if not math.isfinite(value):
            raise BadRecipe(f"{where}: the loss is {value}; lower the learning rate or the method's options")
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return value

    def save(self, epoch: int, step: int) -> None:
        if self.checkpoint is None:
            return
        state = {
            "of": dict(self.of), "epoch": epoch, "step": step, "generators": _generators(), "model": self.training.model.state_dict(),
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
        state = self._loaded(self.checkpoint)
        model = self.training.model
        try:
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise BadRecipe(f"{self.checkpoint}: this is the checkpoint of another model ({error}); remove it to begin anew") from None
        with torch.no_grad():  # a look at a weight is no step: clusters move in each forward pass with gradients
            self.training.restore(_on(state["training"], next((tensor.device for tensor in model.state_dict().values()), torch.device("cpu"))))
        return state["epoch"], state["step"], state["generators"] if state["step"] else None

    def _loaded(self, checkpoint: Path) -> dict[str, Any]:
        """Onto the CPU, so that it goes on wherever the model is now."""
        try:
            state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
            of = state["of"]
            if not {"method", "seed"} <= of.keys():
                raise KeyError("of")
        except OSError:
            raise
        except Exception as error:  # whatever torch makes of a file that is something else
            raise BadRecipe(f"{checkpoint}: this is no checkpoint of a training ({type(error).__name__}); name another") from None
        for key, value in self.of.items():
            if of.get(key) != value:
                raise BadRecipe(f"{checkpoint}: this is the checkpoint of another training, its {key} is {of.get(key)}, not {value}; remove it to begin anew")
        return state


def scored(task: Task, model: nn.Module) -> float | None:
    """The task's score of a model, None where it has none. The model is left in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return None if task.score is None else float(task.score(model))


def _on(state: Any, device: torch.device) -> Any:
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: _on(value, device) for key, value in state.items()}
    return type(state)(_on(value, device) for value in state) if isinstance(state, list | tuple) else state


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
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
