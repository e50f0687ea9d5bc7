"""`mcodec verify`: decodes everything and checks every digest, writing nothing."""

from __future__ import annotations

import time

import click

from modelcodec.cli import options
from modelcodec.cli.jobs import decoders, each, label, tell
from modelcodec.cli.messages import size
from modelcodec.cli.options import Voice
from modelcodec.cli.progress import bar
from modelcodec.cli.report import as_json, print_json


@click.command(short_help="Check that files restore byte for byte.")
@options.files
@options.base
@options.threads
@options.voice_options
def verify(files: tuple[str, ...], base: str | None, threads: int, voice: Voice) -> int:
    """Decode each FILE or FOLDER and check every digest, without writing anything."""

    def work(path: str) -> None:
        from modelcodec import api

        begin = time.perf_counter()
        with bar(label(path), wanted=not voice.quiet) as progress:
            report = api.verify(path, base=base, threads=threads or None, progress=progress)
        seconds = time.perf_counter() - begin
        if voice.json:
            print_json(as_json(report) | {"source": path, "seconds": round(seconds, 3)})
        elif not voice.quiet:
            tell(f"{path}: {size(report.n_bytes)}, every digest matches", report, seconds, voice)

    return each(files, work, voice, prepare=lambda: decoders(threads))
