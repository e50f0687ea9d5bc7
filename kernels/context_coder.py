"""Indices of a quantizer's grid, each coded given what the indices before it tell about its weight (docs/stages.md: grid).

A weight is predicted from those before it in the same kernel, by a factorization of the kernels' running covariance; in a matrix without kernels, from the mean
of its column, times how much of these means its row has shown so far (rows of an embedding share a direction). How far it lies from there is predicted by
running means over its row, column, kernel, place in the kernel and neighbours. A logistic distribution with that place and scale gives every binary decision
of an index a probability; two of them with different scales are mixed, and the mix is corrected by what came up so far.
sources: logistic mixing: Mahoney, PAQ8; parametric forecasts of a sample from its neighbours: Meyer & Tischer, TMW.

All of it is integers of 64 bits, so that every machine computes the same: places count 1/256 of a step, logarithms are of base 2 and count 1/256, probabilities
count 2^-16 or 2^-30, `>>` and `//` round down. Every number stays below 2^62 whatever the stream holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import boolean, int64, types, uint8

from modelcodec.kernels.jit import inlined, kernel, piece
from modelcodec.kernels.logistic import ONE, exp2, log2, logistic
from modelcodec.kernels.trellis import Code, next_state

MOST_KERNEL = 64
"""Weights of larger kernels are not predicted from each other."""
FULL = -1
"""What `pack` returns where the bytes do not fit their buffer."""

_I8, _U1 = int64[::1], uint8[::1]
_FAR = 1 << 20
"""Places further off count as that far when a row is compared with the column means, so that sums of products stay small."""
_LEAST = 24
"""Lowest probability, in 2^-16."""
_MIXED = 3
_SIGN, _EXPONENT = 1, 2
_NODES = _EXPONENT + _MIXED
"""Decisions whose forecasts are mixed: whether an index is zero, its sign, whether its magnitude reaches 2, 4, 8."""
_MOST_EXPONENT = 14
_BUCKETS = 33

_ROW, _CHANNEL, _PLACE, _RECENT, _LATE, _COLUMN, _KERNEL = 143, 102, 192, 20, 26, 82, 31
"""How much each mean counts for a weight's scale, in 1/256 (fitted on nets that no benchmark measures)."""
_ROW_2, _CHANNEL_2, _PLACE_2, _COLUMN_2 = 205, 102, 205, 102
"""The same for the second scale."""

_SLOTS = _NODES * 2
_WEIGHTS_AT, _CORRECTIONS_AT = 0, 3 * _SLOTS
_TABLES = _CORRECTIONS_AT + _BUCKETS * _SLOTS


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
    """(part + 1) / (whole + 2) in 2^-16, both below 2^31."""
    return min(max(_quotient((part + 1) << 16, whole + 2), _LEAST), 65536 - _LEAST)


@inlined
def _beyond(magnitude, union, mu, reciprocal, negative):
    """Probability of an index of this sign with at least this magnitude, 2 or more."""
    edge = (2 * magnitude - 1 - union) << 8
    return logistic(((-edge - mu) * reciprocal) >> 24) if negative else ONE - logistic(((edge - mu) * reciprocal) >> 24)


@inlined
def _scale(x):
    """A scale's logarithm, inside what the arithmetic can hold."""
    return min(max(x, 512), 6400)


