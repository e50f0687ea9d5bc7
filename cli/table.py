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
    from modelcodec.types import Loss

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
    lossy = any(tensor.loss for tensor in tensors)
    for heading in ("before", "after", "bits", "model", "floor", "ratio", *(("max error", "SNR") if lossy else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for tensor, plan in zip(tensors, plans, strict=True):
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        table.add_row(Text(printable(tensor.name)), tensor.dtype, shape, Text(printable(plan)), *_figures(tensor), *(_loss(tensor.loss) if lossy else ()))
    table.add_section()
    totals = totals_by_dtype(tensors)
    for t in totals:
        table.add_row(_count(t), t.dtype, "", "", *_figures(t))
    if len(totals) > 1:
        every = total("all", tensors)
        table.add_row(_count(every), every.dtype, "", "", *_figures(every))
    return table


def _loss(loss: Loss | None) -> tuple[str, str]:
    """Largest error of a weight, and energy over that of the error."""
    if loss is None:
        return NONE, NONE
    return f"{loss.max_error:.3g}", f"{loss.snr_db:.2f} dB"


def _count(t: Total) -> str:
    return f"{t.n_tensors} tensor{'s' if t.n_tensors != 1 else ''}"


def _figures(row: TensorReport | Total) -> tuple[str, ...]:
    """Bytes before and after; in bits a weight what it takes, what the model could reach, and the floor of order 0; the ratio."""
    bits = (row.bits_per_weight if row.n_weights else None, row.model_bits, row.floor_bits)
    texts = (NONE if value is None else f"{value:.3f}" for value in bits)
    return size(row.n_bytes), size(row.n_bytes_coded), *texts, percent(row.n_bytes_coded, row.n_bytes)
