"""Indices of a quantizer's grid, each coded given what the indices before it tell about its weight (docs/stages.md: grid).

A weight is predicted from those before it in the same kernel, by a factorization of the kernels' running covariance; in a matrix without kernels, from the mean
of its column, times how much of these means its row has shown so far (rows of an embedding share a direction). How far it lies from there is predicted by
running means over its row, column, kernel, place in the kernel and neighbours. A logistic distribution with that place and scale gives every binary decision
of an index a probability; two of them with different scales are mixed, and the mix is corrected by what came up so far.
sources: logistic mixing: Mahoney, PAQ8; parametric forecasts of a sample from its neighbours: Meyer & Tischer, TMW.

All of it is integers of 64 bits, so that every machine computes the same: places count 1/256 of a step, logarithms are of base 2 and count 1/256, probabilities
count 2^-16 or 2^-30, `>>` and `//` round down. Every number stays below 2^62 whatever the stream holds.

A processor spends its time waiting here: the next forecast needs this index, and this index a chain of a hundred operations. So what is known before is done
before. Weights are taken in stretches, the rest of a kernel or some columns of a row, and what the weights before a stretch say of its columns and places is
summed up for all of it at once. Both signs' forecasts are made while the sign is decoded. What bounds a number is a jump that is nearly always foreseen, since
nothing waits for it, and so is each decoded bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, types, uint64

from modelcodec.kernels.jit import inlined, kernel, piece
from modelcodec.kernels.logistic import LEAST, LOGITS, MODERATE, ONE, exp2, log2, logistic, squash
from modelcodec.kernels.memory import ADDRESS, address_of, emit, load, store
from modelcodec.kernels.trellis import Code, next_state

MOST_KERNEL = 64
"""Weights of larger kernels are not predicted from each other."""
FULL = -1
"""What `pack` returns where the bytes do not fit their buffer."""

_STRETCH = MOST_KERNEL
"""Most weights whose columns are looked up at once."""
_LANES = 8
_I8 = int64[::1]
_FAR = 1 << 20
"""Places further off count as that far when a row is compared with the column means, so that sums of products stay small."""
_MIXED = 3
_SIGN, _EXPONENT = 1, 2
_NODES = _EXPONENT + _MIXED
"""Decisions whose forecasts are mixed: whether an index is zero, its sign, whether its magnitude reaches 2, 4, 8."""
_MOST_EXPONENT = 14

_ROW, _CHANNEL, _PLACE, _RECENT, _LATE, _COLUMN, _KERNEL = 143, 102, 192, 20, 26, 82, 31
"""How much each mean counts for a weight's scale, in 1/256 (fitted on nets that no benchmark measures)."""
_ROW_2, _CHANNEL_2, _PLACE_2, _COLUMN_2 = 205, 102, 205, 102
"""The same for the second scale."""
_ALL = _ROW + _CHANNEL + _PLACE + _RECENT + _LATE + _COLUMN + _KERNEL
_ALL_2 = _ROW_2 + _CHANNEL_2 + _PLACE_2 + _COLUMN_2

_UNIT, _LOWEST, _HIGHEST = 35 * 256, 35 * 256 - 6400, 35 * 256 - 512
"""Logarithms of the reciprocal of a scale of 1, and of those of the widest and the narrowest scale."""

_BUCKETS = 33
_CORRECTIONS = 3
_SLOT = _CORRECTIONS + _BUCKETS
_SLOTS = _NODES * 2
"""For each node and union: the weights of both forecasts and of a constant, then what a mix between two buckets is corrected to."""


@emit(int64(int64))
def here(builder: Any, x: Any) -> Any:
    """The same number, computed here and nowhere else: not behind a jump where it delays what is there, and not on both sides of one to select from."""
    return builder.asm(ir.FunctionType(x.type, [x.type]), "", "=r,0", [x], True)


