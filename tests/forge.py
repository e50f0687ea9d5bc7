"""Containers made by hand, with the digests and seals of a real one: for tests of what the decoder does when every digest is right and the rest is not.

Nothing here is checked, on purpose. The layout is that of docs/format.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from xxhash import xxh3_64_intdigest, xxh3_128_intdigest

from modelcodec.wire import byte_string, varint

ORDINARY, CODED, SAME, CODED_SHARED = 0, 1, 2, 3
TENSOR, SKELETON, VIEWS = 0, 1, 2
OWN = "__modelcodec__."


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def node(stage: int, header: bytes = b"", *parts: bytes) -> bytes:
    return bytes([stage]) + byte_string(header) + b"".join(parts)


def check_of(payload: bytes) -> bytes:
    """What a zstd node's header says of its payload."""
    return (xxh3_64_intdigest(payload) & 0xFFFFFFFF).to_bytes(4, "little")


LOOSE = (11, 13, 14, 15)
"""Stages with which a frame ends with a check of its payload."""


def frame(tree: bytes, payload: bytes = b"", *, decoded: bytes = b"", digest: int | None = None, number: int = 0, checked: bool | None = None) -> bytes:
    """A sealed frame. `decoded` is what it stands for, for its digest; `checked`: whether its payload has a check, which else its root tells."""
    if checked or (checked is None and tree and tree[0] in LOOSE):
        payload += check_of(payload)
    body = tree + u64(xxh3_64_intdigest(decoded) if digest is None else digest)
    head = varint(len(body) + 4) + body
    return head + (xxh3_64_intdigest(head, seed=number) & 0xFFFFFFFF).to_bytes(4, "little") + payload


@dataclass(frozen=True)
class Entry:
    """One entry: `row` overrides what stands in the directory after the digest, `told` the dtype and shape in the JSON header, `digest` that of the tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: int = 1
    kind: int = ORDINARY
    role: int = TENSOR
    gap: int = 0
    data: bytes = b""
    frames: Sequence[bytes] = ()
    frame_words: int = 1 << 20
    same: int = 0
    row: bytes | None = None
    told: tuple[str, list[int]] | None = None
    digest: int | None = None
    digests: Sequence[int] = field(default=())

    @property
    def stored(self) -> bytes:
        if self.kind not in (CODED, CODED_SHARED):
            return self.data
        data = b"".join(self.frames)
        return data + bytes(-len(data) % 8)

    def directory_row(self) -> bytes:
        head = bytes([self.role, self.kind, self.dtype]) + varint(len(self.shape)) + b"".join(map(varint, self.shape))
        if self.role == TENSOR:
            head += varint(self.gap)
        return head + u64(self.tensor_digest()) + (self.row if self.row is not None else self._row())

    def frame_digests(self) -> Sequence[int]:
        if self.digests or self.kind != ORDINARY:
            return self.digests
        return [xxh3_64_intdigest(self.data[at : at + (1 << 20)]) for at in range(0, len(self.data), 1 << 20)]

    def tensor_digest(self) -> int:
        return xxh3_64_intdigest(b"".join(map(u64, self.frame_digests()))) if self.digest is None else self.digest

    def _row(self) -> bytes:
        if self.kind == ORDINARY:
            return b"".join(map(u64, self.frame_digests()))
        if self.kind == CODED:
            return varint(self.frame_words) + b"".join(varint(len(f)) for f in self.frames)
        return varint(self.same)


def skeleton(data: bytes) -> Entry:
    return Entry(OWN + "skeleton", (len(data),), role=SKELETON, data=data)


def coded(name: str, shape: tuple[int, ...], dtype: int, trees: Sequence[tuple[bytes, bytes, bytes]], frame_words: int, gap: int = 0) -> Entry:
    """A coded entry from (tree, payload, decoded bytes) of each frame."""
    frames = [frame(tree, payload, decoded=decoded, number=number) for number, (tree, payload, decoded) in enumerate(trees)]
    digests = [xxh3_64_intdigest(decoded) for _, _, decoded in trees]
    return Entry(name, shape, dtype, CODED, gap=gap, frames=frames, frame_words=frame_words, digests=digests)


NAMES = {1: "U8", 19: "BF16", 34: "F32", 50: "F64"}


def container(
    entries: Sequence[Entry],
    *,
    source_size: int | None = None,
    tail: int | None = None,
    flags: int = 0,
    n_entries: int | None = None,
    format_id: int = 0,
    version: str | None = "0.1",
    header: bytes | None = None,
    metadata: dict[str, Any] | None = None,
    directory: bytes | None = None,
) -> bytes:
    """A container of the entries (the skeleton first). What is not given is what a writer would write; `header` and `directory` replace those two whole."""
    n_skeleton = sum(e.shape[0] for e in entries if e.role == SKELETON)
    identity = xxh3_128_intdigest(b"".join(u64(e.tensor_digest()) for e in entries if e.role != VIEWS)).to_bytes(16, "little")
    size = len(b"".join(e.stored for e in entries if e.role != VIEWS)) if source_size is None else source_size
    body = bytes([flags]) + identity + varint(size) + bytes([format_id]) + varint(len(entries) if n_entries is None else n_entries)
    body += b"".join(e.directory_row() for e in entries) + varint(n_skeleton - sum(e.gap for e in entries) if tail is None else tail)
    if directory is not None:
        body = directory
    body += bytes(-len(body) % 8)
    at = 16 + len(body)
    marker = {} if version is None else {"modelcodec": version}
    rows: dict[str, Any] = {"__metadata__": {**(metadata or {}), **marker}, OWN + "directory": _row("U8", [at], 0, at)}
    for e in entries:
        n = len(e.stored)
        dtype, shape = e.told or ((NAMES[e.dtype], list(e.shape)) if e.kind == ORDINARY else ("U8", [n]))
        rows[e.name] = _row(dtype, shape, at, at + n)
        at += n
    text = json.dumps(rows, separators=(",", ":")).encode() if header is None else header
    text += b" " * (-len(text) % 8)
    opening = u64(len(text)) + text
    return opening + u64(xxh3_64_intdigest(opening)) + u64(xxh3_64_intdigest(body)) + body + b"".join(e.stored for e in entries)


def _row(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
