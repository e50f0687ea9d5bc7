"""What a lossy peer makes of a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Rounded:
    """The matrix as it comes back (float32), the bytes that it took, and the seconds that reading it back took."""

    matrix: NDArray[np.float32]
    n_bytes: int
    seconds: float
