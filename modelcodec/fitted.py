"""What a fit gives: lossy tensors as the decoder will give them, and the plans that code exactly these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelcodec.stage import Plan
from modelcodec.types import Array, Loss


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


NOTHING_FITTED = Fitted()
