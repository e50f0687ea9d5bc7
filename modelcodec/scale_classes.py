"""Finding scale classes for a group of frames: scales of rows and columns, and how many classes and mantissa bits pay for their tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from modelcodec.entropy import FRACTION_BITS, log2_fixed
from modelcodec.kernels import scale_classes as kernels
from modelcodec.kernels.class_rans import MOST_BITS, SCALES
from modelcodec.kernels.frequencies import coded_bits, normalise, table_bits
from modelcodec.kernels.scale_classes import NO_LOGS, OCTAVE
from modelcodec.stages.class_rans import TABLE_WIDTH, ScaleClasses
from modelcodec.types import Array

LEAST_WORDS = 1 << 12
MOST_COLUMNS = 1 << 17
"""Longer rows would be told apart by scales that cost more than they save, and the shared part has at most 1 MiB."""
_STEPS_LOG2 = (5, 6, 4)
"""Steps of scales that are tried, in 128ths of an octave: finer ones cost a bit more for each row and column."""
_ENTRY_BITS = 8
"""About what an entry in a class's table costs."""
_CLASS_BITS = 60
_ROWS_FOR_COLUMNS = 2048
"""So many rows are enough to know a column's scale."""
_COUNTED_WORDS = 1 << 19
_SURVEYED_WORDS = 1 << 17
"""Of longer groups, every 2nd, 4th, 8th ... block of 64 words is counted: for tables, and, before, for choosing steps and cuts."""
_FLOAT8_MANTISSA = {"F8_E4M3": 3, "F8_E4M3FNUZ": 3, "F8_E5M2": 2, "F8_E5M2FNUZ": 2}
_COMMON = 3 << FRACTION_BITS - 6
"""What is most common is taken for so much rarer, in 2^-16 bit: a bell has no magnitude at its top, yet all there is not zero."""
_OCTAVE_OF_1 = 8
"""So that no log is below zero."""
_ROUNDED_TO_0 = OCTAVE * 9 // 5
"""Zero stands for what is below one half: on average that is so far below one."""


@dataclass(frozen=True, slots=True)
class Found:
    """Classes, and where floats are best cut for them; `bits` is what the group's words take: symbols with these tables, and what lies below the cut."""

    classes: ScaleClasses
    low_bits: int
    bits: int


@dataclass(frozen=True, slots=True)
class _Choice:
    bits: int
    low_bits: int
    row_scales: Array
    column_scales: Array
    thresholds: Array
    counts: Array
    """as `kernels.count` gives them: symbols with `coarser` bits more, out of every `sample` blocks of words"""
    coarser: int
    sample: int


def find(x: Array, columns: int, exponent_at: int, cuts: tuple[int, ...]) -> Found | None:
    """The best classes for whole rows x (u2 or u4) of `columns` floats; None where there is nothing to tell apart.

    exponent_at: the exponent's lowest bit in a word's top 16, at least 7. cuts: low_bits to choose from, each at least 5.
    memory: about 3 MB. source: the additive model of log magnitudes by rows and columns is a two-way analysis of variance.
    """
    return _find(x, columns, cuts, exponent_at=exponent_at)


def find_bytes(x: Array, columns: int, logs: Array) -> Found | None:
    """The same for words of one byte (u1), each its own symbol, whose magnitudes are `logs` (u2[256], in 128ths of an octave)."""
    return _find(x, columns, (0,), of_bytes=logs)


def byte_logs(dtype: str, x: Array) -> Array:
    """Magnitudes (u2[256]) of what bytes mean in tensors of this dtype, of which x is a piece."""
    return _known_logs(dtype) if dtype in _FLOAT8_MANTISSA or dtype in ("I8", "F8_E8M0") else _logs_by_rarity(x)


@cache
def _known_logs(dtype: str) -> Array:
    if dtype == "I8":
        return _logs_of_integers(np.abs(np.arange(256, dtype=np.uint8).view(np.int8).astype(int)))
    return (np.arange(256) * OCTAVE).astype(np.uint16) if dtype == "F8_E8M0" else _float8_logs(_FLOAT8_MANTISSA[dtype])


