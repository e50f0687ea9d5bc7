"""Matrices of bf16 in 12 bits a weight on the CPU, packed, unpacked and multiplied; laid out as `kernels/triton/fixed_length.py` tells.

Vectors are of 16 lanes on every processor: LLVM makes as many registers of each as it takes. So all arms sum in the same order, with or without fused
multiply-add: a product of two bf16 is exact in f4.

Kernels get addresses of memory that the caller has proved, and write only inside what they were given. Nothing here comes from a file.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import float64, int64, types

from modelcodec.kernels import arms, memory
from modelcodec.kernels.jit import kernel
from modelcodec.kernels.memory import ADDRESS, copy, fill, load_u16, load_u32, load_u64, store_u16, store_u32, store_u64
from modelcodec.kernels.simd import Vector, element, emit, load, loop, offset, prefetch, splat, store

CODES = 15
"""Exponents with a code."""
N_COUNTS = 257
"""Of `count`: each exponent's words, and the zeros."""
BASES = 64 + 127
"""A base is less: GPUs multiply with 2^(base - 64), an f4."""
MOST_VECTORS = 4
"""Multiplied at a time: registers have room for the sums of so many."""
LANES = 16
ROWS = 4
"""Multiplied side by side, each from a place of its own: one stream of loads does not keep memory busy."""

_ACCUMULATORS = 16 if arms.ARM == "avx512vbmi" else 4
"""Vectors that the registers have room for as sums, beside what is decoded."""
_AHEAD = 2048
"""Bytes of signed mantissas between what is multiplied and what is asked for from memory."""
_GREATEST = 253
"""Biased exponent that the greatest of the x is scaled to. Weights come out times 2^-base, as small as floats get, and their products stay in range."""
_I64 = ir.IntType(64)
_F32 = ir.FloatType()
_FLOATS = ir.VectorType(_F32, LANES)


def _i64(number: int) -> Any:
    return ir.Constant(_I64, number)


# ---- single numbers -------------------------------------------------------------------------------------------------------------------


@memory.emit(float64(ADDRESS))
def load_bf16(builder: Any, address: Any) -> Any:
    word = builder.zext(memory.load(builder, address, ir.IntType(16)), ir.IntType(32))
    return builder.fpext(builder.bitcast(builder.shl(word, ir.Constant(ir.IntType(32), 16)), _F32), ir.DoubleType())


@memory.emit(float64(ADDRESS))
def load_f32(builder: Any, address: Any) -> Any:
    return builder.fpext(memory.load(builder, address, _F32), ir.DoubleType())


@memory.emit(types.void(ADDRESS, float64))
def store_f32(builder: Any, address: Any, x: Any) -> None:
    memory.store(builder, address, builder.fptrunc(x, _F32))


@memory.emit(int64(float64))
def _bits_f32(builder: Any, x: Any) -> Any:
    return builder.zext(builder.bitcast(builder.fptrunc(x, _F32), ir.IntType(32)), _I64)


# ---- packing --------------------------------------------------------------------------------------------------------------------------


@kernel
def count(words, n, counts):
    """Add to counts (i8[N_COUNTS]) what n words have of each exponent, and of zeros."""
    for i in range(n):
        word = load_u16(words + 2 * i)
        counts[(word >> 7) & 255] += 1
        counts[256] += (word & 0x7FFF) == 0


@emit(int64(*(int64,) * 5))
def _pack_step(builder: Any, words: Any, part: Any, base: Any, codes: Any, signed_mantissas: Any) -> Any:
    """16 words of codes and 32 of signed mantissas, from 8 times 16 words `part` apart. Returns whether any of these is escaped (not 0)."""
    bases = splat(builder, base, 32, LANES)
    packed = [bases ^ bases] * 3
    escaped = None
    for j in range(8):
        word = load(builder, element(builder, words, 2 * j, part), 16, LANES).widen(32)
        code = (word >> 7 & 255) - bases
        coded = (code - 1).below(CODES)
        kept = Vector(builder, builder.or_(coded.value, (word & 0x7FFF).equals(0).value))
        zeros = word ^ word
        packed[0] = packed[0] | coded.where(code, zeros) << 4 * j
        half = 1 + j // 4
        packed[half] = packed[half] | kept.where(word >> 8 & 0x80 | word & 0x7F, zeros) << 8 * (j % 4)
        left = builder.not_(kept.value)
        escaped = left if escaped is None else builder.or_(escaped, left)
    for to, vector in zip((codes, signed_mantissas, element(builder, signed_mantissas, 4, part)), packed, strict=True):
        store(to, vector)
    return Vector(builder, escaped).as_number()


