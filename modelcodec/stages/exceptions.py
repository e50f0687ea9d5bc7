"""Words that do not come out of a stage's arithmetic, kept with their places at the end of its payload."""

from __future__ import annotations

import numpy as np

from modelcodec.errors import CorruptFile
from modelcodec.types import Array

PLACE_BYTES = 4
_MASK_SHARE = 64
"""Zeros are masked where one word in so many is a zero that the arithmetic does not give."""


def mask(x: Array, found: Array) -> tuple[Array | None, Array]:
    """Bits (u1) that are cleared for the zeros of x, where it has many that `found` has not, else None; and where x differs beyond that."""
    if int(np.count_nonzero((x == 0) & (found != 0))) * _MASK_SHARE <= x.size:
        return None, x != found
    return np.packbits(x != 0, bitorder="little"), (x != found) & (x != 0)


def put_zeros(bits: Array, out: Array, stage: str) -> None:
    """Make words of `out` zero as a mask's untrusted bits (u1) say. Raises CorruptFile."""
    kept = np.unpackbits(bits, bitorder="little")
    if kept[out.size :].any():
        raise CorruptFile(f"{stage}: the mask's padding is not zero")
    out[kept[: out.size] == 0] = 0


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
