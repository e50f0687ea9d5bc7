"""ONNX models and their external data (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), by a minimal protobuf reader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from modelcodec.errors import CorruptFile, LimitExceeded, ModelCodecError, UnsafeInput, UnsupportedFile
from modelcodec.formats.paths import check_name
from modelcodec.limits import LIMITS
from modelcodec.mapping import mapped
from modelcodec.types import DTYPE_BY_NAME, U8, Checkpoint, DType, Extent, TensorSpec

_FIELDS_MOST = 5_000_000
"""Protobuf fields read of one model, each about a microsecond. Weights are one field each; a graph of 100,000 nodes has about two million."""
_DEPTH_MOST = 16
_SIBLINGS_MOST = 64
_NAME_MOST = 1024
_SMALL = 64
"""Tensors below this many bytes, mostly shape constants, stay in the skeleton: an entry would cost more than it can save."""
_SUFFIX = ".onnx"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MOST = 10

# Field numbers of onnx.proto; each of these fields holds bytes unless it says otherwise.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_FUNCTION_NODE = 7
_NODE_NAME, _NODE_ATTRIBUTE = 3, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 1, 5, 6, 10, 11
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_DOUBLES, _TENSOR_EXTERNAL = 1, 2, 4, 8, 9, 10, 13
_EXTERNAL_KEY, _EXTERNAL_VALUE = 1, 2

_DTYPES: dict[int, DType] = {
    kind: DTYPE_BY_NAME[name]
    for kind, name in {
        1: "F32",
        2: "U8",
        3: "I8",
        4: "U16",
        5: "I16",
        6: "I32",
        7: "I64",
        9: "BOOL",
        10: "F16",
        11: "F64",
        12: "U32",
        13: "U64",
        14: "C64",
        15: "C128",
        16: "BF16",
        17: "F8_E4M3",
        18: "F8_E4M3FNUZ",
        19: "F8_E5M2",
        20: "F8_E5M2FNUZ",
        23: "F4",
        24: "F8_E8M0",
    }.items()
}
_FLOATS, _DOUBLES = {1: "F32", 14: "C64"}, {11: "F64", 15: "C128"}


@dataclass(slots=True)
class _Tensor:
    """A TensorProto. `place`: start and end of its bytes in the model; `dtype`: what they are there, if not `kind`; `external`: where they lie outside."""

    name: str = ""
    kind: int = 0
    shape: list[int] = field(default_factory=list)
    place: tuple[int, int] | None = None
    dtype: DType | None = None
    external: dict[str, str] = field(default_factory=dict)


class Onnx:
    """Initializers and constants, also of subgraphs and functions. Numbers that protobuf keeps as varints stay in the skeleton."""

    name: ClassVar[str] = "onnx"

    def sniff(self, source: memoryview, path: Path | None) -> bool:
        """A model begins with its ir_version: field 1, a small varint."""
        return len(source) > 2 and source[0] == 1 << 3 | _VARINT and 0 < source[1] < 0x80

    def read(self, source: memoryview, path: Path | None) -> Checkpoint:
        extents = [
            Extent(_spec(tensor, tensor.dtype, tensor.place[1] - tensor.place[0]), tensor.place[0])
            for tensor in _Model(source).tensors()
            if tensor.place is not None and tensor.place[1] - tensor.place[0] >= _SMALL
        ]
        if not extents:
            raise UnsupportedFile("ONNX model without weights inside; it is kept as bytes")
        return Checkpoint(self.name, _with_unique_names(extents))


class OnnxData:
    """A file that holds the weights of an ONNX model in the same folder, which names it as external data."""

    name: ClassVar[str] = "onnx_data"

    def sniff(self, source: memoryview, path: Path | None) -> bool:
        return path is not None and len(source) >= _SMALL and path.suffix != _SUFFIX and bool(_siblings(path))

    def read(self, source: memoryview, path: Path | None) -> Checkpoint:
        """By the first model whose description fits. Each model is untrusted, and is only read."""
        for sibling in _siblings(path) if path is not None else ():
            try:
                status = sibling.stat()
                extents = _external_extents(_external_tensors(sibling, status.st_size, status.st_mtime_ns), path.name if path is not None else "", len(source))
            except (ModelCodecError, OSError):
                continue
            if extents:
                return Checkpoint(self.name, _with_unique_names(extents))
        raise UnsupportedFile("no ONNX model in the folder describes this file; it is kept as bytes")


def _siblings(path: Path) -> tuple[Path, ...]:
    try:
        return _models_in(path.parent, path.parent.stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=16)
def _models_in(folder: Path, modified_ns: int) -> tuple[Path, ...]:
    """The models of a folder, listed once for all its files. Only regular files: opening a fifo would wait forever."""
    return tuple(sibling for sibling in sorted(folder.glob(f"*{_SUFFIX}"))[:_SIBLINGS_MOST] if sibling.is_file())


@lru_cache(maxsize=16)
def _external_tensors(model: Path, n_bytes: int, modified_ns: int) -> tuple[_Tensor, ...]:
    """The tensors that a model keeps outside, walked once for all the files beside it."""
    with mapped(model) as source:
        return tuple(tensor for tensor in _Model(source).tensors() if tensor.external)


def _external_extents(tensors: tuple[_Tensor, ...], file_name: str, n_source: int) -> list[Extent]:
    """Places in the data file. Tensors that share the same bytes are listed once; a location that is no bare file name is not ours to follow."""
    found: dict[tuple[int, int], Extent] = {}
    for tensor in tensors:
        location = tensor.external.get("location", "")
        if location != file_name or not _is_bare(location):
            continue
        offset = _decimal(tensor.external.get("offset", "0"))
        n_bytes = _decimal(tensor.external.get("length", str(n_source - offset)))
        if n_bytes and (offset, n_bytes) not in found:
            found[offset, n_bytes] = Extent(_spec(tensor, None, n_bytes), offset)
    extents = sorted(found.values(), key=lambda extent: extent.offset)
    position = 0
    for extent in extents:
        if extent.offset < position or extent.end > n_source:
            raise CorruptFile(f"ONNX external data, tensor {extent.spec.name!r}: its bytes are not in the file or another's; fetch the file again")
        position = extent.end
    return extents


def _is_bare(location: str) -> bool:
    try:
        return len(check_name(location).parts) == 1
    except UnsafeInput:
        return False


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise CorruptFile(f"ONNX external data: {text[:40]!r} is no offset or length; the file is damaged, fetch it again")
    return int(text)


def _spec(tensor: _Tensor, dtype: DType | None, n_bytes: int) -> TensorSpec:
    """The tensor's specification, as bytes where type and shape do not explain the number of bytes (4-bit integers, text)."""
    dtype = dtype or _DTYPES.get(tensor.kind)
    shape = tuple(tensor.shape)
    if dtype is None or dtype.n_bytes(shape) != n_bytes:
        return TensorSpec(tensor.name, U8, (n_bytes,))
    return TensorSpec(tensor.name, dtype, shape)


