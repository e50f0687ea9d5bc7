"""Methods that train: accuracy of the file as written and decoded against its bytes, beside the untrained counterpart and the lossy core at the same bytes.

    MODELCODEC_MORE=FOLDER python benchmarks/run.py train [--files LABEL...] [--quick]

Each row is kept as soon as it is measured, in benchmarks/results/train-<machine>.csv, and not measured again; a training that was killed goes on. On a GPU
where there is one; on a CPU rows train a tenth of the passes (LeNet) or a twentieth (ResNet-20).
"""

from __future__ import annotations

import csv
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

import modelcodec
from benchmarks.corpus import data_folder
from benchmarks.curves import Curve, Point, Scale, drawn
from benchmarks.lossless import machine, replace_block
from benchmarks.vision import fetched, lenet_task, resnet20_state, resnet20_task
from modelcodec.errors import BadRecipe
from modelcodec.fit.allocate import Size
from modelcodec.fit.chain import Fitting
from modelcodec.fit.rules import Ruled
from modelcodec.fit.text import parse_fit
from modelcodec.fit.training import parse_method
from modelcodec.fit.training.loop import Passed, scored, train
from modelcodec.fit.training.method import Trained
from modelcodec.fit.training.plain import Plain
from modelcodec.fit.training.task import Task
from modelcodec.fit.whole_file import bytes_left
from modelcodec.formats.atomic import atomic_file
from modelcodec.recipe import Recipe

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Kept = TypeVar("_Kept", bound="DataclassInstance")

LEVEL = 9
TRIALS = 9
"""Files that are made in search of one of equal size."""
BASE_EPOCHS = 3
LENET, RESNET = "LeNet on MNIST", "ResNet-20 on CIFAR-10"
CHECKPOINT = "resnet20-12fca82f.th"


@dataclass(frozen=True, slots=True)
class Row:
    """A method on a network. `untrained`: a fit with one free number, of the `span` from the smallest file to the largest, for the network as it was."""

    problem: str
    method: str
    untrained: str
    span: tuple[float, float]
    epochs: int
    rate: float


