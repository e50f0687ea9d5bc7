"""What reading and writing the container share: version, names, roles, kinds and limits of the format, and the entries (docs/format.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

import xxhash

from modelcodec import frame as frames
from modelcodec.formats import OWN_PREFIX
from modelcodec.limits import LIMITS
from modelcodec.types import DType, TensorSpec

VERSION = (0, 3)
"""The highest format version that this reads; what it writes is the lowest that fits."""
DIRECTORY = OWN_PREFIX + "directory"
SKELETON = OWN_PREFIX + "skeleton"
VIEWS = OWN_PREFIX + "views"
LOSSES = OWN_PREFIX + "losses"

TENSOR_ROLE, SKELETON_ROLE, VIEWS_ROLE, LOSSES_ROLE = 0, 1, 2, 3
IDENTIFIED = (TENSOR_ROLE, SKELETON_ROLE)
"""Roles whose digests make up the identity."""
ORDINARY, CODED, SAME, CODED_SHARED, CODED_BASE = 0, 1, 2, 3, 4
SINCE = {ORDINARY: (0, 1), CODED: (0, 1), SAME: (0, 1), CODED_SHARED: (0, 2), CODED_BASE: (0, 3)}
"""kind -> first format version with it"""
ROLE_SINCE = {TENSOR_ROLE: (0, 1), SKELETON_ROLE: (0, 1), VIEWS_ROLE: (0, 1), LOSSES_ROLE: (0, 3)}
MOST_GROUP_FRAMES = 8
"""Frames that share a part: it bounds what an edit inside a tensor sends again."""
SHARED_NUMBER = 1 << 32
"""Number, for the seal, of the first group's shared part."""
ALIGNMENT = 8
SHA256, BASES = 1, 2
"""Flags of the directory."""
MOST_BYTES = (1 << 63) - 1
LOSS = Struct("<ff")
"""Maximum error and relative mean squared error, in the losses entry."""


def full_frame_words(dtype: DType, row_words: int = 0) -> int:
    """Words of a full frame: 1 MiB, less what would split a block, or a row where rows are shorter than a frame."""
    words = LIMITS.frame_bytes // dtype.word
    unit = row_words if 0 < row_words <= words and row_words % dtype.block == 0 else dtype.block
    return words // unit * unit


@dataclass(frozen=True, slots=True)
class BaseTensor:
    """A tensor of another file that an entry is a delta to: the number of the file among `bases`, the tensor's name there, the XXH3-64 of its bytes."""

    file: int
    name: str
    digest: int


class Entry(NamedTuple):
    """A directory entry. `start` and `size` say where its bytes lie in the container.

    Coded frames lie one after the other: `frame_starts` and `frame_ends` count from `start`. `shared` has, for each group of `group_frames` frames, the
    start, end and decoded size of its shared part (size 0: none); it is empty where the entry has no groups.
    """

    name: str
    role: int
    kind: int
    spec: TensorSpec
    gap: int
    digest: int
    start: int
    size: int
    frame_words: int
    frame_starts: tuple[int, ...]
    frame_ends: tuple[int, ...]
    group_frames: int
    shared: tuple[tuple[int, int, int], ...]
    frame_digests: tuple[int, ...]
    same: int
    base: BaseTensor | None = None

    @property
    def coded(self) -> bool:
        return self.kind in (CODED, CODED_SHARED, CODED_BASE)

    @property
    def n_frames(self) -> int:
        """Frames that the entry itself has: none where it is the same as another one."""
        return len(self.frame_ends or self.frame_digests)

    def words_of(self, number: int) -> int:
        return min(self.frame_words, self.spec.n_words - number * self.frame_words)

    def moved(self, n_bytes: int) -> Entry:
        """The same in what is left of the container where so many bytes are cut off its start."""
        return self._replace(start=self.start - n_bytes)

    def span(self, number: int) -> tuple[int, int]:
        """Where a coded frame's bytes lie in the container."""
        return self.start + self.frame_starts[number], self.start + self.frame_ends[number]


def digests_bytes(digests: Iterable[int]) -> bytes:
    """As they stand in the directory."""
    return b"".join([digest.to_bytes(8, "little") for digest in digests])


def tensor_digest(digests: Iterable[int]) -> int:
    """That of an entry, from those of its frames."""
    return frames.digest_of(digests_bytes(digests))


def identity_of(digests: Iterable[int]) -> bytes:
    """That of a container, from those of its entries whose roles are IDENTIFIED."""
    return xxhash.xxh3_128_intdigest(digests_bytes(digests)).to_bytes(16, "little")
