"""A container that is read front to back: its front at once, then its frames in batches as their bytes come."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from modelcodec.errors import CorruptFile, LimitExceeded, ModelCodecError, TruncatedFile
from modelcodec.formats import container
from modelcodec.formats.container import Container
from modelcodec.formats.container_layout import SAME, TENSOR_ROLE, Entry
from modelcodec.frame import FRAME_ARRAYS_SLACK
from modelcodec.limits import LIMITS
from modelcodec.runtime.sources import Source
from modelcodec.types import View

PIECE_BYTES = 1 << 20
"""What is asked for at a time where only the file says how much there should be: memory grows with bytes that came."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Frames first .. end - 1 of the entry with this index, none if it is empty; `holder` has their bytes."""

    index: int
    holder: Entry
    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Pieces whose bytes lie one after the other, from `start` to `end` in the container, and come for the first time, all or none."""

    start: int
    end: int
    pieces: tuple[Piece, ...]


class ForwardReader:
    """Reads a container's bytes in order, and entries that others repeat a second time: from where they lie, or from a copy where that is not possible.

    `copies` takes what will be asked for again, where the source cannot go back.
    """

    def __init__(self, source: Source, copies: Any) -> None:
        self._file, self._size, self.name = source.file, source.size, source.name
        self._position = 0
        self._repeated: set[int] = set()
        self._kept: list[tuple[int, int]] = []  # where a copied stretch starts, in the container and in the copies
        self._copies = copies
        self._copied = 0

    def front(self) -> tuple[Container, tuple[View, ...]]:
        """Header, directory and the container's own entries, all checked: an archive without frames, and the views on its tensors.

        Raises what `container.read` raises, OSError.
        """
        archive = container.read_front(self._take, self.name)
        last = archive.entries[-1]
        if self._size is None:
            self._repeated = {archive.entries[entry.same].start for entry in archive.entries if entry.kind == SAME}
        elif self._size < last.start + last.size:
            raise TruncatedFile(f"{self.name}: {last.name} ends at byte {last.start + last.size}, the file at {self._size}; fetch the rest of the file")
        own = [entry for entry in archive.entries if entry.role != TENSOR_ROLE]
        for entry in own:
            if entry.spec.n_bytes > LIMITS.skeleton_bytes:
                raise LimitExceeded(f"{self.name}: {entry.name} claims {entry.spec.n_bytes} bytes, at most {LIMITS.skeleton_bytes} are taken")
            check_coded(self.name, entry, entry.size, 0, entry.n_frames)
        start = self._position
        data = self._take(own[-1].start + own[-1].size - start)
        if any(entry.start in self._repeated for entry in own):
            self._keep(start, data)
        moved = tuple(entry.moved(start) for entry in own)
        window = replace(archive, buffer=data, entries=moved + archive.entries[len(own) :], _kept={})
        window.decode_entry(window.skeleton)
        return archive, window.views()

    def fill(self, batch: Batch, out: memoryview) -> None:
        """The batch's bytes. Raises TruncatedFile, OSError."""
        if not out:
            return
        if batch.start < self._position:
            self._fill_again(batch.start, out)
            return
        self._read(out)
        if any(piece.holder.start in self._repeated for piece in batch.pieces):
            self._keep(batch.start, out)

    def end(self) -> None:
        """Raises CorruptFile if anything follows."""
        if self._next(memoryview(bytearray(1))):
            raise CorruptFile(f"{self.name}: bytes follow the last entry, which ends at byte {self._position}; the file is damaged, fetch it again")

    def _take(self, n: int) -> memoryview:
        out = bytearray()
        while len(out) < n:
            piece = memoryview(bytearray(min(PIECE_BYTES, n - len(out))))
            self._read(piece)
            out += piece
        return memoryview(out)

    def _read(self, out: memoryview) -> None:
        while out:
            n = self._next(out)
            if not n:
                raise TruncatedFile(f"{self.name}, byte {self._position}: the source ends {len(out)} bytes or more too early; fetch the rest of the file")
            self._position += n
            out = out[n:]

    def _next(self, out: memoryview) -> int:
        try:
            return self._file.readinto(out) or 0
        except (OSError, ModelCodecError):
            raise
        except Exception as error:  # libraries of remote files have errors of their own for a connection that breaks
            raise TruncatedFile(f"{self.name}, byte {self._position}: the source broke off ({error}); fetch the rest of the file") from error

    def _keep(self, start: int, data: memoryview) -> None:
        self._kept.append((start, self._copied))
        self._copies.seek(self._copied)
        self._copied += self._copies.write(data)

    def _fill_again(self, start: int, out: memoryview) -> None:
        position = self._position
        if self._size is not None:
            self._file.seek(start)
            self._position = start
            self._read(out)
            self._file.seek(position)
            self._position = position
            return
        kept, at = self._kept[bisect_right(self._kept, (start, self._copied)) - 1]
        self._copies.seek(at + start - kept)
        self._copies.readinto(out)


