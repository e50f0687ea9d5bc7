"""XXH3-64 of pieces of a GPU's memory, so that what was decoded there can be held against a frame's digest without leaving it.

source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelcodec.kernels.xxh3 import AVALANCHE, PRIMES_64, SECRET, START
from modelcodec.types import Array

if TYPE_CHECKING:
    import torch

LEAST_BYTES = 241
"""Shorter inputs are digested in other ways."""
_STRIPE = 64
_ONES = (1 << 64) - 1


def _secret(start: int) -> Array:
    return np.frombuffer(SECRET, "<u8", 8, start)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a tensor: `start` a multiple of 8, `n_bytes` at least LEAST_BYTES."""

    start: int
    n_bytes: int


def digests(memory: torch.Tensor, pieces: Sequence[Piece]) -> list[int]:
    """XXH3-64 of each piece of `memory` (u1, its address a multiple of 8). Waits for the result."""
    import torch

    from modelcodec.kernels.triton.xxh3 import accumulate

    if not pieces:
        return []
    rows = np.array([(piece.start // 8, piece.n_bytes) for piece in pieces], np.int64)
    table = np.concatenate([*(_secret(8 * stripe) for stripe in range(16)), _secret(128), np.array(START, np.uint64)]).view(np.int64)
    sums = torch.empty((len(pieces), 8), dtype=torch.int64, device=memory.device)
    words = memory[: memory.numel() // 8 * 8].view(torch.int64)
    with torch.cuda.device_of(memory):  # type: ignore[no-untyped-call]
        accumulate[(len(pieces),)](words, torch.from_numpy(rows).to(memory.device), torch.from_numpy(table).to(memory.device), sums, num_warps=1)
    last = torch.stack([memory[piece.start + piece.n_bytes - _STRIPE : piece.start + piece.n_bytes] for piece in pieces])
    return _finished(sums.cpu().numpy().view(np.uint64), last.cpu().numpy().view("<u8"), rows[:, 1])


def _finished(sums: Array, last: Array, n_bytes: Array) -> list[int]:
    """The digests, from the accumulators [n, 8] and the words of the last stripes [n, 8]."""
    keyed = last ^ _secret(121)
    with np.errstate(over="ignore"):
        sums = sums + last[:, [1, 0, 3, 2, 5, 4, 7, 6]] + (keyed & np.uint64(0xFFFFFFFF)) * (keyed >> np.uint64(32))
    found = []
    for row, n in zip((sums ^ _secret(11)).tolist(), n_bytes.tolist(), strict=True):
        mixed = n * PRIMES_64[0]
        for a, b in zip(row[::2], row[1::2], strict=True):
            mixed += (a * b & _ONES) ^ (a * b >> 64)
        mixed &= _ONES
        mixed = (mixed ^ mixed >> 37) * AVALANCHE & _ONES
        found.append(mixed ^ mixed >> 32)
    return found
