"""The options that several verbs share, with zstd's letters and meanings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

LEVELS = {1: "fast", 5: "default", 9: "small"}
STANDARD = "-"
"""Standard input as a source, standard output as a destination."""


@dataclass(frozen=True, slots=True)
class Voice:
    """How much is said: `quiet` leaves only errors, `verbose` adds time and tensors, `json` puts one line a file on standard output."""

    quiet: bool
    verbose: bool
    json: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where results go: `output` as the user named it, `force` to overwrite, `keep` False to remove each source once its result is safe."""

    output: str | None
    to_stdout: bool
    force: bool
    keep: bool


Paths = TypeVar("Paths", str, tuple[str, ...])


def _no_stream(_context: click.Context, _parameter: click.Parameter, given: Paths) -> Paths:
    if STANDARD in ((given,) if isinstance(given, str) else given):
        raise click.UsageError("this verb reads at any place of a file, which standard input has not; name a file")
    return given


inputs = click.argument("inputs", nargs=-1, type=click.Path(), metavar="[FILE|FOLDER|-]...")
files = click.argument("files", nargs=-1, required=True, type=click.Path(), callback=_no_stream, metavar="FILE|FOLDER...")
file = click.argument("file", type=click.Path(), callback=_no_stream)
threads = click.option(
    "-T", "--threads", type=click.IntRange(0), metavar="N", default=0, help="Threads; 0, the default, for one a processor. The result never depends on it."
)
json = click.option("--json", is_flag=True, help="One line of JSON a file on standard output.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
base = click.option(
    "--base", type=click.Path(), metavar="PATH", help="For deltas: the base, or the folder that holds it. Without it, it is looked for beside the file."
)


def voice_options(command: Command) -> Command:
    """Add -q, -v and --json, given to the command as `voice`."""

    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors; no progress bars.")
    @click.option("-v", "--verbose", is_flag=True, help="Say more: time, rate, each tensor's plan. With data on standard output, nothing is said without it.")
    @json
    @wraps(command)
    def with_voice(*args: Any, quiet: bool, verbose: bool, json: bool, **others: Any) -> Any:
        if quiet and verbose:
            raise click.UsageError("-q and -v exclude each other")
        return command(*args, voice=Voice(quiet, verbose, json), **others)

    return with_voice  # type: ignore[return-value]


def place_options(command: Command) -> Command:
    """Add -o, -c, -f, -k and --rm, given to the command as `place`."""

    @click.option("-o", "--output", type=click.Path(), metavar="PATH", help="Write to this file, into this folder, or with '-' to standard output.")
    @click.option("-c", "--stdout", "to_stdout", is_flag=True, help="Write to standard output.")
    @click.option("-f", "--force", is_flag=True, help="Overwrite; write binary data to a terminal.")
    @click.option("-k", "--keep/--rm", "keep", default=True, help="Keep the input, the default; or remove it once the result is checked and on disk.")
    @wraps(command)
    def with_place(*args: Any, output: str | None, to_stdout: bool, force: bool, keep: bool, **others: Any) -> Any:
        if to_stdout and output not in (None, STANDARD):
            raise click.UsageError("-c and -o exclude each other")
        to_stdout = to_stdout or output == STANDARD
        return command(*args, place=Place(None if to_stdout else output, to_stdout, force, keep), **others)

    return with_place  # type: ignore[return-value]


class LevelOption(click.Option):
    """`--level N` and `-N` for every digit. All digits are known to the parser so that a wrong one, and -19 for -1 -9, can be told what the levels are."""

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        for digit in range(10):
            parser.add_option(obj=self, opts=[f"-{digit}"], dest=self.name, action="append_const", const=digit)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return ", ".join(f"-{level}" for level in LEVELS) + ", --level N", self.help or ""


def _one_level(_context: click.Context, _parameter: click.Parameter, given: tuple[int, ...]) -> int | None:
    if not given:
        return None
    if len(given) > 1 or given[0] not in LEVELS:
        known = ", ".join(f"-{level} ({meaning})" for level, meaning in LEVELS.items())
        raise click.UsageError(f"there is no level -{''.join(map(str, given))}; the levels are {known}")
    return given[0]


level = click.option(
    "--level",
    cls=LevelOption,
    type=int,
    multiple=True,
    callback=_one_level,
    help="Level: " + ", ".join(f"{level} {meaning}" for level, meaning in LEVELS.items()) + ".",
)
