"""Tensors of good files for the stages that fits use: of integers, with words by the reference decoder's arithmetic, so that no better fit changes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import reference_decoder as reference
import rows
from grid_reference import EXP2
from rows import WORD, Array

from modelcodec.stage import Shared, Stage
from modelcodec.stages.codebook import Codebook
from modelcodec.stages.grid import Grid, Steps
from modelcodec.stages.lowrank import Factors, Lowrank, Right
from modelcodec.stages.seedbasis import Basis, Coefficients, SeedBasis
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

_FAR = {"F32": (0x7FC12345, 0xFF800000), "BF16": (0x7FC1, 0xFF80), "F16": (0x7E01, 0xFC00)}
"""A NaN with a payload and an infinity, which no product gives."""


@dataclass(frozen=True)
class Tensor:
    """A tensor whose words the stage takes, in frames of so many words; `shared` goes with each of them."""

    spec: TensorSpec
    words: Array
    stage: Stage
    frame_words: int = 131
    shared: Shared | None = None


@dataclass(frozen=True)
class File:
    """A good file's tensors, and what it is for."""

    name: str
    what: str
    tensors: tuple[Tensor, ...]


def files() -> Iterator[File]:
    yield from _grid_files()
    yield from _codebook_files()
    yield from _lowrank_files()
    yield from _seedbasis_files()


def _spec(name: str, dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, DTYPE_BY_NAME[dtype], shape)


def _integers(n: int, below: int, seed: int) -> Array:
    """Integers (i4) around zero, small ones more often than large ones."""
    fours = rows.numbers(4 * n, below, 4, seed).astype(np.int32).reshape(4, n)
    return np.ascontiguousarray(fours.sum(axis=0, dtype=np.int32) - 2 * (below - 1))


# ---- grid ----------------------------------------------------------------------------------------------------------------------------


