"""Floats with fewer mantissa bits: the near-lossless way to keep weights in memory.

source: NeuZip (arXiv 2410.20650) keeps the leading mantissa bits of each weight. Here they are rounded to nearest, and what is kept is coded, not packed.
"""

from __future__ import annotations

import numpy as np

from modelcodec.errors import BadRecipe
from modelcodec.planner import DEFAULT_LEVEL, FAST, float_plan
from modelcodec.stage import Plan
from modelcodec.stages.rans import Rans
from modelcodec.stages.split_float import SplitFloat
from modelcodec.stages.widen import BFLOAT16, Widen
from modelcodec.stages.zstd import Zstd
from modelcodec.types import Array

MANTISSA_BITS = {"BF16": 7, "F16": 10, "F32": 23}
_CUT = {"BF16": 5, "F16": 8}
"""Mantissa bits below this one stay out of the symbols: tables with more symbols cost more than zstd leaves of the zeros."""
_TABLE_BITS, _SAMPLE = 11, 4


def check_mantissa_bits(bits: int) -> None:
    """Raises BadRecipe for a number that no dtype can be rounded to."""
    most = max(MANTISSA_BITS.values()) - 1
    if not 0 <= bits <= most:
        raise BadRecipe(f"mantissa_bits is {bits}, 0 to {most} are possible")


def rounds(dtype: str, bits: int) -> bool:
    """Whether words of a dtype have more mantissa bits than that."""
    return MANTISSA_BITS.get(dtype, 0) > bits


def round_mantissa(x: Array, dtype: str, bits: int) -> Array:
    """The words with their `bits` top mantissa bits, rounded to nearest, ties to even; the others are zero.

    Infinities and NaNs stay as they are. What would round up to infinity is cut off instead, so that finite weights stay finite.
    """
    drop = MANTISSA_BITS[dtype] - bits
    one = x.dtype.type(1)
    infinity = x.dtype.type(((one << (8 * x.itemsize - 1 - MANTISSA_BITS[dtype])) - 1) << MANTISSA_BITS[dtype])
    keep = ~x.dtype.type((one << drop) - 1)
    rounded = (x + (x >> drop & one) + x.dtype.type((one << (drop - 1)) - 1)) & keep
    special = x & infinity == infinity
    rounded = np.where(rounded & infinity == infinity, x & keep, rounded)
    return np.where(special, x, rounded)


def rounded_plan(x: Array, dtype: str, bits: int) -> Plan:
    """A plan for words that were rounded: their zeros take next to nothing."""
    if dtype == "F32" and bits <= MANTISSA_BITS["BF16"]:
        return Plan(Widen(BFLOAT16), {"narrow": rounded_plan((x >> np.uint32(16)).astype(np.uint16), "BF16", bits)})
    if dtype == "F32":
        return float_plan(x, dtype, DEFAULT_LEVEL)
    if bits == 0:
        return float_plan(x, dtype, FAST)  # few different words: a palette
    cut = max(MANTISSA_BITS[dtype] - bits, _CUT[dtype])
    return Plan(SplitFloat(cut), {"symbols": Plan(Rans(_TABLE_BITS, _SAMPLE)), "rest": Plan(Zstd(1))})
