"""Our own container: a valid safetensors file whose tensors are frames (docs/format.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from math import inf
from struct import Struct, unpack
from threading import Lock
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import xxhash

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe, CorruptFile, LimitExceeded, TruncatedFile, UnsupportedFile
from modelcodec.formats import FORMAT_IDS, MARKER, OWN_PREFIX
from modelcodec.frame import EncodedFrame
from modelcodec.kernels.class_rans import Classes
from modelcodec.kernels.memory import address_of
from modelcodec.kernels.stored import copied
from modelcodec.limits import LIMITS
from modelcodec.stage import FrameContext, Shared
from modelcodec.types import DTYPE_BY_ID, U8, Array, Checkpoint, DType, Loss, TensorSpec, View
from modelcodec.wire import Reader, byte_string, varint

VERSION = (0, 3)
"""The highest format version that this reads; what it writes is the lowest that fits."""
DIRECTORY = OWN_PREFIX + "directory"
SKELETON = OWN_PREFIX + "skeleton"
VIEWS = OWN_PREFIX + "views"
LOSSES = OWN_PREFIX + "losses"

TENSOR_ROLE, SKELETON_ROLE, VIEWS_ROLE, LOSSES_ROLE = 0, 1, 2, 3
IDENTIFIED = (TENSOR_ROLE, SKELETON_ROLE)
"""Roles whose digests make up the identity."""
_OWN_NAMES = {SKELETON_ROLE: SKELETON, VIEWS_ROLE: VIEWS, LOSSES_ROLE: LOSSES}
ORDINARY, CODED, SAME, CODED_SHARED, CODED_BASE = 0, 1, 2, 3, 4
SINCE = {ORDINARY: (0, 1), CODED: (0, 1), SAME: (0, 1), CODED_SHARED: (0, 2), CODED_BASE: (0, 3)}
"""kind -> first format version with it"""
ROLE_SINCE = {TENSOR_ROLE: (0, 1), SKELETON_ROLE: (0, 1), VIEWS_ROLE: (0, 1), LOSSES_ROLE: (0, 3)}
MOST_GROUP_FRAMES = 8
"""Frames that share a part: it bounds what an edit inside a tensor sends again."""
KEPT_SHARED = 16
"""Decoded shared parts that are kept at a time, at most 1 MiB each and what a stage makes of it."""
SHARED_NUMBER = 1 << 32
"""Number, for the seal, of the first group's shared part."""
ALIGNMENT = 8
SHA256, BASES = 1, 2
"""Flags of the directory."""
MOST_BYTES = (1 << 63) - 1
_LOSS = Struct("<ff")


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


class Bases(Protocol):
    """The files that a container is a delta to."""

    def words(self, tensor: BaseTensor, width: int, first: int, n: int) -> Array:
        """n words (u1, u2, u4 or u8) of the tensor from word `first` on; zero where it has ended."""
        ...

    def check(self, tensor: BaseTensor) -> None:
        """Raises BadRecipe where the tensor has other bytes than it had."""
        ...


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


# ---- writing -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """What the writer is told of an entry before its bytes are known."""

    name: str
    role: int
    spec: TensorSpec
    gap: int
    base: BaseTensor | None = None


@dataclass(frozen=True, slots=True)
class EncodedGroup:
    """Up to 8 frames, and the part that they share, `shared_size` bytes long when decoded. `delta`: whether any of them is one."""

    frames: tuple[EncodedFrame, ...]
    shared: EncodedFrame | None = None
    shared_size: int = 0
    delta: bool = False

    @property
    def n_bytes(self) -> int:
        return sum(len(frame.data) for frame in self.frames) + (len(self.shared.data) if self.shared else 0)


