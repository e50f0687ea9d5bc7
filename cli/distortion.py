"""How far a checkpoint's tensors are from their originals: as the file tells, or measured against the originals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from modelcodec.cli.layers import Distortion, Row

if TYPE_CHECKING:
    from modelcodec.comparison import Comparison
    from modelcodec.types import Array, DType

N_BINS = 40
REACH = 3.0
"""A histogram's bins divide the errors from -3 to 3 times the tensor's RMSE."""


def recorded(rows: Sequence[Row], path: Path) -> list[Row]:
    """The rows of the file or folder `path` with what it tells itself about its lossy tensors.

    Their `error_energy` is near: it takes the energy of what was decoded for that of the original. memory: a tensor. raises: what opening and decoding raise.
    """
    if not any(row.tensor.loss for row in rows):
        return list(rows)
    from modelcodec.comparison import opened_tensors as opened

    with opened(path) as tensors:

        def energy(row: Row) -> float:
            tensor = next((tensors[name] for name in row.keys if name in tensors), None)
            return sum(map(_energy, _pieces(tensor.read(), tensor.spec.dtype))) if tensor else 0.0

        return [
            replace(row, distortion=Distortion(loss.max_error, loss.snr_db, energy(row) * loss.relative_mse)) if (loss := row.tensor.loss) else row
            for row in rows
        ]


def measured(rows: Sequence[Row], comparison: Comparison, original: Path, path: Path) -> list[Row]:
    """The rows with what the comparison of `path` with its original tells; for tensors that the original has not, as `recorded`.

    memory: a tensor of each. raises: what opening and decoding raise.
    """
    different = {tensor.name: tensor for tensor in comparison.tensors if tensor.n_different}
    alike = {tensor.name for tensor in comparison.tensors} - different.keys()
    histograms = _histograms(original, path, {name: tensor.rmse for name, tensor in different.items() if 0 < tensor.rmse < inf})
    result = []
    for row in recorded(rows, path):
        found = next((different[name] for name in row.keys if name in different), None)
        if found is not None:
            energy, histogram = found.n_elements * found.rmse * found.rmse, histograms.get(found.name)
            row = replace(row, distortion=Distortion(found.max_error, found.snr_db, energy, found.rmse, found.cosine, histogram))
        elif not alike.isdisjoint(row.keys):
            row = replace(row, distortion=None)
        result.append(row)
    return result


def _histograms(original: Path, path: Path, rmse: Mapping[str, float]) -> dict[str, tuple[int, ...]]:
    """Of the errors of each named tensor, in units of its RMSE."""
    import numpy as np

    from modelcodec.comparison import opened_tensors as opened

    found = {}
    with opened(original) as originals, opened(path) as given:
        for name, unit in rmse.items():
            counts = np.zeros(N_BINS, np.int64)
            pieces = (_pieces(tensors[name].read(), tensors[name].spec.dtype) for tensors in (originals, given))
            for wanted, got in zip(*pieces, strict=True):
                with np.errstate(invalid="ignore", over="ignore"):
                    counts += np.histogram((got - wanted) / unit, N_BINS, (-REACH, REACH))[0]
            found[name] = tuple(int(n) for n in counts)
    return found


def _pieces(data: Array, dtype: DType) -> Iterator[Array]:
    """A tensor's elements as float64, some at a time, which bounds memory."""
    from modelcodec.comparison import PIECE_WORDS, values_of

    step = PIECE_WORDS * dtype.bits // 8
    for at in range(0, data.size, step):
        yield values_of(data[at : at + step], dtype)


def _energy(values: Array) -> float:
    import numpy as np

    return float(np.square(values[np.isfinite(values)]).sum())
