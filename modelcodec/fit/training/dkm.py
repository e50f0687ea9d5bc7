"""DKM: weights share few values, learned with them by attention (Cho et al., "DKM: Differentiable K-Means Clustering Layer", ICLR 2022, arXiv 2108.12659).

A weight attends to every centroid, the softmax of minus its squared distance over a temperature; centroids move to the mean of what attends to them, until they
rest; the layer computes with the mix of centroids that its weights attend to. Gradients go through the last of these moves and through the mix, the earlier
ones begin where the step before ended and change next to nothing (as in eDKM, arXiv 2309.00964).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from modelcodec.errors import BadRecipe
from modelcodec.fit.kmeans import Floats, cluster, plan_of, shortened
from modelcodec.fit.training.method import Data, Method, Training
from modelcodec.fit.training.weights import Planned, Weight, chosen_weights, weights_of
from modelcodec.fitted import values_of
from modelcodec.kernels import kmeans as kernels
from modelcodec.stages.codebook import MOST_DIMENSION, MOST_ENTRIES

_ROUNDS = 5
"""Moves of the centroids a step, at most."""
_STILL = 1e-6
"""Centroids rest when the square of a move is below this share of the temperature."""
_LEAST_MASS = 1e-6
"""A centroid to which nothing attends stays where it is."""
_COLDEST = 1e-30
"""Least temperature, where all weights lie on their centroids."""
_KMEANS_ROUNDS = 30


def _scores(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Minus squared distances (k, n), up to the square of each vector, which a softmax and an argmax do not see."""
    return torch.addmm(-centroids.square().sum(1, keepdim=True), centroids, vectors.T, alpha=2)


def _attention(vectors: Tensor, centroids: Tensor, temperature: Tensor) -> Tensor:
    """Shares (k, n) of each vector's attention."""
    return _scores(vectors, centroids).div_(temperature).softmax(0)


