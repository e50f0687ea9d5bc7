"""Decoding frames on a GPU: split_float over rans or class_rans, from coded units to finished words in one pass (docs/stages.md, docs/gpu.md).

A program is one warp, which decodes one group of 64 lanes, two lanes a thread. Two ballots tell which lanes of a round take a unit; the units come out of a
window that the warp holds in registers and asks for long before it reads it. Four rounds make a batch, whose words are joined with their rest and stored
together.

The host has proved the tables, and that every part has the size that the task tells (`modelcodec.runtime.gpu`). Units, states, rest and escaped words are
untrusted here: whatever they hold, each index stays inside its part, and the result tells what was found.
"""

from __future__ import annotations

from dataclasses import fields

import triton
import triton.language as tl

from modelcodec.kernels.triton.task import STATES, SYMBOL, UNITS, Task

_N_FIELDS: tl.constexpr = tl.constexpr(len(fields(Task)))
_BATCH: tl.constexpr = tl.constexpr(256)
_FINAL: tl.constexpr = tl.constexpr(1 << 16)
_UNITS: tl.constexpr = tl.constexpr(UNITS)
_STATES: tl.constexpr = tl.constexpr(STATES)
_SYMBOL: tl.constexpr = tl.constexpr(SYMBOL)


@triton.jit
def _ones(x):
    """Bits of x (u4) that are one; the compiler knows this for a population count."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (x * 0x01010101) >> 24


@triton.jit
def _unsigned(x):
    """The bits of an i4 as u4."""
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def _units(units, n_units, number):
    """The number-th 64 units, two a word; beyond the last unit zero."""
    word = number.to(tl.int32) * 32 + tl.arange(0, 32)
    return tl.load(units + word, mask=word * 2 < n_units, other=0)


@triton.jit
def _unit(window, next_window, k):
    """Units k (u4, below 128) of two windows."""
    word = (k >> 1).to(tl.int32) & 31
    pair = tl.where(k < 64, tl.gather(window, word, 0), tl.gather(next_window, word, 0))
    return (_unsigned(pair) >> ((k & 1) << 4)) & 0xFFFF


@triton.jit
def _classes(bytes_, column, row, row_scales, column_scales, class_of, there):
    """The classes of words in these rows and columns."""
    row_scale = tl.load(bytes_ + row_scales + row, mask=there, other=0).to(tl.int32)
    column_scale = tl.load(bytes_ + column_scales + column, mask=there, other=0).to(tl.int32)
    return tl.load(bytes_ + class_of + row_scale + column_scale).to(tl.int32)


@triton.jit
def _parts(begin, n, there, BITS: tl.constexpr, TAIL: tl.constexpr):
    """Of the words from `begin` on, the place within their byte of a plane of BITS bits, and the bytes of that plane for a block of words."""
    stride = tl.full((_BATCH,), BITS * 8, tl.int32)
    if TAIL:
        numbers = n - begin - tl.arange(0, _BATCH) // 64 * 64
        stride = tl.where(there & (numbers < 64), (numbers + 7) // 8 * BITS, stride)
    return tl.arange(0, _BATCH) % 64 // stride, stride


@triton.jit
def _plane(plane, rest_bits, begin, n, there, BITS: tl.constexpr, TAIL: tl.constexpr):
    """The bytes that hold these words' numbers in a plane of BITS bits, where the rest has one."""
    part, stride = _parts(begin, n, there, BITS, TAIL)
    word = tl.arange(0, _BATCH)
    is_there = there & ((tl.zeros((_BATCH,), tl.int32) + (rest_bits & BITS)) > 0)
    return tl.load(plane + begin // 8 * BITS + (word // 64 * (BITS * 8) + word % 64 - part * stride), mask=is_there, other=0)


@triton.jit
def _numbers(byte, begin, n, there, BITS: tl.constexpr, TAIL: tl.constexpr):
    """The numbers of BITS bits out of the bytes that hold them."""
    part, _ = _parts(begin, n, there, BITS, TAIL)
    return (byte.to(tl.int32) >> (part * BITS)) & ((1 << BITS) - 1)


@triton.jit
def _batch(
    bytes_, halves, words, out, scratch,
    x, at, window, next_window, window_after, column, row, found, flags,
    units, n_units, entries, values, bits, low_bits, planes_8, planes_4, planes_2, planes_1, low, n_escapes, positions, to, n, begin, end,
    columns, row_scales, column_scales, class_of,
    WIDTH: tl.constexpr, CLASSES: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Decode words `begin` to begin + 255 of the frame, with TAIL up to `end`.

    x (u4[64]): the states, in the order of a round's words. at: units taken. Returns what the next batch goes on with.
    """
    word = begin + tl.arange(0, _BATCH)
    there = word < end if TAIL else tl.full((_BATCH,), True, tl.int1)
    # Asked for here, used after the rounds.
    rest_bits = low_bits + 1
    byte_8 = _plane(bytes_ + planes_8, rest_bits, begin, n, there, 8, TAIL)
    byte_4 = tl.zeros((_BATCH,), tl.uint8)
    byte_2, byte_1 = byte_4, byte_4
    if rest_bits != 8:
        byte_4 = _plane(bytes_ + planes_4, rest_bits, begin, n, there, 4, TAIL)
        byte_2 = _plane(bytes_ + planes_2, rest_bits, begin, n, there, 2, TAIL)
        byte_1 = _plane(bytes_ + planes_1, rest_bits, begin, n, there, 1, TAIL)
    if WIDTH == 4:
        low_word = tl.load(halves + low + word, mask=there, other=0)

    in_round = tl.arange(0, 64)
    lane = (in_round % 4) * 16 + in_round // 4
    none = tl.zeros((64,), tl.uint32)
    bit = (none + 1) << (lane % 32).to(tl.uint32)
    bit_low, bit_high = tl.where(lane < 32, bit, none), tl.where(lane < 32, none, bit)
    below_low, below_high = tl.where(lane < 32, bit - 1, ~none), tl.where(lane < 32, none, bit - 1)
    mask = (1 << bits) - 1
    picked = tl.zeros((64,), tl.uint64)
    for i in tl.static_range(4):
        active = begin + (64 * i) + in_round < end if TAIL else tl.full((64,), True, tl.int1)
        slot = (x & mask).to(tl.int32)
        if CLASSES:
            of_class = _classes(bytes_, column, row, row_scales, column_scales, class_of, active)
            slot += of_class << bits
            column += 64 % columns
            wraps = column >= columns
            row += 64 // columns + wraps.to(tl.int32)
            column -= tl.where(wraps, columns, 0)
        entry = _unsigned(tl.load(words + entries + slot, mask=active, other=0))
        stepped = (entry & 0xFFF) * (x >> bits) + ((entry >> 12) & 0xFFF)
        takes = active & (stepped < _FINAL)
        takers_low, takers_high = tl.sum(tl.where(takes, bit_low, none), 0), tl.sum(tl.where(takes, bit_high, none), 0)
        k = _ones(takers_low & below_low) + _ones(takers_high & below_high) + (at & 63)
        stepped = tl.where(takes, (stepped << 16) | _unit(window, next_window, k), stepped)
        x = tl.where(active, stepped, x)
        after = at + _ones(takers_low) + _ones(takers_high)
        if (after >> 6) != (at >> 6):
            window = next_window
            next_window = window_after
            window_after = _units(units, n_units, (after >> 6) + 2)
        at = after
        pick = (entry >> 24).to(tl.int32)
        if CLASSES:
            pick += of_class << 8
        picked = picked | (pick.to(tl.uint64) << (16 * i))

    rounds = (picked[None, :] >> (16 * tl.arange(0, 4))[:, None].to(tl.uint64)) & 0xFFFF
    value = tl.load(halves + values + tl.reshape(rounds.to(tl.int32), (_BATCH,)), mask=there, other=0).to(tl.int32) & 0xFFFF
    escapes = value >> 15
    n_found = tl.sum(escapes, 0)
    if n_found > 0:
        place = found + tl.cumsum(escapes, 0) - escapes
        tl.store(scratch + positions + place, word, mask=(escapes > 0) & (place < n_escapes))
        found += n_found
    symbol = value & 0x7FFF
    if CLASSES:
        flags |= tl.where(tl.max(symbol >> (15 - low_bits), 0) > 0, _SYMBOL, 0)
    number = byte_8.to(tl.int32)
    if rest_bits != 8:
        at_2 = (rest_bits & 8) + (rest_bits & 4)
        number |= _numbers(byte_4, begin, n, there, 4, TAIL) << (rest_bits & 8)
        number |= _numbers(byte_2, begin, n, there, 2, TAIL) << at_2
        number |= _numbers(byte_1, begin, n, there, 1, TAIL) << (at_2 + (rest_bits & 2))
    high = ((number >> low_bits) << 15) | (symbol << low_bits) | (number & ((1 << low_bits) - 1))
    if WIDTH == 4:
        tl.store(out + to + word, (high << 16) | (low_word.to(tl.int32) & 0xFFFF), mask=there)
    else:
        tl.store(out + to + word, high.to(tl.int16), mask=there)
    return x, at, window, next_window, window_after, column, row, found, flags


@triton.jit
def decode(tasks, bytes_, halves, words, scratch, out, result, WIDTH: tl.constexpr, CLASSES: tl.constexpr, ALIGNED: tl.constexpr):
    """A program a task (i8[n, N_FIELDS]). bytes_, halves, words: the staged bytes as u1, i2 and i4. scratch: i4. out: i2 or i4, words of WIDTH bytes.

    ALIGNED: every frame's first word lies at a multiple of 16 words in `out`. result: i4[n, 2] gets the flags, and how many escape symbols came up.
    """
    number = tl.program_id(0)
    task = tasks + number * _N_FIELDS  # in the order of Task's fields
    units = words + tl.multiple_of(tl.load(task), 4)
    n_units = tl.load(task + 1).to(tl.int32)
    states = tl.load(task + 2)
    entries = tl.load(task + 3)
    values = tl.load(task + 4)
    bits = tl.load(task + 5).to(tl.int32)
    low_bits = tl.load(task + 6).to(tl.int32)
    planes_8 = tl.multiple_of(tl.load(task + 7), 16)
    planes_4 = tl.multiple_of(tl.load(task + 8), 16)
    planes_2 = tl.multiple_of(tl.load(task + 9), 16)
    planes_1 = tl.multiple_of(tl.load(task + 10), 16)
    low = tl.multiple_of(tl.load(task + 11), 8)
    escaped = tl.load(task + 12)
    n_escapes = tl.load(task + 13).to(tl.int32)
    second = tl.load(task + 14).to(tl.int32)
    positions = tl.load(task + 15)
    to = tl.load(task + 16)
    if ALIGNED:
        to = tl.multiple_of(to, 16)
    n = tl.load(task + 17).to(tl.int32)
    first = tl.multiple_of(tl.load(task + 18).to(tl.int32), 64)
    end = tl.load(task + 19).to(tl.int32)
    columns = tl.load(task + 21).to(tl.int32)
    row_scales = tl.load(task + 22)
    column_scales = tl.load(task + 23)
    class_of = tl.load(task + 24)

    in_round = tl.arange(0, 64)
    x = _unsigned(tl.load(words + states + (in_round % 4) * 16 + in_round // 4))
    in_group = tl.load(task + 20).to(tl.int32) + first + in_round
    row = in_group // columns
    column = in_group - row * columns
    at = tl.full((), 0, tl.uint32)
    window, next_window, window_after = _units(units, n_units, at), _units(units, n_units, at + 1), _units(units, n_units, at + 2)
    found, flags = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    whole = first + (end - first) // _BATCH * _BATCH
    for begin in range(first, whole, _BATCH):
        x, at, window, next_window, window_after, column, row, found, flags = _batch(
            bytes_, halves, words, out, scratch, x, at, window, next_window, window_after, column, row, found, flags,
            units, n_units, entries, values, bits, low_bits, planes_8, planes_4, planes_2, planes_1, low, n_escapes, positions, to, n,
            tl.multiple_of(begin, 64), end, columns, row_scales, column_scales, class_of, WIDTH, CLASSES, False,
        )  # fmt: skip
    if whole < end:
        x, at, window, next_window, window_after, column, row, found, flags = _batch(
            bytes_, halves, words, out, scratch, x, at, window, next_window, window_after, column, row, found, flags,
            units, n_units, entries, values, bits, low_bits, planes_8, planes_4, planes_2, planes_1, low, n_escapes, positions, to, n,
            whole, end, columns, row_scales, column_scales, class_of, WIDTH, CLASSES, True,
        )  # fmt: skip
    tl.debug_barrier()  # what the warp stored is read again by other threads of it
    known = tl.minimum(found, n_escapes)
    escaped -= tl.where(second > 0, known, 0)
    for at_escape in range(0, known, _BATCH):
        k = at_escape + tl.arange(0, _BATCH)
        there = k < known
        place = out + to + tl.load(scratch + positions + k, mask=there, other=0)
        symbol = tl.load(halves + escaped + k, mask=there, other=0).to(tl.int32) & 0xFFFF
        patched = tl.load(place, mask=there, other=0).to(tl.int32) | (symbol << (low_bits + (16 if WIDTH == 4 else 0)))
        tl.store(place, patched.to(place.dtype.element_ty), mask=there)
    flags |= tl.where(at != n_units.to(tl.uint32), _UNITS, 0)
    flags |= tl.where(tl.max((x != _FINAL).to(tl.int32), 0) > 0, _STATES, 0)
    tl.store(result + 2 * number, flags)
    tl.store(result + 2 * number + 1, found)
