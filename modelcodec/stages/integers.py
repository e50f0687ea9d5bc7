"""Signed integers as a stage keeps them, in a part or in a shared one: folded, in one byte each, or in two where one of them needs it."""

from __future__ import annotations

import numpy as np

from modelcodec.types import Array
from modelcodec.wire import Reader


def folded(integers: Array) -> Array:
    """Integers (i4) as u1 or u2, in one dimension: 0, -1, 1, -2, 2 and so on become 0, 1, 2, 3, 4."""
    wide = ((integers << 1) ^ (integers >> 31)).view(np.uint32).reshape(-1)
    return wide.astype("<u1" if wide.max(initial=0) < 256 else "<u2")


def unfolded(numbers: Array) -> Array:
    """The reverse (i4), of any untrusted u1 or u2."""
    wide = numbers.astype(np.int32)
    integers: Array = (wide >> 1) ^ -(wide & 1)
    return integers


def octets(numbers: Array) -> bytes:
    """Folded integers as bytes: of wide ones all low bytes, then all high bytes."""
    return numbers.tobytes() if numbers.itemsize == 1 else (numbers & 255).astype(np.uint8).tobytes() + (numbers >> 8).astype(np.uint8).tobytes()


def read_octets(reader: Reader, n: int, width: int) -> Array:
    """n integers (i4) out of `width` untrusted bytes each, 1 or 2. Raises CorruptFile."""
    planes = np.frombuffer(reader.take(n * width), np.uint8).reshape(width, -1).astype("<u2")
    return unfolded(planes[0] | planes[1] << 8 if width == 2 else planes[0])