@kernel
def pack(words, n_rows, n_columns, n_words, part, base, first_place, n_escapes, spare, codes, signed_mantissas, row_starts, places, values):
    """Pack rows whose first word is number `first_place` of the matrix, and which `n_escapes` escaped weights precede. Returns how many precede the next.

    words: u2[n_rows, n_columns]. codes: u4[n_rows, n_words]. signed_mantissas: u4[n_rows, 2 * n_words]. row_starts: u4[n_rows]. places (u8) and values (u2)
    have room for all escaped weights of the matrix. spare: u2[8 * n_words].
    """
    n_padded = 8 * n_words
    fill(spare, 0, 2 * n_padded)
    for row in range(n_rows):
        store_u32(row_starts + 4 * row, n_escapes)
        at = words + 2 * row * n_columns
        if n_columns < n_padded:
            copy(spare, at, 2 * n_columns)
            at = spare
        for block in range(0, n_words, part):
            escaped = 0
            for i in range(block, block + part, LANES):
                to = signed_mantissas + 4 * (2 * row * n_words + block + i)
                escaped |= _pack_step(at + 2 * (7 * block + i), part, base, codes + 4 * (row * n_words + i), to)
            for column in range(8 * block, 8 * (block + part) if escaped else 0):
                word = load_u16(at + 2 * column)
                code = ((word >> 7) & 255) - base
                if (word & 0x7FFF) != 0 and not 1 <= code <= CODES:
                    store_u64(places + 8 * n_escapes, types.uint64(first_place + row * n_columns + column))
                    store_u16(values + 2 * n_escapes, word)
                    n_escapes += 1
    return n_escapes


# ---- unpacking ------------------------------------------------------------------------------------------------------------------------


