"""Which tree of stages fits the words of a frame: decided from counts and samples, in integers, so that every machine decides alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from modelcodec import scale_classes
from modelcodec.entropy import order0_bits
from modelcodec.kernels import planes as kernels
from modelcodec.kernels import survey
from modelcodec.kernels.frame_encoder import LEAST_WORDS, Choices
from modelcodec.kernels.frequencies import histogram
from modelcodec.stage import Encoded, FrameContext, Plan, Shared
from modelcodec.stages.class_rans import ClassRans
from modelcodec.stages.constant import Constant
from modelcodec.stages.fields import Fields
from modelcodec.stages.palette import MOST, Palette
from modelcodec.stages.planes import Planes
from modelcodec.stages.rans import LANE_WORDS, VECTOR_WORDS, Rans, lanes_for, sample_step
from modelcodec.stages.raw import Raw
from modelcodec.stages.sparse import Sparse
from modelcodec.stages.split_float import SplitFloat
from modelcodec.stages.widen import BFLOAT16, FLOAT16, FLOAT32, WIDTHS, Widen
from modelcodec.stages.zstd import Zstd
from modelcodec.types import U8, Array, TensorSpec

FAST, DEFAULT_LEVEL, SMALL = 1, 5, 9
LEVELS = (FAST, DEFAULT_LEVEL, SMALL)

RAW = Plan(Raw())
CONSTANT = Plan(Constant())

_TABLE_BITS = {FAST: 8, DEFAULT_LEVEL: 11, SMALL: 12}
"""Tables of 8 bits decode fastest, but hold no more than exponents."""
_SAMPLE = {FAST: 16, DEFAULT_LEVEL: 4, SMALL: 1}
"""A table is made from one in so many words, where there are many."""
_LANE_WORDS = {FAST: LANE_WORDS // 8, DEFAULT_LEVEL: LANE_WORDS, SMALL: LANE_WORDS}
_BYTE_TABLE_BITS = {FAST: 11, DEFAULT_LEVEL: 12, SMALL: 12}
_ZSTD_LEVEL = {FAST: 1, DEFAULT_LEVEL: 5, SMALL: 19}
_SHORT_LEVELS = {FAST: (1, 1), DEFAULT_LEVEL: (15, 17), SMALL: (19, 19)}
"""For headers and the like, which are short and read once: up to 16 KiB, where zstd's levels are other ones, and above."""
_SHORTEST_BYTES = 1 << 14

_LOW_BITS: dict[str, dict[int, tuple[int, ...]]] = {
    "BF16": {FAST: (7,), DEFAULT_LEVEL: (7, 6, 5), SMALL: (7, 6, 5)},
    "F16": {DEFAULT_LEVEL: (10, 9, 8, 7), SMALL: (10, 9, 8, 7)},
    "F32": {FAST: (7,), DEFAULT_LEVEL: (7, 6, 5), SMALL: (7, 6, 5)},
    "F64": {FAST: (4,), DEFAULT_LEVEL: (4,), SMALL: (4, 3)},
}
"""Where a float may be cut at each level: more mantissa bits in the symbol cost larger tables."""
_FLOATS = {"BF16": "BF16", "F16": "F16", "F32": "F32", "F64": "F64", "C64": "F32", "C128": "F64"}
_EXPONENT_AT = {"BF16": 7, "F16": 10, "F32": 7}
"""Lowest bit of the exponent in a word's top 16."""
_WIDE_FLOATS = {"F32": ((BFLOAT16, 16, "BF16"), (FLOAT16, 13, "F16")), "F64": ((FLOAT32, 29, "F32"),)}
"""dtype -> (kind of widen, low bits that are zero then, dtype that it is in truth)"""

LEAST_BYTES = {FAST: 4096, DEFAULT_LEVEL: 256, SMALL: 64}
"""Shorter tensors stay as they are: each costs a table, and as much time as hundreds of times its bytes in a long one."""

