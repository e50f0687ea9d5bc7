"""Weight unification: the weights of a micro-block get one magnitude, or zero, by ADMM.

Source: Jiang, Wang & Liu, "Structured Weight Unification and Encoding", CVPR Workshops 2020, on which their employer holds patents; ADMM for weights: Zhang et
al., arXiv 1804.03294.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.chain import Fitting
from modelcodec.fit.kmeans import cluster, plan_of
from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.weights import Planned, usual_weights


@dataclass(frozen=True, slots=True)
class Unification(Method):
    """Each `block` of weights that follow each other in a tensor gets one of `magnitudes`, its signs being its own; the `share` of least energy becomes zero.

    ADMM: `updates` times during the first part of the training, up to `project_at`, the weights are projected onto such blocks; between, the loss pulls
    them there with `strength`, a share of the weights' own mean square. Then zeros and magnitudes' places stand, and the magnitudes alone are trained on, each
    shared by its blocks. Stored as a codebook of blocks: log2(magnitudes) + block bits for each.
    """

    block: int = 4
    magnitudes: int = 16
    share: float = 0.0
    strength: float = 1e-3
    updates: int = 20
    project_at: float = 0.5

    def __post_init__(self) -> None:
        if not (1 <= self.block <= 8 and 1 <= self.magnitudes <= 256 and 0 <= self.share < 1):
            raise BadRecipe(f"{self}: block is 1 to 8, magnitudes 1 to 256, share 0 up to 1")
        if not (self.strength >= 0 and self.updates >= 1 and 0 < self.project_at <= 1):
            raise BadRecipe(f"{self}: strength is 0 or more, updates 1 or more, project_at a share of the training")

    def begin(self, model: nn.Module, data: Data | None = None) -> UnificationTraining:
        return UnificationTraining(self, model)


class Unified(nn.Module):
    """The parametrization: the weight itself, until `place` says which of the `levels` its block has (0 is no level but zero), then that with its `sign`."""

    sign: Tensor
    place: Tensor
    settled: Tensor

    def __init__(self, weight: Tensor, magnitudes: int) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.zeros(magnitudes, dtype=weight.dtype, device=weight.device))
        self.register_buffer("sign", torch.ones_like(weight, dtype=torch.int8))
        self.register_buffer("place", torch.zeros(weight.shape, dtype=torch.int16, device=weight.device))
        self.register_buffer("settled", torch.zeros((), dtype=torch.bool, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        if not bool(self.settled):
            return weight
        table = torch.cat((torch.zeros_like(self.levels[:1]), self.levels.abs()))
        return table[self.place.long()] * self.sign

    def settle(self, sign: Tensor, place: Tensor, levels: Tensor) -> None:
        with torch.no_grad():
            self.sign.copy_(sign)
            self.place.copy_(place)
            self.levels.copy_(levels)
            self.settled.fill_(True)


class UnificationTraining(Training):
    def __init__(self, method: Unification, model: nn.Module) -> None:
        super().__init__(model)
        self._method, self._update = method, 0
        self._weights = usual_weights(model)
        self._unified = [Unified(weight.tensor, method.magnitudes) for weight in self._weights]
        for weight, unified in zip(self._weights, self._unified, strict=True):
            weight.parametrize(unified)
        self._targets = [weight.tensor.detach().clone() for weight in self._weights]
        self._duals = [torch.zeros_like(target) for target in self._targets]
        self._project()

    @property
    def _settled(self) -> bool:
        return bool(self._unified[0].settled)

    def _project(self) -> None:
        """ADMM's second and third step: targets are the projections of weight + dual, duals what is left of it."""
        for k, (weight, dual) in enumerate(zip(self._weights, self._duals, strict=True)):
            moved = weight.tensor.detach() + dual
            sign, place, levels = projected(moved, self._method)
            self._targets[k] = torch.cat((torch.zeros_like(levels[:1]), levels))[place.long()] * sign
            self._duals[k] = moved - self._targets[k]

    def penalty(self) -> Tensor:
        if self._settled:
            return super().penalty()
        pulls = [
            (weight.tensor - target + dual).square().sum() / target.square().mean().clamp_min(1e-12)
            for weight, target, dual in zip(self._weights, self._targets, self._duals, strict=True)
        ]
        return self._method.strength / 2 * torch.stack(pulls).sum()

    def after_step(self, done: float) -> None:
        if self._settled:
            return
        method = self._method
        if done >= method.project_at:
            for weight, unified in zip(self._weights, self._unified, strict=True):
                unified.settle(*projected(weight.tensor.detach(), method))
            return
        update = int(done / method.project_at * method.updates)
        if update > self._update:
            self._project()
            self._update = update

    def state(self) -> dict[str, Any]:
        return {"update": self._update, "targets": self._targets, "duals": self._duals}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._update, self._targets, self._duals = state["update"], list(state["targets"]), list(state["duals"])

    def harden(self) -> Fitting | None:
        if not self._settled:
            self.after_step(1.0)
        plans = {}
        for weight in self._weights:
            values = weight.values(weight.tensor)
            found = plan_of(values, values.words, self._method.block)
            if found is not None:
                plans[weight.name] = found
        return Planned(plans)


def projected(tensor: Tensor, method: Unification) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest unified tensor: signs (i1), for each weight 1 + the place of its block's magnitude, or 0 (i2), and the magnitudes, in rising order.

    A block at the tensor's end that is cut off has its own weights' magnitude.
    """
    flat = tensor.detach().abs().double().cpu().reshape(-1).numpy()
    block = method.block
    starts = np.arange(0, flat.size, block)
    counts = np.diff(starts, append=flat.size)
    sums = np.add.reduceat(flat, starts)
    means = sums / counts
    # Of the energy of a block, what its mean magnitude keeps.
    energy = means * sums
    kept = np.ones(starts.size, bool)
    kept[np.argsort(energy, kind="stable")[: int(method.share * starts.size)]] = False
    place, levels = np.zeros(starts.size, np.int16), np.zeros(method.magnitudes)
    if kept.any():
        centres = cluster(means[kept], counts[kept].astype(np.float64), method.magnitudes)
        found, inverse = np.unique(centres, return_inverse=True)
        levels[: found.size] = found
        place[kept] = 1 + inverse
    each = torch.from_numpy(np.repeat(place, counts)).reshape(tensor.shape).to(tensor.device)
    sign = torch.where((tensor < 0) & (each > 0), -1, 1).to(torch.int8)
    return sign, each, torch.from_numpy(levels).to(tensor.dtype).to(tensor.device)
