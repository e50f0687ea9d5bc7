"""What torch's pickles say: which storages there are, and which tensors lie on them.

Shared by torch's two file formats; sources: torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelcodec.errors import CorruptFile, LimitExceeded, UnsupportedFile
from modelcodec.formats.inert_pickle import Dict, Global, PersistentId, Reduced
from modelcodec.limits import LIMITS
from modelcodec.types import DTYPE_BY_NAME, U8, Checkpoint, DType, Extent, TensorSpec, View
from modelcodec.views import is_row_major

_DEPTH_MOST = 100
_VISITS_PER_STEP = 16
"""Shared parts of a pickle are visited once for each name; a pickle that multiplies itself by sharing is not followed."""
_SIZE_END = 1 << 63
_PREFIX = "data/"


def _dtypes(table: str) -> Mapping[str, DType]:
    """DTypes by torch's names, from a table of pairs."""
    words = table.split()
    return {torch_name: DTYPE_BY_NAME[name] for torch_name, name in zip(words[::2], words[1::2], strict=True)}


_STORAGE_DTYPES = _dtypes("""
    DoubleStorage F64  FloatStorage F32  HalfStorage F16  BFloat16Storage BF16  ComplexDoubleStorage C128  ComplexFloatStorage C64
    LongStorage I64  IntStorage I32  ShortStorage I16  CharStorage I8  ByteStorage U8  BoolStorage BOOL  UntypedStorage U8
    QInt8Storage I8  QUInt8Storage U8  QInt32Storage I32  QUInt4x2Storage U8  QUInt2x4Storage U8
""")
_TENSOR_DTYPES = _dtypes("""
    float64 F64  float32 F32  float16 F16  bfloat16 BF16  complex64 C64  complex128 C128  bool BOOL
    int64 I64  int32 I32  int16 I16  int8 I8  uint64 U64  uint32 U32  uint16 U16  uint8 U8
    float8_e4m3fn F8_E4M3  float8_e4m3fnuz F8_E4M3FNUZ  float8_e5m2 F8_E5M2  float8_e5m2fnuz F8_E5M2FNUZ  float8_e8m0fnu F8_E8M0
""")
_TENSORS = frozenset(Global("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"))
_WITH_DTYPE = Global("torch._utils", "_rebuild_tensor_v3")
_PARAMETERS = frozenset(Global("torch._utils", name) for name in ("_rebuild_parameter", "_rebuild_parameter_with_state"))
_SUBCLASS = Global("torch._tensor", "_rebuild_from_type_v2")
_SIZE = Global("torch", "Size")


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage as the pickle names it: `numel` elements of `dtype`. `first` element of a view on it, from torch's oldest files."""

    key: str
    dtype: DType
    typed: bool
    numel: int
    first: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a storage's bytes lie in the file."""

    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A named tensor; strides and first element count elements of the spec's dtype."""

    spec: TensorSpec
    key: str
    strides: tuple[int, ...]
    first: int


def storage_of(reference: PersistentId) -> Storage:
    """The storage that a persistent id `("storage", class, key, location, numel[, view])` names. Raises UnsupportedFile for anything else."""
    match reference.value:
        case ("storage", Global() as storage_class, str() as key, str(), int() as numel):
            first = 0
        case ("storage", Global() as storage_class, str() as key, str(), int() as numel, None):
            first = 0
        case ("storage", Global() as storage_class, str() as key, str(), int() as numel, (str(), int() as first, int())):
            pass
        case _:
            raise UnsupportedFile("torch file: a persistent id is no storage; the file is kept as bytes")
    dtype = _STORAGE_DTYPES.get(storage_class.name)
    if dtype is None or not 0 <= numel < _SIZE_END or not 0 <= first < _SIZE_END:
        raise UnsupportedFile(f"torch file, storage {key!r}: {storage_class} of {numel} elements is not known; the file is kept as bytes")
    return Storage(key, dtype, storage_class.name != "UntypedStorage", numel, first)


