"""Bit planes and palettes: kernels between words and their parts (docs/stages.md: split_float, palette).

All kernels take arrays that the caller allocated, check nothing but what they return as a status, and write only inside the given arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, uint8, uint16, uint32, uint64

from modelcodec.kernels.jit import inlined, kernel, piece

BLOCK = 64
"""Numbers in a block of a bit plane."""

OK = 0
PADDING = 1
RANGE = 2


def planes_size(n: int, bits: int) -> int:
    """Bytes of the planes of n numbers of `bits` bits."""
    full, rest = divmod(n, BLOCK)
    return full * BLOCK // 8 * bits + (rest + 7) // 8 * bits


def _plane(width: int) -> tuple[Any, Any]:
    """Packing and unpacking of a plane of `width` bits; a constant width lets the compiler make vector code of the inner loops."""
    per_byte, mask, full = 8 // width, (1 << width) - 1, 8 * width

    @piece(int64(uint16[::1], int64, uint8[::1], int64))
    def pack(numbers, shift, out, at):
        """Write bits shift .. shift + width - 1 of each number; returns the place after the plane."""
        n = numbers.size
        for first in range(0, n - BLOCK + 1, BLOCK):
            for i in range(full):
                byte = uint16(0)
                for j in range(per_byte):
                    byte |= ((numbers[first + i + j * full] >> uint16(shift)) & uint16(mask)) << uint16(width * j)
                out[at + i] = byte
            at += full
        t = n % BLOCK
        stride = (t + 7) // 8 * width
        for i in range(stride):
            byte = uint16(0)
            for j in range(per_byte):
                place = i + j * stride
                if place < t:
                    byte |= ((numbers[n - t + place] >> uint16(shift)) & uint16(mask)) << uint16(width * j)
            out[at + i] = byte
        return at + stride

    @inlined
    def unpack(planes, at, shift, numbers):
        """Or the plane's bits into the numbers; returns the place after it, or -1 where padding is not zero."""
        n = numbers.size
        for first in range(0, n - BLOCK + 1, BLOCK):
            for j in range(per_byte):
                for i in range(full):
                    numbers[first + i + j * full] |= ((uint16(planes[at + i]) >> uint16(width * j)) & uint16(mask)) << uint16(shift)
            at += full
        t = n % BLOCK
        stride = (t + 7) // 8 * width
        for j in range(per_byte):
            for i in range(stride):
                bits = (uint16(planes[at + i]) >> uint16(width * j)) & uint16(mask)
                place = i + j * stride
                if place < t:
                    numbers[n - t + place] |= bits << uint16(shift)
                elif bits:
                    return -1
        return at + stride

    return pack, unpack


_pack_8, _unpack_8 = _plane(8)
_pack_4, _unpack_4 = _plane(4)
_pack_2, _unpack_2 = _plane(2)
_pack_1, _unpack_1 = _plane(1)


@kernel
def pack_planes(numbers, bits, out):
    """numbers (u2[n]) of `bits` <= 15 bits to their planes, out (u1[planes_size(n, bits)])."""
    at, shift = 0, 0
    if bits & 8:
        at = _pack_8(numbers, shift, out, at)
        shift += 8
    if bits & 4:
        at = _pack_4(numbers, shift, out, at)
        shift += 4
    if bits & 2:
        at = _pack_2(numbers, shift, out, at)
        shift += 2
    if bits & 1:
        _pack_1(numbers, shift, out, at)


@kernel
def unpack_planes(planes, bits, numbers):
    """planes (u1[planes_size(n, bits)]) to numbers (u2[n]). Returns OK, or PADDING where a number past the end is not zero."""
    numbers[:] = 0
    at, shift = 0, 0
    if bits & 8:
        at = _unpack_8(planes, at, shift, numbers)
        shift += 8
    if bits & 4 and at >= 0:
        at = _unpack_4(planes, at, shift, numbers)
        shift += 4
    if bits & 2 and at >= 0:
        at = _unpack_2(planes, at, shift, numbers)
        shift += 2
    if bits & 1 and at >= 0:
        at = _unpack_1(planes, at, shift, numbers)
    return OK if at >= 0 else PADDING


