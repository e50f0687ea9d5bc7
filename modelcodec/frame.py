"""One frame: a plan's tree carried out on an array, and back (docs/format.md, section 4).

Decoding is safe with every digest switched off: the tree is parsed inside fixed caps, each array's size is implied by headers that were checked, payload
lengths must add up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from modelcodec.arena import Buffers, of_thread
from modelcodec.errors import BadRecipe, CorruptFile, LimitExceeded, ModelCodecError
from modelcodec.kernels import whole_frame
from modelcodec.kernels.class_rans import Classes
from modelcodec.kernels.memory import address_of
from modelcodec.kernels.whole_frame import CLASS_RANS, RAW, USUAL_BYTES, coder_of
from modelcodec.limits import LIMITS
from modelcodec.stage import Encoded, FrameContext, Layout, Plan, Shared, Stage
from modelcodec.stages import fused, stage_of
from modelcodec.stages.class_rans import ScaleClasses
from modelcodec.types import Array
from modelcodec.wire import Reader, byte_string, varint

WORD: dict[int, np.dtype[Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
RAW_NODE = b"\x00\x00"
SEAL_BYTES = 4
CHECK_BYTES = 4
DIGEST_BYTES = 8
LEAST_BYTES = 1 + 2 + DIGEST_BYTES + SEAL_BYTES
"""The shortest frame: the length of its head, one node, digest and seal."""
FRAME_ARRAYS_SLACK = 64 << 10

CHECK_DIGESTS = True
"""Tests switch this off to show that the decoder does not lean on digests; nothing else may."""


class _Borrowed:
    """Memory that numpy shall see as writable although its owner is not: kernels are compiled for one kind of array only, and never write to their inputs."""

    def __init__(self, owner: Array) -> None:
        self.owner = owner
        self.__array_interface__ = {**owner.__array_interface__, "data": (owner.__array_interface__["data"][0], False)}


def as_bytes(buffer: Any) -> Array:
    """A u1 array over a buffer, not copied."""
    array = np.frombuffer(buffer, np.uint8)
    if array.flags.writeable:
        return array
    return np.asarray(_Borrowed(array)) if array.size else np.empty(0, np.uint8)


def as_words(data: Array, width: int) -> Array:
    """u1 array as words of `width` bytes; copied only where the memory is not aligned."""
    if width == 1:
        return data
    if data.size == 0:
        return np.empty(0, WORD[width])
    return data.view(WORD[width]) if data.ctypes.data % width == 0 else data.copy().view(WORD[width])


def digest_of(data: Any) -> int:
    return xxhash.xxh3_64_intdigest(data)


def seal_of(head: Any, number: int) -> int:
    return xxhash.xxh3_64_intdigest(head, seed=number) & 0xFFFFFFFF


def check_of(payload: Any) -> bytes:
    """What a frame with a loose stage ends with."""
    return (xxhash.xxh3_64_intdigest(payload) & 0xFFFFFFFF).to_bytes(CHECK_BYTES, "little")


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame's bytes, and the digest of what it decodes to. `buffer` is what the bytes lie in, where the caller lent one.

    `since`: the first format version that has all stages of the frame.
    """

    data: Any
    digest: int
    buffer: Array | None = None
    since: tuple[int, int] = (0, 1)


def _encode_node(x: Array, plan: Plan, context: FrameContext, head: list[bytes], payload: list[Any]) -> int:
    """Append the nodes and payloads of `plan` for x; a stage that does not apply becomes raw. Returns the size of what was appended."""
    first = plan.then.get(plan.stage.parts[0]) if plan.stage.parts else None
    both = fused(plan.stage.id, first.stage.id) if first else None
    pair = both.encode(x, plan, context) if both else None
    if pair and _grows(plan.stage, pair, x):
        pair = None
    encoded = pair[0] if pair else plan.stage.encode(x, context)
    if encoded is None:
        head.append(RAW_NODE)
        payload.append(x.view(np.uint8))
        return len(RAW_NODE) + x.nbytes
    names = plan.stage.part_names(len(encoded.parts) + (1 if pair else 0))
    size = _append(plan.stage, encoded, head, payload)
    if pair and first:
        size += _append(first.stage, pair[1], head, payload)
        names = names[1:]
    for name, part in zip(names, encoded.parts, strict=True):
        size += _encode_part(part, plan.then.get(name), context, head, payload)
    return size


def _grows(stage: Stage, pair: tuple[Encoded, Encoded], x: Array) -> bool:
    """Whether the first part came out larger than its words, so that the stages one by one would have kept it raw."""
    part = stage.layout(pair[0].header, x.itemsize, x.size).parts[0]
    return 1 + len(byte_string(pair[1].header)) + len(pair[1].payload) > len(RAW_NODE) + part.width * part.n


def _append(stage: Stage, encoded: Encoded, head: list[bytes], payload: list[Any]) -> int:
    node = bytes([stage.id]) + byte_string(encoded.header)
    head.append(node)
    if len(encoded.payload):
        payload.append(encoded.payload)
    return len(node) + len(encoded.payload)


