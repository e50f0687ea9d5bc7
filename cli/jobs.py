"""Going through the inputs: which destination each has, what is done with it, and one exit code for all."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelcodec.cli.messages import complain, describe, is_terminal, say
from modelcodec.cli.options import STANDARD, Place, Voice
from modelcodec.cli.progress import Callback, bar
from modelcodec.cli.report import as_json, print_json, speed
from modelcodec.cli.streams import Endpoint, is_special, reading, writing
from modelcodec.errors import EXIT_OS_ERROR, BadRecipe, ModelCodecError

if TYPE_CHECKING:
    from modelcodec.report import Report

LABEL_WIDTH = 32


@dataclass(frozen=True, slots=True)
class Job:
    """One input and its destination: a path, STANDARD, or None for the derived name beside the source."""

    source: str
    destination: str | None


def plan_jobs(inputs: Sequence[str], place: Place, voice: Voice, renamed: Callable[[Path], Path]) -> list[Job]:
    """Say where the result of each input goes. Raises click.UsageError for what cannot be meant; touches no file.

    `renamed` derives a result's path from a source's. No inputs means standard input, as in zstd, unless that is a terminal.
    """
    if not inputs:
        if is_terminal(sys.stdin):
            raise click.UsageError("name a FILE or FOLDER, or '-' for standard input")
        inputs = (STANDARD,)
    into_folder = place.output is not None and os.path.isdir(place.output) and (len(inputs) > 1 or not os.path.isdir(inputs[0]))
    if place.output is not None and len(inputs) > 1 and not into_folder:
        raise click.UsageError(f"with several inputs -o must name an existing folder, and {place.output} is none")

    jobs = []
    for source in inputs:
        if place.to_stdout or (source == STANDARD and place.output is None):
            destination: str | None = STANDARD
        elif into_folder and place.output is not None:
            if source == STANDARD:
                raise click.UsageError(f"standard input has no name to take in the folder {place.output}; name a file with -o")
            destination = os.path.join(place.output, _renamed(source, renamed))
        else:
            destination = place.output
        jobs.append(Job(source, destination))
    _check(jobs, place, voice)
    return jobs


def _renamed(source: str, renamed: Callable[[Path], Path]) -> str:
    try:
        return renamed(Path(source)).name
    except BadRecipe as error:
        raise click.UsageError(str(error)) from error


def _check(jobs: Sequence[Job], place: Place, voice: Voice) -> None:
    sources, destinations = [job.source for job in jobs], [job.destination for job in jobs]
    if STANDARD in sources and not place.force and is_terminal(sys.stdin):
        raise click.UsageError("standard input is a terminal; redirect it, or force with -f")
    if sources.count(STANDARD) > 1:
        raise click.UsageError("standard input can be read only once")
    if STANDARD in destinations:
        if voice.json:
            raise click.UsageError("--json and the data would both go to standard output; write the data to a file with -o")
        if not place.force and is_terminal(sys.stdout):
            raise click.UsageError("standard output is a terminal; redirect it, or force with -f")
        folders = [job.source for job in jobs if job.destination == STANDARD and os.path.isdir(job.source)]
        if folders:
            raise click.UsageError(f"{folders[0]} is a folder and cannot go to standard output")
    named = Counter(os.path.normcase(path) for path in destinations if path is not None and path != STANDARD)
    for path, n in named.items():
        if n > 1:
            raise click.UsageError(f"{n} of the inputs would become {path}")
    if not place.keep and not all(map(_is_file_to_file, jobs)):
        raise click.UsageError("--rm removes files whose result is a file: no folders, devices, standard input or output")


def _is_file_to_file(job: Job) -> bool:
    ends = (job.source, job.destination or "")
    return STANDARD not in ends and not os.path.isdir(job.source) and not any(map(is_special, ends))


def _state(path: str) -> tuple[int, int, int]:
    """What changes when a file is replaced or written to."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def transfer(
    jobs: Sequence[Job],
    act: Callable[[Endpoint, Endpoint | None, Callback | None], Report],
    place: Place,
    voice: Voice,
    told: Callable[[Report], str],
    prepare: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> int:
    """Turn each source into its destination with `act`, say what `told` makes of its report, and remove the source where that was asked for.

    `prepare`: see `each`.
    """
    job_of = {job.source: job for job in jobs}

    def work(source: str) -> None:
        job = job_of[source]
        to_stdout = job.destination == STANDARD
        talkative = not voice.quiet and (voice.verbose or not to_stdout)
        begin = time.perf_counter()
        target = nullcontext() if job.destination is None else writing(job.destination)
        before = None if place.keep else _state(source)
        with reading(source) as src, target as dst, bar(label(source), wanted=talkative) as progress:
            report = act(src, dst, progress)
        seconds = time.perf_counter() - begin
        if before is not None:
            if _state(source) != before:
                raise OSError(errno.EBUSY, "changed while it was read, so it is kept", source)
            os.unlink(source)
        if voice.json:
            print_json(as_json(report) | {"source": source, "seconds": round(seconds, 3)})
        elif talkative:
            wrote = "" if to_stdout else f"; wrote {job.destination or report.destination}"
            tell(f"{title(source)}: {told(report)}", report, seconds, voice, wrote)

    return each([job.source for job in jobs], work, voice, prepare=prepare)


