"""What errors of weights do to the mean of a layer's outputs, taken up by the bias or the running mean that follows, at no bits (DFQ, arXiv 1906.04721)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from modelcodec import planner
from modelcodec.fit.calibration import Bias
from modelcodec.fitted import FittedTensor, Weights, values_of
from modelcodec.kernels.casts import rounded

Floats = NDArray[np.float64]


def taker(tensors: Mapping[str, Weights], bias: Bias | None, rows: int) -> Weights | None:
    """The vector that takes up a layer's mean errors, where it is there and has one number a row."""
    found = None if bias is None else tensors.get(bias.tensor)
    return found if found is not None and found.spec.shape == (rows,) else None


def corrected(vector: Weights, bias: Bias, mean_errors: Floats) -> FittedTensor:
    """The vector that makes up for mean errors of the outputs."""
    return moved(vector, vector.values() + bias.sign * mean_errors)


def moved(weights: Weights, values: Floats) -> FittedTensor:
    """A tensor with other numbers, coded without further loss; places that have no finite number, or would get none, stay."""
    dtype = weights.spec.dtype.name
    with np.errstate(over="ignore", invalid="ignore"):
        words = rounded(values.reshape(-1).astype(np.float32), dtype)
    words = np.where(np.isfinite(weights.values()) & np.isfinite(values_of(words, dtype)), words, weights.words)
    return weights.fitted(words, planner.plan(weights.spec, words, planner.SMALL))
