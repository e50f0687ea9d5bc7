"""The most common frames, several in one call: split_float over rans or class_rans, rest and low part raw (docs/stages.md, docs/format.md section 4).

Reads the nodes and checks seals and digests itself, since for a frame of 1 MiB doing so in Python would take half as long as decoding, and would hold the
interpreter. Anything unusual, damage included, is left to the general decoder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.types import int64, uint64

from modelcodec.kernels import class_rans, few_lanes, rans
from modelcodec.kernels.class_rans import BITS, ROOM
from modelcodec.kernels.few_lanes import MOST_LANES_LOG2, MOST_WORDS
from modelcodec.kernels.frequencies import MAX_FREQUENCIES, SPLIT2, SPLIT4, parse_table
from modelcodec.kernels.jit import kernel, piece
from modelcodec.kernels.memory import address_of, copy, fill, load_i64, load_u8, load_u32, load_u64, scratch
from modelcodec.kernels.rans_layout import FRAME_NUMBERS, NOTES, Frame
from modelcodec.kernels.varint import varint
from modelcodec.kernels.xxh3 import WORK_BYTES, xxh3_64

Array = np.ndarray[Any, Any]

SPLIT_FLOAT, CLASS_RANS, RANS, RAW = 4, 10, 3, 0
"""Stage ids."""
USUAL_BYTES = 64
"""Shorter frames are not worth the fast way; a head of 2^14 bytes does not occur in it."""
DIGEST_BYTES, SEAL_BYTES = 8, 4
_LARGEST_TABLE = 2048
_TABLES_BYTES = 4 * (MAX_FREQUENCIES + 1)
_MOST_LOW_BITS = 13
_LEAST_NODES = 10
_UNUSUAL = -1
_NO_FRAME = (_UNUSUAL, *(0,) * (FRAME_NUMBERS - 1))


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
    if load_u8(frame + start - 1) >= 128 or load_u8(frame + start - 1) == 0 or size < DIGEST_BYTES + SEAL_BYTES + _LEAST_NODES or end > n_bytes:
        return nothing
    if check and load_u32(frame + end - SEAL_BYTES) != xxh3_64(frame, end - SEAL_BYTES, uint64(number), work) & uint64(0xFFFFFFFF):
        return nothing
    return start, end


@piece(types.UniTuple(int64, 5)(*(int64,) * 5))
def _stream(nodes, at, end, n, lanes):
    """Groups, units of both and escapes of a header's numbers from `at` on, of n words, and the place after them; the groups are -1 where they break a rule."""
    groups = 1 + (lanes >> 4)
    units_a, at = varint(nodes, at, end, n)
    units_b = int64(0)
    if groups == 2:
        units_b, at = varint(nodes, at, end, n)
    n_escapes, at = varint(nodes, at, end, n)
    bad = lanes & 15 > 6 or groups > 2 or (groups == 2 and lanes & 15 < 6) or units_a < 0 or units_b < 0 or n_escapes < 0
    return -1 if bad else groups, units_a, units_b, n_escapes, at


@piece(types.Tuple((Frame, int64, uint64))(*(int64,) * 12))
def _parse_frame(frame, n_bytes, number, out, n, place, first, width, check, symbols, frequencies, work):
    """One row of `decode` as a `Frame` of `rans` or `class_rans`, which of them its coder says (RAW where it is no frame known), and its digest.

    symbols, frequencies: where a table goes.
    """
    start, payload = _nodes(frame, n_bytes, number, check, work)
    if start < 0:
        return _NO_FRAME, RAW, uint64(0)
    digest = load_u64(frame + payload - SEAL_BYTES - DIGEST_BYTES)
    nodes, n_nodes = frame + start, payload - SEAL_BYTES - DIGEST_BYTES - start
    payload, n_payload = frame + payload, n_bytes - payload
    tail = 2 if width == 2 else 4
    coder, s = load_u8(nodes + 3), load_u8(nodes + 2)
    if load_u8(nodes) != SPLIT_FLOAT or load_u8(nodes + 1) != 1 or s > _MOST_LOW_BITS or not (coder == RANS or (coder == CLASS_RANS and place)):
        return _NO_FRAME, RAW, digest
    size, at = varint(nodes, 4, n_nodes, int64(_LARGEST_TABLE))
    end = at + size
    if size < 3 or end + tail != n_nodes:
        return _NO_FRAME, RAW, digest
    for i in range(tail):
        if load_u8(nodes + end + i) != RAW:
            return _NO_FRAME, RAW, digest
    if coder == RANS:
        bits = load_u8(nodes + at)
        at += 1
    else:
        bits = load_i64(place + BITS)
    lanes = load_u8(nodes + at)
    groups, units_a, units_b, n_escapes, at = _stream(nodes, at + 1, end, n, lanes)
    lanes &= 15
    symbol_width = 1 if s >= 7 else 2
    n_coded = 2 * (units_a + units_b) + (4 * groups << lanes) + symbol_width * n_escapes
    n_rest = (n + 7) // 8 * (s + 1)
    if groups < 0 or bits < 8 or bits > 12 or n_payload != n_coded + n_rest + (0 if width == 2 else 2 * n):
        return _NO_FRAME, RAW, digest
    kind, rest = int64(SPLIT2 if width == 2 else SPLIT4), payload + n_coded
    low = rest + n_rest
    if coder == CLASS_RANS:
        if at != end or first < 0 or first + n > load_i64(place + ROOM):
            return _NO_FRAME, RAW, digest
        classed = kind, s, payload, n_coded, out, rest, low, n, bits, lanes, groups, units_a, units_b, n_escapes, place, first, int64(0), int64(0), work
        return classed, coder, digest
    table = work + NOTES + n // 8 + 64
    copy(table, nodes + at, end - at)
    fill(table + end - at, 0, 64)
    n_symbols, escape = parse_table(table, end - at, bits, symbol_width, symbols, frequencies)
    if n_symbols < 1:
        return _NO_FRAME, RAW, digest
    return (
        kind, s, payload, n_coded, out, rest, low, n, bits, lanes, groups, units_a, units_b, n_escapes, symbols, frequencies, n_symbols, escape, work,
    ), coder, digest  # fmt: skip


