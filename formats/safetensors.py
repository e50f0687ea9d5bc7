"""Safetensors files: a JSON header that says where each tensor lies (https://github.com/huggingface/safetensors#format)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from modelcodec.errors import CorruptFile, LimitExceeded, TruncatedFile, UnsupportedFile
from modelcodec.formats import MARKER, OWN_PREFIX
from modelcodec.limits import LIMITS
from modelcodec.types import DTYPE_BY_NAME, Checkpoint, Extent, TensorSpec

_LENGTH_BYTES = 8
_WHITESPACE = b" \t\r\n"
_SIZE_END = 1 << 63


class Safetensors:
    """Tensors in any order, header with any padding, unknown fields and holes are all read: whatever the header leaves out is skeleton."""

    name: ClassVar[str] = "safetensors"

    def sniff(self, source: memoryview, path: Path | None) -> bool:
        if len(source) < _LENGTH_BYTES + 2:
            return False
        n_header = int.from_bytes(source[:_LENGTH_BYTES], "little")
        return n_header <= min(LIMITS.header_bytes, len(source) - _LENGTH_BYTES) and bytes(source[_LENGTH_BYTES : _LENGTH_BYTES + 1]) in b"{" + _WHITESPACE

    def read(self, source: memoryview, path: Path | None) -> Checkpoint:
        header, data = _read_header(source)
        if _is_marked(header):
            raise UnsupportedFile("a modelcodec container; as a source it is kept as bytes")
        metadata = header.pop("__metadata__", None) or {}
        if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
            raise CorruptFile("safetensors header: __metadata__ holds more than strings; the file is damaged, fetch it again")
        for text in (*metadata, *metadata.values()):
            _check_text(text)
        extents = sorted((_extent(name, entry, data, len(source)) for name, entry in header.items()), key=lambda extent: (extent.offset, extent.end))
        return Checkpoint(self.name, tuple(extents), metadata=metadata)


def _read_header(source: memoryview) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset of the data. Keys that occur twice have their last value, as in the safetensors library.

    The header is untrusted: only its being a JSON object is checked here. Raises CorruptFile, TruncatedFile or LimitExceeded.
    """
    if len(source) < _LENGTH_BYTES:
        raise TruncatedFile(f"safetensors file, byte {len(source)}: ends inside the header's length; fetch the rest of the file")
    n_header = int.from_bytes(source[:_LENGTH_BYTES], "little")
    if n_header > LIMITS.header_bytes:
        raise LimitExceeded(f"safetensors header of {n_header} bytes, at most {LIMITS.header_bytes} are allowed; the file is damaged or hostile")
    data = _LENGTH_BYTES + n_header
    if data > len(source):
        raise TruncatedFile(f"safetensors file, byte {len(source)}: the header ends at byte {data}; fetch the rest of the file")
    try:
        header = json.loads(bytes(source[_LENGTH_BYTES:data]).decode())
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"safetensors header is no JSON ({error}); the file is damaged, fetch it again") from error
    if type(header) is not dict:
        raise CorruptFile("safetensors header is no JSON object; the file is damaged, fetch it again")
    return header, data


def _is_marked(header: dict[str, Any]) -> bool:
    metadata = header.get("__metadata__")
    return (type(metadata) is dict and MARKER in metadata) or any(name.startswith(OWN_PREFIX) for name in header)


def _extent(name: str, entry: object, data: int, n_source: int) -> Extent:
    """The place of one tensor, its untrusted entry checked against dtype, shape and the file's size."""
    _check_text(name)
    if type(entry) is not dict:
        raise CorruptFile(f"safetensors header, tensor {name!r}: no JSON object; the file is damaged, fetch it again")
    dtype = entry.get("dtype")
    known = DTYPE_BY_NAME.get(dtype) if type(dtype) is str else None
    if known is None or not known.in_safetensors:
        raise UnsupportedFile(f"safetensors header, tensor {name!r}: dtype {str(dtype)[:40]!r} is not known; update modelcodec")
    shape, offsets = _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or len(shape) > LIMITS.dimensions:
        raise CorruptFile(f"safetensors header, tensor {name!r}: shape or data_offsets are no sizes; the file is damaged, fetch it again")
    spec = TensorSpec(name, known, shape)
    begin, end = offsets
    if not begin <= end <= n_source - data or end - begin != spec.n_bytes:
        raise CorruptFile(f"safetensors header, tensor {name!r}: data_offsets {begin} to {end} do not fit its shape or the file; fetch the file again")
    return Extent(spec, data + begin)


def _sizes(value: object) -> tuple[int, ...] | None:
    """A JSON list of sizes; None for anything else, true and 1.0 included."""
    if type(value) is not list:
        return None
    for n in value:
        if type(n) is not int or not 0 <= n < _SIZE_END:
            return None
    return tuple(value)


def _check_text(text: str) -> None:
    """JSON may spell half a surrogate pair, which no file of ours could carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnsupportedFile(f"safetensors header: {text!a} is no Unicode text; the file is kept as bytes") from error