class Writer:
    """Writes a container front to back: all entries' bytes first, then header and directory into the place before them.

    The place is exact, or with `reserve` an upper bound: header and directory stand first but are known last. Which
    of the two it is depends on the source's size alone, so that the output does.
    """

    def __init__(self, file: BinaryIO, items: Sequence[Item], metadata: Mapping[str, str], *, reserve: bool, bases: Sequence[str] = ()) -> None:
        self.file = file
        self.items = items
        self.metadata = metadata
        self.bases = bases
        self.base = self._bound() if reserve else 0
        self.position = self.base
        self.spans: list[tuple[int, int]] = []
        self.rows: list[bytes] = []
        self.kinds: list[int] = []
        self.sinces: list[tuple[int, int]] = []
        self.digests: list[int] = []
        file.seek(self.base)

    def ordinary(self, pieces: Iterable[Any], digests: Sequence[int]) -> None:
        """The next entry as it was, in pieces of a frame each."""
        start = self.position
        for piece in pieces:
            self._put(piece)
        self._finish(ORDINARY, start, b"".join([d.to_bytes(8, "little") for d in digests]), digests)

    def same(self, index: int) -> None:
        """The next entry has the bytes of an earlier one."""
        self._finish(SAME, self.position, varint(index), (), digest=self.digests[index])

    def coded(self, frame_words: int, group_frames: int, encoded: Iterable[EncodedGroup]) -> None:
        """The next entry as groups of `group_frames` frames; the last one may have fewer. Those that are deltas are so to the item's base."""
        start, sizes, digests, shared, delta = self.position, bytearray(), [], False, False
        plain, since = bytearray(), (0, 1)
        for group in encoded:
            sizes += varint(group.shared_size)
            delta |= group.delta
            if group.shared:
                shared = True
                self._put_frame(group.shared, sizes)
            for frame in group.frames:
                self._put_frame(frame, sizes)
                plain += varint(len(frame.data))
                since = max(since, frame.since)
                digests.append(frame.digest)
        self._put(bytes(-self.position % ALIGNMENT))
        kind = CODED_BASE if delta else CODED_SHARED if shared else CODED
        row = varint(frame_words) + (bytes(plain) if kind == CODED else varint(group_frames) + bytes(sizes))
        base = self.items[len(self.rows)].base
        self._finish(kind, start, _base_bytes(base) + row if delta and base else row, digests, since=since)

    def _put_frame(self, frame: EncodedFrame, sizes: bytearray) -> None:
        self._put(frame.data)
        sizes += varint(len(frame.data))

    def take_back(self) -> None:
        """Undo the last entry: it came out larger than its tensor."""
        self.position = self.spans.pop()[0]
        self.file.seek(self.position)
        self.file.truncate()
        for column in (self.rows, self.kinds, self.digests, self.sinces):
            column.pop()

    def last_size(self) -> int:
        start, end = self.spans[-1]
        return end - start

    def identity(self) -> bytes:
        counted = [d.to_bytes(8, "little") for d, item in zip(self.digests, self.items, strict=True) if item.role in IDENTIFIED]
        return xxhash.xxh3_128_intdigest(b"".join(counted)).to_bytes(16, "little")

    def prefix(self, source_size: int, source_format: str, tail: int, sha256: bytes | None) -> bytes:
        """Header and directory, to be written at the file's start (exactly `base` bytes where a place was reserved)."""
        bases = self.bases if CODED_BASE in self.kinds else ()
        flags = (SHA256 if sha256 else 0) | (BASES if bases else 0)
        head = bytes([flags]) + (sha256 or b"") + self.identity() + varint(source_size) + bytes([FORMAT_IDS[source_format]])
        if bases:
            head += varint(len(bases)) + b"".join(byte_string(name.encode()) for name in bases)
        body = head + varint(len(self.rows)) + b"".join(self.rows) + varint(tail)
        n_directory = 16 + len(body) + -(16 + len(body)) % ALIGNMENT
        if self.base:
            header_room = self._header_bound()
            n_directory = self.base - 8 - header_room
            header = self._header(n_directory).ljust(header_room)
        else:
            header = self._header(n_directory)
            header = header.ljust(len(header) + -len(header) % ALIGNMENT)
        opening = len(header).to_bytes(8, "little") + header
        body = body.ljust(n_directory - 16, b"\0")
        return opening + frames.digest_of(opening).to_bytes(8, "little") + frames.digest_of(body).to_bytes(8, "little") + body

    def _put(self, piece: Any) -> None:
        if len(piece):
            self.file.write(piece)
            self.position += len(piece)

    def _finish(self, kind: int, start: int, row: bytes, digests: Sequence[int], digest: int | None = None, since: tuple[int, int] = (0, 1)) -> None:
        item = self.items[len(self.rows)]
        if digest is None:
            digest = frames.digest_of(b"".join([d.to_bytes(8, "little") for d in digests]))
        spec = item.spec
        shape = b"".join([varint(n) for n in (len(spec.shape), *spec.shape)])
        gap = varint(item.gap) if item.role == TENSOR_ROLE else b""
        self.rows.append(b"".join((bytes((item.role, kind, spec.dtype.id)), shape, gap, digest.to_bytes(8, "little"), row)))
        self.kinds.append(kind)
        self.sinces.append(max(SINCE[kind], ROLE_SINCE[item.role], since))
        self.digests.append(digest)
        self.spans.append((start, self.position))

    def _version(self) -> tuple[int, int]:
        """The lowest that has all that was written."""
        return max(self.sinces)

    def _header(self, n_directory: int) -> bytes:
        marked = {**self.metadata, MARKER: "{}.{}".format(*self._version())}
        rows = [_row(DIRECTORY, "U8", (n_directory,), 0, n_directory)]
        shift = n_directory - self.base
        for item, kind, (start, end) in zip(self.items, self.kinds, self.spans, strict=True):
            is_itself = kind == ORDINARY and item.spec.dtype.in_safetensors
            dtype, shape = (item.spec.dtype.name, item.spec.shape) if is_itself else ("U8", (end - start,))
            rows.append(_row(item.name, dtype, shape, start + shift, end + shift))
        return _header_bytes(marked, rows)

    def _header_bound(self) -> int:
        most = 10 * 2**40  # offsets of any file there is have at most this many digits
        rows = [_row(DIRECTORY, "U8", (most,), 0, most)]
        for item in self.items:
            longer = max((item.spec.shape, (most,)), key=lambda shape: len(str(shape)))
            rows.append(_row(item.name, "F8_E4M3FNUZ", longer, most, most))
        size = len(_header_bytes({**self.metadata, MARKER: "{}.{}".format(*VERSION)}, rows))
        return size + -size % ALIGNMENT

    def _bound(self) -> int:
        """An upper bound of header and directory: every frame's length in 4 bytes or its digest in 8."""
        directory = 128 + sum(16 + len(name.encode()) for name in self.bases)
        for item in self.items:
            directory += len(_base_bytes(item.base)) + 16 if item.base else 0
            directory += 64 + 9 * len(item.spec.shape) + 9 * (-(-item.spec.n_bytes // (LIMITS.frame_bytes // 2)) + 1)
        return 8 + self._header_bound() + directory + -directory % ALIGNMENT


def _base_bytes(base: BaseTensor) -> bytes:
    return varint(base.file) + byte_string(base.name.encode()) + base.digest.to_bytes(8, "little")


def _row(name: str, dtype: str, shape: tuple[int, ...], start: int, end: int) -> str:
    sizes = ",".join([str(n) for n in shape])
    return f'{encode_basestring(name)}:{{"dtype":"{dtype}","shape":[{sizes}],"data_offsets":[{start},{end}]}}'


def _header_bytes(metadata: Mapping[str, str], rows: Iterable[str]) -> bytes:
    """The JSON header: by hand, since a file may have hundreds of thousands of rows."""
    described = json.dumps(metadata, separators=(",", ":"), ensure_ascii=False)
    return ",".join((f'{{"__metadata__":{described}', *rows)).encode() + b"}"


def losses_bytes(losses: Mapping[int, Loss]) -> bytes:
    """The decoded losses entry, from directory indices."""
    return varint(len(losses)) + b"".join(varint(index) + _LOSS.pack(loss.max_error, loss.relative_mse) for index, loss in sorted(losses.items()))


def views_bytes(checkpoint: Checkpoint, first_entry: int) -> bytes:
    """The decoded views entry; `first_entry` is the directory index of extent 0."""
    out = [varint(len(checkpoint.views))]
    for view in checkpoint.views:
        spec = view.spec
        out += [byte_string(spec.name.encode()), bytes([spec.dtype.id]), varint(len(spec.shape)), *map(varint, spec.shape), *map(varint, view.strides)]
        out += [varint(view.extent + first_entry), varint(view.first)]
    return b"".join(out)


# ---- reading -----------------------------------------------------------------------------------------------------------------------


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
                return _read_views(self.decode_entry(entry), self.entries, entry.size, self.where)
        return ()


    def losses(self) -> dict[str, Loss]:
        """What the lossy tensors have lost, by the name of their entry; empty for a lossless file."""
        for entry in self.entries:
            if entry.role == LOSSES_ROLE:
                return _read_losses(self.decode_entry(entry), self.entries, self.where)
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
    if frames.CHECK_DIGESTS and entry.digest != frames.digest_of(b"".join([d.to_bytes(8, "little") for d in digests])):
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
    metadata, rows = _read_header(bytes(header_bytes), where)
    for name, _, _, end in rows:
        if end > len(buffer) - data:
            raise TruncatedFile(f"{where}: {name} ends at byte {data + end}, the file at {len(buffer)}; fetch the rest of the file")
    if rows[-1][3] != len(buffer) - data:
        raise CorruptFile(f"{where}: {len(buffer) - data - rows[-1][3]} bytes follow the last entry; the file is damaged, fetch it again")
    directory = buffer[data : data + rows[0][3]]
    return _read_directory(directory, buffer, data, metadata, rows[1:], where)


def read_front(take: Callable[[int], memoryview], where: str) -> Container:
    """Parse header and directory of an untrusted container that comes front to back: `take(n)` gives its next n bytes, or raises TruncatedFile.

    The container's buffer is these bytes alone: frames are decoded by one that `replace` gives another buffer. Raises what `read` raises.
    """
    opening = bytes(take(8))
    n_header = int.from_bytes(opening, "little")
    if n_header > LIMITS.header_bytes:
        raise UnsupportedFile(f"{where}: not a modelcodec file (a safetensors header of {n_header} bytes is not possible)")
    opening += bytes(take(n_header))
    metadata, rows = _read_header(opening[8:], where)
    front = memoryview(opening + bytes(take(rows[0][3])))
    return _read_directory(front[len(opening) :], front, len(opening), metadata, rows[1:], where)


_Row = tuple[str, str, tuple[int, ...], int]


def _read_header(header: bytes, where: str) -> tuple[dict[str, str], list[_Row]]:
    """The JSON header: metadata, and (name, dtype, shape, end) in the order of the data, the directory first, without holes."""

    def corrupt(fact: str) -> CorruptFile:
        return CorruptFile(f"{where}: header: {fact}; the file is damaged, fetch it again")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise corrupt("a name stands twice")
        return table

    try:
        table = json.loads(header, object_pairs_hook=unique)
    except (ValueError, RecursionError):
        if f'"{MARKER}"'.encode() in header:
            raise corrupt("it is no JSON") from None
        raise UnsupportedFile(f"{where}: not a modelcodec file (its start is no safetensors header), or damaged") from None
    if not isinstance(table, dict):
        raise UnsupportedFile(f"{where}: not a modelcodec file (its start is no safetensors header)")
    metadata = table.pop("__metadata__", {})
    marked = isinstance(metadata, dict) and MARKER in metadata
    if not marked and DIRECTORY not in table:
        raise UnsupportedFile(f"{where}: a safetensors file, but not one that modelcodec wrote")
    if not marked or DIRECTORY not in table:
        raise corrupt("a marker without directory, or a directory without marker")
    if not header.rstrip(b" ").endswith(b"}") or (8 + len(header)) % ALIGNMENT:
        raise corrupt("its padding is not spaces up to a multiple of 8")
    if not all(isinstance(v, str) for v in metadata.values()):
        raise corrupt("metadata are not strings")
    _check_version(metadata.pop(MARKER), where)
    rows, at = [], 0
    for name, row in table.items():
        start, end = _offsets(row, corrupt)
        shape, dtype = row.get("shape"), row.get("dtype")
        if start != at or end < start or len(row) != 3 or type(dtype) is not str:
            raise corrupt(f"the entry {name!r} leaves a hole, overlaps another, or is malformed")
        if type(shape) is not list or not _are_sizes(shape):
            raise corrupt(f"the shape of {name!r} is malformed")
        rows.append((name, dtype, tuple(shape), end))
        at = end
    if rows[0][:3] != (DIRECTORY, "U8", (rows[0][3],)) or (8 + len(header) + rows[0][3]) % ALIGNMENT:
        raise corrupt("the directory does not stand first, or is no U8 padded to a multiple of 8")
    return metadata, rows


def _offsets(row: Any, corrupt: Any) -> list[int]:
    offsets = row.get("data_offsets") if type(row) is dict else None
    if type(offsets) is not list or len(offsets) != 2 or not _are_sizes(offsets):
        raise corrupt("an entry is malformed")
    return offsets


def _are_sizes(numbers: list[Any]) -> bool:
    return not [number for number in numbers if type(number) is not int or not 0 <= number <= MOST_BYTES]


def _check_version(text: str, where: str) -> None:
    major, dot, minor = text.partition(".")
    numbers = [text for text in (major, minor) if text.isascii() and text.isdecimal() and len(text) <= 4 and (text == "0" or text[0] != "0")]
    if not dot or len(numbers) < 2:
        raise CorruptFile(f"{where}: the format version {text[:20]!r} is none; the file is damaged, fetch it again")
    if int(major) != VERSION[0] or int(minor) > VERSION[1]:
        raise UnsupportedFile(f"{where}: format version {text}, this modelcodec reads up to {VERSION[0]}.{VERSION[1]}; update modelcodec")


def _read_directory(directory: memoryview, buffer: memoryview, data: int, metadata: Mapping[str, str], rows: list[_Row], where: str) -> Container:
    reader = Reader(directory, f"{where}: directory")
    header_digest, own_digest = reader.uint(8), reader.uint(8)
    if frames.CHECK_DIGESTS:
        if header_digest != frames.digest_of(buffer[:data]):
            raise reader.corrupt("the header's digest does not match")
        if own_digest != frames.digest_of(directory[16:]):
            raise reader.corrupt("the directory's digest does not match")
    flags = reader.u8()
    if flags & ~(SHA256 | BASES):
        raise UnsupportedFile(f"{where}: directory flags {flags:#x} are not known; update modelcodec")
    sha256 = bytes(reader.take(32)) if flags & SHA256 else None
    identity = bytes(reader.take(16))
    source_size = reader.varint()
    format_id = reader.u8()
    names = {number: name for name, number in FORMAT_IDS.items()}
    if format_id not in names:
        raise UnsupportedFile(f"{where}: source format {format_id} is not known; update modelcodec")
    bases = _read_bases(reader) if flags & BASES else ()
    if reader.varint(LIMITS.entries) != len(rows):
        raise reader.corrupt("the directory has not as many entries as the header")
    entries: list[Entry] = []
    start = data + len(directory)
    for name, dtype, shape, end in rows:
        entry = _read_entry(reader, entries, len(bases), name, start, data + end - start)
        _match_header(entry, dtype, shape, reader)
        entries.append(entry)
        start = data + end
    tail = reader.varint()
    reader.zeros()
    _check_roles(entries, tail, source_size, reader)
    counted = b"".join(e.digest.to_bytes(8, "little") for e in entries if e.role in IDENTIFIED)
    if frames.CHECK_DIGESTS and identity != xxhash.xxh3_128_intdigest(counted).to_bytes(16, "little"):
        raise reader.corrupt("the identity does not match the tensors' digests")
    return Container(buffer, where, metadata, tuple(entries), names[format_id], source_size, sha256, tail, bases)


def _read_bases(reader: Reader) -> tuple[str, ...]:
    """Names of the files that entries are deltas to; nothing is opened by them yet."""
    n_bases = reader.varint(LIMITS.entries)
    if n_bases == 0 or n_bases > reader.remaining:
        raise reader.corrupt(f"the directory claims {n_bases} bases")
    return tuple(_text(reader) for _ in range(n_bases))


def _text(reader: Reader) -> str:
    try:
        return bytes(reader.byte_string(LIMITS.header_bytes)).decode()
    except UnicodeDecodeError:
        raise reader.corrupt("the name of a base is not UTF-8") from None


def _read_base(reader: Reader, n_bases: int) -> BaseTensor:
    file = reader.varint()
    if file >= n_bases:
        raise reader.corrupt(f"there is no base {file}")
    return BaseTensor(file, _text(reader), reader.uint(8))


def _read_entry(reader: Reader, earlier: Sequence[Entry], n_bases: int, name: str, start: int, size: int) -> Entry:
    role, kind = reader.u8(), reader.u8()
    if role > LOSSES_ROLE or kind > CODED_BASE or (kind == CODED_BASE and role != TENSOR_ROLE):
        raise reader.corrupt(f"{name!r} has role {role} and kind {kind}")
    dtype = DTYPE_BY_ID.get(reader.u8())
    if dtype is None:
        raise UnsupportedFile(f"{reader.where}: {name!r} has a dtype that this version does not know; update modelcodec")
    shape = tuple([reader.varint() for _ in range(reader.varint(LIMITS.dimensions))])
    spec = TensorSpec(name, dtype, shape)
    n_bytes = _bytes_of(spec, reader)
    gap = reader.varint() if role == TENSOR_ROLE else 0
    digest = reader.uint(8)
    if kind == ORDINARY:
        if size != n_bytes:
            raise reader.corrupt(f"{name!r} has {size} bytes, its shape asks for {n_bytes}")
        frame_words = full_frame_words(dtype)
        n_frames = -(-n_bytes // (frame_words * dtype.word))
        digests = unpack(f"<{n_frames}Q", reader.take(8 * n_frames))
        return Entry(name, role, kind, spec, gap, digest, start, size, frame_words, (), (), 0, (), digests, 0)
    if kind == SAME:
        same = reader.varint()
        if same >= len(earlier) or earlier[same].kind == SAME or earlier[same].spec.n_bytes != n_bytes or earlier[same].digest != digest or size:
            raise reader.corrupt(f"{name!r} stands for another entry that it cannot be the same as")
        return Entry(name, role, kind, spec, gap, digest, start, 0, full_frame_words(dtype), (), (), 0, (), (), same)
    if (start + size) % ALIGNMENT:
        raise reader.corrupt(f"{name!r} does not end at a multiple of {ALIGNMENT}")
    base = _read_base(reader, n_bases) if kind == CODED_BASE else None
    frame_words, group_frames, starts, ends, shared = _read_frames(reader, kind, spec, n_bytes // dtype.word, size)
    return Entry(name, role, kind, spec, gap, digest, start, size, frame_words, starts, ends, group_frames, shared, (), 0, base)


def _read_frames(
    reader: Reader, kind: int, spec: TensorSpec, n_words: int, size: int
) -> tuple[int, int, tuple[int, ...], tuple[int, ...], tuple[tuple[int, int, int], ...]]:
    """Words a frame, frames a group, where each frame starts and ends, and the shared parts, of a coded entry."""
    frame_words = reader.varint(full_frame_words(spec.dtype))
    if frame_words == 0 or frame_words % spec.dtype.block:
        raise reader.corrupt(f"{spec.name!r} has frames of {frame_words} words")
    groups = kind in (CODED_SHARED, CODED_BASE)
    group_frames = reader.varint(MOST_GROUP_FRAMES) if groups else 0
    # Untrusted: a length takes at least a byte of the directory, which is there, so the lists cannot be larger than the file.
    n_frames = -(-n_words // frame_words)
    if n_frames == 0 or n_frames > reader.remaining or (groups and group_frames == 0):
        raise reader.corrupt(f"{spec.name!r} claims {n_frames} frames")
    starts, ends, shared, at = [], [], [], 0
    for number in range(n_frames):
        if group_frames and number % group_frames == 0:
            n_shared = reader.varint(LIMITS.frame_bytes)
            n_coded = reader.varint(size) if n_shared else 0
            shared.append((at, at + n_coded, n_shared))
            at += n_coded
        starts.append(at)
        n_frame = reader.varint(size)
        if n_frame < frames.LEAST_BYTES:
            raise reader.corrupt(f"a frame of {spec.name!r} has {n_frame} bytes, less than a head")
        at += n_frame
        ends.append(at)
        if at > size:
            raise reader.corrupt(f"the frames of {spec.name!r} do not fit its {size} bytes")
    if size - at >= ALIGNMENT:
        raise reader.corrupt(f"the frames of {spec.name!r} do not fill its {size} bytes")
    return frame_words, group_frames, tuple(starts), tuple(ends), tuple(shared)


def _bytes_of(spec: TensorSpec, reader: Reader) -> int:
    n = 1
    for dimension in spec.shape:
        n *= dimension or 1
        if n > MOST_BYTES:
            raise reader.corrupt(f"the shape of {spec.name!r} overflows")
    try:
        n_bytes = spec.n_bytes
    except ValueError as error:
        raise reader.corrupt(str(error)) from None
    if n_bytes > MOST_BYTES:
        raise reader.corrupt(f"the shape of {spec.name!r} overflows")
    if n_bytes % (spec.dtype.word * (spec.dtype.block if spec.dtype.elements == 1 else 1)):
        raise reader.corrupt(f"{spec.name!r} holds no whole number of words")
    return n_bytes


def _match_header(entry: Entry, dtype: str, shape: tuple[int, ...], reader: Reader) -> None:
    """The envelope tells the same as the directory."""
    as_itself = entry.kind == ORDINARY and entry.spec.dtype.in_safetensors
    told = (entry.spec.dtype.name, entry.spec.shape) if as_itself else ("U8", (entry.size,))
    if (dtype, shape) != told:
        raise reader.corrupt(f"header and directory disagree on {entry.name!r}")


def _check_roles(entries: Sequence[Entry], tail: int, source_size: int, reader: Reader) -> None:
    """Skeleton first, then views and losses if at all, and together the source's size."""
    roles = [e.role for e in entries]
    own = [role for role in roles if role != TENSOR_ROLE]
    if own[:1] != [SKELETON_ROLE] or own != sorted(set(own)) or own != roles[: len(own)]:
        raise reader.corrupt("the entries' roles are not skeleton, views, losses, tensors")
    for entry in entries[: len(own)]:
        name = _OWN_NAMES[entry.role]
        if entry.name != name or entry.spec.dtype is not U8 or len(entry.spec.shape) != 1:
            raise reader.corrupt(f"{entry.name!r} is no {name}")
    if any(e.name.startswith(OWN_PREFIX) for e in entries if e.role == TENSOR_ROLE):
        raise reader.corrupt("a tensor has a name of the codec's own")
    literal = sum(e.gap for e in entries) + tail
    tensors = sum(e.spec.n_bytes for e in entries if e.role == TENSOR_ROLE)
    if literal != entries[0].spec.n_bytes or literal + tensors != source_size:
        raise reader.corrupt("skeleton and tensors do not make up the source's size")


def _read_views(data: bytes, entries: Sequence[Entry], stored: int, where: str) -> tuple[View, ...]:
    reader = Reader(data, f"{where}: views")
    n_views = reader.varint()
    if n_views > min(LIMITS.views, LIMITS.few_views + LIMITS.views_a_byte * stored):
        raise LimitExceeded(f"{where}: {n_views} views in {stored} bytes are more than any real file has; the file is damaged or hostile")
    views: list[View] = []
    names: set[str] = set()
    first = next((i for i, e in enumerate(entries) if e.role == TENSOR_ROLE), len(entries))
    for _ in range(n_views):
        try:
            name = bytes(reader.byte_string(LIMITS.header_bytes)).decode()
        except UnicodeDecodeError:
            raise reader.corrupt("a name is not UTF-8") from None
        if name in names:
            raise reader.corrupt(f"the view {name!r} stands twice")
        names.add(name)
        dtype = DTYPE_BY_ID.get(reader.u8())
        if dtype is None:
            raise UnsupportedFile(f"{where}: view {name!r} has a dtype that this version does not know; update modelcodec")
        n_dimensions = reader.varint(LIMITS.dimensions)
        shape = tuple([reader.varint() for _ in range(n_dimensions)])
        strides = tuple([reader.varint() for _ in range(n_dimensions)])
        extent, start = reader.varint(), reader.varint()
        if not first <= extent < len(entries) or dtype.elements > 1 or dtype.bits % 8:
            raise reader.corrupt(f"the view {name!r} lies on no tensor")
        last = start + sum([(d - 1) * s for d, s in zip(shape, strides, strict=True)])
        spec = TensorSpec(name, dtype, shape)
        _bytes_of(spec, reader)
        if 0 not in shape and (last + 1) * dtype.bits // 8 > entries[extent].spec.n_bytes:
            raise reader.corrupt(f"the view {name!r} reaches past its storage")
        views.append(View(spec, extent - first, strides, start))
    reader.end()
    if not views:
        raise reader.corrupt("there are no views")
    return tuple(views)


def _read_losses(data: bytes, entries: Sequence[Entry], where: str) -> dict[str, Loss]:
    reader = Reader(data, f"{where}: losses")
    losses: dict[str, Loss] = {}
    before = 0
    n_losses = reader.varint(len(entries))
    if n_losses == 0:
        raise reader.corrupt("there are no losses")
    for _ in range(n_losses):
        index = reader.varint()
        if not before < index < len(entries) or entries[index].role != TENSOR_ROLE:
            raise reader.corrupt("a loss is of no tensor")
        max_error, relative_mse = _LOSS.unpack(reader.take(_LOSS.size))
        if not (0 <= max_error < inf and 0 <= relative_mse < inf):
            raise reader.corrupt("a loss is no number")
        losses[entries[index].name], before = Loss(max_error, relative_mse), index
    reader.end()
    return losses
