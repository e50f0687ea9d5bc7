"""A checkpoint's tensors, how far each is from its original, and the layers of the network that their names tell."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from modelcodec.cli.report import Total, leaves, total

if TYPE_CHECKING:
    from modelcodec.report import Report, TensorReport

DIGITS = re.compile("([0-9]+)")
NUMBER = re.compile(r"((?:[^./]*[./])*?[0-9]+)(?:[./]|$)(.*)", re.DOTALL)
INDEX = re.compile(r"((?:[^./]*[./])*?[^./]*_[0-9]+)(?:[./]|$)(.*)", re.DOTALL)
ALL_BUT_LAST = re.compile(r"(.*)[./](.*)", re.DOTALL)
DB_PER_BIT = 20 * math.log10(2)
"""Each bit more halves the error of an ideal code: D(R) = 2^-2R for independent Gaussian weights of variance 1."""


@dataclass(frozen=True, slots=True)
class Distortion:
    """A tensor's error; `error_energy` is the sum of its squares. `rmse` and `cosine` only where it was measured, and `histogram` where that RMSE is finite:
    numbers of errors in bins of equal width.
    """

    max_error: float
    snr_db: float
    error_energy: float
    rmse: float | None = None
    cosine: float | None = None
    histogram: tuple[int, ...] | None = None

    @property
    def gaussian_bits(self) -> float | None:
        """Bits that independent Gaussian weights take at this error at least."""
        return max(self.snr_db / DB_PER_BIT, 0.0) if math.isfinite(self.snr_db) else None


@dataclass(frozen=True, slots=True)
class Row:
    """A tensor: `folder` of its file below the checkpoint's own, how far it is from the original where it is another."""

    folder: str
    tensor: TensorReport
    distortion: Distortion | None = None

    @property
    def layer(self) -> str:
        """The name up to its first number: `model.layers.0`, `encoder/layer_0`; else without its last part: `lm_head`."""
        return f"{self.folder}/{self._split[0]}" if self.folder else self._split[0]

    @property
    def label(self) -> str:
        """What the name has beside the layer's; of several tensors on a storage, that of the first."""
        return self._with_others(self._split[1])

    @property
    def title(self) -> str:
        """The name; of several tensors on a storage, the first one's and their number."""
        return self._with_others(self._names[0])

    @property
    def keys(self) -> list[str]:
        """What the tensor may be called where it is loaded: its name, or where that stands for a storage, one of the names in it."""
        return [self.tensor.name, *self._names]

    @property
    def _names(self) -> list[str]:
        return self.tensor.name.split(" = ")

    @property
    def _split(self) -> tuple[str, str]:
        """Layer and the rest of the first name."""
        name = self._names[0]
        found = NUMBER.match(name) or INDEX.match(name) or ALL_BUT_LAST.match(name)
        return (found[1], found[2] or name) if found else (name, name)

    def _with_others(self, name: str) -> str:
        others = len(self._names) - 1
        return f"{name} and {others:,} more on its storage" if others else name

    @property
    def floor_bits(self) -> float | None:
        """Bits a weight that a simple code cannot go below: order 0 without loss; with it, independent Gaussian weights at the same error."""
        if self.distortion is None:
            return self.tensor.floor_bits
        return self.distortion.gaussian_bits


@dataclass(frozen=True, slots=True)
class Layer:
    """Tensors that belong together. `floor_bits`: mean over the weights, None unless every tensor has one."""

    name: str
    rows: tuple[Row, ...]
    total: Total
    floor_bits: float | None


def rows_of(report: Report) -> list[Row]:
    """Every tensor of a file or folder, without distortion."""
    root = PurePath(report.source)
    rows: list[Row] = []
    for file in leaves(report):
        folder = PurePath(file.source).relative_to(root).parent.as_posix() if report.files else "."
        rows += [Row("" if folder == "." else folder, tensor) for tensor in file.tensors]
    return rows


def layers_of(rows: Iterable[Row]) -> list[Layer]:
    """The layers, numbers in their order."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.layer, []).append(row)
    return [_layer(name, groups[name]) for name in sorted(groups, key=_natural)]


def _layer(name: str, rows: Sequence[Row]) -> Layer:
    weighed = [(row.floor_bits, row.tensor.n_weights) for row in rows if row.tensor.n_weights]
    known = [bits * n for bits, n in weighed if bits is not None]
    floor = sum(known) / sum(n for _, n in weighed) if known and len(known) == len(weighed) else None
    return Layer(name, tuple(rows), total("all", [row.tensor for row in rows]), floor)


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts `layers.2` before `layers.10`; digits are compared as text, since a name may have more of them than int() takes."""
    pieces = DIGITS.split(name)
    return tuple((len(piece.lstrip("0")), piece.lstrip("0")) if k % 2 else (0, piece) for k, piece in enumerate(pieces))
