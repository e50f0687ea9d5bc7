"""Sums of pseudo-random signs: the stream of bytes that a seed stands for, and products with the matrix of its bits (docs/stages.md: seedbasis).

A stream is made by Philox 4x32-10, of integers alone, at any place without what comes before it. A byte decides eight signs, so that a word's sum is one
look-up a byte, in tables of the sums of eight coefficients (the "Four Russians": Arlazarov, Dinic, Kronrod & Faradzev, 1970); 128 signs cost a block of the
generator and 16 look-ups. Nothing of the matrix is kept.
source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import int64, types, uint64

from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import ADDRESS, address_of, load_u8, load_u32, scratch, store_u32, store_u64

Array = np.ndarray[Any, Any]

_PIECE = 1 << 14
"""Bytes of a stream that are made at a time: they stay in the fastest cache, beside the tables."""
_TABLE = 256
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


@dataclass(frozen=True, slots=True)
class Signs:
    """Signs of `k` coefficients for each word of a tensor: those of words of the same span of `span` words go with the same coefficients."""

    seed: int
    span: int
    k: int

    def spans(self, at: int, n: int) -> int:
        """Spans that n words from word `at` on touch."""
        return (at + n - 1) // self.span - at // self.span + 1 if n else 0


@piece(types.void(uint64, int64, uint64, uint64, ADDRESS))
def _fill(first, n, high, seed, out):
    """Blocks `first`, first + 1 ... of 16 bytes: the generator's outputs for counters whose two upper words are `high`."""
    for block in range(n):
        counter = first + uint64(block)
        x0, x1, x2, x3 = counter & uint64(_LOW), counter >> uint64(32), high & uint64(_LOW), high >> uint64(32)
        key0, key1 = seed & uint64(_LOW), seed >> uint64(32)
        for _ in range(_ROUNDS):
            left, right = x0 * uint64(_MULTIPLIERS[0]), x2 * uint64(_MULTIPLIERS[1])
            x0, x2 = (right >> uint64(32)) ^ x1 ^ key0, (left >> uint64(32)) ^ x3 ^ key1
            x1, x3 = right & uint64(_LOW), left & uint64(_LOW)
            key0, key1 = (key0 + uint64(_WEYL[0])) & uint64(_LOW), (key1 + uint64(_WEYL[1])) & uint64(_LOW)
        store_u64(out + 16 * block, x0 | x1 << uint64(32))
        store_u64(out + 16 * block + 8, x2 | x3 << uint64(32))


@kernel
def _blocks(first, n, high, seed, out):
    _fill(first, n, high, seed, out)


@piece(types.void(ADDRESS, int64, ADDRESS))
def _tabulate(coefficients, k, tables):
    """For each eight coefficients the sums that the values of a byte stand for: a coefficient counts with a plus where its bit is set, else with a minus."""
    for byte in range((k + 7) >> 3):
        table, bits = tables + 4 * _TABLE * byte, min(8, k - 8 * byte)
        total = int64(0)
        for bit in range(bits):
            total += load_u32(coefficients + 4 * (8 * byte + bit))
        store_u32(table, -total)
        for bit in range(8):  # the values with this as their highest bit, from those without it
            twice = 2 * load_u32(coefficients + 4 * (8 * byte + bit)) if bit < bits else int64(0)
            for value in range(1 << bit):
                store_u32(table + 4 * ((1 << bit) + value), load_u32(table + 4 * value) + twice)


@piece(types.void(ADDRESS, ADDRESS, int64, int64, ADDRESS))
def _look_up(stream, tables, n_bytes, n, out):
    for i in range(n):
        total = int64(0)
        for byte in range(n_bytes):
            total += load_u32(tables + 4 * (_TABLE * byte + load_u8(stream + i * n_bytes + byte)))
        store_u32(out + 4 * i, total)


