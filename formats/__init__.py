"""Files that hold tensors. A reader only tells which byte ranges are tensors; every other byte is the skeleton, kept verbatim, so no format needs a writer.

A new format is one module with a class that satisfies `Format`, and one line in `FORMATS`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from json import dumps
from json.encoder import encode_basestring_ascii
from math import prod
from pathlib import Path
from typing import ClassVar, Protocol, cast

from modelcodec.errors import CorruptFile, LimitExceeded, UnsupportedFile
from modelcodec.limits import LIMITS
from modelcodec.types import Checkpoint, Extent

FORMATS: dict[str, str] = {
    "safetensors": "safetensors:Safetensors",
    "torch_zip": "torch_zip:TorchZip",
    "torch_legacy": "torch_legacy:TorchLegacy",
    "gguf": "gguf:Gguf",
    "npy": "npz:Npy",
    "npz": "npz:Npz",
    "onnx": "onnx:Onnx",
    "onnx_data": "onnx:OnnxData",
    "bytes": "any_bytes:AnyBytes",
}
"""Name -> "module:Class", in the order in which they are tried. Strings, so that looking one up imports only that one."""

FORMAT_IDS: dict[str, int] = {
    "bytes": 0,
    "safetensors": 1,
    "torch_zip": 2,
    "torch_legacy": 3,
    "gguf": 4,
    "npy": 5,
    "npz": 6,
    "onnx": 7,
    "onnx_data": 8,
}
"""Name -> id in a container's directory (docs/format.md, section 7). Never changed, never reused."""

OWN_PREFIX = "__modelcodec__."
"""Entries with this prefix are the container's own."""
MARKER = "modelcodec"
"""Key in a container's `__metadata__`."""

_DIMENSION_END = 1 << 63


class Format(Protocol):
    """A kind of file. The source is a read-only memory map, maybe of many gigabytes: sliced where needed, never copied whole."""

    name: ClassVar[str]

    def sniff(self, source: memoryview, path: Path | None) -> bool:
        """Whether `read` is worth trying: a look at a few bytes, or at the path."""
        ...

    def read(self, source: memoryview, path: Path | None) -> Checkpoint:
        """Where the tensors lie. Raises a ModelCodecError for a file that is not of this format, is damaged, or asks for too much."""
        ...


@cache
def format_of(name: str) -> Format:
    """The reader with this name. Raises UnsupportedFile for a name that this version does not know."""
    place = FORMATS.get(name)
    if place is None:
        raise UnsupportedFile(f"source format {name!r} is not known to this version of modelcodec; update modelcodec")
    module, class_name = place.split(":")
    return cast(Format, getattr(import_module(f"modelcodec.formats.{module}"), class_name)())


def identify(source: memoryview, path: Path | None = None) -> Checkpoint:
    """Which tensors a file holds, by the first format that understands it; a file that none does is format `bytes`.

    Raises nothing because of what the file contains. `path` helps where a file is described by its neighbour (ONNX external data).
    """
    for name in FORMATS:
        reader = format_of(name)
        try:
            if reader.sniff(source, path):
                return checked(reader.read(source, path), len(source))
        except Exception:
            # Readers raise ModelCodecError (a test holds that). Whatever else a hostile file may provoke, down to MemoryError, must not keep it from being
            # compressed as bytes.
            continue
    raise AssertionError("the format `bytes` reads every file")


def checked(found: Checkpoint, n_bytes: int) -> Checkpoint:
    """Prove what the container relies on: extents sorted, apart and inside the file; names unique and free of our own; a header and a skeleton within Limits.

    Raises CorruptFile, UnsupportedFile or LimitExceeded.
    """
    position, skeleton, names, header = 0, 0, set[str](), len(dumps(dict(found.metadata)))
    for extent in found.extents:
        end = extent.end
        if extent.offset < position or end > n_bytes:
            raise CorruptFile(f"tensor {extent.spec.name!r} at byte {extent.offset} overlaps another or leaves the file; the file is damaged, fetch it again")
        skeleton += extent.offset - position
        position = end
        header += _header_cost(extent)
        names.add(extent.spec.name)
    skeleton += n_bytes - position
    if len(names) != len(found.extents):
        raise CorruptFile("two tensors have the same name; the file is damaged, fetch it again")
    if skeleton > LIMITS.skeleton_bytes and found.format != "bytes":
        raise LimitExceeded(f"{skeleton} bytes are no tensors, at most {LIMITS.skeleton_bytes} are kept; raise the limit skeleton_bytes")
    if header > LIMITS.header_bytes:
        raise LimitExceeded(f"the container's header would need {header} bytes, at most {LIMITS.header_bytes} are possible; split the file")
    if len(found.views) > LIMITS.views or len(found.extents) > LIMITS.entries:
        raise LimitExceeded(f"{len(found.extents)} entries with {len(found.views)} views; split the file")
    return found


def _header_cost(extent: Extent) -> int:
    """Upper bound of an entry's bytes in the container's JSON header, after its name and shape were checked."""
    name, shape = extent.spec.name, extent.spec.shape
    if name.startswith(OWN_PREFIX) or name == "__metadata__":
        raise UnsupportedFile(f"tensor name {name!r} is reserved; the file is kept as bytes")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UnsupportedFile(f"tensor name {name!a} is no Unicode text; the file is kept as bytes") from error
    if len(shape) > LIMITS.dimensions or min(shape, default=0) < 0 or prod([n or 1 for n in shape]) >= _DIMENSION_END:
        raise LimitExceeded(f"tensor {name!r}: a shape of {len(shape)} dimensions, or one of them, is beyond the format; the file is kept as bytes")
    return len(encode_basestring_ascii(name)) + 20 * len(shape) + 100
