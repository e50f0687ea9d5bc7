"""`mcodec report`: one HTML page about a compressed checkpoint."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelcodec.cli import options
from modelcodec.cli.jobs import each
from modelcodec.cli.messages import say
from modelcodec.cli.options import STANDARD, Voice
from modelcodec.cli.streams import writing
from modelcodec.errors import UnsupportedFile

if TYPE_CHECKING:
    from modelcodec.report import Report


@click.command(short_help="Write an HTML page about a compressed checkpoint.")
@options.file
@click.option("--original", type=click.Path(), metavar="PATH", help="Measure the errors against this checkpoint, compressed or not.")
@click.option("-o", "--output", type=click.Path(), metavar="PATH", help="Write to this file, '-' for standard output; without it NAME.html beside FILE.")
@click.option("--markdown", is_flag=True, help="Print only the block for a model card, to standard output.")
@click.option("--no-floor", is_flag=True, help="Leave out floors, for which the whole file is decoded.")
@click.option("-f", "--force", is_flag=True, help="Overwrite.")
@options.quiet
def report(file: str, original: str | None, output: str | None, markdown: bool, no_floor: bool, force: bool, quiet: bool) -> int:
    """Write one HTML page about FILE or FOLDER, compressed ones, that needs no network: sizes and bits by layer and dtype, errors of lossy tensors, the plan of
    each tensor, and Markdown for a model card.
    """
    if markdown and (output not in (None, STANDARD) or original or no_floor):
        raise click.UsageError("--markdown goes to standard output and takes neither -o, --original nor --no-floor")

    def work(path: str) -> None:
        if markdown:
            _print_card(path)
            return
        destination = output or f"{os.path.abspath(path)}.html"
        _write(_page(path, original, floors=not no_floor), destination, overwrite=force)
        if not quiet and destination != STANDARD:
            say(f"{path}: wrote {destination}")

    return each((file,), work, Voice(quiet, verbose=False, json=False), kernels=not markdown)


def _print_card(path: str) -> None:
    from modelcodec.cli.layers import rows_of
    from modelcodec.cli.model_card import model_card

    report = _inspected(path, floors=False)
    click.echo(model_card(report, rows_of(report), _digests(report)), nl=False)


def _page(path: str, original: str | None, *, floors: bool) -> str:
    """Decodes the lossy tensors, with `floors` all, and reads the files once more for their SHA-256."""
    from modelcodec.cli.distortion import measured, recorded
    from modelcodec.cli.layers import rows_of
    from modelcodec.cli.model_card import model_card
    from modelcodec.cli.page import Subject, page
    from modelcodec.comparison import compare

    report = _inspected(path, floors=floors)
    rows, digests, comparison = rows_of(report), _digests(report), None
    card = model_card(report, rows, digests)
    if original is None:
        rows = recorded(rows, Path(path))
    else:
        comparison = compare(original, path)
        rows = measured(rows, comparison, Path(original), Path(path))
    return page(Subject(report, rows, digests, comparison, card))


def _inspected(path: str, *, floors: bool) -> Report:
    """The report, named as the file or folder is called: `.` is not."""
    from modelcodec import api

    report = api.inspect(os.path.abspath(path) if Path(path).name in ("", "..") else path, floors=floors)
    if os.path.isdir(path) and not report.files:
        raise UnsupportedFile(f"{path}: no file in this folder was written by modelcodec")
    return report


def _digests(report: Report) -> dict[str, str]:
    """The SHA-256 of each file."""
    from modelcodec.cli.report import leaves

    return {file.source: _sha256(file.source) for file in leaves(report)}


def _sha256(path: str) -> str:
    from hashlib import file_digest

    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _write(html: str, destination: str, *, overwrite: bool) -> None:
    """Write the page to a path, whole or not at all, or to standard output."""
    from modelcodec.formats.atomic import atomic_file

    with writing(destination) as dst, atomic_file(Path(dst), overwrite=overwrite) if isinstance(dst, str) else nullcontext(dst) as out:
        out.write(html.encode())
