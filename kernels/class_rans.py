"""rANS with a table for each word's class (docs/stages.md, class_rans): scalar code for any lanes, vector rounds where the processor's arm has them.

A decoding entry, by class and slot, is a u32: frequency in bits 0-10, the slot's distance from its symbol's first slot in bits 11-21, symbol in bits 22-31. A
coding entry, by
class and symbol, is a u32: frequency in the low half, first slot in the high one. The symbol 1023 stands for an escape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import int64, uint16, uint32

from modelcodec.kernels.frequencies import Table
from modelcodec.kernels.jit import inlined, kernel

from modelcodec.kernels.class_rans_scalar import unpack_rounds

Array = np.ndarray[Any, Any]

BITS = 11
"""The most that a decoding entry has room for."""
ESCAPE = 1023
OK, UNITS, STATES, ESCAPES, SYMBOL = 0, 3, 4, 5, 6
"""Statuses, numbered as in `frequencies.Status`."""

_FINAL = 1 << 16


def decoding_entries(tables: tuple[Table, ...]) -> Array:
    """u4[classes << bits]: what each slot of each class stands for."""
    entries = []
    for table in tables:
        frequencies = np.append(table.frequencies, table.escape).astype(np.uint32)
        symbols = np.append(table.symbols, ESCAPE).astype(np.uint32)
        starts = np.repeat(np.cumsum(frequencies) - frequencies, frequencies)
        distance = np.arange(1 << table.bits) - starts
        entries.append(np.repeat(symbols << 22 | frequencies, frequencies) | distance.astype(np.uint32) << np.uint32(11))
    return np.concatenate(entries).astype(np.uint32)


def coding_entries(tables: tuple[Table, ...]) -> Array:
    """u4[classes, 1024]: frequency and first slot of each symbol, the escape at 1023; frequency 0 for a symbol that has to be escaped."""
    entries = np.zeros((len(tables), ESCAPE + 1), np.uint32)
    for row, table in zip(entries, tables, strict=True):
        frequencies = np.append(table.frequencies, table.escape).astype(np.uint32)
        row[np.append(table.symbols, ESCAPE)] = frequencies | (np.cumsum(frequencies) - frequencies).astype(np.uint32) << np.uint32(16)
    return entries


@inlined
def _group_a(n, groups):
    return n if groups == 1 else min(n, 64 * ((((n + 63) >> 6) + 1) >> 1))


@inlined
def _word_of(t, lanes_log2):
    """The word, within its round, that comes t-th in the order in which lanes take units."""
    return ((t & 15) << 2) | (t >> 4) if lanes_log2 == 6 else t


@inlined
def _unpack_group(payload, at, end, states, lanes_log2, classes, entries, bits, first, last, symbols):
    """Words first .. last - 1, whole rounds but for the last one. Returns the place after the units taken, or -1 where they run out."""
    lanes = int64(1) << lanes_log2
    slots = (uint32(1) << uint32(bits)) - uint32(1)
    for base in range(first, last, lanes):
        m = min(lanes, last - base)
        for t in range(lanes):
            word = _word_of(t, lanes_log2)
            if word >= m:
                continue
            x = states[t]
            entry = entries[(int64(classes[base + word]) << bits) + int64(x & slots)]
            x = (x >> uint32(bits)) * (entry & uint32(2047)) + ((entry >> uint32(11)) & uint32(2047))
            if x < _FINAL:
                if at + 2 > end:
                    return int64(-1)
                x = x << uint32(16) | uint32(payload[at]) | uint32(payload[at + 1]) << uint32(8)
                at += 2
            states[t] = x
            symbols[base + word] = entry >> uint32(22)
    return at


@kernel
def unpack(payload, units_a, units_b, n_escapes, width, lanes_log2, groups, classes, entries, bits, limit, states, symbols):
    """Decode symbols (u2[n]) from the untrusted payload (u1); states (u4[2, 64]) is scratch.

    The caller has proved: the payload's size is that of its parts; classes (u1[n]) times 2^bits stay inside entries; escaped symbols of `limit` and above are
    refused.
    """
    n, n_states = symbols.size, groups << lanes_log2
    middle = 2 * units_a
    initial = middle + 2 * units_b
    for i in range(n_states):
        p = initial + 4 * i
        x = uint32(payload[p]) | uint32(payload[p + 1]) << uint32(8) | uint32(payload[p + 2]) << uint32(16) | uint32(payload[p + 3]) << uint32(24)
        states[i >> 6 if groups == 2 else 0, i & 63] = x
    n_a = _group_a(n, groups)
    done, a, b = 0, int64(0), int64(middle)
    if lanes_log2 == 6:
        done, a, b = unpack_rounds(payload, middle, states, classes, entries, bits, groups, n, n_a, symbols)
    a = _unpack_group(payload, a, middle, states[0], lanes_log2, classes, entries, bits, 64 * done, n_a, symbols)
    if a != middle:
        return UNITS
    if groups == 2:
        b = _unpack_group(payload, b, initial, states[1], lanes_log2, classes, entries, bits, n_a + 64 * done, n, symbols)
        if b != initial:
            return UNITS
    for i in range(n_states):
        if states[i >> 6 if groups == 2 else 0, i & 63] != _FINAL:
            return STATES
    return _patch(payload, initial + 4 * n_states, n_escapes, width, limit, symbols)


@inlined
def _patch(payload, at, n_escapes, width, limit, symbols):
    """Put the escaped words where their marks are."""
    found = int64(0)
    for i in range(symbols.size):
        found += symbols[i] == ESCAPE
    if found != n_escapes:
        return ESCAPES
    if found:
        for i in range(symbols.size):
            if symbols[i] == ESCAPE:
                value = int64(payload[at])
                if width == 2:
                    value |= int64(payload[at + 1]) << 8
                if value >= limit:
                    return SYMBOL
                symbols[i] = value
                at += width
    return OK


@inlined
def _pack_group(units, at, states, lanes_log2, classes, entries, bits, first, last, symbols):
    """Words last - 1 down to first; units are written downwards from `at`. Returns the place of the last one."""
    lanes = int64(1) << lanes_log2
    for base in range(first + (last - first - 1) // lanes * lanes, first - 1, -lanes):
        m = min(lanes, last - base)
        for t in range(lanes - 1, -1, -1):
            word = _word_of(t, lanes_log2)
            if word >= m:
                continue
            symbol = min(int64(symbols[base + word]), ESCAPE)
            entry = entries[classes[base + word], symbol]
            if entry & uint32(0xFFFF) == 0:
                entry = entries[classes[base + word], ESCAPE]
            f = entry & uint32(0xFFFF)
            x = states[t]
            if x >> uint32(32 - bits) >= f:
                at -= 1
                units[at] = uint16(x & uint32(0xFFFF))
                x >>= uint32(16)
            q = x // f
            states[t] = (q << uint32(bits)) + x - q * f + (entry >> uint32(16))
    return at


@kernel
def pack(symbols, classes, entries, bits, lanes_log2, groups, units, states):
    """Code symbols (u1[n] or u2[n]); every table has an escape. units (u2[n]) is filled from its end for group A's part and from its end for group B's,
    states (u4[2, 64]) are left.

    Returns the first unit of group A, which ends where B's words begin, and the first unit of group B.
    """
    n = symbols.size
    states[:] = _FINAL
    n_a = _group_a(n, groups)
    a = _pack_group(units, int64(n_a), states[0], lanes_log2, classes, entries, bits, 0, n_a, symbols)
    b = int64(n)
    if groups == 2:
        b = _pack_group(units, int64(n), states[1], lanes_log2, classes, entries, bits, n_a, n, symbols)
    return a, b


@kernel
def find_escapes(symbols, classes, entries, escaped):
    """Symbols without a frequency in their class to `escaped` (same type, as long). Returns their number."""
    k = 0
    for i in range(symbols.size):
        symbol = min(int64(symbols[i]), ESCAPE)
        if symbol == ESCAPE or entries[classes[i], symbol] & uint32(0xFFFF) == 0:
            escaped[k] = symbols[i]
            k += 1
    return k
