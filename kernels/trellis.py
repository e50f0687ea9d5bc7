"""Trellis-coded quantization: the path of a convolutional code tells which half of a fine grid each weight may use (docs/stages.md: grid).

The grid of whole steps falls into four subsets, 0, 1, 2 and 3 mod 4 steps. A state whose lowest bit, the *union*, is 0 offers index k the place 2k (subsets 0
and 2), else 2k - sign(k) (subsets 1 and 3, and zero); the index is odd or even, and this bit drives the code to its next state. Symmetric around zero, so that
one table of probabilities serves both signs, and with zero in both halves for low rates.
sources: Ungerboeck, "Channel coding with multilevel/phase signals", IEEE Trans. IT 28 (1982) and IEEE Comm. Mag. 25 (1987), whose one-dimensional codes these
are; Marcellin & Fischer, "Trellis coded quantization", IEEE Trans. Comm. 38 (1990); Fischer & Wang, "Entropy-constrained trellis-coded quantization", IEEE
Trans. IT 38 (1992); Kasner, Marcellin & Hunt, "Universal trellis coded quantization", IEEE Trans. IP 8 (1999).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import float32, float64, int64, types

from modelcodec.kernels.jit import inlined, kernel, piece
from modelcodec.kernels.logistic import exp2, log2, logistic

MOST_INDEX = (1 << 15) - 1
"""Largest magnitude of an index."""
_BLOCK, _AHEAD = 1 << 14, 1 << 9
"""Weights that a search decides at once, and how far it looks beyond them: paths have long merged by then."""
_NEVER = 1e300
_UNLIKELY = 24 * 256
"""Most bits, in 1/256, that a forecast may ask for one index: the coder has its own way with surprises."""


@dataclass(frozen=True, slots=True)
class Code:
    """A code of `states` states as the kernels take it: what bit 0 of a state, and an odd index, do to the next state."""

    states: int
    h0: int
    h1: int


_PARITY_CHECKS = {1: (0, 0), 4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24), 128: (0o235, 0o126), 256: (0o515, 0o362)}
"""Number of states -> Ungerboeck's parity-check polynomials, in octal as he prints them; one state is a scalar quantizer."""
CODES = {states: Code(states, h0 >> 1, h1 >> 1) for states, (h0, h1) in _PARITY_CHECKS.items()}


@inlined
def next_state(state, index, h0, h1):
    """The systematic encoder with feedback, one step."""
    return (state >> 1) ^ (h0 if state & 1 else 0) ^ (h1 if index & 1 else 0)


@inlined
def place_of(index, union, inner, outer):
    """Place of an index in 1/256 steps: magnitude 1 is shifted by `inner` towards zero, larger ones by `outer`."""
    magnitude = abs(index)
    place = 512 * magnitude - (256 * union if magnitude else 0) - (outer if magnitude > 1 else inner if magnitude else 0)
    return -place if index < 0 else place


@inlined
def index_bits(index, union, expected, reciprocal):
    """Bits, in 1/256, of an index under a logistic forecast."""
    magnitude = abs(index)
    edge = 256 >> union
    below = -edge if magnitude == 0 else edge if magnitude == 1 else (2 * magnitude - 1 - union) << 8
    above = edge if magnitude == 0 else (2 * magnitude + 1 - union) << 8
    if index < 0:
        below, above = -above, -below
    low, high = logistic(((below - expected) * reciprocal) >> 24), logistic(((above - expected) * reciprocal) >> 24)
    return min(30 * 256 - log2(high - low + 1), _UNLIKELY)


_F8, _I8, _I4 = float64[::1], int64[::1], types.int32[::1]


@piece(types.void(float64, float64, float64, int64, int64, _I8, _F8, _I8))
def _candidates(x, importance, price, expected, reciprocal, shifts, costs, indices):
    """The cheapest index of each subset for one weight: entry 2 * union + (index mod 2) of `costs` and `indices`."""
    magnitude = abs(x)
    for subset in range(4):
        union, odd = subset >> 1, subset & 1
        nearest = int64((magnitude + union) * 0.5)
        nearest -= (nearest ^ odd) & 1
        best, chosen = _NEVER, int64(0)
        for k in (nearest, nearest + 2, nearest - 2):
            if k < -1 or k > MOST_INDEX or (k == -1 and nearest != -1):
                continue
            index = -k if x < 0 else k
            off = x - place_of(index, union, shifts[2 * union], shifts[2 * union + 1]) * 0.00390625
            cost = importance * off * off
            if price > 0:
                cost += price * index_bits(index, union, expected, reciprocal)
            if cost < best:
                best, chosen = cost, index
        costs[subset], indices[subset] = best, chosen


