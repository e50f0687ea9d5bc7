"""The fixed-length form on the CPU: made, unpacked and multiplied by threads, each with rows of its own, so that results do not depend on their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelcodec.kernels import fixed_length as kernels
from modelcodec.kernels.memory import address_of
from modelcodec.runtime.frames_in_memory import empty_words, side_by_side
from modelcodec.types import Array

if TYPE_CHECKING:
    import torch

TASK_WEIGHTS = 1 << 20
"""Of a thread at a time: some 50 microseconds, enough to be worth handing over."""
TASKS_A_THREAD = 4
"""At most, so that threads end together: within a task, rows that are far apart are read side by side, and few would be too short for that."""


@dataclass(frozen=True, slots=True)
class Packed:
    """What `modelcodec.runtime.fixed_length.FixedLength` holds, as arrays."""

    base: int
    signed_mantissas: Array
    codes: Array
    row_starts: Array
    places: Array
    values: Array


@dataclass(frozen=True, slots=True)
class Matrix:
    """The same where it lies in memory; `addresses` of codes, signed mantissas, row starts, places and values. Who makes it keeps the memory alive."""

    n_rows: int
    n_columns: int
    n_words: int
    part: int
    base: int
    addresses: tuple[int, ...]


def pack(words: Array, part: int, most_bytes: int, threads: int) -> Packed | None:
    """Words of bf16 (u2 [n_rows, n_columns], contiguous, not empty) in the fixed-length form; None where it would take more than `most_bytes`."""
    n_rows, n_columns = words.shape
    n_words = -(-n_columns // (8 * part)) * part
    tasks = list(_tasks(n_rows, n_columns, threads))
    counts = np.zeros((len(tasks), kernels.N_COUNTS), np.int64)

    def count(task: int) -> None:
        rows = words[tasks[task].start : tasks[task].stop]
        kernels.count(address_of(rows), rows.size, counts[task])

    side_by_side(count, range(len(tasks)), threads)
    base = _base(counts.sum(0))
    coded = counts[:, base + 1 : base + 1 + kernels.CODES].sum(1)
    escapes = np.concatenate(([0], np.cumsum([len(rows) * n_columns for rows in tasks] - coded - counts[:, -1])))
    form = Packed(
        base,
        empty_words(8 * n_rows * n_words).view("<i4").reshape(n_rows, -1),
        empty_words(4 * n_rows * n_words).view("<i4").reshape(n_rows, -1),
        np.empty(n_rows + 1, "<i4"),
        np.empty(escapes[-1], "<i8"),
        np.empty(escapes[-1], "<u2"),
    )
    if sum(array.nbytes for array in (form.signed_mantissas, form.codes, form.row_starts, form.places, form.values)) > most_bytes:
        return None

    def pack_rows(task: int) -> None:
        rows = tasks[task]
        spare = np.empty(8 * n_words, np.uint16)
        out = (address_of(array[rows.start :]) for array in (form.codes, form.signed_mantissas, form.row_starts))
        shape = len(rows), n_columns, n_words, part, base
        first = rows.start * n_columns, int(escapes[task])
        kernels.pack(address_of(words[rows.start :]), *shape, *first, address_of(spare), *out, address_of(form.places), address_of(form.values))

    side_by_side(pack_rows, range(len(tasks)), threads)
    form.row_starts[-1] = escapes[-1]
    return form


def _base(counts: Array) -> int:
    """The base with which the most weights have a code; counts of each exponent."""
    coded = np.convolve(counts[1:256], np.ones(kernels.CODES, np.int64), "valid")
    return int(coded[: kernels.BASES].argmax())


def unpack(matrix: Matrix, rows: Array, out: Array, threads: int) -> None:
    """Write the rows with these numbers (i8, which the matrix has) to `out` (u2 [n, n_columns], contiguous)."""
    shape = matrix.n_columns, matrix.n_words, matrix.part, matrix.base

    def unpack_rows(task: range) -> None:
        spare = np.empty(8 * matrix.n_words, np.uint16)
        kernels.unpack(*matrix.addresses, *shape, rows[task.start : task.stop], address_of(spare), address_of(out[task.start :]))

    side_by_side(unpack_rows, _tasks(rows.size, matrix.n_columns, threads), threads)


def multiply(matrix: Matrix, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, threads: int) -> bool:
    """The matrix times each vector of x (bf16, contiguous), plus a bias (bf16), into `out` (bf16 or f4, contiguous).

    Returns False, and no result, where an x is infinite or not a number: it would meet zeros in the place of escaped weights.
    """
    n_vectors, n_padded = x.numel() // matrix.n_columns, 8 * matrix.n_words
    scaled, factors = empty_words(4 * n_vectors * n_padded), np.empty(n_vectors)
    if not kernels.scale(x.data_ptr(), n_vectors, matrix.n_columns, n_padded, address_of(scaled), factors):
        return False
    vectors = address_of(scaled), factors, bias.data_ptr() if bias is not None else 0, out.data_ptr(), out.element_size() == 2
    shape = matrix.n_rows, matrix.n_columns, matrix.n_words, matrix.part, matrix.base

    def multiply_rows(rows: range) -> None:
        sums = np.empty(kernels.ROWS * kernels.MOST_VECTORS, np.float32)
        kernels.MULTIPLY[n_vectors](*matrix.addresses, *vectors, *shape, rows.start, len(rows), address_of(sums))

    side_by_side(multiply_rows, _tasks(matrix.n_rows, matrix.n_columns, threads), threads)
    return True


def _tasks(n_rows: int, n_columns: int, threads: int) -> Iterator[range]:
    """Stretches of rows, none empty."""
    n = min(TASKS_A_THREAD * threads, max(n_rows * n_columns // TASK_WEIGHTS, 1)) if threads > 1 else 1
    step = max(-(-n_rows // n), 1)
    return (range(first, min(first + step, n_rows)) for first in range(0, n_rows, step))
