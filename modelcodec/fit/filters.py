"""Pruning of whole filters (source: Li et al., arXiv 1608.08710, with squares in place of magnitudes)."""

from __future__ import annotations

from dataclasses import dataclass

from modelcodec.fit.blocks import Blocks
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit
from modelcodec.fit.magnitude import check_share
from modelcodec.fitted import FittedTensor, Weights


@dataclass(frozen=True, slots=True)
class Filters(Fit):
    """A `share` of each tensor's rows become zero: those with the lowest sum of scores. Shapes stay, so that every loader still takes the tensor."""

    share: float

    def __post_init__(self) -> None:
        check_share("filters", self.share)

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor:
        return Blocks(self.share, 1, weights.spec.row_words).fit(weights, data)
