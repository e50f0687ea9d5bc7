"""Training as it is without the codec: what a method's result is to be compared with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from modelcodec.fit.training.method import Data, Method, Training


@dataclass(frozen=True, slots=True)
class Plain(Method):
    """Weights are trained as ever, and stored without loss."""

    def begin(self, model: nn.Module, data: Data | None = None) -> Training:
        return _PlainTraining(model)


class _PlainTraining(Training):
    def harden(self) -> None:
        """Nothing: the planner sees to the weights."""
