"""Promise: frames that one kernel call plans and codes are, byte for byte, those that the planner and the stages make of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from io import BytesIO

import numpy as np
import pytest
from rows import Array, random_bits
from rows import gaussian as drawn

from modelcodec import compression, planner, usual_frames
from modelcodec import frame as frames
from modelcodec.arena import Buffers
from modelcodec.errors import ModelCodecError
from modelcodec.formats import container, identify
from modelcodec.kernels import whole_frame
from modelcodec.recipe import Recipe
from modelcodec.stage import FrameContext
from modelcodec.types import DTYPE_BY_NAME, TensorSpec
from modelcodec.usual_frames import Unplanned

WORD = {"BF16": 2, "F16": 2, "F32": 4}
DTYPES = tuple(WORD)
SIZES = (64, 127, 1000, 4100, 33_000, 131_100)
LEVELS = planner.LEVELS


@cache
def gaussian(n: int, dtype: str, seed: int) -> Array:
    return drawn(n, dtype, seed)


def _some(x: Array, words: Array, one_in: int) -> Array:
    """x with words of the other in some places."""
    return np.where(np.arange(x.size) * 7919 % one_in == 0, words, x).astype(x.dtype)


KINDS: dict[str, Callable[[int, str], Array]] = {
    "weights": lambda n, dtype: gaussian(n, dtype, 1),
    "with any bits": lambda n, dtype: _some(gaussian(n, dtype, 1), random_bits(n, WORD[dtype], 2), 50),
    "with zeros": lambda n, dtype: _some(gaussian(n, dtype, 1), np.zeros(n, f"u{WORD[dtype]}"), 3),
    "with few zeros": lambda n, dtype: _some(gaussian(n, dtype, 1), np.zeros(n, f"u{WORD[dtype]}"), 200),
    "random": lambda n, dtype: random_bits(n, WORD[dtype], 4),
    "alike": lambda n, dtype: np.full(n, 0x3F80, f"u{WORD[dtype]}"),
    "few values": lambda n, dtype: gaussian(16, dtype, 5)[np.arange(n) * 7919 % 16],
    "low bits zero": lambda n, dtype: gaussian(n, dtype, 1) & ~gaussian(n, dtype, 1).dtype.type(0x1FFF if dtype == "F32" else 7),
    "low bits alike": lambda n, dtype: gaussian(n, dtype, 1) & ~gaussian(n, dtype, 1).dtype.type(255 if dtype == "F32" else 15) | 5,
    "rows again": lambda n, dtype: np.resize(gaussian(max(n // 9, 1), dtype, 8), n),
}


def _spec(dtype: str, n: int) -> TensorSpec:
    return TensorSpec("x", DTYPE_BY_NAME[dtype], (n,))


def _unplanned(x: Array, dtype: str, level: int, number: int) -> Unplanned | None:
    spec = _spec(dtype, x.size)
    choices = planner.choices(spec, x.size, level)
    return None if choices is None else Unplanned(x.view(np.uint8), number, spec.row_words, choices)


def _one_by_one(x: Array, dtype: str, level: int, number: int) -> bytes:
    spec = _spec(dtype, x.size)
    return bytes(frames.encode(x, planner.plan(spec, x, level), FrameContext(spec, 0, x.size), number).data)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_the_bytes_of_its_frames(kind: str, dtype: str, level: int) -> None:
    words = [KINDS[kind](n, dtype) for n in SIZES]
    unplanned = [_unplanned(x, dtype, level, number) for number, x in enumerate(words)]
    asked = [frame for frame in unplanned if frame is not None]
    run = usual_frames.encode(asked, WORD[dtype], None)
    for frame, outcome in zip(asked, run.frames, strict=True):
        x = words[frame.number]
        expected = _one_by_one(x, dtype, level, frame.number)
        if isinstance(outcome, frames.EncodedFrame):
            assert bytes(outcome.data) == expected
            assert outcome.digest == frames.digest_of(x)
        elif outcome is False:
            raw = frames.encode(x, planner.RAW, FrameContext(_spec(dtype, x.size), 0, x.size), frame.number)
            assert bytes(raw.data) == expected
    if kind == "weights":
        assert all(isinstance(outcome, frames.EncodedFrame) for frame, outcome in zip(asked, run.frames, strict=True) if frame.data.size > 4000)
    if kind == "random" and level == planner.FAST:
        assert not any(isinstance(outcome, frames.EncodedFrame) for outcome in run.frames)
    if kind in ("with zeros", "alike", "few values"):
        assert all(outcome is None for outcome in run.frames[3:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_run_lies_in_a_buffer_that_serves_again(dtype: str) -> None:
    buffers = Buffers(1 << 20)
    asked = [frame for n in (100, 5000) if (frame := _unplanned(gaussian(n, dtype, n), dtype, 5, 0))]
    first = usual_frames.encode(asked, WORD[dtype], buffers)
    kept = [bytes(frame.data) for frame in first.frames if isinstance(frame, frames.EncodedFrame)]
    buffers.give(first.buffer)
    second = usual_frames.encode(asked, WORD[dtype], buffers)
    assert second.buffer is first.buffer
    assert [bytes(frame.data) for frame in second.frames if isinstance(frame, frames.EncodedFrame)] == kept


def test_buffers_of_two_sizes() -> None:
    buffers = Buffers(100, 10)
    small, large = buffers.take(7), buffers.take(11)
    assert (small.size, large.size, buffers.take(101).size) == (10, 100, 101)
    for buffer in (small, large, np.empty(101, np.uint8)):
        buffers.give(buffer)
    assert buffers.take(100) is large
    assert buffers.take(10) is small
    assert buffers.take(101).size == 101


def test_a_batch_has_few_frames_however_short() -> None:
    spec = _spec("BF16", 64)
    jobs = [compression._Job(spec, memoryview(bytes(128)), 64, k, None) for k in range(2500)]
    batches = list(compression._batches(jobs, 1 << 30))
    assert [len(batch) for batch in batches] == [1024, 1024, 452]
    assert [job for batch in batches for job in batch] == jobs


def _source() -> memoryview:
    """A file of tensors of all kinds, some of several frames."""
    from safetensors.numpy import save

    tensors = {f"{kind} {n}": KINDS[kind](n, "F32").view(np.float32) for kind in KINDS for n in (10, 100, 3000, 40_000)}
    tensors["long"] = gaussian(600_000, "F32", 9).view(np.float32).reshape(600, 1000)
    tensors["half"] = gaussian(90_000, "F16", 9).view(np.float16).reshape(300, 300)
    return memoryview(save(tensors))


def _compressed(source: memoryview, level: int, threads: int = 1) -> bytes:
    out = BytesIO()
    settings = compression.Settings(Recipe(), level, threads, verify=True, sha256=False)
    compression.compress_view(source, identify(source, None), out, settings, None)
    return out.getvalue()


@pytest.mark.parametrize("level", LEVELS)
def test_a_file_is_the_same_frame_by_frame(level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source()
    several = [_compressed(source, level, threads) for threads in (1, 3)]
    monkeypatch.setattr(Recipe, "choices", lambda *_: None)
    assert several == [_compressed(source, level)] * 2
    monkeypatch.setattr(compression, "IN_MEMORY_BYTES", 0)
    straight = _compressed(source, level)
    monkeypatch.undo()
    monkeypatch.setattr(compression, "IN_MEMORY_BYTES", 0)
    assert _compressed(source, level) == straight
    assert container.read(memoryview(straight), "x").source_size == len(source)


def test_a_run_that_decodes_to_other_bytes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = usual_frames.encode

    def wrong(unplanned: list[Unplanned], width: int, buffers: Buffers | None) -> usual_frames.EncodedRun:
        changed = [Unplanned(frame.data.copy(), frame.number, frame.row_words, frame.choices) for frame in unplanned]
        changed[-1].data[5] ^= 1
        return original(changed, width, buffers)

    monkeypatch.setattr(usual_frames, "encode", wrong)
    with pytest.raises(ModelCodecError, match="nothing was kept"):
        _compressed(_source(), 5)


@pytest.mark.parametrize("place", [5, -1])
def test_a_run_that_no_decoder_takes_is_found(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its seal, or by the padding of a bit plane, of which words have nothing; though what was read back before still lies in memory and is right."""
    from safetensors.numpy import save

    source = memoryview(save({name: gaussian(3001, "F16", k).view(np.float16) for k, name in enumerate("abc")}))
    _compressed(source, 5)
    original = usual_frames.encode

    def damaged(unplanned: list[Unplanned], width: int, buffers: Buffers | None) -> usual_frames.EncodedRun:
        run = original(unplanned, width, buffers)
        last = run.frames[-1]
        assert isinstance(last, frames.EncodedFrame)
        last.data[place] ^= 0x80
        return run

    monkeypatch.setattr(usual_frames, "encode", damaged)
    with pytest.raises(ModelCodecError, match="nothing was kept"):
        _compressed(source, 5)


def test_a_run_is_read_back_by_whole_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = []

    def noted(rows: Array, width: int) -> tuple[Array, Array]:
        columns.append(rows.shape[1])
        return whole_frame.decode(rows, width, True)

    monkeypatch.setattr(frames, "decode_run", noted)
    _compressed(_source(), 5)
    assert set(columns) == {7}
