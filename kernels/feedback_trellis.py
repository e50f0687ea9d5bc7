"""Trellis-coded quantization that feeds each weight's error back to the weights after it, so that they make up for it in a layer's outputs.

The loss is quadratic: trace(outputs * E * inputs * E^T) for errors E of a matrix; both factors are split into U * diagonal * U^T, U unit upper triangular.
Taking columns and rows in their order, what a weight adds to the loss is `diagonal` times the square of its own error plus U times those before (optimal brain
surgeon). Inside of a row every survivor of the Viterbi search has errors of its own, and so the corrections that it asks for (per-survivor processing); at a
row's end the best path is taken, and its errors are fed to all later rows.
sources: Hassibi & Stork, "Second order derivatives for network pruning", NIPS 5 (1992); Frantar et al., GPTQ, arXiv 2210.17323; Raheli, Polydoros & Tzou,
"Per-survivor processing", IEEE Trans. Comm. 43 (1995); the rate in the decision: Conzelmann & Bamler, CERWU, arXiv 2505.18758.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import float64, int64, types
from numpy.typing import NDArray

from modelcodec.kernels.jit import inlined, kernel, piece
from modelcodec.kernels.logistic import exp2
from modelcodec.kernels.trellis import MOST_INDEX, Code, index_bits, next_state, place_of

_NEVER = 1e300

_F1, _F3 = float64[::1], float64[:, :, ::1]


@kernel
def _factorize(matrix, diagonal):
    """matrix = U * diagonal * U^T, in place: U is unit upper triangular, only what lies above its diagonal is meant. The matrix is positive definite."""
    n = diagonal.size
    for j in range(n - 1, -1, -1):
        diagonal[j] = matrix[j, j]
        for i in range(j):
            matrix[i, j] = matrix[j, i] / diagonal[j]
        for i in range(j):
            factor = matrix[i, j]
            for k in range(i + 1):
                matrix[i, k] -= factor * matrix[j, k]


@inlined
def _cheapest(x, importance, price, expected, reciprocal, union, odd, shifts):
    """The cheapest index of one subset for a target of x steps, its place in steps, and its cost."""
    magnitude = abs(x)
    nearest = min(int64((magnitude + union) * 0.5), int64(MOST_INDEX - 2))
    nearest -= (nearest ^ odd) & 1
    best, chosen, at = _NEVER, int64(0), 0.0
    for k in (nearest, nearest + 2, nearest - 2):
        if k < -1 or (k == -1 and nearest != -1):
            continue
        index = -k if x < 0 else k
        place = place_of(index, union, shifts[2 * union], shifts[2 * union + 1]) * 0.00390625
        cost = importance * (place - x) * (place - x)
        if price > 0:
            cost += price * index_bits(index, union, expected, reciprocal)
        if cost < best:
            best, chosen, at = cost, index, place
    return best, chosen, at


@piece(types.void(_F3, int64, int64, int64, int64, float64, _F1))
def _feed(pending, old, s, new, column, error, feedback):
    """The corrections of survivor s, after this error, become those of survivor `new` (of the other half)."""
    source, target = pending[old, s], pending[1 - old, new]
    for k in range(column + 1, feedback.size):
        target[k] = source[k] + error * feedback[k]


@kernel
def _search_row(x, feedback, importance, factor, price, expected, scales, h0, h1, state, shifts, pending, costs, errors, decisions, chosen, indices):
    """Find the cheapest path along a row of targets x (in steps) from a state, write its indices; returns the state after them.

    pending (f8): 2 x states x columns. costs, errors (f8): 2 x states, states x 2. decisions, chosen (i4): columns x states.
    """
    states, old = costs.shape[1], int64(0)
    costs[:] = _NEVER
    costs[0, state] = 0.0
    for j in range(x.size):
        pending[0, state, j] = 0.0
    for j in range(x.size):
        reciprocal, place, weight = exp2(35 * 256 - int64(scales[j])), int64(expected[j]), importance[j] * factor
        new = 1 - old
        costs[new] = _NEVER
        for s in range(states):
            if costs[old, s] == _NEVER:
                continue
            target = x[j] - pending[old, s, j]
            for odd in range(2):
                cost, index, at = _cheapest(target, weight, price, place, reciprocal, s & 1, odd, shifts)
                errors[s, odd] = at - x[j]
                t, cost = next_state(s, odd, h0, h1), cost + costs[old, s]
                if cost < costs[new, t]:
                    costs[new, t], decisions[j, t], chosen[j, t] = cost, 2 * s + odd, index
        for t in range(states):
            if costs[new, t] < _NEVER:
                s = int64(decisions[j, t]) >> 1
                _feed(pending, old, s, t, j, errors[s, decisions[j, t] & 1], feedback[j])
        old = new
    after = int64(0)
    for t in range(states):
        if costs[old, t] < costs[old, after]:
            after = t
    t = after
    for j in range(x.size - 1, -1, -1):
        indices[j] = chosen[j, t]
        t = int64(decisions[j, t]) >> 1
    return after


@kernel
def _settle(x, feedback, h0, h1, state, shifts, pending, indices, targets):
    """What each weight of a row aimed at, in the end, with the errors of those before it. pending (f8): columns."""
    pending[:] = 0.0
    for j in range(x.size):
        index, union = int64(indices[j]), state & 1
        targets[j] = x[j] - pending[j]
        error = place_of(index, union, shifts[2 * union], shifts[2 * union + 1]) * 0.00390625 - x[j]
        for k in range(j + 1, x.size):
            pending[k] += error * feedback[j, k]
        x[j] = error
        state = next_state(state, index, h0, h1)


@kernel
def _search(x, inputs, importance, outputs, factors, price, expected, scales, h0, h1, shifts, memory, indices, errors, targets):
    """Search all rows from state 0; memory: as for a row. errors (f8, rows x columns): how far places lie from x; targets (f8): what was aimed at instead."""
    rows, columns = x.shape
    state = int64(0)
    for i in range(rows):
        row = errors[i]
        for j in range(columns):
            row[j] = x[i, j]
        for above in range(min(i, len(outputs))):
            factor = outputs[above, i]
            for j in range(columns):
                row[j] -= factor * errors[above, j]
        path = (h0, h1, state, shifts)
        after = _search_row(row, inputs, importance, factors[i], price, expected[i], scales[i], *path, *memory, indices[i])
        for j in range(columns):
            targets[i, j] = row[j]
        _settle(row, inputs, *path, memory[0][0, 0], indices[i], targets[i])
        for above in range(min(i, len(outputs))):
            factor = outputs[above, i]
            for j in range(columns):
                row[j] -= factor * errors[above, j]
        state = after


@dataclass(frozen=True, slots=True)
class Curvature:
    """One factor of a quadratic loss, as the search takes it: U (f8), unit upper triangular, and the diagonal. U may be 0 x 0 for diagonal `outputs`."""

    feedback: NDArray[np.float64]
    diagonal: NDArray[np.float64]

    @classmethod
    def of(cls, matrix: NDArray[np.float64]) -> Curvature:
        """Of a symmetric, positive definite matrix, or of a diagonal (one dimension). The same on every number of threads, which LAPACK's is not."""
        if matrix.ndim == 1:
            return cls(np.empty((0, 0)), np.array(matrix, np.float64))
        feedback, diagonal = np.array(matrix, np.float64, order="C"), np.empty(len(matrix))
        _factorize(feedback, diagonal)
        return cls(feedback, diagonal)

    @classmethod
    def greedy(cls, matrix: NDArray[np.float64]) -> Curvature:
        """As if no weight would make up for the errors of those before it: each does for all of them what it can (GPFQ). Of a matrix or of a diagonal."""
        if matrix.ndim == 1:
            return cls.of(matrix)
        diagonal = np.diag(matrix).copy()
        return cls(matrix / diagonal, diagonal)


