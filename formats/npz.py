"""NumPy's files: .npy, one array, and .npz, a zip of them (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import ClassVar

from modelcodec.errors import CorruptFile, UnsupportedFile
from modelcodec.formats.zip_members import LOCAL_MAGIC, members
from modelcodec.limits import LIMITS
from modelcodec.types import DTYPE_BY_NAME, U8, Checkpoint, DType, Extent, TensorSpec, View
from modelcodec.wire import Reader

_MAGIC = b"\x93NUMPY"
_HEADER_MOST = 1 << 20
_SUFFIX = ".npy"

# What numpy writes, keys in this order; Python 2 wrote sizes as `3L`. A structured dtype is a list.
_HEADER = re.compile(
    r"\{'descr': (?:'(?P<descr>[^'\\]*)'|(?P<structured>\[.*\])), 'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[0-9L, ]*)\),? ?\} *\n?",
    re.DOTALL,
)
_OBJECTS = re.compile(r"'\|?O'")
_SIZE = re.compile(r"[0-9]{1,19}")
_DESCR = re.compile(r"(?P<order>[<>|=]?)(?P<kind>[a-zA-Z])(?P<n_bytes>[0-9]{1,9})")
_DTYPES = {
    "b1": "BOOL",
    **{f"i{n // 8}": f"I{n}" for n in (8, 16, 32, 64)},
    **{f"u{n // 8}": f"U{n}" for n in (8, 16, 32, 64)},
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
    "c8": "C64",
    "c16": "C128",
}


@dataclass(frozen=True, slots=True)
class _Array:
    """An array's place. `shape` is the one in memory order; `fortran` tells that numpy's is its reverse."""

    extent: Extent
    fortran: bool


class Npy:
    name: ClassVar[str] = "npy"

    def sniff(self, source: memoryview, path: Path | None) -> bool:
        return source[: len(_MAGIC)] == _MAGIC

    def read(self, source: memoryview, path: Path | None) -> Checkpoint:
        return _checkpoint(self.name, [_array("array", source, 0, len(source))])


class Npz:
    """Deflated members and arrays of Python objects stay in the skeleton."""

    name: ClassVar[str] = "npz"

    def sniff(self, source: memoryview, path: Path | None) -> bool:
        return source[:4] == LOCAL_MAGIC

    def read(self, source: memoryview, path: Path | None) -> Checkpoint:
        arrays = []
        for member in members(source).values():
            if member.stored and member.name.endswith(_SUFFIX):
                try:
                    arrays.append(_array(member.name.removesuffix(_SUFFIX), source, member.offset, member.offset + member.n_bytes))
                except UnsupportedFile:
                    continue
        if not arrays:
            raise UnsupportedFile("zip archive without stored numpy arrays; it is kept as bytes")
        return _checkpoint(self.name, sorted(arrays, key=lambda array: (array.extent.offset, array.extent.end)))


def _checkpoint(name: str, arrays: list[_Array]) -> Checkpoint:
    """Views tell numpy's shapes, where any array stands in Fortran order; else the extents are the arrays themselves."""
    extents = tuple(array.extent for array in arrays)
    if not any(array.fortran for array in arrays):
        return Checkpoint(name, extents)
    views = []
    for index, array in enumerate(arrays):
        spec = array.extent.spec
        strides = tuple(prod(spec.shape[i + 1 :]) for i in range(len(spec.shape)))
        if array.fortran:
            spec, strides = TensorSpec(spec.name, spec.dtype, spec.shape[::-1]), strides[::-1]
        views.append(View(spec, index, strides, 0))
    return Checkpoint(name, extents, tuple(views))


def _array(name: str, source: memoryview, start: int, end: int) -> _Array:
    """The array in source[start:end]: its header is untrusted. Raises CorruptFile, or UnsupportedFile for Python objects, which numpy pickles."""
    reader = Reader(source[start:end], f"numpy array {name!r}")
    if reader.take(len(_MAGIC)) != _MAGIC:
        raise CorruptFile(f"numpy array {name!r}: no numpy header at byte {start}; the file is damaged, fetch it again")
    major = reader.uint(2) & 0xFF
    if not 1 <= major <= 3:
        raise UnsupportedFile(f"numpy array {name!r}: header version {major} is not known; update modelcodec")
    n_header = reader.uint(2 if major == 1 else 4)
    if n_header > _HEADER_MOST:
        raise UnsupportedFile(f"numpy array {name!r}: header of {n_header} bytes, at most {_HEADER_MOST} are read; it is kept as bytes")
    match = _HEADER.fullmatch(bytes(reader.take(n_header)).decode("latin-1"))
    if match is None:
        raise UnsupportedFile(f"numpy array {name!r}: the header is not numpy's; it is kept as bytes")
    shape = tuple(int(size) for size in _SIZE.findall(match["shape"]))
    dtype, n_bytes = _dtype(name, match, shape, reader.remaining)
    if n_bytes > reader.remaining or len(shape) > LIMITS.dimensions:
        raise CorruptFile(f"numpy array {name!r}: shape {shape} needs more than the {reader.remaining} bytes left; the file is damaged, fetch it again")
    fortran = match["fortran"] == "True" and len(shape) > 1
    if dtype is None:
        return _Array(Extent(TensorSpec(name, U8, (n_bytes,)), start + reader.position), fortran=False)
    return _Array(Extent(TensorSpec(name, dtype, shape[::-1] if fortran else shape), start + reader.position), fortran)


def _dtype(name: str, match: re.Match[str], shape: tuple[int, ...], n_left: int) -> tuple[DType | None, int]:
    """The dtype, None for words that are kept as bytes (big-endian, text, records), and the array's bytes."""
    if match["structured"] is not None:
        if _OBJECTS.search(match["structured"]):
            raise UnsupportedFile(f"numpy array {name!r}: records may hold Python objects; it is kept as bytes")
        return None, n_left
    descr = _DESCR.match(match["descr"])
    if descr is None or descr["kind"] == "O":
        raise UnsupportedFile(f"numpy array {name!r}: dtype {match['descr']!r} is no array of numbers; it is kept as bytes")
    kind, n_bytes = descr["kind"], int(descr["n_bytes"])
    known = _DTYPES.get(f"{kind}{n_bytes}") if descr.end() == len(match["descr"]) and (descr["order"] != ">" or n_bytes == 1) else None
    item = 4 * n_bytes if kind == "U" else n_bytes
    return (DTYPE_BY_NAME[known] if known else None), prod(shape) * item