@emit(types.void(*(int64,) * 5))
def _unpack_step(builder: Any, codes: Any, signed_mantissas: Any, part: Any, base: Any, out: Any) -> None:
    """The reverse of `_pack_step`; escaped words come out as zeros."""
    code = load(builder, codes, 32, LANES)
    halves = [load(builder, place, 32, LANES) for place in (signed_mantissas, element(builder, signed_mantissas, 4, part))]
    bases = splat(builder, base, 32, LANES)
    for j in range(8):
        byte = halves[j // 4] >> 8 * (j % 4)
        own = code >> 4 * j & 15
        exponent = own.equals(0).where(own, own + bases)
        word = (byte & 0x80) << 8 | exponent << 7 | byte & 0x7F
        store(element(builder, out, 2 * j, part), word.narrow(16))


@kernel
def unpack(codes, signed_mantissas, row_starts, places, values, n_columns, n_words, part, base, rows, spare, out):
    """out (u2[n, n_columns]) gets the words of the rows with these numbers (i8[n], which the matrix has). spare: u2[8 * n_words]."""
    n_padded = 8 * n_words
    for k in range(rows.size):
        row, to = rows[k], out + 2 * k * n_columns
        at = spare if n_columns < n_padded else to
        for block in range(0, n_words, part):
            for i in range(block, block + part, LANES):
                _unpack_step(codes + 4 * (row * n_words + i), signed_mantissas + 4 * (2 * row * n_words + block + i), part, base, at + 2 * (7 * block + i))
        if n_columns < n_padded:
            copy(to, spare, 2 * n_columns)
        for k_escape in range(load_u32(row_starts + 4 * row), load_u32(row_starts + 4 * row + 4)):
            column = int64(load_u64(places + 8 * k_escape)) - row * n_columns
            store_u16(to + 2 * column, load_u16(values + 2 * k_escape))


# ---- multiplying ----------------------------------------------------------------------------------------------------------------------


@kernel
def scale(x, n_vectors, n_columns, n_padded, out, factors):
    """Scale each x (bf16[n_vectors, n_columns]) to its greatest; out: f4[n_vectors, n_padded]. factors (f8[n_vectors]) undo that.

    Exact. Returns False where an x is infinite or not a number; `out` is then garbage.
    """
    for v in range(n_vectors):
        at, to = x + 2 * v * n_columns, out + 4 * v * n_padded
        greatest = 0
        for i in range(n_columns):
            greatest = max(greatest, load_u16(at + 2 * i) & 0x7FFF)
        if greatest >= 0x7F80:
            return False
        up = _GREATEST - max(greatest >> 7, 1)
        factor = math.ldexp(1.0, up)
        for i in range(n_columns):
            store_f32(to + 4 * i, load_bf16(at + 2 * i) * factor)
        fill(to + 4 * n_columns, 0, 4 * (n_padded - n_columns))
        factors[v] = math.ldexp(1.0, -up)
    return True


def _joined(bytes_a: Vector, bytes_b: Vector) -> tuple[Vector, Vector]:
    """Bytes 0 and 1 of both, and bytes 2 and 3: as the codes lie, those of columns j and j + 4 parts in the same places of the halves of a lane."""
    return bytes_a & 0xFFFF | bytes_b << 16, bytes_a >> 16 | bytes_b & 0xFFFF0000


def _scaled_weights(joined: tuple[Vector, Vector], codes: Vector, j: int) -> tuple[Vector, Vector]:
    """Weights (f4) of columns j and j + 4 parts, times 2^-base: the code is the whole exponent, so that nothing has to be looked up or added.

    As bf16 first, two in a lane.
    """
    builder, up = codes.builder, 7 - 4 * j
    byte = joined[j // 2].of(16) << (0 if j % 2 else 8)
    spread = Vector(builder, builder.ashr(byte.value, ir.Constant(byte.value.type, [8] * byte.lanes)))
    exponent = codes.of(16) << up if up >= 0 else codes.of(16) >> -up
    words = (spread & 0x807F | exponent & 0x0780).of(32)
    low, high = (Vector(builder, builder.bitcast(part.value, _FLOATS)) for part in (words << 16, words & 0xFFFF0000))
    return low, high


def _total(vector: Vector) -> Any:
    """The sum of all lanes, as an f4: always in the same order."""
    builder = vector.builder
    while vector.lanes > 1:
        half = vector.lanes // 2
        vector = Vector(builder, builder.fadd(vector.pick(range(half)).value, vector.pick(range(half, 2 * half)).value))
    return builder.extract_element(vector.value, ir.Constant(ir.IntType(32), 0))


def _dots(rows: int, vectors: int) -> Any:
    """Emit the products of `rows` rows and `vectors` vectors."""

    def body(builder: Any, codes: Any, signed_mantissas: Any, x: Any, n_words: Any, part: Any, apart: Any, last: Any, sums: Any) -> None:
        """Row k is k * apart rows after the first, but no more than `last`. sums (f4[rows, vectors]), in the scales of weights and x."""
        ks = [builder.mul(apart, _i64(k)) for k in range(rows)]
        afters = [builder.mul(builder.select(builder.icmp_signed("<", k, last), k, last), n_words) for k in ks]
        rows_of_codes = [element(builder, codes, 4, after) for after in afters]
        rows_of_bytes = [element(builder, signed_mantissas, 8, after) for after in afters]
        part_bytes, x_bytes = builder.mul(part, _i64(4)), builder.mul(n_words, _i64(32))

        def multiply_lanes(state: Any) -> Any:
            *accumulators, at_block, i = state
            at_codes, at_bytes = builder.add(builder.mul(at_block, _i64(4)), i), builder.add(builder.mul(at_block, _i64(8)), i)
            parts = [(builder.add(row, at_codes), _AHEAD // 2) for row in rows_of_codes]
            for half in (at_bytes, builder.add(at_bytes, part_bytes)):
                parts += [(builder.add(row, half), _AHEAD) for row in rows_of_bytes]
            loaded = [load(builder, place, 32, LANES) for place, _ in parts]
            for place, ahead in parts:
                prefetch(builder, offset(builder, place, ahead))
            codes_of, joined = loaded[:rows], [_joined(*pair) for pair in zip(loaded[rows : 2 * rows], loaded[2 * rows :], strict=True)]
            at_x = builder.add(x, builder.add(builder.mul(at_block, _i64(32)), i))
            for j in range(4):
                of_vectors = [builder.add(at_x, builder.mul(x_bytes, _i64(v))) for v in range(vectors)]
                of_both = of_vectors, [builder.add(place, builder.mul(part_bytes, _i64(4))) for place in of_vectors]
                xs = [[Vector(builder, memory.load(builder, place, _FLOATS)) for place in places] for places in of_both]
                for k in range(rows):
                    for weights, x_j in zip(_scaled_weights(joined[k], codes_of[k], j), xs, strict=True):
                        for v in range(vectors):
                            total = accumulators[k * vectors + v]
                            accumulators[k * vectors + v] = weights.call(f"llvm.fmuladd.v{LANES}f32", x_j[v], total)
                at_x = builder.add(at_x, part_bytes)
            return *accumulators, at_block, offset(builder, i, 4 * LANES)

        def multiply_block(state: Any) -> Any:
            *accumulators, block = state
            inner = [*accumulators, block, _i64(0)]
            *accumulators, _, _ = loop(builder, inner, lambda s: builder.icmp_signed("<", s[-1], part_bytes), multiply_lanes)
            return *accumulators, builder.add(block, part)

        zeros = Vector(builder, ir.Constant(_FLOATS, [0.0] * LANES))
        *accumulators, _ = loop(builder, [zeros] * (rows * vectors) + [_i64(0)], lambda s: builder.icmp_signed("<", s[-1], n_words), multiply_block)
        for place, accumulator in enumerate(accumulators):
            memory.store(builder, offset(builder, sums, 4 * place), _total(accumulator))

    body.__name__ = f"dots_of_{rows}_rows_and_{vectors}"  # tells kernels apart where they are kept
    return emit(types.void(*(int64,) * 8))(body)


def _multiplier(vectors: int) -> Any:
    rows = min(ROWS, _ACCUMULATORS // vectors)
    dots = _dots(rows, vectors)

    def multiply(
        codes, signed_mantissas, row_starts, places, values, x, factors, bias, out, narrow, n_rows, n_columns, n_words, part, base, first, n, sums,
    ):  # fmt: skip
        """Rows first .. first + n - 1, at least one, of y = matrix times each x, plus a bias (bf16[n_rows], or address 0).

        x, factors: what `scale` gives, n_padded = 8 * n_words. out: y as f4[vectors, n_rows], where `narrow` as bf16. sums: f4[ROWS * MOST_VECTORS].
        """
        apart = -(-n // rows)
        factor = math.ldexp(1.0, base)
        for i in range(first, first + apart):
            dots(codes + 4 * i * n_words, signed_mantissas + 8 * i * n_words, x, n_words, part, apart, n - apart, sums)
            for k in range(rows):
                row = i + min(k * apart, n - apart)
                start, end = load_u32(row_starts + 4 * row), load_u32(row_starts + 4 * row + 4)
                for v in range(vectors):
                    total = load_f32(sums + 4 * (k * vectors + v)) * factor
                    for k_escape in range(start, end):
                        column = int64(load_u64(places + 8 * k_escape)) - row * n_columns
                        total += load_bf16(values + 2 * k_escape) * load_f32(x + 4 * (8 * v * n_words + column))
                    total *= factors[v]
                    if bias != 0:
                        total += load_bf16(bias + 2 * row)
                    bits = _bits_f32(total)
                    if not narrow:
                        store_u32(out + 4 * (v * n_rows + row), bits)
                    elif total != total:
                        store_u16(out + 2 * (v * n_rows + row), 0x7FC0)
                    else:
                        store_u16(out + 2 * (v * n_rows + row), (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)

    return kernel(multiply)


MULTIPLY = {vectors: _multiplier(vectors) for vectors in range(1, MOST_VECTORS + 1)}
"""By the number of vectors, which are multiplied as if each were alone."""
