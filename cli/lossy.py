"""The options that make `compress` lossy, and the fit that they ask for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from modelcodec.errors import BadRecipe

if TYPE_CHECKING:
    from modelcodec.fit.calibration import Calibration
    from modelcodec.fit.chain import Fitting
    from modelcodec.fit.trellis import Quantizer
    from modelcodec.fitted import Fit
    from modelcodec.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(%|[kKMGT]?i?B?)")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30, "TI": 1 << 40}


@dataclass(frozen=True)
class Loss:
    """What the user allows to be lost; at most one of bits, target_size, max_error, snr and drop, for tensors of no rule. Its files are read once, at need."""

    bits: float | None
    target_size: str | None
    max_error: str | None
    block: int | None
    snr: float | None
    drop: float | None
    score: str | None
    calibrate: str | None
    recipe: str | None

    @property
    def asked(self) -> bool:
        """Whether anything may be lost, or a recipe says how tensors are coded."""
        return any(getattr(self, field.name) is not None for field in fields(self))

    @cached_property
    def rules(self) -> Recipe:
        """Those of --recipe. Raises BadRecipe, OSError."""
        from modelcodec.recipe import Recipe

        return Recipe.from_toml(Path(self.recipe).read_text(encoding="utf-8")) if self.recipe else Recipe()

    @cached_property
    def statistics(self) -> Calibration | None:
        """Those of --calibrate. Raises BadRecipe, OSError."""
        return None if self.calibrate is None else _calibration_of(Path(self.calibrate))

    @cached_property
    def scorer(self) -> Callable[..., Any] | None:
        """The function of --eval. Raises BadRecipe, OSError."""
        return None if self.score is None else _of_user(Path(self.score), "score")


def lossy_options(command: Command) -> Command:
    """Add --bits, --target-size, --max-error, --block, --snr, --drop, --eval, --calibrate and --recipe, given to the command as `loss`."""

    @click.option("--bits", type=click.FloatRange(0, min_open=True), metavar="B", help="Lossy: at most B bits a weight, on average.")
    @click.option("--target-size", metavar="SIZE", help="Lossy: a file of at most SIZE, as in 40%, 500MB or 2GiB.")
    @click.option("--max-error", metavar="E", help="Lossy: no weight further off than E, or with % than that share of its row's largest.")
    @click.option("--block", type=click.IntRange(1), metavar="N", help="With --max-error in %: of the largest of each N weights that follow each other.")
    @click.option("--snr", type=float, metavar="DB", help="Lossy: at least DB decibels between weights and their errors.")
    @click.option("--drop", type=click.FloatRange(0), metavar="D", help="Lossy: the smallest file whose score falls by at most D; needs --eval.")
    @click.option("--eval", "score", type=click.Path(), metavar="FILE.py", help="Python file with score(tensors): numpy arrays by name to a number.")
    @click.option("--calibrate", type=click.Path(), metavar="FILE", help="With --bits: statistics of the layers, or a Python file with calibrate().")
    @click.option("--recipe", type=click.Path(), metavar="FILE.toml", help="Rules by tensor name: plans, levels, fits.")
    @wraps(command)
    def with_loss(*args: Any, **others: Any) -> Any:
        loss = Loss(**{field.name: others.pop(field.name) for field in fields(Loss)})
        given = [name for name in ("bits", "target_size", "max_error", "snr", "drop") if getattr(loss, name) is not None]
        if len(given) > 1:
            raise click.UsageError(" and ".join(f"--{name.replace('_', '-')}" for name in given) + " exclude each other")
        if (loss.drop is None) != (loss.score is None):
            raise click.UsageError("--drop and --eval go together")
        if loss.block is not None and not (loss.max_error or "").endswith("%"):
            raise click.UsageError("--block goes with --max-error in %")
        if loss.calibrate is not None and loss.bits is None:
            raise click.UsageError("--calibrate goes with --bits")
        return command(*args, loss=loss, **others)

    return with_loss  # type: ignore[return-value]


def fit_of(loss: Loss, recipe: Recipe, level: int | None, source: Path | None) -> Fit | None:
    """The fit that was asked for; None where nothing may be lost. `source` is needed for --target-size. Raises BadRecipe."""
    usual = any(getattr(loss, name) is not None for name in ("bits", "target_size", "max_error", "snr", "drop"))
    if not usual and not any(rule.fit for rule in recipe.rules):
        return None
    from modelcodec.fit.drop import Drop
    from modelcodec.fit.rules import Ruled
    from modelcodec.fit.trellis import Trellis

    if loss.drop is not None and loss.scorer is not None:
        quantizer = _quantizer(level)
        return Drop(loss.drop, loss.scorer, lambda step: Ruled(recipe.rules, Trellis(step, quantizer)))
    if loss.statistics is not None and loss.bits is not None:
        from modelcodec.fit.obs import Obs

        return partial(Ruled(recipe.rules, Obs(loss.bits, _quantizer(level))), data=loss.statistics)
    return Ruled(recipe.rules, _usual(loss, recipe, level, source))


def _usual(loss: Loss, recipe: Recipe, level: int | None, source: Path | None) -> Fitting | None:
    """The fit of tensors of no rule."""
    from modelcodec.fit.allocate import Bits, MaxError, Size, Snr

    quantizer = _quantizer(level)
    if loss.bits is not None:
        return Bits(loss.bits, quantizer)
    if loss.snr is not None:
        return Snr(loss.snr, quantizer)
    if loss.max_error is not None:
        share = loss.max_error.endswith("%")
        try:
            bound = float(loss.max_error.removesuffix("%"))
        except ValueError:
            raise BadRecipe(f"--max-error {loss.max_error!r} is no number") from None
        return MaxError(bound / 100 if share else bound, share, quantizer.modelled, loss.block)
    if loss.target_size is not None:
        from modelcodec.fit.whole_file import bytes_left

        if source is None or source.is_dir():
            raise BadRecipe("--target-size is for one file on disk; give --bits for folders and for standard input")
        return Size(bytes_left(source, _bytes_of(loss.target_size, source.stat().st_size), recipe, level), quantizer)
    return None


def _quantizer(level: int | None) -> Quantizer:
    """Levels cost time and save bits here, too: -1 decodes fast, -9 searches a trellis of 256 states."""
    from modelcodec.fit.trellis import DEFAULT, Quantizer

    return {1: Quantizer(states=4, modelled=False), 9: Quantizer(states=256)}.get(level or 0, DEFAULT)


def _bytes_of(text: str, whole: int) -> int:
    """A size as typed, in bytes. Raises BadRecipe."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise BadRecipe(f"--target-size {text!r} is no size; 40%, 500MB and 2GiB are")
    number, unit = float(found[1]), found[2]
    return int(number * whole / 100) if unit == "%" else int(number * _UNITS[unit.upper().removesuffix("B")])


def _calibration_of(path: Path) -> Calibration:
    """Statistics out of a file, or from the function `calibrate` of the user's own Python file, which is run. Raises BadRecipe, OSError."""
    from modelcodec.fit.calibration import Calibration

    if path.suffix != ".py":
        return Calibration.load(path)
    found = _of_user(path, "calibrate")()
    if not isinstance(found, Calibration):
        raise BadRecipe(f"{path}: calibrate() gives {type(found).__name__}, it is to give a modelcodec.fit.calibration.Calibration")
    return found


def _of_user(path: Path, name: str) -> Callable[..., Any]:
    """A function of the user's own Python file, whose errors are told as the file's. Raises BadRecipe, OSError."""
    from modelcodec.cli.user_code import blamed_on, function_of

    function = function_of(path, name)

    def run(*args: Any) -> Any:
        with blamed_on(path):
            return function(*args)

    return run
