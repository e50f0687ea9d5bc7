"""What a fit gets and what it gives: lossy tensors as the decoder will give them, and the plans that code exactly these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from modelcodec.stage import Plan
from modelcodec.types import Array, Loss, TensorSpec

DTYPES = ("F32", "BF16", "F16")
"""Dtypes of tensors that a fit may have."""


@dataclass(frozen=True, slots=True)
class FittedTensor:
    """The words (bit patterns of the source's dtype) that decoding will give, and their plan, whose stages hold what was decided: indices, steps, masks."""

    words: Array
    plan: Plan
    loss: Loss


@dataclass(frozen=True, slots=True)
class Weights:
    """A tensor of a source, of a dtype of DTYPES: its words are bit patterns of its dtype, row by row, and never to be changed."""

    spec: TensorSpec
    words: Array

    def values(self) -> NDArray[np.float32]:
        """The words as numbers, in one dimension; NaN and infinities stay."""
        return values_of(self.words, self.spec.dtype.name)

    def fitted(self, words: Array, plan: Plan) -> FittedTensor:
        """What decoding gives for this tensor, and how far that is from it."""
        return FittedTensor(words, plan, self.loss(words))

    def loss(self, words: Array) -> Loss:
        """Errors of words that stand for this tensor's; places with a NaN or an infinity are left out, as they must be exact."""
        values = self.values().astype(np.float64)
        finite = np.isfinite(values)
        wanted = values[finite]
        error = wanted - values_of(words, self.spec.dtype.name)[finite]
        square = float(wanted @ wanted)
        return Loss(float(np.abs(error).max(initial=0.0)), float(error @ error) / square if square else 0.0)


def values_of(words: Array, dtype: str) -> NDArray[np.float32]:
    """Float32 numbers of bit patterns of a dtype of DTYPES."""
    if dtype == "F32":
        return words.view(np.float32)
    if dtype == "F16":
        return words.view(np.float16).astype(np.float32)
    if dtype == "BF16":
        return (words.astype(np.uint32) << 16).view(np.float32)
    raise ValueError(f"{dtype} holds no weights that can be rounded")


@dataclass(frozen=True, slots=True)
class Fitted:
    """Lossy tensors by name; all others stay as they are."""

    tensors: Mapping[str, FittedTensor] = field(default_factory=dict)


Fit = Callable[[Mapping[str, Weights]], Fitted]
"""A way to make tensors lossy; the methods are in `modelcodec.fit`."""

NOTHING_FITTED = Fitted()