@piece(types.void(*(int64[:, ::1],) * 3, int64))
def _factorize(covariance, lower, scaled, size):
    """covariance = lower * diagonal * lower^T; `lower` (unit, 1 = 2^20) tells how a place of a kernel follows from what was new at those before."""
    most, shift = int64(0), int64(0)
    for i in range(size):
        most = max(most, covariance[i, i])
    while most >> shift >= 1 << 26:
        shift += 1
    for j in range(size):
        for i in range(j, size):
            x = covariance[i, j] >> shift
            for q in range(j):
                x -= (lower[i, q] * scaled[j, q]) >> 20
            if i == j:
                scaled[j, j] = max(x, 64)
            else:
                scaled[i, j] = min(max(x, -(1 << 28)), 1 << 28)
                lower[i, j] = min(max((scaled[i, j] << 20) // scaled[j, j], -(1 << 24)), 1 << 24)


@piece(types.void(_I8, int64[:, ::1], int64))
def _reset(tables, covariance, size):
    """Before the first weight: the mixer trusts both scales, corrections correct nothing, the places of a kernel are unrelated."""
    for slot in range(_SLOTS):
        tables[_WEIGHTS_AT + 3 * slot], tables[_WEIGHTS_AT + 3 * slot + 1], tables[_WEIGHTS_AT + 3 * slot + 2] = 39322, 26214, 0
        for bucket in range(_BUCKETS):
            tables[_CORRECTIONS_AT + _BUCKETS * slot + bucket] = logistic((bucket - 16) << 9) >> 14
    for i in range(size):
        for j in range(size):
            covariance[i, j] = 10 << 16 if i == j else 0


def _coder(decoding: bool) -> Any:
    """Both directions from one source: the model may not differ between them."""

    @inlined
    def code(coder, data, end, p, bit):
        """Code one decision, 1 with probability p. coder: the ends of the interval that is left, the decoder's place in it, the place of the next byte."""
        low, high = coder[0], coder[1]
        middle = low + ((high - low) >> 16) * p + ((((high - low) & 0xFFFF) * p) >> 16)
        if decoding:
            bit = int64(coder[2] <= middle)
        if bit:
            high = middle
        else:
            low = middle + 1
        while (low ^ high) >> 24 == 0:
            if decoding:
                coder[2] = (coder[2] << 8) & 0xFFFFFFFF
                if coder[3] < end:
                    coder[2] |= int64(data[coder[3]])
            else:
                data[coder[3]] = high >> 24
            coder[3] += 1
            low, high = (low << 8) & 0xFFFFFFFF, ((high << 8) & 0xFFFFFFFF) | 255
        coder[0], coder[1] = low, high
        return bit

    @inlined
    def decide(coder, data, end, tables, slot, p, q, bit):
        """Code one decision with two forecasts p and q, mixed and corrected by what came up at this node."""
        x, y = log2(p) - log2(65536 - p), log2(q) - log2(65536 - q)
        w = _WEIGHTS_AT + 3 * slot
        mixed = min(max((tables[w] * x + tables[w + 1] * y + tables[w + 2] * 256) >> 16, -3000), 3000)
        forecast = logistic(mixed << 2) >> 14
        place = min(max(mixed, -2047), 2047) + 2048
        near, fraction = _CORRECTIONS_AT + _BUCKETS * slot + (place >> 7), place & 127
        corrected = (tables[near] * (128 - fraction) + tables[near + 1] * fraction) >> 7
        bit = code(coder, data, end, min(max((forecast + corrected) >> 1, _LEAST), 65536 - _LEAST), bit)
        error = (bit << 16) - forecast
        tables[w] += (x * error + 65536) >> 17
        tables[w + 1] += (y * error + 65536) >> 17
        tables[w + 2] += (256 * error + 65536) >> 17
        near += int64(fraction >= 64)
        tables[near] += ((bit << 16) - tables[near]) >> 6
        return bit

    @piece(int64(_I8, _U1, int64, _I8, *(int64,) * 6, boolean, int64))
    def magnitude(coder, data, end, tables, union, mu, a, b, over_a, over_b, negative, wanted):
        """Code a magnitude from 1 on: the power of two below it, then bits. a, b: reciprocal scales; over_a, over_b: probabilities of the index's sign."""
        low, exponent, above = int64(1), int64(0), int64(0)
        while exponent < _MOST_EXPONENT:
            beyond_a = _beyond(2 * low, union, mu, a, negative)
            p = _share(beyond_a, over_a)
            bit = int64(wanted >= 2 * low)
            if exponent < _MIXED:
                beyond_b = _beyond(2 * low, union, mu, b, negative)
                bit = decide(coder, data, end, tables, 2 * (_EXPONENT + exponent) + union, p, _share(beyond_b, over_b), bit)
                over_b = beyond_b
            else:
                bit = code(coder, data, end, p, bit)
            if not bit:
                above = beyond_a
                break
            low, exponent, over_a = 2 * low, exponent + 1, beyond_a
        size = low
        while size > 1:
            size >>= 1
            beyond_a = _beyond(low + size, union, mu, a, negative)
            if code(coder, data, end, _share(beyond_a - above, over_a - above), int64(wanted >= low + size)):
                low, over_a = low + size, beyond_a
            else:
                above = beyond_a
        return low

    @kernel
    def run(indices, first, columns, size, first_mean, h0, h1, state, data, end, coder, sums, tables, lower, scaled, covariance, fresh, places, scales):
        """Code all indices (i4); `first` is the column of the first one, `size` that of a kernel, h0 and h1 the trellis. Returns the bytes, or FULL.

        sums (i8, zeros): columns, then columns / size, then size, then columns of them. fresh (i8): 2 * size. places, scales (i4, encoder only): the forecasts.
        """
        _reset(tables, covariance, size)
        coder[0], coder[1], coder[2], coder[3] = 0, 0xFFFFFFFF, 0, 0
        if decoding:
            for _ in range(4):
                coder[2] = coder[2] << 8 | (int64(data[coder[3]]) if coder[3] < end else int64(0))
                coder[3] += 1
        channels, at_channels, at_places = columns // size, columns, columns + columns // size
        at_means = at_places + size
        along, square, row_along, row_square, trust, usual, gain, rate = int64(0), int64(0), int64(0), int64(0), int64(0), int64(0), int64(0), int64(0)
        total, count, mean, row = 8 * first_mean, int64(8), first_mean, int64(0)
        kernels, next_factorization = int64(0), int64(4)
        row_sum, row_count, kernel_sum, channel_mean, recent, late = int64(0), int64(0), int64(0), first_mean, first_mean, first_mean
        column, channel, place, base, of_rows = first, first // size, first % size, int64(0), int64(0)
        for i in range(indices.size):
            if column == 0 or i == 0:
                mean = _quotient(total, count)
                row_sum, row_count, recent, late = int64(0), int64(0), mean, mean
                base, of_rows = log2(mean), log2(row + 4)
                typical = max(min(mean, _FAR), 128)
                trust, along, square = 8 * typical * typical, (along + row_along) >> 1, (square + row_square) >> 1
                usual = _gain(along, square + trust)
                row_along, row_square, gain, rate = int64(0), int64(0), usual, max(_quotient(65536, row + 2), 1024)
            if place == 0 or i == 0:
                kernel_sum = int64(0)
                channel_mean = _quotient(sums[at_channels + channel] + 4 * mean, row * size + 4)
            middle, common, mu = int64(0), int64(0), int64(0)
            if size == 1:
                if column & 3 == 0:
                    gain = _gain(row_along + ((trust * usual) >> 16), row_square + trust)
                middle = min(max(sums[at_means + column] >> 8, -_FAR), _FAR)
                common = (gain * middle) >> 16
            for q in range(place):
                mu += lower[place, q] * fresh[q]
            mu = min(max(common + (mu >> 20), -(1 << 24)), 1 << 24)
            of_row = log2(row_sum + 6 * mean) - log2(row_count + 6) - base
            of_channel = log2(sums[at_channels + channel] + 4 * mean) - log2(row * size + place + 4) - base
            of_place = log2(sums[at_places + place] + 8 * mean) - log2(row * channels + channel + 8) - base
            of_column = log2(sums[column] + 4 * channel_mean) - of_rows - base
            near = _RECENT * (log2(recent) - base) + _LATE * (log2(late) - base) + _KERNEL * (log2(kernel_sum + 3 * late) - log2(place + 3) - base)
            scale = _scale(base + ((_ROW * of_row + _CHANNEL * of_channel + _PLACE * of_place + _COLUMN * of_column + near) >> 8))
            wide = _scale(base + ((_ROW_2 * of_row + _CHANNEL_2 * of_channel + _PLACE_2 * of_place + _COLUMN_2 * of_column) >> 8))
            a, b = exp2(35 * 256 - scale), exp2(35 * 256 - wide)

            union = state & 1
            edge = 256 >> union
            over_a, over_b = ONE - logistic(((edge - mu) * a) >> 24), ONE - logistic(((edge - mu) * b) >> 24)
            under_a, under_b = logistic(((-edge - mu) * a) >> 24), logistic(((-edge - mu) * b) >> 24)
            index = int64(0)
            if not decoding:
                index = int64(indices[i])
                places[i], scales[i] = mu, scale
            p, q = _share(over_a + under_a, ONE), _share(over_b + under_b, ONE)
            if decide(coder, data, end, tables, union, p, q, int64(index != 0)):
                p, q = _share(over_a, over_a + under_a), _share(over_b, over_b + under_b)
                if decide(coder, data, end, tables, 2 * _SIGN + union, p, q, int64(index > 0)):
                    index = magnitude(coder, data, end, tables, union, mu, a, b, over_a, over_b, False, index)
                else:
                    index = -magnitude(coder, data, end, tables, union, mu, a, b, under_a, under_b, True, -index)
            if decoding:
                indices[i] = index
            elif coder[3] + 64 > data.size:
                return int64(FULL)

            value = 512 * index
            if union and index:
                value += 256 if index < 0 else -256
            state = next_state(state, index, h0, h1)
            fresh[place] = value - mu
            fresh[size + place] = value
            if size == 1:
                row_along, row_square = row_along + min(max(value, -_FAR), _FAR) * middle, row_square + middle * middle
                sums[at_means + column] += (((value << 8) - sums[at_means + column]) * rate) >> 16
            off = abs(value - mu) + 13
            sums[column] += off
            sums[at_channels + channel] += off
            sums[at_places + place] += off
            total, count = total + off, count + 1
            row_sum, row_count, kernel_sum = row_sum + off, row_count + 1, kernel_sum + off
            recent, late = recent + ((off - recent) >> 2), late + ((off - late) >> 4)
            if place == size - 1 and size > 1:
                factor = exp2(max(24 * 256 - wide, 0))
                for q in range(size):
                    fresh[q] = min(max((fresh[size + q] * factor) >> 16, -32768), 32767)
                for q in range(size):
                    for r in range(q + 1):
                        covariance[q, r] += fresh[q] * fresh[r]
                kernels += 1
                if kernels == next_factorization:
                    next_factorization += max(kernels >> 3, 4)
                    _factorize(covariance, lower, scaled, size)
            column, place = column + 1, place + 1
            if place == size:
                channel, place = channel + 1, int64(0)
            if column == columns:
                column, channel, row = int64(0), int64(0), row + 1
        if not decoding and coder[0]:  # the shortest bytes that, with zeros after them, lie in the interval that is left
            shift = int64(24)
            while ((coder[0] >> shift) + int64((coder[0] & ((1 << shift) - 1)) > 0)) << shift > coder[1]:
                shift -= 8
            last = (coder[0] >> shift) + int64((coder[0] & ((1 << shift) - 1)) > 0)
            for k in range(4 - (shift >> 3)):
                data[coder[3]] = (last << shift) >> (24 - 8 * k) & 255
                coder[3] += 1
        return coder[3]

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


def _memory(geometry: Geometry) -> tuple[np.ndarray[Any, Any], ...]:
    size = geometry.kernel
    square = np.zeros((3, size, size), np.int64)
    sums = np.zeros(2 * geometry.columns + geometry.columns // size + size, np.int64)
    return np.empty(4, np.int64), sums, np.empty(_TABLES, np.int64), square[0], square[1], square[2], np.zeros(2 * size, np.int64)


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
