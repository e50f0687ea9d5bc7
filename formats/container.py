"""Our own container, open for reading: a valid safetensors file whose tensors are frames (docs/format.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import numpy as np

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe, CorruptFile, LimitExceeded, TruncatedFile, UnsupportedFile
from modelcodec.formats import MARKER, OWN_PREFIX
from modelcodec.formats.container_directory import read_directory, read_header, read_losses, read_views
from modelcodec.formats.container_layout import LOSSES_ROLE, ORDINARY, SAME, SHARED_NUMBER, TENSOR_ROLE, VIEWS_ROLE, BaseTensor, Entry, tensor_digest
from modelcodec.kernels.class_rans import Classes
from modelcodec.kernels.memory import address_of
from modelcodec.kernels.stored import copied
from modelcodec.limits import LIMITS
from modelcodec.stage import FrameContext, Shared
from modelcodec.types import Array, Loss, View
from modelcodec.wire import Reader

KEPT_SHARED = 16
"""Decoded shared parts that are kept at a time, at most 1 MiB each and what a stage makes of it."""


class Bases(Protocol):
    """The files that a container is a delta to."""

    def words(self, tensor: BaseTensor, width: int, first: int, n: int) -> Array:
        """n words (u1, u2, u4 or u8) of the tensor from word `first` on; zero where it has ended."""
        ...

    def check(self, tensor: BaseTensor) -> None:
        """Raises BadRecipe where the tensor has other bytes than it had."""
        ...


@dataclass(frozen=True)
class Container:
    """A parsed container over an untrusted buffer (a mapped file or bytes).

    Everything here has been checked against the buffer's size; frames are not read yet.
    """

    buffer: memoryview
    where: str
    metadata: Mapping[str, str]
    entries: tuple[Entry, ...]
    source_format: str
    source_size: int
    sha256: bytes | None
    tail: int
    base_names: tuple[str, ...] = ()
    """Files that entries are deltas to; `bases` reads them."""
    bases: Bases | None = None
    _kept: dict[int, Shared] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def skeleton(self) -> Entry:
        return self.entries[0]

    @property
    def tensors(self) -> tuple[Entry, ...]:
        return self.entries[next((k for k, entry in enumerate(self.entries) if entry.role == TENSOR_ROLE), len(self.entries)) :]

    def resolve(self, entry: Entry) -> Entry:
        """The entry that holds the bytes."""
        return self.entries[entry.same] if entry.kind == SAME else entry

    def decode_frames(self, entry: Entry, first: int, out: Array) -> list[int]:
        """Decode as many frames from number `first` on as fill `out` (u1, aligned to the words), several in one kernel call; returns their digests."""
        return self.decode_runs([(entry, first, out)])[0]

    def decode_runs(self, runs: Sequence[tuple[Entry, int, Array]]) -> list[list[int]]:
        """The same for frames of several entries, each with the number of the first and what they fill."""
        # Held until the kernels are done, which have but its address: whoever is interrupted meanwhile must not unmap it.
        held = np.frombuffer(self.buffer, np.uint8)
        together = _Together(address_of(held), held.size)
        digests: list[list[int]] = []
        for entry, first, out in runs:
            digests.append([0] * -(-out.size // (entry.frame_words * entry.spec.dtype.word)))
            for k in range(len(digests[-1])):
                together.add(self, entry, first + k, out, k, digests[-1])
        left = together.decode()
        del held
        for entry, number, out, k, found in left:
            words = out.view(frames.WORD[entry.spec.dtype.word])[k * entry.frame_words : (k + 1) * entry.frame_words]
            found[k] = self.decode_frame(entry, number, words)
        return digests

    def decode_frame(self, entry: Entry, number: int, out: Array) -> int:
        """Decode a frame of an ordinary or coded entry into `out` (u1, u2, u4 or u8 words); returns its digest."""
        if entry.coded:
            start, end = entry.span(number)
            if number == entry.n_frames - 1:
                self.check_padding(entry)
            context = self.context(entry, number)
            try:
                return frames.decode(self.buffer[start:end], number, out, f"{self.where}: {entry.name}, frame {number} at byte {start}", context)
            except CorruptFile:
                if entry.base and self.bases:
                    self.bases.check(entry.base)
                raise
        start = entry.start + number * entry.frame_words * entry.spec.dtype.word
        piece = frames.as_bytes(self.buffer[start : start + out.nbytes])
        out.view(np.uint8)[:] = piece
        digest = entry.frame_digests[number]
        if frames.CHECK_DIGESTS and frames.digest_of(out) != digest:
            raise CorruptFile(f"{self.where}: {entry.name}, byte {start}: the digest of the stored bytes does not match; the file is damaged, fetch it again")
        return digest

    def check_padding(self, entry: Entry) -> None:
        """With the last frame, so that opening a file touches no more than header and directory."""
        if any(self.buffer[entry.start + entry.frame_ends[-1] : entry.start + entry.size]):
            raise CorruptFile(f"{self.where}: the padding of {entry.name!r} is not zero; the file is damaged, fetch it again")

    def context(self, entry: Entry, number: int) -> FrameContext:
        """What a frame of a coded entry may know."""
        shared, first = None, 0
        if entry.shared:
            first = number % entry.group_frames * entry.frame_words
            group = number // entry.group_frames
            start, end, size = entry.shared[group]
            if size:
                shared = self._shared(entry.start + start, entry.start + end, size, group, entry.name)
        n, at = entry.words_of(number), number * entry.frame_words
        base = self._bases_of(entry).words(entry.base, entry.spec.dtype.word, at, n) if entry.base else None
        return FrameContext(entry.spec, first, n, shared, at, base)

    def classes_of(self, entry: Entry, number: int) -> Classes | None:
        """What a coded frame has its classes from, if it has any. Raises what reading its group's shared part raises."""
        start, end, size = entry.shared[number // entry.group_frames]
        if not size:
            return None
        shared = self._shared(entry.start + start, entry.start + end, size, number // entry.group_frames, entry.name)
        return frames.classes_of(self.buffer[slice(*entry.span(number))], shared)

    def _bases_of(self, entry: Entry) -> Bases:
        if self.bases is None:
            names = " and ".join(map(repr, self.base_names))
            raise BadRecipe(f"{self.where}: {entry.name} is stored as what it changed in its base, {names}, which is not here; name it with --base or base=")
        return self.bases

    def _shared(self, start: int, end: int, size: int, group: int, name: str) -> Shared:
        """A group's shared part, decoded once and kept for the group's other frames."""
        kept = self._kept.get(start)
        if kept is None:
            out = np.empty(size, np.uint8)
            frames.decode(self.buffer[start:end], SHARED_NUMBER + group, out, f"{self.where}: {name}, shared part at byte {start}")
            kept = Shared(out.tobytes())
            with self._lock:
                if len(self._kept) >= KEPT_SHARED:
                    self._kept.pop(next(iter(self._kept)), None)
                self._kept[start] = kept
        return kept

    def frame_head(self, entry: Entry, number: int) -> frames.Head:
        start, end = entry.span(number)
        where = f"{self.where}: {entry.name}, frame {number} at byte {start}"
        return frames.read_head(self.buffer[start:end], number, entry.spec.dtype.word, entry.words_of(number), where)

    def decode_entry(self, entry: Entry) -> bytes:
        """All bytes of a small entry (skeleton, views)."""
        if entry.spec.n_bytes > LIMITS.skeleton_bytes:
            raise LimitExceeded(f"{self.where}: {entry.name} claims {entry.spec.n_bytes} bytes, at most {LIMITS.skeleton_bytes} are taken")
        source, pieces, digests = self.resolve(entry), [], []
        for number in range(source.n_frames):
            out = np.empty(source.words_of(number) * source.spec.dtype.word, np.uint8)
            digests.append(self.decode_frame(source, number, out.view(frames.WORD[source.spec.dtype.word])))
            pieces.append(out)
        check_tensor_digest(entry, digests, self.where)
        return b"".join(piece.data for piece in pieces)

    def views(self) -> tuple[View, ...]:
        """The named tensors on the entries; empty where each entry is a tensor itself. Checked to lie inside their entries."""
        for entry in self.entries:
            if entry.role == VIEWS_ROLE:
                return read_views(self.decode_entry(entry), self.entries, entry.size, self.where)
        return ()

    def losses(self) -> dict[str, Loss]:
        """What the lossy tensors have lost, by the name of their entry; empty for a lossless file."""
        for entry in self.entries:
            if entry.role == LOSSES_ROLE:
                return read_losses(self.decode_entry(entry), self.entries, self.where)
        return {}


_Job = tuple[Entry, int, Array, int, list[int]]
"""An entry, the number of its frame, what its frames fill, the place of this one there, counted in frames, and where its digest goes at this place."""


class _Together:
    """Frames that go through the kernels several in a call; what these do not know, or find damaged, is left over."""

    def __init__(self, source: int, n_bytes: int) -> None:
        """Of a container of so many bytes at this address."""
        self._source, self._end = source, n_bytes
        self._left: list[_Job] = []
        self._stored: list[tuple[tuple[int, ...], _Job]] = []
        self._coded: dict[int, list[tuple[tuple[int, ...], _Job]]] = {2: [], 4: []}
        self._kept: list[Classes] = []

    def add(self, container: Container, entry: Entry, number: int, out: Array, k: int, digests: list[int]) -> None:
        """Frame `number` of an entry, as a job. Raises what reading its shared part raises."""
        word, job = entry.spec.dtype.word, (entry, number, out, k, digests)
        step = entry.frame_words * word
        to, n_bytes = address_of(out) + k * step, min(step, out.size - k * step)
        if entry.kind == ORDINARY:
            start = entry.start + number * step
            if start + n_bytes <= self._end:
                self._stored.append(((self._source + start, to, n_bytes), job))
                return
        elif entry.coded:
            start, end = entry.span(number)
            if end <= self._end and frames.is_usual(container.buffer[start:end], word):
                classes = container.classes_of(entry, number) if entry.shared and not entry.base else None
                first = number % entry.group_frames * entry.frame_words if classes else 0
                row = frames.run_row(self._source + start, end - start, number, to, n_bytes // word, classes, first)
                self._coded[word].append((row, job))
                if classes:
                    self._kept.append(classes)
                if number == entry.n_frames - 1:
                    container.check_padding(entry)
                return
        self._left.append(job)

    def decode(self) -> list[_Job]:
        """Decode what was added, and note the digests. Returns what is left."""
        if self._stored:
            for (_, job), digest in zip(self._stored, copied(np.array([row for row, _ in self._stored])).tolist(), strict=True):
                entry, number, _, k, digests = job
                digests[k] = digest
                if digest != entry.frame_digests[number]:
                    self._left.append(job)
        for word, rows in self._coded.items():
            if rows:
                found, decoded = frames.decode_run(np.array([row for row, _ in rows]), word)
                for (_, job), digest, good in zip(rows, found.tolist(), decoded.tolist(), strict=True):
                    _, _, _, k, digests = job
                    digests[k] = digest
                    if not good:
                        self._left.append(job)
        return self._left


def check_tensor_digest(entry: Entry, digests: Iterable[int], where: str) -> None:
    if frames.CHECK_DIGESTS and entry.digest != tensor_digest(digests):
        raise CorruptFile(f"{where}: {entry.name}: the tensor's digest does not match its frames'; the file is damaged, fetch it again")


def is_container(buffer: memoryview) -> bool:
    """Whether the buffer starts like a container: a safetensors header with the marker or the directory. Cheap; says nothing about its health."""
    if len(buffer) < 8:
        return False
    size = int.from_bytes(buffer[:8], "little")
    if size > LIMITS.header_bytes:
        return False
    header = bytes(buffer[8 : 8 + size])
    return b'"' + MARKER.encode() + b'"' in header or OWN_PREFIX.encode() in header


def read(buffer: memoryview, where: str) -> Container:
    """Parse header and directory of an untrusted container. Raises TruncatedFile, CorruptFile, UnsupportedFile, LimitExceeded."""
    outer = Reader(buffer, where, short=TruncatedFile)
    n_header = outer.uint(8)
    if n_header > LIMITS.header_bytes:
        raise UnsupportedFile(f"{where}: not a modelcodec file (a safetensors header of {n_header} bytes is not possible)")
    header_bytes = outer.take(n_header)
    data = outer.position
    metadata, rows = read_header(bytes(header_bytes), where)
    for name, _, _, end in rows:
        if end > len(buffer) - data:
            raise TruncatedFile(f"{where}: {name} ends at byte {data + end}, the file at {len(buffer)}; fetch the rest of the file")
    if rows[-1][3] != len(buffer) - data:
        raise CorruptFile(f"{where}: {len(buffer) - data - rows[-1][3]} bytes follow the last entry; the file is damaged, fetch it again")
    directory = buffer[data : data + rows[0][3]]
    return Container(buffer, where, metadata, *read_directory(directory, buffer, data, rows[1:], where))


def read_front(take: Callable[[int], memoryview], where: str) -> Container:
    """Parse header and directory of an untrusted container that comes front to back: `take(n)` gives its next n bytes, or raises TruncatedFile.

    The container's buffer is these bytes alone: frames are decoded by one that `replace` gives another buffer. Raises what `read` raises.
    """
    opening = bytes(take(8))
    n_header = int.from_bytes(opening, "little")
    if n_header > LIMITS.header_bytes:
        raise UnsupportedFile(f"{where}: not a modelcodec file (a safetensors header of {n_header} bytes is not possible)")
    opening += bytes(take(n_header))
    metadata, rows = read_header(opening[8:], where)
    front = memoryview(opening + bytes(take(rows[0][3])))
    return Container(front, where, metadata, *read_directory(front[len(opening) :], front, len(opening), rows[1:], where))