_SAMPLE_WORDS = {FAST: 1 << 13, DEFAULT_LEVEL: 1 << 15, SMALL: 1 << 15}
_FAST_WORDS = 1 << 17
_ZSTD_SAMPLE, _ZSTD_SAMPLES = 1 << 14, 4
_SHORT_BYTES = 1 << 15
_REPEAT_SAMPLE = 1 << 13
_REPEAT_WORDS = 4 * _REPEAT_SAMPLE
_ROWS_SAMPLED = 64
_BYTES_APART = SplitFloat(7)
_QUICK, _WHOLE = Zstd(1), Zstd(5)
_QUICK_PLAN = Plan(_QUICK)
_ZSTD_SLOW = {FAST: 2, DEFAULT_LEVEL: 1, SMALL: 0}
"""zstd decodes at half the speed of rans: where speed counts it must save so many 64ths."""
_ZSTD_NEAR = 64
"""zstd at full strength is tried where at its quickest it takes at most one part in so many more than order 0."""
_SPARSE_SHARE = {FAST: 32, DEFAULT_LEVEL: 32, SMALL: 32}
"""Zeros are masked from one in this many words on: below that they cost little as symbols, and masks cost time."""
_TABLE_SYMBOL_BITS = 8
_STREAM_BITS = 8 * 24

_BLOCK_FIELDS = {
    "Q4_0": "2x1+1x16",
    "Q4_1": "2x2+1x16",
    "Q5_0": "2x1+1x4+1x16",
    "Q5_1": "2x2+1x4+1x16",
    "Q8_0": "2x1+1x32",
    "Q8_1": "2x2+1x32",
    "Q2_K": "1x16+1x64+2x2",
    "Q3_K": "1x32+1x64+1x12+2x1",
    "Q4_K": "2x2+1x12+1x128",
    "Q5_K": "2x2+1x12+1x32+1x128",
    "Q6_K": "1x128+1x64+1x16+2x1",
    "Q8_K": "4x1+1x256+2x16",
    "IQ2_XXS": "2x1+1x64",
    "IQ2_XS": "2x1+1x64+1x8",
    "IQ3_XXS": "2x1+1x64+1x32",
    "IQ1_S": "2x1+1x32+1x16",
    "IQ4_NL": "2x1+1x16",
    "IQ3_S": "2x1+1x64+1x8+1x32+1x4",
    "IQ2_S": "2x1+1x64+1x8+1x8",
    "IQ4_XS": "2x1+1x2+1x4+1x128",
    "IQ1_M": "1x32+1x16+1x8",
    "TQ1_0": "1x48+1x4+2x1",
    "TQ2_0": "1x64+2x1",
    "MXFP4": "1x1+1x16",
    "NVFP4": "1x4+1x32",
}
"""Fields of ggml's blocks in their order (ggml-common.h): width in bytes x number of words."""


def plan(spec: TensorSpec, x: Array, level: int) -> Plan:
    """The plan for the words x of a frame of `spec`. Pure; never asks for more than reading x."""
    name = spec.dtype.name
    if x.size == 0:
        return RAW
    if is_constant(x):
        return CONSTANT
    if name in _FLOATS:
        return float_plan(x, _FLOATS[name], level, spec.row_words)
    if name in _BLOCK_FIELDS:
        return _blocks(x, name, level)
    return integer_plan(x, level) if x.itemsize > 1 else byte_plan(x, level)


def choices(spec: TensorSpec, n: int, level: int) -> Choices | None:
    """What `frame_encoder` needs to know to plan and code frames of n words by itself; None where `plan` has to be asked."""
    dtype = _FLOATS.get(spec.dtype.name)
    if dtype not in _EXPONENT_AT or n < LEAST_WORDS or (level == SMALL and (len(spec.shape) > 1 or n >= _REPEAT_WORDS)):
        return None
    split_level = _split_level(n, dtype, level)
    return _choices(dtype, level, split_level, n >= VECTOR_WORDS, sample_step(n, _SAMPLE[split_level]), *lanes_for(n, _LANE_WORDS[level]))


