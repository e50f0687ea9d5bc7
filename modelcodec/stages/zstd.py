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


_SHORT_BYTES = 1 << 15
_SIZED = range(13, 19)
"""Levels whose tables for long input take longer to clear than short bytes take to search: for these zstd is told how many there are."""
_REMEMBERED = 13
"""From this level on the last short bytes that were asked for are remembered."""


@lru_cache(None)
def _parameters(level: int, size: int) -> zstandard.ZstdCompressionParameters:
    """size: 0 for any."""
    options = {"source_size": size} if size else {"window_log": 20}
    return zstandard.ZstdCompressionParameters.from_level(level, write_content_size=True, **options)


def _compressor(level: int, n: int) -> zstandard.ZstdCompressor:
    """The thread's compressor for n bytes: one for the lowest level, with which planners look at samples, and one for any other, since it may hold 20 MB."""
    key = level, 1 << max(n - 1, 0).bit_length() if level in _SIZED and n <= _SHORT_BYTES else 0
    place = "quickest" if level == 1 else "stronger"
    kept = getattr(_of_thread, place, None)
    if kept is None or kept[0] != key:
        kept = key, zstandard.ZstdCompressor(compression_params=_parameters(*key))
        setattr(_of_thread, place, kept)
    compressor: zstandard.ZstdCompressor = kept[1]
    return compressor


def _compressed(level: int, data: memoryview) -> bytes:
    """One-shot compression of a thread's own compressor: the result depends on input, level and zstd's version alone.

    Who plans tries at a strong level what is then done.
    """
    if level < _REMEMBERED or len(data) > _SHORT_BYTES:
        return _compressor(level, len(data)).compress(data)
    asked = level, bytes(data)
    if getattr(_of_thread, "asked", None) != asked:
        _of_thread.answer = _compressor(level, len(data)).compress(data)
        _of_thread.asked = asked
    answer: bytes = _of_thread.answer
    return answer


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
        payload = _compressed(self.level, x.view(np.uint8).data)
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
