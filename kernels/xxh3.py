"""XXH3 with 64 bits inside kernels: a frame is digested while it is in cache, without Python between.

source: xxhash's specification, version 0.8 (github.com/Cyan4973/xxHash).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.types import int64, uint64

from modelcodec.kernels import memory
from modelcodec.kernels.frequencies import flat
from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import address_of, load_u8, load_u32, load_u64, store_u64
from modelcodec.kernels.simd import Vector, constant, emit, load, loop, offset, prefetch, splat, store

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_PRIMES_32 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
PRIMES_64 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
AVALANCHE, SHORT_AVALANCHE = 0x165667919E3779F9, 0x9FB21C651E98DF25
START = _PRIMES_32[2], *PRIMES_64[:4], _PRIMES_32[1], PRIMES_64[4], _PRIMES_32[0]
_STRIPE, _BLOCK = 64, 1024
_AHEAD = 256
WORK_BYTES = 256
"""A secret with the seed in it, and the accumulators."""


def _i64(number: int) -> Any:
    return ir.Constant(ir.IntType(64), number)


@memory.emit(int64())
def _secret(builder: Any) -> Any:
    """Address of the secret."""
    return constant(builder, SECRET)


@memory.emit(uint64(uint64, uint64))
def _fold(builder: Any, x: Any, y: Any) -> Any:
    """Both halves of the product, one over the other."""
    wide = ir.IntType(128)
    product = builder.mul(builder.zext(x, wide), builder.zext(y, wide))
    high = builder.lshr(product, ir.Constant(wide, 64))
    return builder.trunc(builder.xor(product, high), ir.IntType(64))


@memory.emit(uint64(uint64))
def _swapped(builder: Any, x: Any) -> Any:
    """The bytes in reverse order."""
    return builder.bswap(x)


def _accumulated(builder: Any, sums: Vector, data: Any, secret: Any) -> Vector:
    """The accumulators after one more stripe."""
    words = load(builder, data, 64, 8)
    keyed = words ^ load(builder, secret, 64, 8)
    return sums + (words.pick([1, 0, 3, 2, 5, 4, 7, 6]) + (keyed & 0xFFFFFFFF) * (keyed >> 32))


@emit(int64(int64, int64, int64, int64))
def _accumulate(builder: Any, data: Any, n: Any, secret: Any, sums_at: Any) -> Any:
    """Sum n bytes, more than 240, up into 8 u64 at an address. Returns n."""
    whole = builder.udiv(builder.sub(n, _i64(1)), _i64(_BLOCK))
    last = offset(builder, secret, len(SECRET) - _STRIPE)

    def block(current: Any) -> Any:
        sums, at, i = current
        for k in range(_BLOCK // _STRIPE):
            prefetch(builder, offset(builder, at, _STRIPE * k + _AHEAD))
            sums = _accumulated(builder, sums, offset(builder, at, _STRIPE * k), offset(builder, secret, 8 * k))
        sums = (sums ^ sums >> 47 ^ load(builder, last, 64, 8)) * splat(builder, _i64(_PRIMES_32[0]), 64, 8)
        return sums, offset(builder, at, _BLOCK), builder.add(i, _i64(1))

    def stripe(current: Any) -> Any:
        sums, at, key, left = current
        sums = _accumulated(builder, sums, at, key)
        return sums, offset(builder, at, _STRIPE), offset(builder, key, 8), builder.sub(left, _i64(1))

    start = Vector(builder, ir.Constant(ir.VectorType(ir.IntType(64), 8), list(START)))
    sums, at, _ = loop(builder, [start, data, _i64(0)], lambda current: builder.icmp_signed("<", current[-1], whole), block)
    end = builder.add(data, n)
    stripes = builder.udiv(builder.sub(builder.sub(end, at), _i64(1)), _i64(_STRIPE))
    sums, *_ = loop(builder, [sums, at, secret, stripes], lambda current: builder.icmp_signed(">", current[-1], _i64(0)), stripe)
    store(sums_at, _accumulated(builder, sums, builder.sub(end, _i64(_STRIPE)), builder.sub(last, _i64(7))))
    return n


@piece(uint64(uint64))
def _avalanche(h):
    h ^= h >> uint64(37)
    h *= uint64(AVALANCHE)
    return h ^ (h >> uint64(32))


@piece(uint64(int64, int64, uint64))
def _mixed(data, secret, seed):
    """16 bytes of data with 16 of the secret."""
    return _fold(load_u64(data) ^ (load_u64(secret) + seed), load_u64(data + 8) ^ (load_u64(secret + 8) - seed))


@piece(uint64(uint64))
def _avalanche_of_xxh64(h):
    h = (h ^ h >> uint64(33)) * uint64(PRIMES_64[1])
    h = (h ^ h >> uint64(29)) * uint64(PRIMES_64[2])
    return h ^ (h >> uint64(32))


@piece(uint64(int64, int64, uint64, int64))
def _of_few(data, n, seed, secret):
    """The digest of 16 bytes and less."""
    if n > 8:
        low = load_u64(data) ^ ((load_u64(secret + 24) ^ load_u64(secret + 32)) + seed)
        high = load_u64(data + n - 8) ^ ((load_u64(secret + 40) ^ load_u64(secret + 48)) - seed)
        return _avalanche(uint64(n) + _swapped(low) + high + _fold(low, high))
    if n >= 4:
        seed ^= _swapped(seed & uint64(0xFFFFFFFF))
        h = uint64(load_u32(data + n - 4)) + (uint64(load_u32(data)) << uint64(32))
        h ^= (load_u64(secret + 8) ^ load_u64(secret + 16)) - seed
        h ^= (h << uint64(49) | h >> uint64(15)) ^ (h << uint64(24) | h >> uint64(40))
        h *= uint64(SHORT_AVALANCHE)
        h ^= (h >> uint64(35)) + uint64(n)
        h *= uint64(SHORT_AVALANCHE)
        return h ^ (h >> uint64(28))
    if n:
        h = uint64(load_u8(data) << 16 | load_u8(data + (n >> 1)) << 24 | load_u8(data + n - 1) | n << 8)
        return _avalanche_of_xxh64(h ^ (uint64(load_u32(secret) ^ load_u32(secret + 4)) + seed))
    return _avalanche_of_xxh64(seed ^ load_u64(secret + 56) ^ load_u64(secret + 64))


@piece(uint64(int64, int64, uint64, int64))
def xxh3_64(data, n, seed, work):
    """The digest of n bytes at an address. work: WORK_BYTES, aligned to 64."""
    secret = _secret()
    if n <= 16:
        return _of_few(data, n, seed, secret)
    h = uint64(n) * uint64(PRIMES_64[0])
    end = data + n
    if n <= 128:
        for i in range((n - 1) >> 5, -1, -1):
            h += _mixed(data + 16 * i, secret + 32 * i, seed)
            h += _mixed(end - 16 * (i + 1), secret + 32 * i + 16, seed)
        return _avalanche(h)
    if n <= 240:
        for i in range(8):
            h += _mixed(data + 16 * i, secret + 16 * i, seed)
        h = _avalanche(h)
        for i in range(8, n >> 4):
            h += _mixed(data + 16 * i, secret + 16 * (i - 8) + 3, seed)
        return _avalanche(h + _mixed(end - 16, secret + 136 - 17, seed))
    if seed:
        for i in range(0, 192, 16):
            store_u64(work + i, load_u64(secret + i) + seed)
            store_u64(work + i + 8, load_u64(secret + i + 8) - seed)
        secret = work
    sums = work + 192
    _accumulate(data, n, secret, sums)
    for i in range(0, 64, 16):
        h += _fold(load_u64(sums + i) ^ load_u64(secret + 11 + i), load_u64(sums + i + 8) ^ load_u64(secret + 19 + i))
    return _avalanche(h)


@kernel
def _digest(data, n, seed, work):
    return xxh3_64(data, n, seed, work)


def digest(data: np.ndarray[Any, Any], seed: int = 0) -> int:
    """XXH3 with 64 bits of bytes (u1)."""
    return int(_digest(address_of(data), flat(data, (1,)).size, np.uint64(seed), memory.scratch(WORK_BYTES)))
