"""`mcodec decompress`: containers back to the files and folders they were made of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelcodec.cli import options
from modelcodec.cli.jobs import decoders, plan_jobs, transfer
from modelcodec.cli.messages import size
from modelcodec.cli.options import Place, Voice
from modelcodec.cli.progress import Callback
from modelcodec.cli.streams import Endpoint

if TYPE_CHECKING:
    from modelcodec.report import Report


@click.command(short_help="Restore files and folders byte for byte.")
@options.inputs
@options.place_options
@options.base
@options.threads
@options.voice_options
def decompress(inputs: tuple[str, ...], place: Place, base: str | None, threads: int, voice: Voice) -> int:
    """Restore each FILE or FOLDER byte for byte: model.mcodec.safetensors becomes model.safetensors, NAME.mcodec becomes NAME.

    Every digest is checked before the result takes its name. With no FILE, or where FILE is '-', standard input goes to standard output.
    """
    return restore(inputs, place, base, threads, voice)


def restore(inputs: tuple[str, ...], place: Place, base: str | None, threads: int, voice: Voice) -> int:
    """Decompress the inputs. Returns the exit code."""

    def act(src: Endpoint, dst: Endpoint | None, progress: Callback | None) -> Report:
        from modelcodec import api

        return api.decompress(src, dst, threads=threads or None, overwrite=place.force, base=base, progress=progress)

    def told(report: Report) -> str:
        return f"{size(report.n_bytes_coded)} -> {size(report.n_bytes)}, digests match"

    def renamed(path: Path) -> Path:
        from modelcodec import api

        return api.restored_name(path)

    return transfer(plan_jobs(inputs, place, voice, renamed), act, place, voice, told, lambda: decoders(threads))
