"""Binary kernels, few of all: which ones is trained with the weights (source: Wang et al., "Compacting Binary Neural Networks by Sparse Kernel Selection",
arXiv 2303.14470)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.kmeans import plan_of
from modelcodec.fit.training.levels import mean_magnitude
from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.weights import Planned, Weight, chosen_weights, straight_through
from modelcodec.types import Array

_MOST_PLACES = 9
"""Kernels of more weights have too many patterns to list."""
_ROUNDS = 4
_TEMPERATURE = 0.5
"""A pattern's score for a slot begins one lower for each place in which it differs from the slot's; over the temperature, scores are logits."""
_SPEED = 3.0
"""Scores move so many times as fast as weights do."""


@dataclass(frozen=True, slots=True)
class BinaryKernels(Method):
    """Each kernel is plus or minus one magnitude of its tensor, in one of 2^`bits` patterns: 3 x 3 kernels have 512, and the tensor selects its own.

    For kernels of up to 9 weights, and more than 2^bits patterns; other weights stay as they are: join `binary()` for them. `exact`: patterns of names that
    stay out, as in `conv1* fc*`. Unlike in the paper a tensor has one magnitude (BatchNorm makes one a row idle), selection starts at the patterns that the
    network uses most, without noise, and each slot takes the best pattern that is left in place of the Hungarian method's.
    """

    bits: int = 5
    exact: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.bits < _MOST_PLACES:
            raise BadRecipe(f"binary_kernels: bits = {self.bits}, 1 to {_MOST_PLACES - 1} are possible")

    def begin(self, model: nn.Module, data: Data | None = None) -> KernelSelection:
        found = [weight for weight in chosen_weights(model, self.exact, embeddings=False) if self.bits < weight.tensor[0, 0].numel() <= _MOST_PLACES]
        if not found:
            raise BadRecipe(f"binary_kernels: the model has no kernels of {self.bits + 1} to {_MOST_PLACES} weights")
        return KernelSelection(model, found, self.bits)


class Selected(nn.Module):
    """The parametrization: scores (slots x patterns), where they `began` and how far they `moved`, tell which pattern each slot of the tensor's list has."""

    patterns: Tensor
    began: Tensor
    holding, held = False, None

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        places = weight[0, 0].numel()
        every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=places)))
        self.register_buffer("patterns", every, persistent=False)
        used = (weight.reshape(-1, places).cpu() >= 0).long() @ (2 ** torch.arange(places - 1, -1, -1))
        first = every[torch.bincount(used, minlength=len(every)).argsort(descending=True, stable=True)[: 2**bits]]
        self.register_buffer("began", (first @ every.T - places) / 2)
        self.moved = nn.Parameter(torch.zeros_like(self.began))

    def selection(self) -> Tensor:
        """One row a slot, with a one at its pattern; gradients are those of the relaxed selection."""
        relaxed = sinkhorn((self.began + _SPEED * self.moved) / _TEMPERATURE)
        chosen = torch.from_numpy(assigned(relaxed.detach().cpu().numpy())).to(relaxed.device)
        return straight_through(relaxed.exp(), nn.functional.one_hot(chosen, len(self.patterns)).to(relaxed.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        if self.held is not None:
            return self.held
        kernels = weight.float().reshape(-1, self.patterns.shape[1])
        listed = self.selection() @ self.patterns
        nearest = (kernels.detach() @ listed.detach().T).argmax(1)
        inside = kernels.clamp(-1, 1)
        found = (listed[nearest] + (inside - inside.detach())) * mean_magnitude(kernels, rows=False)
        value = found.reshape(weight.shape).to(weight.dtype)
        if self.holding:
            self.held = value
        return value

    def hold(self) -> None:
        """Give the next call's value from then on: when a tied weight is baked in at one layer, the next layer must not select again."""
        self.holding = True


def sinkhorn(scores: Tensor) -> Tensor:
    """Logarithms of a relaxed assignment: each row sums to 1, each column to 1 at most (Mena et al., arXiv 1802.08665)."""
    for _ in range(_ROUNDS):
        scores = scores - scores.logsumexp(0, keepdim=True).relu()
        scores = scores - scores.logsumexp(1, keepdim=True)
    return scores


def assigned(scores: Array) -> Array:
    """For each row a column of its own: those with the largest scores choose first."""
    best: Array = scores.argmax(1)
    if np.unique(best).size == best.size:
        return best
    left = scores.copy()
    for row in np.argsort(-scores.max(1), kind="stable"):
        best[row] = left[row].argmax()
        left[:, best[row]] = -np.inf
    return best


class KernelSelection(Training):
    """A model with a selection on each of some convolutions."""

    def __init__(self, model: nn.Module, weights: list[Weight], bits: int) -> None:
        super().__init__(model)
        self._selected: list[tuple[Weight, Selected]] = []
        for weight in weights:
            tensor = weight.tensor.detach()
            self._selected.append((weight, Selected(tensor.float(), bits).to(tensor.device)))
            weight.parametrize(self._selected[-1][1])

    def harden(self) -> Planned:
        plans = {}
        with torch.no_grad():
            for weight, selected in self._selected:
                selected.hold()
                last = weight.tensor
                values = weight.values(last)
                plan = plan_of(values, values.words, last[0, 0].numel())
                if plan is not None:
                    plans[weight.name] = plan
        return Planned(plans)
