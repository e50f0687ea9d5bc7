"""From a source file to a container: layout, frames, read-back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape
from itertools import islice
from typing import Any, BinaryIO, cast

import numpy as np

from modelcodec import frame as frames
from modelcodec import usual_frames
from modelcodec.arena import Buffers, of_thread
from modelcodec.base import NO_BASE, Base, Chosen, OpenTensor
from modelcodec.changes import plan_changes
from modelcodec.errors import ModelCodecError
from modelcodec.fitted import NOTHING_FITTED, Fitted
from modelcodec.formats.container_layout import (
    LOSSES,
    LOSSES_ROLE,
    MOST_GROUP_FRAMES,
    SHARED_NUMBER,
    SKELETON,
    SKELETON_ROLE,
    TENSOR_ROLE,
    VIEWS,
    VIEWS_ROLE,
    full_frame_words,
)
from modelcodec.formats.container_writer import EncodedGroup, Item, Writer, losses_bytes, views_bytes
from modelcodec.limits import LIMITS
from modelcodec.planner import RAW, SMALL, PlannedGroup, byte_plan
from modelcodec.pool import ordered
from modelcodec.recipe import Recipe, Rule
from modelcodec.stage import FrameContext, Plan, Shared
from modelcodec.stages.delta import Delta
from modelcodec.types import U8, Array, Checkpoint, TensorSpec
from modelcodec.usual_frames import Unplanned

Progress = Callable[[int, int], None]

IN_MEMORY_BYTES = 64 << 20
"""Sources up to this size are coded in memory, so that header and directory take exactly the place they need; larger ones go straight to the file."""

SAMPLE_BYTES = 1024
_BUFFER_BYTES = 2 * LIMITS.frame_bytes, 4 * LIMITS.frame_bytes
"""Room for an encoded frame, and for a batch of them while it is encoded; one size for both would cost memory, which comes in large pages."""
_BATCH_BYTES = {
    (False, False): 4 * LIMITS.frame_bytes,
    (False, True): 2 * LIMITS.frame_bytes,
    (True, False): LIMITS.frame_bytes,
    (True, True): 2 * LIMITS.frame_bytes,
}
"""(straight to the file, several threads) -> frames that are encoded in one call, together; large ones come alone where there is no room for two."""
_BATCH_JOBS = 1024
"""So many of them at most: each has some KiB of head and table, however short it is."""
_SHORT_WRITE = 1 << 16
"""Shorter pieces are written together."""


@dataclass(frozen=True, slots=True)
class Settings:
    recipe: Recipe
    level: int
    threads: int
    verify: bool
    sha256: bool

    @property
    def group_frames(self) -> int:
        """Frames that are planned together: several only where they may share something."""
        levels = {self.level, *(rule.level for rule in self.recipe.rules)}
        shared = SMALL in levels or any(rule.plan is not None and rule.plan.stage.shares for rule in self.recipe.rules)
        return MOST_GROUP_FRAMES if shared else 1


@dataclass(frozen=True, slots=True)
class _Job:
    """A group of frames: the tensor's bytes from frame `number` on, `words` a frame; the base's tensor, if it has one."""

    spec: TensorSpec
    data: memoryview
    words: int
    number: int
    base: OpenTensor | None


@dataclass(frozen=True, slots=True)
class _CodedBatch:
    """The groups of a batch of jobs, in their order, and the buffers in which several of them lie."""

    groups: tuple[EncodedGroup, ...]
    buffers: Sequence[Array]


@dataclass(frozen=True, slots=True)
class _Piece:
    """An entry to be written, where its bytes are, and the base's tensor that it is compared with."""

    item: Item
    data: memoryview
    same: int | None
    base: OpenTensor | None = None
    stays: bool = False
    """Kept as an ordinary entry, without a try at coding it."""