@kernel
def _sums(coefficients, seed, span, k, at, n, tables, stream, out):
    n_bytes, first = (k + 7) >> 3, at // span
    most = _PIECE // n_bytes
    done = 0
    while done < n:
        number = (at + done) // span
        place = at + done - number * span
        end = min(n, done + span - place)
        _tabulate(coefficients + 4 * k * (number - first), k, tables)
        while done < end:
            count, start = min(end - done, most), place * n_bytes
            _fill(uint64(start >> 4), ((start & 15) + count * n_bytes + 15) >> 4, uint64(number), seed, stream)
            _look_up(stream + (start & 15), tables, n_bytes, count, out + 4 * done)
            done += count
            place += count


@piece(types.void(types.float32[::1], int64, int64, ADDRESS, int64, types.float64[::1]))
def _gather(values, first, n, stream, n_bytes, bins):
    """Add each value to the bins of its word's bytes."""
    for i in range(n):
        value = values[first + i]
        for byte in range(n_bytes):
            bins[uint64(_TABLE * byte + load_u8(stream + i * n_bytes + byte))] += value


@piece(types.void(types.float64[::1], int64, types.float64[::1], int64))
def _spread(bins, k, out, first):
    """For each coefficient the bins in which it counts with a plus, less the others."""
    for i in range(k):
        total, table = 0.0, _TABLE * (i >> 3)
        for value in range(_TABLE):
            amount = bins[uint64(table + value)]
            total += amount if value >> (i & 7) & 1 else -amount
        out[uint64(first + i)] = total


@kernel
def _correlations(values, seed, span, k, at, bins, stream, out):
    n_bytes, first, n = (k + 7) >> 3, at // span, values.size
    most = _PIECE // n_bytes
    done = 0
    while done < n:
        number = (at + done) // span
        place = at + done - number * span
        end = min(n, done + span - place)
        bins[:] = 0.0
        while done < end:
            count, start = min(end - done, most), place * n_bytes
            _fill(uint64(start >> 4), ((start & 15) + count * n_bytes + 15) >> 4, uint64(number), seed, stream)
            _gather(values, done, count, stream + (start & 15), n_bytes, bins)
            done += count
            place += count
        _spread(bins, k, out, k * (number - first))


def blocks(first: int, n: int, high: int, seed: int) -> Array:
    """Outputs (u4, n x 4) of the generator for the counters first, first + 1 ... whose upper 64 bits are `high`; the key is the seed."""
    out = np.empty((n, 4), np.uint32)
    _blocks(np.uint64(first), n, np.uint64(high), np.uint64(seed), address_of(out))
    return out


def sums(coefficients: Array, signs: Signs, at: int, n: int) -> Array:
    """For the n words from word `at` of a tensor on the sums (i4) of their spans' coefficients (i4: spans x k), each with its sign.

    Sums of the magnitudes must be below 2^31.
    """
    if coefficients.size != signs.spans(at, n) * signs.k or not 1 <= signs.k <= 8 * _PIECE:
        raise ValueError(f"{coefficients.size} coefficients are not {signs.k} for each span")
    flat = np.ascontiguousarray(coefficients, np.int32)
    out = np.empty(n, np.int32)
    n_tables = 4 * _TABLE * -(-signs.k // 8)
    place = scratch(n_tables + _PIECE + 32)
    _sums(address_of(flat), np.uint64(signs.seed), signs.span, signs.k, at, n, place, place + n_tables, address_of(out))
    return out


def correlations(values: Array, signs: Signs, at: int) -> Array:
    """For each coefficient (f8: spans x k) the sum of its words' values (f4), each with its sign: the transpose of `sums`."""
    out, bins = np.empty(signs.spans(at, values.size) * signs.k), np.empty(_TABLE * -(-signs.k // 8))
    _correlations(values, np.uint64(signs.seed), signs.span, signs.k, at, bins, scratch(_PIECE + 32), out)
    return out.reshape(-1, signs.k)
