"""Frames decoded several in one call are those decoded one by one, and damage in one of them is its own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from rows import classes_of, gaussian, random_bits

from modelcodec import frame
from modelcodec.errors import CorruptFile
from modelcodec.kernels import class_rans
from modelcodec.kernels.memory import address_of
from modelcodec.recipe import parse_plan
from modelcodec.stage import FrameContext, Shared
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

FAST, LARGE, LANES, CLASSED, GENERAL = (
    "split_float{low_bits=7}(symbols:rans{table_bits=8})",
    "split_float{low_bits=5}(symbols:rans)",
    "split_float{low_bits=7}(symbols:rans{table_bits=10,lane_words=256})",
    "split_float{low_bits=6}(symbols:class_rans)",
    "zstd",
)
FULL = 1 << 19


@dataclass(frozen=True)
class Coded:
    """A frame, and what it was coded with."""

    data: np.ndarray
    context: FrameContext


def _coded(x: np.ndarray, plan: str, number: int) -> Coded:
    spec = TensorSpec("x", DTYPE_BY_NAME["BF16" if x.itemsize == 2 else "F32"], (x.size,))
    shared = classes_of(x >> (8 * x.itemsize - 16 + 6) & 511) if plan == CLASSED else None
    context = FrameContext(spec, 0, x.size, shared)
    return Coded(np.frombuffer(frame.encode(x, parse_plan(plan), context, number).data, np.uint8).copy(), context)


def _run(coded: list[Coded], outs: list[np.ndarray]) -> tuple[list[int], list[bool]]:
    classes = [frame.classes_of(memoryview(one.data), one.context.shared) for one in coded]
    rows = [
        frame.run_row(address_of(one.data), one.data.size, number, address_of(out), out.size, own, 0)
        for number, (one, own, out) in enumerate(zip(coded, classes, outs, strict=True))
    ]
    digests, decoded = frame.decode_run(np.array(rows), outs[0].itemsize)
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
        ((FULL, 9000, 1000, 20), (CLASSED, LARGE, CLASSED, CLASSED)),
        ((700, 800, 100000, 900), (CLASSED, CLASSED, FAST, LARGE)),
        ((533, 800, 1000, 9000, 65535, 640, 777, 5001, 40000), (LARGE,) * 9),
        ((511, 512, 513, 1100, 1024, 2050, 5000, 3000, 600, 900, 1025, 2047), (LANES,) * 12),
        ((500, 17000, 33000, 65000, 700, 40000, 16384, 990, 32768, 1000, 50001), (CLASSED, LARGE) * 5 + (LANES,)),
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


def test_damage_in_a_short_frame_leaves_its_neighbours_alone() -> None:
    sizes, plans = (3000, 700, 5000, 900, 20000, 400), (LANES, LARGE, CLASSED, LANES, CLASSED, LARGE)
    words = [_words(n, "F32", seed) for seed, n in enumerate(sizes)]
    whole = [_coded(x, plan, number) for number, (x, plan) in enumerate(zip(words, plans, strict=True))]
    rng = np.random.default_rng(3)
    for _ in range(100):
        damaged, coded = int(rng.integers(len(whole))), list(whole)
        data = whole[damaged].data.copy()
        data[rng.integers(rng.choice([40, data.size]))] ^= 1 << int(rng.integers(8))
        coded[damaged] = replace(whole[damaged], data=data)
        outs = [np.empty_like(x) for x in words]
        _, decoded = _run(coded, outs)
        assert decoded == [number != damaged for number in range(len(whole))]
        assert all(np.array_equal(out, x) for out, x, good in zip(outs, words, decoded, strict=True) if good)


@pytest.mark.parametrize("damaged", [0, 1])
def test_damage_in_one_frame_leaves_the_other_alone(damaged: int) -> None:
    words = [_words(FULL, "BF16", seed) for seed in range(2)]
    coded = [_coded(x, FAST, number) for number, x in enumerate(words)]
    rng = np.random.default_rng(damaged)
    for at in [*range(200), *rng.integers(200, coded[damaged].data.size, 40)]:
        coded[damaged].data[at] ^= 1 << int(rng.integers(8))
        outs = [np.empty_like(x) for x in words]
        _, decoded = _run(coded, outs)
        assert decoded == [damaged == 1, damaged == 0]
        assert np.array_equal(outs[1 - damaged], words[1 - damaged])
        coded[damaged] = _coded(words[damaged], FAST, damaged)


@pytest.mark.parametrize(
    ("plan", "sizes"), [(FAST, (FULL, FULL // 3)), (CLASSED, (FULL, FULL // 3)), (LANES, (600, 2000, 5000, 1000, 700)), (CLASSED, (900, 20000, 400, 17000))]
)
def test_damage_that_no_digest_sees_is_no_crash(plan: str, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "CHECK_DIGESTS", False)
    words = [_words(n, "BF16", seed) for seed, n in enumerate(sizes)]
    whole = [_coded(x, plan, number) for number, x in enumerate(words)]
    rng = np.random.default_rng(5)
    for _ in range(60):
        coded = [replace(one, data=one.data.copy()) for one in whole]
        for one in coded:
            places = rng.integers(0, rng.choice([120, one.data.size]), 3)
            one.data[places] ^= rng.integers(1, 256, 3).astype(np.uint8)
        _run(coded, [np.empty_like(x) for x in words])


def test_classes_that_are_fewer_than_the_words_are_not_used() -> None:
    x = _words(5000, "BF16", 1)
    coded, out = _coded(x, CLASSED, 0), np.empty_like(x)
    classes = frame.classes_of(memoryview(coded.data), coded.context.shared)
    for first, good in ((0, True), (1, False), (-1, False), (1 << 40, False)):
        row = frame.run_row(address_of(coded.data), coded.data.size, 0, address_of(out), out.size, classes, first)
        assert frame.decode_run(np.array([row]), 2)[1].tolist() == [good]
    damaged = Shared(coded.context.shared.data[:-1]) if coded.context.shared else None
    assert frame.classes_of(memoryview(coded.data), damaged) is None
    with pytest.raises(CorruptFile, match="table breaks its rules"):
        frame.decode(memoryview(coded.data), 0, out, "classes", replace(coded.context, shared=damaged))


def test_what_kernels_have_the_address_of_stays_where_two_threads_make_it_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    coded = _coded(_words(5000, "BF16", 1), CLASSED, 0)
    classes = frame.classes_of(memoryview(coded.data), coded.context.shared and Shared(coded.context.shared.data))
    fill, found = class_rans._fill_decoding, []

    def interrupted(*arguments: object) -> None:
        if not found:
            found.append(None)
            found[0] = classes.place  # as another thread would get it meanwhile
        fill(*arguments)

    monkeypatch.setattr(class_rans, "_fill_decoding", interrupted)
    assert classes.place is found[0]
    assert classes.place[class_rans.ENTRIES // 8] == address_of(classes.decoding_entries)
