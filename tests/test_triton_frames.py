"""Promise: a GPU decodes frames to the CPU's bits, and refuses what the CPU refuses. Without a GPU, Triton's interpreter runs the kernels."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from triton_device import DEVICE, torch

from modelcodec import frame, planner
from modelcodec.errors import CorruptFile
from modelcodec.runtime.gpu import FramePlace, StagedFrames, decode_frames
from modelcodec.scale_classes import find
from modelcodec.stage import FrameContext, Plan, Shared
from modelcodec.stages.class_rans import ClassRans
from modelcodec.stages.rans import Rans
from modelcodec.stages.split_float import SplitFloat
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

WORDS = {2: torch.int16, 4: torch.int32}
GUARD = 64
"""Words around the output that must stay as they are, and elements after the scratch."""
NUMBER = 3


@pytest.fixture(autouse=True)
def _groups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short frames with 64 lanes, and tables from samples, so that words are escaped. Any encoder may do so, ours does in long frames."""
    groups = getattr(request, "param", 2)
    for name in ("rans", "class_rans", "fused", "fused_classes"):
        monkeypatch.setattr(import_module(f"modelcodec.stages.{name}"), "lanes_for", lambda *_: (6, groups))
    monkeypatch.setattr("modelcodec.stages.rans.SAMPLED_WORDS", 256)