def _means(vectors: Tensor, centroids: Tensor, temperature: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Where centroids move to, and the attention that they get."""
    sums, mass = torch.zeros_like(centroids), centroids.new_zeros(len(centroids), 1)
    for part in torch.split(vectors, most):
        attention = _attention(part, centroids, temperature)
        sums.addmm_(attention, part)
        mass += attention.sum(1, keepdim=True)
    return torch.where(mass > _LEAST_MASS, sums / mass, centroids), mass


class _Attend(torch.autograd.Function):
    """One move of the centroids and the mix of them. The attention is never kept: both directions make it anew, `most` vectors at a time."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, centroids: Tensor, temperature: Tensor, most: int) -> tuple[Tensor, Tensor]:
        means, mass = _means(vectors, centroids, temperature, most)
        mix = torch.cat([_attention(part, centroids, temperature).T @ means for part in torch.split(vectors, most)])
        ctx.save_for_backward(vectors, centroids, temperature, means, mass)
        ctx.most = most
        ctx.mark_non_differentiable(means)
        return mix, means

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_mix: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        vectors, centroids, temperature, means, mass = ctx.saved_tensors
        parts = list(zip(torch.split(vectors, ctx.most), torch.split(of_mix, ctx.most), strict=True))
        of_means = torch.zeros_like(centroids)
        for part, of_part in parts:
            of_means.addmm_(_attention(part, centroids, temperature), of_part)
        of_sums = torch.where(mass > _LEAST_MASS, of_means / mass, 0.0)
        of_mass = -(of_sums * means).sum(1, keepdim=True)
        found = []
        for part, of_part in parts:
            attention = _attention(part, centroids, temperature)
            of_attention = torch.addmm(torch.addmm(of_mass, means, of_part.T), of_sums, part.T)
            of_scores = attention * (of_attention - (attention * of_attention).sum(0))
            found.append(attention.T @ of_sums + of_scores.T @ centroids * (2 / temperature))
        return torch.cat(found), None, None, None


class Clusters(nn.Module):
    """A parametrization: a tensor's vectors of `dimension` weights, in the order of memory, by attention to centroids; without gradients, by the nearest one.

    Zeros stay zero where the dimension is 1: they are another method's mask. Weights after the last whole vector stay as they are.
    memory: bytes of attention at a time.
    """

    centroids: Tensor
    temperature: Tensor
    holding, held = False, None

    def __init__(self, weight: Tensor, k: int, dimension: int, temperature: float, memory: int) -> None:
        super().__init__()
        self.dimension = dimension
        vectors = self._split(weight.detach().reshape(-1).float())[1]
        centroids, error = _centroids(vectors.cpu().double().numpy(), k)
        self.most = max(memory // (4 * len(centroids)), 1)
        self.register_buffer("centroids", torch.from_numpy(centroids).to(vectors))
        self.register_buffer("temperature", torch.tensor(max(temperature * error, _COLDEST)).to(vectors))

    def forward(self, weight: Tensor) -> Tensor:
        if self.held is not None:
            return self.held
        flat = weight.reshape(-1)
        with torch.autocast(weight.device.type, enabled=False):
            places, vectors = self._split(flat.float())
            mix = self._last(vectors, weight) if self.holding else self._mix(vectors) if torch.is_grad_enabled() else self._nearest(vectors)
        around = torch.zeros_like(flat) if self.dimension == 1 else flat  # zeros get no gradient, so that they stay
        value = around.index_put((places,), mix.reshape(-1).to(flat.dtype)).reshape(weight.shape)
        if self.holding:
            self.held = value
        return value

    def hold(self) -> None:
        """Give the next value from then on, whatever the weight: that of the file."""
        self.holding = True

    def _split(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Places of the weights that are clustered, and these as vectors (rows)."""
        if self.dimension == 1:
            places = flat.detach().nonzero().squeeze(1)
        else:
            places = torch.arange(flat.numel() // self.dimension * self.dimension, device=flat.device)
        return places, (flat if len(places) == len(flat) else flat[places]).reshape(-1, self.dimension)

    def _mix(self, vectors: Tensor) -> Tensor:
        fixed, centroids, temperature = vectors.detach(), self.centroids.clone(), self.temperature.clone()
        for _ in range(_ROUNDS - 1):
            before, centroids = centroids, _means(fixed, centroids, temperature, self.most)[0]
            if float((centroids - before).square().sum(1).max()) < _STILL * float(temperature):
                break
        mix, means = _Attend.apply(vectors, centroids, temperature, self.most)  # type: ignore[no-untyped-call]
        self.centroids.copy_(means)
        return mix  # type: ignore[no-any-return]

    def _nearest(self, vectors: Tensor) -> Tensor:
        return self.centroids[torch.cat([_scores(part, self.centroids).argmax(0) for part in torch.split(vectors, self.most)])]

    def _last(self, vectors: Tensor, weight: Tensor) -> Tensor:
        """The nearest centroids, in a shorter dtype where that costs nothing."""
        wanted, nearest = (x.reshape(-1).cpu().double().numpy() for x in (vectors, self._nearest(vectors)))
        dtype = weights_of("", weight).spec.dtype.name
        return torch.from_numpy(values_of(shortened(nearest, wanted, np.ones_like(wanted), dtype), dtype)).to(vectors.device)


def _centroids(vectors: Floats, k: int) -> tuple[Floats, float]:
    """At most k centroids by k-means, exact in one dimension, and the mean squared distance of a vector to its own."""
    importance = np.ones_like(vectors)
    if vectors.shape[1] == 1:
        means = cluster(vectors[:, 0], importance[:, 0], k)
        return np.unique(means)[:, None], float(np.square(means - vectors[:, 0]).mean())
    centroids, nearest = kernels.vectors(vectors, importance, k, _KMEANS_ROUNDS, 0)
    return centroids, float(np.square(vectors - centroids[nearest]).sum(1).mean())


@dataclass(frozen=True, slots=True)
class DKM(Method):
    """Each weight tensor has at most `k` different values, or, with a `dimension`, k different vectors; zeros of a mask are one value more.

    temperature: of the attention, as a share of the mean squared distance of weights to their centroids at the start, so that one fits layers of every scale
    (the paper tunes an absolute one for each network). exact: patterns of names of weights to leave as they are. memory: bytes of attention that exist at a
    time; none is kept for the backward pass.
    """

    k: int
    dimension: int = 1
    temperature: float = 0.5
    exact: str = ""
    memory: int = 1 << 26

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MOST_ENTRIES or not 1 <= self.dimension <= MOST_DIMENSION:
            raise BadRecipe(f"dkm: k = {self.k}, dimension = {self.dimension}; up to {MOST_ENTRIES} and {MOST_DIMENSION} are possible")
        if not 0 < self.temperature < math.inf or self.memory < 1:
            raise BadRecipe(f"dkm: temperature = {self.temperature}, memory = {self.memory}; both are above 0")

    def begin(self, model: nn.Module, data: Data | None = None) -> Clustering:
        return Clustering(model, self)


class Clustering(Training):
    """A model whose weights look through `clusters`."""

    def __init__(self, model: nn.Module, method: DKM) -> None:
        super().__init__(model)
        self.clusters: list[tuple[Weight, Clusters]] = []
        for weight in chosen_weights(model, method.exact, embeddings=True):
            if not bool(weight.tensor.any()):
                raise BadRecipe(f"dkm: {weight.name} is nothing but zeros, and has no clusters to begin with; name it in `exact`, or train it first")
            clusters = Clusters(weight.tensor, method.k, method.dimension, method.temperature, method.memory)
            weight.parametrize(clusters)
            self.clusters.append((weight, clusters))

    def harden(self) -> Planned:
        plans = {}
        with torch.no_grad():
            for weight, clusters in self.clusters:
                clusters.hold()
                last = weights_of(weight.name, weight.tensor)
                plan = plan_of(last, last.words, clusters.dimension)
                if plan is not None:
                    plans[weight.name] = plan
        return Planned(plans)
