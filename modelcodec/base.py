"""Bases: the files that a delta is to, raw or compressed, themselves deltas maybe. Found by the name that the delta recorded, opened, and checked.

What a delta says about its base is untrusted: a name leads to no file outside the folder that is searched, a chain of bases ends at a fixed depth, and every
read of a base is cut to what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import BinaryIO

import numpy as np
import xxhash

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe, LimitExceeded, UnsupportedFile
from modelcodec.formats import container, identify
from modelcodec.formats.container_layout import BaseTensor, Entry
from modelcodec.formats.folder import plan_folder
from modelcodec.formats.paths import check_name, inside
from modelcodec.mapping import mapped
from modelcodec.names import compressed_name
from modelcodec.types import Array, Extent, TensorSpec

MOST_DEPTH = 8
"""Deltas to deltas: so many files are opened for one at most."""

Finder = Callable[[str], Path | str | None]
"""From the name that a delta recorded to the file; None where it is not known."""
Source = str | Path | Finder
"""A base when reading: a file, a folder that holds it, or what finds it."""


@dataclass(frozen=True, slots=True)
class NamedBase:
    """A base at `path` that is recorded as `name`, such as `user/repo@revision`, followed by the names of a folder's files."""

    path: Path
    name: str


_PIECE_BYTES = 1 << 20
_KEPT_FRAMES = 4
_SAMPLE_WORDS, _SAMPLE_RUNS = 256, 4
_LIKE_WORDS = 96
"""Tensors whose names differ belong together where so many of 256 words have the same sign and exponent; of unrelated weights about 35 do."""
_MANTISSA_BITS = {"F8_E4M3": 3, "F8_E4M3FNUZ": 3, "F8_E5M2": 2, "F8_E5M2FNUZ": 2, "F16": 10, "BF16": 7, "F32": 23, "F64": 52, "C64": 23, "C128": 52}
_LEAST_BYTES = 4096
"""Shorter tensors are found by their names alone."""


