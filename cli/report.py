"""A report as one line of JSON, and the figures that the verbs say about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from modelcodec.cli.messages import percent, size

if TYPE_CHECKING:
    from modelcodec.report import Report, TensorReport


@dataclass(frozen=True, slots=True)
class Total:
    """Sums over the tensors of one dtype. `floor_bits` and `model_bits` are means over the weights, None unless every tensor has one."""

    dtype: str
    n_tensors: int
    n_weights: int
    n_bytes: int
    n_bytes_coded: int
    floor_bits: float | None
    model_bits: float | None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes_coded / self.n_weights if self.n_weights else 0.0

    @property
    def ratio(self) -> float:
        return self.n_bytes_coded / self.n_bytes if self.n_bytes else 1.0


def total(dtype: str, tensors: Iterable[TensorReport]) -> Total:
    tensors = list(tensors)
    n_weights = sum(t.n_weights for t in tensors)
    return Total(
        dtype,
        len(tensors),
        n_weights,
        sum(t.n_bytes for t in tensors),
        sum(t.n_bytes_coded for t in tensors),
        _mean([(t.floor_bits, t.n_weights) for t in tensors]),
        _mean([(t.model_bits, t.n_weights) for t in tensors]),
    )


def _mean(rows: Sequence[tuple[float | None, int]]) -> float | None:
    """Mean of bits a weight, over so many weights each; None where some have no bits, or there are no weights."""
    known = [bits * n for bits, n in rows if n and bits is not None]
    n_weights = sum(n for _, n in rows)
    return sum(known) / n_weights if n_weights and len(known) == sum(1 for _, n in rows if n) else None


def totals_by_dtype(tensors: Iterable[TensorReport]) -> list[Total]:
    """One total a dtype, the largest first."""
    groups: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return sorted((total(dtype, group) for dtype, group in groups.items()), key=lambda t: (-t.n_bytes, t.dtype))


def leaves(report: Report) -> list[Report]:
    """The reports of single files: of a folder its files', of a file itself."""
    return [leaf for part in report.files for leaf in leaves(part)] if report.files else [report]


def as_json(report: Report, *, tensors: bool = False) -> dict[str, Any]:
    """The report as JSON types; with `tensors` also what became of each, and the totals by dtype."""
    return _without_empty(report.as_dict() | {"files": [as_json(file, tensors=tensors) for file in report.files]}, report, tensors)


def _without_empty(record: dict[str, Any], report: Report, tensors: bool) -> dict[str, Any]:
    if not report.files:
        del record["files"]
    if report.files or not tensors:
        del record["tensors"]
    else:
        record["dtypes"] = [asdict(t) | {"bits_per_weight": t.bits_per_weight, "ratio": t.ratio} for t in totals_by_dtype(report.tensors)]
    return record


def print_json(record: Mapping[str, Any]) -> None:
    """One line on standard output, ASCII only, so that no name can break the line or the terminal."""
    click.echo(json.dumps(record, allow_nan=False))


def speed(n_bytes: int, seconds: float) -> str:
    return f"{size(round(n_bytes / seconds))}/s" if seconds > 0 else "-"


def shrunk(report: Report) -> str:
    """`60.8 MB -> 40.5 MB (66.7 %)`."""
    part = f" ({percent(report.n_bytes_coded, report.n_bytes)})" if report.n_bytes else ""
    return f"{size(report.n_bytes)} -> {size(report.n_bytes_coded)}{part}"
