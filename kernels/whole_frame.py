"""The most common frames, several in one call: split_float over rans, rest and low part raw (docs/stages.md, docs/format.md section 4).

Reads the nodes and checks seals and digests itself, since for a frame of 1 MiB doing so in Python would take half as long as decoding, and would hold the
interpreter. Anything unusual, damage included, is left to the general decoder.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numba import int64, uint64

from modelcodec.kernels.frequencies import MAX_FREQUENCIES, SPLIT2, SPLIT4, _read_table
from modelcodec.kernels.jit import inlined, kernel
from modelcodec.kernels.memory import address_of, copy, fill, load_u8, load_u32, load_u64, scratch
from modelcodec.kernels.rans import unpack_frame, unpack_two
from modelcodec.kernels.rans_layout import NOTES
from modelcodec.kernels.xxh3 import WORK_BYTES, xxh3_64

Array = np.ndarray[Any, Any]

SPLIT_FLOAT, RANS, RAW = 4, 3, 0
"""Stage ids."""
USUAL_BYTES = 64
"""Shorter frames are not worth the fast way; a head of 2^14 bytes does not occur in it."""
DIGEST_BYTES, SEAL_BYTES = 8, 4
_LARGEST_TABLE = 2048
_MOST_LOW_BITS = 13
_UNUSUAL = -1
_NO_FRAME = (_UNUSUAL, *(0,) * 18)
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


@inlined
def _nodes(frame, n_bytes, number, check, work):
    """Where the nodes begin and the payload begins, of a frame (untrusted) whose seal matches; -1 where it does not, or the head does not fit."""
    nothing = int64(-1), int64(-1)
    if n_bytes < USUAL_BYTES:
        return nothing
    start, size = int64(1), load_u8(frame)
    if size >= 128:
        start, size = int64(2), (size & 127) | load_u8(frame + 1) << 7
    end = start + size
    if load_u8(frame + start - 1) >= 128 or load_u8(frame + start - 1) == 0 or size < DIGEST_BYTES + SEAL_BYTES + 12 or end > n_bytes:
        return nothing
    if check and load_u32(frame + end - SEAL_BYTES) != xxh3_64(frame, end - SEAL_BYTES, uint64(number), work) & uint64(0xFFFFFFFF):
        return nothing
    return start, end


@inlined
def _parse(row, width, check, symbols, frequencies, tables, work):
    """The `Frame` of one row of `decode`, and its digest; its kind is _UNUSUAL where it is no usual frame. `tables`: addresses of symbols and frequencies."""
    frame, n_bytes, number, out, n = row[0], row[1], row[2], row[3], row[4]
    start, payload = _nodes(frame, n_bytes, number, check, work)
    if start < 0:
        return _NO_FRAME, uint64(0)
    digest = load_u64(frame + payload - SEAL_BYTES - DIGEST_BYTES)
    nodes, n_nodes = frame + start, payload - SEAL_BYTES - DIGEST_BYTES - start
    payload, n_payload = frame + payload, n_bytes - payload
    tail = 2 if width == 2 else 4
    if load_u8(nodes) != SPLIT_FLOAT or load_u8(nodes + 1) != 1 or load_u8(nodes + 3) != RANS:
        return _NO_FRAME, digest
    s = load_u8(nodes + 2)
    size, at = _varint(nodes, 4, n_nodes, int64(_LARGEST_TABLE))
    end = at + size
    if s > _MOST_LOW_BITS or size < 6 or end + tail != n_nodes:
        return _NO_FRAME, digest
    for i in range(tail):
        if load_u8(nodes + end + i) != RAW:
            return _NO_FRAME, digest
    bits, lanes = load_u8(nodes + at), load_u8(nodes + at + 1)
    groups, lanes_log2 = 1 + (lanes >> 4), lanes & 15
    units_a, at = _varint(nodes, at + 2, end, n)
    units_b = int64(0)
    if groups == 2:
        units_b, at = _varint(nodes, at, end, n)
    n_escapes, at = _varint(nodes, at, end, n)
    if bits < 8 or bits > 12 or lanes_log2 > 6 or groups > 2 or (groups == 2 and lanes_log2 < 6) or units_a < 0 or units_b < 0 or n_escapes < 0:
        return _NO_FRAME, digest
    symbol_width = 1 if s >= 7 else 2
    table = work + NOTES + n // 8 + 64
    copy(table, nodes + at, end - at)
    fill(table + end - at, 0, 64)
    n_symbols, escape = _read_table(table, end - at, bits, symbol_width, symbols, frequencies)
    n_coded = 2 * (units_a + units_b) + (4 * groups << lanes_log2) + symbol_width * n_escapes
    n_rest = (n + 7) // 8 * (s + 1)
    if n_symbols < 1 or n_payload != n_coded + n_rest + (0 if width == 2 else 2 * n):
        return _NO_FRAME, digest
    rest = payload + n_coded
    return (
        int64(SPLIT2 if width == 2 else SPLIT4), s, payload, n_coded, out, rest, rest + n_rest, n, bits, lanes_log2, groups, units_a, units_b, n_escapes,
        tables[0], tables[1], n_symbols, escape, work,
    ), digest  # fmt: skip


@kernel
def _decode(rows, width, check, symbols, frequencies, tables, work, step, digests, decoded):
    """Decode frames, two at a time. rows: i8[:, 5], see `decode`; symbols, frequencies: u2[2, 257], whose addresses are tables; work: twice `step` bytes.

    Sets decoded[i] to whether frame i was usual and undamaged, and digests[i].
    """
    for first in range(0, rows.shape[0], 2):
        last = min(first + 1, rows.shape[0] - 1)
        one, digests[first] = _parse(rows[first], width, check, symbols[0], frequencies[0], tables[0], work)
        two = _NO_FRAME
        if last > first:
            two, digests[last] = _parse(rows[last], width, check, symbols[1], frequencies[1], tables[1], work + step)
        if one[0] != _UNUSUAL and two[0] != _UNUSUAL:
            status_1, status_2 = unpack_two(one, two)
        else:
            status_1 = unpack_frame(one) if one[0] != _UNUSUAL else int64(_UNUSUAL)
            status_2 = unpack_frame(two) if two[0] != _UNUSUAL else int64(_UNUSUAL)
        for i in range(last, first - 1, -1):  # the second was written last
            good = (status_1 if i == first else status_2) == 0
            n_bytes = rows[i, 4] * width
            if good and check and n_bytes >= USUAL_BYTES:
                good = xxh3_64(rows[i, 3], n_bytes, uint64(0), work) == digests[i]
            decoded[i] = good and n_bytes >= USUAL_BYTES


def decode(rows: Array, width: int, check: bool) -> tuple[Array, Array]:
    """Decode frames: their digests (u8) and whether each was of this kind and, with `check`, undamaged (bool); where not, its `out` is garbage.

    rows: i8[:, 5], for each frame the address of its bytes (untrusted), their number, its number in its tensor, the address of `out`, words to be decoded.
    width: bytes of a word.
    """
    digests, decoded = np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.bool_)
    if width not in (2, 4) or not len(rows):
        return digests, decoded
    made = getattr(_local, "made", None)
    if made is None:
        symbols, frequencies = np.empty((2, MAX_FREQUENCIES + 1), np.uint16), np.empty((2, MAX_FREQUENCIES + 1), np.uint16)
        tables = np.array([[address_of(symbols[i]), address_of(frequencies[i])] for i in range(2)])
        _local.made = made = symbols, frequencies, tables
    n_table = _LARGEST_TABLE + 64
    step = -(-(NOTES + int(rows[:, 4].max()) // 8 + 64 + n_table + WORK_BYTES) // 64) * 64
    _decode(rows, width, check, *made, scratch(2 * step), step, digests, decoded)
    return digests, decoded
