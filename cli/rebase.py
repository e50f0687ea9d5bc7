"""`mcodec rebase`: a delta without its base, or as a delta to another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from modelcodec.cli import options
from modelcodec.cli.jobs import plan_jobs, transfer
from modelcodec.cli.options import Place, Voice
from modelcodec.cli.progress import Callback
from modelcodec.cli.report import shrunk
from modelcodec.cli.streams import Endpoint

if TYPE_CHECKING:
    from modelcodec.report import Report


@click.command(short_help="Free a delta of its base, or give it another.")
@options.inputs
@options.level
@options.place_options
@options.base
@click.option("--onto", type=click.Path(), metavar="FILE|FOLDER", help="Store tensors as what they changed in this one; without it, as they are.")
@options.threads
@options.voice_options
def rebase(
    inputs: tuple[str, ...], level: int | None, place: Place, base: str | None, onto: str | None, threads: int, voice: Voice
) -> int:
    """Compress again what each compressed FILE or FOLDER holds, so that restoring it needs no base, or the one named with --onto. Name the result with -o.

    A chain of deltas gets shorter so. The result is decoded and compared before it takes its name.
    """

    def act(src: Endpoint, dst: Endpoint | None, progress: Callback | None) -> Report:
        from modelcodec import api

        return api.rebase(src, dst, base=base, onto=onto, level=level, threads=threads or None, overwrite=place.force, progress=progress)

    def told(report: Report) -> str:
        return shrunk(report) + ", verified"

    return transfer(plan_jobs(inputs, place, voice, lambda path: path), act, place, voice, told)