@emit(types.void(ADDRESS, ADDRESS, int64))
def multiply_add(builder: Any, totals: Any, factors: Any, x: Any) -> None:
    """Add to 8 numbers (i8) the products of 8 factors (i8) and x, all of which fit 32 bits with their sign."""
    kind = ir.VectorType(ir.IntType(64), _LANES)
    half = ir.Constant(kind, [32] * _LANES)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
    each = builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES))
    narrow = [builder.ashr(builder.shl(value, half), half) for value in (load(builder, factors, kind), each)]  # so that products of 32 bits will do
    store(builder, totals, builder.add(load(builder, totals, kind), builder.mul(*narrow)))


@inlined
def _quotient(a, b):
    """a / b rounded down, a from 0 to 2^50: a rounded quotient of doubles cannot reach an integer that the exact one does not reach."""
    return int64(np.float64(a) / np.float64(b))


@inlined
def _gain(products, squares):
    """products / squares in 2^-16, at most 4 either way; squares from 2^17 on."""
    return min(max(products // (squares >> 16), -(1 << 18)), 1 << 18)


@inlined
def _share(part, whole):
    """(part + 1) / (whole + 2) in 2^-16, for a part from 0 to the whole, which is below 2^31. Ready sooner than a quotient of doubles."""
    return int64(uint64((part + 1) << 16) // uint64(whole + 2))


@inlined
def _early_share(part, whole):
    """The same; of these, more can be on their way at once."""
    return _quotient((part + 1) << 16, whole + 2)


@inlined
def _share_of_one(part):
    """_share(part, ONE), ready soonest."""
    return (part - ((part - 1) >> 29)) >> 14


@inlined
def _bounded(p):
    """A probability in 2^-16 that both outcomes can be coded with."""
    return min(max(p, LEAST), 65536 - LEAST)


@inlined
def _logit(logits, p):
    """256 * log2(p / (1 - p)), p from 0 to 2^16"""
    return int64(logits[uint64(p)])


@inlined
def _beyond(magnitude, union, mu, reciprocal, positive):
    """Probability of an index of this sign with at least this magnitude, 2 or more. positive: 1 or 0."""
    edge = (2 * magnitude - 1 - union) << 8
    below = logistic((((edge if positive else -edge) - mu) * reciprocal) >> 24)
    return ONE - below if positive else below


@inlined
def _reciprocal(x):
    """2^35 over a scale, x being its logarithm: `_LOWEST` at least, `_HIGHEST` at most."""
    if uint64(x - _LOWEST) <= uint64(_HIGHEST - _LOWEST):
        return exp2(x)
    return int64(1 << (_LOWEST >> 8)) if x < _LOWEST else int64(1 << (_HIGHEST >> 8))


@piece(types.void(*(int64[:, ::1],) * 3, int64))
def _factorize(covariance, follows, scaled, size):
    """covariance = lower * diagonal * lower^T; `follows` is `lower` transposed (unit, 1 = 2^20): how what is new at a place tells of those after it."""
    most, shift = int64(0), int64(0)
    for i in range(size):
        most = max(most, covariance[i, i])
    while most >> shift >= 1 << 26:
        shift += 1
    for j in range(size):
        for i in range(j, size):
            x = covariance[i, j] >> shift
            for q in range(j):
                x -= (follows[q, i] * scaled[j, q]) >> 20
            if i == j:
                scaled[j, j] = max(x, 64)
            else:
                scaled[i, j] = min(max(x, -(1 << 28)), 1 << 28)
                follows[j, i] = min(max((scaled[i, j] << 20) // scaled[j, j], -(1 << 24)), 1 << 24)


@piece(types.void(_I8, int64[:, ::1], int64))
def _reset(tables, covariance, size):
    """Before the first weight: the mixer trusts both scales, corrections correct nothing, the places of a kernel are unrelated."""
    for slot in range(_SLOTS):
        at = _SLOT * slot
        tables[at], tables[at + 1], tables[at + 2] = 39322, 26214, 0
        for bucket in range(_BUCKETS):
            tables[at + _CORRECTIONS + bucket] = logistic((bucket - 16) << 9) >> 14
    for i in range(size):
        covariance[i, i] = 10 << 16


@inlined
def _corrected(tables, corrections, forecast, logit):
    """The mean of a forecast and of what its like came to, between two buckets along a line; first the place of the nearer bucket."""
    bucket, fraction = corrections + ((logit + 2048) >> 7), (logit + 2048) & 127
    correction = (tables[bucket] * 128 + (tables[bucket + 1] - tables[bucket]) * fraction) >> 7
    return bucket + int64(fraction >= 64), (forecast + correction) >> 1


@inlined
def _look_up_columns(known, known_2, middles, sums, means, column, length, row, row_count, columns, mean, both, both_2):
    """What is known of the next weights of a matrix: the means of their columns, and their scales' logarithms as far as the columns tell them, negated."""
    of_rows = log2(row + 4)
    for k in range(length):
        middles[k] = min(max(means[uint64(column + k)] >> 8, -_FAR), _FAR)
    for k in range(length):
        total = sums[uint64(column + k)] + 4 * mean
        of_channel = log2(total) - of_rows
        of_column = log2(total + 4 * (_quotient(total, row + 4) - mean)) - of_rows
        of_row, of_place = log2(row_count + k + 6), log2(row * columns + column + k + 8)
        known[k] = both - (_CHANNEL * of_channel + _COLUMN * of_column - _ROW * of_row - _PLACE * of_place - _KERNEL * log2(3))
        known_2[k] = both_2 - (_CHANNEL_2 * of_channel + _COLUMN_2 * of_column - _ROW_2 * of_row - _PLACE_2 * of_place)


@inlined
def _look_up_places(known, known_2, sums, place_sums, column, place, length, row, row_count, done, average, size, mean, both, both_2):
    """The same of the rest of a kernel, as far as its columns and places tell it; kernels done before it, and the average of its channel."""
    of_rows, of_kernels = log2(row + 4), log2(done + 8)
    for k in range(length):
        of_place = log2(place_sums[uint64(place + k)] + 8 * mean) - of_kernels
        of_column = log2(sums[uint64(column + k)] + 4 * average) - of_rows
        of_row, of_channel, of_kernel = log2(row_count + k + 6), log2(row * size + place + k + 4), log2(place + k + 3)
        known[k] = both - (_PLACE * of_place + _COLUMN * of_column - _ROW * of_row - _CHANNEL * of_channel - _KERNEL * of_kernel)
        known_2[k] = both_2 - (_PLACE_2 * of_place + _COLUMN_2 * of_column - _ROW_2 * of_row - _CHANNEL_2 * of_channel)


@inlined
def _relate(values, at_values, at_covariance, size, stride, factor):
    """Add what a kernel's values show of how places vary together. Entries above the diagonal are left as they come."""
    for q in range(size):
        values[q] = min(max((values[q] * factor) >> 16, -32768), 32767)
    for r in range(0, size, _LANES):
        for q in range(r, size):
            multiply_add(at_covariance + 8 * (stride * q + r), at_values + 8 * r, values[q])


def _coder(decoding: bool) -> Any:
    """Both directions from one source: the model may not differ between them.

    A coder is the low end of the interval that is left, its width, the decoder's place in it, and the place of the next byte.
    """

    @inlined
    def renormalise(low, width, code, at, data, end):
        """Shift out the bytes that both ends of the interval have."""
        while width < 1 << 24 and (low ^ (low + width)) >> 24 == 0:
            if decoding:
                code <<= 8
                if at < end:
                    code |= int64(data[uint64(at)])
            else:
                data[uint64(at)] = low >> 24
            low, width, at = (low << 8) & 0xFFFFFFFF, width << 8 | 255, at + 1
        return low, width, code, at

    @inlined
    def code(coder, data, end, p, bit):
        """Code one decision, 1 with probability p."""
        low, width, code, at = coder
        part = (width * p) >> 16
        if decoding:
            bit = int64(code <= part)
        if bit:
            width = part
        else:
            low, width, code = low + part + 1, width - part - 1, code - part - 1
        return renormalise(low, width, code, at, data, end), bit

    @inlined
    def decide(coder, data, end, tables, slot, x, y, bit):
        """Code one decision with two forecasts, logits x and y, mixed and corrected by what came up at this node."""
        low, width, code, at = coder
        w = _SLOT * slot
        mixed = (tables[w] * x + tables[w + 1] * y + tables[w + 2] * 256) >> 16
        if -MODERATE <= mixed <= MODERATE:  # then no probability comes near its bounds, as corrections are from 0 to 2^16
            forecast = squash(mixed)
            near, p = _corrected(tables, w + _CORRECTIONS, forecast, mixed)
        else:
            forecast = logistic(min(max(mixed, -3000), 3000) << 2) >> 14
            near, p = _corrected(tables, w + _CORRECTIONS, forecast, -MODERATE if mixed < 0 else MODERATE)
            p = _bounded(p)
        part = (width * p) >> 16
        if decoding:
            bit = int64(code <= part)
        if bit:
            width = part
            outcome, error = int64(65536), 65536 - forecast
        else:
            low, width, code = low + part + 1, width - part - 1, code - part - 1
            outcome, error = int64(0), here(-forecast)
        tables[w] += (x * error + 65536) >> 17
        tables[w + 1] += (y * error + 65536) >> 17
        tables[w + 2] += (error + 256) >> 9
        tables[near] += (outcome - tables[near]) >> 6
        return renormalise(low, width, code, at, data, end), bit

    @inlined
    def magnitude(coder, data, end, tables, logits, union, mu, a, b, sign, positive, wanted):
        """Code a magnitude from 1 on: the power of two below it, then bits. sign: probabilities of its sign and of 2 or more, logits of their share."""
        over_a, over_b, beyond_a, beyond_b, x, y = sign
        low, exponent, above = int64(1), int64(0), int64(0)
        while exponent < _MOST_EXPONENT:
            bit = int64(wanted >= 2 * low)
            if exponent < _MIXED:
                coder, bit = decide(coder, data, end, tables, 2 * (_EXPONENT + exponent) + union, x, y, bit)
            else:
                coder, bit = code(coder, data, end, _bounded(_share(beyond_a, over_a)), bit)
            if not bit:
                above = beyond_a
                break
            low, exponent, over_a, over_b = 2 * low, exponent + 1, beyond_a, beyond_b
            beyond_a, beyond_b = _beyond(2 * low, union, mu, a, positive), _beyond(2 * low, union, mu, b, positive)
            x, y = _logit(logits, _share(beyond_a, over_a)), _logit(logits, _share(beyond_b, over_b))
        size = low
        while size > 1:
            size >>= 1
            beyond_a = _beyond(low + size, union, mu, a, positive)
            coder, bit = code(coder, data, end, _bounded(_share(beyond_a - above, over_a - above)), int64(wanted >= low + size))
            if bit:
                low, over_a = low + size, beyond_a
            else:
                above = beyond_a
        return coder, low

    @inlined
    def code_index(coder, data, end, tables, logits, union, mu, a, b, index):
        """Code one index, expected at mu. a, b: reciprocal scales."""
        edge = 256 >> union
        over_a, over_b = ONE - logistic(((edge - mu) * a) >> 24), ONE - logistic(((edge - mu) * b) >> 24)
        under_a, under_b = logistic(((-edge - mu) * a) >> 24), logistic(((-edge - mu) * b) >> 24)
        x, y = here(_logit(logits, _early_share(over_a, over_a + under_a))), here(_logit(logits, _early_share(over_b, over_b + under_b)))
        z, w = _logit(logits, _share_of_one(over_a + under_a)), _logit(logits, _share_of_one(over_b + under_b))
        coder, bit = decide(coder, data, end, tables, union, z, w, int64(index != 0))
        result = int64(0)
        if bit:
            above_a, above_b = _beyond(2, union, mu, a, 1), _beyond(2, union, mu, b, 1)
            below_a, below_b = _beyond(2, union, mu, a, 0), _beyond(2, union, mu, b, 0)
            above_x, above_y = here(_logit(logits, _early_share(above_a, over_a))), here(_logit(logits, _early_share(above_b, over_b)))
            below_x, below_y = here(_logit(logits, _early_share(below_a, under_a))), here(_logit(logits, _early_share(below_b, under_b)))
            coder, positive = decide(coder, data, end, tables, 2 * _SIGN + union, x, y, int64(index > 0))
            if not positive:
                over_a, over_b, above_a, above_b, above_x, above_y = under_a, under_b, below_a, below_b, below_x, below_y
            sign = over_a, over_b, above_a, above_b, above_x, above_y
            coder, result = magnitude(coder, data, end, tables, logits, union, mu, a, b, sign, positive, abs(index))
            if not positive:
                result = -result
        return coder, result

    @inlined
    def finish(coder, data):
        """Write the shortest bytes that, with zeros after them, lie in the interval that is left. Returns how many bytes there are."""
        low, width, _, at = coder
        if low:
            shift = int64(24)
            while ((low >> shift) + int64((low & ((1 << shift) - 1)) > 0)) << shift > low + width:
                shift -= 8
            last = (low >> shift) + int64((low & ((1 << shift) - 1)) > 0)
            for k in range(4 - (shift >> 3)):
                data[at] = (last << shift) >> (24 - 8 * k) & 255
                at += 1
        return at

    @kernel
    def run(indices, first, columns, size, first_mean, h0, h1, state, data, end, logits, tables, sums, look, relation, places, scales):
        """Code all indices (i4); `first` is the column of the first one, `size` that of a kernel, h0 and h1 the trellis. Returns the bytes, or FULL.

        data (u1): 4 bytes for each index and 128, or to decode `end` bytes. places, scales (i4, encoder only): the forecasts. See `_memory` for the rest.
        """
        column_sums, channel_sums, place_sums, means = sums
        known, known_2, middles, values, at_values = look
        expected, follows, scaled, covariance, at_expected, at_follows, at_covariance = relation
        _reset(tables, covariance, size)
        coder = int64(0), int64(0xFFFFFFFF), int64(0), int64(0)
        if decoding:
            code, at = int64(0), int64(0)
            for _ in range(4):
                code, at = code << 8 | (int64(data[at]) if at < end else int64(0)), at + 1
            coder = int64(0), int64(0xFFFFFFFF), code, at
        n, i, row, column, channel, place = indices.size, int64(0), int64(0), first, first // size, first % size
        channels, stride = columns // size, covariance.shape[1]
        total, count, row_sum, row_count, recent, late, mean = 8 * first_mean, int64(8), int64(0), int64(0), int64(0), int64(0), int64(0)
        along, square, row_along, row_square, trust, usual, gain, rate = int64(0), int64(0), int64(0), int64(0), int64(0), int64(0), int64(0), int64(0)
        kernels, next_factorization, foretold, middle, x_2 = int64(0), int64(4), int64(0), int64(0), int64(0)
        both, both_2, whole_sum, whole_weight, whole_weight_2 = int64(0), int64(0), int64(0), _CHANNEL, _CHANNEL_2
        if size == 1:
            whole_weight, whole_weight_2 = _PLACE, _PLACE_2
        while i < n:
            if column == 0 or i == 0:
                mean = _quotient(total, count)
                row_sum, row_count, recent, late = int64(0), int64(0), mean, mean
                both = ((_UNIT - log2(mean)) << 8) + 255
                both, both_2 = both + _ALL * log2(mean), both + _ALL_2 * log2(mean)
                typical = max(min(mean, _FAR), 128)
                trust, along, square = 8 * typical * typical, (along + row_along) >> 1, (square + row_square) >> 1
                usual = _gain(along, square + trust)
                row_along, row_square, gain, rate = int64(0), int64(0), usual, max(_quotient(65536, row + 2), 1024)
            if size == 1:
                length = min(_STRETCH, columns - column, n - i)
                _look_up_columns(known, known_2, middles, column_sums, means, column, length, row, row_count, columns, mean, both, both_2)
                before = whole_sum + 8 * mean
            else:
                length, whole_sum = min(size - place, n - i), channel_sums[channel]
                before = whole_sum + 4 * mean
                done, average = row * channels + channel, _quotient(before, row * size + 4)
                _look_up_places(known, known_2, column_sums, place_sums, column, place, length, row, row_count, done, average, size, mean, both, both_2)
            row_before, stretch_sum = row_sum + 6 * mean, int64(0)
            for k in range(length):
                if size == 1:
                    middle = middles[k]
                    if (column + k) & 3 == 0:
                        gain = _gain(row_along + ((trust * usual) >> 16), row_square + trust)
                    mu = (gain * middle) >> 16
                    of_kernel = log2(3 * late)
                else:
                    mu = foretold >> 20
                    of_kernel = log2(stretch_sum + 3 * late)
                mu = min(max(mu, -(1 << 24)), 1 << 24)
                of_row, of_whole = log2(stretch_sum + row_before), log2(stretch_sum + before)
                near = _RECENT * log2(recent) + _LATE * log2(late) + _KERNEL * of_kernel
                x = (known[k] - (_ROW * of_row + whole_weight * of_whole + near)) >> 8
                x_2 = (known_2[k] - (_ROW_2 * of_row + whole_weight_2 * of_whole)) >> 8

                index, union = int64(0), state & 1
                if not decoding:
                    index = int64(indices[uint64(i + k)])
                    places[uint64(i + k)], scales[uint64(i + k)] = mu, _UNIT - min(max(x, _LOWEST), _HIGHEST)
                coder, index = code_index(coder, data, end, tables, logits, union, mu, _reciprocal(x), _reciprocal(x_2), index)
                if decoding:
                    indices[uint64(i + k)] = index
                elif coder[3] + 64 > data.size:
                    return int64(FULL)

                value = 512 * index
                if union and index:
                    value += 256 if index < 0 else -256
                state = next_state(state, index, h0, h1)
                off = abs(value - mu) + 13
                column_sums[uint64(column + k)] += off
                if size == 1:
                    values[k] = value
                    row_along, row_square = row_along + min(max(value, -_FAR), _FAR) * middle, row_square + middle * middle
                else:
                    values[uint64(place)] = value
                    place_sums[uint64(place)] += off
                    foretold = expected[uint64(place + 1)] + follows[uint64(place), uint64(place + 1)] * (value - mu)
                    for q in range(0, stride, _LANES):
                        multiply_add(at_expected + 8 * q, at_follows + 8 * (stride * place + q), value - mu)
                    place += 1
                stretch_sum += off
                recent, late = recent + ((off - recent) >> 2), late + ((off - late) >> 4)
            total, row_sum, whole_sum = total + stretch_sum, row_sum + stretch_sum, whole_sum + stretch_sum
            i, column, count, row_count = i + length, column + length, count + length, row_count + length
            if size == 1:
                for k in range(length):
                    at_mean = uint64(column - length + k)
                    means[at_mean] += (((values[k] << 8) - means[at_mean]) * rate) >> 16
            else:
                channel_sums[channel] = whole_sum
                if place == size:
                    _relate(values, at_values, at_covariance, size, stride, exp2(max(min(max(x_2, _LOWEST), _HIGHEST) - 11 * 256, 0)))
                    kernels, channel, place, foretold = kernels + 1, channel + 1, int64(0), int64(0)
                    for q in range(stride):
                        expected[q] = 0
                    if kernels == next_factorization:
                        next_factorization += max(kernels >> 3, 4)
                        _factorize(covariance, follows, scaled, size)
            if column == columns:
                column, channel, row = int64(0), int64(0), row + 1
        if decoding:
            return coder[3]
        return finish(coder, data)

    return run


_pack, _unpack = _coder(False), _coder(True)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the weights of a frame lie in their tensor: the column of the first, columns of a row, weights of a kernel (1: no kernels)."""

    first: int
    columns: int
    kernel: int

    @classmethod
    def of(cls, shape: tuple[int, ...], at: int, n: int) -> Geometry:
        """The n weights from `at` on of a tensor of this shape, which may be anything."""
        columns = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
        size = math.prod(shape[2:]) if len(shape) > 2 else 1
        if not 1 < size <= MOST_KERNEL:
            size = 1
        if columns > n or columns < 1:  # no column comes twice
            first = at % size
            return cls(first, -(-(first + n) // size) * size, size)
        return cls(at % columns, columns, size)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was known of each weight before its index: the place where it was expected in 1/256 steps, and 256 * log2 of its mean distance from there."""

    places: np.ndarray[Any, np.dtype[np.int32]]
    scales: np.ndarray[Any, np.dtype[np.int32]]


@dataclass(frozen=True, slots=True)
class Packed:
    """The bytes of packed indices, and what was forecast; None where they would take more than the buffer."""

    data: np.ndarray[Any, np.dtype[np.uint8]] | None
    forecast: Forecast = field(repr=False)


def _memory(geometry: Geometry) -> tuple[Any, ...]:
    """What the kernel works in, as it takes it.

    logits: `LOGITS`. tables: see `_SLOT`. sums: how far weights lay from where they were expected, in each column, channel and place of a kernel, and, in a
    matrix, the running mean of each column. look: of the weights of a stretch what is known of both scales, the means of their columns, and their values.
    relation: what the weights of a kernel let expect at its places, what is new at a place (a row each) means for those after it, what that was made from.
    """
    size, columns = geometry.kernel, geometry.columns
    matrix, stride = size == 1, (size // _LANES + 1) * _LANES  # whole vectors, and at least one place more than a kernel has
    column_sums, channel_sums, place_sums, means = (np.zeros(n, np.int64) for n in (columns, 0 if matrix else columns // size, size, columns if matrix else 0))
    known, known_2, middles, values = np.zeros((4, max(_STRETCH, stride)), np.int64)
    expected, follows, scaled, covariance = np.zeros(stride, np.int64), *np.zeros((3, size, stride), np.int64)
    look = known, known_2, middles, values, address_of(values)
    relation = expected, follows, scaled, covariance, address_of(expected), address_of(follows), address_of(covariance)
    return LOGITS, np.empty(_SLOT * _SLOTS, np.int64), (column_sums, channel_sums, place_sums, means), look, relation


def pack(indices: np.ndarray[Any, Any], geometry: Geometry, first_mean: int, code: Code, state: int) -> Packed:
    """Pack indices (i4, MOST_INDEX at most) of a path that starts in `state`; `first_mean` is a first guess of their mean magnitude in 1/256 steps."""
    n = indices.size
    forecast = Forecast(np.empty(n, np.int32), np.empty(n, np.int32))
    data = np.empty(4 * n + 128, np.uint8)
    run = (indices, geometry.first, geometry.columns, geometry.kernel, first_mean, code.h0, code.h1, state, data, 0)
    n_bytes = int(_pack(*run, *_memory(geometry), forecast.places, forecast.scales))
    return Packed(None if n_bytes == FULL else data[:n_bytes], forecast)


def unpack(data: np.ndarray[Any, Any], geometry: Geometry, first_mean: int, code: Code, state: int, indices: np.ndarray[Any, Any]) -> bool:
    """Fill `indices` (i4) from untrusted bytes; whatever they are, magnitudes stay in MOST_INDEX. False where bytes are left over."""
    nothing = np.empty(0, np.int32)
    run = (indices, geometry.first, geometry.columns, geometry.kernel, first_mean, code.h0, code.h1, state, data, data.size)
    return int(_unpack(*run, *_memory(geometry), nothing, nothing)) >= data.size