def weights(n: int, width: int, seed: int = 0) -> np.ndarray:
    """Words of bf16 or f32, some of which no table foresees."""
    rng = np.random.default_rng(seed)
    single = (rng.standard_normal(n) * 0.02).astype("<f4").view("<u4")
    words = single if width == 4 else (single >> np.uint32(16)).astype("<u2")
    words[rng.integers(0, n, n // 50)] = rng.integers(0, 1 << (8 * width), n // 50, dtype=np.uint64).astype(words.dtype)
    return words


def placed(x: np.ndarray, plan: Plan, at: int = 0, context: FrameContext | None = None) -> FramePlace:
    context = context or FrameContext(TensorSpec("x", DTYPE_BY_NAME["U16"], (x.size,)), 0, x.size)
    return FramePlace(bytes(frame.encode(x, plan, context, NUMBER).data), NUMBER, at, x.size, "x", context)


def staged(places: list[FramePlace], width: int) -> StagedFrames:
    return StagedFrames(places, width, DEVICE)


def decoded(frames: StagedFrames, n: int, width: int) -> np.ndarray:
    out = torch.zeros(n, dtype=WORDS[width], device=DEVICE)
    frames.decode(out)
    frames.check(out)
    return out.cpu().numpy().view(frame.WORD[width])


def with_classes(rows: int, columns: int, width: int, low_bits: int) -> tuple[np.ndarray, Plan, FrameContext]:
    """Weights with scales of rows and columns, and what their frame shares."""
    rng = np.random.default_rng(columns)
    matrix = rng.standard_normal((rows, columns)) * 0.02 * np.exp(rng.standard_normal((rows, 1))) * np.exp(rng.standard_normal((1, columns)))
    matrix.reshape(-1)[rng.integers(0, matrix.size, 9)] = [0, np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-40, -0.0, 1e-30]
    x = matrix.astype("<f4").view("<u4").reshape(-1)
    if width == 2:
        x = (x >> np.uint32(16)).astype("<u2")
    found = find(x, columns, 7, (low_bits,))
    assert found is not None
    context = FrameContext(TensorSpec("x", DTYPE_BY_NAME["BF16" if width == 2 else "F32"], (rows, columns)), 0, x.size, Shared(found.classes.write()))
    return x, Plan(SplitFloat(low_bits), {"symbols": Plan(ClassRans())}), context


@pytest.mark.parametrize(
    ("n", "low_bits", "table_bits", "sample"),
    [(2048, 7, 8, 4), (1500, 7, 11, 1), (1031, 6, 11, 4), (777, 5, 12, 1), (300, 10, 8, 1), (129, 4, 9, 1), (2, 0, 12, 1)],
)
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("_groups", [1, 2], indirect=True)
def test_the_same_words_as_on_the_cpu(n: int, low_bits: int, table_bits: int, sample: int, width: int) -> None:
    x = weights(n, width, low_bits)
    place = placed(x, Plan(SplitFloat(low_bits), {"symbols": Plan(Rans(table_bits, sample))}))
    assert np.array_equal(decoded(staged([place], width), n, width), x)


@pytest.mark.parametrize(("rows", "columns", "width"), [(33, 128, 4), (7, 600, 2), (2100, 2, 2)])
def test_scale_classes(rows: int, columns: int, width: int) -> None:
    x, plan, context = with_classes(rows, columns, width, 5 if columns > 128 else 6)
    place = placed(x, plan, context=context)
    frames = staged([place], width)
    assert frames.n_on_gpu == 1
    assert np.array_equal(decoded(frames, x.size, width), x)


@pytest.mark.parametrize("level", planner.LEVELS)
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_what_the_planner_plans(dtype: str, level: int) -> None:
    spec = TensorSpec("x", DTYPE_BY_NAME[dtype], (8, 128))
    values = np.random.default_rng(level).standard_normal(1024) * 0.02
    x = values.astype("<f2").view("<u2") if dtype == "F16" else values.astype("<f4").view("<u4")
    if dtype == "BF16":
        x = (x >> np.uint32(16)).astype("<u2")
    place = placed(x, planner.plan(spec, x, level), context=FrameContext(spec, 0, x.size))
    frames = staged([place], x.itemsize)
    assert np.array_equal(decoded(frames, x.size, x.itemsize), x)


def test_a_layer_in_one_go() -> None:
    """Frames of many kinds, at odd places of one buffer: cut alike or not, with classes, shorter ones that the kernel does not know."""
    classed, class_plan, context = with_classes(33, 128, 2, 6)
    split = [Plan(SplitFloat(low), {"symbols": Plan(Rans(bits, 2))}) for low, bits in ((7, 8), (5, 11))]
    rows = [(weights(900, 2, 1), split[0], None), (classed, class_plan, context), (weights(13, 2, 2), planner.RAW, None), (weights(1100, 2, 3), split[1], None)]
    places, at = [], 5
    for x, plan, context in rows:
        places.append(placed(x, plan, at, context))
        at += x.size
    frames = staged(places, 2)
    assert frames.n_on_gpu == 3
    expected = np.concatenate([np.zeros(5, "<u2"), *(x for x, _, _ in rows)])
    for _ in range(2):
        assert np.array_equal(decoded(frames, at, 2), expected)
    out = torch.zeros(at, dtype=torch.bfloat16, device=DEVICE)
    decode_frames(places, out)
    assert np.array_equal(out.view(torch.int16).cpu().numpy().view("<u2"), expected)


def test_some_of_the_frames_are_decoded_alone() -> None:
    """One after the other, from the start of an output of their own, and are checked as the whole is."""
    plan = Plan(SplitFloat(7), {"symbols": Plan(Rans(8))})
    xs = [weights(640, 2, 1), weights(40, 2, 2), weights(700, 2, 3), weights(640, 2, 4)]
    places = [placed(x, planner.RAW if x.size < 64 else plan, 1000 * k) for k, x in enumerate(xs)]
    frames = staged(places, 2)
    part = frames.part([1, 3])
    assert (part.n_on_gpu, part.n_words) == (1, 680)
    assert np.array_equal(decoded(part, 680, 2), np.concatenate([xs[1], xs[3]]))
    assert np.array_equal(decoded(frames.part(range(2, 3)), 700, 2), xs[2])
    frames.check_all()
    data = bytearray(places[3].data)
    data[-1] ^= 1
    damaged = staged([*places[:3], FramePlace(bytes(data), NUMBER, 3000, 640, "x")], 2)
    with pytest.raises(CorruptFile, match="digest"):
        damaged.check_all()


def verdict(places: list[FramePlace], width: int) -> tuple[Any, Any]:
    """What the CPU and the GPU make of a frame: words, or None where they refuse it. The GPU must leave alone what is around its output and its scratch."""
    (place,) = places
    on_cpu = np.empty(place.n, frame.WORD[width])
    try:
        frame.decode(memoryview(place.data), place.number, on_cpu, "x", place.context)
        expected = on_cpu.tolist()
    except CorruptFile:
        expected = None
    try:
        frames = staged(places, width)
    except CorruptFile:
        return expected, None
    scratch = torch.full((frames._scratch.numel() + GUARD,), -1, dtype=torch.int32, device=DEVICE)
    frames._scratch = scratch
    out = torch.full((place.at + place.n + GUARD,), 77, dtype=WORDS[width], device=DEVICE)
    frames.decode(out)
    around = torch.cat([out[: place.at], out[place.at + place.n :]])
    assert (around == 77).all()
    assert (scratch[-GUARD:] == -1).all()
    try:
        frames.check(out)
    except CorruptFile:
        return expected, None
    return expected, out[place.at : place.at + place.n].cpu().numpy().view(frame.WORD[width]).tolist()


@pytest.mark.parametrize(("kind", "_groups", "cases"), [("rans", 2, 10), ("rans", 1, 6), ("wide", 2, 6), ("classes", 2, 4)], indirect=["_groups"])
def test_damage_is_found_with_digests_off(kind: str, cases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the payload are changed at random: units, states, escaped words, planes and their padding."""
    width = 4 if kind == "wide" else 2
    if kind == "classes":
        x, plan, context = with_classes(41, 101, 2, 6)
    else:
        x, plan, context = weights(1001, width), Plan(SplitFloat(6), {"symbols": Plan(Rans(9, 4))}), None
    place = placed(x, plan, 16, context)
    monkeypatch.setattr(frame, "CHECK_DIGESTS", False)
    head = frame.read_head(memoryview(place.data), NUMBER, width, x.size, "x")
    n_coded = head.root.children[0].layout.n_payload
    start = len(place.data) - sum(node.layout.n_payload for node in head.root.walk())
    rng = np.random.default_rng(7)
    refused = 0
    for case in range(cases):
        data = np.frombuffer(place.data, np.uint8).copy()
        n_changed = 1 if case % 2 else 200
        where = start + (rng.integers(0, n_coded, n_changed) if case % 3 else rng.integers(0, data.size - start, n_changed))
        data[where] ^= rng.integers(1, 256, n_changed).astype(np.uint8)
        expected, found = verdict([FramePlace(data.tobytes(), NUMBER, 16, x.size, "x", place.context)], width)
        assert found == expected, case
        refused += found is None
    assert refused


def test_a_damaged_frame_is_named() -> None:
    x = weights(640, 2)
    plan = Plan(SplitFloat(7), {"symbols": Plan(Rans(8, 2))})
    places = [placed(x, plan, 0), placed(x, plan, 640)]
    head = frame.read_head(memoryview(places[1].data), NUMBER, 2, x.size, "x")
    data = bytearray(places[1].data)
    data[len(data) - sum(node.layout.n_payload for node in head.root.walk())] ^= 1
    places[1] = FramePlace(bytes(data), NUMBER, 640, x.size, "layer 7, frame 1")
    frames = staged(places, 2)
    out = torch.zeros(1280, dtype=torch.int16, device=DEVICE)
    frames.decode(out)
    with pytest.raises(CorruptFile, match=r"layer 7, frame 1: .*fetch it again"):
        frames.check(out)


@pytest.mark.parametrize("at", [0, 4, 1])
def test_a_changed_mantissa_is_found_by_the_digest(at: int) -> None:
    """No coder sees it."""
    x = weights(640, 2)
    place = placed(x, Plan(SplitFloat(7), {"symbols": Plan(Rans(8))}), at)
    data = bytearray(place.data)
    data[-1] ^= 1
    frames = staged([placed(x, planner.RAW, 1000), FramePlace(bytes(data), NUMBER, at, x.size, "x")], 2)
    out = torch.zeros(1640, dtype=torch.int16, device=DEVICE)
    frames.decode(out)
    with pytest.raises(CorruptFile, match="digest"):
        frames.check(out)


def test_an_output_that_does_not_fit_is_refused() -> None:
    frames = staged([placed(weights(640, 2), Plan(SplitFloat(7), {"symbols": Plan(Rans(8))}))], 2)
    for out in (torch.zeros(639, dtype=torch.int16), torch.zeros(640, dtype=torch.int32), torch.zeros(640, 2, dtype=torch.int16)[:, 0]):
        with pytest.raises(ValueError, match="wanted"):
            frames.decode(out.to(DEVICE))
