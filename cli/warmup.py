"""`mcodec warmup`: compiles every kernel ahead, so that no later run on this machine waits for it."""

from __future__ import annotations

import time

import click

from modelcodec.cli import options
from modelcodec.cli.jobs import encoders
from modelcodec.cli.messages import say

SMALLEST = 9
"""The level that needs the kernels of all others too."""


@click.command(short_help="Compile every kernel ahead.")
@options.quiet
def warmup(quiet: bool) -> None:
    """Compile every kernel ahead and keep the machine code in this user's cache folder."""
    from modelcodec.warmup import warmup as compile_all

    begin = time.perf_counter()
    with encoders(SMALLEST, threads=0):
        compile_all()
    if not quiet:
        say(f"mcodec: kernels are compiled, {time.perf_counter() - begin:.1f} s")
