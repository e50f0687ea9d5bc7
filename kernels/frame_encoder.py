"""Whole frames of the most common kind in one call, words to bytes: planned, digested, coded, sealed; many of them, so that short tensors cost little Python.

A usual frame is a `split_float` whose symbols go through `rans` while rest and low part stay raw (docs/stages.md). What is planned here is what the planner
would plan, and what is written what `frame.encode` would write. Where anything else may be better, or is not sure to be worse, the frame is left to them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.types import int64, uint64

from modelcodec.kernels.frequencies import (
    CHOICE_NUMBERS,
    FEW_SYMBOLS,
    LOG2,
    MANY_SYMBOLS,
    MAX_FREQUENCIES,
    SAMPLE_BLOCK,
    SPLIT2,
    SPLIT4,
    TABLE_BYTES,
    choose_frequencies,
    count_symbols,
    histogram_scratch,
    put_table,
)
from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import address_of, copy, fill, load_u32, scratch, store_u8, store_u32, store_u64
from modelcodec.kernels.rans import code_words, count_escapes, pack_scratch, put_payload
from modelcodec.kernels.survey import DIFFERENT_BYTES, REPEATS_BYTES, has_many, is_without_repeats, look_over, low_halves_are_random, symbol_bits
from modelcodec.kernels.varint import put_varint
from modelcodec.kernels.whole_frame import RANS, SPLIT_FLOAT
from modelcodec.kernels.xxh3 import xxh3_64

Array = np.ndarray[Any, Any]

USUAL, OTHER, RAW = 0, 1, 2
"""What becomes of a frame: it is coded; it is for the planner; it is not worth coding."""
LEAST_WORDS = 64
_HEAD_BYTES = -(-(TABLE_BYTES + 128) // 64) * 64
_MOST_COUNTS = 4096
_PALETTE = 256
_SYMBOL_BITS, _STREAM_BITS = 8, 8 * 24


class Choices(NamedTuple):
    """What the planner knows of a frame before it looks at the words, for frames of a dtype, level and length."""

    surveyed: int
    """One word in so many of a frame's, rounded down to the next odd number, is looked at."""
    coarsest: int
    finest: int
    """Where words may be cut: low_bits between these."""
    zero_share: int
    """One zero in so many words is too many."""
    wide_bits: int
    """Low bits that are zero in all words of a narrower dtype."""
    table_bits: int
    sample: int
    """One in so many words, a power of two, is counted for the table."""
    lanes_log2: int
    groups: int
    low_sample: int
    """Words whose low halves are looked at; 0 where these are random for sure."""
    repeat_words: int
    """Frames of so many words may repeat themselves, which zstd finds; 0: nobody asks."""


def room(n: int, width: int, choices: Choices) -> int:
    """Bytes that a frame of n words may need at its `out`."""
    return _HEAD_BYTES + _symbol_room(n, choices) + (n + 7) // 8 * (choices.coarsest + 1) + (2 * n if width == 4 else 0)


def _symbol_room(n: int, choices: Choices) -> int:
    return n if choices.finest >= 7 else 2 * n


