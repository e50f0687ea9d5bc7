"""The AVX-512 VBMI2 arm of `masks`: a vector of words at once, by the instructions that put words where a mask has ones, or take them from there."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.types import int64

from modelcodec.kernels.jit import inlined
from modelcodec.kernels.memory import load_u16, load_u32, store_u16, store_u32
from modelcodec.kernels.simd import Vector, compress, emit, load, splat, store


def _merge_step(bits: int, lanes: int) -> Any:
    def step(builder: Any, mask: Any, values: Any, fill: Any, out: Any) -> Any:
        """Words at `values` go to where the mask has ones, the fill elsewhere. Returns ones for those of the next `lanes` values that are the fill."""
        ones = Vector(builder, builder.bitcast(builder.trunc(mask, ir.IntType(lanes)), ir.VectorType(ir.IntType(1), lanes)))
        given, fills = load(builder, values, bits, lanes), splat(builder, fill, bits, lanes)
        store(out, given.call(f"llvm.x86.avx512.mask.expand.v{lanes}i{bits}", fills, ones))
        return given.equals(fills).as_number()

    return emit(int64(*(int64,) * 4))(step)


def _split_step(bits: int, lanes: int) -> Any:
    def step(builder: Any, x: Any, fill: Any, values: Any) -> Any:
        """Words at x that are not the fill go to `values`, which has room for all. Returns the mask."""
        words = load(builder, x, bits, lanes)
        fills = words.equals(splat(builder, fill, bits, lanes))
        ones = Vector(builder, builder.not_(fills.value))
        store(values, compress(words, ones))
        return ones.as_number()

    return emit(int64(*(int64,) * 3))(step)


_merge_16, _merge_32 = _merge_step(16, 32), _merge_step(32, 16)
_split_16, _split_32 = _split_step(16, 32), _split_step(32, 16)


@emit(int64(int64))
def _ones(builder: Any, mask: Any) -> Any:
    return builder.ctpop(mask)


@inlined
def merge_vectors(mask, values, fill, out):
    """Merge as long as whole vectors can be read and written. Returns the place reached, a multiple of 8, the values used, and whether one was the fill."""
    mask_at, values_at, out_at, width = mask.ctypes.data, values.ctypes.data, out.ctypes.data, out.itemsize
    place, z, faults, lanes = int64(0), int64(0), int64(0), 64 // width
    while 2 <= width <= 4 and place + lanes <= out.size and z + lanes <= values.size:
        if width == 2:
            bits = load_u32(mask_at + (place >> 3))
            faults |= _merge_16(bits, values_at + 2 * z, int64(fill), out_at + 2 * place)
        else:
            bits = load_u16(mask_at + (place >> 3))
            faults |= _merge_32(bits, values_at + 4 * z, int64(fill), out_at + 4 * place)
        z += _ones(bits)
        place += lanes
    return place, z, faults != 0


@inlined
def split_vectors(x, fill, mask, values):
    """Split whole vectors. Returns the place reached, a multiple of 8, and the values found; their room is that of x."""
    x_at, mask_at, values_at, width = x.ctypes.data, mask.ctypes.data, values.ctypes.data, x.itemsize
    place, z, lanes = int64(0), int64(0), 64 // width
    while 2 <= width <= 4 and place + lanes <= x.size:
        if width == 2:
            bits = _split_16(x_at + 2 * place, int64(fill), values_at + 2 * z)
            store_u32(mask_at + (place >> 3), bits)
        else:
            bits = _split_32(x_at + 4 * place, int64(fill), values_at + 4 * z)
            store_u16(mask_at + (place >> 3), bits)
        z += _ones(bits)
        place += lanes
    return place, z