def _with_unique_names(extents: list[Extent]) -> tuple[Extent, ...]:
    """The extents by offset. Subgraphs may repeat a name, constants may have none: those get a number."""
    counts: dict[str, int] = {}
    taken = {extent.spec.name for extent in extents}
    unique = []
    for extent in sorted(extents, key=lambda extent: (extent.offset, extent.end)):
        base = name = extent.spec.name or "unnamed"
        counts[base] = counts.get(base, 0) + 1
        while not extent.spec.name or counts[base] > 1:
            name = f"{base}#{counts[base]}"
            if name not in taken:
                taken.add(name)
                break
            counts[base] += 1
        unique.append(Extent(TensorSpec(name, extent.spec.dtype, extent.spec.shape), extent.offset))
    return tuple(unique)


class _Model:
    """Walks a ModelProto. Every length is untrusted; time is bounded by the number of fields, depth by a count."""

    def __init__(self, source: memoryview) -> None:
        self._source = source
        self._fields_left = _FIELDS_MOST

    def tensors(self) -> Iterator[_Tensor]:
        has_graph = False
        for number, _, start, end in self._fields(0, len(self._source)):
            if number == _MODEL_GRAPH:
                has_graph = True
                yield from self._graph(start, end, "", _DEPTH_MOST)
            elif number == _MODEL_FUNCTIONS:
                for inner, _, node, node_end in self._fields(start, end):
                    if inner == _FUNCTION_NODE:
                        yield from self._node(node, node_end, "", _DEPTH_MOST)
        if not has_graph:
            raise UnsupportedFile("no ONNX model; it is kept as bytes")

    def _graph(self, start: int, end: int, scope: str, depth: int) -> Iterator[_Tensor]:
        if not depth:
            raise LimitExceeded(f"ONNX model, byte {start}: graphs nested more than {_DEPTH_MOST} deep; the file is damaged or hostile")
        for number, _, inner, inner_end in self._fields(start, end):
            if number == _GRAPH_INITIALIZER:
                yield self._tensor(inner, inner_end, scope)
            elif number == _GRAPH_NODE:
                yield from self._node(inner, inner_end, scope, depth)

    def _node(self, start: int, end: int, scope: str, depth: int) -> Iterator[_Tensor]:
        name = "node"
        for number, _, inner, inner_end in self._fields(start, end):
            if number == _NODE_NAME:
                name = self._text(inner, inner_end)
            elif number == _NODE_ATTRIBUTE:
                yield from self._attribute(inner, inner_end, f"{scope}{name}/"[:_NAME_MOST], depth)

    def _attribute(self, start: int, end: int, scope: str, depth: int) -> Iterator[_Tensor]:
        name = ""
        for number, _, inner, inner_end in self._fields(start, end):
            if number == _ATTRIBUTE_NAME:
                name = self._text(inner, inner_end)
            elif number in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                tensor = self._tensor(inner, inner_end, scope)
                tensor.name = (scope + name)[:_NAME_MOST] if tensor.name == scope else tensor.name
                yield tensor
            elif number in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                yield from self._graph(inner, inner_end, scope, depth - 1)

    def _tensor(self, start: int, end: int, scope: str) -> _Tensor:
        tensor = _Tensor(name=scope)
        packed: list[tuple[int, int, int]] = []
        for number, wire, inner, inner_end in self._fields(start, end):
            if number == _TENSOR_DIMS and wire == _VARINT:
                tensor.shape.append(inner)
            elif number == _TENSOR_DIMS:
                tensor.shape.extend(self._varints(inner, inner_end))
            elif number == _TENSOR_TYPE and wire == _VARINT:
                tensor.kind = inner
            elif wire == _BYTES and number == _TENSOR_NAME:
                tensor.name = (scope + self._text(inner, inner_end))[:_NAME_MOST]
            elif wire == _BYTES and number in (_TENSOR_RAW, _TENSOR_FLOATS, _TENSOR_DOUBLES):
                packed.append((number, inner, inner_end))
            elif wire == _BYTES and number == _TENSOR_EXTERNAL:
                self._external(inner, inner_end, tensor.external)
            if len(tensor.shape) > LIMITS.dimensions:
                raise LimitExceeded(f"ONNX model, byte {start}: a tensor with more than {LIMITS.dimensions} dimensions; the file is damaged or hostile")
        if len(packed) == 1:
            number, inner, inner_end = packed[0]
            names = {_TENSOR_FLOATS: _FLOATS, _TENSOR_DOUBLES: _DOUBLES}.get(number)
            tensor.dtype = DTYPE_BY_NAME[names.get(tensor.kind, "U8")] if names is not None else None
            tensor.place = (inner, inner_end)
        return tensor

    def _external(self, start: int, end: int, into: dict[str, str]) -> None:
        key = value = ""
        for number, _, inner, inner_end in self._fields(start, end):
            if number == _EXTERNAL_KEY:
                key = self._text(inner, inner_end)
            elif number == _EXTERNAL_VALUE:
                value = self._text(inner, inner_end)
        into[key] = value

    # Protobuf's wire format (https://protobuf.dev/programming-guides/encoding/).

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Field number, wire type, then start and end of its bytes, or its value and end for a varint."""
        while start < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise LimitExceeded(f"ONNX model, byte {start}: more than {_FIELDS_MOST} fields; the file is damaged or hostile")
            tag, start = self._varint(start, end)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, start = self._varint(start, end)
                yield number, wire, value, start
                continue
            if wire == _BYTES:
                length, start = self._varint(start, end)
            elif wire in (_FIXED32, _FIXED64):
                length = 4 if wire == _FIXED32 else 8
            else:
                raise UnsupportedFile(f"ONNX model, byte {start}: wire type {wire} is not used by protobuf's version 3; it is kept as bytes")
            if not number or length > end - start:
                raise CorruptFile(f"ONNX model, byte {start}: a field of {length} bytes, {end - start} are left; the file is damaged, fetch it again")
            yield number, wire, start, start + length
            start += length

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        value = 0
        for i in range(min(_VARINT_BYTES_MOST, end - start)):
            byte = self._source[start + i]
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                return value, start + i + 1
        raise CorruptFile(f"ONNX model, byte {start}: a number does not end; the file is damaged, fetch it again")

    def _varints(self, start: int, end: int) -> Iterator[int]:
        for _ in range(LIMITS.dimensions + 1):
            if start >= end:
                return
            value, start = self._varint(start, end)
            yield value

    def _text(self, start: int, end: int) -> str:
        try:
            return str(self._source[start : min(end, start + 4 * _NAME_MOST)], "utf-8")[:_NAME_MOST]
        except UnicodeDecodeError as error:
            raise CorruptFile(f"ONNX model, byte {start}: a name is no UTF-8; the file is damaged, fetch it again") from error
