"""What errors of weights do to the mean of a layer's outputs, taken up by the bias or the running mean that follows, at no bits (DFQ, arXiv 1906.04721)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from modelcodec.fit.calibration import Bias
from modelcodec.fitted import FittedTensor, Weights
from modelcodec.stage import Plan
from modelcodec.stages.raw import Raw
from modelcodec.types import Array

Floats = NDArray[np.float64]


def taker(tensors: Mapping[str, Weights], bias: Bias | None, rows: int) -> Weights | None:
    """The vector that takes up a layer's mean errors, where it is there and has one number a row."""
    found = None if bias is None else tensors.get(bias.tensor)
    return found if found is not None and found.spec.shape == (rows,) else None


def corrected(vector: Weights, bias: Bias, mean_errors: Floats) -> FittedTensor:
    """The vector that makes up for mean errors of the outputs; what is not finite in it stays."""
    values = vector.values().astype(np.float64) + bias.sign * mean_errors
    words = np.where(np.isfinite(values), _words(values, vector.spec.dtype.name), vector.words)
    return vector.fitted(words, Plan(Raw()))


def _words(values: Floats, dtype: str) -> Array:
    """Bit patterns, to nearest."""
    if dtype == "F16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    if dtype == "F32":
        return bits
    return ((bits + (0x7FFF + (bits >> 16 & 1))) >> 16).astype(np.uint16)
