"""Finding how large the changes of a group of frames are, given a base: scales of rows and columns, classes of levels, and the plans that use them."""

from __future__ import annotations

import numpy as np

from modelcodec.kernels import delta
from modelcodec.kernels import scale_classes as kernels
from modelcodec.kernels.class_rans import MOST_BITS, SCALES
from modelcodec.kernels.delta import OFFSET, STEPS, Scales
from modelcodec.kernels.frequencies import normalise
from modelcodec.kernels.scale_classes import OCTAVE
from modelcodec.planner import PlannedGroup
from modelcodec.stage import Plan, Shared
from modelcodec.stages.class_rans import TABLE_WIDTH, ScaleClasses
from modelcodec.stages.delta import Changes, Delta, most_scale
from modelcodec.types import Array, TensorSpec

MOST_COLUMNS = 1 << 17
_FLAT_COLUMNS = 256
"""Words of a row where a tensor's own rows do not fit frames, or are longer than is told apart."""
_ROWS_FOR_COLUMNS = 2048
_COUNTED_WORDS = 1 << 19
_CHUNK_WORDS = 1 << 16
_ENTRY_BITS, _CLASS_BITS = 8, 60
"""About what an entry of a class's table costs, and what a class does beside."""

_FLOATS = {
    "F8_E5M2": (15, 2),
    "F8_E4M3": (7, 3),
    "F8_E4M3FNUZ": (8, 3),
    "F8_E5M2FNUZ": (16, 2),
    "F16": (15, 10),
    "BF16": (127, 7),
    "F32": (127, 23),
    "F64": (1023, 52),
    "C64": (127, 23),
    "C128": (1023, 52),
}
"""dtype -> bias of the exponent, bits of mantissa"""
_FLOAT32_BIAS, _FLOAT32_INFINITY = 127, 0x7F800000
_UNCHANGED = 12 << 23
"""12 octaves, in the bits of float32."""


_DELTA = Plan(Delta())


def plan_changes(spec: TensorSpec, x: Array, base: Array, frame_words: int, covered: int, plans: tuple[Plan, ...]) -> PlannedGroup | None:
    """Plans for the words x of a group given the base's, of which there are as many: the frames' own `plans` from word `covered` on, where the base has ended
    and is zero. None where the base is of no use.
    """
    firsts = range(0, x.size, frame_words)
    equal = [np.array_equal(x[first : first + frame_words], base[first : first + frame_words]) for first in firsts]
    modelled = spec.dtype.name in _FLOATS and not all(equal)
    delta = [first < covered and (modelled or same) for first, same in zip(firsts, equal, strict=True)]
    if not any(delta):
        return None
    chosen = tuple(_DELTA if is_delta else plan for is_delta, plan in zip(delta, plans, strict=True))
    if not modelled:
        return PlannedGroup(chosen, None)
    end, row = min(-(-covered // frame_words) * frame_words, x.size), spec.row_words
    changes = find(x[:end], base[:end], row if frame_words % max(row, 1) == 0 else 0, spec.dtype.name)
    return PlannedGroup(chosen, Shared(changes.write(), changes))


def find(x: Array, base: Array, columns: int, dtype: str) -> Changes:
    """Scales and tables for words x of floats given those of the base, in rows of so many columns; 0 where nobody knows rows.

    memory: 4 bytes a word beside some MB. source: the additive model of log magnitudes by rows and columns is a two-way analysis of variance.
    """
    bias, mantissa_bits = _FLOATS[dtype]
    sizes, least = _sizes(x, base, dtype)
    if 2 <= columns <= MOST_COLUMNS and columns < x.size:
        row_logs, column_logs = kernels.fit(sizes, 7, columns, max(x.size // columns // _ROWS_FOR_COLUMNS, 1))
    else:
        columns = min(_FLAT_COLUMNS, x.size)
        row_logs, column_logs = np.zeros(-(-x.size // columns), np.int32), np.zeros(columns, np.int32)
    middle = _middle(sizes, least, row_logs, column_logs)
    rows_of, columns_of = _places(row_logs), _places(column_logs)
    largest = int(rows_of.max()) + int(columns_of.max()) - OFFSET
    offset = (middle * STEPS // OCTAVE) - STEPS * (_FLOAT32_BIAS - bias) + OFFSET - SCALES
    offset = min(max(offset, 0), most_scale(x.itemsize, mantissa_bits) - 1 - largest)
    sample = 1 << max((x.size // _COUNTED_WORDS).bit_length() - 1, 0)
    counts, counted = delta.count(x, base, Scales(rows_of, columns_of, offset, mantissa_bits), sample)
    _, thresholds = kernels.Groups(counts, counted, sample).merge(0, _ENTRY_BITS, _CLASS_BITS)
    tables = tuple(normalise(of_class, MOST_BITS, TABLE_WIDTH, escape=True) for of_class in kernels.of_classes(counts, thresholds, 0, sample))
    return Changes(mantissa_bits, offset, ScaleClasses(rows_of, columns_of, thresholds, tables))


def _sizes(x: Array, base: Array, dtype: str) -> tuple[Array, int]:
    """Magnitudes of changes, as the bits of float32 (u4), and the least of them: 12 octaves below their median, which no change at all counts as."""
    sizes = np.empty(x.size, np.uint32)
    for at in range(0, x.size, _CHUNK_WORDS):
        part = slice(at, at + _CHUNK_WORDS)
        with np.errstate(all="ignore"):
            change = np.abs(_numbers(x[part], dtype) - _numbers(base[part], dtype)).astype(np.float32)
        np.minimum(change.view(np.uint32), _FLOAT32_INFINITY, out=sizes[part])  # what NaNs look like differs between processors
    some = sizes[:: (sizes.size >> 16) | 1]
    some = some[some > 0]
    least = max(_median(some) - _UNCHANGED, 0) if some.size else 0
    np.maximum(sizes, np.uint32(least), out=sizes)
    return sizes, least


def _numbers(words: Array, dtype: str) -> Array:
    """The numbers that words stand for, as floats of 32 or 64 bits."""
    if words.itemsize == 8:
        return words.view(np.float64)
    if words.itemsize == 4:
        return words.view(np.float32)
    if dtype == "F16":
        return words.view(np.float16).astype(np.float32)
    if dtype == "BF16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    bias, mantissa_bits = _FLOATS[dtype]
    octets = np.arange(256)
    exponent, mantissa = np.divmod(octets & 127, 1 << mantissa_bits)
    significand = np.where(exponent > 0, mantissa + (1 << mantissa_bits), mantissa)
    numbers = np.ldexp(significand.astype(np.float32), np.maximum(exponent, 1) - bias - mantissa_bits)
    found: Array = np.where(octets < 128, numbers, -numbers)[words]
    return found


def _middle(sizes: Array, least: int, row_logs: Array, column_logs: Array) -> int:
    """The median log of what rows and columns do not tell, from words spread over all; from those that changed, if any did."""
    at = np.arange(0, sizes.size, (sizes.size >> 16) | 1)
    changed = at[sizes[at] > least]
    at = changed if changed.size else at
    row, column = np.divmod(at, column_logs.size)
    return _median((sizes[at] >> 16).astype(np.int64) - row_logs[row] - column_logs[column])


def _median(x: Array) -> int:
    return int(np.partition(x, x.size // 2)[x.size // 2])


def _places(logs: Array) -> Array:
    """Logs around 0 as scales around their middle."""
    step = OCTAVE // STEPS
    places: Array = np.clip((logs + step // 2) // step + SCALES // 2, 0, SCALES - 1).astype(np.uint8)
    return places