def compress_view(
    source: memoryview,
    checkpoint: Checkpoint,
    file: BinaryIO,
    settings: Settings,
    progress: Progress | None,
    fitted: Fitted = NOTHING_FITTED,
    base: Base = NO_BASE,
) -> None:
    """Write the container of `source`, laid out as `checkpoint` says, to the empty seekable `file`; tensors of `fitted` as it has them; others as what they
    changed in `base` where that is smaller.

    memory: eight frames a thread, twenty where nothing shrinks, the skeleton, and up to 64 MiB for sources up to that size.
    Raises OSError; ModelCodecError where the read-back differs.
    """
    chosen = base.chosen(source, checkpoint.extents)
    settings = replace(settings, recipe=Recipe((*(Rule(escape(name), plan=tensor.plan) for name, tensor in fitted.tensors.items()), *settings.recipe.rules)))
    pieces, tail = _pieces(source, checkpoint, fitted, chosen, settings)
    digest = hashlib.sha256(source).digest() if settings.sha256 else None
    reserve = len(source) > IN_MEMORY_BYTES
    body = file if reserve else _Kept()
    writer = Writer(cast(BinaryIO, body), [p.item for p in pieces], checkpoint.metadata, reserve=reserve, bases=chosen.names)
    ticks = _Ticks(progress, len(source))
    buffers = Buffers(*_BUFFER_BYTES) if reserve else None
    group_frames = settings.group_frames
    # Groups of several frames wait in smaller numbers: they are larger.
    ahead = 2 * settings.threads if group_frames == 1 else settings.threads + 1
    batches = _batches(_jobs(pieces, group_frames), _BATCH_BYTES[reserve, settings.threads > 1])
    encoded = ordered(lambda batch: _encode_batch(batch, settings, buffers), batches, settings.threads, ahead)
    coded = map(ticks.group, _given_back(encoded, buffers))
    for piece in pieces:
        ticks.begin(len(piece.data))
        _write(writer, piece, coded, group_frames)
        ticks.end()
    prefix = writer.prefix(len(source), checkpoint.format, tail, digest)
    file.seek(0)
    file.write(prefix)
    if isinstance(body, _Kept):
        body.write_to(file)


def _given_back(batches: Iterable[_CodedBatch], buffers: Buffers | None) -> Iterator[EncodedGroup]:
    """The groups, whose buffers are free once the next batch is asked for."""
    for batch in batches:
        yield from batch.groups
        if buffers is not None:
            for group in batch.groups:
                _give_back(group, buffers)
            for buffer in batch.buffers:
                buffers.give(buffer)


def _give_back(group: EncodedGroup, buffers: Buffers) -> None:
    for frame in group.frames:
        if frame.buffer is not None:
            buffers.give(frame.buffer)


class _Kept:
    """A file of what is written, not copied, until it is written to another one: nothing that is written may change until then."""

    def __init__(self) -> None:
        self._pieces: list[Any] = []
        self._position = 0

    def write(self, piece: Any) -> int:
        self._pieces.append(piece)
        self._position += len(piece)
        return len(piece)

    def seek(self, position: int) -> None:
        """Forget what was written from there on; it begins with a piece."""
        while self._position > position:
            self._position -= len(self._pieces.pop())

    def truncate(self) -> None:
        """Nothing is kept past the position."""

    def write_to(self, file: BinaryIO) -> None:
        """Short pieces together, long ones as they are."""
        short: list[Any] = []
        for piece in self._pieces:
            if len(piece) < _SHORT_WRITE:
                short.append(piece)
                continue
            if short:
                file.write(b"".join(short))
                short.clear()
            file.write(piece)
        file.write(b"".join(short))