def _logs_by_rarity(x: Array) -> Array:
    """Of bytes whose meaning nobody tells, such as two packed numbers of 4 bits: in a bell's shape what is rare is large, by the root of the bits it takes."""
    counts = np.bincount(x[:: x.size // _SURVEYED_WORDS + 1], minlength=256)
    bits = -log2_fixed(2 * counts + 1)
    logs: Array = (log2_fixed(bits - bits.min() + _COMMON) * OCTAVE >> FRACTION_BITS + 1).astype(np.uint16)
    return logs


def _float8_logs(mantissa_bits: int) -> Array:
    exponent, mantissa = np.divmod(np.arange(256) & 0x7F, 1 << mantissa_bits)
    normal = _logs_of_integers(mantissa | 1 << mantissa_bits) + (np.maximum(exponent, 1) - 1) * OCTAVE
    return np.where(exponent > 0, normal, _logs_of_integers(mantissa)).astype(np.uint16)


def _logs_of_integers(magnitudes: Array) -> Array:
    octave = np.frexp(np.maximum(magnitudes, 1))[1] - 1
    logs = (_OCTAVE_OF_1 + octave - 1) * OCTAVE + (magnitudes * OCTAVE >> octave)
    return np.where(magnitudes > 0, logs, _OCTAVE_OF_1 * OCTAVE - _ROUNDED_TO_0).astype(np.uint16)


def _find(x: Array, columns: int, cuts: tuple[int, ...], *, exponent_at: int = 7, of_bytes: Array = NO_LOGS) -> Found | None:
    if x.size < LEAST_WORDS or columns < 2 or columns > MOST_COLUMNS or columns >= x.size:
        return None
    rows = -(-x.size // columns)
    row_logs, column_logs = kernels.fit(x, exponent_at, columns, max(rows // _ROWS_FOR_COLUMNS, 1), of_bytes)
    best: _Choice | None = None
    for log2 in _STEPS_LOG2:
        choice = _choose(x, _places(row_logs, log2), _places(column_logs, log2), cuts if best is None else (best.low_bits,), _SURVEYED_WORDS)
        best = choice if best is None or choice.bits < best.bits else best
    assert best is not None
    if x.size >= 2 * _SURVEYED_WORDS:
        best = _choose(x, best.row_scales, best.column_scales, (best.low_bits,), _COUNTED_WORDS)
    of_classes = kernels.of_classes(best.counts, best.thresholds, best.coarser, best.sample)
    width = 1 if x.itemsize == 1 else TABLE_WIDTH
    counts = np.ascontiguousarray(of_classes[:, : 256**width])
    tables = tuple(normalise(of_class, MOST_BITS, width, escape=True) for of_class in counts)
    symbols = sum((coded_bits(of_class, table, width) or 0) - table_bits(table, width) for of_class, table in zip(counts, tables, strict=True))
    bits = symbols * x.size // max(int(counts.sum()), 1) + _below(x, best.low_bits)
    return Found(ScaleClasses(best.row_scales, best.column_scales, best.thresholds, tables), best.low_bits, bits)


def _below(x: Array, low_bits: int) -> int:
    """Bits of words x that are outside their symbols: signs, and mantissas below the cut."""
    return x.size * (low_bits + 1) if x.itemsize > 1 else 0


def _places(logs: Array, step_log2: int) -> Array:
    """Scales on a grid around their median."""
    some = logs[:: (logs.size >> 16) + 1]
    centre = int(np.partition(some, some.size // 2)[some.size // 2]) - (1 << step_log2 >> 1)
    places: Array = np.clip((logs - centre >> step_log2) + SCALES // 2, 0, SCALES - 1).astype(np.uint8)
    return places


def _choose(x: Array, row_scales: Array, column_scales: Array, cuts: tuple[int, ...], words: int) -> _Choice:
    """The cheapest of the cuts with these scales, by counting about so many words."""
    sample = 1 << max((x.size // words).bit_length() - 1, 0)
    finest = min(cuts)
    counts, counted = kernels.count(x, finest, column_scales.size, row_scales, column_scales, sample)
    groups = kernels.Groups(counts, counted, sample)
    fixed = kernels.order0_bits(row_scales) + kernels.order0_bits(column_scales)
    best: tuple[int, int, Array] | None = None
    for low_bits in cuts:
        bits, thresholds = groups.merge(low_bits - finest, _ENTRY_BITS, _CLASS_BITS)
        bits = bits * x.size // (counted * sample) + _below(x, low_bits)
        if best is None or bits < best[0]:
            best = bits, low_bits, thresholds
    assert best is not None
    return _Choice(best[0] + fixed, best[1], row_scales, column_scales, best[2], counts, best[1] - finest, sample)
