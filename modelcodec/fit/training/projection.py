"""Random projection: a network that only moves in a small random subspace around its random start (Li, Farkhoo, Liu & Yosinski, "Measuring the Intrinsic
Dimension of Objective Landscapes", ICLR 2018, arXiv 1804.08838)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.pranc import check, seeded


@dataclass(frozen=True, slots=True)
class Projection(Method):
    """Weights theta0 + P z: theta0 and P out of `seed`, z the only thing that is trained, of so many `dimensions`.

    The paper's P has dense, normalised columns of whole networks, or sparse ones; here it is PRANC's of signs, each column in one span of one tensor. theta0 is
    a basis vector with the coefficient 1. Options as of PRANC.
    """

    dimensions: int = 10_000
    seed: int = 0
    levels: float = 2.0
    basis: int = 64
    power: float = 0.5

    def __post_init__(self) -> None:
        check("projection", self.dimensions, self.basis, self.levels, "random")

    def begin(self, model: nn.Module, data: Data | None = None) -> Training:
        return seeded(model, self.dimensions, self.seed, False, self.levels, self.basis, self.power, anchored=True)
