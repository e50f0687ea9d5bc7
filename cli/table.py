"""The table of `info`: what became of each tensor, and totals by dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from modelcodec.cli.messages import is_terminal, percent, printable, size
from modelcodec.cli.report import Total, leaves, shrunk, total, totals_by_dtype

if TYPE_CHECKING:
    from modelcodec.report import Report, TensorReport

UNBOUNDED = 1_000_000
"""Columns of a console that wraps nothing."""

NONE = "-"


class TableConsole(Console):
    """rich's console, except that a closed pipe stays the caller's matter: rich would end the process with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def print_table(report: Report, stream: TextIO | None) -> None:
    """Print a report's tensors to standard output or error, fitted to a terminal's width, and unwrapped where a program reads it."""
    terminal = is_terminal(stream)
    console = TableConsole(file=stream) if terminal else TableConsole(file=stream, width=UNBOUNDED)
    for file in leaves(report):
        tensors = file.tensors
        print(printable(f"{file.source}: {file.format}, {shrunk(file)}" + (f", SHA-256 {file.sha256}" if file.sha256 else "")), file=stream)
        if not tensors:
            continue
        table = _table(tensors, [t.plan for t in tensors])
        legend: dict[str, str] = {}
        if terminal and Measurement.get(console, console.options.update(width=UNBOUNDED), table).maximum > console.width:
            for tensor in tensors:
                legend.setdefault(tensor.plan, str(len(legend) + 1))
            table = _table(tensors, [legend[t.plan] for t in tensors], narrow=True)
        console.print(table)
        for plan, number in legend.items():
            print(printable(f"plan {number}: {plan}"), file=stream)
    if report.files:
        print(printable(f"{report.source}: {len(leaves(report))} files, {shrunk(report)}"), file=stream)


def _table(tensors: tuple[TensorReport, ...], plans: list[str], *, narrow: bool = False) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0 if narrow else (0, 1, 0, 0))
    table.add_column("tensor", overflow="fold", min_width=10)
    table.add_column("dtype", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("plan", overflow="fold")
    for heading in ("before", "after", "bits", "floor", "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tensor, plan in zip(tensors, plans, strict=True):
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        table.add_row(Text(printable(tensor.name)), tensor.dtype, shape, Text(printable(plan)), *_figures(tensor))
    table.add_section()
    totals = totals_by_dtype(tensors)
    for t in totals:
        table.add_row(_count(t), t.dtype, "", "", *_figures(t))
    if len(totals) > 1:
        every = total("all", tensors)
        table.add_row(_count(every), every.dtype, "", "", *_figures(every))
    return table


def _count(t: Total) -> str:
    return f"{t.n_tensors} tensor{'s' if t.n_tensors != 1 else ''}"


def _figures(row: TensorReport | Total) -> tuple[str, str, str, str, str]:
    """Bytes before and after, bits a weight, the floor in bits a weight, and the ratio."""
    bits = NONE if not row.n_weights else f"{row.bits_per_weight:.3f}"
    floor = NONE if row.floor_bits is None else f"{row.floor_bits:.3f}"
    return size(row.n_bytes), size(row.n_bytes_coded), bits, floor, percent(row.n_bytes_coded, row.n_bytes)
