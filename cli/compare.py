"""`mcodec compare`: how far the tensors of one checkpoint are from those of another."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelcodec.cli import options
from modelcodec.cli.attribution import attribution_shifts
from modelcodec.cli.jobs import each
from modelcodec.cli.messages import is_terminal, printable
from modelcodec.cli.options import Voice
from modelcodec.cli.report import print_json

if TYPE_CHECKING:
    from modelcodec.cli.table import TableConsole
    from modelcodec.comparison import Comparison
    from modelcodec.fit.attribution import Shifts

EXIT_DIFFERENT = 8


@click.command(short_help="Measure how far tensors are from others.")
@click.argument("first", type=click.Path(), metavar="A")
@click.argument("second", type=click.Path(), metavar="B")
@click.option("--attribution", type=click.Path(), metavar="FILE.py", help="Run both networks, too, and measure how far their attributions are apart.")
@options.json
@options.quiet
def compare(first: str, second: str, attribution: str | None, json: bool, quiet: bool) -> int:
    """Measure, tensor by tensor, how far checkpoint B is from checkpoint A; each a file, compressed or not, or a folder.

    \b
    differ   elements with other bits
    max      largest absolute error of an element
    rmse     root of the mean squared error
    SNR      energy of A over that of the error, in dB
    cosine   of the angle between the two

    With --attribution also where the networks look, on up to 1,000 images. FILE.py, which is run, has the functions model() and batches(epoch), as for
    'mcodec fit'; a batch is inputs, or begins with them. Grad-CAM of layers, saliency of the input, for the classes that A decides for: cosine, Spearman's
    rank correlation, and the share of the top tenth of the places that is in both.

    Exit code 0 where all tensors have the same bits, 8 where they differ.
    """
    equal = True

    def work(path: str) -> None:
        nonlocal equal
        from modelcodec.comparison import compare as measured

        found = measured(first, path)
        shifts = None if attribution is None else attribution_shifts(Path(attribution), first, path)
        equal = found.equal
        if json:
            told = {"first": first, "second": path, "equal": found.equal, **asdict(found)}
            print_json(_finite(told | ({"attribution": asdict(shifts)} if shifts else {})))
        elif not quiet:
            _print(found)
            if shifts:
                _print_shifts(shifts)

    return each((second,), work, Voice(quiet=False, verbose=False, json=json)) or (0 if equal else EXIT_DIFFERENT)


def _finite(record: Any) -> Any:
    """The record with null for numbers that JSON does not have."""
    if isinstance(record, dict):
        return {key: _finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not math.isfinite(record) else record


def _print(found: Comparison) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tensor", overflow="fold", min_width=10)
    for heading in ("dtype", "shape"):
        table.add_column(heading, no_wrap=True)
    for heading in ("differ", "max", "rmse", "SNR", "cosine"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.tensors:
        shape = "x".join(map(str, row.shape)) or "scalar"
        share = f"{100 * row.n_different / row.n_elements:.3g} %" if row.n_different else "-"
        figures = (f"{row.max_error:.3g}", f"{row.rmse:.3g}", f"{row.snr_db:.2f} dB", f"{row.cosine:.6f}") if row.n_different else ("-",) * 4
        table.add_row(Text(printable(row.name)), row.dtype, shape, share, *figures)
    if found.tensors:
        _console().print(table)
    for names, fact in ((found.missing, "only in A"), (found.added, "only in B"), (found.unlike, "of other shape, or no numbers")):
        for name in names:
            click.echo(printable(f"{name}: {fact}"))
    changed = sum(1 for row in found.tensors if row.n_different)
    click.echo(f"{len(found.tensors)} tensors compared, {changed} differ" if changed else f"{len(found.tensors)} tensors compared, all with the same bits")


def _print_shifts(shifts: Shifts) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("attribution", overflow="fold", min_width=10)
    for heading in ("places", "cosine", "rank correlation", "overlap"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in shifts.layers:
        table.add_row(Text(printable(row.name)), str(row.n_places), f"{row.cosine:.4f}", f"{row.rank_correlation:.4f}", f"{100 * row.overlap:.1f} %")
    click.echo()
    _console().print(table)
    click.echo(f"{shifts.n_images} images, {100 * shifts.agreement:.2f} % named alike")


def _console() -> TableConsole:
    from modelcodec.cli.table import UNBOUNDED, TableConsole

    return TableConsole(file=sys.stdout) if is_terminal(sys.stdout) else TableConsole(file=sys.stdout, width=UNBOUNDED)
