"""N:M sparsity: of every m weights in a row n stay (source: Mishra et al., arXiv 2104.08378)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit
from modelcodec.fit.magnitude import masked, scores
from modelcodec.fitted import FittedTensor, Weights


@dataclass(frozen=True, slots=True)
class NM(Fit):
    """The `n` weights of the largest score of every `m` in a row stay; weights after the last whole m of a row stay, too.

    `channels`: the m are input channels at one place of a kernel, as sparse hardware multiplies them; else they follow each other in memory, where a mask takes
    no more than its entropy (2:4: 0.65 bits a weight, through `channels` of kernels up to 1).
    """

    n: int
    m: int
    channels: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.m:
            raise BadRecipe(f"n_of_m: {self.n} of {self.m}; n is 1 to m")

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor:
        shape, columns = weights.spec.shape, weights.spec.row_words
        n_rows = weights.words.size // columns
        costs = scores(weights, data).reshape(n_rows, shape[1] if self.channels and len(shape) > 2 else columns, -1)
        keep = np.ones(costs.shape, bool)
        whole = costs.shape[1] // self.m * self.m
        blocks = costs[:, :whole].reshape(n_rows, -1, self.m, costs.shape[2])
        ranks = (-blocks).argsort(axis=2, kind="stable").argsort(axis=2, kind="stable")
        keep[:, :whole] = ((ranks < self.n) | np.isinf(blocks)).reshape(n_rows, whole, costs.shape[2])
        return masked(weights, keep.reshape(-1))
