"""What a fit gets and what it gives: lossy tensors as the decoder will give them, and the plans that code exactly these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from modelcodec.stage import Plan
from modelcodec.types import Array, Loss, TensorSpec


@dataclass(frozen=True, slots=True)
class Weights:
    """A tensor of a source: its words are bit patterns of its dtype, row by row, and never to be changed."""

    spec: TensorSpec
    words: Array


@dataclass(frozen=True, slots=True)
class FittedTensor:
    """The words (bit patterns of the source's dtype) that decoding will give, and their plan, whose stages hold what was decided: indices, steps, masks."""

    words: Array
    plan: Plan
    loss: Loss


@dataclass(frozen=True, slots=True)
class Fitted:
    """Lossy tensors by name; all others stay as they are."""

    tensors: Mapping[str, FittedTensor] = field(default_factory=dict)


Fit = Callable[[Mapping[str, Weights]], Fitted]
"""A way to make tensors lossy; the methods are in `modelcodec.fit`."""

NOTHING_FITTED = Fitted()