def _encode_part(part: Array, plan: Plan | None, context: FrameContext, head: list[bytes], payload: list[Any]) -> int:
    """Like `_encode_node`, but never larger than raw."""
    marks = len(head), len(payload)
    if plan is not None:
        size = _encode_node(part, plan, context, head, payload)
        if size <= len(RAW_NODE) + part.nbytes:
            return size
        del head[marks[0] :], payload[marks[1] :]
    head.append(RAW_NODE)
    if part.size:
        payload.append(part.view(np.uint8))
    return len(RAW_NODE) + part.nbytes


def encode(x: Array, plan: Plan, context: FrameContext, number: int, buffers: Buffers | None = None) -> EncodedFrame:
    """Encode the words of one frame; a frame that does not shrink becomes raw.

    `number` of the frame in its tensor. The result lies in one of `buffers`, if there are any, until that is given back. Raises BadRecipe for a tree that no
    decoder would read.
    """
    digest = digest_of(x)
    of_thread.encoding.reset()
    head: list[bytes] = []
    payload: list[Any] = []
    _encode_part(x, plan, context, head, payload)
    if len(head) > LIMITS.depth:  # as few nodes as that are inside every cap
        _check_caps(b"".join(head), x)
    stages = [stage_of(node[0]) for node in head]
    since = max(stage.since for stage in stages)
    if any(stage.loose for stage in stages):
        payload.append(check_of(b"".join(memoryview(piece).cast("B") for piece in payload)))
    body = b"".join(head) + digest.to_bytes(DIGEST_BYTES, "little")
    sealed = varint(len(body) + SEAL_BYTES) + body
    sealed += seal_of(sealed, number).to_bytes(SEAL_BYTES, "little")
    if buffers is None:
        return EncodedFrame(b"".join((sealed, *payload)), digest, None, since)
    pieces = [np.frombuffer(piece, np.uint8) for piece in (sealed, *payload)]
    size = sum(piece.size for piece in pieces)
    buffer = buffers.take(size)
    np.concatenate(pieces, out=buffer[:size])
    return EncodedFrame(buffer.data[:size], digest, buffer, since)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a parsed tree: `start` is where its own payload begins, counted from the start of the frame."""

    stage: type[Stage]
    header: bytes
    width: int
    n: int
    layout: Layout
    start: int
    children: tuple[Node, ...]

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.walk()

    def __str__(self) -> str:
        named = zip(self.stage.part_names(len(self.children)), self.children, strict=True)
        inner = ", ".join(f"{name}:{child}" for name, child in named if child.stage.id)
        return f"{self.stage.name}({inner})" if inner else self.stage.name


@dataclass(frozen=True, slots=True)
class Head:
    """A frame's head, checked: the tree, the digest of the decoded bytes, where in the frame the payload begins."""

    root: Node
    digest: int
    start: int


class _TreeReader:
    """Parses the nodes of one frame inside the caps on nodes, depth and bytes of arrays."""

    def __init__(self, reader: Reader, budget: int, where: str) -> None:
        self.reader = reader
        self.budget = budget
        self.nodes = 0
        self.n_payload = 0
        self.where = where

    def node(self, width: int, n: int, depth: int) -> Node:
        self.nodes += 1
        self.budget -= width * n
        if self.nodes > LIMITS.nodes or depth > LIMITS.depth or self.budget < 0:
            raise LimitExceeded(f"{self.where}: the frame's tree asks for more nodes, depth or memory than any real frame; the file is damaged or hostile")
        stage = stage_of(self.reader.u8())
        header = bytes(self.reader.byte_string(self.reader.remaining))
        layout = stage.layout(header, width, n)
        start = self.n_payload
        self.n_payload += layout.n_payload
        children = tuple(self.node(part.width, part.n, depth + 1) for part in layout.parts)
        return Node(stage, header, width, n, layout, start, children)


def _check_caps(nodes: bytes, x: Array) -> None:
    """A plan out of a recipe may be anything; what it makes of x must be inside the format's caps."""
    try:
        _TreeReader(Reader(nodes, "plan"), LIMITS.frame_arrays * x.nbytes + FRAME_ARRAYS_SLACK, "plan").node(x.itemsize, x.size, 1)
    except LimitExceeded:
        raise BadRecipe("a plan makes a tree of more nodes, depth or memory than a frame may have; use a simpler plan") from None


