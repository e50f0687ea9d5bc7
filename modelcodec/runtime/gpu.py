"""Decoding on a GPU, from the frames of a file and to the bits that the CPU gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelcodec import frame as frames
from modelcodec.errors import CorruptFile
from modelcodec.kernels.frequencies import Status
from modelcodec.kernels.triton.task import STATES, SYMBOL, UNITS, Task
from modelcodec.runtime.gpu_layout import FramePlace, GpuLayout
from modelcodec.runtime.xxh3 import Piece, digests
from modelcodec.types import Array

if TYPE_CHECKING:
    import torch

__all__ = ["FramePlace", "StagedFrames", "decode_frames"]

_FACTS = {UNITS: Status.UNITS, STATES: Status.STATES, SYMBOL: Status.SYMBOL}


def decode_frames(places: Sequence[FramePlace], out: torch.Tensor) -> None:
    """Decode frames into `out` (contiguous, its elements are the frames' words), wherever it lies; what is decoded often belongs into a `StagedFrames`.

    Seals and digests are checked. Raises CorruptFile, LimitExceeded, UnsupportedFile; `out` is then garbage.
    """
    if out.device.type == "cpu":
        words = _words(out).numpy().view(frames.WORD[out.element_size()])
        for place in places:
            frames.decode(memoryview(place.data), place.number, words[place.at : place.at + place.n], place.where, place.context)
        return
    staged = StagedFrames(places, out.element_size(), out.device)
    staged.decode(out)
    staged.check(out)


@dataclass(frozen=True, slots=True)
class _Launch:
    """Programs that are started together: their tasks and results on the device, and the coded frame that each belongs to."""

    classes: bool
    tasks: torch.Tensor
    result: torch.Tensor
    frames: Array

    @classmethod
    def of(cls, classes: bool, tasks: Sequence[tuple[int, Task]], device: torch.device) -> _Launch:
        import torch

        rows = torch.tensor([astuple(task) for _, task in tasks], dtype=torch.int64)
        result = torch.zeros((len(tasks), 2), dtype=torch.int32, device=device)
        return cls(classes, rows.to(device), result, np.array([number for number, _ in tasks]))


class StagedFrames:
    """Frames in the memory of a GPU, checked as far as that goes without decoding them; decoded as often as wanted, into one buffer for a whole layer.

    width: bytes of the frames' words. memory: `n_bytes` of the device, about the frames and 1.5 to 17 KiB for the tables of each. Those frames that the kernel
    does not know (docs/gpu.md) are kept as words. Raises CorruptFile, LimitExceeded, UnsupportedFile.
    """

    def __init__(self, places: Sequence[FramePlace], width: int, device: torch.device | str) -> None:
        import torch

        layout = GpuLayout(width)
        for place in places:
            layout.add(place)
        device = torch.device(device)
        self._width, self._end, self._aligned = width, layout.end, layout.aligned
        self._coded, self._copies = tuple(layout.coded), tuple(layout.copies)
        self._bytes = torch.from_numpy(layout.bytes()).to(device)
        self._scratch = torch.empty(max(layout.n_positions, 1), dtype=torch.int32, device=device)
        self._launches = tuple(_Launch.of(classes, tasks, device) for classes, tasks in layout.tasks.items() if tasks)

    @property
    def n_on_gpu(self) -> int:
        """Frames that the kernel decodes; the others are kept as words."""
        return len(self._coded)

    @property
    def n_bytes(self) -> int:
        """Bytes of the device that this holds."""
        held = [self._bytes, self._scratch, *(tensor for launch in self._launches for tensor in (launch.tasks, launch.result))]
        return sum(tensor.nbytes for tensor in held)

    def decode(self, out: torch.Tensor) -> None:
        """Start decoding into `out` (contiguous) on the current stream. Nothing is allocated and nothing waits, so that a CUDA graph can hold it."""
        import torch

        from modelcodec.kernels.triton.frames import decode

        words = _words(out)
        if out.element_size() != self._width or words.numel() < self._end or out.device != self._bytes.device:
            raise ValueError(f"{self._end} words of {self._width} bytes on {self._bytes.device} are wanted, not {words.numel()} on {out.device}")
        for copy in self._copies:
            staged = self._bytes[copy.start : copy.start + copy.n * self._width].view(words.dtype)
            words[copy.at : copy.at + copy.n].copy_(staged)
        halves, quads = self._bytes.view(torch.int16), self._bytes.view(torch.int32)
        with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
            for launch in self._launches:
                decode[(launch.tasks.shape[0],)](
                    launch.tasks, self._bytes, halves, quads, self._scratch, words, launch.result,
                    WIDTH=self._width, CLASSES=launch.classes, ALIGNED=self._aligned, num_warps=1,
                )  # fmt: skip

    def check(self, out: torch.Tensor) -> None:
        """Wait for the last `decode`, which went into `out`, and hold the frames' coders and digests against what they must be.

        What was staged does not change, so once is enough. Raises CorruptFile for the first frame that is damaged.
        """
        flags, escapes = np.zeros((2, len(self._coded)), np.int64)
        for launch in self._launches:
            result = launch.result.cpu().numpy()
            np.bitwise_or.at(flags, launch.frames, result[:, 0])
            np.add.at(escapes, launch.frames, result[:, 1])
        for coded, flag, n_escapes in zip(self._coded, flags, escapes, strict=True):
            if flag or n_escapes != coded.n_escapes:
                status = next((status for bit, status in _FACTS.items() if flag & bit), Status.ESCAPES)
                raise CorruptFile(f"{coded.where}: rans: {status.fact}; the file is damaged, fetch it again")
        if frames.CHECK_DIGESTS:
            for coded, digest in zip(self._coded, digests(*self._pieces(_words(out))), strict=True):
                if digest != coded.digest:
                    raise CorruptFile(f"{coded.where}: the digest of the decoded bytes does not match; the file is damaged, fetch it again")

    def _pieces(self, words: torch.Tensor) -> tuple[torch.Tensor, list[Piece]]:
        """Where the coded frames' words lie in memory, or in a copy where some do not begin at a multiple of 8 bytes."""
        import torch

        starts = [coded.at * self._width for coded in self._coded]
        if any(start % 8 for start in (*starts, words.storage_offset() * self._width)):
            sizes = [coded.n + -coded.n % (8 // self._width) for coded in self._coded]
            starts = [0, *(np.cumsum(sizes) * self._width).tolist()][:-1]
            copy = torch.empty(sum(sizes), dtype=words.dtype, device=words.device)
            for start, coded in zip(starts, self._coded, strict=True):
                copy[start // self._width :][: coded.n] = words[coded.at : coded.at + coded.n]
            words = copy
        pieces = [Piece(start, coded.n * self._width) for start, coded in zip(starts, self._coded, strict=True)]
        return words.view(torch.uint8), pieces


def _words(out: torch.Tensor) -> torch.Tensor:
    """The bits of a contiguous tensor as words of one dimension."""
    import torch

    if not out.is_contiguous():
        raise ValueError("a contiguous tensor is wanted")
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return out.view(-1).view(kinds[out.element_size()])
