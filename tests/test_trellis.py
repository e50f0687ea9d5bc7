"""Trellis-coded quantization finds the cheapest path, and its codes gain what the literature says."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from modelcodec.kernels.trellis import CODES, NO_SHIFTS, Code, restore, search, walk


def places(indices: np.ndarray, code: Code, state: int = 0, shifts: np.ndarray = NO_SHIFTS) -> np.ndarray:
    out = np.empty(indices.size, np.float32)
    restore(indices, code.h0, code.h1, state, shifts, np.full(1, 1 / 256, np.float32), indices.size + 1, 0, out)
    return out.astype(np.float64)


# Marcellin & Fischer 1990, table I: gain over uniform quantization of a uniform source, in dB
@pytest.mark.parametrize(("states", "gain"), [(1, 0.0), (4, 0.99), (8, 1.09), (16, 1.16), (32, 1.22), (64, 1.27), (128, 1.29), (256, 1.33)])
def test_gain(states: int, gain: float) -> None:
    x = np.random.default_rng(1).uniform(-1000, 1000, 30000)
    code = CODES[states]
    error = np.mean((x - places(search(x, code).indices, code)) ** 2)
    assert abs(10 * np.log10(4 / 12 / error) - gain) < 0.05


@pytest.mark.parametrize("states", [1, 4, 8])
def test_no_path_is_cheaper(states: int) -> None:
    generator, code = np.random.default_rng(2), CODES[states]
    for state in range(states):
        x, importance = generator.normal(0, 2, 6), generator.uniform(0.1, 2, 6)
        found = search(x, code, importance=importance, state=state)
        cost = float(importance @ (x - places(found.indices, code, state)) ** 2)
        nearest = np.rint(x / 2).astype(np.int32)
        others = (np.array(nearest + np.array(moved), np.int32) for moved in product((-1, 0, 1), repeat=6))
        best = min(float(importance @ (x - places(other, code, state)) ** 2) for other in others)
        assert cost <= best + 1e-9
        assert found.end == walk(found.indices, code.h0, code.h1, state)


def test_blocks_join() -> None:
    """A search over many blocks is one path, and as good as a search over one."""
    x, code = np.random.default_rng(3).normal(0, 3, 40000), CODES[32]
    found = search(x, code)
    assert found.end == walk(found.indices, code.h0, code.h1, 0)
    whole = np.mean((x - places(found.indices, code)) ** 2)
    part = np.mean((x[:16000] - places(search(x[:16000], code).indices, code)) ** 2)
    assert abs(whole / part - 1) < 0.02


def test_bits_have_a_price() -> None:
    x, code = np.random.default_rng(4).normal(0, 1.2, 5000), CODES[8]
    forecast = np.zeros(1, np.int32), np.full(1, 2048, np.int32)
    kept = [np.count_nonzero(search(x, code, price, *forecast).indices) for price in (0.0, 0.3, 1.0, 50.0)]
    assert kept[0] > kept[1] > kept[2] > kept[3] == 0


def test_forecasts_draw_weights() -> None:
    """At a high price a weight goes where its forecast expects it."""
    x, code = np.full(500, 5.0), CODES[8]
    near = search(x, code, 2.0, np.full(1, 4 * 256, np.int32), np.full(1, 1800, np.int32))
    assert places(near.indices, code).mean() < places(search(x, code).indices, code).mean()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_weights(n: int) -> None:
    found = search(np.full(n, 7.3), CODES[256])
    assert found.indices.size == n
    assert n == 0 or abs(places(found.indices, CODES[256])[0] - 7.3) < 2
