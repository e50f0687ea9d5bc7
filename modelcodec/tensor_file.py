"""Random access to the tensors of a container, in the manner of `safetensors.safe_open`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import cache
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from modelcodec import frame as frames
from modelcodec.base import Found, read_container
from modelcodec.base import Source as BaseSource
from modelcodec.decoding_jobs import Run, decoding_jobs
from modelcodec.errors import LimitExceeded, UnsupportedFile
from modelcodec.formats import container
from modelcodec.formats.container_layout import Entry
from modelcodec.pool import ordered, thread_count
from modelcodec.types import Array, DType, TensorSpec
from modelcodec.views import check_repetition, gathered, is_row_major

Framework = Literal["np", "numpy", "pt", "torch"]

RUN_FRAMES, _JOB_BYTES = 8, 4 << 20
"""Frames of an entry that a thread decodes at a time, and bytes of several entries."""

_NUMPY = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "C64": "complex64",
    "C128": "complex128",
}
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_TORCH = {**_NUMPY, **_ML_DTYPES}


def numpy_dtype(dtype: DType) -> Any:
    """The numpy dtype of a tensor of `dtype`, from ml_dtypes where numpy has none; uint8 for packed and block dtypes, whose tensors are handed out as bytes."""
    return _numpy_dtype_named(dtype.name)


@cache
def _numpy_dtype_named(name: str) -> Any:
    if name in _NUMPY:
        return np.dtype(_NUMPY[name])
    if name in _ML_DTYPES:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, _ML_DTYPES[name]))
    return np.dtype(np.uint8)


def _is_torch(framework: str) -> bool:
    if framework not in ("np", "numpy", "pt", "torch"):
        raise ValueError(f"framework is {framework!r}, 'np' and 'pt' are possible")
    return framework in ("pt", "torch")


class TensorFile:
    """An open container. Tensors are decoded when asked for; a slice decodes only the frames that it needs. Safe to use from several threads.

    Dtypes that neither numpy nor torch has (F4, F6, ggml's block types) come as one dimension of bytes.
    """

    def __init__(self, path: str | Path, framework: Framework = "np", *, threads: int | None = None, base: BaseSource | None = None) -> None:
        self._torch = _is_torch(framework)
        self._threads = thread_count(threads)
        self._stack = ExitStack()
        try:
            self._open(self._stack.enter_context(read_container(Path(path), str(path), base)))
        except BaseException:
            self._stack.close()
            raise

    @classmethod
    def of_bytes(
        cls, data: bytes | memoryview, framework: Framework = "np", *, threads: int | None = None, base: BaseSource | None = None
    ) -> TensorFile:
        """The same over bytes in memory."""
        self = cls.__new__(cls)
        self._torch, self._threads, self._stack = _is_torch(framework), thread_count(threads), ExitStack()
        self._open(Found.of(container.read(memoryview(data), "bytes"), None, base, self._stack))
        return self

    def _open(self, source: container.Container) -> None:
        self._source = source
        # The last frame of which a part was asked for: small tensors are neighbours in one.
        self._kept: tuple[int, int, Array, int] | None = None
        views, entries = source.views(), source.tensors
        self._tensors: dict[str, _Place] = {}
        for view in views:
            self._tensors[view.spec.name] = _Place(view.spec, entries[view.extent], view.strides, view.first)
        for entry in () if views else entries:
            self._tensors[entry.name] = _Place(entry.spec, entry, None, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._tensors = {}
        self._kept = None
        self._stack.close()

    def keys(self) -> list[str]:
        """Names of the tensors, in the source's order."""
        return list(self._tensors)

    def specs(self) -> list[TensorSpec]:
        """Names, dtypes and shapes of the tensors, in the source's order."""
        return [place.spec for place in self._tensors.values()]

    def metadata(self) -> dict[str, str]:
        """The source's `__metadata__`."""
        return dict(self._source.metadata)

    def get_tensor(self, name: str) -> Any:
        """The whole tensor. Raises KeyError for an unknown name, CorruptFile for a damaged one."""
        place = self._place(name)
        spec = place.spec
        if place.strides is None or is_row_major(spec.shape, place.strides):
            first = place.first * spec.dtype.bits // 8
            return self._shaped(self._read(place.entry, first, first + spec.n_bytes), spec.dtype, spec.shape)
        return self._strided(place)

    def get_tensors(self) -> dict[str, Any]:
        """All tensors, in the source's order: what `get_tensor` gives for each. Frames are decoded several at a time, a short storage once for its views."""
        whole: dict[int, _Views] = {}
        for name, place in self._tensors.items():
            if place.strides is None or (is_row_major(place.spec.shape, place.strides) and self._source.resolve(place.entry).n_frames == 1):
                whole.setdefault(id(place.entry), _Views(place.entry, [])).places.append((name, place))
        found: dict[str, Any] = dict.fromkeys(self._tensors)
        for views, data in zip(whole.values(), self._decode_entries([views.entry for views in whole.values()]), strict=True):
            for k, (name, place) in enumerate(views.places):
                first, n_bytes = place.first * place.spec.dtype.bits // 8, place.spec.n_bytes
                is_all = k == 0 and n_bytes == data.size
                found[name] = self._shaped(data if is_all else data[first : first + n_bytes].copy(), place.spec.dtype, place.spec.shape)
        for name, tensor in found.items():
            if tensor is None:
                found[name] = self.get_tensor(name)
        return found

    def _decode_entries(self, entries: Sequence[Entry]) -> Iterator[Array]:
        """The bytes of whole entries, one after the other."""
        holders = [self._source.resolve(entry) for entry in entries]
        with_frames = (entry for entry, holder in zip(entries, holders, strict=True) if holder.n_frames)
        out: deque[Array] = deque()

        def with_memory(job: Sequence[Run]) -> list[tuple[Entry, int, Array]]:
            placed = []
            for run in job:
                if run.first == 0:
                    entry = next(with_frames)
                    out.append(self._new(entry, entry.spec.n_bytes))
                at = run.first * run.entry.frame_words * run.entry.spec.dtype.word
                placed.append((run.entry, run.first, out[-1][at : at + run.n_bytes]))
            return placed

        jobs = map(with_memory, decoding_jobs(holders, RUN_FRAMES, _JOB_BYTES))
        first = list(islice(jobs, self._threads))
        # Closed here, since an error's traceback would keep it: whoever catches the error finds no thread at work.
        with closing(ordered(self._source.decode_runs, chain(first, jobs), max(len(first), 1))) as decoded:
            runs = chain.from_iterable(decoded)
            for entry, holder in zip(entries, holders, strict=True):
                digests: list[int] = []
                while len(digests) < holder.n_frames:
                    digests += next(runs)
                container.check_tensor_digest(entry, digests, self._source.where)
                yield out.popleft() if holder.n_frames else self._new(entry, 0)

    def whole_entry(self, name: str) -> tuple[container.Container, Entry] | None:
        """The container and the entry whose bytes a tensor is; None where it is a view on a storage. Raises KeyError."""
        place = self._place(name)
        return None if place.strides is not None else (self._source, place.entry)

    def get_slice(self, name: str) -> TensorSlice:
        """A lazy view: index it as an array, `get_slice(name)[2:5, :]`."""
        return TensorSlice(self, name, self._place(name).spec)

    def _place(self, name: str) -> _Place:
        if name not in self._tensors:
            raise KeyError(f"{self._source.where}: there is no tensor {name!r}")
        return self._tensors[name]

    def rows(self, name: str, first: int, end: int) -> Any:
        """Rows first .. end - 1 of a tensor with at least one dimension: only their frames are decoded."""
        place = self._place(name)
        spec = place.spec
        if not _is_whole(spec.dtype) or (place.strides is not None and not is_row_major(spec.shape, place.strides)):
            return self.get_tensor(name)[first:end]
        row = spec.n_bytes // spec.shape[0] if spec.shape[0] else 0
        start = place.first * spec.dtype.bits // 8
        return self._shaped(self._read(place.entry, start + first * row, start + end * row), spec.dtype, (end - first, *spec.shape[1:]))

    def _read(self, entry: Entry, start: int, end: int) -> Array:
        """Bytes start .. end - 1 of an entry, decoded into one new buffer; frames that lie inside it whole go there directly."""
        holder = self._source.resolve(entry)
        word = holder.spec.dtype.word
        step = holder.frame_words * word
        out = self._new(entry, end - start)
        if not out.size:
            return out

        def decode(numbers: range) -> list[int]:
            at, number = numbers[0] * step, numbers[0]
            size = min(len(numbers) * step, holder.spec.n_bytes - at)
            if start <= at and at + size <= end and (at - start + out.ctypes.data) % word == 0:
                return self._source.decode_frames(holder, number, out[at - start : at - start + size])
            if len(numbers) > 1:  # the first or the last of them is asked for in part
                return [digest for each in numbers for digest in decode(range(each, each + 1))]
            kept = self._kept
            if kept is None or kept[:2] != (holder.start, number):
                target = np.empty(size, np.uint8)
                kept = self._kept = holder.start, number, target, self._source.decode_frame(holder, number, target.view(frames.WORD[word]))
            _, _, target, digest = kept
            low, high = max(start, at), min(end, at + size)
            out[low - start : high - start] = target[low - at : high - at]
            return [digest]

        numbers = range(start // step, -(-end // step))
        runs = [numbers[k : k + RUN_FRAMES] for k in range(0, len(numbers), RUN_FRAMES)]
        digests = [digest for run in ordered(decode, runs, min(self._threads, len(runs))) for digest in run]
        if len(numbers) == holder.n_frames:
            container.check_tensor_digest(entry, digests, self._source.where)
        return out

    def _new(self, entry: Entry, n_bytes: int) -> Array:
        try:
            return np.empty(n_bytes, np.uint8)
        except MemoryError:
            raise LimitExceeded(f"{self._source.where}: {entry.name} needs {n_bytes} bytes of memory; read it in slices") from None

    def _strided(self, place: _Place) -> Any:
        """A view that is not contiguous in its storage: decode the stretch that it touches, then copy its elements out."""
        spec = place.spec
        if 0 in spec.shape:
            return self._shaped(np.empty(0, np.uint8), spec.dtype, spec.shape)
        check_repetition(spec, place.entry.spec.n_bytes, self._source.where)
        size, strides = spec.dtype.bits // 8, place.strides or ()
        last = place.first + sum((d - 1) * s for d, s in zip(spec.shape, strides, strict=True))
        return self._shaped(gathered(self._read(place.entry, place.first * size, (last + 1) * size), spec, strides), spec.dtype, spec.shape)

    def _shaped(self, data: Array, dtype: DType, shape: tuple[int, ...]) -> Any:
        if not self._torch:
            return self._reshaped(data.view(numpy_dtype(dtype)), shape) if _is_whole(dtype) else data
        import torch

        tensor = torch.from_numpy(data)
        if not _is_whole(dtype):
            return tensor
        kind = getattr(torch, _TORCH[dtype.name], None)
        if kind is None:
            raise UnsupportedFile(f"{self._source.where}: this version of torch has no dtype {_TORCH[dtype.name]}; use framework='np' or update torch")
        # torch views no empty tensor of bytes as wider elements.
        return self._reshaped(tensor.view(kind) if data.size else torch.empty(0, dtype=kind), shape)

    def _reshaped(self, flat: Any, shape: tuple[int, ...]) -> Any:
        try:
            return flat.reshape(shape)
        except (ValueError, RuntimeError, OverflowError, TypeError) as error:
            library = "torch" if self._torch else "numpy"
            raise UnsupportedFile(f"{self._source.where}: {library} has no array of the shape {shape} ({error}); decompress the file instead") from None


class _Place:
    """Where a named tensor lies: `strides` is None where it is the whole entry."""

    __slots__ = ("entry", "first", "spec", "strides")

    def __init__(self, spec: TensorSpec, entry: Entry, strides: tuple[int, ...] | None, first: int) -> None:
        self.spec, self.entry, self.strides, self.first = spec, entry, strides, first


class _Views(NamedTuple):
    """The tensors whose elements lie in an entry one after the other: the entry itself, or views on it."""

    entry: Entry
    places: list[tuple[str, _Place]]


class TensorSlice:
    """What `get_slice` gives: shape and dtype without decoding, elements by indexing."""

    def __init__(self, file: TensorFile, name: str, spec: TensorSpec) -> None:
        self._file, self._name, self._spec = file, name, spec

    def get_shape(self) -> list[int]:
        return list(self._spec.shape)

    def get_dtype(self) -> str:
        return self._spec.dtype.name

    def __getitem__(self, index: Any) -> Any:
        """Indexing as on what `get_tensor` gives. The first axis decides what is decoded; the other axes are cut from that."""
        key = index if isinstance(index, tuple) else (index,)
        if not self._spec.shape or not _is_whole(self._spec.dtype) or not key or key[0] is Ellipsis or key[0] is None:
            return self._file.get_tensor(self._name)[index]
        n = self._spec.shape[0]
        if isinstance(key[0], slice):
            start, stop, step = key[0].indices(n)
            chosen = range(start, stop, step)
            if not chosen:
                return self._file.rows(self._name, 0, 0)[(slice(0, 0), *key[1:])]
            first, end = min(chosen), max(chosen) + 1
            back = None if step < 0 and chosen[-1] == first else chosen[-1] - first + (1 if step > 0 else -1)
            return self._file.rows(self._name, first, end)[(slice(chosen[0] - first, back, step), *key[1:])]
        if isinstance(key[0], int | np.integer) and not isinstance(key[0], bool):
            row = int(key[0]) + (n if key[0] < 0 else 0)
            if not 0 <= row < n:
                raise IndexError(f"{self._name}: index {int(key[0])} is out of bounds for {n} rows")
            return self._file.rows(self._name, row, row + 1)[(0, *key[1:])]
        return self._file.get_tensor(self._name)[index]


def _is_whole(dtype: DType) -> bool:
    """Whether an element is a number of whole bytes, so that numpy or torch can have it."""
    return dtype.elements == 1 and dtype.bits % 8 == 0
