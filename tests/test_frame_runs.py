"""Frames decoded several in one call are those decoded one by one, and damage in one of them is its own."""

from __future__ import annotations

import numpy as np
import pytest
from rows import gaussian, random_bits

from modelcodec import frame
from modelcodec.kernels.memory import address_of
from modelcodec.recipe import parse_plan
from modelcodec.stage import FrameContext
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

PLANS = ("split_float{low_bits=7}(symbols:rans{table_bits=8})", "split_float{low_bits=5}(symbols:rans)", "zstd")
FAST, LARGE, GENERAL = PLANS
FULL = 1 << 19


def _coded(x: np.ndarray, plan: str, number: int) -> np.ndarray:
    spec = TensorSpec("x", DTYPE_BY_NAME["BF16" if x.itemsize == 2 else "F32"], (x.size,))
    return np.frombuffer(frame.encode(x, parse_plan(plan), FrameContext(spec, 0, x.size), number).data, np.uint8).copy()


def _run(coded: list[np.ndarray], outs: list[np.ndarray]) -> tuple[list[int], list[bool]]:
    rows = np.array([[address_of(data), data.size, number, address_of(out), out.size] for number, (data, out) in enumerate(zip(coded, outs, strict=True))])
    digests, decoded = frame.decode_run(rows, outs[0].itemsize)
    return [int(digest) for digest in digests], [bool(good) for good in decoded]


def _words(n: int, dtype: str, seed: int) -> np.ndarray:
    x = np.tile(gaussian(1 << 12, dtype, seed), -(-n // (1 << 12)))[:n].copy()
    x[:: max(n // 50, 1)] = random_bits(x[:: max(n // 50, 1)].size, x.itemsize, seed)  # words that the table does not have
    return x


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize(
    ("sizes", "plans"),
    [
        ((FULL, FULL), (FAST, FAST)),
        ((FULL, FULL, FULL), (FAST, FAST, FAST)),
        ((FULL, FULL), (FAST, LARGE)),
        ((FULL, FULL - 1), (FAST, FAST)),
        ((FULL - 63, FULL - 63), (FAST, FAST)),
        ((FULL, 5000, 300, 17), (FAST, LARGE, FAST, FAST)),
        ((FULL, 9000, FULL), (FAST, GENERAL, FAST)),
    ],
)
def test_frames_in_one_call_are_those_one_by_one(dtype: str, sizes: tuple[int, ...], plans: tuple[str, ...]) -> None:
    words = [_words(n, dtype, seed) for seed, n in enumerate(sizes)]
    coded = [_coded(x, plan, number) for number, (x, plan) in enumerate(zip(words, plans, strict=True))]
    outs = [np.empty_like(x) for x in words]
    digests, decoded = _run(coded, outs)
    assert decoded == [plan != GENERAL and 2 * n >= 64 for plan, n in zip(plans, sizes, strict=True)]
    for x, out, digest, good in zip(words, outs, digests, decoded, strict=True):
        if good:
            assert np.array_equal(x, out)
            assert digest == frame.digest_of(x)


@pytest.mark.parametrize("damaged", [0, 1])
def test_damage_in_one_frame_leaves_the_other_alone(damaged: int) -> None:
    words = [_words(FULL, "BF16", seed) for seed in range(2)]
    coded = [_coded(x, FAST, number) for number, x in enumerate(words)]
    rng = np.random.default_rng(damaged)
    for at in [*range(200), *rng.integers(200, coded[damaged].size, 40)]:
        coded[damaged][at] ^= 1 << int(rng.integers(8))
        outs = [np.empty_like(x) for x in words]
        _, decoded = _run(coded, outs)
        assert decoded == [damaged == 1, damaged == 0]
        assert np.array_equal(outs[1 - damaged], words[1 - damaged])
        coded[damaged] = _coded(words[damaged], FAST, damaged)


def test_damage_that_no_digest_sees_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "CHECK_DIGESTS", False)
    words = [_words(FULL, "BF16", seed) for seed in range(2)]
    rng = np.random.default_rng(5)
    for _ in range(60):
        coded = [_coded(words[number], FAST, number) for number in range(2)]
        for data in coded:
            places = rng.integers(0, rng.choice([120, data.size]), 3)
            data[places] ^= rng.integers(1, 256, 3).astype(np.uint8)
        _run(coded, [np.empty_like(x) for x in words])