def storages(references: Sequence[PersistentId]) -> dict[str, Storage]:
    """Each storage once, by key; one that is named with and without a dtype has the dtype. Raises CorruptFile where two references differ in size."""
    found: dict[str, Storage] = {}
    for reference in references:
        storage = storage_of(reference)
        known = found.get(storage.key)
        if known is not None and _n_bytes(known) != _n_bytes(storage):
            raise CorruptFile(f"torch file, storage {storage.key!r}: named with two sizes; the file is damaged, fetch it again")
        if known is None or (storage.typed and not known.typed):
            found[storage.key] = storage
    return found


def _n_bytes(storage: Storage) -> int:
    return storage.dtype.n_bytes((storage.numel,))


def describe(
    name: str, root: object, references: Sequence[PersistentId], places: Mapping[str, Place], *, n_steps: int, little_endian: bool = True
) -> Checkpoint:
    """The checkpoint of a pickle: an extent `data/<key>` for each storage that it references, a view for each tensor below `root`.

    A storage that one tensor fills takes that tensor's shape, as it stands in memory, so that rows are known. A big-endian file's storages are bytes without
    views. `n_steps` of the pickle bound how long its objects are walked. Raises CorruptFile where a storage or a tensor does not fit its place.
    """
    known = storages(references)
    for key, storage in known.items():
        if key not in places or places[key].n_bytes != _n_bytes(storage):
            raise CorruptFile(f"torch file, storage {key!r}: {storage.numel} elements of {storage.dtype.name} are not in the file; fetch it again")
    order = sorted(known, key=lambda key: (places[key].offset, places[key].n_bytes))
    if not little_endian:
        flat = (Extent(TensorSpec(_PREFIX + key, U8, (places[key].n_bytes,)), places[key].offset) for key in order)
        return Checkpoint(name, tuple(flat))
    tensors = _tensors(root, budget=_VISITS_PER_STEP * n_steps)
    lying_on: dict[str, list[_Tensor]] = {key: [] for key in known}
    for tensor in tensors:
        _check_inside(tensor, places[tensor.key])
        lying_on[tensor.key].append(tensor)
    extents = tuple(Extent(_storage_spec(_PREFIX + key, known[key], lying_on[key]), places[key].offset) for key in order)
    index = {key: i for i, key in enumerate(order)}
    return Checkpoint(name, extents, tuple(View(tensor.spec, index[tensor.key], tensor.strides, tensor.first) for tensor in tensors))


