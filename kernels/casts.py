"""Numbers to bit patterns: rounding to nearest, ties to even, the same on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np

FLOATS = ("F32", "BF16", "F16")


def rounded(values: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """Bit patterns of float32 values, none of them a NaN, as the nearest of a dtype of FLOATS; what is too large becomes an infinity."""
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").view("<u2")
    bits = values.view("<u4")
    if dtype == "F32":
        return bits
    halves: np.ndarray[Any, Any] = ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype("<u2")
    return halves
