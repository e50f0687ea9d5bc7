"""Promise: a product of integers comes out the same on every machine, and what it cannot give is kept."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import rows
from hypothesis import given
from hypothesis import strategies as st
from rows import WORD, Array

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.formats.container_layout import full_frame_words
from modelcodec.kernels.casts import rounded
from modelcodec.recipe import parse_plan
from modelcodec.stage import FrameContext, Plan, Shared
from modelcodec.stages.lowrank import Factors, Lowrank, Right, product
from modelcodec.stages.rans import Rans
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

THEN = {"left": Plan(Rans()), "right": Plan(Rans()), "mask": Plan(Rans())}


def integers(n: int, most: int, seed: int) -> Array:
    return (rows.numbers(n, 2 * most + 1, 4, seed).astype(np.int64) - most).astype(np.int32)


def factors(n_rows: int, columns: int, rank: int, most: int = 100) -> Factors:
    left, right = integers(n_rows * rank, most, 1).reshape(n_rows, rank), integers(rank * columns, most, 2).reshape(rank, columns)
    return Factors(0, left, right, rows.numbers(rank, 8, 8, 3).astype(np.int64), float(np.float32(1e-5)))


def spec_of(dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec("w", DTYPE_BY_NAME[dtype], shape)


def coded(x: Array, block: Factors, context: FrameContext) -> tuple[frames.EncodedFrame, frames.Node]:
    encoded = frames.encode(x, Plan(Lowrank((block,)), THEN), context, 3)
    out = np.full_like(x, 0x5A)
    as_read = replace(context, shared=Shared(context.shared.data) if context.shared else None)
    frames.decode(memoryview(encoded.data), 3, out, "frame", as_read)
    assert out.tobytes() == x.tobytes()
    return encoded, frames.read_head(memoryview(encoded.data), 3, x.itemsize, x.size, "frame").root


def test_the_product_is_the_exact_sum_rounded_twice() -> None:
    block = factors(7, 11, 5, 30_000)
    found = product(block.left, block.right, block.shifts, block.scale)
    for i in range(7):
        for j in range(11):
            exact = sum(int(block.left[i, k]) * int(block.right[k, j]) << int(block.shifts[k]) for k in range(5))
            assert found[i, j] == np.float32(float(Fraction(exact) * Fraction(block.scale)))


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@given(data=st.data())
def test_any_frame_of_a_product(dtype: str, data: st.DataObject) -> None:
    """Frames that begin and end inside rows; some words are others, some are masked."""
    n_rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 20))
    block = factors(n_rows, columns, data.draw(st.integers(1, columns)), data.draw(st.sampled_from([3, 100, 32_767])))
    at = data.draw(st.integers(0, n_rows * columns - 1))
    n = data.draw(st.integers(1, n_rows * columns - at))
    x = rounded(block.product().reshape(-1), dtype)[at : at + n].copy()
    x[rows.numbers(n, 7, 1, 4) == 0] = 0 if data.draw(st.booleans()) else WORD[x.itemsize].type(0xFFFF)
    _, root = coded(x, block, FrameContext(spec_of(dtype, n_rows, columns), 0, n, None, at))
    assert root.stage.name in ("lowrank", "raw")


def test_frames_of_a_group_share_the_right_factor() -> None:
    block = factors(700, 500, 6)
    x, spec = rounded(block.product().reshape(-1), "F32"), spec_of("F32", 700, 500)
    shared = Lowrank((block,)).prepare(spec, x, 0)
    assert shared is not None
    step = full_frame_words(spec.dtype, spec.row_words)
    for at in range(0, x.size, step):
        piece = x[at : at + step]
        encoded, root = coded(piece, block, FrameContext(spec, at, piece.size, shared, at))
        assert root.layout.parts[1].n == 0
        assert len(encoded.data) < 6 * piece.size // 500 + 100
    with pytest.raises(CorruptFile, match="shared"):
        frames.decode(memoryview(encoded.data), 3, np.empty_like(piece), "frame", FrameContext(spec, at, piece.size, None, at))


def test_masked_zeros_take_a_bit() -> None:
    block = factors(64, 100, 4)
    x = rounded(block.product().reshape(-1), "F32").copy()
    x[rows.numbers(x.size, 2, 1, 5) == 0] = 0
    encoded, root = coded(x, block, FrameContext(spec_of("F32", 64, 100), 0, x.size))
    assert len(root.layout.parts) == 3
    assert len(encoded.data) < x.size / 8 + 164 * 4 + 100


def test_words_that_are_no_product_stay_raw() -> None:
    x = rows.random_bits(4096, 4, 1)
    _, root = coded(x, factors(64, 64, 1), FrameContext(spec_of("F32", 64, 64), 0, x.size))
    assert root.stage.name == "raw"


def test_a_product_that_is_not_exact_is_refused() -> None:
    wide = np.full((1, 1 << 10), 32_767, np.int32)
    with pytest.raises(CorruptFile, match="exact"):
        product(wide, wide.T.copy(), np.full(1 << 10, 15), 1.0)


@pytest.mark.parametrize("text", ["lowrank{blocks=1}", "lowrank{rank=2}"])
def test_factors_are_no_option_of_a_recipe(text: str) -> None:
    with pytest.raises(BadRecipe):
        parse_plan(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x01\x01\x00",  # no rank
        b"\x01\x00\x01\x00",  # no columns
        b"\x01\x01\x03\x00\x00",  # words of three bytes
        b"\x01\x01\x01\x10\x00",  # a shift of 16
        b"\x01\x02\x01\x00\x00",
        b"\x01\x01\x01\x00\x00\x00",
        b"\x01\x01\x02\x00\x00",
    ],
)
def test_a_damaged_shared_part_is_an_error(data: bytes) -> None:
    with pytest.raises(CorruptFile):
        Right.read(data)


def test_damaged_frames_give_an_error_or_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """With digests off: whatever a bit of the frame says, nothing but CorruptFile or LimitExceeded comes of it."""
    monkeypatch.setattr(frames, "CHECK_DIGESTS", False)
    block = factors(8, 10, 3, 300)
    x = rounded(block.product().reshape(-1), "BF16").copy()
    x[:40:3], x[50:53] = 0, 0x7FC0
    context = FrameContext(spec_of("BF16", 8, 10), 0, x.size)
    data = bytearray(coded(x, block, context)[0].data)
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            try:
                frames.decode(memoryview(data), 3, np.empty_like(x), "frame", context)
            except frames.ModelCodecError:
                pass
            finally:
                data[at] ^= 1 << bit