def batches(archive: Container, n_bytes: int) -> Iterator[Batch]:
    """The frames of all tensors in order, so many decoded bytes at a time, but at least a frame, or a group of frames that share a part.

    A tensor that does not fit a batch whole begins one.
    """
    pieces: list[Piece] = []
    start = end = decoded = 0
    repeats = False
    for piece in _pieces(archive, n_bytes):
        holder = piece.holder
        size = (piece.end - piece.first) * holder.frame_words * holder.spec.dtype.word
        low, high = _span(piece)
        check_coded(archive.where, holder, high - low, piece.first, piece.end)
        whole = piece.end - piece.first == holder.n_frames
        again = archive.entries[piece.index].kind == SAME
        if pieces and (low != end or decoded + size > n_bytes or not whole or again != repeats):
            yield Batch(start, end, tuple(pieces))
            pieces = []
        if not pieces:
            start, decoded, repeats = low, 0, again
        pieces.append(piece)
        end = high
        decoded += size
    if pieces:
        yield Batch(start, end, tuple(pieces))


def _pieces(archive: Container, n_bytes: int) -> Iterator[Piece]:
    for index, entry in enumerate(archive.entries):
        if entry.role == TENSOR_ROLE:
            holder = archive.resolve(entry)
            step = n_bytes // (holder.frame_words * holder.spec.dtype.word) or 1
            if holder.shared:
                step = max(step // holder.group_frames, 1) * holder.group_frames
            for first in range(0, holder.n_frames or 1, step):
                yield Piece(index, holder, first, min(first + step, holder.n_frames))


def _span(piece: Piece) -> tuple[int, int]:
    """Where the bytes of a piece lie in the container, shared parts before its groups and padding behind the last frame included."""
    holder, first, end = piece.holder, piece.first, piece.end
    if holder.coded:
        low = holder.shared[first // holder.group_frames][0] if holder.shared else int(holder.frame_starts[first])
        high = int(holder.frame_ends[end - 1])
    else:
        frame_bytes = holder.frame_words * holder.spec.dtype.word
        low, high = first * frame_bytes, end * frame_bytes
    return holder.start + low, holder.start + (holder.size if end == holder.n_frames else high)


def check_coded(where: str, entry: Entry, n_coded: int, first: int, end: int) -> None:
    """Frames that are much larger coded than decoded would take memory that nothing accounts for. Raises LimitExceeded."""
    n_frames = end - first
    n_decoded = n_frames * min(entry.frame_words * entry.spec.dtype.word, LIMITS.frame_bytes)
    if n_coded > LIMITS.frame_arrays * (n_decoded + (n_frames + 1) * FRAME_ARRAYS_SLACK):
        raise LimitExceeded(f"{where}: {entry.name}: {n_frames} frames of {n_coded} bytes are more than any real file has; the file is damaged or hostile")
