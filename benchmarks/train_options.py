"""Options of methods that train, chosen on training images that are kept back: test images never choose.

    MODELCODEC_MORE=FOLDER python benchmarks/run.py train_options [--files LABEL...] [--quick]

The last tenth of the training images is not trained on, and scored. The networks to begin with have seen it: scores are higher than on test images, and their
order is what counts. The best of each choice, at bytes that are alike, is a row of benchmarks/train.py. What is measured is kept as there, in
benchmarks/results/train-options-<machine>.csv.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.train import LENET, LEVEL, RESNET, Effort, Problem, Row, checkpoint_of, images, problems, read_rows, slug, trained, write_rows
from modelcodec.fit.training.loop import scored

OPTIONS = (
    Row(RESNET, "lsq(3)", "", (0, 0), 20, 1e-3),
    Row(RESNET, "lsq(3)", "", (0, 0), 20, 3e-4),
    Row(RESNET, "unification(4, 16, 0.5, 0.01)", "", (0, 0), 20, 1e-3),
    Row(RESNET, "unification(4, 16, 0.5, 0.001)", "", (0, 0), 20, 1e-3),
    Row(RESNET, "unification(4, 16, 0.5, 0.0001)", "", (0, 0), 20, 1e-3),
    Row(RESNET, "unification(4, 16, 0.5, 0.00001)", "", (0, 0), 20, 1e-3),
    Row(LENET, "unification(4, 16, 0.5, 0.01)", "", (0, 0), 20, 1e-3),
    Row(LENET, "unification(4, 16, 0.5, 0.001)", "", (0, 0), 20, 1e-3),
    Row(RESNET, "self_compressing(0.5)", "", (0, 0), 20, 1e-3),
    Row(RESNET, "self_compressing(0.5)", "", (0, 0), 20, 3e-4),
)


@dataclass(frozen=True, slots=True)
class Tried:
    """An option's outcome: bytes of the file, percent of the images kept back."""

    problem: str
    method: str
    epochs: int
    images: int
    rate: float
    n_bytes: int
    accuracy: float


def tried(row: Row, problem: Problem, scale: Effort, kept: Path) -> Tried:
    task = problem.task(scale.epochs(row), row.rate, True)
    found, out = trained(row, task, kept), kept / f"{slug(row.problem, row.method)}.mcodec.safetensors"
    report = found.save(out, level=LEVEL, overwrite=True)
    checkpoint_of(row, kept).unlink(missing_ok=True)
    score = scored(task, found.model)
    assert score is not None
    return Tried(row.problem, row.method, task.epochs, problem.images, row.rate, report.n_bytes_coded, score)


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Try what has not been tried. Returns 1 where there is nothing to try it on."""
    found = images(root, data)
    if found is None:
        return 1
    more, folder = found
    scale = Effort.here(quick)
    path = root / "benchmarks" / "results" / f"train-options-{scale.place}.csv"
    rows = [] if quick else read_rows(path, Tried)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) if quick else more / f"train-{scale.place}"
        kept = base / "options"
        kept.mkdir(parents=True, exist_ok=True)
        for problem in problems(more, base, folder, scale):
            for row in OPTIONS:
                wanted = row.problem == problem.name and (not only or any(part in f"{row.problem} {row.method}" for part in only))
                known = {(r.problem, r.method, r.epochs, r.images, r.rate) for r in rows}
                if wanted and (row.problem, row.method, scale.epochs(row), problem.images, row.rate) not in known:
                    rows.append(tried(row, problem, scale, kept))
                    if not quick:
                        write_rows(path, rows)
    for r in sorted(rows, key=lambda r: (r.problem, r.method, -r.accuracy)):
        print(f"{r.problem}, {r.method}: {r.epochs} passes at {r.rate:g}, {r.n_bytes:,} bytes, {r.accuracy:.2f} % of the images kept back")
    return 0