@dataclass(frozen=True)
class OpenTensor:
    """A tensor of a base: `read(first, n)` gives n of its bytes (u1), which are there."""

    spec: TensorSpec
    read: Callable[[int, int], Array]

    def words(self, width: int, first: int, n: int) -> Array:
        """n words (u1, u2, u4 or u8), of which the tensor has a whole number, from word `first` on; zero where it has ended."""
        there = min(max(self.spec.n_bytes // width - first, 0), n)
        if there == n:
            return frames.as_words(self.read(first * width, n * width), width)
        words = np.zeros(n, frames.WORD[width])
        if there:
            words[:there] = frames.as_words(self.read(first * width, there * width), width)
        return words

    @cached_property
    def digest(self) -> int:
        """XXH3-64 of its bytes."""
        state, n_bytes = xxhash.xxh3_64(), self.spec.n_bytes
        for at in range(0, n_bytes, _PIECE_BYTES):
            state.update(self.read(at, min(_PIECE_BYTES, n_bytes - at)).data)
        return state.intdigest()

    @cached_property
    def sample(self) -> Array:
        """256 words (u1, u2, u4 or u8) from four places; the tensor has at least 4 KiB."""
        n, width = _SAMPLE_WORDS // _SAMPLE_RUNS, self.spec.dtype.word
        step = (self.spec.n_words - n) // (_SAMPLE_RUNS - 1)
        return np.concatenate([frames.as_words(self.read(k * step * width, n * width), width) for k in range(_SAMPLE_RUNS)])


@dataclass(frozen=True)
class OpenFile:
    """A file of a base, and its tensors by name."""

    path: Path
    tensors: Mapping[str, OpenTensor]


class _CodedReader:
    """Reads a compressed tensor; keeps the last few frames of which a part was asked for, so that small frames of a delta do not decode a large one each."""

    def __init__(self, archive: container.Container, entry: Entry) -> None:
        self._archive, self._entry = archive, archive.resolve(entry)
        self._kept: dict[int, Array] = {}
        self._lock = RLock()

    def __call__(self, first: int, n: int) -> Array:
        width = self._entry.spec.dtype.word
        step = self._entry.frame_words * width
        out = np.empty(n, np.uint8)
        for number in range(first // step, -(-(first + n) // step)):
            at, size = number * step, self._entry.words_of(number) * width
            low, high = max(first, at), min(first + n, at + size)
            place = out[low - first : high - first]
            if high - low == size and place.ctypes.data % width == 0:
                self._archive.decode_frame(self._entry, number, place.view(frames.WORD[width]))
            else:
                place[:] = self._frame(number, size // width)[low - at : high - at]
        return out

    def _frame(self, number: int, n_words: int) -> Array:
        with self._lock:
            kept = self._kept.get(number)
            if kept is None:
                words = np.empty(n_words, frames.WORD[self._entry.spec.dtype.word])
                self._archive.decode_frame(self._entry, number, words)
                while len(self._kept) >= _KEPT_FRAMES:
                    self._kept.pop(next(iter(self._kept)))
                kept = self._kept[number] = words.view(np.uint8)
        return kept


def _open_file(path: Path, source: Source | None, depth: int, stack: ExitStack) -> OpenFile:
    """Map a file and find its tensors. Raises LimitExceeded where bases of bases never end, OSError, and what reading a damaged container raises."""
    if depth > MOST_DEPTH:
        raise LimitExceeded(f"{path}: it is a delta to a delta, more than {MOST_DEPTH} deep, or to itself; flatten one of them with `mcodec rebase`")
    view = stack.enter_context(mapped(path))
    if not container.is_container(view):
        data = frames.as_bytes(view)
        return OpenFile(path, {extent.spec.name: _raw_tensor(extent, data) for extent in identify(view, path).extents})
    found = Found.of(container.read(view, str(path)), path, None if isinstance(source, str | Path) and not Path(source).is_dir() else source, stack, depth)
    return OpenFile(path, {entry.name: OpenTensor(entry.spec, _CodedReader(found, entry)) for entry in found.tensors})


def _raw_tensor(extent: Extent, data: Array) -> OpenTensor:
    return OpenTensor(extent.spec, lambda first, n: data[extent.offset + first : extent.offset + first + n])


# ---- reading deltas ------------------------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """The bases of a container, opened when they are first asked for."""

    where: str
    names: tuple[str, ...]
    path: Path | None
    source: Source | None
    stack: ExitStack
    depth: int
    _open: dict[int, OpenFile] = field(default_factory=dict)
    _lock: RLock = field(default_factory=RLock)

    @classmethod
    def of(cls, archive: container.Container, path: Path | None, source: Source | None, stack: ExitStack, depth: int = 0) -> container.Container:
        """The container with its bases; what is opened for them is closed by `stack`."""
        if not archive.base_names:
            return archive
        return replace(archive, bases=cls(archive.where, archive.base_names, path, source, stack, depth))

    def words(self, tensor: BaseTensor, width: int, first: int, n: int) -> Array:
        """As `container.Bases` has it. Raises BadRecipe for a base that is missing or has no such tensor, and what reading it raises."""
        found, path = self._tensor(tensor)
        if found.spec.n_bytes % width:
            raise self._wrong(tensor, path)
        return found.words(width, first, n)

    def check(self, tensor: BaseTensor) -> None:
        found, path = self._tensor(tensor)
        if found.digest != tensor.digest:
            raise self._wrong(tensor, path)

    def _tensor(self, tensor: BaseTensor) -> tuple[OpenTensor, Path]:
        file = self._file(tensor.file)
        if tensor.name not in file.tensors:
            raise self._wrong(tensor, file.path)
        return file.tensors[tensor.name], file.path

    def _wrong(self, tensor: BaseTensor, path: Path) -> BadRecipe:
        return BadRecipe(
            f"{self.where} is a delta to {self.names[tensor.file]!r}, and {path} is not that file: its tensor {tensor.name!r} "
            f"is missing or has other bytes (XXH3-64 {tensor.digest:016x} is wanted); name the right base with --base or base="
        )

    def _file(self, number: int) -> OpenFile:
        with self._lock:
            if number not in self._open:
                self._open[number] = _open_file(self._find(self.names[number]), self.source, self.depth + 1, self.stack)
            return self._open[number]

    def _find(self, name: str) -> Path:
        """Where the file of this name is. Raises BadRecipe, UnsafeInput."""
        check_name(name)
        source = self.source
        if callable(source):
            answer = source(name)
            if answer is not None:
                return Path(answer)
        elif source is not None:
            path = Path(source)
            if not path.is_dir():
                if len(self.names) > 1:
                    raise BadRecipe(f"{self.where} is a delta to {len(self.names)} files, {path} is one; name the folder that holds them all")
                return path
            found = self._beside(path, name)
            if found:
                return found
        found = self._beside(self.path.parent, name) if self.path else None
        if found is None:
            raise BadRecipe(f"{self.where} is a delta to {name!r}, which is not here; name it with --base or base=")
        return found

    def _beside(self, folder: Path, name: str) -> Path | None:
        """A file of this name in a folder, compressed or not; of a name with folders, the last parts will do. Never the delta itself."""
        parts = name.split("/")
        for k in range(len(parts)):
            plain = inside(folder, "/".join(parts[k:]), cached=True)
            for path in (plain, compressed_name(plain)):
                if path.is_file() and not (self.path and self.path.exists() and path.samefile(self.path)):
                    return path
        return None


@contextmanager
def read_container(source: Path | BinaryIO, where: str, base: Source | None) -> Iterator[container.Container]:
    """A mapped container, with its bases where it has some: found by `base`, or beside it. Raises what `container.read` raises, OSError."""
    with ExitStack() as stack:
        view = stack.enter_context(mapped(source))
        yield Found.of(container.read(view, where), source if isinstance(source, Path) else None, base, stack)


# ---- choosing bases ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """What a checkpoint is compressed against: the files of a base, and the names under which they are recorded."""

    files: tuple[OpenFile, ...]
    names: tuple[str, ...]

    def chosen(self, source: memoryview, extents: Sequence[Extent]) -> Chosen:
        """For each extent the base's tensor, by name or else by content, or None."""
        if not self.files:
            return Chosen((), (None,) * len(extents))
        by_name: dict[str, list[tuple[int, OpenTensor]]] = {}
        by_size: dict[tuple[str, int], list[tuple[int, OpenTensor]]] = {}
        for number, file in enumerate(self.files):
            for name, tensor in file.tensors.items():
                by_name.setdefault(name, []).append((number, tensor))
                by_size.setdefault((tensor.spec.dtype.name, tensor.spec.n_bytes), []).append((number, tensor))
        data = frames.as_bytes(source)
        pairs = []
        for extent in extents:
            named = [pair for pair in by_name.get(extent.spec.name, ()) if _fits(pair[1].spec, extent.spec)]
            sized = by_size.get((extent.spec.dtype.name, extent.spec.n_bytes), [])
            pairs.append(named[0] if named else _most_alike(_raw_tensor(extent, data), sized))
        used = sorted({pair[0] for pair in pairs if pair})
        renumbered = {number: k for k, number in enumerate(used)}
        tensors = tuple((BaseTensor(renumbered[pair[0]], pair[1].spec.name, pair[1].digest), pair[1]) if pair else None for pair in pairs)
        return Chosen(tuple(self.names[number] for number in used), tensors)


@dataclass(frozen=True)
class Chosen:
    """The base's files that are used, and for each extent of a checkpoint the tensor that it is compared with."""

    names: tuple[str, ...]
    tensors: tuple[tuple[BaseTensor, OpenTensor] | None, ...]


def _fits(base: TensorSpec, spec: TensorSpec) -> bool:
    """Whether words that stand in the same place belong together: as many of them, or rows of the same length."""
    return base.dtype is spec.dtype and base.n_bytes > 0 and (base.n_bytes == spec.n_bytes or base.row_words == spec.row_words)


def _most_alike(tensor: OpenTensor, candidates: Sequence[tuple[int, OpenTensor]]) -> tuple[int, OpenTensor] | None:
    if tensor.spec.n_bytes < _LEAST_BYTES or not candidates:
        return None
    shift = _MANTISSA_BITS.get(tensor.spec.dtype.name, 0)
    own = tensor.sample >> shift
    alike = [int(np.count_nonzero(own == other.sample >> shift)) for _, other in candidates]
    best = int(np.argmax(alike))
    return candidates[best] if alike[best] >= _LIKE_WORDS else None


NO_BASE = Base((), ())


@contextmanager
def opened(base: str | Path | NamedBase | None) -> Iterator[Base]:
    """A base to compress against: a file, compressed or not, or every file with tensors of a folder. Raises UnsupportedFile where there is none, OSError."""
    if base is None:
        yield NO_BASE
        return
    path, name = (base.path, base.name) if isinstance(base, NamedBase) else (Path(base), "")
    with ExitStack() as stack:
        if path.is_dir():
            inner = [file.name for file in plan_folder(path) if file.has_tensors]
            if not inner:
                raise UnsupportedFile(f"{path}: no file in this folder holds tensors; name another base")
            files = tuple(_open_file(path / each, path, 0, stack) for each in inner)
            names = tuple(f"{name}/{each}" if name else each for each in inner)
        else:
            files, names = (_open_file(path, None, 0, stack),), (name or path.name,)
        for each in names:
            check_name(each)
        yield Base(files, names)
