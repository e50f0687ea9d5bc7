"""Words that do not come out of a stage's arithmetic, kept with their places at the end of its payload."""

from __future__ import annotations

import numpy as np

from modelcodec.errors import CorruptFile
from modelcodec.types import Array

PLACE_BYTES = 4


def write(x: Array, differs: Array) -> bytes:
    """Places (u4, ascending), then words, of x where it differs."""
    return np.flatnonzero(differs).astype("<u4").tobytes() + x[differs].tobytes()


def put(kept: Array, n: int, out: Array, stage: str) -> None:
    """Put n untrusted exceptions (u1) into `out`. Raises CorruptFile."""
    if not n:
        return
    places = np.frombuffer(kept[: PLACE_BYTES * n].tobytes(), "<u4")
    if places[-1] >= out.size or (np.diff(places.astype(np.int64)) <= 0).any():
        raise CorruptFile(f"{stage}: places of exceptions are out of order or out of range")
    out[places] = np.frombuffer(kept[PLACE_BYTES * n :].tobytes(), out.dtype)
