"""Kernel quantization: whole kernels out of a codebook, whose numbers are quantized themselves (source: Yu et al., "Kernel Quantization for Efficient Network
Compression", arXiv 2003.05148, its abstract; there with training)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit
from modelcodec.fit.kmeans import Kept, check_bound, importance_of, plan_of, vector_words, within
from modelcodec.fitted import FittedTensor, Weights
from modelcodec.stages.codebook import MOST_DIMENSION, MOST_ENTRIES


@dataclass(frozen=True, slots=True)
class KernelVQ(Fit):
    """At most `k` different kernels a tensor, made of at most 2^`bits` different numbers; tensors without kernels of two weights or more stay as they are.

    Kernels in which a weight would be off by more than `max_error` keep that weight. data: importance or input moments, if any, weigh the squared error.
    """

    k: int
    bits: int = 6
    max_error: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MOST_ENTRIES or not 0 <= self.bits <= 16:
            raise BadRecipe(f"kernel_vq: k = {self.k}, bits = {self.bits}; up to {MOST_ENTRIES} and 16 are possible")
        check_bound("kernel_vq", self.max_error)

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        size = math.prod(weights.spec.shape[2:])
        if not 1 < size <= MOST_DIMENSION:
            return None
        importance = importance_of(weights, data)
        words = vector_words(weights, Kept.of(weights), importance, size, self.k, self.seed, self.bits)
        words = within(weights, words, self.max_error)
        plan = plan_of(weights, words, size)
        return None if plan is None else weights.fitted(words, plan)
