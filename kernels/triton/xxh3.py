"""The part of XXH3-64 that runs over the whole input, for many pieces of memory at once; the host does the rest (`modelcodec.runtime.xxh3`).

source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md, "XXH3 Algorithm (for long inputs)".
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _terms(words, keys, at, there):
    """What stripes of 8 words add to the accumulators: the halves of each keyed word multiplied, and its neighbour."""
    word = tl.load(words + at, mask=there, other=0).to(tl.uint64, bitcast=True)
    neighbour = tl.load(words + (at ^ 1), mask=there, other=0).to(tl.uint64, bitcast=True)
    keyed = word ^ keys
    terms = (keyed & 0xFFFFFFFF) * (keyed >> 32) + neighbour
    return tl.sum(tl.where(there, terms, tl.zeros_like(terms)), 0)


@triton.jit
def accumulate(words, pieces, table, accumulators):
    """All stripes of a piece but the last, a program a piece (i8[n, 2]: first word, bytes). accumulators: i8[n, 8].

    words: i8. table: i8, the keys of 16 stripes, then of the scrambling, then the first accumulators. A piece has more than 64 bytes.
    """
    piece = tl.program_id(0)
    words += tl.load(pieces + 2 * piece)
    n_before_last = tl.load(pieces + 2 * piece + 1) - 1
    lane = tl.arange(0, 8)
    stripe = tl.arange(0, 16)[:, None] + tl.zeros((16, 8), tl.int32)
    in_block = stripe * 8 + lane[None, :]
    keys = tl.load(table + in_block).to(tl.uint64, bitcast=True)
    scramble = tl.load(table + 128 + lane).to(tl.uint64, bitcast=True)
    sums = tl.load(table + 136 + lane).to(tl.uint64, bitcast=True)
    n_blocks = (n_before_last // 1024).to(tl.int32)
    for block in range(n_blocks):
        sums += _terms(words, keys, in_block + block * 128, stripe < 16)
        sums = (sums ^ (sums >> 47) ^ scramble) * 0x9E3779B1
    n_stripes = ((n_before_last - n_blocks * 1024) // 64).to(tl.int32)
    sums += _terms(words, keys, in_block + n_blocks * 128, stripe < n_stripes)
    tl.store(accumulators + 8 * piece + lane, sums.to(tl.int64, bitcast=True))
