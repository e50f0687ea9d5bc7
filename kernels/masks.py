"""Masks: which words are the most frequent one, and the others (docs/stages.md: sparse).

Kernels take arrays that the caller allocated, check nothing but what they return as a status, and write only inside the given arrays.
"""

from __future__ import annotations

from modelcodec.kernels import arms
from modelcodec.kernels.jit import inlined, kernel
from modelcodec.kernels.planes import OK, PADDING, RANGE

COUNT = 3

if arms.ARM == "avx512vbmi":
    from modelcodec.kernels.masks_avx512 import merge_vectors, split_vectors
else:

    @inlined
    def merge_vectors(mask, values, fill, out):
        return 0, 0, False

    @inlined
    def split_vectors(x, fill, mask, values):
        return 0, 0


@kernel
def split_mask(x, fill, mask, values):
    """The fills of x as cleared bits of mask (u1[ceil(n / 8)]), the others to values, which has room for all. Returns their number."""
    n = x.size
    place, z = split_vectors(x, fill, mask, values)
    for i in range(place // 8, mask.size):
        byte = 0
        for j in range(min(8, n - 8 * i)):
            value = x[8 * i + j]
            values[z] = value
            if value != fill:
                byte |= 1 << j
                z += 1
        mask[i] = byte
    return z


@kernel
def merge_mask(mask, values, fill, out):
    """The reverse.

    mask and values are untrusted. Returns OK; COUNT where the ones are not as many as the values; PADDING for bits past the end; RANGE for a value that is
    the fill.
    """
    n, n_values = out.size, values.size
    place, z, holds_fill = merge_vectors(mask, values, fill, out)
    if holds_fill:
        return RANGE
    for i in range(place // 8, mask.size):
        byte = mask[i]
        for j in range(8):
            place = 8 * i + j
            if (byte >> j) & 1:
                if place >= n:
                    return PADDING
                if z >= n_values:
                    return COUNT
                if values[z] == fill:
                    return RANGE
                out[place] = values[z]
                z += 1
            elif place < n:
                out[place] = fill
    return OK if z == n_values else COUNT
