"""What a model card says about a compressed checkpoint, as Markdown: sizes, how to load it, digests. Names in it are untrusted."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from modelcodec.cli.layers import Row
from modelcodec.cli.messages import percent, printable, size
from modelcodec.cli.report import leaves, total

if TYPE_CHECKING:
    from modelcodec.report import Report

ANY_BYTES = "bytes"
"""The format of files in which no tensors were found."""
SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")


def model_card(report: Report, rows: Sequence[Row], digests: Mapping[str, str]) -> str:
    """The Markdown block. `digests`: SHA-256 of each file by its path."""
    lines = ["## Compressed with modelcodec", "", _promise(report, rows), "", *_sizes(report, rows), "", *_loading(report), "", *_digests(report, digests)]
    return "\n".join(lines) + "\n"


def _plain(value: str) -> str:
    """A name that Markdown shows as it is, in one line."""
    return SPECIAL.sub(r"\\\1", printable(value))


def _literal(name: str) -> str:
    """A string of Python."""
    return json.dumps(name, ensure_ascii=False)


def _promise(report: Report, rows: Sequence[Row]) -> str:
    lossy = sum(1 for row in rows if row.tensor.loss)
    share = f"{size(report.n_bytes_coded)} instead of {size(report.n_bytes)} ({percent(report.n_bytes_coded, report.n_bytes)})"
    if lossy:
        return f"{share}. {lossy:,} of {len(rows):,} tensors are lossy; the others, and all names, dtypes and shapes, are those of the original."
    return f"{share}, without loss: the original comes back byte for byte."


def _sizes(report: Report, rows: Sequence[Row]) -> list[str]:
    parts = [("all tensors", list(rows))]
    lossy = [row for row in rows if row.tensor.loss]
    if lossy:
        parts = [("lossy tensors", lossy), ("other tensors", [row for row in rows if not row.tensor.loss])]
    lines = ["| | weights | original | compressed | bits a weight |", "|---|--:|--:|--:|--:|"]
    for label, chosen in parts:
        t = total(label, [row.tensor for row in chosen])
        bits = f"{t.bits_per_weight:.3f}" if t.n_weights else ""
        lines.append(f"| {label} | {t.n_weights:,} | {size(t.n_bytes)} | {size(t.n_bytes_coded)} | {bits} |")
    return [*lines, f"| with names and structure | | {size(report.n_bytes)} | {size(report.n_bytes_coded)} | |"]


def _loading(report: Report) -> list[str]:
    """Python that loads it, and the command that restores what was compressed; only that where it holds no tensors that anybody knows."""
    name = printable(PurePath(report.source).name)
    if report.files:
        load = [
            "import modelcodec",
            "from transformers import AutoModel",
            "",
            "modelcodec.install()  # whatever reads safetensors reads compressed files too",
            f"model = AutoModel.from_pretrained({_literal(name)})",
        ]
    elif report.format.startswith("torch"):
        load = ["import modelcodec", "", f"state = modelcodec.torch_load({_literal(name)})"]
    else:
        load = ["import modelcodec", "", f"tensors = modelcodec.load_file({_literal(name)})"]
    python = ["```python", *load, "```", ""] if report.format != ANY_BYTES else []
    return [*python, "```sh", "pip install modelcodec", f"mcodec decompress {shlex.quote(name)}", "```"]


def _digests(report: Report, digests: Mapping[str, str]) -> list[str]:
    root = PurePath(report.source)
    known = any(file.sha256 for file in leaves(report))
    lines = ["| file | bytes | SHA-256 |", "|---|--:|---|"] if not known else ["| file | bytes | SHA-256 | of the original |", "|---|--:|---|---|"]
    for file in leaves(report):
        path = PurePath(file.source)
        name = path.relative_to(root).as_posix() if report.files else path.name
        cells = (_plain(name), f"{file.n_bytes_coded:,}", f"`{digests[file.source]}`", *([f"`{file.sha256}`" if file.sha256 else "-"] if known else []))
        lines.append(f"| {' | '.join(cells)} |")
    return lines
