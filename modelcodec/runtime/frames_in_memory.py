"""A tensor as frames in memory: what a container holds of it, without the file."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe
from modelcodec.formats.container_layout import MOST_GROUP_FRAMES, SHARED_NUMBER, full_frame_words
from modelcodec.formats.container_writer import EncodedGroup
from modelcodec.frame import EncodedFrame
from modelcodec.kernels.memory import address_of
from modelcodec.planner import FAST, LEVELS, SMALL, PlannedGroup, byte_plan
from modelcodec.recipe import Recipe
from modelcodec.runtime.rounding import check_mantissa_bits, round_mantissa, rounded_plan, rounds
from modelcodec.stage import FrameContext, Shared
from modelcodec.types import DTYPE_BY_NAME, U8, Array, TensorSpec

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")

_RECIPE = Recipe()
_RUN_FRAMES = 4
"""Frames decoded in one kernel call: enough to be worth handing to a thread, few enough that threads end together."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How words become frames: the level, and how many mantissa bits are kept (None: all). `fixed_length`: matrices of bf16 take that form instead."""

    level: int = FAST
    mantissa_bits: int | None = None
    fixed_length: bool = False

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise BadRecipe(f"level {self.level} does not exist; the levels are {', '.join(map(str, LEVELS))}")
        if self.mantissa_bits is not None:
            check_mantissa_bits(self.mantissa_bits)

    def plan(self, spec: TensorSpec, x: Array, frame_words: int, at: int) -> tuple[Array, PlannedGroup]:
        """The words x of a group of frames as they shall be kept, and the group's plans."""
        dtype = spec.dtype.name
        if self.mantissa_bits is None or not rounds(dtype, self.mantissa_bits):
            return x, _RECIPE.plan_group(spec, x, frame_words, self.level, at)
        x = self.rounded(x, dtype)
        pieces = (x[first : first + frame_words] for first in range(0, x.size, frame_words))
        return x, PlannedGroup(tuple(rounded_plan(piece, dtype, self.mantissa_bits) for piece in pieces), None)

    def rounded(self, x: Array, dtype: str) -> Array:
        """Words of a dtype as they shall be kept."""
        return x if self.mantissa_bits is None or not rounds(dtype, self.mantissa_bits) else round_mantissa(x, dtype, self.mantissa_bits)