class _Ticks:
    """Tells the caller how far it is: by groups of frames inside a tensor, exactly after each tensor."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done, self.inside, self.n_bytes = progress, total, 0, 0, 0

    def begin(self, n_bytes: int) -> None:
        """The next tensor has so many bytes."""
        self.inside, self.n_bytes = 0, n_bytes

    def group(self, group: EncodedGroup) -> EncodedGroup:
        self.inside = min(self.inside + len(group.frames) * LIMITS.frame_bytes, self.n_bytes)
        self._tell(self.done + self.inside)
        return group

    def end(self) -> None:
        self.done += self.n_bytes
        self._tell(self.done)

    def _tell(self, done: int) -> None:
        if self.progress:
            self.progress(min(done, self.total), self.total)


def _write(writer: Writer, piece: _Piece, coded: Iterator[EncodedGroup], group_frames: int) -> None:
    if piece.same is not None:
        writer.same(piece.same)
        return
    spec = piece.item.spec
    if not piece.stays:
        words = _frame_words(spec)
        writer.coded(words, group_frames, islice(coded, -(-spec.n_words // (words * group_frames))))
        if writer.last_size() < len(piece.data):
            return
        writer.take_back()
    parts = [piece.data[at : at + n] for at, n in _ordinary_frames(spec)]
    writer.ordinary(parts, [frames.digest_of(part) for part in parts])


def _frame_words(spec: TensorSpec) -> int:
    return full_frame_words(spec.dtype, spec.row_words)


def _ordinary_frames(spec: TensorSpec) -> list[tuple[int, int]]:
    step = full_frame_words(spec.dtype) * spec.dtype.word
    return [(at, min(step, spec.n_bytes - at)) for at in range(0, spec.n_bytes, step)]


def _jobs(pieces: Sequence[_Piece], group_frames: int) -> Iterator[_Job]:
    for piece in pieces:
        if piece.stays or piece.same is not None:
            continue
        spec = piece.item.spec
        words = _frame_words(spec)
        step = words * spec.dtype.word * group_frames
        for group, at in enumerate(range(0, len(piece.data), step)):
            yield _Job(spec, piece.data[at : at + step], words, group * group_frames, piece.base)


def _batches(jobs: Iterable[_Job], n_bytes: int) -> Iterator[list[_Job]]:
    """Jobs that are done together, up to so many bytes unless it is one alone, and never too many."""
    batch: list[_Job] = []
    size = 0
    for job in jobs:
        if batch and (size + len(job.data) > n_bytes or len(batch) == _BATCH_JOBS):
            yield batch
            batch, size = [], 0
        batch.append(job)
        size += len(job.data)
    if batch:
        yield batch


def _encode_batch(batch: Sequence[_Job], settings: Settings, buffers: Buffers | None) -> _CodedBatch:
    """The groups of a batch: frames of the usual kind in one call, all others one by one."""
    unplanned: dict[int, dict[int, Unplanned]] = {2: {}, 4: {}}
    for k, job in enumerate(batch):
        width, n = job.spec.dtype.word, len(job.data) // job.spec.dtype.word
        if width in unplanned and job.base is None and n <= job.words:
            choices = settings.recipe.choices(job.spec, n, settings.level)
            if choices is not None:
                unplanned[width][k] = Unplanned(frames.as_bytes(job.data), job.number, job.spec.row_words, choices)
    groups: dict[int, EncodedGroup] = {}
    used = []
    for width, of_width in unplanned.items():
        if of_width:
            run = usual_frames.encode(list(of_width.values()), width, buffers)
            coded = {k: frame for k, frame in zip(of_width, run.frames, strict=True) if isinstance(frame, frames.EncodedFrame)}
            if settings.verify and coded:
                _read_back_run(batch, {k: of_width[k] for k in coded}, coded, width)
            if coded:
                used.append(run.buffer)
            elif buffers is not None:  # nothing lies in it: others need not take another one
                buffers.give(run.buffer)
            groups |= {k: EncodedGroup((frame,)) for k, frame in coded.items()}
            raw = [k for k, frame in zip(of_width, run.frames, strict=True) if frame is False]
            groups |= {k: _coded(batch[k], _words_of(batch[k]), PlannedGroup((RAW,), None), settings, buffers) for k in raw}
    return _CodedBatch(tuple(groups[k] if k in groups else _encode(job, settings, buffers) for k, job in enumerate(batch)), used)


def _words_of(job: _Job) -> Array:
    return frames.as_words(frames.as_bytes(job.data), job.spec.dtype.word)


def _encode(job: _Job, settings: Settings, buffers: Buffers | None) -> EncodedGroup:
    """The group of frames by its own plans, or, where it has a base and that takes less, as deltas to it."""
    width, x = job.spec.dtype.word, _words_of(job)
    at = job.number * job.words
    covered = min(job.base.spec.n_bytes // width - at, x.size) if job.base else 0
    base = job.base.words(width, at, x.size) if job.base and covered > 0 else None
    if base is not None and np.array_equal(x, base):
        return _coded(job, x, PlannedGroup((Plan(Delta()),) * -(-x.size // job.words), None), settings, buffers, base)
    planned = settings.recipe.plan_group(job.spec, x, job.words, settings.level, at)
    own = _coded(job, x, planned, settings, buffers)
    if base is None:
        return own
    changes = plan_changes(job.spec, x, base, job.words, covered, planned.plans)
    if changes is None:
        return own
    delta = _coded(job, x, changes, settings, buffers, base)
    kept, other = (delta, own) if delta.n_bytes < own.n_bytes else (own, delta)
    if buffers is not None:
        _give_back(other, buffers)
    return kept


def _coded(job: _Job, x: Array, planned: PlannedGroup, settings: Settings, buffers: Buffers | None, base: Array | None = None) -> EncodedGroup:
    """The words x of a group of frames, by these plans; the base's words are for those that are deltas."""
    at = job.number * job.words
    shared, as_read = _shared_frame(planned.shared, job, settings) if planned.shared else (None, None)
    encoded = []
    for number, plan in enumerate(planned.plans):
        part = slice(number * job.words, (number + 1) * job.words)
        piece, of_base = x[part], None if base is None else base[part]
        context = FrameContext(job.spec, number * job.words, piece.size, planned.shared, at + number * job.words, of_base)
        frame = frames.encode(piece, plan, context, job.number + number, buffers)
        if settings.verify:
            _read_back(frame, piece, job, number, replace(context, shared=as_read))
        encoded.append(frame)
    return EncodedGroup(tuple(encoded), shared, len(planned.shared.data) if planned.shared else 0, base is not None)


