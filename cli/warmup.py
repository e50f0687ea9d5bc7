"""`mcodec warmup`: compiles every kernel ahead, so that no later run on this machine waits for it."""

from __future__ import annotations

import time

import click

from modelcodec.cli import options
from modelcodec.cli.messages import say


@click.command(short_help="Compile every kernel ahead.")
@options.quiet
def warmup(quiet: bool) -> None:
    """Compile every kernel ahead and keep the machine code in this user's cache folder."""
    from modelcodec.warmup import warmup as compile_all

    begin = time.perf_counter()
    compile_all()
    if not quiet:
        say(f"mcodec: kernels are compiled, {time.perf_counter() - begin:.1f} s")
