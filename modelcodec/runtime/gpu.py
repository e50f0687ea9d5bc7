"""Decoding on a GPU, from the frames of a file and to the bits that the CPU gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from modelcodec import frame as frames
from modelcodec.errors import CorruptFile
from modelcodec.kernels.frequencies import Status
from modelcodec.kernels.triton.task import STATES, SYMBOL, UNITS, Task
from modelcodec.runtime.gpu_layout import ALIGNMENT, Coded, FramePlace, GpuLayout
from modelcodec.runtime.xxh3 import Piece, digests
from modelcodec.types import Array

if TYPE_CHECKING:
    import torch

__all__ = ["FramePlace", "StagedFrames", "decode_frames", "decodes_on"]

KINDS = frozenset({"cuda"})
"""Of devices that decode. Tests add the CPU, where Triton's interpreter stands for a GPU."""
LEAST_CAPABILITY = (8, 0)
"""What Triton compiles for."""
CHECKED_FRAMES = 256
"""Decoded at a time to be checked: enough for a GPU to be busy, few enough to need little memory."""

_FACTS = {UNITS: Status.UNITS, STATES: Status.STATES, SYMBOL: Status.SYMBOL}
_OUT = [field.name for field in fields(Task)].index("out")


def decodes_on(device: torch.device) -> bool:
    """Whether frames are decoded on this device, rather than by the CPU for it: an NVIDIA GPU that Triton compiles for."""
    return device.type in KINDS and _is_known(device)


@cache
def _is_known(device: torch.device) -> bool:
    import torch

    if find_spec("triton") is None:
        return False
    return device.type == "cpu" or (torch.version.hip is None and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY)


def decode_frames(places: Sequence[FramePlace], out: torch.Tensor) -> list[int]:
    """Decode frames into `out` (contiguous, its elements are the frames' words), wherever it lies; returns their digests.

    What is decoded often belongs into a `StagedFrames`. Seals and digests are checked. Raises CorruptFile, LimitExceeded, UnsupportedFile; `out` is then
    garbage.
    """
    if not decodes_on(out.device):
        words = _words(out).numpy().view(frames.WORD[out.element_size()])
        return [frames.decode(memoryview(p.data), p.number, words[p.at : p.at + p.n], p.where, p.context) for p in places]
    staged = StagedFrames(places, out.element_size(), out.device)
    staged.decode(out)
    staged.check(out)
    return list(staged.digests)


@dataclass(frozen=True, slots=True)
class _Launch:
    """Programs that are started together: a row of `tasks` and of `result` for each, and the number of the frame that it belongs to."""

    classes: bool
    frames: Array
    rows: Array
    tasks: torch.Tensor
    result: torch.Tensor

    @classmethod
    def of(cls, classes: bool, numbers: Array, rows: Array, device: torch.device) -> _Launch:
        """numbers: i8[n]. rows: i8[n, fields of a Task], which stay on the host, too."""
        import torch

        result = torch.zeros((len(rows), 2), dtype=torch.int32, device=device)
        return cls(classes, numbers, rows, torch.from_numpy(rows).to(device), result)


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
        self.digests, self._sizes = tuple(layout.digests), tuple(layout.sizes)
        self._width, self._end = width, layout.end
        self._coded, self._copies = tuple(layout.coded), tuple(layout.copies)
        self._aligned = _is_aligned(self._coded)
        self._bytes = _uploaded(layout, device)
        self._scratch = torch.empty(max(layout.n_positions, 1), dtype=torch.int32, device=device)
        self._launches = tuple(
            _Launch.of(classes, np.array([number for number, _ in tasks]), np.array([astuple(task) for _, task in tasks]), device)
            for classes, tasks in layout.tasks.items()
            if tasks
        )

    def part(self, numbers: Sequence[int]) -> StagedFrames:
        """The frames with these ascending numbers, counted in the order in which they were given, to be decoded one after the other.

        Shares the memory of these. The two may be decoded at the same time: what both write, they write alike.
        """
        part = object.__new__(StagedFrames)
        ends = np.cumsum([self._sizes[number] for number in numbers])
        starts = dict(zip(numbers, [0, *ends.tolist()], strict=False))
        part.digests, part._sizes = tuple(self.digests[number] for number in numbers), tuple(self._sizes[number] for number in numbers)
        part._width, part._end = self._width, int(ends[-1]) if numbers else 0
        part._coded = tuple(replace(coded, at=starts[coded.number]) for coded in self._coded if coded.number in starts)
        part._copies = tuple(replace(copy, at=starts[copy.number]) for copy in self._copies if copy.number in starts)
        part._aligned = _is_aligned(part._coded)
        part._bytes, part._scratch = self._bytes, self._scratch
        launches = []
        for launch in self._launches:
            chosen = np.flatnonzero(np.isin(launch.frames, list(starts)))
            if chosen.size:
                rows = launch.rows[chosen]
                rows[:, _OUT] = [starts[number] for number in launch.frames[chosen].tolist()]
                launches.append(_Launch.of(launch.classes, launch.frames[chosen], rows, self._bytes.device))
        part._launches = tuple(launches)
        return part

    @property
    def n_on_gpu(self) -> int:
        """Frames that the kernel decodes; the others are kept as words."""
        return len(self._coded)

    @property
    def n_words(self) -> int:
        """Words of the output."""
        return self._end

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
        flags, escapes = np.zeros((2, 1 + max((coded.number for coded in self._coded), default=0)), np.int64)
        for launch in self._launches:
            result = launch.result.cpu().numpy()
            np.bitwise_or.at(flags, launch.frames, result[:, 0])
            np.add.at(escapes, launch.frames, result[:, 1])
        for coded in self._coded:
            flag = flags[coded.number]
            if flag or escapes[coded.number] != coded.n_escapes:
                status = next((status for bit, status in _FACTS.items() if flag & bit), Status.ESCAPES)
                raise CorruptFile(f"{coded.where}: rans: {status.fact}; the file is damaged, fetch it again")
        if frames.CHECK_DIGESTS:
            for coded, digest in zip(self._coded, digests(*self._pieces(_words(out))), strict=True):
                if digest != coded.digest:
                    raise CorruptFile(f"{coded.where}: the digest of the decoded bytes does not match; the file is damaged, fetch it again")

    def check_all(self) -> None:
        """Decode and check all frames, some at a time, in memory that is freed again."""
        import torch

        for first in range(0, len(self._sizes), CHECKED_FRAMES):
            part = self.part(range(first, min(first + CHECKED_FRAMES, len(self._sizes))))
            out = words_in(torch.empty(part.n_words * self._width, dtype=torch.uint8, device=self._bytes.device), self._width)
            part.decode(out)
            part.check(out)

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


def _is_aligned(coded: Sequence[Coded]) -> bool:
    """Whether each frame begins where the widest store of a thread may."""
    return all(one.at % ALIGNMENT == 0 for one in coded)


def _uploaded(layout: GpuLayout, device: torch.device) -> torch.Tensor:
    """All parts on the device, through pinned memory where that is one with memory of its own; torch keeps pinned memory for the next time."""
    import torch

    staging = torch.empty(layout.n_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    layout.write(staging.numpy())
    return staging.to(device, non_blocking=True)


def _words(out: torch.Tensor) -> torch.Tensor:
    """The bits of a contiguous tensor as words of one dimension."""
    if not out.is_contiguous():
        raise ValueError("a contiguous tensor is wanted")
    return words_in(out.view(-1), out.element_size())


def words_in(memory: torch.Tensor, width: int) -> torch.Tensor:
    """A tensor of one dimension as words of so many bytes, without sign or meaning."""
    import torch

    return memory.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[width])
