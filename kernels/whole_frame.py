"""The most common frames, several in one call: split_float over rans, rest and low part raw (docs/stages.md, docs/format.md section 4).

Reads the nodes and checks seals and digests itself, since for a frame of 1 MiB doing so in Python would take half as long as decoding, and would hold the
interpreter. Anything unusual, damage included, is left to the general decoder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.types import int64, uint64

from modelcodec.kernels.frequencies import MAX_FREQUENCIES, SPLIT2, SPLIT4, parse_table
from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import address_of, copy, fill, load_u8, load_u32, load_u64, scratch
from modelcodec.kernels.rans import unpack_frames
from modelcodec.kernels.rans_layout import FRAME_NUMBERS, NOTES, Frame
from modelcodec.kernels.xxh3 import WORK_BYTES, xxh3_64

Array = np.ndarray[Any, Any]

SPLIT_FLOAT, RANS, RAW = 4, 3, 0
"""Stage ids."""
USUAL_BYTES = 64
"""Shorter frames are not worth the fast way; a head of 2^14 bytes does not occur in it."""
DIGEST_BYTES, SEAL_BYTES = 8, 4
_LARGEST_TABLE = 2048
_TABLES_BYTES = 4 * (MAX_FREQUENCIES + 1)
_MOST_LOW_BITS = 13
_UNUSUAL = -1
_NO_FRAME = (_UNUSUAL, *(0,) * (FRAME_NUMBERS - 1))


@piece(types.UniTuple(int64, 2)(*(int64,) * 4))
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


@piece(types.UniTuple(int64, 2)(*(int64,) * 5))
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


@piece(types.Tuple((Frame, uint64))(*(int64,) * 10))
def _parse_frame(frame, n_bytes, number, out, n, width, check, symbols, frequencies, work):
    """The `Frame` of one row of `decode`, and its digest; its kind is _UNUSUAL where it is no usual frame. symbols, frequencies: where its table goes."""
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
    n_symbols, escape = parse_table(table, end - at, bits, symbol_width, symbols, frequencies)
    n_coded = 2 * (units_a + units_b) + (4 * groups << lanes_log2) + symbol_width * n_escapes
    n_rest = (n + 7) // 8 * (s + 1)
    if n_symbols < 1 or n_payload != n_coded + n_rest + (0 if width == 2 else 2 * n):
        return _NO_FRAME, digest
    rest = payload + n_coded
    return (
        int64(SPLIT2 if width == 2 else SPLIT4), s, payload, n_coded, out, rest, rest + n_rest, n, bits, lanes_log2, groups, units_a, units_b, n_escapes,
        symbols, frequencies, n_symbols, escape, work,
    ), digest  # fmt: skip


@kernel
def _parse(rows, width, check, tables, work, step, frames, digests):
    """Fill frames (i8[:, 19]) and digests from rows, see `decode`. tables: _TABLES_BYTES for each; their work, by turns, at `work` and `step` bytes behind."""
    for i in range(len(rows)):
        symbols = tables + i * _TABLES_BYTES
        frame, n_bytes, number, out, n = rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3], rows[i, 4]
        place = work + (i & 1) * step
        found, digests[i] = _parse_frame(frame, n_bytes, number, out, n, width, check, symbols, symbols + _TABLES_BYTES // 2, place)
        for j in range(len(found)):
            frames[i, j] = found[j]


def decode(rows: Array, width: int, check: bool) -> tuple[Array, Array]:
    """Decode frames: their digests (u8) and whether each was of this kind and, with `check`, undamaged (bool); where not, its `out` is garbage.

    rows: i8[:, 5], for each frame the address of its bytes (untrusted), their number, its number in its tensor, the address of `out`, words to be decoded.
    width: bytes of a word.
    """
    n = len(rows)
    digests = np.zeros(n, np.uint64)
    if width not in (2, 4) or not n:
        return digests, np.zeros(n, np.bool_)
    tables, frames = np.empty(n * _TABLES_BYTES, np.uint8), np.empty((n, FRAME_NUMBERS), np.int64)
    step = -(-(NOTES + int(rows[:, 4].max()) // 8 + 64 + _LARGEST_TABLE + 64 + WORK_BYTES) // 64) * 64
    work = scratch(2 * step)
    _parse(rows, width, int(check), address_of(tables), work, step, frames, digests)
    statuses, found = unpack_frames(frames, digested=check)
    decoded = statuses == 0
    return digests, decoded & (found == digests) if check else decoded
