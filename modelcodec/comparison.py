"""How far the tensors of one checkpoint are from those of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from modelcodec.errors import UnsupportedFile
from modelcodec.formats import container, identify
from modelcodec.formats.folder import plan_folder
from modelcodec.mapping import mapped
from modelcodec.tensor_file import TensorFile, numpy_dtype
from modelcodec.types import Array, Checkpoint, DType, Extent, TensorSpec, View
from modelcodec.views import check_repetition, gathered

ANY_BYTES = "bytes"
"""The format of files in which no tensors are found."""
PIECE_WORDS = 1 << 20
"""Words compared at a time, which bounds memory."""


@dataclass(frozen=True, slots=True)
class TensorComparison:
    """Two tensors of one name and shape, the second measured against the first; numbers are those of float64 arithmetic.

    `n_different` words have other bits. `max_error` and `rmse` are of the elements, infinite where only one of the two is finite or NaN. `snr_db`: energy of
    the first over that of the difference, infinite where they agree. `cosine`: of the angle between them, NaN where one is all zero.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    n_elements: int
    n_different: int
    max_error: float
    rmse: float
    snr_db: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """`missing`: names that only the first has. `added`: only the second. `unlike`: names whose shapes differ, or that hold no numbers."""

    tensors: tuple[TensorComparison, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    unlike: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether both have the same tensors, bit for bit."""
        return not (self.missing or self.added or self.unlike or any(tensor.n_different for tensor in self.tensors))


@dataclass(frozen=True, slots=True)
class OpenTensor:
    spec: TensorSpec
    read: Callable[[], Array]
    """The bytes, as u1."""


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Compare the tensors of two checkpoints, each a file that `compress` reads, one that it wrote, or a folder of them.

    memory: a tensor of each, and some MiB. raises: what opening and decoding raise.
    """
    with opened_tensors(Path(first)) as a, opened_tensors(Path(second)) as b:
        both = [name for name in a if name in b]
        alike = [name for name in both if a[name].spec.shape == b[name].spec.shape and _is_numeric(a[name].spec.dtype) and _is_numeric(b[name].spec.dtype)]
        known = set(alike)
        rows = tuple(_compared(name, a[name], b[name]) for name in alike)
        unlike = tuple(name for name in both if name not in known)
        return Comparison(rows, tuple(name for name in a if name not in b), tuple(name for name in b if name not in a), unlike)


def _is_numeric(dtype: DType) -> bool:
    return dtype.elements == 1 and dtype.bits % 8 == 0 and not dtype.name.startswith("C")


def values_of(data: Array, dtype: DType) -> Array:
    """Elements, given as bytes, as float64."""
    values: Array = data.view(numpy_dtype(dtype)).astype(np.float64)
    return values


def _compared(name: str, a: OpenTensor, b: OpenTensor) -> TensorComparison:
    x, y = a.read(), b.read()
    size_a, size_b = (tensor.spec.dtype.bits // 8 for tensor in (a, b))
    n = x.size // size_a
    n_different, largest = 0, 0.0
    energy_a = energy_b = product = difference = 0.0
    for at in range(0, n, PIECE_WORDS):
        part_a, part_b = x[at * size_a : (at + PIECE_WORDS) * size_a], y[at * size_b : (at + PIECE_WORDS) * size_b]
        u, v = values_of(part_a, a.spec.dtype), values_of(part_b, b.spec.dtype)
        bits_alike = a.spec.dtype is b.spec.dtype
        same = (part_a.reshape(-1, size_a) == part_b.reshape(-1, size_b)).all(axis=1) if bits_alike else u == v
        n_different += u.size - int(np.count_nonzero(same))
        with np.errstate(invalid="ignore", over="ignore"):
            error = np.where(same, 0.0, u - v)
            error[~np.isfinite(error)] = math.inf
            finite = np.isfinite(u) & np.isfinite(v)
            largest = max(largest, float(np.abs(error).max(initial=0.0)))
            difference += float(np.square(error).sum())
            energy_a += float(np.square(u[finite]).sum())
            energy_b += float(np.square(v[finite]).sum())
            product += float((u[finite] * v[finite]).sum())
    snr = math.inf if difference == 0 else 10 * math.log10(energy_a / difference) if energy_a and difference < math.inf else -math.inf
    cosine = product / math.sqrt(energy_a * energy_b) if energy_a and energy_b else math.nan
    rmse = math.sqrt(difference / n) if n else 0.0
    return TensorComparison(name, b.spec.dtype.name, b.spec.shape, n, n_different, largest, rmse, snr, cosine)


@contextmanager
def opened_tensors(path: Path) -> Iterator[Mapping[str, OpenTensor]]:
    """The named tensors of a file or of all files of a folder. Raises UnsupportedFile where none are found."""
    if path.is_dir():
        names = [path / file.name for file in plan_folder(path) if file.has_tensors]
        found: dict[str, OpenTensor] = {}
        for name in names:
            with opened_tensors(name) as tensors:
                found |= {key: OpenTensor(tensor.spec, _reader(name, key)) for key, tensor in tensors.items()}
        if not found:
            raise UnsupportedFile(f"{path}: no file in this folder has tensors")
        yield found
        return
    with mapped(path) as view:
        if container.is_container(view):
            with TensorFile(path) as file:
                specs = file.specs()
                yield {spec.name: OpenTensor(spec, lambda name=spec.name: _bytes_of(file.get_tensor(name))) for spec in specs}  # type: ignore[misc]
            return
        checkpoint = identify(view, path)
        if checkpoint.format == ANY_BYTES or not checkpoint.extents:
            raise UnsupportedFile(f"{path}: no tensors are found in this file; name a checkpoint")
        yield _plain(view, checkpoint, str(path))


def _reader(path: Path, name: str) -> Callable[[], Array]:
    def read() -> Array:
        with opened_tensors(path) as tensors:
            return tensors[name].read().copy()

    return read


def _bytes_of(tensor: Array) -> Array:
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)


def _plain(source: memoryview, checkpoint: Checkpoint, where: str) -> dict[str, OpenTensor]:
    data = np.frombuffer(source, np.uint8)
    if checkpoint.views:
        views = [view for view in checkpoint.views if _is_numeric(view.spec.dtype)]
        return {view.spec.name: OpenTensor(view.spec, partial(_of_view, data, checkpoint.extents[view.extent], view, where)) for view in views}
    return {e.spec.name: OpenTensor(e.spec, lambda e=e: data[e.offset : e.end]) for e in checkpoint.extents}  # type: ignore[misc]


def _of_view(data: Array, extent: Extent, view: View, where: str) -> Array:
    """The bytes of a view on an extent of a source; its reader has proved that it lies there."""
    check_repetition(view.spec, extent.spec.n_bytes, where)
    return gathered(data[extent.offset + view.first * view.spec.dtype.bits // 8 :], view.spec, view.strides)
