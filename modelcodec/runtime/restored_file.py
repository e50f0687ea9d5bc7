"""The file that a container restores to, readable at any place: only what is read is decoded."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelcodec import frame as frames
from modelcodec.base import read_container
from modelcodec.errors import ModelCodecError
from modelcodec.formats import container
from modelcodec.formats.container_layout import Entry
from modelcodec.pool import ordered, thread_count
from modelcodec.types import Array


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Bytes of the source file from `start` on: those of a tensor, or the skeleton's from `skeleton` on."""

    start: int
    end: int
    entry: Entry | None
    skeleton: int = 0


class RestoredFile(io.RawIOBase):
    """A read-only file object with the bytes of the compressed file. Not safe to use from several threads.

    `damage`: the error of a read that found damage, for callers who get to see another one.

    memory: the skeleton and one frame. raises: CorruptFile where a frame that is read is damaged; digests of the tensor and of the file are not looked at.
    """

    damage: ModelCodecError | None = None

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        super().__init__()
        self._stack = ExitStack()  # first: whatever fails, the file is closed
        self._kept: tuple[int, int, Array] | None = None
        self._threads, self._position = thread_count(threads), 0
        try:
            self._source = self._stack.enter_context(read_container(Path(path), str(path), None))
            self._skeleton = memoryview(self._source.decode_entry(self._source.skeleton))
        except BaseException:
            self._stack.close()
            raise
        self._stretches = _stretches(self._source)
        self._starts = [stretch.start for stretch in self._stretches]

    def close(self) -> None:
        self._kept = None
        self._stack.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.source_size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer from the place where the file stands, as far as the file goes: not every reader asks again where it got less."""
        if not memoryview(buffer).nbytes:
            return 0
        out, n = memoryview(buffer).cast("B"), 0
        while n < len(out) and self._position < self._source.source_size:
            n += self._read_stretch(np.frombuffer(out[n:], np.uint8))
        return n

    def _read_stretch(self, out: Array) -> int:
        """At most up to the end of a tensor or of what lies between two."""
        stretch = self._stretches[bisect_right(self._starts, self._position) - 1]
        out = out[: stretch.end - self._position]
        first = self._position - stretch.start
        if stretch.entry is None:
            out[:] = np.frombuffer(self._skeleton[stretch.skeleton + first :][: len(out)], np.uint8)
        else:
            try:
                self._decode(self._source.resolve(stretch.entry), first, out)
            except ModelCodecError as error:
                self.damage = error
                raise
        self._position += len(out)
        return len(out)

    def _decode(self, holder: Entry, start: int, out: Array) -> None:
        """Bytes of an entry from `start` on; frames that lie inside them whole are decoded in place."""
        word = holder.spec.dtype.word
        step, end = holder.frame_words * word, start + len(out)

        def decode(number: int) -> None:
            at, size = number * step, holder.words_of(number) * word
            low, high = max(start, at), min(end, at + size)
            target = out[low - start : high - start]
            if len(target) == size and target.ctypes.data % word == 0:
                self._source.decode_frame(holder, number, target.view(frames.WORD[word]))
            else:
                target[:] = self._frame(holder, number, size)[low - at : high - at]

        for _ in ordered(decode, range(start // step, -(-end // step)), self._threads):
            pass

    def _frame(self, holder: Entry, number: int, size: int) -> Array:
        """A frame of which a part was asked for; the last one is kept, since the rest is likely to be read next."""
        kept = self._kept
        if kept is None or kept[:2] != (holder.start, number):
            data = np.empty(size, np.uint8)
            self._source.decode_frame(holder, number, data.view(frames.WORD[holder.spec.dtype.word]))
            kept = self._kept = holder.start, number, data
        return kept[2]


def _stretches(source: container.Container) -> list[_Stretch]:
    """The whole source file, in order, without empty stretches."""
    stretches: list[_Stretch] = []
    at = skeleton = 0
    for entry in source.tensors:
        if entry.gap:
            stretches.append(_Stretch(at, at + entry.gap, None, skeleton))
            at, skeleton = at + entry.gap, skeleton + entry.gap
        if entry.spec.n_bytes:
            stretches.append(_Stretch(at, at + entry.spec.n_bytes, entry))
            at += entry.spec.n_bytes
    if at < source.source_size:
        stretches.append(_Stretch(at, source.source_size, None, skeleton))
    return stretches
