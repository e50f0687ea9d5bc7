"""`mcodec compress`: files and folders to containers; with -d back again, as zstd users type it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from modelcodec.cli import options
from modelcodec.cli.jobs import encoders, plan_jobs, transfer
from modelcodec.cli.lossy import Loss, fit_of, lossy_options
from modelcodec.cli.options import Place, Voice
from modelcodec.cli.progress import Callback
from modelcodec.cli.report import shrunk
from modelcodec.cli.streams import Endpoint

if TYPE_CHECKING:
    from modelcodec.report import Report


CHECKPOINTS = frozenset((".safetensors", ".pt", ".pth", ".th", ".ckpt", ".gguf", ".onnx", ".npy", ".npz"))
"""Names of files in which tensors are expected: where none are found, something may be wrong with the file."""


@click.command(short_help="Compress files and folders.")
@options.inputs
@options.level
@options.place_options
@click.option("-d", "--decompress", "backwards", is_flag=True, help="Decompress instead.")
@click.option("--no-verify", is_flag=True, help="Skip decoding the result and comparing it with the input.")
@click.option("--sha256", is_flag=True, help="Keep the input's SHA-256 in the result.")
@click.option(
    "--base",
    type=click.Path(),
    metavar="FILE|FOLDER",
    help="Store tensors as what they changed in this one, compressed or not. Restoring needs it again; with -d, where it is.",
)
@lossy_options
@options.threads
@options.voice_options
@click.pass_context
def compress(
    context: click.Context,
    inputs: tuple[str, ...],
    level: int | None,
    place: Place,
    backwards: bool,
    no_verify: bool,
    sha256: bool,
    base: str | None,
    loss: Loss,
    threads: int,
    voice: Voice,
) -> int:
    """Compress each FILE or FOLDER: model.safetensors becomes model.mcodec.safetensors, any other NAME becomes NAME.mcodec.

    The result is decoded and compared before it takes its name. With no FILE, or where FILE is '-', standard input goes to standard output.
    One input goes with -c: compressed files cannot be joined.
    """
    if backwards:
        from modelcodec.cli.decompress import restore

        # Settings from the environment are for compressing and may stand there.
        if any(context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in ("level", "sha256", "no_verify")):
            raise click.UsageError("-d restores the input as it was: no levels, no --sha256, no --no-verify")
        return restore(inputs, place, base, threads, voice)
    if loss.asked and sha256:
        raise click.UsageError("a lossy file does not give its source back: no --sha256")
    if loss.asked and not place.keep:
        raise click.UsageError("a lossy file does not give its source back: no --rm")
    if place.to_stdout and len(inputs) > 1:
        raise click.UsageError("-c takes one input: compressed files cannot be joined")
    if not place.keep and no_verify:
        raise click.UsageError("--rm needs the check that --no-verify leaves out")

    def act(src: Endpoint, dst: Endpoint | None, progress: Callback | None) -> Report:
        from modelcodec import api

        recipe = loss.rules
        fit = fit_of(loss, recipe, level, Path(src) if isinstance(src, str | Path) else None) if loss.asked else None
        return api.compress(
            src, dst, level=level, recipe=recipe, threads=threads or None, overwrite=place.force, verify=not no_verify, sha256=sha256, base=base, fit=fit,
            progress=progress,
        )  # fmt: skip

    def told(report: Report) -> str:
        unread = report.format == "bytes" and Path(report.source).suffix in CHECKPOINTS
        return shrunk(report) + (", not verified" if no_verify else ", verified") + (", kept as bytes: no tensors could be read" if unread else "")

    def renamed(path: Path) -> Path:
        from modelcodec import api

        return api.compressed_name(path)

    return transfer(plan_jobs(inputs, place, voice, renamed), act, place, voice, told, lambda: encoders(level, threads))
