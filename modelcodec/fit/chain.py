"""What a fit is, and fits one after the other: `prune(0.5) | kmeans(16)`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from modelcodec import frame as frames
from modelcodec.fit.calibration import Calibration
from modelcodec.fitted import DTYPES, Fitted, FittedTensor, Weights
from modelcodec.formats.container_layout import full_frame_words
from modelcodec.stage import FrameContext, Plan
from modelcodec.types import Array, TensorSpec

_SAVED = 64

Fitting = Callable[[Mapping[str, Weights], Calibration | None], Fitted]


class Fit(ABC):
    """Decides what decoding shall give. Tensors that hold no floats of DTYPES, and those that a fit can do nothing for, stay as they are.

    Every fit keeps NaN and infinities exactly, and, in tensors that hold many, zeros: a mask that an earlier fit or a training made stays.
    """

    def __call__(self, tensors: Mapping[str, Weights], data: Calibration | None = None) -> Fitted:
        found = {name: self.fit(weights, data) for name, weights in tensors.items() if holds_weights(weights.spec)}
        return Fitted({name: fitted for name, fitted in found.items() if fitted is not None})

    @abstractmethod
    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        """One tensor; None leaves it as it is."""

    def __or__(self, then: Fitting) -> Chain:
        return Chain(self, then)

    def __ror__(self, first: Fitting) -> Chain:
        return Chain(first, self)


@dataclass(frozen=True, slots=True)
class Chain(Fit):
    """`then` sees the words that `first` chose. Losses are against the original; a tensor's plan is the cheaper of both fits' for the words that came out."""

    first: Fitting
    then: Fitting

    def __call__(self, tensors: Mapping[str, Weights], data: Calibration | None = None) -> Fitted:
        before = self.first(tensors, data).tensors
        seen = {name: replace(weights, words=before[name].words) if name in before else weights for name, weights in tensors.items()}
        after = self.then(seen, data).tensors
        return Fitted({name: _both(tensors[name], before.get(name), after.get(name)) for name in tensors if name in before or name in after})

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        return self({weights.spec.name: weights}, data).tensors.get(weights.spec.name)


def _both(weights: Weights, before: FittedTensor | None, after: FittedTensor | None) -> FittedTensor:
    last = after or before
    assert last is not None
    plans = [fitted.plan for fitted in (after, before) if fitted is not None]
    return weights.fitted(last.words, cheapest(weights.spec, last.words, plans))


def holds_weights(spec: TensorSpec) -> bool:
    """Whether a tensor can be fitted."""
    return spec.dtype.name in DTYPES and len(spec.shape) > 0 and spec.n_words > 0


def is_fitted(spec: TensorSpec) -> bool:
    """Whether a tensor is one to be fitted, if nobody says otherwise: a matrix or a kernel."""
    return holds_weights(spec) and len(spec.shape) > 1


def cheapest(spec: TensorSpec, words: Array, plans: list[Plan]) -> Plan:
    """The plan that takes the fewest bytes for the first frame; a later one only where it saves one part in `_SAVED`, since earlier ones decode faster."""
    x = words[: full_frame_words(spec.dtype, spec.row_words)]
    context = FrameContext(spec, 0, x.size)
    chosen, least = plans[0], 0
    for plan in plans if len(plans) > 1 else ():
        size = len(frames.encode(x, plan, context, 0).data)
        if not least or size + least // _SAVED < least:
            chosen, least = plan, size
    return chosen