@piece(types.boolean(*(int64,) * 7, int64[::1], int64))
def _is_usual(x, n, width, columns, wide_bits, low_sample, repeat_words, counts, work):
    """Whether nothing else than a cut may be better for these words, as far as samples show."""
    if not has_many(x, n, width, min(_PALETTE, n // 2), work) or (low_sample and not low_halves_are_random(x, n, low_sample, counts)):
        return False
    if 0 < repeat_words <= n and not is_without_repeats(x, n, width, columns, work, counts):
        return False
    i, every = int64(0), int64(0)
    while wide_bits and i < n and every & wide_bits == 0:
        every |= load_u32(x + 4 * i)
        i += 1
    return wide_bits == 0 or every & wide_bits != 0


@piece(int64(*(int64,) * 7, types.boolean, int64[::1], int64, int64))
def _choose_cut(x, n, width, surveyed, coarsest, finest, zero_share, exact, counts, counts_at, work):
    """Where to cut the words; -OTHER or -RAW where that is not what to do. Leaves counts of the symbols at the finest cut: `exact`, of all."""
    bins, step = int64(1) << (15 - finest), n // surveyed | 1
    counts[: max(bins, 256)] = 0
    if exact:
        count_symbols(x, n, SPLIT2 if width == 2 else SPLIT4, finest, n, n, max(bins, 256), counts_at, work)
        zeros = counts[0]  # those that look like zeros: enough of them, and the planner counts them
    else:
        zeros = int64(look_over(x, n, width, step, finest, counts)[0])
    sampled = -(-n // step)
    if zeros * zero_share > sampled:
        return -OTHER
    best_bits, best = int64(1) << 62, finest
    for low_bits in range(finest, coarsest + 1):
        bits, different = symbol_bits(counts, bins, low_bits - finest)
        bits = bits * n // sampled + _SYMBOL_BITS * different + n * (low_bits + 1)
        if bits < best_bits:
            best_bits, best = bits, low_bits
    return -RAW if best_bits + _STREAM_BITS > 16 * n else best


@piece(types.void(int64[::1], int64, int64))
def _merge(counts, bins, coarser):
    """Counts of symbols that are `coarser` bits coarser, from `bins` ones; zeros after them."""
    for i in range(bins >> coarser):
        total = int64(0)
        for j in range(1 << coarser):
            total += counts[(i << coarser) + j]
        counts[i] = total
    counts[bins >> coarser : max(bins, 256)] = 0


@piece(int64(*(int64,) * 7))
def _put_stream(to, bits, lanes_log2, groups, units_a, units_b, n_escapes):
    """A rans header up to its table. Returns the place after it."""
    store_u8(to, bits)
    store_u8(to + 1, lanes_log2 | (groups - 1) << 4)
    at = put_varint(to + 2, units_a)
    if groups == 2:
        at = put_varint(at, units_b)
    return put_varint(at, n_escapes)


@piece(int64(*(int64,) * 5, uint64, int64, int64))
def _put_head(to, s, stream, n_stream, width, digest, number, work):
    """A frame's head. Returns its bytes."""
    size = 3 + 1 + (1 if n_stream < 128 else 2) + n_stream + (2 if width == 2 else 4) + 8 + 4
    at = put_varint(to, size)
    store_u8(at, SPLIT_FLOAT)
    store_u8(at + 1, 1)
    store_u8(at + 2, s)
    store_u8(at + 3, RANS)
    at = put_varint(at + 4, n_stream)
    copy(at, stream, n_stream)
    at += n_stream
    fill(at, 0, 4)  # the raw nodes of rest and low part
    at += 2 if width == 2 else 4
    store_u64(at, digest)
    store_u32(at + 8, int64(xxh3_64(to, at + 8 - to, uint64(number), work) & uint64(0xFFFFFFFF)))
    return at + 12 - to


@kernel
def _plan(rows, width, found, digests, plans, counts, counts_at, log2, space, chosen, frequencies, work):
    """Digest each frame and see whether it is a usual one; plans: for `_code`, where it is cut (-1: it is none), its number
    of symbols, and the frequency of an escape."""
    kind = SPLIT2 if width == 2 else SPLIT4
    for row in range(len(rows)):
        x, n, columns, surveyed, coarsest = rows[row, 0], rows[row, 1], rows[row, 4], rows[row, 5], rows[row, 6]
        finest, zero_share, wide_bits = rows[row, 7], rows[row, 8], rows[row, 9]
        bits, sample, low_sample, repeat_words = rows[row, 10], rows[row, 11], rows[row, 14], rows[row, 15]
        found[row, 0], plans[row, 0] = OTHER, -1
        digests[row] = xxh3_64(x, n * width, uint64(0), work)
        if not _is_usual(x, n, width, columns, wide_bits, low_sample, repeat_words, counts, work):
            continue
        exact = sample == 1 and n < 2 * surveyed
        s = _choose_cut(x, n, width, surveyed, coarsest, finest, zero_share, exact, counts, counts_at, work)
        if s < 0:
            found[row, 0] = RAW if s == -RAW and not 0 < repeat_words <= n else OTHER
            continue
        bins = max(int64(1) << (15 - s), 256)
        if exact:
            _merge(counts, int64(1) << (15 - finest), s - finest)
        else:
            counts[:bins] = 0
            block = SAMPLE_BLOCK if sample > 1 else n
            count_symbols(x, n, kind, s, block, block * sample, bins, counts_at, work)
        limit = FEW_SYMBOLS if bits == 8 else MANY_SYMBOLS
        n_symbols, escape = choose_frequencies(counts[:bins], bits, 1 if s >= 7 else 2, limit, sample > 1, log2, space, chosen[row], frequencies[row])
        if n_symbols + escape >= 2:
            plans[row, 0], plans[row, 1], plans[row, 2] = s, n_symbols, escape


@kernel
def _code(rows, width, found, digests, plans, chosen, chosen_at, frequencies, frequencies_at, work, head):
    """Code and seal the frames that `_plan` found to be usual. work: for `code_words`; head: for a rans header and a frame's head."""
    kind = SPLIT2 if width == 2 else SPLIT4
    for row in range(len(rows)):
        s, n_symbols, escape = plans[row, 0], plans[row, 1], plans[row, 2]
        if s < 0:
            continue
        x, n, number, out, finest = rows[row, 0], rows[row, 1], rows[row, 2], rows[row, 3], rows[row, 7]
        bits, lanes_log2, groups = rows[row, 10], rows[row, 12], rows[row, 13]
        symbol_width = 1 if s >= 7 else 2
        rest = out + _HEAD_BYTES + n * (2 if finest < 7 else 1)
        n_rest = (n + 7) // 8 * (s + 1)
        low, n_low = rest + n_rest, 2 * n if width == 4 else int64(0)
        symbols, table = chosen_at + 2 * row * chosen.shape[1], frequencies_at + 2 * row * chosen.shape[1]
        status, units_a, units_b = code_words(kind, s, x, rest, low, n, bits, lanes_log2, groups, symbols, table, n_symbols, escape, work)
        if status:
            continue
        n_escapes = count_escapes(n, work)
        n_coded = 2 * (units_a + units_b) + (4 * groups << lanes_log2) + symbol_width * n_escapes
        put = _put_stream(head, bits, lanes_log2, groups, units_a, units_b, n_escapes)
        fill(put, 0, TABLE_BYTES)
        n_stream = put - head + put_table(chosen[row], frequencies[row], n_symbols, escape, symbol_width, put)
        n_node = 1 + (1 if n_stream < 128 else 2) + n_stream
        if n_node + n_coded > 2 + symbol_width * n:
            continue
        if 3 + n_node + n_coded + 2 + n_rest + (0 if width == 2 else 2 + n_low) > 2 + width * n:
            found[row, 0] = RAW
            continue
        put_payload(kind, s, x, n, lanes_log2, groups, units_a, units_b, rest - n_coded, work)
        n_head = _put_head(head + _HEAD_BYTES, s, head, n_stream, width, digests[row], number, head + 2 * _HEAD_BYTES)
        start = rest - n_coded - n_head
        copy(start, head + _HEAD_BYTES, n_head)
        found[row, 0], found[row, 1], found[row, 2] = USUAL, start, n_head + n_coded + n_rest + n_low


def encode(rows: Array, width: int) -> tuple[Array, Array]:
    """Encode frames: i8[:, 3], what became of each, the address of its bytes, their number; and the digests (u8) of all.

    rows: i8[:, 16], for each frame the address of its words, their number, LEAST_WORDS or more, its number in its tensor, the address of `room` bytes, words in
    a row (0: nobody knows), and its `Choices`. width: bytes of a word, 2 or 4.
    """
    n_rows, most = len(rows), int(rows[:, 1].max())
    found, digests, plans = np.empty((n_rows, 3), np.int64), np.empty(n_rows, np.uint64), np.empty((n_rows, 3), np.int64)
    counts, space = np.empty(_MOST_COUNTS, np.int64), np.empty(CHOICE_NUMBERS, np.int64)
    chosen, frequencies = np.empty((2, n_rows, MAX_FREQUENCIES + 1), np.uint16)
    n_work = -(-max(pack_scratch(most), histogram_scratch(_MOST_COUNTS), DIFFERENT_BYTES, REPEATS_BYTES) // 64) * 64
    work = scratch(n_work + 3 * _HEAD_BYTES)
    _plan(rows, width, found, digests, plans, counts, address_of(counts), LOG2, space, chosen, frequencies, work)
    _code(rows, width, found, digests, plans, chosen, address_of(chosen), frequencies, address_of(frequencies), work, work + n_work)
    return found, digests