def _storage_spec(name: str, storage: Storage, tensors: list[_Tensor]) -> TensorSpec:
    """A storage's dtype (of an untyped one, its tensors' where they agree) and shape (of a tensor that fills it, else one dimension)."""
    n_bytes, dtype = _n_bytes(storage), storage.dtype
    dtypes = {tensor.spec.dtype for tensor in tensors}
    if not storage.typed and len(dtypes) == 1 and n_bytes * 8 % tensors[0].spec.dtype.bits == 0:
        dtype = tensors[0].spec.dtype
    for tensor in tensors:
        shape = _memory_shape(tensor)
        if tensor.spec.dtype == dtype and shape is not None and tensor.spec.n_bytes == n_bytes:
            return TensorSpec(name, dtype, shape)
    return TensorSpec(name, dtype, (n_bytes * 8 // dtype.bits,))


def _memory_shape(tensor: _Tensor) -> tuple[int, ...] | None:
    """The shape in memory order, row-major, of a tensor without gaps; None where it has gaps, repeats elements or starts late."""
    shape, strides = tensor.spec.shape, tensor.strides
    if tensor.first or 0 in shape:
        return None
    if is_row_major(shape, strides):
        return shape
    order = sorted((i for i, n in enumerate(shape) if n > 1), key=lambda i: -strides[i])
    permuted = tuple(shape[i] for i in order)
    return permuted if is_row_major(permuted, tuple(strides[i] for i in order)) else None


def _check_inside(tensor: _Tensor, place: Place) -> None:
    """Every element that strides reach lies in the storage."""
    shape, bits = tensor.spec.shape, tensor.spec.dtype.bits
    last = tensor.first + sum((n - 1) * stride for n, stride in zip(shape, tensor.strides, strict=True))
    if 0 not in shape and (last + 1) * bits > place.n_bytes * 8:
        raise CorruptFile(f"torch file, tensor {tensor.spec.name!r}: reaches element {last}, beyond its storage; the file is damaged, fetch it again")


def _tensors(root: object, budget: int) -> list[_Tensor]:
    """The tensors below `root` by their path, as in `model.layer1.0.weight`; of two with the same name the last, as in a dictionary.

    Walked with a stack of its own: the objects are untrusted, may be deep, and may contain themselves. Raises LimitExceeded.
    """
    found: dict[str, _Tensor] = {}
    n_text = 0
    walk: list[Iterator[tuple[str, object]]] = [iter([("", root)])]
    paths: list[str] = []
    while walk:
        key, value = next(walk[-1], (None, None))
        if key is None:
            walk.pop()
            if paths:
                paths.pop()
            continue
        budget -= 1
        path = f"{paths[-1]}.{key}" if paths and paths[-1] else key
        if budget < 0 or len(walk) > _DEPTH_MOST or len(path) > LIMITS.path_bytes:
            raise LimitExceeded("torch file: the pickle's dictionaries are too deep or contain each other too often; the file is damaged or hostile")
        children = _children(value)
        if children is not None:
            walk.append(children)
            paths.append(path)
        elif isinstance(value, Reduced) and (tensor := _tensor(path or "tensor", value)) is not None:
            found[tensor.spec.name] = tensor
            n_text += len(path)
            if n_text > LIMITS.header_bytes or len(found) > LIMITS.views:
                raise LimitExceeded("torch file: too many or too long tensor names; the file is damaged or hostile")
    return list(found.values())


def _children(value: object) -> Iterator[tuple[str, object]] | None:
    """What lies inside a container, with the last part of its name; None for a leaf. A TorchScript object's attributes are its state."""
    if isinstance(value, Reduced) and isinstance(value.state, Dict):
        value = value.state
    if isinstance(value, Dict):
        return ((_part(key, i), item) for i, (key, item) in enumerate(value.items))
    if isinstance(value, list | tuple):
        return ((str(i), item) for i, item in enumerate(value))
    return None


def _part(key: object, position: int) -> str:
    """A dictionary key as a part of a name. A key that is no text or number is named by its position."""
    if isinstance(key, str):
        return key.encode("utf-8", "backslashreplace").decode()
    return str(key) if isinstance(key, int | float | None) else str(position)


def _tensor(name: str, value: Reduced) -> _Tensor | None:
    """The tensor that a call would rebuild; None for other calls, and for tensors whose values are not just their storage's (sparse, quantized, conjugated)."""
    function, args = value.callable, value.args
    if function in _PARAMETERS and args and isinstance(args[0], Reduced):
        function, args = args[0].callable, args[0].args
    elif function == _SUBCLASS and len(args) == 4 and isinstance(args[0], Global) and isinstance(args[2], tuple):
        function, args = args[0], args[2]
    if function not in _TENSORS:
        return None
    has_dtype = function == _WITH_DTYPE
    plain = args[:6] + args[7:] if has_dtype else args
    reference, first, shape, strides = (*plain[:4], None, None, None, None)[:4]
    marks = plain[6] if len(plain) > 6 else None
    sizes, steps = _sizes(shape), _sizes(strides)
    if not isinstance(reference, PersistentId) or type(first) is not int or sizes is None or steps is None or len(sizes) != len(steps):
        raise UnsupportedFile(f"torch file, tensor {name!r}: not rebuilt as torch does it; the file is kept as bytes")
    storage = storage_of(reference)
    dtype = _dtype_of(args[6] if len(args) > 6 else None) if has_dtype else storage.dtype
    if dtype is None or (isinstance(marks, Dict) and marks.items) or not 0 <= first < _SIZE_END:
        return None
    return _Tensor(TensorSpec(name, dtype, sizes), storage.key, steps, storage.first + first)


def _dtype_of(name: object) -> DType | None:
    return _TENSOR_DTYPES.get(name.name) if isinstance(name, Global) and name.module == "torch" else None


def _sizes(value: object) -> tuple[int, ...] | None:
    """A shape or strides: a tuple of sizes, or torch.Size of one."""
    if isinstance(value, Reduced) and value.callable == _SIZE and len(value.args) == 1:
        value = value.args[0]
    if not isinstance(value, tuple) or len(value) > LIMITS.dimensions or any(type(n) is not int or not 0 <= n < _SIZE_END for n in value):
        return None
    return value