@kernel
def _search(x, importance, price, expected, scales, states, h0, h1, state, first, n, keep, shifts, costs, decisions, chosen, before, small, indices):
    """Find the cheapest path over weights `first` to `first + n` from a state, write its first `keep` indices; returns the state after these.

    x (f8) in steps; importance (f8), expected, scales (i4): one for each weight, or one for all. costs (f8): 2 * states + 4. decisions (u1): n * states.
    chosen (i4): 4 * n. before (i8): 2 * states. small (i8): 4.
    """
    top = states >> 1
    for t in range(states):
        union = int64((t & top) != 0)
        before[2 * t] = ((t ^ (h0 if union else 0)) << 1 | union) & (states - 1)
        before[2 * t + 1] = ((t ^ h1 ^ (h0 if union else 0)) << 1 | union) & (states - 1)
        costs[t] = 0.0 if t == state else _NEVER
    old, new = int64(0), int64(states)
    subset_costs = costs[2 * states :]
    for i in range(n):
        at = first + i
        scale = scales[at if scales.size > 1 else 0]
        weight = importance[at if importance.size > 1 else 0]
        place = int64(expected[at if expected.size > 1 else 0])
        _candidates(x[at], weight, price, place, exp2(35 * 256 - scale), shifts, subset_costs, small)
        for subset in range(4):
            chosen[4 * i + subset] = small[subset]
        for t in range(states):
            union = 2 * int64((t & top) != 0)
            even, odd = costs[old + before[2 * t]] + subset_costs[union], costs[old + before[2 * t + 1]] + subset_costs[union + 1]
            decisions[i * states + t] = odd < even
            costs[new + t] = min(even, odd)
        old, new = new, old
    t = int64(0)
    for other in range(states):
        if costs[old + other] < costs[old + t]:
            t = other
    after = t
    for i in range(n - 1, -1, -1):
        if i == keep - 1:
            after = t
        odd = int64(decisions[i * states + t])
        if i < keep:
            indices[first + i] = chosen[4 * i + 2 * int64((t & top) != 0) + odd]
        t = before[2 * t + odd]
    return after


@dataclass(frozen=True, slots=True)
class Path:
    """Indices (i4) along a trellis, and the state after the last."""

    indices: np.ndarray[Any, np.dtype[np.int32]]
    end: int


_EVERY = np.ones(1)
NO_SHIFTS = np.zeros(4, np.int64)


def search(
    x: np.ndarray[Any, Any],
    code: Code,
    price: float = 0.0,
    places: np.ndarray[Any, Any] | None = None,
    scales: np.ndarray[Any, Any] | None = None,
    importance: np.ndarray[Any, Any] | None = None,
    shifts: np.ndarray[Any, Any] = NO_SHIFTS,
    state: int = 0,
) -> Path:
    """The path with the least squared error, in steps, plus `price` times its bits, for weights x (f8, finite, in steps).

    `places` and `scales` (i4, as in context_coder.Forecast; one for each weight or one for all) forecast the bits. `importance` weighs each weight's error.
    memory: 17 KiB a state.
    """
    n, s = x.size, code.states
    indices = np.empty(n, np.int32)
    if places is None or scales is None:
        price, places, scales = 0.0, np.zeros(1, np.int32), np.full(1, 2560, np.int32)
    span = min(n, _BLOCK + _AHEAD)
    costs, decisions, chosen = np.empty(2 * s + 4), np.empty(span * s, np.uint8), np.empty(4 * span, np.int32)
    before, small = np.empty(2 * s, np.int64), np.empty(4, np.int64)
    weights = _EVERY if importance is None else importance
    for first in range(0, n, _BLOCK):
        m, keep = min(span, n - first), min(_BLOCK, n - first)
        run = (x, weights, price / 256, places, scales, s, code.h0, code.h1, state, first, m, keep, shifts)
        state = int(_search(*run, costs, decisions, chosen, before, small, indices))
    return Path(indices, state)


@kernel
def walk(indices, h0, h1, state):
    """The state after these indices (i4)."""
    for i in range(indices.size):
        state = next_state(state, indices[i], h0, h1)
    return state


@kernel
def restore(indices, h0, h1, state, shifts, steps, span, skipped, out):
    """Values (f4) of a path of indices (i4): float32 products of places in 1/256 steps, which are whole numbers below 2^24, and the step of the word's span.

    steps (f4): one for each span of words that the path goes through, which starts `skipped` words into the first; or one for all, of a longer span.
    """
    number = 0
    for i in range(indices.size):
        index, union = int64(indices[i]), state & 1
        out[i] = float32(place_of(index, union, shifts[2 * union], shifts[2 * union + 1])) * steps[number]
        state = next_state(state, index, h0, h1)
        skipped += 1
        if skipped == span:
            skipped, number = 0, number + 1


@kernel
def tabulate(shifts, step, out):
    """What `restore` gives (f4) for union 0, folded indices 0 to 255 (0, -1, 1, -2, 2 ...), then for union 1."""
    for i in range(512):
        union, folded = i >> 8, i & 255
        out[i] = float32(place_of((folded >> 1) ^ -(folded & 1), union, shifts[2 * union], shifts[2 * union + 1])) * step


@kernel
def look_up(folded, table, h0, h1, state, out):
    """Words of a path of folded indices (u1), out of a table of 512."""
    for i in range(folded.size):
        number = int64(folded[i])
        out[i] = table[(state & 1) << 8 | number]
        state = (state >> 1) ^ (-(state & 1) & h0) ^ (-((number + 1) >> 1 & 1) & h1)


@kernel
def look_up_in_steps(folded, places, h0, h1, state, steps, span, skipped, out):
    """Values (f4) of a path of folded indices (u1): places (f4, out of a table of 512) times the step of the word's span, as `restore` gives them."""
    number = 0
    for i in range(folded.size):
        index = int64(folded[i])
        out[i] = places[(state & 1) << 8 | index] * steps[number]
        state = (state >> 1) ^ (-(state & 1) & h0) ^ (-((index + 1) >> 1 & 1) & h1)
        skipped += 1
        if skipped == span:
            skipped, number = 0, number + 1