_ROUNDING = "bits({}, states=1, price=0, passes=0)"
ROWS = (
    Row(LENET, "", "", (0, 0), 20, 1e-3),
    Row(LENET, "dkm(2)", "kmeans({})", (2, 256), 20, 1e-3),
    Row(LENET, "dkm(4)", "kmeans({})", (2, 256), 20, 3e-4),
    Row(LENET, "l2(60)", _ROUNDING, (0.05, 8.0), 20, 1e-3),
    Row(LENET, "coded_size(1e-6, 0.0343, round_at=1)", "trellis({})", (1.0, 0.001), 20, 1e-3),
    Row(LENET, "lsq(2)", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(LENET, "lsq(2) | distill(1)", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(LENET, "ternary(twn, true)", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(LENET, "binary()", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(LENET, "self_compressing(0.5)", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(LENET, "gradual(0.95)", "prune({})", (0.999, 0.1), 20, 1e-3),
    Row(LENET, "gradual(0.98, whole_model=true)", "prune({}, true)", (0.999, 0.1), 20, 1e-3),
    Row(LENET, "gradual(0.95, block=4)", "blocks({}, 1, 4)", (0.999, 0.1), 20, 1e-3),
    Row(LENET, "hypersparse(0.98)", "prune({}, true)", (0.999, 0.1), 20, 1e-3),
    Row(LENET, "mpd(8)", "prune({})", (0.999, 0.1), 20, 1e-3),
    Row(LENET, "unification(4, 16, 0.5)", "blocks(0.5, 1, 4) | kmeans({})", (2, 256), 20, 1e-3),
    Row(LENET, "pranc(10000)", _ROUNDING, (0.05, 8.0), 30, 3e-2),
    Row(LENET, "pranc(2000)", _ROUNDING, (0.05, 8.0), 30, 3e-2),
    Row(LENET, "supermask(0.5)", _ROUNDING, (0.05, 8.0), 60, 3e-2),
    Row(LENET, "projection(10000)", _ROUNDING, (0.05, 8.0), 30, 3e-2),
    Row(LENET, "lsq(2) | attribution(100)", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(LENET, "gradual(0.95) | orthogonal(0.001)", "prune({})", (0.999, 0.1), 20, 1e-3),
    Row(LENET, "filter_norm(0.25)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(LENET, "chip(0.25)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(LENET, "hrel(0.25)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(LENET, "knapsack(0.25)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(LENET, "group_lasso(0.0001)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(RESNET, "", "", (0, 0), 20, 1e-4),
    Row(RESNET, "dkm(4)", "kmeans({})", (2, 256), 20, 2e-3),
    Row(RESNET, "l2(16)", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(RESNET, "lsq(2)", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(RESNET, "lsq(3)", _ROUNDING, (0.3, 8.0), 40, 1e-3),
    Row(RESNET, "lsq(2) | distill(1)", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(RESNET, "lsq(2) | attribution(100)", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(RESNET, "ternary(twn, true)", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(RESNET, "gradual(0.7, whole_model=true)", "prune({}, true)", (0.999, 0.1), 20, 1e-3),
    Row(RESNET, "chip(0.55)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(RESNET, "knapsack(0.55)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(RESNET, "binary()", _ROUNDING, (0.3, 8.0), 20, 1e-3),
    Row(RESNET, "binary_kernels(6)", "kernel_vq({})", (2, 512), 20, 1e-3),
    Row(RESNET, "filter_norm(0.55)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(RESNET, "filter_norm(0.55) | orthogonal(0.001)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(RESNET, "group_lasso(0.0001)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(RESNET, "supermask(0.5)", _ROUNDING, (0.05, 8.0), 120, 3e-2),
    Row(RESNET, "hypersparse(0.7)", "prune({}, true)", (0.999, 0.1), 20, 1e-3),
    Row(RESNET, "coded_size(1e-6, 0.1)", "trellis({})", (1.0, 0.001), 20, 1e-3),
    Row(RESNET, "self_compressing(0.5)", _ROUNDING, (0.3, 8.0), 20, 3e-4),
    Row(RESNET, "unification(4, 16, 0.5)", "blocks(0.5, 1, 4) | kmeans({})", (2, 256), 20, 1e-3),
    Row(RESNET, "hrel(0.55)", "filters({})", (0.99, 0.05), 20, 1e-3),
    Row(RESNET, "pranc(10000)", _ROUNDING, (0.05, 8.0), 60, 3e-2),
)
"""Without a method: what more training alone gives, stored without loss."""

PAPERS = (
    ("DKM, arXiv 2108.12659", "ResNet-50, ImageNet", "74.5 % in 3.3 MB (29.4 times smaller); MobileNet-v1 63.9 % in 0.72 MB"),
    ("PRANC, arXiv 2206.08464", "image classifiers", "almost 100 times smaller; ResNet-20 with 10,000 coefficients and 2,752 numbers of BatchNorm, of 269,722"),
    ("CHIP, arXiv 2110.13981", "ResNet-56, CIFAR-10", "93.26 % before; 94.16 % with 0.48 M weights, 92.43 % with 0.24 M"),
    ("HRel, arXiv 2202.10716", "ResNet-56, CIFAR-10", "76.89 % of the operations pruned; LeNet-5 with 2 and 3 filters loses 0.52 %"),
)

COLUMNS = ("method", "passes", "bytes", "bits a weight", "accuracy", "untrained", "bytes", "accuracy", "lossy core, the method's bytes")


@dataclass(frozen=True, slots=True)
class Measured:
    """A row's outcome: bytes of whole files, percent of test images. NaN or 0 where there is no counterpart."""

    problem: str
    method: str
    epochs: int
    images: int
    rate: float
    seconds: float
    n_bytes: int
    accuracy: float
    untrained: str
    untrained_bytes: int
    untrained_accuracy: float
    bits_bytes: int
    bits_accuracy: float


@dataclass(frozen=True, slots=True)
class Problem:
    """A network as it was, on a device; `images` of the training set are used. task: of passes, a rate, and whether training images kept back are scored."""

    name: str
    state: Mapping[str, Tensor]
    images: int
    task: Callable[[int, float, bool], Task]

    @property
    def source(self) -> bytes:
        return save({name: tensor.contiguous().cpu() for name, tensor in self.state.items()})

    def accuracy(self, file: bytes, model: nn.Module | None = None) -> float:
        """Of a file's tensors, in the network or in a `model` of other shapes."""
        task = self.task(0, 0.0, False)
        model = task.model() if model is None else model
        model.load_state_dict(modelcodec.load(file, "pt"), strict=False)
        score = scored(task, model)
        assert score is not None
        return score


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is trained of each problem: passes divided by `fewer`, and images."""

    device: str
    fewer: Mapping[str, int]
    images: Mapping[str, int]

    @classmethod
    def here(cls, quick: bool) -> Effort:
        if quick:
            return cls("cpu", {LENET: 1000, RESNET: 1000}, {LENET: 2000, RESNET: 500})
        images = {LENET: 60_000, RESNET: 50_000}
        if torch.cuda.is_available():
            return cls("cuda", {LENET: 1, RESNET: 1}, images)
        return cls("cpu", {LENET: 10, RESNET: 20}, images)

    @property
    def place(self) -> str:
        """The machine, as names of files have it."""
        return slug(torch.cuda.get_device_name() if self.device == "cuda" else machine())

    def epochs(self, row: Row) -> int:
        return max(row.epochs // self.fewer[row.problem], 1)


def problems(more: Path, kept: Path, data: Path, scale: Effort) -> Iterator[Problem]:
    """The networks whose data is there. LeNet is trained once and kept."""
    if (more / "mnist").is_dir():
        n = scale.images[LENET]
        base = kept / "lenet.safetensors"
        if not base.exists():
            print(f"{LENET}: {BASE_EPOCHS} passes of the network itself", file=sys.stderr)
            train(lenet_task(more, BASE_EPOCHS, images=n, device=scale.device), Plain(), checkpoint=kept / "lenet.training").save(base)
        state = modelcodec.load_file(base, "pt")
        yield Problem(LENET, state, n, lambda epochs, rate, held: lenet_task(more, epochs, rate, state, n, scale.device, held_out=held))
    if (more / "cifar10").is_dir() and (data / CHECKPOINT).exists():
        n, path = scale.images[RESNET], data / CHECKPOINT
        yield Problem(RESNET, resnet20_state(path), n, lambda epochs, rate, held: resnet20_task(more, path, epochs, rate, n, scale.device, held_out=held))


def written(source: bytes, usual: Fitting | None) -> bytes:
    """A checkpoint's file, with a fit for its matrices and kernels."""
    out = BytesIO()
    modelcodec.compress(BytesIO(source), out, level=LEVEL, fit=None if usual is None else Ruled(usual=usual), verify=False)
    return out.getvalue()


def at_bytes(source: bytes, fit: str, span: tuple[float, float], n_bytes: int) -> tuple[str, bytes]:
    """The smallest file of the fit that has `n_bytes` or more, or the largest where none has, and the fit with its number."""
    small, large = span
    whole = isinstance(small, int) and isinstance(large, int)
    best = ("", b"")
    for trial in range(TRIALS):
        number = large if trial == 0 else round((small * large) ** 0.5) if whole else (small * large) ** 0.5
        text = fit.format(number if whole else f"{number:.6g}")
        file = written(source, parse_fit(text))
        enough = len(file) >= n_bytes
        if not best[1] or (enough and len(file) < len(best[1])):
            best = text, file
        if trial == 0:
            if not enough:
                return best
            continue
        if number in (small, large):
            break
        small, large = (small, number) if enough else (number, large)
    return best


def core(source: bytes, n_bytes: int) -> bytes:
    """The lossy core's file of at most that size; empty where what stays exact takes more."""
    try:
        return written(source, Size(bytes_left(source, n_bytes, Recipe(), LEVEL)))
    except BadRecipe:
        return b""


def measured(row: Row, problem: Problem, scale: Effort, kept: Path) -> Measured:
    epochs, start = scale.epochs(row), time.perf_counter()
    found = trained(row, problem.task(epochs, row.rate, False), kept)
    seconds, out = time.perf_counter() - start, kept / f"{slug(row.problem, row.method)}.mcodec.safetensors"
    found.save(out, level=LEVEL, overwrite=True)
    file, source = out.read_bytes(), problem.source
    text, untrained = at_bytes(source, row.untrained, row.span, len(file)) if row.untrained else ("", b"")
    of_core = core(source, len(file)) if row.untrained else b""
    accuracies = [problem.accuracy(other) if other else float("nan") for other in (untrained, of_core)]
    return Measured(
        row.problem, row.method, epochs, problem.images, row.rate, round(seconds, 1), len(file), problem.accuracy(file, found.model),
        text, len(untrained), accuracies[0], len(of_core), accuracies[1],
    )  # fmt: skip


def trained(row: Row, task: Task, kept: Path) -> Trained:
    """A row's training, its checkpoint kept in a folder, so that one that was killed goes on."""
    def tell(passed: Passed) -> None:
        if passed.ended:
            print(f"{row.problem}, {row.method or 'no method'}: pass {passed.epoch + 1}, loss {passed.loss:.4f}, {passed.score:.2f} %", file=sys.stderr)

    return train(task, parse_method(row.method or "plain()"), checkpoint=checkpoint_of(row, kept), watch=tell, identity=f"{row.problem} at {row.rate}")


def checkpoint_of(row: Row, kept: Path) -> Path:
    return kept / f"{slug(row.problem, row.method)}.training"


def slug(*parts: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


class Results:
    """What has been measured on this machine, in a CSV file, None to keep it in memory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.rows = [] if path is None else read_rows(path, Measured)

    def of(self, row: Row, epochs: int, images: int) -> Measured | None:
        wanted = (row.problem, row.method, epochs, images, row.rate, row.untrained.partition("(")[0])
        found = (m for m in self.rows if (m.problem, m.method, m.epochs, m.images, m.rate, m.untrained.partition("(")[0]) == wanted)
        return next(found, None)

    def add(self, row: Measured) -> None:
        """In place of an older one of the same problem and method."""
        self.rows = [other for other in self.rows if (other.problem, other.method) != (row.problem, row.method)] + [row]
        if self._path is not None:
            write_rows(self._path, self.rows)


_READERS: Mapping[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}


def read_rows(path: Path, kind: type[_Kept]) -> list[_Kept]:
    """The rows of a CSV file, none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [kind(**{field.name: _READERS[str(field.type)](row[field.name]) for field in fields(kind)}) for row in csv.DictReader(file)]


def write_rows(path: Path, rows: Sequence[_Kept]) -> None:
    """All rows, of one kind, in place of the file."""
    text = StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(rows[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    with atomic_file(path, overwrite=True) as file:
        file.write(text.getvalue().encode())


def table(problem: Problem, rows: Sequence[Measured]) -> list[str]:
    """A problem's rows, the largest file first."""
    source, n_weights = problem.source, sum(tensor.numel() for tensor in problem.state.values())
    plain = problem.accuracy(source_file := written(source, None))
    lines = [f"**{problem.name}**: {len(source):,} bytes, {len(source_file):,} without loss, {plain:.2f} %; trained on {problem.images:,} images", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for m in sorted(rows, key=lambda m: (-m.n_bytes, m.method)):
        cells = [_code(m.method) or "none, stored without loss", str(m.epochs), f"{m.n_bytes:,}", f"{8 * m.n_bytes / n_weights:.2f}", f"{m.accuracy:.2f} %"]
        if m.untrained:
            cells += [_code(m.untrained), f"{m.untrained_bytes:,}", f"{m.untrained_accuracy:.2f} %"]
            cells.append(f"{m.bits_accuracy:.2f} %" if m.bits_bytes else "not so small")
        lines.append(f"| {' | '.join(cells + [''] * (len(COLUMNS) - len(cells)))} |")
    return [*lines, ""]


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`" if text else ""


def plot(problem: str, rows: Sequence[Measured]) -> str:
    compared = [m for m in rows if m.untrained]
    curves = (
        Curve("trained", [Point(m.n_bytes / 1000, m.accuracy, m.method) for m in compared], alone=True),
        Curve("untrained counterpart", [Point(m.untrained_bytes / 1000, m.untrained_accuracy) for m in compared], alone=True),
        Curve("lossy core", [Point(m.bits_bytes / 1000, m.bits_accuracy) for m in compared if m.bits_bytes]),
    )
    return drawn(problem, Scale("accuracy, %"), curves, Scale("kB of the file", logarithmic=True))


def papers() -> list[str]:
    lines = ["What the papers tell of their own:", "", "| | network | |", "|---|---|---|"]
    return [*lines, *(f"| {source} | {network} | {figures} |" for source, network, figures in PAPERS), ""]


def images(root: Path, data: Path | None) -> tuple[Path, Path] | None:
    """The folders of images and of checkpoints; told where there are none."""
    more, folder = fetched(), data_folder(root, data)
    if folder is None or not ((more / "mnist").is_dir() or (more / "cifar10").is_dir()):
        print("No images to train on ($MODELCODEC_MORE with mnist/ and cifar10/), or no data folder (--data, $MODELCODEC_DATA).", file=sys.stderr)
        return None
    torch.set_num_threads(1)
    return more, folder


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Measure what has not been; write tables and plots unless `quick`. Returns 1 where there is nothing to measure."""
    found = images(root, data)
    if found is None:
        return 1
    more, folder = found
    scale = Effort.here(quick)
    place = scale.place
    results = Results(None if quick else root / "benchmarks" / "results" / f"train-{place}.csv")
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) if quick else more / f"train-{place}"
        kept.mkdir(exist_ok=True)
        lines: list[str] = []
        for problem in problems(more, kept, folder, scale):
            rows = _measured_all(problem, results, scale, kept, only, quick)
            if not rows:
                continue
            lines += table(problem, rows)
            if not quick:
                name = f"train-{slug(problem.name)}.svg"
                (root / "docs" / name).write_text(plot(problem.name, rows))
                lines += [f"![Accuracy against bytes, {problem.name}]({name})", ""]
    lines += [*papers(), f"{place}, torch {torch.__version__}, modelcodec {modelcodec.__version__}."]
    print("\n".join(lines))
    if not quick:
        replace_block(root / "docs" / "benchmarks.md", "\n".join(lines), "train")
    return 0


def _measured_all(problem: Problem, results: Results, scale: Effort, kept: Path, only: Sequence[str] | None, quick: bool) -> list[Measured]:
    """The problem's rows, those known already and those that are wanted."""
    rows = [row for row in ROWS if row.problem == problem.name]
    for row in rows[1:2] if quick else rows:
        wanted = not only or any(part in f"{row.problem} {row.method}" for part in only)
        if wanted and results.of(row, scale.epochs(row), problem.images) is None:
            try:
                results.add(measured(row, problem, scale, kept))
            except BadRecipe as error:
                print(f"{row.problem}, {row.method}: {error}", file=sys.stderr)
            checkpoint_of(row, kept).unlink(missing_ok=True)
    return [m for m in results.rows if m.problem == problem.name]
