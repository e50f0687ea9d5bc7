"""A fused kernel gives the bytes of the stages one by one, and reads them back alike."""

from __future__ import annotations

import numpy as np
import pytest

from modelcodec import frame
from modelcodec.errors import CorruptFile
from modelcodec.stage import FrameContext, Plan
from modelcodec.stages import fused
from modelcodec.stages.rans import VECTOR_WORDS, Rans
from modelcodec.stages.split_float import SplitFloat
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

SIZES = (300, 1001, 8 * 4096, VECTOR_WORDS, VECTOR_WORDS + 1, VECTOR_WORDS + 63, (1 << 18) + 29, 1 << 19)


def _words(n: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    single = (rng.standard_normal(n) * 0.02).astype("<f4").view("<u4")
    words = single if width == 4 else (single >> np.uint32(16)).astype("<u2")
    words[rng.integers(0, n, 200)] = rng.integers(0, 1 << (8 * width), 200, dtype=np.uint64).astype(words.dtype)
    return words


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize(("low_bits", "table_bits"), [(7, 8), (7, 11), (6, 11), (5, 12), (10, 8), (4, 12), (13, 9), (0, 12)])
@pytest.mark.parametrize("sample", [1, 4])
def test_same_bytes_and_same_words(n: int, width: int, low_bits: int, table_bits: int, sample: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = _words(n, width)
    plan = Plan(SplitFloat(low_bits), {"symbols": Plan(Rans(table_bits, sample))})
    context = FrameContext(TensorSpec("x", DTYPE_BY_NAME["U16"], (n,)), 0, n)
    before = x.copy()
    together = frame.encode(x, plan, context, 0).data
    decoded_together = np.empty_like(x)
    frame.decode(memoryview(together), 0, decoded_together, "fused")
    monkeypatch.setattr(frame, "fused", lambda *stages: None)
    apart = frame.encode(x, plan, context, 0).data
    decoded_apart = np.empty_like(x)
    frame.decode(memoryview(together), 0, decoded_apart, "apart")
    assert together == apart
    assert np.array_equal(decoded_together, x)
    assert np.array_equal(decoded_apart, x)
    assert np.array_equal(x, before)


def test_padding_of_the_planes_is_checked() -> None:
    n = VECTOR_WORDS + 1
    x = _words(n, 2)
    both = fused(SplitFloat.id, Rans.id)
    assert both is not None
    outer, symbols = both.encode(x, Plan(SplitFloat(7), {"symbols": Plan(Rans(8))}), None)
    both.decode(outer.header, symbols.header, symbols.payload, outer.parts, np.empty_like(x))
    outer.parts[0][-1] |= 1
    with pytest.raises(CorruptFile):
        both.decode(outer.header, symbols.header, symbols.payload, outer.parts, np.empty_like(x))