@cache
def _choices(dtype: str, level: int, split_level: int, has_all_lanes: bool, sample: int, lanes_log2: int, groups: int) -> Choices:
    cuts = _LOW_BITS[dtype][split_level]
    return Choices(
        surveyed=_SAMPLE_WORDS[level],
        coarsest=max(cuts),
        finest=min(cuts),
        zero_share=_SPARSE_SHARE[level],
        wide_bits=(1 << min((low_bits for _, low_bits, _ in _WIDE_FLOATS.get(dtype, ())), default=0)) - 1,
        table_bits=_table_bits_at(split_level, has_all_lanes),
        sample=sample,
        lanes_log2=lanes_log2,
        groups=groups,
        low_sample=_SAMPLE_WORDS[split_level] if dtype == "F32" and split_level > FAST else 0,
        repeat_words=_REPEAT_WORDS if level > FAST else 0,
    )


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """A plan for each frame of a group, and the part that they share, if any."""

    plans: tuple[Plan, ...]
    shared: Shared | None


def share(spec: TensorSpec, x: Array, frame_words: int, plans: tuple[Plan, ...], level: int) -> PlannedGroup:
    """Scale classes for a group of frames, at the smallest level, where they take less than the frames' own plans."""
    if level == SMALL and len(spec.shape) > 1 and frame_words % max(spec.row_words, 1) == 0:
        if x.itemsize == 1 and spec.dtype.elements == 1:
            return _share_bytes(spec, x, frame_words, plans)
        if _FLOATS.get(spec.dtype.name) in _EXPONENT_AT:
            return _share_floats(spec, x, frame_words, plans)
    return PlannedGroup(plans, None)


def _share_floats(spec: TensorSpec, x: Array, frame_words: int, plans: tuple[Plan, ...]) -> PlannedGroup:
    dtype, columns = _FLOATS[spec.dtype.name], spec.row_words
    if not any(_has_table(plan) or _has_repeats(plan) for plan in plans):
        return PlannedGroup(plans, None)
    found = scale_classes.find(x, columns, _EXPONENT_AT[dtype], _LOW_BITS[dtype][SMALL])
    if found is None:
        return PlannedGroup(plans, None)
    shared, low_bits = Shared(found.classes.write(), found.classes), found.low_bits
    if all(map(_has_table, plans)):
        own = sum(_table_bits(plan, x[i * frame_words : (i + 1) * frame_words]) for i, plan in enumerate(plans))
        better = found.bits + _shared_bits(shared) < own
        return PlannedGroup(tuple(_with_classes(plan, low_bits) for plan in plans), shared) if better else PlannedGroup(plans, None)

    def saved(piece: Array, plan: Plan, context: FrameContext) -> int:
        if not (_has_table(plan) or _has_repeats(plan)):
            return 0
        own = _table_bits(plan, piece) if _has_table(plan) else _repeated_bits(piece, columns)
        symbols = ClassRans().encode(_parts(SplitFloat(low_bits), piece)[0], context)
        return own - 8 * len(symbols.payload) - piece.size * (low_bits + 1) if symbols else 0

    return _frame_by_frame(spec, x, frame_words, plans, shared, saved, lambda plan: _with_classes(plan, low_bits))


def _has_table(plan: Plan) -> bool:
    return isinstance(plan.stage, SplitFloat) and isinstance(plan.then["symbols"].stage, Rans)


def _has_repeats(plan: Plan) -> bool:
    return isinstance(plan.stage, SplitFloat) and isinstance(plan.then["symbols"].stage, Zstd)


def _table_bits(plan: Plan, x: Array) -> int:
    """What the top 16 bits of floats take with a table of their own."""
    return _Survey.of(x, (plan.stage.low_bits,), SMALL).bits(plan.stage.low_bits) if isinstance(plan.stage, SplitFloat) else 0


def _with_classes(plan: Plan, low_bits: int) -> Plan:
    return Plan(SplitFloat(low_bits), {name: inner for name, inner in plan.then.items() if name == "low"} | {"symbols": Plan(ClassRans())})