@kernel
def find_palette(x, table, used, values, most):
    """Collect up to `most` (<= 256) different words of x in `values` (u8[most]), in the order of their first place. Returns their number, or most + 1 when
    there are more.

    table (u8[1024]) and used (u1[1024]) are scratch.
    """
    used[:] = 0
    k = 0
    last = uint64(0)
    for i in range(x.size):
        value = uint64(x[i])
        if k and value == last:
            continue
        last = value
        slot = (value * uint64(0x9E3779B97F4A7C15)) >> uint64(54)
        while used[slot] and table[slot] != value:
            slot = (slot + uint64(1)) & uint64(1023)
        if not used[slot]:
            if k == most:
                return most + 1
            used[slot] = 1
            table[slot] = value
            values[k] = value
            k += 1
    return k


@kernel
def index_palette(x, palette, table, index, out):
    """Place of each word in `palette` (sorted u8[k]); every word is in it. table (u8[1024]), index (i2[1024]) are scratch."""
    index[:] = -1
    for k in range(palette.size):
        slot = (palette[k] * uint64(0x9E3779B97F4A7C15)) >> uint64(54)
        while index[slot] >= 0:
            slot = (slot + uint64(1)) & uint64(1023)
        table[slot] = palette[k]
        index[slot] = k
    for i in range(x.size):
        value = uint64(x[i])
        slot = (value * uint64(0x9E3779B97F4A7C15)) >> uint64(54)
        while table[slot] != value or index[slot] < 0:
            slot = (slot + uint64(1)) & uint64(1023)
        out[i] = index[slot]


@kernel
def look_up(indices, palette, out):
    """out = palette[indices]; indices (u1) are untrusted. Returns OK or RANGE."""
    k = palette.size
    for i in range(indices.size):
        if indices[i] >= k:
            return RANGE
        out[i] = palette[indices[i]]
    return OK


@kernel
def half_to_single(narrow, wide):
    """float16 bits (u2) to the bits of the float32 of the same value (u4). Returns OK, or RANGE for a NaN."""
    for i in range(narrow.size):
        h = uint32(narrow[i])
        sign, exponent, mantissa = (h & uint32(0x8000)) << uint32(16), (h >> uint32(10)) & uint32(31), h & uint32(1023)
        if exponent == 31:
            if mantissa:
                return RANGE
            wide[i] = sign | uint32(0x7F800000)
        elif exponent:
            wide[i] = sign | ((exponent + uint32(112)) << uint32(23)) | (mantissa << uint32(13))
        elif mantissa:
            shift = uint32(0)
            while mantissa < 1024:
                mantissa <<= uint32(1)
                shift += uint32(1)
            wide[i] = sign | ((uint32(113) - shift) << uint32(23)) | ((mantissa & uint32(1023)) << uint32(13))
        else:
            wide[i] = sign
    return OK


@kernel
def single_to_double(narrow, wide):
    """float32 bits (u4) to the bits of the float64 of the same value (u8). Returns OK, or RANGE for a NaN."""
    for i in range(narrow.size):
        f = uint64(narrow[i])
        sign, exponent, mantissa = (f & uint64(0x80000000)) << uint64(32), (f >> uint64(23)) & uint64(255), f & uint64(0x7FFFFF)
        if exponent == 255:
            if mantissa:
                return RANGE
            wide[i] = sign | uint64(0x7FF0000000000000)
        elif exponent:
            wide[i] = sign | ((exponent + uint64(896)) << uint64(52)) | (mantissa << uint64(29))
        elif mantissa:
            shift = uint64(0)
            while mantissa < 0x800000:
                mantissa <<= uint64(1)
                shift += uint64(1)
            wide[i] = sign | ((uint64(897) - shift) << uint64(52)) | ((mantissa & uint64(0x7FFFFF)) << uint64(29))
        else:
            wide[i] = sign
    return OK


@kernel
def split_words(x, shift, low_bits, symbols, numbers):
    """Top 16 bits of each word to symbols (bits low_bits .. 14) and numbers (sign above the low_bits lowest bits, u2). `shift` is the word's bits less 16."""
    mask = uint16((1 << low_bits) - 1)
    for i in range(x.size):
        h = uint16(uint64(x[i]) >> uint64(shift))
        symbols[i] = (h & uint16(0x7FFF)) >> uint16(low_bits)
        numbers[i] = ((h >> uint16(15)) << uint16(low_bits)) | (h & mask)


def scratch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hash table of the palette kernels: values, marks, places."""
    return np.empty(1024, np.uint64), np.empty(1024, np.uint8), np.empty(1024, np.int16)


