"""GGUF files, versions 2 and 3, little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from modelcodec.errors import CorruptFile, LimitExceeded, TruncatedFile, UnsupportedFile
from modelcodec.limits import LIMITS
from modelcodec.types import DTYPE_BY_ID, DTYPE_BY_NAME, U8, Checkpoint, DType, Extent, TensorSpec
from modelcodec.wire import Reader

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_ALIGNMENT_KEY = b"general.alignment"
_ALIGNMENT_MOST = 1 << 20
_ARRAY_DEPTH = 4

_UINT32, _STRING, _ARRAY = 4, 8, 9
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, _UINT32: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

# ggml's plain types; its block types have the id 64 + type (docs/format.md, section 6).
_PLAIN = {kind: DTYPE_BY_NAME[name] for kind, name in {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}.items()}


@dataclass(frozen=True, slots=True)
class _Info:
    """A tensor's untrusted description. `shape` is row-major: ggml's first dimension comes last. `dtype` is None for a type that is not known."""

    name: str
    dtype: DType | None
    shape: tuple[int, ...]
    offset: int


class Gguf:
    """A tensor of an unknown ggml type is kept as the bytes up to the next tensor."""

    name: ClassVar[str] = "gguf"

    def sniff(self, source: memoryview, path: Path | None) -> bool:
        return source[:4] == _MAGIC

    def read(self, source: memoryview, path: Path | None) -> Checkpoint:
        # The header holds every length that is read below, so the cap on its bytes bounds the time as well.
        header = Reader(source[: LIMITS.header_bytes], "GGUF header", short=TruncatedFile)
        if header.take(4) != _MAGIC or header.uint(4) not in _VERSIONS:
            raise UnsupportedFile("GGUF file: no little-endian version 2 or 3; the file is kept as bytes")
        n_tensors, n_values = header.uint(8), header.uint(8)
        alignment = _ALIGNMENT
        for _ in range(n_values):
            key, kind = bytes(_string(header)), header.uint(4)
            if key == _ALIGNMENT_KEY and kind == _UINT32:
                alignment = header.uint(4)
            else:
                _skip_value(header, kind)
        if alignment > _ALIGNMENT_MOST or alignment.bit_count() != 1:
            raise CorruptFile(f"GGUF header: alignment {alignment} is no power of two up to {_ALIGNMENT_MOST}; the file is damaged, fetch it again")
        infos = [_info(header) for _ in range(n_tensors)]
        data = -(-header.position // alignment) * alignment
        infos.sort(key=lambda info: info.offset)
        ends = [info.offset for info in infos[1:]] + [len(source) - data] * bool(infos)
        return Checkpoint(self.name, tuple(_extent(info, end, data) for info, end in zip(infos, ends, strict=True)))


def _string(header: Reader) -> memoryview:
    return header.take(header.uint(8))


def _skip_value(header: Reader, kind: int, depth: int = 0) -> None:
    """Step over one key's value. Every element takes bytes of the header, so an untrusted length costs no more than the header is long."""
    if kind in _SCALAR_BYTES:
        header.take(_SCALAR_BYTES[kind])
    elif kind == _STRING:
        _string(header)
    elif kind == _ARRAY and depth < _ARRAY_DEPTH:
        inner, length = header.uint(4), header.uint(8)
        if inner in _SCALAR_BYTES:
            header.take(length * _SCALAR_BYTES[inner])
        elif inner == _STRING:
            for _ in range(length):
                _string(header)
        else:
            for _ in range(length):
                _skip_value(header, inner, depth + 1)
    else:
        raise UnsupportedFile(f"GGUF header, byte {header.position}: value type {kind} at depth {depth} is not known; the file is kept as bytes")


def _info(header: Reader) -> _Info:
    try:
        name = str(_string(header), "utf-8")
    except UnicodeDecodeError as error:
        raise CorruptFile(f"GGUF header, byte {header.position}: a tensor's name is no UTF-8; the file is damaged, fetch it again") from error
    n_dimensions = header.uint(4)
    if n_dimensions > LIMITS.dimensions:
        raise LimitExceeded(f"GGUF tensor {name!r}: {n_dimensions} dimensions, at most {LIMITS.dimensions} are allowed; the file is damaged or hostile")
    shape = tuple(header.uint(8) for _ in range(n_dimensions))[::-1]
    kind = header.uint(4)
    return _Info(name, _PLAIN.get(kind) or DTYPE_BY_ID.get(64 + kind), shape, header.uint(8))


def _extent(info: _Info, end: int, data: int) -> Extent:
    """The tensor's place; `end` is where the next one starts, both counted from the start of the data."""
    if info.dtype is None:
        return Extent(TensorSpec(info.name, U8, (max(end - info.offset, 0),)), data + info.offset)
    if info.dtype.elements > 1 and (not info.shape or info.shape[-1] % info.dtype.elements):
        raise CorruptFile(f"GGUF tensor {info.name!r}: rows are no whole number of {info.dtype.name} blocks; the file is damaged, fetch it again")
    return Extent(TensorSpec(info.name, info.dtype, info.shape), data + info.offset)
