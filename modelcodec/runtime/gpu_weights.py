"""Compressed weights in the memory of a GPU: the frames of a layer's tensors, or a matrix in the fixed-length form (docs/compressed_weights.md, "On a GPU").

A GPU decodes all tensors of a layer in hardly more time than one of them. So a layer's tensors are staged together, and where a module's forward pass opens a
scope, all are decoded in one launch when the first of them is needed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from modelcodec.runtime.form_in_memory import FormInMemory
from modelcodec.runtime.frames_in_memory import FramesInMemory, WordsInMemory
from modelcodec.runtime.gpu import FramePlace, StagedFrames, words_in
from modelcodec.runtime.gpu_layout import WIDTHS, is_known
from modelcodec.runtime.workspace import gpu_workspace, stream_of, synchronize

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ALIGNED_BYTES = 512
"""Of each tensor in a layer's buffer, as torch aligns what it allocates: a matrix product may depend on it in the last bit."""
SMALL_BYTES = 1 << 17
"""Tensors up to this size are kept as words if need be: their frames have fewer lanes than the kernel wants."""


class Resident(Protocol):
    """What a GPU holds of a layer."""

    @property
    def n_bytes(self) -> int:
        """Bytes of the GPU that it takes."""
        ...

    @property
    def buffer_bytes(self) -> int:
        """Bytes that are decoded at once."""
        ...

    def holds(self, place: int) -> bool:
        """Whether the layer's tensor in this place is decoded by the GPU."""
        ...

    def lent(self, place: int, numbers: Sequence[int], *, shared: bool) -> AbstractContextManager[Tensor]:
        """The words (u1) of a tensor's frames with these ascending numbers, one after the other, valid inside the block on the current stream.

        `shared`: others may get the same memory; nothing may be written to it.
        """
        ...


class Layer:
    """Tensors, as frames that never change, which a GPU decodes together; or one matrix in the fixed-length form."""

    def __init__(self, coded: Sequence[WordsInMemory]) -> None:
        self.coded = tuple(coded)
        self._residents: WeakValueDictionary[torch.device, Resident] = WeakValueDictionary()
        self._lock = threading.Lock()

    def on(self, device: torch.device) -> Resident:
        """What a GPU holds of this. Put there and checked when first asked for; freed when no tensor has it any more."""
        with self._lock:
            resident = self._residents.get(device)
            if resident is None:
                resident = self._residents[device] = self._put_on(device)
            return resident

    def _put_on(self, device: torch.device) -> Resident:
        first = self.coded[0]
        if isinstance(first, FormInMemory):
            return FormedMatrix(first, device)
        decodable = {place: coded for place, coded in enumerate(self.coded) if isinstance(coded, FramesInMemory) and _is_decodable(coded)}
        return StagedLayer(decodable, first.spec.dtype.word, device)


def _is_decodable(coded: FramesInMemory) -> bool:
    """Whether the kernel decodes a tensor, or all but a smaller part, which is kept as words."""
    spec, word = coded.spec, coded.spec.dtype.word
    if word not in WIDTHS:
        return False
    sizes = [coded.words_of(number) for number in range(len(coded.frames))]
    known = (n for k, (n, one) in enumerate(zip(sizes, coded.frames, strict=True)) if is_known(memoryview(one.data), k, word, n, coded.where(k)))
    return spec.n_bytes <= SMALL_BYTES or 2 * sum(known) >= spec.n_words


# ---- scopes ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scope:
    """The forward pass of a module, and the layers that were decoded in it, each on a stream."""

    module: Any
    buffers: ExitStack = field(default_factory=ExitStack)
    decoded: dict[tuple[Resident, int], Tensor] = field(default_factory=dict)


class _Open(threading.local):
    def __init__(self) -> None:
        self.scopes: list[_Scope] = []


_open = _Open()
"""The calling thread's scopes, the innermost last."""


def open_scope(module: Any, args: Any) -> None:
    """A hook before a module's forward pass: what is decoded in it stays until it ends."""
    _open.scopes.append(_Scope(module))


def close_scope(module: Any, args: Any, output: Any) -> None:
    """The hook after it, also where it failed; if it failed before `open_scope`, there is nothing to close."""
    if _open.scopes and _open.scopes[-1].module is module:
        _open.scopes.pop().buffers.close()