def _share_bytes(spec: TensorSpec, x: Array, frame_words: int, plans: tuple[Plan, ...]) -> PlannedGroup:
    found = scale_classes.find_bytes(x, spec.row_words, scale_classes.byte_logs(spec.dtype.name, x))
    if found is None:
        return PlannedGroup(plans, None)

    def saved(piece: Array, plan: Plan, context: FrameContext) -> int:
        encoded = ClassRans().encode(piece, context)
        fewer = 8 * (_byte_cost(piece, plan) - len(encoded.payload)) if encoded else 0
        if encoded and fewer > 0 and isinstance(plan.stage, Zstd):  # the samples may have missed repetitions that are far apart
            fewer = min(fewer, 8 * (len(_WHOLE.encode(piece, _NO_CONTEXT).payload) - len(encoded.payload)))
        return fewer

    shared = Shared(found.classes.write(), found.classes)
    return _frame_by_frame(spec, x, frame_words, plans, shared, saved, lambda plan: Plan(ClassRans()))


def _frame_by_frame(
    spec: TensorSpec, x: Array, frame_words: int, plans: tuple[Plan, ...], shared: Shared, saved: Callable[[Array, Plan, FrameContext], int],
    classed: Callable[[Plan], Plan],
) -> PlannedGroup:  # fmt: skip
    """Classes for those frames whose own plans take more, which `saved` tells in bits, if together that pays for the shared part."""
    chosen, total = [], -_shared_bits(shared)
    for i, plan in enumerate(plans):
        piece = x[i * frame_words : (i + 1) * frame_words]
        bits = saved(piece, plan, FrameContext(spec, i * frame_words, piece.size, shared))
        chosen.append(classed(plan) if bits > 0 else plan)
        total += max(bits, 0)
    return PlannedGroup(tuple(chosen), shared) if total > 0 else PlannedGroup(plans, None)


def _shared_bits(shared: Shared) -> int:
    return 8 * _rans_bytes(np.frombuffer(shared.data, np.uint8), _byte_coder(SMALL))


