"""Which tree of stages fits the words of a frame: decided from counts and samples, in integers, so that every machine decides alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelcodec import scale_classes
from modelcodec.entropy import order0_bits
from modelcodec.kernels import planes as kernels
from modelcodec.kernels import survey
from modelcodec.stage import Encoded, FrameContext, Plan, Shared
from modelcodec.stages.class_rans import ClassRans
from modelcodec.stages.constant import Constant
from modelcodec.stages.fields import Fields
from modelcodec.stages.palette import MOST, Palette
from modelcodec.stages.planes import Planes
from modelcodec.stages.rans import VECTOR_WORDS, Rans
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
_SAMPLE = {FAST: 8, DEFAULT_LEVEL: 4, SMALL: 1}
"""A table is made from one in so many words, where there are many."""
_BYTE_TABLE_BITS = {FAST: 11, DEFAULT_LEVEL: 12, SMALL: 12}
_ZSTD_LEVEL = {FAST: 1, DEFAULT_LEVEL: 5, SMALL: 19}

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

_SAMPLE_WORDS = 1 << 15
_FAST_WORDS = 1 << 17
_ZSTD_SAMPLE = 1 << 14
_SHORT_BYTES = 1 << 15
_REPEAT_SAMPLE = 1 << 13
_QUICK = Zstd(1)
_ZSTD_FLATTERY = 32
"""A short sample's tables fit it better than a whole frame's will fit the frame: so much is added to what it shows."""
_SPARSE_SHARE = 32
"""Zeros are masked from one in this many words on: below that they cost little as symbols."""
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
        return float_plan(x, _FLOATS[name], level)
    if name in _BLOCK_FIELDS:
        return _blocks(x, name, level)
    return integer_plan(x, level) if x.itemsize > 1 else byte_plan(x, level)


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """A plan for each frame of a group, and the part that they share, if any."""

    plans: tuple[Plan, ...]
    shared: Shared | None


def share(spec: TensorSpec, x: Array, frame_words: int, plans: tuple[Plan, ...], level: int) -> PlannedGroup:
    """Scale classes for a group of frames, at the smallest level, where they take less than each frame's own table."""
    dtype = _FLOATS.get(spec.dtype.name)
    columns = spec.row_words
    if level != SMALL or dtype not in _EXPONENT_AT or len(spec.shape) < 2 or frame_words % max(columns, 1):
        return PlannedGroup(plans, None)
    own = 0
    for first, plan in zip(range(0, x.size, frame_words), plans, strict=True):
        if isinstance(plan.stage, SplitFloat):
            cut = plan.stage.low_bits
            own += _Survey.of(x[first : first + frame_words], (cut,)).bits(cut)
    if own == 0:
        return PlannedGroup(plans, None)
    found = scale_classes.find(x, columns, _EXPONENT_AT[dtype], _LOW_BITS[dtype][SMALL])
    if found is None or found.bits >= own:
        return PlannedGroup(plans, None)
    return PlannedGroup(tuple(_with_classes(plan, found.low_bits) for plan in plans), Shared(found.classes.write(), found.classes))


def _with_classes(plan: Plan, low_bits: int) -> Plan:
    return Plan(SplitFloat(low_bits), {**plan.then, "symbols": Plan(ClassRans())}) if isinstance(plan.stage, SplitFloat) else plan


