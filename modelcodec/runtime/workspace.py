"""Memory for decoded weights that is used again for each: the CPU's, and a GPU's for each of its streams."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from modelcodec.runtime.frames_in_memory import empty_words

if TYPE_CHECKING:
    import torch


class Workspace:
    """Buffers for decoded elements: as many as an operation needs at once, each grown to the largest weight that it held."""

    def __init__(self, empty: Callable[[int], Any] = empty_words) -> None:
        self._empty = empty
        self._spare: list[Any] = []
        self._lock = threading.Lock()

    @contextmanager
    def lent(self, n_bytes: int) -> Iterator[Any]:
        """A buffer (u1, aligned to 64 bytes or more) of any contents, for the length of the block."""
        buffer = self._take(n_bytes)
        try:
            yield buffer[:n_bytes]
        finally:
            with self._lock:
                self._spare.append(buffer)
                self._spare.sort(key=len)

    def _take(self, n_bytes: int) -> Any:
        """The smallest spare buffer that is large enough, or a new one in the place of the largest."""
        with self._lock:
            fitting = next((place for place, buffer in enumerate(self._spare) if len(buffer) >= n_bytes), -1)
            if fitting >= 0:
                return self._spare.pop(fitting)
            if self._spare:
                self._spare.pop()  # before the larger one is there
        return self._empty(n_bytes)


class GpuWorkspace:
    """A workspace for each stream of a GPU: what is written to a buffer that was given back comes, on the same stream, after everything that reads it.

    While a CUDA graph is captured, buffers are the graph's own, which torch keeps as long as the graph.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._of_stream: dict[int, Workspace] = {}

    def lent(self, n_bytes: int) -> AbstractContextManager[torch.Tensor]:
        """As `Workspace.lent`, for the current stream."""
        if is_capturing(self._device):
            return Workspace(self._empty).lent(n_bytes)
        return self._of_stream.setdefault(stream_of(self._device), Workspace(self._empty)).lent(n_bytes)

    def _empty(self, n_bytes: int) -> torch.Tensor:
        import torch

        return torch.empty(n_bytes, dtype=torch.uint8, device=self._device)


_cpu: WeakValueDictionary[None, Workspace] = WeakValueDictionary()
_gpus: WeakValueDictionary[torch.device, GpuWorkspace] = WeakValueDictionary()
"""Each lives as long as somebody has it."""


def workspace() -> Workspace:
    """The process's own, on the CPU."""
    return _cpu.setdefault(None, Workspace())


def gpu_workspace(device: torch.device) -> GpuWorkspace:
    return _gpus.setdefault(device, GpuWorkspace(device))


def stream_of(device: torch.device) -> int:
    """What tells the device's current stream from others."""
    import torch

    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def synchronize(device: torch.device) -> None:
    """Wait until the device's current stream has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured there: nothing may wait for the device."""
    import torch

    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
