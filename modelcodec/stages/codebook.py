"""codebook (13): vectors of words, by their places in one of several lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.kernels import context_coder
from modelcodec.kernels import planes as kernels
from modelcodec.kernels.context_coder import Geometry
from modelcodec.kernels.logistic import EXP2
from modelcodec.kernels.trellis import CODES, MOST_INDEX
from modelcodec.limits import LIMITS
from modelcodec.stage import Encoded, FrameContext, Layout, PartShape, Shared, Stage
from modelcodec.stages.grid import first_mean_of
from modelcodec.types import Array, TensorSpec
from modelcodec.wire import Reader, varint

MOST_ENTRIES = 1 << 16
MOST_DIMENSION = 1024
MOST_GROUPS = 256
_SHARED, _WIDE, _MODELLED, _GROUPED = 1, 2, 4, 8
_MOST_MEAN = 224
_SCALAR = CODES[1]
"""The context coder's trellis of one state: indices are places on a plain grid."""


@dataclass(frozen=True, eq=False, slots=True)
class Book:
    """Lists of vectors, one after the other: `sizes` vectors of `dimension` words each. `indices`, for the encoder only, are those of its words' vectors."""

    dimension: int
    sizes: tuple[int, ...]
    entries: Array
    indices: Array | None = None

    @classmethod
    def of_vectors(cls, vectors: Array, lists: Array | int = 0) -> Book | None:
        """The different ones among vectors (rows); `lists`: the list that each is to be in. None where they are too many."""
        dimension = vectors.shape[1]
        if isinstance(lists, int):
            entries, indices = _different(vectors)
            return cls(dimension, (len(entries),), entries.reshape(-1), indices) if 0 < len(entries) <= MOST_ENTRIES else None
        indices = np.empty(len(vectors), np.int64)
        found = []
        for number in range(int(lists.max(initial=0)) + 1):
            inside = lists == number
            entries, indices[inside] = _different(vectors[inside])
            found.append(entries if len(entries) else vectors[:1])  # a list without vectors still has an entry
        sizes = tuple(map(len, found))
        return cls(dimension, sizes, np.concatenate(found).reshape(-1), indices) if len(vectors) and sum(sizes) <= MOST_ENTRIES else None

    def vectors(self, indices: Array, lists: Array | int, out: Array | None = None) -> Array:
        """Vectors (rows) of indices that are inside their lists."""
        sizes = np.array(self.sizes)
        places = indices + (np.cumsum(sizes) - sizes)[lists]
        return np.take(self.entries.reshape(-1, self.dimension), places, axis=0, out=out, mode="clip")

    def write(self) -> bytes:
        """A group's shared part. Few different words are written as a palette, whose places its own plan makes shorter."""
        words, places = np.unique(self.entries, return_inverse=True)
        if words.size <= min(256, self.entries.size // 2):
            data = bytes([1]) + varint(words.size - 1) + words.tobytes() + places.astype(np.uint8).tobytes()
        else:
            data = bytes([0]) + self.entries.tobytes()
        return varint(self.dimension) + _write_sizes(self.sizes) + data

    @classmethod
    def of(cls, shared: Shared | None, word: int) -> Book:
        """The lists of a group of frames, parsed once; `word` bytes of a word. Raises CorruptFile."""
        if shared is None:
            raise CorruptFile("codebook: the frame has no shared part")
        book = shared.parsed_as(Book, lambda data: cls.read(data, word))
        if book.entries.itemsize != word:
            raise CorruptFile("codebook: the shared part's words have another width")
        return book

    @classmethod
    def read(cls, data: bytes, word: int) -> Book:
        """Check an untrusted shared part. Raises CorruptFile."""
        reader = Reader(data, "codebook: shared part")
        dimension = _read_dimension(reader)
        sizes = _read_sizes(reader)
        n = sum(sizes) * dimension
        kind = reader.u8()
        if kind > 1:
            raise reader.corrupt(f"entries of kind {kind} are not known")
        n_words = reader.varint(255) + 1 if kind else n
        entries = np.frombuffer(bytearray(reader.take(n_words * word)), f"<u{word}")
        if kind:
            places = np.frombuffer(reader.take(n), np.uint8)
            if int(places.max()) >= entries.size:
                raise reader.corrupt("a place is past the palette's end")
            entries = entries[places]
        reader.end()
        return cls(dimension, sizes, entries)


def _different(vectors: Array) -> tuple[Array, Array]:
    """Different rows, numbers in their order, and which of them each row is."""
    dimension, word = vectors.shape[1], vectors.itemsize
    if dimension == 1:
        top = vectors.dtype.type(1 << (8 * word - 1))
        flat = vectors[:, 0]
        ordered, indices = np.unique(np.where(flat & top, ~flat, flat | top), return_inverse=True)
        return np.where(ordered & top, ordered ^ top, ~ordered).reshape(-1, 1), indices
    kind = np.dtype(f"<u{dimension * word}") if dimension * word in (2, 4, 8) else np.dtype((np.void, dimension * word))
    keys = np.ascontiguousarray(vectors).view(kind)[:, 0]
    _, first, indices = np.unique(keys, return_index=True, return_inverse=True)
    return vectors[first], indices


@dataclass(frozen=True, slots=True)
class Header:
    """A header, checked. `lead` words stand before the first vector; `sizes` are empty where the lists are shared; `rows` (0: one list for all) have a list
    each; `n_coded` bytes of context-coded indices, `first_mean` tells their mean magnitude; None where they are a part of `index_width` bytes each."""

    dimension: int
    lead: int
    sizes: tuple[int, ...]
    rows: int = 0
    index_width: int = 1
    n_coded: int | None = None
    first_mean: int = 0

    def n_vectors(self, n: int) -> int:
        return (n - self.lead) // self.dimension

    def write(self) -> bytes:
        modelled = self.n_coded is not None
        flags = _SHARED * (not self.sizes) | _WIDE * (self.index_width == 2) | _MODELLED * modelled | _GROUPED * bool(self.rows)
        fields = [bytes([flags]), varint(self.dimension), varint(self.lead)]
        if self.sizes:
            fields.append(_write_sizes(self.sizes))
        if self.rows:
            fields.append(varint(self.rows))
        if self.n_coded is not None:
            fields += [bytes([self.first_mean]), varint(self.n_coded)]
        return b"".join(fields)

    @classmethod
    def read(cls, header: bytes, n: int) -> Header:
        """Check an untrusted header of n words. Raises CorruptFile."""
        reader = Reader(header, "codebook")
        flags = reader.u8()
        if flags > 15 or flags & (_WIDE | _MODELLED) == _WIDE | _MODELLED:
            raise CorruptFile(f"codebook: flags {flags:#x} are not possible")
        dimension = _read_dimension(reader)
        lead = reader.varint(min(dimension - 1, n))
        sizes = () if flags & _SHARED else _read_sizes(reader)
        rows = reader.varint(n) if flags & _GROUPED else 0
        if flags & _GROUPED and not rows:
            raise CorruptFile("codebook: rows are missing")
        n_coded, first_mean = None, 0
        if flags & _MODELLED:
            first_mean, n_coded = reader.u8(), reader.varint(1 << 32)
            if dimension > 1 or first_mean > _MOST_MEAN:
                raise CorruptFile("codebook: the context coder takes indices of single words, whose first mean is in range")
        reader.end()
        return cls(dimension, lead, sizes, rows, 2 if flags & _WIDE else 1, n_coded, first_mean)


def _read_dimension(reader: Reader) -> int:
    dimension = reader.varint(MOST_DIMENSION)
    if not dimension:
        raise reader.corrupt("vectors have no words")
    return dimension


def _write_sizes(sizes: tuple[int, ...]) -> bytes:
    return varint(len(sizes) - 1) + b"".join(varint(size - 1) for size in sizes)


def _read_sizes(reader: Reader) -> tuple[int, ...]:
    n_lists = reader.varint(MOST_GROUPS - 1) + 1
    sizes = tuple(reader.varint(MOST_ENTRIES - 1) + 1 for _ in range(n_lists))
    if sum(sizes) > MOST_ENTRIES:
        raise reader.corrupt(f"a codebook has more than {MOST_ENTRIES} entries")
    return sizes


@dataclass(frozen=True)
class Codebook(Stage):
    """Few different vectors of `dimension` words; applies only then. What k-means, kernel quantization and clustered checkpoints leave.

    `lists`: a byte for each row of the tensor, the list that its vectors are in, for codebooks of groups of rows. `modelled`: indices of single words by the
    context coder, smallest where codebooks are nearly uniform; else a part for any plan.
    exact · parts: entries, groups, indices.
    """

    dimension: int = 1
    modelled: bool = False
    lists: bytes = b""

    id: ClassVar[int] = 13
    name: ClassVar[str] = "codebook"
    since: ClassVar[tuple[int, int]] = (0, 3)
    loose: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("entries", "groups", "indices")
    shares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.dimension <= MOST_DIMENSION:
            raise BadRecipe(f"codebook: dimension = {self.dimension}, 1 to {MOST_DIMENSION} are possible")
        if self.modelled and self.dimension > 1:
            raise BadRecipe("codebook: only single words go through the context coder")

    @classmethod
    def option(cls, name: str, text: str) -> int | bool:
        if name == "lists":
            raise BadRecipe("codebook: lists are given by a fit, not by a recipe")
        if name == "modelled" and text in ("True", "False"):
            return text == "True"
        number: int = super().option(name, text)
        return number

    def options(self) -> dict[str, str]:
        return {name: text for name, text in super().options().items() if name != "lists"}

    def prepare(self, spec: TensorSpec, x: Array, at: int) -> Shared | None:
        """One codebook for all frames of a group, where there are several."""
        book = self.book(x, spec, at) if x.nbytes > LIMITS.frame_bytes else None
        if book is None:
            return None
        data = book.write()
        return Shared(data, book) if len(data) <= LIMITS.frame_bytes else None

    def book(self, x: Array, spec: TensorSpec, at: int) -> Book | None:
        vectors = _vectors(x, self.dimension, at)
        return Book.of_vectors(vectors, self._lists_of(len(vectors), spec, at))

    def _lists_of(self, n_vectors: int, spec: TensorSpec, at: int) -> Array | int:
        """The list of each vector: that of the row in which it begins; 0 where there is one for all."""
        if not self.lists:
            return 0
        rows = (at + -at % self.dimension + self.dimension * np.arange(n_vectors)) // spec.row_words
        return np.frombuffer(self.lists, np.uint8)[rows].astype(np.int64)

    def encode(self, x: Array, context: FrameContext) -> Encoded | None:
        at_root, columns = x.size == context.n > 0, context.spec.row_words
        at = context.at if at_root else 0
        if self.lists and (not at_root or len(self.lists) * columns != context.spec.n_words):
            return None
        shared = self._shared_places(x, context, at) if at_root else None
        book = shared or self.book(x, context.spec, at)
        if book is None or book.indices is None:
            return None
        rows = self.lists[at // columns : (at + x.size - 1) // columns + 1] if self.lists else b""
        header = Header(self.dimension, min(-at % self.dimension, x.size), () if shared else book.sizes, len(rows), 1 if max(book.sizes) <= 256 else 2)
        outer_at = header.lead + book.indices.size * self.dimension
        outer = np.concatenate((x[: header.lead], x[outer_at:])).tobytes()
        parts = book.entries[:0] if shared else book.entries, np.frombuffer(bytearray(rows), np.uint8)
        coded = self._coded(book, context) if self.modelled and at_root and x.itemsize in (2, 4) and max(book.sizes) <= MOST_INDEX else None
        if coded is None:
            return Encoded(header.write(), (*parts, book.indices.astype(f"<u{header.index_width}")), outer)
        first_mean, data = coded
        return Encoded(replace(header, index_width=1, n_coded=data.size, first_mean=first_mean).write(), parts, data.tobytes() + outer)

    def _shared_places(self, x: Array, context: FrameContext, at: int) -> Book | None:
        """The group's codebook with the indices of the vectors of a frame; None where it is not these words'."""
        book = context.shared.parsed if context.shared is not None else None
        if not isinstance(book, Book) or book.indices is None or book.dimension != self.dimension or book.entries.dtype != x.dtype:
            return None
        vectors, group_at = _vectors(x, self.dimension, at), at - context.first
        first = (at + -at % self.dimension - (group_at + -group_at % self.dimension)) // self.dimension
        indices = book.indices[first : first + len(vectors)]
        if len(indices) < len(vectors) or not np.array_equal(book.vectors(indices, self._lists_of(len(vectors), context.spec, at)), vectors):
            return None
        return replace(book, indices=indices)

    def _coded(self, book: Book, context: FrameContext) -> tuple[int, Array] | None:
        """First mean and bytes of the context-coded indices of single words; None where these are too many."""
        assert book.indices is not None
        places = (book.indices - _middles(book)[self._lists_of(book.indices.size, context.spec, context.at)]).astype(np.int32)
        first_mean, mean = first_mean_of(places)
        data = context_coder.pack(places, _geometry(context), mean, _SCALAR, 0).data
        return None if data is None else (first_mean, data)

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        read = Header.read(header, n)
        n_vectors = read.n_vectors(n)
        n_outer = (n - n_vectors * read.dimension) * width
        parts = (PartShape(width, sum(read.sizes) * read.dimension), PartShape(1, read.rows))
        if read.n_coded is None:
            return Layout((*parts, PartShape(read.index_width, n_vectors)), n_outer)
        return Layout(parts, read.n_coded + n_outer)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        read = Header.read(header, out.size)
        if context is not None and context.n != out.size:
            context = None  # of a node that is not the frame's root
        book = Book(read.dimension, read.sizes, parts[0]) if read.sizes else Book.of(context.shared if context else None, out.itemsize)
        if book.dimension != read.dimension:
            raise CorruptFile("codebook: vectors of the shared part are of another dimension")
        n_vectors = read.n_vectors(out.size)
        vectors = out[read.lead : read.lead + n_vectors * read.dimension]
        outer = np.frombuffer(bytearray(payload[read.n_coded or 0 :]), out.dtype)
        out[: read.lead], out[read.lead + vectors.size :] = outer[: read.lead], outer[read.lead :]
        if not read.rows and read.n_coded is None and read.index_width == 1 and read.dimension == 1:
            if len(book.sizes) > 1 or kernels.look_up(parts[2], book.entries, vectors):
                raise CorruptFile("codebook: an index is past the codebook's end")
            return
        lists = _lists(read, parts[1], len(book.sizes), n_vectors, context)
        indices = _indices(read, payload, parts, book, lists, context)
        if indices.size and (int(indices.min()) < 0 or (indices >= np.array(book.sizes)[lists]).any()):
            raise CorruptFile("codebook: an index is past the codebook's end")
        book.vectors(indices, lists, vectors.reshape(-1, read.dimension))


def _vectors(x: Array, dimension: int, at: int) -> Array:
    """The whole vectors (rows) of words from word `at` of their tensor on."""
    lead = min(-at % dimension, x.size)
    n_vectors = (x.size - lead) // dimension
    return x[lead : lead + n_vectors * dimension].reshape(-1, dimension)


def _lists(read: Header, groups: Array, n_lists: int, n_vectors: int, context: FrameContext | None) -> Array | int:
    """The list that each vector is in, of an untrusted part with a list for each row; 0 where there is only one. Raises CorruptFile."""
    if not read.rows:
        if n_lists > 1:
            raise CorruptFile("codebook: there are several lists, and nothing tells which is meant")
        return 0
    if context is None or not context.n:
        raise CorruptFile("codebook: stands where a word's row is not known")
    columns, at = max(context.spec.row_words, 1), context.at
    if read.rows != (at + context.n - 1) // columns - at // columns + 1 or int(groups.max()) >= n_lists:
        raise CorruptFile("codebook: rows have no list, or one that is not there")
    return groups[(at + read.lead + read.dimension * np.arange(n_vectors)) // columns - at // columns].astype(np.int64)


def _indices(read: Header, payload: Array, parts: Sequence[Array], book: Book, lists: Array | int, context: FrameContext | None) -> Array:
    """The untrusted indices (i8), from their part or out of the context coder. Raises CorruptFile."""
    if read.n_coded is None:
        return parts[2].astype(np.int64)
    if context is None or book.entries.itemsize not in (2, 4):
        raise CorruptFile("codebook: stands where a word's row and column are not known")
    indices = np.empty(context.n, np.int32)
    if not context_coder.unpack(payload[: read.n_coded], _geometry(context), _mean(read.first_mean), _SCALAR, 0, indices):
        raise CorruptFile("codebook: bytes are left over behind the last index")
    places: Array = indices + _middles(book)[lists]
    return places


def _middles(book: Book) -> Array:
    """For each list, the place of its first entry of the least magnitude: index 0 of the context coder."""
    magnitudes = book.entries & book.entries.dtype.type((1 << (8 * book.entries.itemsize - 1)) - 1)
    ends = np.cumsum(book.sizes)
    return np.array([int(magnitudes[end - size : end].argmin()) for size, end in zip(book.sizes, ends, strict=True)])


def _geometry(context: FrameContext) -> Geometry:
    return Geometry.of(context.spec.shape, context.at, context.n)


def _mean(number: int) -> int:
    """The first mean magnitude, in 1/256 steps, that a header's byte stands for, as in grid."""
    return int(EXP2[32 * number & 255]) << (32 * number >> 8) >> 16
