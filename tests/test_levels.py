"""Promise: levels trade honestly. None is larger than a faster one, whatever the dtype, but for the bytes of a finer table."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import rows
from fixtures import GOOD, content, restored
from rows import Array, for_dtype

import modelcodec
from modelcodec import frame as frames
from modelcodec.planner import LEVELS
from modelcodec.recipe import Recipe
from modelcodec.stage import FrameContext
from modelcodec.types import DTYPES, DType, TensorSpec

ROWS, COLUMNS = 96, 1024
TABLE_BYTES = 64


def weights(dtype: DType) -> Array:
    """Numbers of many magnitudes by row and column as this dtype has them; blocks and integers as bytes that are not all alike."""
    scales = np.exp2(np.arange(ROWS) % 3)[:, None] * np.exp2(np.arange(COLUMNS) % 4)
    floats = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "C64": np.float32, "C128": np.float64}
    numbers = rows.gaussian(ROWS * COLUMNS, "F64", 7).view(np.float64).reshape(ROWS, COLUMNS) * scales
    if dtype.name in floats:
        return numbers.astype(floats[dtype.name]).reshape(-1).view(f"<u{dtype.word}")
    if dtype.name == "BF16":
        return (numbers.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16).reshape(-1)
    return for_dtype((numbers / np.abs(numbers).max() * 127).astype(np.int64).astype(f"<u{dtype.word}").reshape(-1), dtype)


def size_of(dtype: DType, x: Array, level: int) -> int:
    n_elements = x.size * dtype.word * 8 // dtype.bits if dtype.elements == 1 else x.size // dtype.block * dtype.elements
    spec = TensorSpec("x", dtype, (ROWS, n_elements // ROWS) if n_elements % ROWS == 0 else (n_elements,))
    planned = Recipe().plan_group(spec, x, x.size, level, 0)
    context = FrameContext(spec, 0, x.size, planned.shared)
    return len(frames.encode(x, planned.plans[0], context, 0).data) + (len(planned.shared.data) if planned.shared else 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_no_level_is_larger_than_a_faster_one(dtype: DType) -> None:
    x = weights(dtype)
    sizes = [size_of(dtype, x, level) for level in LEVELS]
    assert sizes[0] + TABLE_BYTES >= sizes[1], sizes
    assert sizes[1] + TABLE_BYTES >= sizes[2], sizes


@pytest.mark.parametrize("name", GOOD)
def test_no_file_is_larger_than_at_a_faster_level(name: str) -> None:
    source, sizes = restored(content(name)), []
    for level in LEVELS:
        out = BytesIO()
        modelcodec.compress(BytesIO(source), out, level=level)
        sizes.append(len(out.getvalue()))
    assert sizes[0] + TABLE_BYTES >= sizes[1], sizes
    assert sizes[1] + TABLE_BYTES >= sizes[2], sizes
