"""From the untrusted header, directory, views and losses of a container to its entries, all of it checked (docs/format.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf
from struct import unpack
from typing import Any, NamedTuple

from modelcodec import frame as frames
from modelcodec.errors import CorruptFile, LimitExceeded, UnsupportedFile
from modelcodec.formats import FORMAT_IDS, MARKER, OWN_PREFIX
from modelcodec.formats.container_layout import (
    ALIGNMENT,
    BASES,
    CODED_BASE,
    CODED_SHARED,
    DIRECTORY,
    IDENTIFIED,
    LOSS,
    LOSSES,
    LOSSES_ROLE,
    MOST_BYTES,
    MOST_GROUP_FRAMES,
    ORDINARY,
    SAME,
    SHA256,
    SKELETON,
    SKELETON_ROLE,
    TENSOR_ROLE,
    VERSION,
    VIEWS,
    VIEWS_ROLE,
    BaseTensor,
    Entry,
    full_frame_words,
    identity_of,
)
from modelcodec.limits import LIMITS
from modelcodec.types import DTYPE_BY_ID, U8, Loss, TensorSpec, View
from modelcodec.wire import Reader

_OWN_NAMES = {SKELETON_ROLE: SKELETON, VIEWS_ROLE: VIEWS, LOSSES_ROLE: LOSSES}
_Row = tuple[str, str, tuple[int, ...], int]


class Directory(NamedTuple):
    """What a directory tells; `base_names` are files that entries are deltas to."""

    entries: tuple[Entry, ...]
    source_format: str
    source_size: int
    sha256: bytes | None
    tail: int
    base_names: tuple[str, ...]


def read_header(header: bytes, where: str) -> tuple[dict[str, str], list[_Row]]:
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


def read_directory(directory: memoryview, buffer: memoryview, data: int, rows: list[_Row], where: str) -> Directory:
    """The directory, which stands at `data` in the buffer, behind the header that has these rows after its own."""
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
    if frames.CHECK_DIGESTS and identity != identity_of(entry.digest for entry in entries if entry.role in IDENTIFIED):
        raise reader.corrupt("the identity does not match the tensors' digests")
    return Directory(tuple(entries), names[format_id], source_size, sha256, tail, bases)


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


def read_views(data: bytes, entries: Sequence[Entry], stored: int, where: str) -> tuple[View, ...]:
    """From the decoded views entry, which has `stored` bytes in the file."""
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


def read_losses(data: bytes, entries: Sequence[Entry], where: str) -> dict[str, Loss]:
    """From the decoded losses entry, by the name of the tensor's entry."""
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
        max_error, relative_mse = LOSS.unpack(reader.take(LOSS.size))
        if not (0 <= max_error < inf and 0 <= relative_mse < inf):
            raise reader.corrupt("a loss is no number")
        losses[entries[index].name], before = Loss(max_error, relative_mse), index
    reader.end()
    return losses