@dataclass(frozen=True, slots=True)
class Found:
    """Indices (i4, rows x columns) along one path from state 0; errors of their places, in steps; and what the weights aimed at, errors before them known."""

    indices: NDArray[np.int32]
    errors: NDArray[np.float64]
    targets: NDArray[np.float64]


def search(
    x: NDArray[np.float64],
    inputs: Curvature,
    outputs: Curvature,
    code: Code,
    price: float,
    places: NDArray[np.int32],
    scales: NDArray[np.int32],
    shifts: NDArray[np.int64],
) -> Found:
    """The path for a matrix x (f8, finite, in steps) with about the least loss plus `price` times its bits; `places`, `scales` as in context_coder.Forecast.

    memory: 16 bytes a state and column.
    """
    (rows, columns), s = x.shape, code.states
    found = Found(np.empty((rows, columns), np.int32), np.empty((rows, columns)), np.empty((rows, columns)))
    memory = (np.empty((2, s, columns)), np.empty((2, s)), np.empty((s, 2)), np.empty((columns, s), np.int32), np.empty((columns, s), np.int32))
    curvature = (inputs.feedback, inputs.diagonal, outputs.feedback, outputs.diagonal)
    forecast = (places.reshape(rows, columns), scales.reshape(rows, columns))
    _search(x, *curvature, price / 256, *forecast, code.h0, code.h1, shifts, memory, found.indices, found.errors, found.targets)
    return found
