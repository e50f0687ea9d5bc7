"""Weights that are whole numbers of a step, of their tensor or of their row: what training of few bits leaves, and the plan that codes it in stage `grid`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from modelcodec import planner
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit, cheapest
from modelcodec.fit.training.method import Training
from modelcodec.fit.training.weights import Weight, straight_through
from modelcodec.fit.trellis import plan_of
from modelcodec.fitted import FittedTensor, Weights
from modelcodec.kernels.trellis import MOST_INDEX
from modelcodec.stages.grid import FACTORS, Grid, Steps
from modelcodec.types import Array

STEPS = FACTORS * np.float32(2.0**-24)
"""Steps that a row can have, 2^(e / 8 - 24): those of stage grid, which keeps e in a byte."""
_MOST_EXCEPTIONS = 16
"""With more than one weight in so many on no level, the tensor is something else."""


def mean_magnitude(weight: Tensor, rows: bool) -> Tensor:
    """Of each row, shaped to multiply with it, or of all weights."""
    return weight.abs().mean(dim=tuple(range(1, weight.dim())), keepdim=True) if rows else weight.abs().mean()


def at_rows(numbers: Tensor, weight: Tensor) -> Tensor:
    """One number for all, or one a row, shaped to multiply with the weight."""
    return numbers.view(-1, *(1,) * (weight.dim() - 1)) if numbers.dim() else numbers


class OnLevels(nn.Module, ABC):
    """A parametrization: whole numbers times a step out of STEPS. `exponents`: the steps of the last call, one a row or one for all."""

    exponents: Tensor
    words: Tensor
    holding = False
    held: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("words", torch.tensor(STEPS.view(np.int32)), persistent=False)  # integers: a change of the model's dtype leaves them

    @abstractmethod
    def step(self, weight: Tensor) -> Tensor:
        """The step, before it goes to the nearest of STEPS: one for all weights, or one a row, shaped to multiply with it."""

    @abstractmethod
    def numbers(self, weight: Tensor, step: Tensor) -> Tensor:
        """A whole number for each weight."""

    def forward(self, weight: Tensor) -> Tensor:
        """Computed in float32, as the decoder does it, whatever the weight's dtype."""
        if self.held is not None:
            return self.held
        x = weight.float()
        wanted = self.step(x)
        self.exponents = (8 * (wanted.detach().clamp_min(STEPS[0]).log2() + 24)).round().clamp(0, 255).to(torch.int64)
        step = straight_through(wanted, self.words[self.exponents].view(torch.float32))
        value = ((self.numbers(x, step) + 0.0) * step).to(weight.dtype)  # + 0.0: no negative zeros
        if self.holding:
            self.held = value
        return value

    def hold(self) -> None:
        """Give the next call's value from then on: when a tied weight is baked in at one layer, the next layer must not round it again."""
        self.holding = True


class LevelTraining(Training):
    """A model with a parametrization, made by `of`, on each of some weights."""

    def __init__(self, model: nn.Module, weights: Sequence[Weight], of: Callable[[Tensor], OnLevels]) -> None:
        super().__init__(model)
        self.levels: list[tuple[Weight, OnLevels]] = []
        for weight in weights:
            tensor = weight.tensor.detach()
            self.levels.append((weight, of(tensor.float()).to(tensor.device)))
            weight.parametrize(self.levels[-1][1])

    def harden(self) -> Levels:
        found = {}
        with torch.no_grad():
            for weight, levels in self.levels:
                levels.hold()
                _ = weight.tensor
                found[weight.name] = levels.exponents.reshape(-1).to(torch.uint8).cpu().numpy()
        return Levels(found)


@dataclass(frozen=True, slots=True)
class Levels(Fit):
    """Codes tensors that are whole numbers of their steps; changes none. `exponents` (u1): places in STEPS of a tensor's steps, one a row or one for all."""

    exponents: Mapping[str, Array]

    def fit(self, weights: Weights, data: Calibration | None = None) -> FittedTensor | None:
        """None for a tensor that is none of these."""
        exponents = self.exponents.get(weights.spec.name)
        columns = weights.spec.row_words
        if exponents is None or exponents.size not in (1, weights.words.size // columns):
            return None
        one = exponents.size == 1
        steps = STEPS[exponents] if one else np.repeat(STEPS[exponents], columns)
        values = weights.values()
        numbers = np.rint(values / steps)
        near = np.abs(values - numbers * steps) <= 2.0**-8 * np.abs(values)  # bfloat16 rounds them once more
        if np.count_nonzero(near) * _MOST_EXCEPTIONS < numbers.size * (_MOST_EXCEPTIONS - 1):
            return None
        indices = np.where(np.abs(numbers) < MOST_INDEX, numbers, 0).astype(np.int32)
        unit, of_rows = float(STEPS[exponents[0] if one else 0]) / 512, None if one else Steps(exponents, columns)
        plans = [
            plan_of(Grid(indices, unit, 1, modelled=False, steps=of_rows)),
            planner.plan(weights.spec, weights.words, planner.SMALL),
            plan_of(Grid(indices, unit, 1, modelled=True, steps=of_rows)),
        ]
        return weights.fitted(weights.words, cheapest(weights.spec, weights.words, plans))
