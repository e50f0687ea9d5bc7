"""`mcodec info`: what became of each tensor of a container."""

from __future__ import annotations

import sys

import click

from modelcodec.cli import options
from modelcodec.cli.jobs import each
from modelcodec.cli.options import Voice
from modelcodec.cli.report import as_json, print_json


@click.command(short_help="Show what became of each tensor.")
@options.files
@click.option("--no-floor", is_flag=True, help="Leave out model and floor, for which the whole file is decoded.")
@options.base
@options.json
def info(files: tuple[str, ...], no_floor: bool, base: str | None, json: bool) -> int:
    """Show, for each tensor of each FILE or FOLDER, its plan and its bytes before and after, and totals by dtype.

    \b
    bits   bits a weight, after
    model  what the plan could reach: the entropy of what it codes given its classes, the rest
           as it is; the tables and scales that describe it, which bits has, are left out
    floor  entropy of order 0: what coders of single exponents aim at
    ratio  after / before

    \b
    Of lossy tensors, as measured when they were compressed:
    max error  largest absolute error of a weight
    SNR        energy of the original over that of the error
    """

    def work(path: str) -> None:
        from modelcodec import api

        report = api.inspect(path, floors=not no_floor, base=base)
        if json:
            print_json(as_json(report, tensors=True) | {"source": path})
            return
        from modelcodec.cli.table import print_table

        print_table(report, sys.stdout)

    return each(files, work, Voice(quiet=False, verbose=False, json=json), kernels=not no_floor)