@kernel
def _parse(rows, width, check, tables, work, step, plain, classed, few, digests):
    """Fill digests, and for each row, see `decode`, the row of the one array whose kernel has it: `plain` and `classed` (i8[:, 19]), `few` (i8[:, 20]).

    tables: _TABLES_BYTES for each. The work of plain ones lies by turns at `work` and `step` bytes behind.
    """
    n_plain = 0
    for i in range(len(rows)):
        symbols = tables + i * _TABLES_BYTES
        frame, n_bytes, number, out, n, place, first = rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3], rows[i, 4], rows[i, 5], rows[i, 6]
        at = work + (n_plain & 1) * step
        found, coder, digests[i] = _parse_frame(frame, n_bytes, number, out, n, place, first, width, check, symbols, symbols + _TABLES_BYTES // 2, at)
        is_few = n <= MOST_WORDS and found[9] <= MOST_LANES_LOG2
        of_coder = few if is_few else classed if coder == CLASS_RANS else plain
        n_plain += coder == RANS and not is_few
        plain[i, 0], classed[i, 0], few[i, 0], few[i, 19] = _UNUSUAL, _UNUSUAL, _UNUSUAL, coder == CLASS_RANS
        for j in range(len(found)):
            of_coder[i, j] = found[j]


def coder_of(frame: memoryview) -> int:
    """RANS or CLASS_RANS for an untrusted frame that begins as one of split_float over it, and that `decode` is worth trying for; else RAW."""
    if len(frame) < USUAL_BYTES:
        return RAW
    at = 1 if frame[0] < 128 else 2
    return frame[at + 3] if frame[at] == SPLIT_FLOAT and frame[at + 3] in (RANS, CLASS_RANS) else RAW


def decode(rows: Array, width: int, check: bool) -> tuple[Array, Array]:
    """Decode frames: their digests (u8) and whether each was of this kind and, with `check`, undamaged (bool); where not, its `out` is garbage.

    rows: i8[:, 7], for each frame the address of its bytes (untrusted), their number, its number in its tensor, the address of `out`, words to be decoded, and
    for a frame of a group with classes the address of their `place` and the group's word that it starts with, else 0. width: bytes of a word.
    """
    n = len(rows)
    digests = np.zeros(n, np.uint64)
    if width not in (2, 4) or not n:
        return digests, np.zeros(n, np.bool_)
    tables, plain, classed = np.empty(n * _TABLES_BYTES, np.uint8), np.empty((n, FRAME_NUMBERS), np.int64), np.empty((n, FRAME_NUMBERS), np.int64)
    few = np.empty((n, FRAME_NUMBERS + 1), np.int64)
    step = -(-(class_rans.work_bytes(int(rows[:, 4].max())) + _LARGEST_TABLE + 64 + WORK_BYTES) // 64) * 64
    work = scratch(max(2 * step, few_lanes.SCRATCH_BYTES))  # the frames' place and later that of few lanes, which are decoded last
    _parse(rows, width, int(check), address_of(tables), work, step, plain, classed, few, digests)
    decoded, found = np.zeros(n, np.bool_), np.zeros(n, np.uint64)
    for frames, unpack in ((plain, rans.unpack_frames), (classed, class_rans.unpack_frames), (few, few_lanes.unpack_frames)):
        there = np.flatnonzero(frames[:, 0] >= 0)
        if there.size:
            statuses, of_words = unpack(frames[there], digested=check)
            decoded[there] = statuses == 0
            if check:
                found[there] = of_words
    return digests, decoded & (found == digests) if check else decoded