def read_head(frame: memoryview, number: int, width: int, n: int, where: str) -> Head:
    """Check the seal, parse the tree, prove that the payload's lengths add up. `frame` is untrusted. Raises CorruptFile, LimitExceeded, UnsupportedFile."""
    reader = Reader(frame, where)
    n_rest = reader.varint(len(frame))
    end = reader.position + n_rest
    if n_rest < DIGEST_BYTES + SEAL_BYTES or end > len(frame):
        raise reader.corrupt("the frame's head does not fit the frame")
    seal = int.from_bytes(frame[end - SEAL_BYTES : end], "little")
    if CHECK_DIGESTS and seal != seal_of(frame[: end - SEAL_BYTES], number):
        raise reader.corrupt("the seal of the frame's head does not match")
    nodes = Reader(reader.take(n_rest - DIGEST_BYTES - SEAL_BYTES), where)
    tree = _TreeReader(nodes, LIMITS.frame_arrays * width * n + FRAME_ARRAYS_SLACK, where)
    try:
        root = tree.node(width, n, 1)
    except ModelCodecError as error:
        raise _placed(error, where) from None
    nodes.end()
    n_check = CHECK_BYTES if any(node.stage.loose for node in root.walk()) else 0
    if tree.n_payload + n_check != len(frame) - end:
        raise reader.corrupt(f"the payload has {len(frame) - end} bytes, the head implies {tree.n_payload + n_check}")
    if n_check and CHECK_DIGESTS and frame[-n_check:] != check_of(frame[end:-n_check]):
        raise reader.corrupt("the check of the frame's payload does not match")
    return Head(root, reader.uint(DIGEST_BYTES), end)


def _placed(error: ModelCodecError, where: str) -> ModelCodecError:
    """A stage's error, with the place and the remedy that a stage does not know."""
    fact = str(error)
    remedy = "" if not isinstance(error, CorruptFile) or "fetch it again" in fact else "; the file is damaged, fetch it again"
    return type(error)((fact if fact.startswith(where) else f"{where}: {fact}") + remedy)


def _decode_node(node: Node, payload: Array, out: Array, context: FrameContext | None) -> None:
    children = node.children
    both = fused(node.stage.id, children[0].stage.id) if children and out.itemsize <= 4 else None
    if both:
        parts = [_decode_part(child, payload, context) for child in children[1:]]
        both.decode(node.header, children[0].header, _own(children[0], payload), parts, out, context)
        return
    parts = [_decode_part(child, payload, context) for child in children]
    node.stage.decode(node.header, _own(node, payload), parts, out, context)


def _own(node: Node, payload: Array) -> Array:
    return payload[node.start : node.start + node.layout.n_payload]


def _decode_part(node: Node, payload: Array, context: FrameContext | None) -> Array:
    there = node.stage.bytes_of(node.header, _own(node, payload), node.n * node.width)
    if there is not None:
        return as_words(as_bytes(there), node.width)
    part = of_thread.decoding.words(node.n, node.width)
    _decode_node(node, payload, part, context)
    return part


def is_usual(frame: memoryview, width: int) -> bool:
    """Whether an untrusted frame of words of so many bytes is worth a row of `decode_run`."""
    return len(frame) >= USUAL_BYTES and width in (2, 4) and coder_of(frame) != RAW


def classes_of(frame: memoryview, shared: Shared | None) -> Classes | None:
    """What a frame of `decode_run` has its classes from. None where it has none or damaged ones, which `decode` then tells; `frame` is untrusted."""
    if shared is None or coder_of(frame) != CLASS_RANS:
        return None
    try:
        return ScaleClasses.of(shared).coder
    except CorruptFile:
        return None


def run_row(data: int, n_bytes: int, number: int, out: int, n: int, classes: Classes | None, first: int) -> tuple[int, ...]:
    """A row of `decode_run`, of the addresses of a frame and of the place of its n words. The caller keeps the classes; `first` as in a context."""
    return data, n_bytes, number, out, n, address_of(classes.place) if classes else 0, first


def decode_run(rows: Array, width: int) -> tuple[Array, Array]:
    """Decode frames of the most common kinds in a few kernel calls: their digests (u8), and which were decoded (bool).

    rows: i8[:, 7], see `whole_frame.decode`. False for any other frame and for any damage, which `decode` then names; its words are garbage.
    """
    return whole_frame.decode(rows, width, CHECK_DIGESTS)


def decode(frame: memoryview, number: int, out: Array, where: str, context: FrameContext | None = None) -> int:
    """Decode one frame into `out`, whose size and width say what is expected; returns its digest.

    `frame` is untrusted; `number` of the frame in its tensor; `where` for messages; `context` for frames of a tensor. Raises CorruptFile,
    LimitExceeded, UnsupportedFile; `out` is then garbage.
    """
    if is_usual(frame, out.itemsize):
        held = np.frombuffer(frame, np.uint8)  # until the kernel is done, which has but its address
        classes = classes_of(frame, context.shared) if context and context.n == out.size else None
        row = np.array([run_row(address_of(held), held.size, number, address_of(out), out.size, classes, context.first if context else 0)])
        (digest,), (decoded,) = decode_run(row, out.itemsize)
        del held
        if decoded:
            return int(digest)
    head = read_head(frame, number, out.itemsize, out.size, where)
    of_thread.decoding.reset()
    try:
        _decode_node(head.root, as_bytes(frame)[head.start :], out, context)
    except CorruptFile as error:
        raise _placed(error, where) from None
    if CHECK_DIGESTS and digest_of(out) != head.digest:
        raise CorruptFile(f"{where}: the digest of the decoded bytes does not match; the file is damaged, fetch it again")
    return head.digest