def each(
    sources: Sequence[str],
    work: Callable[[str], None],
    voice: Voice,
    *,
    kernels: bool = True,
    prepare: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> int:
    """Do the work for each source, going on after a failure. Returns the exit code: the first failure's, or 0.

    `kernels`: whether the work runs any. `prepare`: a context for all of the work, entered when there is a first source.
    """
    code, begun, silent = 0, False, voice.quiet or not kernels
    with ExitStack() as contexts:
        for source in sources:
            try:
                if source != STANDARD and not os.path.lexists(source):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
                if not begun:
                    begun = True
                    if not silent:
                        announce_compilation()
                    contexts.enter_context(prepare())
                work(source)
            except BrokenPipeError:
                raise
            except (ModelCodecError, OSError) as error:
                failed = error.exit_code if isinstance(error, ModelCodecError) else EXIT_OS_ERROR
                complain(title(source), error)
                if voice.json:
                    print_json({"source": source, "error": describe(error), "kind": type(error).__name__, "exit_code": failed})
                code = code or failed
    return code


def tell(text: str, report: Report, seconds: float, voice: Voice, wrote: str = "") -> None:
    """One line about a file that went well; with -v also time, rate and each tensor's plan."""
    if not voice.verbose:
        say(text + wrote)
        return
    from modelcodec.cli.table import print_table

    say(f"{text}, {seconds:.2f} s, {speed(report.n_bytes, seconds)}{wrote}")
    print_table(report, sys.stderr)


def announce_compilation() -> None:
    """Tell a person why a run that has to compile takes its time, when it does."""
    from modelcodec.kernels import jit

    def tell() -> None:
        jit.BEFORE_COMPILING.clear()
        say("mcodec: compiling kernels, once on this machine ...")

    if jit.folder() is None:
        say("mcodec: compiling kernels; no place was found to keep them ...")
    elif not jit.BEFORE_COMPILING:
        jit.BEFORE_COMPILING.append(tell)


def encoders(level: int | None, threads: int) -> AbstractContextManager[object]:
    """For `prepare`: what compressing at a level takes long to compile is compiled by several processes."""
    from modelcodec.kernels.ahead import compiled_ahead, to_encode
    from modelcodec.pool import thread_count

    return compiled_ahead(to_encode(level), thread_count(threads or None))


def decoders(threads: int) -> AbstractContextManager[object]:
    """The same for restoring."""
    from modelcodec.kernels.ahead import TO_DECODE, compiled_ahead
    from modelcodec.pool import thread_count

    return compiled_ahead(TO_DECODE, thread_count(threads or None))


def title(source: str) -> str:
    return "standard input" if source == STANDARD else source


def label(source: str) -> str:
    """A source's name as a progress bar has room for it."""
    name = os.path.basename(os.path.normpath(title(source)))
    return name if len(name) <= LABEL_WIDTH else f"{name[: LABEL_WIDTH - 12]}...{name[-9:]}"
