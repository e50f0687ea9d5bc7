"""`mcodec run`: Python with the hook on, for this run and its child processes, and nothing installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

EVERYTHING = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""Options after the first argument are the script's, and those before it Python's."""


@click.command(short_help="Run a Python script that opens compressed checkpoints.", context_settings=EVERYTHING)
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] SCRIPT|-m MODULE [ARGUMENT]...")
def run(arguments: tuple[str, ...]) -> int:
    """Run Python with these arguments, so that all that reads safetensors files reads compressed ones too.

    \b
      mcodec run -- train.py --model folder
      mcodec run -- -m torch.distributed.run --nproc-per-node 8 train.py

    The hook is there from the start, as if the script began with modelcodec.install(), and in the processes that it starts.
    """
    from modelcodec.runtime import startup

    others = os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(startup.__file__).parent), *([others] if others else [])])}
    command = [sys.executable, *arguments]
    if os.name != "nt":  # there it would not wait
        os.execve(sys.executable, command, environment)
    return subprocess.call(command, env=environment)