def _shared_frame(shared: Shared, job: _Job, settings: Settings) -> tuple[frames.EncodedFrame, Shared]:
    """A group's shared part as a frame, and as a decoder gets it: read back, and not yet parsed."""
    data = frames.as_bytes(shared.data)
    spec = TensorSpec(job.spec.name, U8, (data.size,))
    number = SHARED_NUMBER + job.number // settings.group_frames
    frame = frames.encode(data, byte_plan(data, SMALL), FrameContext(spec, 0, data.size), number)
    if not settings.verify:
        return frame, shared
    out = np.empty_like(data)
    frames.decode(memoryview(frame.data), number, out, job.spec.name)
    return frame, Shared(out.tobytes())


def _read_back(encoded: frames.EncodedFrame, x: Array, job: _Job, number: int, context: FrameContext) -> None:
    of_thread.reading_back.reset()
    out = of_thread.reading_back.words(x.size, x.itemsize)
    frames.decode(memoryview(encoded.data), job.number + number, out, job.spec.name, context)
    if not _same(out.view(np.uint8), x.view(np.uint8)):
        raise _wrongly_encoded(job, number)


def _read_back_run(batch: Sequence[_Job], unplanned: Mapping[int, Unplanned], encoded: Mapping[int, frames.EncodedFrame], width: int) -> None:
    outs = usual_frames.decode(list(unplanned.values()), list(encoded.values()), width)
    for (k, frame), out in zip(unplanned.items(), outs, strict=True):
        if out is None or not _same(out, frame.data):
            raise _wrongly_encoded(batch[k], 0)


def _wrongly_encoded(job: _Job, number: int) -> ModelCodecError:
    where = f"{job.spec.name}, frame {job.number + number}"
    return ModelCodecError(f"{where}: decoding what was just encoded gives other bytes; nothing was kept; report this, and check the memory")


def _same(a: Array, b: Array) -> bool:
    """Whether two arrays of bytes (u1, equally long) are equal; a MiB at a time, which bounds memory, and eight bytes at once."""
    n = a.size & ~7
    x, y, step = a[:n].view("<u8"), b[:n].view("<u8"), LIMITS.frame_bytes // 8
    return all(bool((x[at : at + step] == y[at : at + step]).all()) for at in range(0, x.size, step)) and bool((a[n:] == b[n:]).all())


def _pieces(source: memoryview, checkpoint: Checkpoint, fitted: Fitted, chosen: Chosen, settings: Settings) -> tuple[list[_Piece], int]:
    """The entries in the order of the container, and the skeleton's bytes after the last tensor."""
    n_own = 1 + bool(checkpoint.views) + bool(fitted.tensors)
    gaps, at = [], 0
    for extent in checkpoint.extents:
        gaps.append(extent.offset - at)
        at = extent.end
    literals = [source[e.offset - gap : e.offset] for e, gap in zip(checkpoint.extents, gaps, strict=True)]
    skeleton = b"".join((*literals, source[at:]))
    pieces = [_own_piece(SKELETON, SKELETON_ROLE, skeleton)]
    if checkpoint.views:
        pieces.append(_own_piece(VIEWS, VIEWS_ROLE, views_bytes(checkpoint, n_own)))
    if fitted.tensors:
        losses = {n_own + k: fitted.tensors[e.spec.name].loss for k, e in enumerate(checkpoint.extents) if e.spec.name in fitted.tensors}
        pieces.append(_own_piece(LOSSES, LOSSES_ROLE, losses_bytes(losses)))
    finder = _SameFinder()
    for extent, gap, against in zip(checkpoint.extents, gaps, chosen.tensors, strict=True):
        found = fitted.tensors.get(extent.spec.name)
        data = source[extent.offset : extent.end] if found is None else found.words.view(np.uint8).data
        same = finder.find(data, len(pieces)) if extent.spec.shape and len(data) else None
        reference, base = against if against and found is None else (None, None)
        stays = not extent.spec.shape or not len(data) or (base is None and settings.recipe.leaves(extent.spec, len(data), settings.level))
        pieces.append(_Piece(Item(extent.spec.name, TENSOR_ROLE, extent.spec, gap, reference), data, same, base, stays))
    return pieces, len(source) - at


def _own_piece(name: str, role: int, data: bytes) -> _Piece:
    return _Piece(Item(name, role, TensorSpec(name, U8, (len(data),)), 0), memoryview(data), None)


class _SameFinder:
    """Finds tensors with the same bytes as an earlier one: candidates by size and a digest of samples, then compared whole."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], list[tuple[int, memoryview]]] = {}

    def find(self, data: memoryview, index: int) -> int | None:
        middle = len(data) // 2
        parts = (data[:SAMPLE_BYTES], data[middle : middle + SAMPLE_BYTES], data[-SAMPLE_BYTES:])
        sample = b"".join(parts) if len(data) > 3 * SAMPLE_BYTES else data
        candidates = self._seen.setdefault((len(data), frames.digest_of(sample)), [])
        for earlier, other in candidates:
            if _same(frames.as_bytes(data), frames.as_bytes(other)):
                return earlier
        candidates.append((index, data))
        return None
