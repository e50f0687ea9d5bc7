"""Frames that are stored as they are (docs/format.md, section 3), several in one call: copied, and digested while they are in cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.types import uint64

from modelcodec.kernels.jit import kernel
from modelcodec.kernels.memory import copy, scratch
from modelcodec.kernels.xxh3 import WORK_BYTES, xxh3_64

Array = np.ndarray[Any, Any]


@kernel
def _copy(rows, digests, work):
    for i in range(len(rows)):
        copy(rows[i, 1], rows[i, 0], rows[i, 2])
        digests[i] = xxh3_64(rows[i, 1], rows[i, 2], uint64(0), work)


def copied(rows: Array) -> Array:
    """Copy bytes and digest the copies: their digests (u8).

    rows: i8[:, 3], each the address of bytes (untrusted), the address of their copy, and how many they are: all there, which the caller has proved.
    """
    digests = np.empty(len(rows), np.uint64)
    _copy(rows, digests, scratch(WORK_BYTES))
    return digests
