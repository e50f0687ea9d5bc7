"""The coarsest grid at which a network's score, as the user measures it, falls by no more than allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from modelcodec.errors import BadRecipe
from modelcodec.fit.chain import Fitting
from modelcodec.fit.rules import is_usual
from modelcodec.fitted import Fitted, Weights
from modelcodec.tensor_file import numpy_dtype

_TRIALS = 10
_FINEST, _COARSEST = 2.0**-8, 4.0
"""Steps, in root mean squares of the weights that are usually fitted, between which the answer is sought."""

Score = Callable[[Mapping[str, np.ndarray]], float]
"""From all tensors by name, as numpy arrays, to a number; larger is better."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Bisects the step of `on_grid(step)` for the largest at which `score` falls by at most `most` against the original tensors.

    The score is asked for once for the original and up to 10 times more. What is returned was measured: the coarsest that held.
    """

    most: float
    score: Score
    on_grid: Callable[[float], Fitting]

    def __call__(self, tensors: Mapping[str, Weights], data: object = None) -> Fitted:
        allowed = self.score(_arrays(tensors, Fitted())) - self.most
        scale = _scale(tensors)
        low, high, best = _FINEST, _COARSEST, None
        for _ in range(_TRIALS):
            middle = math.sqrt(low * high)
            fitted = self.on_grid(scale * middle)(tensors, None)
            if self.score(_arrays(tensors, fitted)) >= allowed:
                low, best = middle, fitted
            else:
                high = middle
        if best is None:
            raise BadRecipe(f"the score falls by more than {self.most} even with fine steps; allow more, or keep the file lossless")
        return best


def _scale(tensors: Mapping[str, Weights]) -> float:
    """Root mean square of the weights that are usually fitted."""
    values = [weights.values().astype(np.float64) for weights in tensors.values() if is_usual(weights.spec)]
    finite = [part[np.isfinite(part)] for part in values]
    n = sum(part.size for part in finite)
    return math.sqrt(sum(float(part @ part) for part in finite) / n) or 1.0 if n else 1.0


def _arrays(tensors: Mapping[str, Weights], fitted: Fitted) -> dict[str, np.ndarray]:
    arrays = {}
    for name, weights in tensors.items():
        words = fitted.tensors[name].words if name in fitted.tensors else weights.words
        arrays[name] = words.copy().view(numpy_dtype(weights.spec.dtype)).reshape(weights.spec.shape)
    return arrays