# ---- what is in the GPU's memory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Member:
    """A tensor of a layer: the word of the layer's buffer and the frame that it begins with."""

    coded: FramesInMemory
    start: int
    first: int


class StagedLayer:
    """The frames of a layer's tensors (by their places in it), words of `word` bytes.

    memory: the frames, and a buffer for all of the layer, or for one tensor where no scope is open.
    """

    def __init__(self, coded: Mapping[int, FramesInMemory], word: int, device: torch.device) -> None:
        self._word, self._device = word, device
        self._members: dict[int, _Member] = {}
        self._n_words = 0
        places: list[FramePlace] = []
        for place, one in coded.items():
            self._members[place] = _Member(one, self._n_words, len(places))
            places += _frame_places(one, self._n_words)
            self._n_words += one.spec.n_words + -one.spec.n_words % (ALIGNED_BYTES // word)
        self._staged = StagedFrames(places, word, device)
        self._staged.check_all()
        self._parts: dict[range, StagedFrames] = {}
        self._workspace = gpu_workspace(device)

    @property
    def n_bytes(self) -> int:
        return self._staged.n_bytes

    @property
    def buffer_bytes(self) -> int:
        return self._n_words * self._word

    def holds(self, place: int) -> bool:
        return place in self._members

    @contextmanager
    def lent(self, place: int, numbers: Sequence[int], *, shared: bool) -> Iterator[Tensor]:
        member = self._members[place]
        n_bytes = self._word * sum(map(member.coded.words_of, numbers))
        layer = self._in_scope() if shared and isinstance(numbers, range) and len(self._members) > 1 else None
        if layer is not None:
            first = self._word * (member.start + numbers[0] * member.coded.frame_words) if numbers else 0
            yield layer[first : first + n_bytes]
            return
        with self._workspace.lent(n_bytes) as buffer:
            self._part(member, numbers).decode(words_in(buffer, self._word))
            yield buffer

    def _in_scope(self) -> Tensor | None:
        """The whole layer if a scope is open."""
        key = self, stream_of(self._device)
        for scope in reversed(_open.scopes):
            if key in scope.decoded:
                return scope.decoded[key]
        if not _open.scopes:
            return None
        scope = _open.scopes[-1]
        buffer = scope.buffers.enter_context(self._workspace.lent(self.buffer_bytes))
        self._staged.decode(words_in(buffer, self._word))
        scope.decoded[key] = buffer
        return buffer

    def _part(self, member: _Member, numbers: Sequence[int]) -> StagedFrames:
        """These frames of a tensor; a stretch of them is likely to be asked for again, and is kept, so that any stream, and a CUDA graph, can have it."""
        if not isinstance(numbers, range):
            return self._staged.part([member.first + number for number in numbers])
        stretch = range(member.first + numbers.start, member.first + numbers.stop)
        if stretch not in self._parts:
            part = self._staged.part(stretch)
            synchronize(self._device)
            self._parts[stretch] = part
        return self._parts[stretch]


def _frame_places(coded: FramesInMemory, start: int) -> list[FramePlace]:
    """The frames of a tensor that begins at this word of a buffer."""
    rows = ((number, number * coded.frame_words) for number in range(len(coded.frames)))
    return [
        FramePlace(coded.frames[number].data, number, start + at, coded.words_of(number), coded.where(number), coded.context(number)) for number, at in rows
    ]


class FormedMatrix:
    """A matrix in the fixed-length form, which multiplies without being decoded. memory: the form; a buffer for all of it where it is decoded."""

    def __init__(self, coded: FormInMemory, device: torch.device) -> None:
        self.form = coded.form.to(device)
        self._coded = coded
        self._workspace = gpu_workspace(device)

    @property
    def n_bytes(self) -> int:
        return self.form.n_bytes

    @property
    def buffer_bytes(self) -> int:
        return self._coded.spec.n_bytes

    def holds(self, place: int) -> bool:
        return True

    @contextmanager
    def lent(self, place: int, numbers: Sequence[int], *, shared: bool) -> Iterator[Tensor]:
        import torch

        step = self._coded.frame_words * 2
        with self._workspace.lent(self.buffer_bytes) as buffer:
            self.form.unpack(buffer.view(torch.bfloat16).view(self.form.n_rows, self.form.n_columns))
            if isinstance(numbers, range):
                yield buffer[numbers.start * step : numbers.stop * step]
            else:
                yield torch.cat([buffer[number * step :][:step] for number in numbers])
