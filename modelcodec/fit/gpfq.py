"""GPFQ, greedy path following: each weight takes the place that brings the sum so far of a layer's outputs back to what it was (arXiv 2010.15979, 2201.11113).

The inputs' second moments say all that the greedy step needs. Obs, which also knows what later weights will make up for, gives less loss at the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelcodec.fit.obs import Floats, Obs
from modelcodec.kernels.feedback_trellis import Curvature


@dataclass(frozen=True, slots=True)
class Gpfq(Obs):
    """As Obs, with the greedy feedback."""

    def factor(self, matrix: Floats) -> Curvature:
        return Curvature.greedy(matrix)
