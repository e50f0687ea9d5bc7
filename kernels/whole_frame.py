"""The most common frame in one call: split_float over rans, rest and low part raw (docs/stages.md, docs/format.md section 4).

Reads the nodes itself, since for a frame of 1 MiB doing so in Python would take half as long as decoding. Anything unusual, damage included, is left to the
general decoder.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba import int64

from modelcodec.kernels.frequencies import MAX_FREQUENCIES, SPLIT2, SPLIT4, _read_table
from modelcodec.kernels.jit import inlined, kernel
from modelcodec.kernels.memory import address_of, copy, fill, load_u8, scratch
from modelcodec.kernels.rans import unpack_frame
from modelcodec.kernels.rans_layout import NOTES

Array = np.ndarray[Any, Any]

SPLIT_FLOAT, RANS, RAW = 4, 3, 0
"""Stage ids."""
_LARGEST_TABLE = 2048
_MOST_LOW_BITS = 13
_UNUSUAL = -1
_local = threading.local()


@inlined
def _varint(data, at, end, most):
    """A number in shortest form below `most`, and the place after it; -1 where there is none."""
    value, shift = int64(0), 0
    while at < end and shift < 35:
        byte = load_u8(data + at)
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return (value, at) if value <= most and (byte > 0 or shift == 7) else (int64(-1), at)
    return int64(-1), at


@kernel
def _decode(nodes, n_nodes, payload, n_payload, out, n, width, table, symbols, frequencies, symbols_at, frequencies_at, work):
    """Addresses: nodes, payload (both untrusted), out, table (scratch, _LARGEST_TABLE bytes and 64 spare), those of symbols and frequencies (u2[257]), work.

    Returns a status, or _UNUSUAL.
    """
    tail = 2 if width == 2 else 4
    if n_nodes < 12 or load_u8(nodes) != SPLIT_FLOAT or load_u8(nodes + 1) != 1 or load_u8(nodes + 3) != RANS:
        return _UNUSUAL
    s = load_u8(nodes + 2)
    size, at = _varint(nodes, 4, n_nodes, int64(_LARGEST_TABLE))
    end = at + size
    if s > _MOST_LOW_BITS or size < 6 or end + tail != n_nodes:
        return _UNUSUAL
    for i in range(tail):
        if load_u8(nodes + end + i) != RAW:
            return _UNUSUAL
    bits, lanes = load_u8(nodes + at), load_u8(nodes + at + 1)
    groups, lanes_log2 = 1 + (lanes >> 4), lanes & 15
    units_a, at = _varint(nodes, at + 2, end, n)
    units_b = int64(0)
    if groups == 2:
        units_b, at = _varint(nodes, at, end, n)
    n_escapes, at = _varint(nodes, at, end, n)
    if bits < 8 or bits > 12 or lanes_log2 > 6 or groups > 2 or (groups == 2 and lanes_log2 < 6) or units_a < 0 or units_b < 0 or n_escapes < 0:
        return _UNUSUAL
    symbol_width = 1 if s >= 7 else 2
    copy(table, nodes + at, end - at)
    fill(table + end - at, 0, 64)
    n_symbols, escape = _read_table(table, end - at, bits, symbol_width, symbols, frequencies)
    n_coded = 2 * (units_a + units_b) + (4 * groups << lanes_log2) + symbol_width * n_escapes
    n_rest = (n + 7) // 8 * (s + 1)
    if n_symbols < 1 or n_payload != n_coded + n_rest + (0 if width == 2 else 2 * n):
        return _UNUSUAL
    rest = payload + n_coded
    return unpack_frame(
        SPLIT2 if width == 2 else SPLIT4, s, payload, n_coded, out, rest, rest + n_rest, n, bits, lanes_log2, groups, units_a, units_b, n_escapes,
        symbols_at, frequencies_at, n_symbols, escape, work,
    )  # fmt: skip


def decode(frame: Array, nodes: int, payload: int, out: Array) -> bool:
    """Decode into `out` (u2 or u4), if the frame (u1, untrusted) is of this kind and undamaged; else False, and `out` is garbage.

    nodes: where the nodes begin; payload: where the payload begins, 12 bytes (digest and seal) after the nodes' end.
    """
    width = out.itemsize
    if width not in (2, 4) or not out.size:
        return False
    tables = getattr(_local, "tables", None)
    if tables is None:
        _local.tables = tables = np.empty(MAX_FREQUENCIES + 1, np.uint16), np.empty(MAX_FREQUENCIES + 1, np.uint16)
    n = out.size
    work = scratch(NOTES + n // 8 + 64 + _LARGEST_TABLE + 64)
    start = address_of(frame)
    table = work + NOTES + n // 8 + 64
    places = start + nodes, payload - 12 - nodes, start + payload, frame.size - payload, address_of(out)
    return bool(_decode(*places, n, width, table, *tables, *map(address_of, tables), work) == 0)
