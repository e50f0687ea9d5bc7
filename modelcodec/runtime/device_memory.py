"""Loading into a device's memory: a GPU that can gets frames and decodes them, any other device decoded bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from modelcodec.formats.container import Container, check_tensor_digest
from modelcodec.formats.container_layout import Entry
from modelcodec.runtime.gpu import FramePlace, decode_frames, decodes_on, words_in
from modelcodec.runtime.gpu_layout import WIDTHS
from modelcodec.runtime.pipeline import Destination, new_memory
from modelcodec.types import Array, TensorSpec

if TYPE_CHECKING:
    import torch

GPU_BATCH_BYTES = 32 << 20
"""A GPU takes as long for a few frames as for many; more would take too long to be laid out before it begins."""
TENSOR_BATCH_BYTES = 256 << 20
"""The same for a caller that waits for a whole tensor."""
LEAST_BYTES = 1 << 18
"""What is shorter is decoded before the GPU would have begun."""


class _Streams(threading.local):
    def __init__(self) -> None:
        self.of: dict[torch.device, torch.cuda.Stream] = {}


class DeviceMemory(Destination):
    """New memory on a device, or on the host where that decodes for it; `others` are devices of memory that there is already.

    To be made where the memory will be used: it is allocated for the stream that is current there.
    """

    def __init__(self, device: Any, others: Iterable[torch.device] = ()) -> None:
        import torch

        self.device = torch.empty(0, device=device).device  # with the number of the GPU
        self._callers = {gpu: torch.cuda.current_stream(gpu) for gpu in {self.device, *others} if gpu.type == "cuda"}
        self._streams = _Streams()
        if any(map(decodes_on, (self.device, *others))):
            self.batch_bytes = GPU_BATCH_BYTES

    def allocate(self, spec: TensorSpec) -> Any:
        return self.on(self.device, spec.n_bytes)

    def host(self, n_bytes: int) -> Array:
        return _pinned(n_bytes) if self.device.type == "cuda" else new_memory(n_bytes)

    def on(self, device: torch.device, n_bytes: int) -> Any:
        """New memory (u1) for what shall be on this device: there, or on the host."""
        import torch

        if not decodes_on(device):
            return _pinned(n_bytes) if device.type == "cuda" else new_memory(n_bytes)
        with torch.cuda.stream(self._callers.get(device)):
            return torch.empty(n_bytes, dtype=torch.uint8, device=device)

    def decode(self, archive: Container, entry: Entry, first: int, out: Any) -> list[int]:
        """On a GPU on a stream of the calling thread's own, whose work is done when this returns."""
        if isinstance(out, np.ndarray):
            return archive.decode_frames(entry, first, out)
        with self._own_stream(out.device):
            return decode_on(archive, entry, first, out)

    @contextmanager
    def _own_stream(self, device: torch.device) -> Iterator[None]:
        """It begins when the caller's stream has done what it was given until now: that may use memory that was freed since."""
        import torch

        if device not in self._callers:
            yield
            return
        stream = self._streams.of.setdefault(device, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
        stream.wait_stream(self._callers[device])
        with torch.cuda.stream(stream):
            try:
                yield
            finally:
                stream.synchronize()


def tensor_on(archive: Container, entry: Entry, device: torch.device) -> torch.Tensor:
    """The bytes (u1) of an entry in new memory of a GPU that decodes, decoded on the current stream and checked.

    memory: on the host TENSOR_BATCH_BYTES. Raises what `Container.decode_frames` raises.
    """
    import torch

    holder = archive.resolve(entry)
    frame_bytes = holder.frame_words * holder.spec.dtype.word
    step = max(TENSOR_BATCH_BYTES // frame_bytes, 1)
    out = torch.empty(entry.spec.n_bytes, dtype=torch.uint8, device=device)
    digests: list[int] = []
    for first in range(0, holder.n_frames, step):
        digests += decode_on(archive, holder, first, out[first * frame_bytes : (first + step) * frame_bytes])
    check_tensor_digest(entry, digests, archive.where)
    return out


def decode_on(archive: Container, entry: Entry, first: int, out: torch.Tensor) -> list[int]:
    """Decode as many frames from number `first` on as fill `out` (u1, on a GPU that decodes), on the current stream; returns their digests.

    What the GPU would not gain by, or cannot decode, the CPU decodes for it. Raises what `Container.decode_frames` raises.
    """
    import torch

    word = entry.spec.dtype.word
    if not entry.coded or word not in WIDTHS or out.numel() < LEAST_BYTES:
        decoded = new_memory(out.numel())
        digests = archive.decode_frames(entry, first, decoded)
        out.copy_(torch.from_numpy(decoded))
        return digests
    n_frames = -(-out.numel() // (entry.frame_words * word))
    if first + n_frames == entry.n_frames:
        archive.check_padding(entry)
    return decode_frames([_frame_place(archive, entry, number, first) for number in range(first, first + n_frames)], words_in(out, word))


def _frame_place(archive: Container, entry: Entry, number: int, first: int) -> FramePlace:
    start, end = entry.span(number)
    where = f"{archive.where}: {entry.name}, frame {number} at byte {start}"
    at = (number - first) * entry.frame_words
    return FramePlace(archive.buffer[start:end], number, at, entry.words_of(number), where, archive.context(entry, number))


def _pinned(n_bytes: int) -> Array:
    import torch

    memory: Array = torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True).numpy()
    return memory
