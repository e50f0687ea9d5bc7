"""Frames of the usual kind, several in one kernel call: encoded, and read back (`kernels.frame_encoder` tells which those are)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from modelcodec import frame as frames
from modelcodec.arena import Buffers, of_thread
from modelcodec.kernels import frame_encoder
from modelcodec.kernels.frame_encoder import RAW, USUAL, Choices
from modelcodec.kernels.memory import address_of
from modelcodec.types import Array


@dataclass(frozen=True, slots=True)
class Unplanned:
    """A frame that may be of the usual kind: its bytes (u1), its number in its tensor, the words of a row, what the planner knows before it looks at them."""

    data: Array
    number: int
    row_words: int
    choices: Choices


@dataclass(frozen=True, slots=True)
class EncodedRun:
    """What became of each frame: its encoding; None where the planner has to be asked; False where raw is best. Encodings lie in `buffer`."""

    frames: tuple[frames.EncodedFrame | bool | None, ...]
    buffer: Array


def encode(unplanned: Sequence[Unplanned], width: int, buffers: Buffers | None) -> EncodedRun:
    """Encode frames of words of `width` bytes, 2 or 4. The buffer is one of `buffers`, if there are any, until that is given back."""
    rooms = [frame_encoder.room(frame.data.size // width, width, frame.choices) for frame in unplanned]
    *starts, total = accumulate(rooms, initial=0)
    buffer = np.empty(total, np.uint8) if buffers is None else buffers.take(total)
    base = address_of(buffer)
    rows = [
        (address_of(frame.data), frame.data.size // width, frame.number, base + start, frame.row_words, *frame.choices)
        for frame, start in zip(unplanned, starts, strict=True)
    ]
    found, digests = frame_encoder.encode(np.array(rows, np.int64), width)
    view: Any = buffer.data
    encoded: list[frames.EncodedFrame | bool | None] = []
    for (outcome, address, n_bytes), digest in zip(found.tolist(), digests.tolist(), strict=True):
        at = address - base
        encoded.append(frames.EncodedFrame(view[at : at + n_bytes], digest) if outcome == USUAL else False if outcome == RAW else None)
    return EncodedRun(tuple(encoded), buffer)


def decode(unplanned: Sequence[Unplanned], encoded: Sequence[frames.EncodedFrame], width: int) -> list[Array | None]:
    """What these frames decode to (u1), in the thread's memory for reading back; None for a damaged one, whose memory may hold what was read back before."""
    of_thread.reading_back.reset()
    outs = [of_thread.reading_back.bytes(frame.data.size) for frame in unplanned]
    held = [np.frombuffer(frame.data, np.uint8) for frame in encoded]
    rows = [
        frames.run_row(address_of(data), data.size, frame.number, address_of(out), out.size // width, None, 0)
        for data, frame, out in zip(held, unplanned, outs, strict=True)
    ]
    _, decoded = frames.decode_run(np.array(rows, np.int64), width)
    return [out if good else None for out, good in zip(outs, decoded.tolist(), strict=True)]
