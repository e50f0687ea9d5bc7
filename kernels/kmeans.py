"""k-means: exact in one dimension, Lloyd's iterations for vectors. Sums are float64 in a fixed order, so that a result is the same on every machine and rerun.

sources: exact: dynamic programming over sorted points with monotone boundaries, Wang & Song, "Ckmeans.1d.dp", R Journal 3/2 (2011), and Gronlund et al., arXiv
1701.07204; with a price of bits: entropy-constrained scalar quantization, Chou, Lookabaugh & Gray, IEEE Trans. ASSP 37 (1989), here exact on the given points;
vectors: Lloyd, IEEE Trans. IT 28 (1982), started as k-means++ (Arthur & Vassilvitskii, SODA 2007).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numba import float64, int64

from modelcodec.kernels.jit import inlined, kernel

Floats = np.ndarray[Any, np.dtype[np.float64]]


@inlined
def _cost(sums, squares, weights, i, j):
    """Squared error of the points from i up to j around their mean."""
    weight = weights[j] - weights[i]
    if weight <= 0.0:
        return 0.0
    total = sums[j] - sums[i]
    return max(squares[j] - squares[i] - total * total / weight, 0.0)


@kernel
def _fill_level(sums, squares, weights, before, costs, starts, stack):
    """costs[j] = min over i < j of before[i] + cost(i, j), and that i, which never falls as j grows: the middle j first, then each half between its bounds."""
    n = costs.size - 1
    stack[0], stack[1], stack[2], stack[3] = 1, n, 0, n - 1
    depth = 1
    while depth:
        depth -= 1
        low, high, least, most = stack[4 * depth], stack[4 * depth + 1], stack[4 * depth + 2], stack[4 * depth + 3]
        j = (low + high) >> 1
        best, start = np.inf, least
        for i in range(least, min(most, j - 1) + 1):
            cost = before[i] + _cost(sums, squares, weights, i, j)
            if cost < best:
                best, start = cost, i
        costs[j], starts[j] = best, start
        if j < high:
            stack[4 * depth], stack[4 * depth + 1], stack[4 * depth + 2], stack[4 * depth + 3] = j + 1, high, start, most
            depth += 1
        if low < j:
            stack[4 * depth], stack[4 * depth + 1], stack[4 * depth + 2], stack[4 * depth + 3] = low, j - 1, least, start
            depth += 1


@kernel
def _fill_priced(sums, squares, weights, counts, price, before, costs, starts):
    """The same where a point of a cluster costs price * log2(all / the cluster's) more: boundaries are no longer monotone, so every i is tried. `before` may be
    `costs` itself: as many clusters as it likes."""
    n = costs.size - 1
    total = counts[n]
    for j in range(1, n + 1):
        best, start = np.inf, int64(0)
        for i in range(j):
            count = counts[j] - counts[i]
            cost = before[i] + _cost(sums, squares, weights, i, j)
            if cost < best and count > 0.0:
                cost += price * count * np.log2(total / count)
                if cost < best:
                    best, start = cost, i
        costs[j], starts[j] = best, start


@kernel
def _assign(vectors, importance, centres, nearest):
    """The nearest centre of each vector (the first of equally near ones); returns the weighted squared error."""
    error = float64(0.0)
    for v in range(vectors.shape[0]):
        best, place = np.inf, int64(0)
        for c in range(centres.shape[0]):
            distance = float64(0.0)
            for q in range(vectors.shape[1]):
                off = vectors[v, q] - centres[c, q]
                distance += off * off * importance[v, q]
            if distance < best:
                best, place = distance, c
        nearest[v] = place
        error += best
    return error


@kernel
def _move(vectors, importance, nearest, centres, weights):
    """Each centre to the weighted mean of its vectors; one without vectors stays. `weights` (zeros) is scratch, as large as the centres."""
    for v in range(vectors.shape[0]):
        for q in range(vectors.shape[1]):
            weights[nearest[v], q] += importance[v, q]
    for c in range(centres.shape[0]):
        for q in range(centres.shape[1]):
            if weights[c, q] > 0.0:
                centres[c, q] = 0.0
    for v in range(vectors.shape[0]):
        c = nearest[v]
        for q in range(vectors.shape[1]):
            if weights[c, q] > 0.0:
                centres[c, q] += vectors[v, q] * importance[v, q] / weights[c, q]


@kernel
def _seed(vectors, importance, draws, centres, distances):
    """k-means++: each next centre is a vector drawn with a chance in proportion to its squared error so far; draws (f8, in [0, 1)) decide."""
    first = min(int64(draws[0] * vectors.shape[0]), vectors.shape[0] - 1)
    for q in range(vectors.shape[1]):
        centres[0, q] = vectors[first, q]
    for c in range(1, centres.shape[0]):
        total = float64(0.0)
        for v in range(vectors.shape[0]):
            distance = float64(0.0)
            for q in range(vectors.shape[1]):
                off = vectors[v, q] - centres[c - 1, q]
                distance += off * off * importance[v, q]
            distances[v] = distance if c == 1 else min(distance, distances[v])
            total += distances[v]
        wanted, reached, chosen = draws[c] * total, float64(0.0), int64(vectors.shape[0] - 1)
        for v in range(vectors.shape[0]):
            reached += distances[v]
            if reached > wanted:
                chosen = v
                break
        for q in range(vectors.shape[1]):
            centres[c, q] = vectors[chosen, q]


@dataclass(frozen=True, slots=True)
class Segments:
    """Clusters of sorted points: cluster c has the points from starts[c] up to starts[c + 1]; their weighted means."""

    starts: np.ndarray[Any, np.dtype[np.int64]]
    means: Floats


def _outwards(terms: Floats, zero: int) -> Floats:
    """Running sums of terms on both sides of place `zero`, so that far-off points, which are summed last, do not swamp those near zero."""
    sums = np.zeros(terms.size + 1)
    sums[zero + 1 :] = np.cumsum(terms[zero:])
    sums[:zero] = -np.cumsum(terms[:zero][::-1])[::-1]
    return sums


def segments(points: Floats, weights: Floats, k: int, counts: Floats | None = None, price: float = 0.0) -> Segments:
    """The at most k clusters of sorted finite points with the least weighted squared error; with a price, the least of error and price * bits at the entropy of
    the clusters' `counts` (which need not be the weights). Exact.

    memory: 4 * k bytes a point. time: k * n * log n; with a price n * n, and k times that where k would be passed.
    """
    zero = int(np.searchsorted(points, 0.0))
    sums, squares, running = _outwards(points * weights, zero), _outwards(points * points * weights, zero), _outwards(weights, zero)
    tally = np.concatenate(([0.0], np.cumsum(weights if counts is None else counts)))
    starts = _free_segments(sums, squares, running, tally, price) if price > 0 else np.empty(0, np.int64)
    if not 2 <= starts.size <= k + 1:
        starts = _levels(sums, squares, running, tally, price, k)
    return Segments(starts, np.array([_mean(points[i:j], weights[i:j]) for i, j in pairwise(starts)]))


def _free_segments(sums: Floats, squares: Floats, weights: Floats, tally: Floats, price: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where clusters begin, and the end of the last, however many."""
    costs, chosen = np.zeros(sums.size), np.zeros(sums.size, np.int64)
    _fill_priced(sums, squares, weights, tally, price, costs, costs, chosen)
    bounds = [sums.size - 1]
    while bounds[-1]:
        bounds.append(int(chosen[bounds[-1]]))
    return np.array(bounds[::-1])


def _levels(sums: Floats, squares: Floats, weights: Floats, tally: Floats, price: float, k: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The same for at most k clusters, one more at a time until the sum no longer falls."""
    n = sums.size - 1
    stack = np.empty(4 * (2 * n.bit_length() + 4), np.int64)
    before = np.full(n + 1, np.inf)
    before[0] = 0.0
    chosen: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    reached = np.inf
    for _ in range(min(k, n)):
        costs, starts = np.full(n + 1, np.inf), np.zeros(n + 1, np.int64)
        if price > 0:
            _fill_priced(sums, squares, weights, tally, price, before, costs, starts)
        else:
            _fill_level(sums, squares, weights, before, costs, starts, stack)
        if not costs[n] < reached:
            break
        reached, before = costs[n], costs
        chosen.append(starts.astype(np.int32))
    bounds = [n]
    for row in reversed(chosen):
        bounds.append(int(row[bounds[-1]]))
    return np.array(bounds[::-1])


def _mean(points: Floats, weights: Floats) -> float:
    weight = float(weights.sum())
    mean = float((points * (weights / weight)).sum()) if weight > 0 else float(points[0])
    return min(max(mean, float(points[0])), float(points[-1]))


def vectors(points: Floats, importance: Floats, k: int, rounds: int, seed: int) -> tuple[Floats, np.ndarray[Any, np.dtype[np.int64]]]:
    """At most k centres of finite vectors (rows), and the nearest of each; importance weighs the squared error of each number of each vector."""
    draws = np.random.PCG64(seed).random_raw(k).astype(np.float64) / 2.0**64
    centres = np.empty((min(k, len(points)), points.shape[1]))
    nearest = np.zeros(len(points), np.int64)
    _seed(points, importance, draws, centres, np.empty(len(points)))
    error = _assign(points, importance, centres, nearest)
    for _ in range(rounds):
        _move(points, importance, nearest, centres, np.zeros_like(centres))
        last, error = error, _assign(points, importance, centres, nearest)
        if not error < last:
            break
    return centres, nearest


def nearest(points: Floats, importance: Floats, centres: Floats) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The centre nearest to each vector."""
    found = np.zeros(len(points), np.int64)
    _assign(points, importance, centres, found)
    return found
