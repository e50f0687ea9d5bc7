"""Matrices of bf16 in 12 bits a weight, multiplied or unpacked on a GPU (docs/gpu.md, "The fixed-length form").

A weight is a byte, its sign and mantissa, and a code of 4 bits: 0 for a zero (and for an escaped weight, whose byte is 0, too), c from 1 to 15 for the exponent
base + c. A row lies in blocks of 8 * PART columns, its last one padded with zeros: column PART * j + i of a block has bits 4 j to 4 j + 3 of the block's i-th
word of codes, and byte j mod 4 of word PART * (j div 4) + i of signed mantissas. So the threads of a warp read neighbouring words, and neighbouring x for
each of a word's weights. Escaped weights: `values` (bf16) at `places` (i8, row * n_columns + column, ascending), those of row r from row_starts[r] on.
"""

from __future__ import annotations

import triton
import triton.language as tl

X_SCALE = 64
"""x times 2^X_SCALE meets weights times 2^-base, which are as small as floats get: their products stay in range for all x between 2^-64 and 2^63."""
ESCAPES_AT_ONCE = 64
NAN = 0x7FC0
"""Every word of a row that the matrix does not have."""

_X_SCALE: tl.constexpr = tl.constexpr(2.0**X_SCALE)
_ESCAPES_AT_ONCE: tl.constexpr = tl.constexpr(ESCAPES_AT_ONCE)
_NAN: tl.constexpr = tl.constexpr(NAN)


@triton.jit
def _moved(x, BY: tl.constexpr):
    """Bits of x (i4) moved up, or down if BY is negative; those above the moved ones are unspecified."""
    if BY >= 0:
        return x << BY
    else:  # noqa: RET505 - a constant condition: only one branch is compiled
        return x >> -BY


@triton.jit
def _scaled(bytes_, codes, j: tl.constexpr):
    """Weights times 2^-base (f4): the code is the whole exponent, so that nothing has to be looked up or added."""
    sign = _moved(bytes_, 24 - j % 4 * 8) & -0x80000000
    mantissa = _moved(bytes_, 16 - j % 4 * 8) & 0x7F0000
    exponent = _moved(codes, 23 - j * 4) & 0x7800000
    return (sign | mantissa | exponent).to(tl.float32, bitcast=True)


@triton.jit
def multiply(
    signed_mantissas, codes, x, bias, y, row_starts, places, values, n_rows, n_columns, n_words, factor,
    PART: tl.constexpr, ROWS: tl.constexpr, VECTORS: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """y (bf16 or f4 [n_rows]) = matrix times each x (bf16[VECTORS, n_columns]), summed in f4. A program for ROWS rows and all vectors.

    codes: i4[n_rows, n_words]. signed_mantissas: i4[n_rows, 2 * n_words]. factor: 2^(base - X_SCALE). bias: bf16[n_rows], where
    BIASED. row_starts: i4[n_rows + 1].
    """
    first = tl.program_id(0) * ROWS
    row = first + tl.arange(0, ROWS)
    there = row[:, None] < n_rows
    i = tl.arange(0, PART)
    at = row[:, None].to(tl.int64) * n_words + i[None, :]
    at_bytes = row[:, None].to(tl.int64) * (2 * n_words) + i[None, :]
    sums = (tl.zeros((ROWS, PART), tl.float32),) * VECTORS
    for block in range(0, n_words, PART):
        code = tl.load(codes + at + block, mask=there, other=0)
        byte_a = tl.load(signed_mantissas + at_bytes + 2 * block, mask=there, other=0)
        byte_b = tl.load(signed_mantissas + at_bytes + 2 * block + PART, mask=there, other=0)
        for j in tl.static_range(8):
            column = 8 * block + j * PART + i
            weight = _scaled(byte_a if j < 4 else byte_b, code, j)
            new = ()
            for v in tl.static_range(VECTORS):
                x_j = tl.load(x + v * n_columns + column, mask=column < n_columns, other=0).to(tl.float32) * _X_SCALE
                new = new + (sums[v] + weight * x_j[None, :],)  # type: ignore[assignment]  # noqa: RUF005 - no starred ones in Triton
            sums = new
    end = tl.load(row_starts + tl.minimum(first + ROWS, n_rows))
    for v in tl.static_range(VECTORS):
        total = tl.sum(sums[v], 1) * factor
        for start in range(tl.load(row_starts + first), end, _ESCAPES_AT_ONCE):
            k = start + tl.arange(0, _ESCAPES_AT_ONCE)
            place = tl.load(places + k, mask=k < end, other=0)
            product = tl.load(values + k, mask=k < end, other=0).to(tl.float32) * tl.load(x + v * n_columns + place % n_columns).to(tl.float32)
            total += tl.sum(tl.where(row[:, None] == (place // n_columns)[None, :], product[None, :], 0.0), 1)
        if BIASED:
            total += tl.load(bias + row, mask=row < n_rows, other=0).to(tl.float32)
        tl.store(y + v * n_rows + row, total.to(y.dtype.element_ty), mask=row < n_rows)


@triton.jit
def unpack(signed_mantissas, codes, out, row_starts, places, values, rows, n_rows, n_columns, n_words, base, CHOSEN: tl.constexpr, PART: tl.constexpr):
    """out (i2[n, n_columns]) gets the words of n rows: of all, or of those in `rows` (i4 or i8 [n], untrusted) where CHOSEN. Programs: n by blocks of columns.

    values: i2 here. A row that the matrix does not have comes out as NANs.
    """
    number, block = tl.program_id(0).to(tl.int64), tl.program_id(1) * PART
    row = number
    if CHOSEN:
        row = tl.load(rows + number).to(tl.int64)
    there = (row >= 0) & (row < n_rows)
    row = tl.where(there, row, 0)
    i = tl.arange(0, PART)
    code = tl.load(codes + row * n_words + block + i)
    byte_a = tl.load(signed_mantissas + row * (2 * n_words) + 2 * block + i)
    byte_b = tl.load(signed_mantissas + row * (2 * n_words) + 2 * block + PART + i)
    out += number * n_columns
    for j in tl.static_range(8):
        byte = (byte_a if j < 4 else byte_b) >> (j % 4 * 8)
        exponent = (code >> (j * 4)) & 15
        exponent = tl.where(exponent > 0, exponent + base, 0)
        word = ((byte & 0x80) << 8) | (exponent << 7) | (byte & 0x7F)
        column = 8 * block + j * PART + i
        tl.store(out + column, tl.where(there, word, _NAN).to(tl.int16), mask=column < n_columns)
    tl.debug_barrier()  # escaped weights go over what other threads of the program have stored
    end = tl.where(there, tl.load(row_starts + row + 1), 0)
    for start in range(tl.load(row_starts + row), end, _ESCAPES_AT_ONCE):
        k = start + tl.arange(0, _ESCAPES_AT_ONCE)
        escaped = tl.load(places + k, mask=k < end, other=0) - row * n_columns
        own = (k < end) & (escaped >= 8 * block) & (escaped < 8 * (block + PART))
        tl.store(out + escaped, tl.load(values + k, mask=k < end, other=0), mask=own)
