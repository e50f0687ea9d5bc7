"""Decoding ahead of the caller: one thread reads a container front to back, a few decode, tensors come out in order."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from tempfile import SpooledTemporaryFile
from threading import Condition, Semaphore, Thread
from types import TracebackType
from typing import Any

import numpy as np

from modelcodec.arena import ALIGNMENT, Buffers
from modelcodec.errors import LimitExceeded
from modelcodec.formats import container
from modelcodec.formats.container import Container
from modelcodec.formats.container_layout import Entry
from modelcodec.limits import LIMITS
from modelcodec.runtime.forward import Batch, ForwardReader, batches
from modelcodec.runtime.sources import Location, name_of, opened
from modelcodec.runtime.tensors import bytes_of
from modelcodec.types import Array, TensorSpec, View

BATCH_BYTES = 8 << 20
"""Decoded bytes that a thread takes at a time: few enough for the caches, enough to make handing them over cheap."""
STOP_SECONDS = 5.0
"""How long an early end waits for the reading thread, which may be waiting for bytes that do not come."""

def new_memory(n_bytes: int) -> Array:
    """Aligned to 64; numpy asks for huge pages where the system has them, which makes fresh memory several times cheaper."""
    block = np.empty(n_bytes + ALIGNMENT, np.uint8)
    at = -block.ctypes.data % ALIGNMENT
    return block[at : at + n_bytes]


class Destination:
    """Where tensors are decoded to and how: here new memory of the host for each. The methods are called in other threads.

    batch_bytes: decoded bytes that a thread takes at a time.
    """

    batch_bytes = BATCH_BYTES

    def place(self, spec: TensorSpec) -> Any:
        """Memory that a tensor has already (u1, aligned to 8), which does not count as decoded ahead; None where it gets new memory."""
        return None

    def allocate(self, spec: TensorSpec) -> Any:
        """New memory for a tensor (u1)."""
        return self.host(spec.n_bytes)

    def host(self, n_bytes: int) -> Array:
        """New memory for a storage, whose tensors are cut from it on the host."""
        return new_memory(n_bytes)

    def decode(self, archive: Container, entry: Entry, first: int, out: Any) -> list[int]:
        """Decode as many frames from number `first` on as fill `out`, a part of what `place` or `allocate` gave; returns their digests."""
        return archive.decode_frames(entry, first, out)


class _Stopped(Exception):
    """The caller wants no more."""


@dataclass(slots=True, eq=False)
class _Arrival:
    """A tensor, or a storage and the views on it, on its way into `out`; `n_ahead` of its bytes count as decoded ahead."""

    entry: Entry
    views: Sequence[View] | None
    out: Any
    n_ahead: int
    digests: list[int]
    missing: int
    """Frames that are not decoded yet."""
    error: BaseException | None = None

    def tensors(self, where: str) -> Iterator[tuple[TensorSpec, Any]]:
        """Once it is whole."""
        container.check_tensor_digest(self.entry, self.digests, where)
        if self.views is None:
            yield self.entry.spec, self.out
        else:
            yield from ((view.spec, bytes_of(view, self.out, where)) for view in self.views)


class _Ahead:
    """What is decoded ahead of the caller, in order, up to a number of bytes. A tensor larger than that is begun when the caller waits for it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._waiting = self._stopped = self._ended = False
        self._error: BaseException | None = None
        self._arrivals: deque[_Arrival] = deque()
        self._changed = Condition()

    # ---- for the caller ----

    def take(self) -> _Arrival | None:
        """The next tensor, once it is whole; None behind the last. Raises what kept it from coming."""
        with self._changed:
            self._waiting = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._arrivals or self._ended)
            self._waiting = False
            if not self._arrivals:
                arrival, error = None, self._error
            else:
                arrival = self._arrivals.popleft()
                self._held -= arrival.n_ahead
                self._changed.notify_all()
                self._changed.wait_for(lambda: not arrival.missing or arrival.error)
                error = arrival.error
        if error:
            raise error
        return arrival

    def stop(self) -> None:
        """No more is wanted."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # ---- for the reading thread ----

    def check(self) -> None:
        if self._stopped:
            raise _Stopped

    def room(self, n: int) -> None:
        """Wait until n more bytes are allowed. Raises _Stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._held + n <= self._most or (self._waiting and not self._arrivals))
        self.check()

    def begin(self, arrival: _Arrival) -> None:
        with self._changed:
            self._arrivals.append(arrival)
            self._held += arrival.n_ahead
            self._changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        """No more comes, and why."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    # ---- for whoever has decoded something ----

    def decoded(self, frames_of: Iterable[tuple[_Arrival, int, list[int]]]) -> None:
        """Digests of frames that are decoded now, from the first of them on."""
        with self._changed:
            for arrival, first, digests in frames_of:
                arrival.digests[first : first + len(digests)] = digests
                arrival.missing -= len(digests)
            self._changed.notify_all()

    def failed(self, arrivals: Iterable[_Arrival], error: BaseException) -> None:
        """What is missing of these will not come."""
        with self._changed:
            for arrival in arrivals:
                if arrival.missing and not arrival.error:
                    arrival.error = error
            self._changed.notify_all()


class Pipeline:
    """A container on its way: iterating gives specification and bytes (u1, where the destination has them) of each tensor, in the order of the file, checked.

    Tensors of a torch file that are views of one storage share its memory where they are contiguous.

    memory: `memory_bound` bytes of coded batches and of tensors decoded ahead, but at least two coded frames a thread (where frames share a part: two groups
    of 8). Tensors larger than the bound are not begun before the caller waits for them; what the destination has a place for does not count.
    raises: TruncatedFile, CorruptFile, UnsupportedFile, LimitExceeded, BadRecipe, OSError, each after the tensors that came whole.
    """

    def __init__(self, location: Location, threads: int, memory_bound: int, destination: Destination) -> None:
        self._location, self._threads, self._memory_bound = location, threads, memory_bound
        self._destination = destination
        # Coded batches: one a thread, one for the reader. Small tensors that come in one batch with another are a batch more.
        self._batch_bytes = min(max(memory_bound // (2 * (threads + 2)), LIMITS.frame_bytes), destination.batch_bytes)
        self._ahead = _Ahead(max(memory_bound - (threads + 2) * self._batch_bytes, 0))
        self._thread = Thread(target=self._run, name="modelcodec-reader", daemon=True)

    def __enter__(self) -> Pipeline:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """What is under way comes to an end before this returns."""
        self._ahead.stop()
        self._thread.join(STOP_SECONDS)

    def __iter__(self) -> Iterator[tuple[TensorSpec, Any]]:
        where = name_of(self._location)
        while arrival := self._ahead.take():
            yield from arrival.tensors(where)
            del arrival  # the caller alone holds the tensor while the next one is waited for

    # ---- in the reading thread ----

    def _run(self) -> None:
        end: BaseException | None = None
        try:
            # Everything is closed, and every decoding thread at its end, before the caller hears of the end.
            with opened(self._location) as source, SpooledTemporaryFile(self._memory_bound or 1) as copies, ThreadPoolExecutor(self._threads) as pool:
                reader = ForwardReader(source, copies)
                self._feed(reader, pool)
                reader.end()
        except BaseException as error:
            end = error
        self._ahead.end(end)

    def _feed(self, reader: ForwardReader, pool: Executor) -> None:
        """Read batch after batch, and give each to the pool with the tensors that it belongs to."""
        archive, views = reader.front()
        views_on: dict[int, list[View]] = defaultdict(list)
        for view in views:
            views_on[view.extent + len(archive.entries) - len(archive.tensors)].append(view)
        coded = _CodedBatches(self._threads + 1, self._batch_bytes + self._batch_bytes // 8)
        arrivals: list[_Arrival] = []
        try:
            for batch in batches(archive, self._batch_bytes):
                self._ahead.check()
                for piece in batch.pieces:
                    if piece.first == 0:
                        entry, views_here = archive.entries[piece.index], views_on[piece.index] if views else None
                        arrivals.append(self._begin(entry, piece.holder.n_frames, views_here, first=not arrivals))
                buffer = coded.take(batch.end - batch.start)
                reader.fill(batch, buffer.data[: batch.end - batch.start])
                pool.submit(self._decode, archive, batch, buffer, arrivals, coded)
                last = batch.pieces[-1]
                arrivals = [] if last.end == last.holder.n_frames else arrivals[-1:]
        except BaseException as error:
            self._ahead.failed(arrivals, error)
            raise

    def _begin(self, entry: Entry, n_frames: int, views: Sequence[View] | None, *, first: bool) -> _Arrival:
        """Find a tensor, which comes in so many frames, its place, and tell the caller to wait for it.

        Only the first of a batch waits for room: all that stands before it is under way then, whereas the caller may be waiting for what is in its batch.
        """
        n_bytes = entry.spec.n_bytes
        out = self._destination.place(entry.spec) if views is None else None
        n_ahead = n_bytes if out is None else 0
        if first:
            self._ahead.room(n_ahead)
        if out is None:
            try:
                out = self._destination.allocate(entry.spec) if views is None else self._destination.host(n_bytes)
            except MemoryError:
                raise LimitExceeded(f"{name_of(self._location)}: {entry.name} needs {n_bytes} bytes of memory; open the file and read it in slices") from None
        arrival = _Arrival(entry, views, out, n_ahead, [0] * n_frames, n_frames)
        self._ahead.begin(arrival)
        return arrival

    # ---- in the decoding threads ----

    def _decode(self, archive: Container, batch: Batch, buffer: Array, arrivals: Sequence[_Arrival], coded: _CodedBatches) -> None:
        """Decode a batch, whose bytes (at the start of `buffer`) are untrusted, to where its tensors go; an error goes to them, too."""
        window = replace(archive, buffer=buffer.data[: batch.end - batch.start], where=f"{archive.where}, counted from byte {batch.start}", _kept={})
        decoded: list[tuple[_Arrival, int, list[int]]] = []
        try:
            for piece, arrival in zip(batch.pieces, arrivals, strict=True):
                entry = piece.holder.moved(batch.start)
                frame_bytes = entry.frame_words * entry.spec.dtype.word
                out = arrival.out[piece.first * frame_bytes : piece.end * frame_bytes]
                decoded.append((arrival, piece.first, self._destination.decode(window, entry, piece.first, out)))
        except BaseException as error:
            self._ahead.decoded(decoded)
            self._ahead.failed(arrivals, error)
        else:
            self._ahead.decoded(decoded)
        finally:
            coded.give(buffer)


class _CodedBatches:
    """Memory for so many batches; taking one more waits until one is given back."""

    def __init__(self, n: int, n_bytes: int) -> None:
        self._free = Semaphore(n)
        self._buffers = Buffers(n_bytes)

    def take(self, n_bytes: int) -> Array:
        """At least so many bytes."""
        self._free.acquire()
        return self._buffers.take(n_bytes)

    def give(self, buffer: Array) -> None:
        self._buffers.give(buffer)
        self._free.release()
