"""zstd (2): one Zstandard frame (RFC 8878)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from threading import local
from typing import ClassVar

import numpy as np
import xxhash
import zstandard

from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.limits import LIMITS
from modelcodec.stage import Encoded, FrameContext, Layout, Stage
from modelcodec.types import Array
from modelcodec.wire import Reader, varint

CHECK_BYTES = 4
CHECK_PAYLOAD = True
"""Tests switch this off together with `frame.CHECK_DIGESTS`; nothing else may."""
_of_thread = local()


@lru_cache(None)
def _parameters(level: int) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(level, window_log=20, write_content_size=True)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """The thread's compressor. One at a time: at a high level it holds 20 MB."""
    kept = getattr(_of_thread, "compressor", None)
    if kept is None or kept[0] != level:
        _of_thread.compressor = kept = level, zstandard.ZstdCompressor(compression_params=_parameters(level))
    compressor: zstandard.ZstdCompressor = kept[1]
    return compressor


def _check_of(payload: bytes | memoryview) -> bytes:
    """A zstd frame has bits that change nothing; the digest of what it decodes to would not notice them."""
    return (xxhash.xxh3_64_intdigest(payload) & 0xFFFFFFFF).to_bytes(CHECK_BYTES, "little")


@dataclass(frozen=True)
class Zstd(Stage):
    """Bytes by Zstandard: for everything whose structure nobody knows. exact · no parts · source: RFC 8878."""

    level: int = 3

    id: ClassVar[int] = 2
    name: ClassVar[str] = "zstd"
    since: ClassVar[tuple[int, int]] = (0, 1)

    def __post_init__(self) -> None:
        if not 1 <= self.level <= zstandard.MAX_COMPRESSION_LEVEL:
            raise BadRecipe(f"zstd: level = {self.level}, 1 to {zstandard.MAX_COMPRESSION_LEVEL} are possible")

    def encode(self, x: Array, context: FrameContext) -> Encoded:
        # One-shot compression of a thread's own compressor: the result depends on input, level and zstd's version alone.
        payload = _compressor(self.level).compress(x.view(np.uint8).data)
        return Encoded(varint(len(payload)) + _check_of(payload), payload=payload)

    @classmethod
    def layout(cls, header: bytes, width: int, n: int) -> Layout:
        reader = Reader(header, "zstd")
        n_payload = reader.varint()
        reader.take(CHECK_BYTES)
        reader.end()
        return Layout((), n_payload)

    @classmethod
    def bytes_of(cls, header: bytes, payload: Array, n_bytes: int) -> Array:
        # Untrusted: what the frame claims as its content size is compared before zstd allocates that much, and zstd holds itself to it.
        source = payload.data
        if CHECK_PAYLOAD and header[-CHECK_BYTES:] != _check_of(source):
            raise CorruptFile("zstd: the payload's check does not match")
        try:
            claims = zstandard.get_frame_parameters(source)
            if claims.content_size != n_bytes or claims.window_size > LIMITS.zstd_window:
                raise CorruptFile(f"zstd: the frame claims {claims.content_size} bytes and a window of {claims.window_size}, {n_bytes} bytes were expected")
            if "decompressor" not in _of_thread.__dict__:
                _of_thread.decompressor = zstandard.ZstdDecompressor(max_window_size=LIMITS.zstd_window)
            data = _of_thread.decompressor.decompress(source, max_output_size=n_bytes, read_across_frames=False, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CorruptFile(f"zstd: {error}") from None
        if len(data) != n_bytes:
            raise CorruptFile(f"zstd: holds {len(data)} bytes, {n_bytes} were expected")
        return np.frombuffer(data, np.uint8)

    @classmethod
    def decode(cls, header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
        out.view(np.uint8)[:] = cls.bytes_of(header, payload, out.nbytes)