@dataclass(frozen=True, slots=True)
class WordsInMemory(ABC):
    """A tensor's words, in pieces of `frame_words` that are decoded each by itself; never changed."""

    spec: TensorSpec
    frame_words: int

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Bytes that they take."""

    @abstractmethod
    def decode(self, numbers: Sequence[int], out: Array, threads: int = 1) -> None:
        """Decode the frames with these ascending numbers, one after the other, into `out`.

        raises: CorruptFile where the memory was damaged.
        """

    @property
    def n_frames(self) -> int:
        return -(-self.spec.n_words // self.frame_words)

    def words_of(self, number: int) -> int:
        return min(self.frame_words, self.spec.n_words - number * self.frame_words)

    def covering(self, first: int, end: int) -> range:
        """Numbers of the frames in which the words first .. end - 1 lie."""
        return range(first // self.frame_words, -(-end // self.frame_words))

    def words(self, threads: int = 1) -> Array:
        """All of them, decoded."""
        out = empty_words(self.spec.n_bytes).view(frames.WORD[self.spec.dtype.word])
        self.decode(range(self.n_frames), out, threads)
        return out


@dataclass(frozen=True, slots=True)
class FramesInMemory(WordsInMemory):
    """A tensor's frames, numbered and aligned as in a container; `shared` has the shared part of each group of `group_frames`, if it has one."""

    group_frames: int
    frames: tuple[EncodedFrame, ...]
    shared: tuple[Shared | None, ...]

    @classmethod
    def encode(cls, spec: TensorSpec, x: Array, coding: Coding, threads: int = 1) -> FramesInMemory:
        """Encode the words x of a tensor that is not empty.

        memory: the frames, and one group's words a thread where they are rounded.
        """
        frame_words = full_frame_words(spec.dtype, spec.row_words)
        group_frames = MOST_GROUP_FRAMES if coding.level == SMALL else 1
        step = frame_words * group_frames

        def encode_group(group: int) -> tuple[list[EncodedFrame], Shared | None]:
            at = group * step
            words, planned = coding.plan(spec, x[at : at + step], frame_words, at)
            coded = []
            for k, plan in enumerate(planned.plans):
                piece = words[k * frame_words : (k + 1) * frame_words]
                context = FrameContext(spec, k * frame_words, piece.size, planned.shared, at + k * frame_words)
                coded.append(frames.encode(piece, plan, context, group * group_frames + k))
            return coded, planned.shared

        groups = side_by_side(encode_group, range(-(-x.size // step)), threads)
        return cls(spec, frame_words, group_frames, tuple(f for coded, _ in groups for f in coded), tuple(shared for _, shared in groups))

    @property
    def n_bytes(self) -> int:
        return sum(len(frame.data) for frame in self.frames) + sum(len(shared.data) for shared in self.shared if shared)

    def decode(self, numbers: Sequence[int], out: Array, threads: int = 1) -> None:
        word = self.spec.dtype.word
        at, step = address_of(out), self.frame_words * word
        coded = [np.frombuffer(self.frames[number].data, np.uint8) for number in numbers]
        contexts = [self.context(number) for number in numbers]
        classes = [frames.classes_of(memoryview(self.frames[number].data), context.shared) for number, context in zip(numbers, contexts, strict=True)]
        rows = [
            frames.run_row(address_of(data), data.size, number, at + place * step, context.n, own, context.first)
            for place, (data, number, context, own) in enumerate(zip(coded, numbers, contexts, classes, strict=True))
        ]

        def decode_run(first: int) -> None:
            run = np.array(rows[first : first + _RUN_FRAMES])
            _, decoded = frames.decode_run(run, word)
            for place in (np.flatnonzero(~decoded) + first).tolist():
                self._decode_frame(numbers[place], out[place * self.frame_words :])

        side_by_side(decode_run, range(0, len(rows), _RUN_FRAMES), threads)

    def _decode_frame(self, number: int, out: Array) -> None:
        """Decode a frame of any kind into the start of `out`."""
        frames.decode(memoryview(self.frames[number].data), number, out[: self.words_of(number)], self.where(number), self.context(number))

    def where(self, number: int) -> str:
        """A frame's name in messages."""
        return f"{self.spec.name}, frame {number} in memory"

    def context(self, number: int) -> FrameContext:
        """What a frame may know."""
        first = number % self.group_frames * self.frame_words
        return FrameContext(self.spec, first, self.words_of(number), self.shared[number // self.group_frames], number * self.frame_words)

    def groups(self) -> Iterable[EncodedGroup]:
        """The frames as a container's writer takes them."""
        for group, shared in enumerate(self.shared):
            part = self.frames[group * self.group_frames : (group + 1) * self.group_frames]
            if shared is None:
                yield EncodedGroup(part)
                continue
            data = frames.as_bytes(shared.data)
            context = FrameContext(TensorSpec(self.spec.name, U8, (data.size,)), 0, data.size)
            yield EncodedGroup(part, frames.encode(data, byte_plan(data, SMALL), context, SHARED_NUMBER + group), data.size)

    def packed(self) -> tuple[Array, tuple[Any, ...]]:
        """All bytes in one array (u1), and what `unpacked` needs beside them, in Python's own types."""
        spec, shared = self.spec, [part.data if part else b"" for part in self.shared]
        data = np.frombuffer(b"".join((*(frame.data for frame in self.frames), *shared)), np.uint8)
        lengths = [len(frame.data) for frame in self.frames], [len(part) for part in shared]
        return data, (spec.name, spec.dtype.name, spec.shape, self.frame_words, self.group_frames, *lengths, [frame.digest for frame in self.frames])

    @classmethod
    def unpacked(cls, data: Array, described: tuple[Any, ...]) -> FramesInMemory:
        name, dtype, shape, frame_words, group_frames, lengths, shared_lengths, digests = described
        ends = list(accumulate((*lengths, *shared_lengths)))
        pieces = [data[end - n : end].tobytes() for end, n in zip(ends, (*lengths, *shared_lengths), strict=True)]
        coded = tuple(EncodedFrame(piece, digest) for piece, digest in zip(pieces[: len(digests)], digests, strict=True))
        shared = tuple(Shared(piece) if piece else None for piece in pieces[len(digests) :])
        return cls(TensorSpec(name, DTYPE_BY_NAME[dtype], shape), frame_words, group_frames, coded, shared)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay: starting them anew for each weight would take as long as decoding a small one."""
    return ThreadPoolExecutor(threads, "modelcodec-weights")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has none of the threads


def side_by_side(work: Callable[[_Job], _Result], jobs: Iterable[_Job], threads: int) -> list[_Result]:
    """`work` on each job, results in the jobs' order; the calling thread is one of the `threads`."""
    waiting = list(jobs)
    helpers = min(threads, len(waiting)) - 1
    if helpers < 1:
        return [work(job) for job in waiting]
    results: list[Any] = [None] * len(waiting)
    left = deque(range(len(waiting)))

    def run() -> None:
        while left:
            try:
                place = left.popleft()
            except IndexError:  # another thread took the last one
                return
            results[place] = work(waiting[place])

    others = [_pool(threads - 1).submit(run) for _ in range(helpers)]
    try:
        run()
    finally:
        begun = [other for other in others if not other.cancel()]  # on a busy machine, a thread may not have come to its turn by now
        for other in begun:
            other.exception()
    for other in begun:
        other.result()
    return results


def empty_words(n_bytes: int) -> Array:
    """Memory (u1) aligned to 64 bytes, as torch's own is: a matrix product may depend on it in the last bit."""
    block = np.empty(n_bytes + 63, np.uint8)
    at = -block.ctypes.data % 64
    return block[at : at + n_bytes]
