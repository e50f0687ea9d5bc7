"""Quadratic problems by conjugate gradients, for variables some of which are held at zero (source: Hestenes & Stiefel, 1952)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TINY = 1e-18
"""Relative squared residual at which it is solved."""


def solve_on(keep: NDArray[np.bool_], apply: Callable[[Floats], Floats], wanted: Floats, start: Floats, rounds: int) -> Floats:
    """Near x with x = 0 off `keep` and apply(x) = wanted on it; `apply` is symmetric and positive. Rows (along the last axis) are problems of their own."""
    x = np.where(keep, start, 0.0)
    residual = np.where(keep, wanted - apply(x), 0.0)
    direction, size = residual, _squares(residual)
    enough = _TINY * _squares(np.where(keep, wanted, 0.0))
    for _ in range(rounds):
        image = np.where(keep, apply(direction), 0.0)
        curvature = (direction * image).sum(axis=-1, keepdims=True)
        going = (size > enough) & (curvature > 0)
        if not going.any():
            break
        step = np.where(going, size / np.where(going, curvature, 1.0), 0.0)
        x = x + step * direction
        residual = residual - step * image
        last, size = size, _squares(residual)
        direction = residual + np.where(going, size / np.where(going, last, 1.0), 0.0) * direction
    return x


def _squares(x: Floats) -> Floats:
    total: Floats = (x * x).sum(axis=-1, keepdims=True)
    return total
