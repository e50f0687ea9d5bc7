"""Compile every kernel ahead, by coding small arrays that need each of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from modelcodec import frame as frames
from modelcodec import planner, usual_frames
from modelcodec.changes import plan_changes
from modelcodec.kernels import philox, trellis
from modelcodec.kernels.trellis import CODES
from modelcodec.planner import DEFAULT_LEVEL, LEVELS, RAW
from modelcodec.recipe import Recipe, parse_plan
from modelcodec.stage import FrameContext, Plan
from modelcodec.stages.grid import NO_SHIFTS, Grid, Path
from modelcodec.stages.rans import Rans
from modelcodec.types import DTYPE_BY_NAME, Array, TensorSpec
from modelcodec.usual_frames import Unplanned

_N = 1 << 16
_COLUMNS = 256
_PLANS = (
    ("U8", "rans"),
    ("U8", "sparse(mask:rans)"),
    ("U16", "rans{table_bits=12}"),
    ("U16", "palette(indices:rans{table_bits=8})"),
    ("U32", "palette"),
    ("U64", "palette"),
    ("U16", "sparse"),
    ("U32", "sparse"),
    ("U64", "sparse"),
    ("F32", "widen{kind=2}"),
    ("F64", "widen{kind=3}"),
    ("BF16", "split_float"),
    ("BF16", "split_float{low_bits=5}"),
    ("F32", "split_float"),
    ("F32", "split_float{low_bits=5}"),
    ("F64", "split_float{low_bits=4}(symbols:rans)"),
)
"""Trees that a plan made by itself need not contain."""


def warmup() -> None:
    """Compile all kernels for this processor and keep them in the user's cache. Takes some seconds the first time, then a fraction of one."""
    for dtype in ("BF16", "F16", "F32", "F64"):
        for level in LEVELS:
            _code(dtype, _weights(dtype, _N), level)
            _code(dtype, _weights(dtype, 1000), level)
    for dtype, text in _PLANS:
        x = _few_values(dtype) if dtype[0] == "U" or "widen" in text else _weights(dtype, 1000)
        _round_trip(x, parse_plan(text), FrameContext(_spec(dtype, x.size), 0, x.size))
    _code_run()
    _code_grids()
    _code_deltas()
    philox.sums(np.ones((1, 8), np.int32), philox.Signs(0, 256, 8), 0, 8)


def _code_run() -> None:
    x = _weights("BF16", 1000)
    choices = planner.choices(_spec("BF16", x.size), x.size, DEFAULT_LEVEL)
    if choices is None:
        raise AssertionError("frames of floats may be of the usual kind")
    usual_frames.encode([Unplanned(x.view(np.uint8), 0, 0, choices)], x.itemsize, None)


def _code_deltas() -> None:
    """Weights and what they changed to."""
    base = _weights("BF16", _N)
    x, spec = base ^ (base >> 5 & 3), _spec("BF16", base.size)
    planned = plan_changes(spec, x, base, x.size, x.size, (RAW,))
    if planned is None:
        raise AssertionError("changes of a few low bits have a plan")
    _round_trip(x, planned.plans[0], FrameContext(spec, 0, x.size, planned.shared, base=base))


def _code_grids() -> None:
    """Lossy weights, as a fit finds them."""
    code = CODES[8]
    x = np.sin(np.arange(36 * 64.0)) * 3
    for dtype, shape in (("F32", (64, 36)), ("F32", (64, 4, 3, 3)), ("BF16", (64, 36))):
        spec, indices = TensorSpec("", DTYPE_BY_NAME[dtype], shape), trellis.search(x, code).indices
        trellis.search(x, code, 0.1, np.zeros(1, np.int32), np.full(1, 512, np.int32))
        words = Path(code, 0, 2.0**-8, NO_SHIFTS).restore(indices, spec.dtype.name)
        for modelled in (True, False):
            plan = Plan(Grid(indices, 2.0**-8, 8, NO_SHIFTS, modelled), {"indices": Plan(Rans())})
            _round_trip(words, plan, FrameContext(spec, 0, x.size))


def _weights(dtype: str, n: int) -> Array:
    """Bits of numbers of many magnitudes, the same on every machine."""
    k = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    k = (k ^ k >> np.uint64(29)) * np.uint64(0xBF58476D1CE4E5B9)  # multiples of a number alone nearly come again, which is another plan
    values = ((k >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5) * 2.0 ** -(np.arange(n) % _COLUMNS % 7)
    word = DTYPE_BY_NAME[dtype].word
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> np.uint32(16)).astype("<u2")
    return values.astype(f"<f{word}").view(f"<u{word}")


def _few_values(dtype: str) -> Array:
    word = DTYPE_BY_NAME[dtype].word
    values = (np.arange(1000) * 7919 % 50).astype(f"<f{word}" if dtype[0] == "F" else f"<u{word}")
    return values.view(f"<u{word}")


def _spec(dtype: str, n: int) -> TensorSpec:
    return TensorSpec("", DTYPE_BY_NAME[dtype], (n // _COLUMNS, _COLUMNS) if n % _COLUMNS == 0 else (n,))


def _code(dtype: str, x: Array, level: int) -> None:
    spec = _spec(dtype, x.size)
    planned = Recipe().plan_group(spec, x, x.size, level, 0)
    _round_trip(x, planned.plans[0], FrameContext(spec, 0, x.size, planned.shared))


def _round_trip(x: Array, plan: Plan, context: FrameContext) -> None:
    frames.decode(memoryview(frames.encode(x, plan, context, 0).data), 0, np.empty_like(x), "warmup", context)


def uncompiled() -> Iterator[str]:
    """Names of kernels that `warmup` would not have compiled: none, and a test holds that."""
    from modelcodec.kernels import class_rans, delta, frame_encoder, frequencies, order0, planes, rans, scale_classes, survey, whole_frame

    for module in (class_rans, delta, frame_encoder, frequencies, order0, planes, rans, scale_classes, survey, whole_frame):
        for name, kernel in vars(module).items():
            if getattr(kernel, "is_kernel", False) and kernel.__module__ == module.__name__ and not kernel.nopython_signatures:
                yield f"{module.__name__}.{name}"
