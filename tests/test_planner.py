"""Promise: the planner finds what a tensor is, never makes it larger than raw, and decides alike on every machine."""

from __future__ import annotations

import numpy as np
import pytest
import rows
from hypothesis import given
from hypothesis import strategies as st
from rows import WORD, Array, edge_arrays, for_dtype

from modelcodec import entropy, planner
from modelcodec import frame as frames
from modelcodec.stage import FrameContext
from modelcodec.types import DTYPE_BY_NAME, DTYPES, TensorSpec

LEVELS = (1, 5, 9)
N = 50_000


def coded(x: Array, dtype: str, level: int = 5) -> tuple[str, float]:
    """The plan, and the coded size over the raw size."""
    kind = DTYPE_BY_NAME[dtype]
    spec = TensorSpec("x", kind, (x.size * kind.elements // kind.block,))
    plan = planner.plan(spec, x, level)
    encoded = frames.encode(x, plan, FrameContext(spec, 0, x.size), 0)
    out = np.empty_like(x)
    frames.decode(memoryview(encoded.data), 0, out, "x")
    assert np.array_equal(out, x)
    return str(plan), len(encoded.data) / max(x.nbytes, 1)


def floats(name: str, seed: int = 0) -> Array:
    return rows.gaussian(N, name, seed)


def sparse(name: str, one_in: int) -> Array:
    x = floats(name)
    return np.where(rows.numbers(x.size, one_in, 1, 3) > 0, x.dtype.type(0), x)


def integers(below: int, width: int) -> Array:
    return rows.numbers(N, below, width, 4)


CASES = {
    "constant": (np.full(N, 0x3F80, np.uint16), "BF16", "constant", 0.001),
    "zeros": (np.zeros(N, np.uint32), "F32", "constant", 0.001),
    "bfloat16": (floats("BF16"), "BF16", "split_float", 0.70),
    "float16": (floats("F16"), "F16", "split_float", 0.93),
    "float32": (floats("F32"), "F32", "split_float", 0.86),
    "float64": (floats("F64"), "F64", "split_float", 0.96),
    "bfloat16 in float32": (floats("BF16").astype(np.uint32) << np.uint32(16), "F32", "widen", 0.36),
    "float16 in float32": (floats("F16").view(np.float16).astype(np.float32).view(np.uint32), "F32", "widen", 0.47),
    "float32 in float64": (floats("F32").view(np.float32).astype(np.float64).view(np.uint64), "F64", "widen", 0.44),
    "float8": (floats("F8_E4M3"), "F8_E4M3", "rans", 0.90),
    "pruned": (sparse("F32", 10), "F32", "sparse", 0.14),
    "few floats": (rows.random_bits(16, 4)[rows.numbers(N, 16, 1)], "F32", "palette", 0.14),
    "small integers": (integers(200, 8), "I64", "widen", 0.125),
    "small signed integers": ((integers(200, 4).view(np.int32) - 100).astype(np.int32).view(np.uint32), "I32", "p", 0.27),
    "positions": (np.arange(N, dtype=np.uint64), "I64", "widen", 0.13),
    "masks": (integers(2, 1), "BOOL", "rans", 0.13),
    "text": (np.frombuffer(b"to be or not to be, " * (N // 20), np.uint8).copy(), "U8", "zstd", 0.02),
    "noise": (rows.random_bits(N, 1), "U8", "raw", 1.001),
    "noise in floats": (rows.random_bits(N, 4), "F32", "", 1.001),
    "blocks": (rows.sources.q4_0_blocks(2000), "Q4_0", "fields", 0.93),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", CASES)
def test_what_a_tensor_is_found(name: str, level: int) -> None:
    x, dtype, stage, bound = CASES[name]
    plan, ratio = coded(x, dtype, level)
    assert plan.startswith(stage), plan
    assert ratio <= bound, f"{plan} takes {ratio:.4f}"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_nothing_is_larger_than_raw(dtype: planner.TensorSpec, level: int) -> None:
    """A frame of raw costs 17 bytes of head."""
    for name, array in edge_arrays(dtype.word).items():
        x = for_dtype(array, dtype)
        _, ratio = coded(x, dtype.name, level)
        assert ratio * max(x.nbytes, 1) <= x.nbytes + 17, name


@given(data=st.data())
def test_plans_are_pure(data: st.DataObject) -> None:
    """The same words give the same plan, whatever was planned before, and are not changed."""
    dtype = data.draw(st.sampled_from(DTYPES))
    words = data.draw(st.lists(st.integers(0, data.draw(st.sampled_from([1, 100, 2 ** (8 * dtype.word) - 1]))), max_size=200))
    x = for_dtype(np.array(words, WORD[dtype.word]), dtype)
    x.flags.writeable = False
    spec = TensorSpec("x", dtype, (x.size * dtype.elements // dtype.block,))
    for level in LEVELS:
        assert planner.plan(spec, x, level) == planner.plan(spec, x.copy(), level)


@pytest.mark.parametrize("name", list(planner._BLOCK_FIELDS))
def test_fields_of_blocks_make_up_the_block(name: str) -> None:
    fields = [tuple(map(int, field.split("x"))) for field in planner._BLOCK_FIELDS[name].split("+")]
    assert sum(width * n for width, n in fields) == DTYPE_BY_NAME[name].block
    assert {d.name for d in DTYPES if d.elements > 1} == set(planner._BLOCK_FIELDS)


@given(counts=st.lists(st.integers(0, 10**9), min_size=1, max_size=300))
def test_entropy_in_integers(counts: list[int]) -> None:
    c = np.array(counts)
    total = sum(counts)
    expected = sum(n * np.log2(total / n) for n in counts if n)
    assert abs(entropy.order0_bits(c) - expected) <= total * 2.0**-11 + 2


@given(values=st.lists(st.integers(1, 2**52), min_size=1, max_size=50))
def test_logarithms_in_integers(values: list[int]) -> None:
    found = entropy.log2_fixed(np.array(values))
    expected = np.log2(np.array(values, np.float64)) * 65536
    assert (found <= expected + 1).all()
    assert (found >= expected - 65536 * 2.0**-11).all()
