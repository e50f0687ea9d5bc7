"""`mcodec fit`: a user's own model, trained by a method so that it is stored small."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelcodec.cli import options
from modelcodec.cli.jobs import each
from modelcodec.cli.messages import is_terminal, say
from modelcodec.cli.options import Voice
from modelcodec.cli.report import as_json, print_json, shrunk
from modelcodec.cli.user_code import blamed_on, names_of
from modelcodec.errors import BadRecipe
from modelcodec.fit.training import METHODS

if TYPE_CHECKING:
    from rich.progress import Progress

    from modelcodec.fit.training.loop import Passed
    from modelcodec.fit.training.method import Method, Trained
    from modelcodec.fit.training.task import Task
    from modelcodec.report import Report


def _completed(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    return [name for name in METHODS if name.startswith(begun)]


@click.command(short_help="Train a model so that it is stored small.", epilog=f"Methods: {', '.join(METHODS)}.")
@click.argument("method", shell_complete=_completed)
@click.argument("script", type=click.Path(), metavar="SCRIPT.py")
@click.option("-o", "--out", required=True, type=click.Path(), metavar="FILE", help="Write the trained weights, compressed, to this file.")
@click.option("--seed", type=click.IntRange(0), default=0, metavar="N", help="Seed of all random numbers, 0 by default.")
@click.option("--epochs", type=click.IntRange(0), metavar="N", help="Passes over the data, in place of the script's.")
@click.option("--checkpoint", type=click.Path(), metavar="FILE", help="Keep the training's state here until it is done; by default beside the result.")
@options.level
@click.option("-f", "--force", is_flag=True, help="Overwrite.")
@options.json
@options.quiet
def fit(
    method: str, script: str, out: str, seed: int, epochs: int | None, checkpoint: str | None, level: int | None, force: bool, json: bool, quiet: bool
) -> int:
    """Train a model by METHOD, as in "dkm(16)" or "lsq(4) | distill(1)", and write it compressed.

    \b
    SCRIPT.py is your own, it is run. It has these functions:
      model()                 the model as it is now, on its device
      batches(epoch)          the batches of one pass
      loss(model, batch)      runs the model
    and may have these:
      score(model)            higher is better; told after each pass, and of the file
      optimizer(parameters)   else Adam with a learning rate of 1e-3
      rate(done)              factor of learning rates, done from 0 to 1; else a cosine
      inputs(batch)           else batch[0]
      labels(batch)           else batch[1]
      epochs = 3              passes, else 1

    Stopped or killed, the same command goes on from the checkpoint, to the same result.
    """
    voice, parsed = Voice(quiet, verbose=False, json=json), _parsed(method)

    def work(source: str) -> None:
        begin = time.perf_counter()
        job = _Job(Path(source), parsed, Path(out), seed, Path(checkpoint or f"{out}.training"), quiet)
        task, trained = job.trained(epochs, force)
        report = trained.save(out, level=level, overwrite=force)
        score = job.score(task, trained)
        job.checkpoint.unlink(missing_ok=True)
        bits = 8 * report.n_bytes_coded / max(sum(tensor.n_weights for tensor in report.tensors), 1)
        if json:
            done = {"source": source, "destination": out, "method": method, "seed": seed, "epochs": task.epochs, "bits_per_weight": bits, "score": score}
            print_json(as_json(report) | done | {"remarks": trained.remarks, "seconds": round(time.perf_counter() - begin, 3)})
        elif not quiet:
            for remark in trained.remarks:
                say(f"{source}: {remark}")
            say(f"{source}: {_told(report, bits, score)}; wrote {out}")

    return each((script,), work, voice)


def _told(report: Report, bits: float, score: float | None) -> str:
    return f"{shrunk(report)}, {bits:.3f} bits a weight" + (f", score {score:.6g}" if score is not None else "")


def _parsed(method: str) -> Method:
    """Raises click.UsageError, also where torch is not installed."""
    from modelcodec.fit.training import parse_method

    try:
        return parse_method(method)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise click.UsageError("training needs torch, which is not installed: pip install 'modelcodec[torch]'") from None
    except BadRecipe as error:
        raise click.UsageError(str(error)) from None


@dataclass(frozen=True, slots=True)
class _Job:
    script: Path
    method: Method
    out: Path
    seed: int
    checkpoint: Path
    quiet: bool

    def trained(self, epochs: int | None, force: bool) -> tuple[Task, Trained]:
        """What can be refused is refused before the training. Raises BadRecipe, OSError."""
        _check_destination(self.out, force)
        _check_folder(self.checkpoint)
        names = names_of(self.script)
        from modelcodec.fit.training.loop import train
        from modelcodec.fit.training.task import Task

        task = Task.of(names, str(self.script))
        if epochs is not None:
            task = replace(task, epochs=epochs)
        identity = f"{self.script.name} of digest {hashlib.sha256(self.script.read_bytes()).hexdigest()[:12]}"
        with _stoppable() as stop, blamed_on(self.script):
            watch = _Watch(task.epochs, stop, f"the same command goes on from {self.checkpoint}", self.quiet)
            try:
                return task, train(task, self.method, seed=self.seed, checkpoint=self.checkpoint, watch=watch, identity=identity)
            finally:
                watch.close()

    def score(self, task: Task, trained: Trained) -> float | None:
        """Of the file as it was written, decoded again; None where the task has none, or it is no number."""
        from modelcodec import load_file
        from modelcodec.fit.training.loop import scored

        trained.model.load_state_dict(load_file(self.out, "pt"), strict=False)  # of tied weights it has one
        with blamed_on(self.script):
            score = scored(task, trained.model)
        return score if score is not None and math.isfinite(score) else None


def _check_destination(out: Path, force: bool) -> None:
    if out.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; name a file in it", str(out))
    if out.exists() and not force:
        raise FileExistsError(errno.EEXIST, "exists already", str(out))
    _check_folder(out)


def _check_folder(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))


class _Stop:
    """A first Ctrl-C waits for the end of the batch, so that the checkpoint has all that is done; a second one does not."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def _stoppable() -> Iterator[_Stop]:
    stop = _Stop()
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(slots=True)
class _Watch:
    """Tells how a training goes: a bar on a terminal, a line a pass."""

    epochs: int
    stop: _Stop
    remedy: str
    quiet: bool
    begun: float = field(default_factory=time.monotonic)
    losses: list[float] = field(default_factory=list)
    bar: Progress | None = None

    def __call__(self, passed: Passed) -> None:
        """Raises KeyboardInterrupt where that was asked for."""
        if not self.quiet:
            self._tell(passed)
        if self.stop.asked:
            raise KeyboardInterrupt(self.remedy)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

    def _tell(self, passed: Passed) -> None:
        if passed.ended:
            score = f", score {passed.score:.6g}" if passed.score is not None else ""
            loss, seconds = math.fsum(self.losses) / len(self.losses), time.monotonic() - self.begun
            say(f"pass {passed.epoch + 1} of {self.epochs}: loss {loss:.4g}{score}, {seconds:.1f} s")
            self.losses.clear()
            self.begun = time.monotonic()
            return
        self.losses.append(passed.loss)
        if is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb":
            self._move(passed)

    def _move(self, passed: Passed) -> None:
        n_done = passed.epoch * (passed.n_steps or 0) + passed.step
        told = f"pass {passed.epoch + 1} of {self.epochs}, loss {passed.loss:.4g}"
        if self.bar is None:
            self.bar = _bar()
            self.bar.add_task(told, total=self.epochs * passed.n_steps if passed.n_steps else None, completed=n_done)
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=n_done, description=told)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    return Progress(*columns, console=Console(stderr=True), transient=True)
