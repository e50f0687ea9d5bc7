"""Views on storages: elements that lie in memory in steps of their own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelcodec.errors import LimitExceeded
from modelcodec.limits import LIMITS
from modelcodec.types import Array, TensorSpec


def is_row_major(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether elements lie one after the other, row by row; the stride of an axis of length 1 means nothing."""
    step = 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True


def check_repetition(spec: TensorSpec, n_storage: int, where: str) -> None:
    """Raises LimitExceeded for a view that stands for far more bytes than the `n_storage` that its storage has."""
    if spec.n_bytes > max(n_storage, LIMITS.view_bytes):
        raise LimitExceeded(f"{where}: {spec.name} repeats its storage up to {spec.n_bytes} bytes, {LIMITS.view_bytes} are allowed; read the storage")


def gathered(start: Array, spec: TensorSpec, strides: Sequence[int]) -> Array:
    """A view's bytes, row after row, from the bytes of its storage beginning with its first element, where it is known to lie. Copied where it has gaps."""
    if not spec.n_bytes:
        return start[:0]
    size = spec.dtype.bits // 8
    # Untrusted: the stride of an axis of length 1 means nothing and may be anything.
    steps = [stride * size if n > 1 else 0 for n, stride in zip(spec.shape, strides, strict=True)]
    elements = np.lib.stride_tricks.as_strided(start[:size].view(f"V{size}"), spec.shape, steps, writeable=start.flags.writeable)
    return np.ascontiguousarray(elements).reshape(-1).view(np.uint8)