def is_constant(x: Array) -> bool:
    return bool(x[0] == x[-1] and x[x.size // 2] == x[0] and (x == x[0]).all())


@dataclass(frozen=True, slots=True)
class _Survey:
    """What a sample of about 32 Ki words, spread over x, shows: its size, its zeros, the or of its words, and counts of its symbols at the finest cut."""

    n: int
    n_sampled: int
    zeros: int
    every: int
    finest: int
    counts: Array

    @classmethod
    def of(cls, x: Array, choices: tuple[int, ...]) -> _Survey:
        step = x.size // _SAMPLE_WORDS | 1  # odd, so that it is no multiple of a row
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


def float_plan(x: Array, dtype: str, level: int) -> Plan:
    """Zeros apart, narrower floats narrow, few values as a palette; else sign, exponent and mantissa apart."""
    seen = _Survey.of(x, _LOW_BITS[dtype][_split_level(x, dtype, level)])
    if seen.zeros * _SPARSE_SHARE > seen.n_sampled and x.size >= 64:
        return _masked(x, 0, dtype, level)
    for kind, low_bits, narrow_dtype in _WIDE_FLOATS.get(dtype, ()):
        if not seen.every & ((1 << low_bits) - 1):
            narrow = _narrowed(x, kind)
            if narrow is not None:
                return Plan(Widen(kind), {"narrow": float_plan(narrow, narrow_dtype, level)})
    palette = _palette(x, level)
    if palette is not None:
        return palette
    split = _split(x, seen, dtype, level)
    bits = seen.bits(split.stage.low_bits) if isinstance(split.stage, SplitFloat) else 8 * x.nbytes
    if level > FAST and _repeats(x, bits):
        return Plan(Zstd(_ZSTD_LEVEL[level]))
    return split


def _repeats(x: Array, bits: int) -> bool:
    """Whether rows come again, as those of an embedding that were never trained: zstd then beats by far the `bits` that the words take one by one."""
    octets = x.view(np.uint8)
    if octets.size < 4 * _REPEAT_SAMPLE:
        return False
    places = (octets.size // 4, octets.size // 4 * 3)
    found = sum(len(_QUICK.encode(octets[at : at + _REPEAT_SAMPLE], _NO_CONTEXT).payload) for at in places)
    return 8 * found * octets.size * 16 < bits * 2 * _REPEAT_SAMPLE * 15


def _narrowed(x: Array, kind: int) -> Array | None:
    encoded = Widen(kind).encode(x, _NO_CONTEXT)
    return None if encoded is None else encoded.parts[0]


def _masked(x: Array, fill: int, dtype: str | None, level: int) -> Plan:
    mask, values = _parts(Sparse(fill), x)
    inner = RAW
    if values.size:
        negative_zero = 1 << (8 * x.itemsize - 1)
        if is_constant(values):
            inner = CONSTANT
        elif dtype is not None and fill == 0 and int(np.count_nonzero(values == x.dtype.type(negative_zero))) * _SPARSE_SHARE > values.size:
            inner = _masked(values, negative_zero, dtype, level)
        elif dtype is not None:
            inner = _palette(values, level) or _split(values, _Survey.of(values, _LOW_BITS[dtype][_split_level(values, dtype, level)]), dtype, level)
        else:
            inner = integer_plan(values, level) if x.itemsize > 1 else byte_plan(values, level)
    return Plan(Sparse(fill), {"mask": byte_plan(mask, level), "values": inner})


def _palette(x: Array, level: int) -> Plan | None:
    """A palette, where x has at most 256 different words and enough words to pay for it."""
    table, used, _ = kernels.scratch()
    k = kernels.find_palette(x, table, used, np.empty(MOST, np.uint64), min(MOST, x.size // 2))
    if k > min(MOST, x.size // 2) or x.itemsize == 1:
        return None
    (indices,) = _parts(Palette(), x)
    return Plan(Palette(), {"indices": byte_plan(indices, level)})


def _split_level(x: Array, dtype: str, level: int) -> int:
    """The fast level's small tables are for long frames; and float16's exponents alone, cut from 11 bits, would leave too much."""
    return DEFAULT_LEVEL if level == FAST and (dtype == "F16" or x.size < _FAST_WORDS) else level


def _split(x: Array, seen: _Survey, dtype: str, level: int) -> Plan:
    level = _split_level(x, dtype, level)
    table_bits = _TABLE_BITS[SMALL if level == DEFAULT_LEVEL and x.size < VECTOR_WORDS else level]
    then = {"symbols": Plan(Rans(table_bits, _SAMPLE[level]))}
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
    sample = np.ascontiguousarray(x[:: x.size // _SAMPLE_WORDS | 1])
    octets = sample.view(np.uint8).reshape(-1, x.itemsize)[:, : x.itemsize - 2]
    for k in range(octets.shape[1]):
        if 64 * 8 * _rans_bytes(octets[:, k]) < 63 * 8 * sample.size:
            return Plan(Planes(), {f"plane {k}": Plan(Rans(_BYTE_TABLE_BITS[level])) for k in (0, 1)})
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
    if zstd_bytes(x.view(np.uint8), level) < cost:
        return Plan(Zstd(_zstd_level(x, level)))
    return Plan(Planes(), {f"plane {k}": inner for k, inner in enumerate(plans)})


def byte_plan(x: Array, level: int) -> Plan:
    """The cheapest of raw, rans at order 0, and zstd."""
    if x.size == 0:
        return RAW
    if is_constant(x):
        return CONSTANT
    coded = _rans_bytes(x)
    packed = zstd_bytes(x, level)
    if min(coded, packed) >= x.size:
        return RAW
    return Plan(Zstd(_zstd_level(x, level))) if packed < coded else Plan(Rans(_BYTE_TABLE_BITS[level]))


def _rans_bytes(x: Array) -> int:
    counts = np.bincount(x, minlength=256)
    return (order0_bits(counts) + _TABLE_SYMBOL_BITS * int(np.count_nonzero(counts)) + _STREAM_BITS + 7) // 8


def _byte_cost(x: Array, chosen: Plan) -> int:
    if isinstance(chosen.stage, Constant):
        return 1
    if isinstance(chosen.stage, Raw):
        return x.size
    return _rans_bytes(x) if isinstance(chosen.stage, Rans) else zstd_bytes(x, SMALL)


def _zstd_level(x: Array, level: int) -> int:
    """zstd's own level: the highest for headers and the like, which are short, and read once."""
    return _ZSTD_LEVEL[SMALL] if level > FAST and x.nbytes <= _SHORT_BYTES else _ZSTD_LEVEL[level]


def zstd_bytes(x: Array, level: int) -> int:
    """What zstd would take, from two samples where x is long."""
    stage = Zstd(_zstd_level(x, level))
    if x.size <= 4 * _ZSTD_SAMPLE:
        return len(stage.encode(x, _NO_CONTEXT).payload)
    places = (x.size // 4, x.size // 4 * 3)
    sampled = sum(len(stage.encode(x[at : at + _ZSTD_SAMPLE], _NO_CONTEXT).payload) for at in places) * x.size // (2 * _ZSTD_SAMPLE)
    return sampled + sampled // _ZSTD_FLATTERY


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


def _parts(stage: Sparse | Palette | Planes | Fields, x: Array) -> tuple[Array, ...]:
    encoded: Encoded | None = stage.encode(x, _NO_CONTEXT)
    if encoded is None:
        raise AssertionError(f"{stage.name} was chosen for words that it does not apply to")
    return encoded.parts


_NO_CONTEXT = FrameContext(TensorSpec("", U8, ()), 0, 0)