def _grid(spec: TensorSpec, grid: Grid) -> Tensor:
    assert grid.indices is not None
    steps = [grid.step]
    span = spec.n_words
    if grid.steps is not None:
        steps = [reference.float32(grid.step * EXP2[32 * (e % 8)] * 2.0 ** (e // 8 - 16)) for e in grid.steps.exponents.tolist()]
        span = grid.steps.span
    places = reference.walk(grid.indices.tolist(), grid.states.bit_length() - 1, 0, grid.shifts)
    values = [place * steps[i // span] for i, place in enumerate(places)]
    words = np.array(list(map(reference.ROUND[spec.dtype.name], values)), WORD[spec.dtype.word])
    words[[7, 150]] = _FAR[spec.dtype.name]
    return Tensor(spec, words, grid)


def _grid_files() -> Iterator[File]:
    steps = Steps((np.arange(12) * 5 % 23).astype(np.uint8), 20)
    blocks = Steps((rows.numbers(90, 3, 1, 11) * np.uint8(40)).astype(np.uint8), 3)
    modelled = (
        _grid(_spec("kernels", "F32", 6, 5, 3, 3), Grid(_integers(270, 5, 1), 2.0**-14)),
        _grid(_spec("large kernels", "F16", 2, 2, 8, 8), Grid(_integers(256, 3, 2), 2.0**-12, states=4)),
        _grid(_spec("matrix", "BF16", 12, 20), Grid(_integers(240, 9, 3), 2.0**-15, states=32, steps=steps)),
        _grid(_spec("vector", "F32", 200), Grid(_integers(200, 900, 4), 2.0**-20, states=256, shifts=(5, -3, 9, 0))),
        _grid(_spec("one state", "BF16", 10, 20), Grid(_integers(200, 2, 5), 2.0**-9, states=1)),
        _grid(_spec("blocks", "F32", 6, 5, 3, 3), Grid(_integers(270, 3, 10), 2.0**-18, states=1, steps=blocks)),
    )
    yield File("grid-modelled", "the stage grid with context-coded indices, in frames that begin inside rows and kernels, with exceptions", modelled)
    parts = (
        _grid(_spec("bytes", "F16", 6, 5, 3, 3), Grid(_integers(270, 5, 6), 2.0**-13, states=16, modelled=False)),
        _grid(_spec("two bytes", "F32", 200), Grid(_integers(200, 900, 7), 2.0**-20, states=64, shifts=(-8, 0, 127, -128), modelled=False)),
        _grid(_spec("rows", "BF16", 12, 20), Grid(_integers(240, 9, 8), 2.0**-15, states=128, steps=steps, modelled=False)),
        _grid(_spec("blocks", "F16", 6, 5, 3, 3), Grid(_integers(270, 9, 12), 2.0**-30, states=1, steps=blocks, modelled=False)),
        _grid(_spec("past the largest", "F16", 200), Grid(_integers(200, 15, 9), 8.0, states=1, modelled=False)),
    )
    yield File("grid-parts", "the stage grid with indices that are a part, of one byte and of two", parts)


# ---- codebook ------------------------------------------------------------------------------------------------------------------------


def _sharing(tensor: Tensor) -> Tensor:
    """The same tensor as one frame whose lists are shared."""
    assert isinstance(tensor.stage, Codebook)
    book = tensor.stage.book(tensor.words, tensor.spec, 0)
    assert book is not None
    return Tensor(tensor.spec, tensor.words, tensor.stage, tensor.words.size, Shared(book.write(), book))


def _codebook_files() -> Iterator[File]:
    lists = bytes(row % 3 for row in range(12))
    choice = rows.numbers(240, 12, 1, 2)
    few = rows.gaussian(36, "BF16", 1)
    by_row = few[choice + np.uint8(12) * np.repeat(np.frombuffer(lists, np.uint8), 20)]
    kernels = rows.gaussian(90, "F32", 3).reshape(10, 9)[rows.numbers(30, 10, 1, 4)].reshape(-1)
    many = rows.gaussian(300, "F16", 5)
    many = np.concatenate([many, many[rows.numbers(100, 300, 2, 6).astype(np.int64)]])
    words = (
        Tensor(_spec("words", "BF16", 12, 20), few[choice], Codebook()),
        Tensor(_spec("modelled", "BF16", 12, 20), few[choice], Codebook(modelled=True)),
        Tensor(_spec("lists", "BF16", 12, 20), by_row, Codebook(lists=lists)),
        Tensor(_spec("modelled lists", "BF16", 12, 20), by_row, Codebook(modelled=True, lists=lists)),
        Tensor(_spec("doubles", "F64", 99), rows.gaussian(8, "F64", 9)[rows.numbers(99, 8, 1, 10)], Codebook()),
    )
    yield File("codebook-words", "the stage codebook with single words, in one list or one of several for each row", words)
    vectors = (
        Tensor(_spec("kernels", "F32", 6, 5, 3, 3), kernels, Codebook(9)),
        Tensor(_spec("kernels by row", "F32", 6, 5, 3, 3), kernels, Codebook(9, lists=lists[:6])),
        Tensor(_spec("pairs", "U8", 200), rows.random_bits(3, 1, 7)[rows.numbers(200, 3, 1, 8)], Codebook(2), 91),
    )
    yield File("codebook-vectors", "the stage codebook with vectors, in frames that begin inside rows and vectors", vectors)
    shared = (_sharing(words[0]), _sharing(words[3]), _sharing(vectors[0]), _sharing(Tensor(_spec("many", "F16", 400), many, Codebook())))
    yield File("codebook-shared", "the stage codebook with lists in a shared part, as they are and by a palette; indices of two bytes", shared)


# ---- lowrank -------------------------------------------------------------------------------------------------------------------------


def _lowrank(spec: TensorSpec, rank: int, most: tuple[int, int], *, masked: bool = False, shared: bool = False) -> Tensor:
    n_rows, columns = spec.shape
    left, right = _integers(n_rows * rank, most[0], rank).reshape(n_rows, rank), _integers(rank * columns, most[1], rank + 1).reshape(rank, columns)
    block = Factors(0, left, right, np.arange(rank) * 3 % 5, reference.float32(1e-5))
    sums = reference.products(left.tolist(), right.tolist(), bytes(block.shifts.tolist()))
    words = np.array([reference.ROUND[spec.dtype.name](float(each) * block.scale) for each in sums], WORD[spec.dtype.word])
    words[[7, 150]] = _FAR[spec.dtype.name]
    if masked:
        words[rows.numbers(words.size, 3, 1, rank) == 0] = 0
    part = Right(block.right, block.shifts)
    return Tensor(spec, words, Lowrank((block,)), shared=Shared(part.write(), part) if shared else None)


def _lowrank_files() -> Iterator[File]:
    tensors = (
        _lowrank(_spec("own", "F32", 12, 30), 4, (20, 20)),
        _lowrank(_spec("wide", "BF16", 12, 30), 3, (5000, 5000)),
        _lowrank(_spec("masked", "F16", 12, 30), 2, (20, 300), masked=True),
        _lowrank(_spec("shared", "BF16", 12, 30), 2, (30, 20), shared=True),
        _lowrank(_spec("wide shared", "F32", 12, 30), 2, (30, 3000), masked=True, shared=True),
    )
    yield File("lowrank", "the stage lowrank, in frames that begin inside rows, with masks, exceptions and shared right matrices", tensors)


# ---- seedbasis -----------------------------------------------------------------------------------------------------------------------


def _seedbasis(spec: TensorSpec, k: int, below: int, *, span: int = 256, masked: bool = False, shared: bool = False) -> Tensor:
    spans = -(-spec.n_words // span)
    basis = Basis(0x0123456789ABCDEF * k % (1 << 64), span, _integers(spans * k, below, k).reshape(spans, k), reference.float32(1e-3))
    rows_of = basis.coefficients.tolist()
    signs = (reference.signs_of(basis.seed, at // span, at % span, k) for at in range(spec.n_words))
    sums = (sum(sign * c for sign, c in zip(row, rows_of[at // span], strict=True)) for at, row in enumerate(signs))
    words = np.array([reference.ROUND[spec.dtype.name](float(total) * basis.scale) for total in sums], WORD[spec.dtype.word])
    words[[7, 150]] = _FAR[spec.dtype.name]
    if masked:
        words[rows.numbers(words.size, 3, 1, k) == 0] = 0
    part = Coefficients(basis.coefficients)
    return Tensor(spec, words, SeedBasis(basis), spec.n_words if shared else 131, Shared(part.write(), part) if shared else None)


def _seedbasis_files() -> Iterator[File]:
    tensors = (
        _seedbasis(_spec("own", "F32", 20, 30), 4, 20),
        _seedbasis(_spec("wide", "BF16", 20, 30), 9, 5000, span=300),
        _seedbasis(_spec("one span", "F16", 20, 30), 17, 20, span=1 << 32),
        _seedbasis(_spec("masked", "F32", 20, 30), 1, 2000, masked=True),
        _seedbasis(_spec("shared", "BF16", 20, 30), 8, 20, shared=True),
        _seedbasis(_spec("wide shared", "F32", 20, 30), 3, 5000, masked=True, shared=True),
    )
    yield File("seedbasis", "the stage seedbasis, in frames that begin inside spans, with masks, exceptions and shared coefficients", tensors)
