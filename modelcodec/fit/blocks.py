"""Pruning of small blocks of a matrix (source: Gray, Radford & Kingma, "GPU kernels for block-sparse weights", 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit
from modelcodec.fit.magnitude import check_share, keep_largest, masked, scores
from modelcodec.fitted import FittedTensor, Weights


@dataclass(frozen=True, slots=True)
class Blocks(Fit):
    """A `share` of the blocks of `rows` x `columns` weights become zero: those with the lowest sum of scores. At the edges blocks are cut off and their sums
    count in proportion. A kernel's columns are the product of all dimensions but the first."""

    share: float
    rows: int = 1
    columns: int = 8

    def __post_init__(self) -> None:
        check_share("blocks", self.share)
        if self.rows < 1 or self.columns < 1:
            raise BadRecipe(f"blocks: {self.rows} x {self.columns}; blocks have at least one row and one column")

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor:
        costs = scores(weights, data).reshape(-1, weights.spec.row_words)
        rows, columns = np.arange(costs.shape[0]) // self.rows, np.arange(costs.shape[1]) // self.columns
        starts = np.arange(0, costs.shape[0], self.rows), np.arange(0, costs.shape[1], self.columns)
        sums = np.add.reduceat(np.add.reduceat(costs, starts[0], axis=0), starts[1], axis=1)
        means = sums / np.outer(np.bincount(rows), np.bincount(columns))
        keep = keep_largest(means.reshape(-1), self.share).reshape(means.shape)
        return masked(weights, keep[rows][:, columns].reshape(-1))
