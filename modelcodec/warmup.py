"""Compile every kernel ahead, by coding small arrays that need each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from modelcodec import frame as frames
from modelcodec import planner, usual_frames
from modelcodec.changes import plan_changes
from modelcodec.kernels import fixed_length, philox, planes, stored, trellis
from modelcodec.kernels.memory import address_of
from modelcodec.kernels.trellis import CODES
from modelcodec.planner import DEFAULT_LEVEL, LEVELS, RAW
from modelcodec.recipe import Recipe, parse_plan
from modelcodec.stage import FrameContext, Plan, Shared
from modelcodec.stages.grid import NO_SHIFTS, Grid, Path, Steps
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
    planes.unpack_planes(np.zeros(1, np.uint8), 1, np.empty(1, np.uint16))
    stored.copied(np.empty((0, 3), np.int64))
    philox.sums(np.ones((1, 8), np.int32), philox.Signs(0, 256, 8), 0, 8)
    _multiply()


def _multiply() -> None:
    """A matrix of one row in the fixed-length form."""
    n, n_words, part = _COLUMNS, _COLUMNS // 8, 32
    words, x, spare = _weights("BF16", n), _weights("BF16", n * fixed_length.MOST_VECTORS), np.empty(n, np.uint16)
    codes, signed_mantissas, row_starts = np.empty(n_words, np.uint32), np.empty(2 * n_words, np.uint32), np.zeros(2, np.uint32)
    places, values = np.empty(n, np.uint64), np.empty(n, np.uint16)
    form = [address_of(array) for array in (codes, signed_mantissas, row_starts, places, values)]
    shape = 1, n, n_words, part, 0
    fixed_length.count(address_of(words), n, np.zeros(fixed_length.N_COUNTS, np.int64))
    row_starts[1] = fixed_length.pack(address_of(words), *shape, 0, 0, address_of(spare), *form)
    fixed_length.unpack(*form, *shape[1:], np.zeros(1, np.int64), address_of(spare), address_of(words))
    scaled, factors = np.empty(x.size, np.float32), np.empty(fixed_length.MOST_VECTORS)
    fixed_length.scale(address_of(x), factors.size, n, n, address_of(scaled), factors)
    y, sums = np.empty(factors.size, np.float32), np.empty(fixed_length.ROWS * factors.size, np.float32)
    for multiply in fixed_length.MULTIPLY.values():
        multiply(*form, address_of(scaled), factors, 0, address_of(y), False, *shape, 0, 1, address_of(sums))


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
        for modelled, steps in ((True, None), (False, None), (False, Steps(np.arange(36, dtype=np.uint8), 64))):
            words = Path(code, 0, 2.0**-8, NO_SHIFTS).restore(indices, spec.dtype.name, steps)
            plan = Plan(Grid(indices, 2.0**-8, 8, NO_SHIFTS, modelled, steps), {"indices": Plan(Rans())})
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
    data = memoryview(frames.encode(x, plan, context, 0).data)
    read = context if context.shared is None else replace(context, shared=Shared(context.shared.data))  # as a decoder finds it
    frames.decode(data, 0, np.empty_like(x), "warmup", read)


def uncompiled() -> Iterator[str]:
    """Names of kernels that `warmup` would not have compiled: none, and a test holds that."""
    from modelcodec.kernels import (
        class_rans,
        delta,
        few_lanes,
        frame_encoder,
        frequencies,
        order0,
        planes,
        rans,
        scale_classes,
        split_float,
        survey,
        whole_frame,
    )

    coders = class_rans, delta, few_lanes, fixed_length, frequencies, order0, planes, rans, scale_classes
    for module in (*coders, frame_encoder, split_float, stored, survey, whole_frame):
        for name, kernel in vars(module).items():
            if getattr(kernel, "is_kernel", False) and kernel.__module__ == module.__name__ and not kernel.nopython_signatures:
                yield f"{module.__name__}.{name}"
    for vectors, multiply in fixed_length.MULTIPLY.items():
        if not multiply.nopython_signatures:
            yield f"{fixed_length.__name__}.MULTIPLY[{vectors}]"
