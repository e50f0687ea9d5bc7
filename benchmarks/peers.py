"""The codecs that modelcodec is measured against, each used as its own documentation shows.

zstd       Level 3, one frame a tensor.
zipnn      0.5.4, one call a tensor with the tensor's dtype. It rotates the caller's bytes in place, so every pass gets its own copies, made outside the clock.
openzl-*   0.3.0: exponents split from sign and fraction, the exponents through its Entropy (Huffman) or its FSE graph, sign and fraction stored. fp16 goes
           through the bf16 split, as in OpenZL's own profile for torch files: its fp16 split stores 16 bits for the 11 of sign and fraction, and with these
           packed to 11 bits the result is still larger.

What a peer has no mode for (integers, 64-bit floats) goes through zstd 3. A tensor that does not shrink is stored. Files of a peer are counted without names,
shapes, checksums or an index: the sum of its outputs, and the source's other bytes through zstd 3.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import zipnn
import zstandard
from numpy.typing import NDArray
from openzl import ext as openzl

ZSTD_LEVEL = 3
WORDS = {"BF16": np.dtype("<u2"), "F16": np.dtype("<u2"), "F32": np.dtype("<u4")}
ZIPNN_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor's dtype (the container's name for it) and its bytes (u1)."""

    dtype: str
    data: NDArray[np.uint8]


Coded = bytes | bytearray
Encoder = Callable[[Any], Coded]
Decoder = Callable[[Coded], Any]


class Peer(Protocol):
    """One codec. `encoder` and `decoder` give functions for one thread to use; None: no mode for this dtype. `spread`: the codec has threads of its own."""

    @property
    def name(self) -> str: ...
    @property
    def spread(self) -> bool: ...
    def encoder(self, dtype: str, threads: int) -> Encoder | None: ...
    def decoder(self, dtype: str, threads: int) -> Decoder | None: ...
    def private(self, data: NDArray[np.uint8]) -> Any:
        """The bytes as the encoder wants them, and its own to spoil."""


@dataclass(frozen=True)
class Zstd:
    name: str = f"zstd -{ZSTD_LEVEL}"
    spread: bool = False

    def encoder(self, dtype: str, threads: int) -> Encoder:
        return zstandard.ZstdCompressor(ZSTD_LEVEL).compress

    def decoder(self, dtype: str, threads: int) -> Decoder:
        return zstandard.ZstdDecompressor().decompress

    def private(self, data: NDArray[np.uint8]) -> Any:
        return data


@dataclass(frozen=True)
class ZipNN:
    name: str = "zipnn"
    spread: bool = True

    def _codec(self, dtype: str, threads: int) -> Any:
        return zipnn.ZipNN(input_format="byte", bytearray_dtype=ZIPNN_DTYPES[dtype], threads=threads)

    def encoder(self, dtype: str, threads: int) -> Encoder | None:
        return self._codec(dtype, threads).compress if dtype in ZIPNN_DTYPES else None

    def decoder(self, dtype: str, threads: int) -> Decoder | None:
        return self._codec(dtype, threads).decompress if dtype in ZIPNN_DTYPES else None

    def private(self, data: NDArray[np.uint8]) -> Any:
        return bytearray(data)


@dataclass(frozen=True)
class OpenZL:
    """`exponents` is the graph that the exponent stream goes through."""

    name: str
    exponents: Callable[[], Any]
    spread: bool = False

    def encoder(self, dtype: str, threads: int) -> Encoder | None:
        if dtype not in WORDS:
            return None
        split = openzl.nodes.Float32Deconstruct() if dtype == "F32" else openzl.nodes.BFloat16Deconstruct()
        compressor = openzl.Compressor()
        compressor.select_starting_graph(split(compressor, openzl.graphs.Store(), self.exponents()))
        context = openzl.CCtx()
        context.ref_compressor(compressor)
        context.set_parameter(openzl.CParam.FormatVersion, openzl.MAX_FORMAT_VERSION)
        context.set_parameter(openzl.CParam.StickyParameters, 1)

        def encode(words: Any) -> bytes:
            coded: bytes = context.compress([openzl.Input(openzl.Type.Numeric, words.view(WORDS[dtype]))])
            return coded

        return encode

    def decoder(self, dtype: str, threads: int) -> Decoder | None:
        if dtype not in WORDS:
            return None
        context = openzl.DCtx()
        return lambda code: context.decompress(code)[0].content.as_nparray()

    def private(self, data: NDArray[np.uint8]) -> Any:
        return data


PEERS: tuple[Peer, ...] = (Zstd(), ZipNN(), OpenZL("openzl-entropy", openzl.graphs.Entropy), OpenZL("openzl-fse", openzl.graphs.Fse))


@dataclass
class PeerRun:
    """A peer at work on a file's pieces, as the suites drive every codec: `fresh` outside the clock, `compress` and `decompress` on it.

    On one thread the pieces go one after the other; on more, the peer uses its own threads or, if it has none, pieces go through a pool.
    """

    peer: Peer
    pieces: Sequence[Piece]
    threads: int
    _local: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self.name = self.peer.name
        self.own_threads = self.threads if self.peer.spread else 1
        self.pool = ThreadPoolExecutor(self.threads) if self.threads > 1 and not self.peer.spread else None

    def _cached(self, kind: str, dtype: str) -> Any:
        """The encoder or decoder of this thread, its fallback where the peer has no mode for the dtype."""
        made = self._local.__dict__.setdefault("made", {})
        if (kind, dtype) not in made:
            made[kind, dtype] = getattr(self.peer, kind)(dtype, self.own_threads) or getattr(Zstd(), kind)(dtype, 1)
        return made[kind, dtype]

    def _each(self, work: Callable[[int], Any]) -> list[Any]:
        places = range(len(self.pieces))
        return list(self.pool.map(work, places) if self.pool else map(work, places))

    def fresh(self) -> list[Any]:
        return [self.peer.private(piece.data) if piece.data.size else piece.data for piece in self.pieces]

    def compress(self, inputs: list[Any]) -> list[Coded | NDArray[np.uint8]]:
        def encode(i: int) -> Coded | NDArray[np.uint8]:
            piece = self.pieces[i]
            if not piece.data.size:
                return piece.data
            code = self._cached("encoder", piece.dtype)(inputs[i])
            # The source's own bytes: the peer may have spoilt its input.
            return code if len(code) < piece.data.size else piece.data.copy()

        return self._each(encode)

    def decompress(self, coded: list[Coded | NDArray[np.uint8]]) -> list[Any]:
        def decode(i: int) -> Any:
            code = coded[i]
            return code.copy() if isinstance(code, np.ndarray) else self._cached("decoder", self.pieces[i].dtype)(code)

        return self._each(decode)

    def n_bytes(self, coded: list[Coded | NDArray[np.uint8]]) -> int:
        return sum(len(code) for code in coded)

    def check(self, restored: list[Any]) -> None:
        """Raises ValueError unless every piece came back."""
        for i, (piece, back) in enumerate(zip(self.pieces, restored, strict=True)):
            if not np.array_equal(np.frombuffer(back, np.uint8), piece.data):
                raise ValueError(f"{self.name}: piece {i} ({piece.dtype}, {piece.data.size} bytes) came back changed")

    def close(self) -> None:
        if self.pool:
            self.pool.shutdown()


def other_bytes(data: bytes) -> int:
    """What a file's bytes outside its tensors cost a peer."""
    return min(len(data), len(zstandard.ZstdCompressor(ZSTD_LEVEL).compress(data)))
