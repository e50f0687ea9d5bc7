"""Writing the container: the entries' bytes front to back, then header and directory into the place before them (docs/format.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from typing import Any, BinaryIO

from modelcodec import frame as frames
from modelcodec.formats import FORMAT_IDS, MARKER
from modelcodec.formats.container_layout import (
    ALIGNMENT,
    BASES,
    CODED,
    CODED_BASE,
    CODED_SHARED,
    DIRECTORY,
    IDENTIFIED,
    LOSS,
    ORDINARY,
    ROLE_SINCE,
    SAME,
    SHA256,
    SINCE,
    TENSOR_ROLE,
    VERSION,
    BaseTensor,
    digests_bytes,
    identity_of,
    tensor_digest,
)
from modelcodec.frame import EncodedFrame
from modelcodec.limits import LIMITS
from modelcodec.types import Checkpoint, Loss, TensorSpec
from modelcodec.wire import byte_string, varint


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
        self._finish(ORDINARY, start, digests_bytes(digests), digests)

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
        return identity_of(digest for digest, item in zip(self.digests, self.items, strict=True) if item.role in IDENTIFIED)

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
            digest = tensor_digest(digests)
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
    return varint(len(losses)) + b"".join(varint(index) + LOSS.pack(loss.max_error, loss.relative_mse) for index, loss in sorted(losses.items()))


def views_bytes(checkpoint: Checkpoint, first_entry: int) -> bytes:
    """The decoded views entry; `first_entry` is the directory index of extent 0."""
    out = [varint(len(checkpoint.views))]
    for view in checkpoint.views:
        spec = view.spec
        out += [byte_string(spec.name.encode()), bytes([spec.dtype.id]), varint(len(spec.shape)), *map(varint, spec.shape), *map(varint, view.strides)]
        out += [varint(view.extent + first_entry), varint(view.first)]
    return b"".join(out)