def is_constant(x: Array) -> bool:
    return bool(x[0] == x[-1] and x[x.size // 2] == x[0] and (x == x[0]).all())


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a sample of some 8 or 32 Ki words, spread over x, shows: its size, its zeros, the or of its words, and counts of its symbols at the finest cut."""

    n: int
    n_sampled: int
    zeros: int
    every: int
    finest: int
    counts: Array

    @classmethod
    def of(cls, x: Array, choices: tuple[int, ...], level: int) -> _Survey:
        step = x.size // _SAMPLE_WORDS[level] | 1  # odd, so that it is no multiple of a row
        finest = min(choices)
        counts, found = np.zeros(1 << (15 - finest), np.int64), np.empty(survey.FOUND, np.uint64)
        survey.survey(x, step, finest, counts, found)
        return cls(x.size, -(-x.size // step), int(found[survey.ZEROS]), int(found[survey.LOW]), finest, counts)

    def bits(self, low_bits: int) -> int:
        """What the words take, cut there: symbols at their entropy, their table, and what is below the cut as it is."""
        symbols, different = survey.entropy_bits(self.counts, low_bits - self.finest)
        return int(symbols) * self.n // self.n_sampled + _TABLE_SYMBOL_BITS * int(different) + self.n * (low_bits + 1)

    def cut(self, choices: tuple[int, ...]) -> int:
        """The cut with the fewest bits."""
        return choices[0] if len(choices) == 1 else min((self.bits(low_bits), low_bits) for low_bits in choices)[1]


def float_plan(x: Array, dtype: str, level: int, columns: int = 0) -> Plan:
    """Zeros apart, narrower floats narrow, few values as a palette; else sign, exponent and mantissa apart. columns: words in a row, 0 where nobody knows."""
    seen = _Survey.of(x, _LOW_BITS[dtype][_split_level(x.size, dtype, level)], level)
    if seen.zeros * _SPARSE_SHARE[level] > seen.n_sampled and x.size >= 64:
        return _masked(x, 0, dtype, level)
    for kind, low_bits, narrow_dtype in _WIDE_FLOATS.get(dtype, ()):
        if not seen.every & ((1 << low_bits) - 1):
            narrow = _narrowed(x, kind)
            if narrow is not None:
                return Plan(Widen(kind), {"narrow": float_plan(narrow, narrow_dtype, level, columns)})
    palette = _palette(x, level)
    if palette is not None:
        return palette
    split = _split(x, seen, dtype, level)
    bits = seen.bits(split.stage.low_bits) if isinstance(split.stage, SplitFloat) else 16 * x.size
    return _repeated(x, columns, bits, split.then, level) or split


def _repeated(x: Array, columns: int, bits: int, then: Mapping[str, Plan], level: int) -> Plan | None:
    """Where rows come again, exactly or nearly, as those of an embedding that were never trained, zstd finds them: in whole words, or, at the smallest level,
    in each kind of a float's bytes, where it also comes near order 0. None where that saves too little of the `bits` that words take one by one.

    bits: without those below the top 16. then: the plans for words one by one.
    """
    if level == FAST or x.size < _REPEAT_WORDS:
        return None
    if level == SMALL:
        found = _repeated_bits(x, columns)
        plan = Plan(_BYTES_APART, dict(then) | {"symbols": _QUICK_PLAN, "rest": _QUICK_PLAN})
    else:
        sample = _some_rows(x, columns)
        found = 8 * len(_QUICK.encode(sample, _NO_CONTEXT).payload) * x.size // sample.size - 8 * (x.nbytes - 2 * x.size)
        plan = Plan(Zstd(_ZSTD_LEVEL[level]))
    return plan if 16 * found < 15 * bits else None


def _repeated_bits(x: Array, columns: int) -> int:
    """What zstd would make of the top 16 bits of floats, in two kinds of bytes."""
    sample = _some_rows(x, columns)
    parts = _parts(_BYTES_APART, sample)[:2]
    return 8 * sum(len(_QUICK.encode(part, _NO_CONTEXT).payload) for part in parts) * x.size // sample.size


def _some_rows(x: Array, columns: int) -> Array:
    """The starts of some rows spread over x, or, where it has too few rows, of a few pieces of it."""
    if not 0 < columns <= x.size // _ROWS_SAMPLED:
        columns = x.size // 2
    rows = x[: x.size // columns * columns].reshape(-1, columns)
    rows = rows[:: max(len(rows) // _ROWS_SAMPLED, 1)]
    return np.ascontiguousarray(rows[:, : _REPEAT_SAMPLE // min(len(rows), _ROWS_SAMPLED)]).reshape(-1)


def _narrowed(x: Array, kind: int) -> Array | None:
    encoded = Widen(kind).encode(x, _NO_CONTEXT)
    return None if encoded is None else encoded.parts[0]


def _masked(x: Array, fill: int, dtype: str | None, level: int) -> Plan:
    mask, values = _parts(Sparse(fill), x)
    inner = RAW
    if values.size:
        if is_constant(values):
            inner = CONSTANT
        elif dtype is not None:
            inner = _masked_floats(values, fill, dtype, level)
        else:
            inner = integer_plan(values, level) if x.itemsize > 1 else byte_plan(values, level)
    return Plan(Sparse(fill), {"mask": byte_plan(mask, level), "values": inner})


def _masked_floats(values: Array, fill: int, dtype: str, level: int) -> Plan:
    """Of floats without zeros: negative zeros apart, if there are many, few values as a palette, or split."""
    seen = _Survey.of(values, _LOW_BITS[dtype][_split_level(values.size, dtype, level)], level)
    negative_zero, share = 1 << (8 * values.itemsize - 1), _SPARSE_SHARE[level]
    # Their symbol is that of the smallest numbers: where these are few, nobody counts.
    if fill == 0 and int(seen.counts[0]) * share > seen.n_sampled and np.count_nonzero(values == values.dtype.type(negative_zero)) * share > values.size:
        return _masked(values, negative_zero, dtype, level)
    return _palette(values, level) or _split(values, seen, dtype, level)


def _palette(x: Array, level: int) -> Plan | None:
    """A palette, where x has at most 256 different words and enough words to pay for it."""
    table, used, _ = kernels.scratch()
    k = kernels.find_palette(x, table, used, np.empty(MOST, np.uint64), min(MOST, x.size // 2))
    if k > min(MOST, x.size // 2) or x.itemsize == 1:
        return None
    (indices,) = _parts(Palette(), x)
    return Plan(Palette(), {"indices": byte_plan(indices, level)})


def _split_level(n: int, dtype: str, level: int) -> int:
    """The fast level's small tables are for long frames; and float16's exponents alone, cut from 11 bits, would leave too much."""
    return DEFAULT_LEVEL if level == FAST and (dtype == "F16" or n < _FAST_WORDS) else level


def _table_bits_at(level: int, has_all_lanes: bool) -> int:
    return _TABLE_BITS[SMALL if level == DEFAULT_LEVEL and not has_all_lanes else level]


def _split(x: Array, seen: _Survey, dtype: str, level: int) -> Plan:
    lane_words = _LANE_WORDS[level]
    level = _split_level(x.size, dtype, level)
    table_bits = _table_bits_at(level, x.size >= VECTOR_WORDS)
    then = {"symbols": Plan(Rans(table_bits, _SAMPLE[level], lane_words))}
    if x.itemsize > 2 and (level > FAST or x.itemsize == 8):
        low = _low_plan(x, level)
        if low is not None:
            then["low"] = low
    low_bits = seen.cut(_LOW_BITS[dtype][level])
    if "low" not in then and seen.bits(low_bits) + _STREAM_BITS > 16 * x.size:
        return RAW
    return Plan(SplitFloat(low_bits), then)


def _low_plan(x: Array, level: int) -> Plan | None:
    """A plan for the low words of wide floats where a sample of their bytes is not random."""
    if x.itemsize == 4 and survey.random_below(x, _SAMPLE_WORDS[level]):
        return None
    sample = np.ascontiguousarray(x[:: x.size // _SAMPLE_WORDS[level] | 1])
    octets = sample.view(np.uint8).reshape(-1, x.itemsize)[:, : x.itemsize - 2]
    for k in range(octets.shape[1]):
        if 64 * 8 * _rans_bytes(octets[:, k], _byte_coder(SMALL)) < 63 * 8 * sample.size:
            return Plan(Planes(), {f"plane {k}": Plan(_byte_coder(level)) for k in (0, 1)})
    return None


def integer_plan(x: Array, level: int) -> Plan:
    """Narrower where the high bytes are zero, masked where most are zero, few values as a palette; else the cheaper of byte planes and zstd."""
    zeros = int(np.count_nonzero(x == 0))
    if 2 * zeros > x.size and x.size >= 64:
        return _masked(x, 0, None, level)
    every = int(np.bitwise_or.reduce(x))
    for kind in (6, 7, 8, 4, 5):
        width, narrow = WIDTHS[kind]
        if width == x.itemsize and every < 1 << (8 * narrow):
            inner = x.astype(f"<u{narrow}")
            return Plan(Widen(kind), {"narrow": integer_plan(inner, level) if narrow > 1 else byte_plan(inner, level)})
    palette = _palette(x, level)
    if palette is not None:
        return palette
    planes = _parts(Planes(), x)
    plans = [byte_plan(plane, level) for plane in planes]
    cost = sum(_byte_cost(plane, inner) for plane, inner in zip(planes, plans, strict=True))
    packed, zstd_level = _zstd_choice(x.view(np.uint8), cost, level)
    if packed < cost:
        return Plan(Zstd(zstd_level))
    return Plan(Planes(), {f"plane {k}": inner for k, inner in enumerate(plans)})


def byte_plan(x: Array, level: int) -> Plan:
    """The cheapest of raw, rans at order 0, and zstd."""
    if x.size == 0:
        return RAW
    if is_constant(x):
        return CONSTANT
    coder = _byte_coder(level)
    coded = _rans_bytes(x, coder)
    packed, zstd_level = _zstd_choice(x, coded, level)
    if x.size > _SHORT_BYTES:
        packed += packed * _ZSTD_SLOW[level] // 64
    if min(coded, packed) >= x.size:
        return RAW
    return Plan(Zstd(zstd_level)) if packed < coded else Plan(coder)


def _zstd_choice(x: Array, coded: int, level: int) -> tuple[int, int]:
    """The bytes that zstd would take, and its level; it is asked at full strength where it comes near what order 0 takes."""
    quick, strong = zstd_bytes(x, _QUICK.level), _zstd_level(x, level)
    if strong == _QUICK.level or quick - quick // _ZSTD_NEAR > coded:
        return quick, _QUICK.level
    return min((quick, _QUICK.level), (zstd_bytes(x, strong), strong))


def _byte_coder(level: int) -> Rans:
    return Rans(_BYTE_TABLE_BITS[level], _SAMPLE[level], _LANE_WORDS[level])


def _rans_bytes(x: Array, coder: Rans) -> int:
    """What rans would take, from as many words as its table is made from."""
    counts = np.zeros(256, np.int64)
    histogram(np.ascontiguousarray(x), counts, sample_step(x.size, coder.sample))
    bits = order0_bits(counts) * x.size // int(counts.sum())
    return (bits + _TABLE_SYMBOL_BITS * int(np.count_nonzero(counts)) + _STREAM_BITS + 7) // 8


def _byte_cost(x: Array, chosen: Plan) -> int:
    if isinstance(chosen.stage, Constant):
        return 1
    if isinstance(chosen.stage, Zstd):
        return zstd_bytes(x, chosen.stage.level)
    return _rans_bytes(x, chosen.stage) if isinstance(chosen.stage, Rans) else x.size


def _zstd_level(x: Array, level: int) -> int:
    """zstd's own level."""
    return _SHORT_LEVELS[level][x.nbytes > _SHORTEST_BYTES] if x.nbytes <= _SHORT_BYTES else _ZSTD_LEVEL[level]


def zstd_bytes(x: Array, level: int) -> int:
    """What zstd would take at a level of its own, from some samples where x is long."""
    stage = Zstd(level)
    if x.size <= _ZSTD_SAMPLES * _ZSTD_SAMPLE:
        return len(stage.encode(x, _NO_CONTEXT).payload)
    places = [x.size * (2 * i + 1) // (2 * _ZSTD_SAMPLES) - _ZSTD_SAMPLE // 2 for i in range(_ZSTD_SAMPLES)]
    found = sum(len(stage.encode(x[at : at + _ZSTD_SAMPLE], _NO_CONTEXT).payload) for at in places)
    return found * x.size // (_ZSTD_SAMPLES * _ZSTD_SAMPLE)


def _blocks(x: Array, name: str, level: int) -> Plan:
    """Fields of a block apart: scales as floats, quants and packed scales as bytes."""
    stage = Fields(Fields.option("fields", _BLOCK_FIELDS[name]))
    then = {}
    for part, data in zip(Fields.parts, _parts(stage, x), strict=False):
        if is_constant(data):
            then[part] = CONSTANT
        elif data.itemsize == 1:
            then[part] = byte_plan(data, level)
        else:
            then[part] = float_plan(data, "F16" if data.itemsize == 2 else "F32", level)
    return Plan(stage, then)


def _parts(stage: SplitFloat | Sparse | Palette | Planes | Fields, x: Array) -> tuple[Array, ...]:
    encoded: Encoded | None = stage.encode(x, _NO_CONTEXT)
    if encoded is None:
        raise AssertionError(f"{stage.name} was chosen for words that it does not apply to")
    return encoded.parts


_NO_CONTEXT = FrameContext(TensorSpec("", U8, ()), 0, 0)
