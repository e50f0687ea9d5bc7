"""A torch tensor whose elements live as frames: each operation gets them decoded in a buffer that is used again for the next one.

The tensor is a wrapper subclass of torch.Tensor, so that whatever a module does with its weight works, and autograd saves the wrapper, not the elements:
backward decodes again. Views (transposes, slices, one expert of many) stay lazy and decode only the frames that they lie in. What writes in place decodes,
writes and encodes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe
from modelcodec.kernels.fixed_length import MOST_VECTORS
from modelcodec.runtime.fixed_length import FixedLength
from modelcodec.runtime.form_in_memory import FormInMemory
from modelcodec.runtime.frames_in_memory import Coding, FramesInMemory, WordsInMemory
from modelcodec.runtime.gpu import decodes_on
from modelcodec.runtime.gpu_weights import FormedMatrix, Layer, Resident
from modelcodec.runtime.workspace import is_capturing, workspace
from modelcodec.types import DTYPE_BY_NAME, DType, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

_DTYPES = {
    "bfloat16": "BF16",
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
}


@cache
def _dtypes() -> dict[Any, DType]:
    import torch

    return {getattr(torch, kind): DTYPE_BY_NAME[name] for kind, name in _DTYPES.items() if hasattr(torch, kind)}


@cache
def _torch_dtypes() -> dict[int, Any]:
    return {dtype.id: kind for kind, dtype in _dtypes().items()}


def has_frames(tensor: Tensor) -> bool:
    """Whether tensors of this dtype can be compressed in memory."""
    return tensor.dtype in _dtypes()


def dtype_of(tensor: Tensor) -> DType:
    """The format's dtype of a tensor. Raises BadRecipe where it has none whose words are elements."""
    dtype = _dtypes().get(tensor.dtype)
    if dtype is None:
        raise BadRecipe(f"tensors of {tensor.dtype} are not compressed in memory; cast them to one of {', '.join(_DTYPES)}")
    return dtype


def _nothing() -> None:
    """A reference to nothing."""


class WeightStore:
    """What a compressed tensor and its views have in common, as dense ones have their storage: `n` elements of `dtype` on `device`.

    `casts` are the dtypes through which the elements go after decoding: a cast, which autocast may keep, holds no elements of its own. `given` refers to the
    dense tensor, while it lives, that a state_dict got last. A GPU decodes the frames as those of a tensor of `layer`; `held` is what it holds of that by now.
    """

    __slots__ = ("_workspace", "casts", "coding", "device", "frames", "given", "held", "layer", "place")

    def __init__(self, coded: WordsInMemory, coding: Coding, device: Any, casts: tuple[Any, ...]) -> None:
        self.frames = coded
        self.coding = coding
        self.device = device
        self.casts = casts
        self.given: Callable[[], Tensor | None] = _nothing
        self._workspace = workspace()
        self.layer: Layer | None = None
        self.place = 0
        self.held: Resident | None = None

    @property
    def n(self) -> int:
        return self.frames.spec.n_words

    @property
    def stored_dtype(self) -> Any:
        return _torch_dtypes()[self.frames.spec.dtype.id]

    @property
    def dtype(self) -> Any:
        return self.casts[-1] if self.casts else self.stored_dtype

    def join(self, layer: Layer, place: int) -> None:
        """From now on be decoded with others: the frames are those in this place of the layer."""
        self.layer, self.place, self.held = layer, place, None

    def resident(self) -> Resident | None:
        """What the device holds of this, put there if need be; None where the CPU decodes."""
        if not decodes_on(self.device):
            return None
        if self.held is None:
            self.layer = self.layer or Layer((self.frames,))
            self.held = self.layer.on(self.device)
        return self.held if self.held.holds(self.place) else None

    @contextmanager
    def lent(self) -> Iterator[Tensor]:
        """All elements as a one-dimensional dense tensor, valid inside the block, and to be written to."""
        with self.lent_frames(range(self.frames.n_frames)) as flat:
            yield flat

    @contextmanager
    def lent_frames(self, numbers: Sequence[int], *, shared: bool = False) -> Iterator[Tensor]:
        """The elements of the frames with these ascending numbers, one after the other; `shared`: as others may see them, not to be written to."""
        resident = self.resident()
        with self._decoded(numbers) if resident is None else resident.lent(self.place, numbers, shared=shared) as octets:
            flat = octets.view(self.stored_dtype)
            for dtype in self.casts:
                flat = flat.to(dtype)
            yield flat.to(self.device)

    @contextmanager
    def _decoded(self, numbers: Sequence[int]) -> Iterator[Tensor]:
        """The same by the CPU, as bytes (u1)."""
        import torch

        word = self.frames.spec.dtype.word
        n_words = (len(numbers) - 1) * self.frames.frame_words + self.frames.words_of(numbers[-1]) if numbers else 0
        with self._workspace.lent(n_words * word) as buffer:
            self.frames.decode(numbers, buffer.view(frames.WORD[word]), torch.get_num_threads())
            yield torch.from_numpy(buffer)

    def write(self, flat: Tensor) -> None:
        """Encode all elements anew; they may come as another dtype."""
        self.frames, self.casts = _encoded(flat, self.frames.spec, self.coding), ()
        self.layer, self.place, self.held = None, 0, None

    def settle(self) -> None:
        """Carry out what is cast only on the way out."""
        if self.casts:
            with self.lent() as flat:
                self.write(flat)

    def twin(self, *, device: Any = None, casts: tuple[Any, ...] = ()) -> WeightStore:
        """Another store with the same frames, which are never changed, only replaced."""
        twin = WeightStore(self.frames, self.coding, device or self.device, self.casts + casts)
        twin.layer, twin.place = self.layer, self.place
        twin.held = self.held if twin.device == self.device else None
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        """As frames. Bytes go as a tensor: torch.save makes half as much again of bytes, but puts tensors into records of their own."""
        import torch

        coded = self.frames
        if not isinstance(coded, FramesInMemory):
            coded = FramesInMemory.encode(coded.spec, coded.words(torch.get_num_threads()), self.coding, torch.get_num_threads())
        data, described = coded.packed()
        return _restored_store, (torch.from_numpy(data.copy()), described, self.coding, self.device, self.casts)


def _restored_store(data: Tensor, described: tuple[Any, ...], coding: Coding, device: Any, casts: tuple[Any, ...]) -> WeightStore:
    import torch

    coded: WordsInMemory = FramesInMemory.unpacked(data.numpy(), described)
    if coding.fixed_length:
        coded = FormInMemory.of(coded.spec, coded.words(torch.get_num_threads()), coding) or coded
    return WeightStore(coded, coding, device, casts)


def _encoded(flat: Tensor, like: TensorSpec, coding: Coding) -> WordsInMemory:
    import torch

    spec = TensorSpec(like.name, dtype_of(flat), like.shape)
    words = frames.as_words(flat.detach().cpu().view(torch.uint8).numpy(), spec.dtype.word)
    form = FormInMemory.of(spec, words, coding) if coding.fixed_length else None
    return form or FramesInMemory.encode(spec, words, coding, torch.get_num_threads())


# ---- making one, and getting it back --------------------------------------------------------------------------------------------------


def compressed(tensor: Tensor, name: str, coding: Coding) -> Any:
    """A compressed tensor with the elements, shape and strides of a dense one, which has at least one dimension and one element.

    A tensor that is no permutation of contiguous memory (an expanded one, a slice) is laid out anew. Raises BadRecipe for a dtype that has no frames.
    """
    dense = tensor.detach()
    if not _fills(dense.size(), dense.stride()):
        dense = dense.contiguous()
    shape = tuple(dense.shape) if dense.is_contiguous() else (dense.numel(),)
    spec = TensorSpec(name, dtype_of(dense), shape)
    coded = _encoded(dense.as_strided((dense.numel(),), (1,)), spec, coding)
    return compressed_tensor()(WeightStore(coded, coding, tensor.device, ()), dense.size(), dense.stride(), 0, dense.dtype)


def is_compressed(tensor: Any) -> bool:
    return isinstance(tensor, compressed_tensor())


@contextmanager
def decoded(tensor: Any, *, shared: bool = False) -> Iterator[Tensor]:
    """The elements of a compressed tensor as a dense one that is valid inside the block; what is written to it is lost, or with `shared` seen by others."""
    size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
    held, own = tensor.store.dtype.itemsize, tensor.dtype.itemsize
    end = offset + 1 + sum((d - 1) * s for d, s in zip(size, stride, strict=True)) if tensor.numel() else offset
    numbers = tensor.store.frames.covering(offset * own // held, -(-end * own // held))
    first = numbers.start * tensor.store.frames.frame_words * held // own
    with tensor.store.lent_frames(numbers, shared=shared) as flat:
        seen = flat.view(tensor.dtype)
        yield seen.as_strided(size, stride, seen.storage_offset() + offset - first)


def dense(tensor: Any) -> Tensor:
    """The elements of a compressed tensor in memory of their own."""
    with decoded(tensor, shared=True) as lent:
        return lent.clone()


def write(tensor: Any, values: Tensor) -> None:
    """Replace the elements of a compressed tensor that is no view by those of one with the same strides; autograd counts it as an operation in place."""
    import torch

    tensor.store.write(values.as_strided((values.numel(),), (1,)))
    torch.autograd.graph.increment_version(tensor)


def _fills(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the elements fill a stretch of memory, in whatever order of dimensions."""
    expected = 1
    for step, length in sorted((s, d) for d, s in zip(size, stride, strict=True) if d != 1):
        if step != expected:
            return False
        expected *= length
    return True


# ---- operations -----------------------------------------------------------------------------------------------------------------------


def _dispatch(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Any operation of torch that has a compressed tensor among its arguments."""
    import torch

    kind, aten = compressed_tensor(), torch.ops.aten
    result = None
    if func in (aten.linear.default, aten.mm.default, aten.addmm.default, aten.matmul.default):
        result = None if kwargs else _product(func, args)
    elif args and isinstance(args[0], kind):
        if func.is_view:
            return _view(func, args[0], args[1:], kwargs)
        if func is aten._to_copy.default:
            result = _cast(args[0], **kwargs)
        elif func is aten.embedding.default:
            result = _embedding(args[0], *args[1:], **kwargs)
    return _run(func, args, kwargs) if result is None else result


def _view(func: Any, tensor: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Views stay lazy: torch works out their geometry on a tensor without elements."""
    import torch
    from torch.utils._pytree import tree_map_only

    n = tensor.store.n * tensor.store.dtype.itemsize // tensor.dtype.itemsize
    shadow = torch.empty(n, dtype=tensor.dtype, device="meta").as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def same(view: Any) -> Any:
        return compressed_tensor()(tensor.store, view.size(), view.stride(), view.storage_offset(), view.dtype)

    with torch.inference_mode(tensor.is_inference()):  # a view is an inference tensor where what it views is one
        return tree_map_only(torch.Tensor, same, func(shadow, *args, **kwargs))


def _cast(tensor: Any, *, dtype: Any = None, device: Any = None, layout: Any = None, memory_format: Any = None, **_: Any) -> Any | None:
    """A cast or a move to a device, with the same frames; None for one that changes strides, or makes what is no compressed tensor."""
    import torch

    place = tensor.store.device if device is None else torch.empty(0, device=device).device  # with the number of the GPU
    dtype = dtype or tensor.dtype
    plain = layout in (None, torch.strided) and memory_format in (None, torch.preserve_format) and _fills(tensor.size(), tensor.stride())
    if not plain or place.type == "meta" or tensor.dtype != tensor.store.dtype or not dtype.is_floating_point or dtype not in _dtypes():
        return None
    store = tensor.store.twin(device=place, casts=() if dtype == tensor.dtype else (dtype,))
    return compressed_tensor()(store, tensor.size(), tensor.stride(), tensor.storage_offset(), dtype)


def _embedding(tensor: Any, indices: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Rows of an embedding from the frames that hold them, or from the fixed-length form; None where frames do not hold whole rows.

    Which frames these are must be known here: while a CUDA graph is captured, which cannot wait for that, all are decoded.
    """
    import torch

    coded = tensor.store.frames
    n_rows, row = tensor.size()
    whole = tensor.is_contiguous() and tensor.numel() == tensor.store.n and tensor.dtype == tensor.store.dtype
    if not whole or indices.numel() == 0:
        return None
    form = _form(tensor)
    if form:
        return form.rows(indices)
    if coded.frame_words % row or is_capturing(tensor.store.device):
        return None
    if bool(((indices < 0) | (indices >= n_rows)).any()):
        raise IndexError(f"{coded.spec.name}: an index of the embedding is out of range, there are {n_rows} rows")
    rows = coded.frame_words // row
    numbers, places = torch.unique(indices // rows, return_inverse=True)
    with tensor.store.lent_frames(numbers.tolist()) as flat:
        return torch.embedding(flat.view(-1, row), places * rows + indices % rows, *args, **kwargs)


def _product(func: Any, args: Sequence[Any]) -> Tensor | None:
    """A few vectors times a transposed matrix in the fixed-length form, as it is; None for any other product."""
    import torch

    aten = torch.ops.aten
    bias, x, weight = args if func is aten.addmm.default else (args[2] if len(args) > 2 else None, *args[:2])
    if not is_compressed(weight) or is_compressed(x) or weight.dim() != 2:
        return None
    form = _form(weight if func is aten.linear.default else weight.t())
    if form is None or x.shape[-1] != form.n_columns or not 0 < x.numel() <= MOST_VECTORS * form.n_columns:
        return None
    if bias is not None and bias.shape != (form.n_rows,):
        return None
    vectors = [dense(vector) if is_compressed(vector) else vector.contiguous() for vector in (x, bias) if vector is not None]
    if any(vector.dtype != torch.bfloat16 or vector.device != weight.device for vector in vectors):
        return None
    return form.multiply(*vectors)


def _form(tensor: Any) -> FixedLength | None:
    """The fixed-length form of a matrix that is a whole store."""
    store = tensor.store
    if not store.coding.fixed_length or store.casts or tensor.dtype != store.dtype or not tensor.is_contiguous():
        return None
    resident = store.resident()
    held = store.frames if resident is None and store.device.type == "cpu" else resident
    form = held.form if isinstance(held, FormedMatrix | FormInMemory) else None
    return form if form is not None and tensor.size() == (form.n_rows, form.n_columns) else None


def _run(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """An operation on decoded elements; what it writes to is encoded again."""
    import torch
    from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

    kind = compressed_tensor()
    values, structure = tree_flatten((args, kwargs))
    written = {leaf.store: None for leaf in _written(func, args, kwargs)} if func._schema.is_mutable else {}
    givers: dict[int, Any] = {}
    buffers: set[int] = set()

    def given_back(value: Any) -> Any:
        """What the operation was given and returns is the compressed tensor; nothing else that it returns may keep a buffer."""
        if id(value) in givers:
            return givers[id(value)]
        return value.clone() if value.untyped_storage().data_ptr() in buffers else value

    with ExitStack() as stack:
        # Views on one store, of which one is written, are views on one buffer.
        flats = {store: stack.enter_context(store.lent()) for store in written}
        for place, leaf in enumerate(values):
            if isinstance(leaf, kind):
                values[place] = _seen(leaf, flats[leaf.store]) if leaf.store in flats else stack.enter_context(decoded(leaf, shared=True))
                givers[id(values[place])] = leaf
                buffers.add(values[place].untyped_storage().data_ptr())
        plain_args, plain_kwargs = tree_unflatten(values, structure)
        result = func(*plain_args, **plain_kwargs)
        for store, flat in flats.items():
            store.write(flat)
        return given_back(result) if isinstance(result, torch.Tensor) else tree_map_only(torch.Tensor, given_back, result)


def _seen(tensor: Any, flat: Tensor) -> Tensor:
    """The elements of a tensor among all those of its store."""
    return flat.view(tensor.dtype).as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The compressed tensors that an operation writes to."""
    from torch.utils._pytree import tree_leaves

    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, compressed_tensor()))


@cache
def compressed_tensor() -> Any:
    """The class of compressed tensors, made on first use, since torch is imported only where it is used."""
    import torch

    class CompressedTensor(torch.Tensor):
        """Elements of `store`, seen with this tensor's own size, strides, first element and dtype."""

        store: WeightStore

        @staticmethod
        def __new__(cls: Any, store: WeightStore, size: Any, stride: Any, offset: int, dtype: Any) -> Any:
            options = {"strides": tuple(stride), "storage_offset": offset, "dtype": dtype, "device": store.device}
            self = torch.Tensor._make_wrapper_subclass(cls, tuple(size), **options)
            self.store = store
            return self

        __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
            return _dispatch(func, args, kwargs or {})

        @property
        def data(self) -> Any:
            return torch.Tensor.data.__get__(self)  # type: ignore[attr-defined]

        @data.setter
        def data(self, value: Any) -> None:
            """What Module.to and the like assign: the store follows the tensor, and casts are carried out."""
            if not isinstance(value, CompressedTensor):
                value = compressed(value, self.store.frames.spec.name, self.store.coding)
            torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
            self.store = value.store
            self.store.settle()

        def numpy(self, *, force: bool = False) -> Any:
            return dense(self).numpy(force=force)

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            """Shares the frames; tensors that share a store share one in the copy."""
            if not self.is_leaf:
                raise RuntimeError("only tensors that are leaves of the graph can be copied; detach it first")
            if id(self) not in memo:
                store = memo.setdefault(id(self.store), self.store.twin())
                copied = _rebuilt(store, self.size(), self.stride(), self.storage_offset(), self.dtype, self.requires_grad, self._tags())
                memo[id(self)] = copied
                copied.grad = deepcopy(self.grad, memo)
            return memo[id(self)]

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            geometry = tuple(self.size()), self.stride(), self.storage_offset()
            return _rebuilt, (self.store, *geometry, self.dtype, self.requires_grad, self._tags())

        def _tags(self) -> dict[str, Any]:
            """What others have put on the tensor, as torch does with parameters."""
            return {name: value for name, value in self.__dict__.items() if name != "store"}

        def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
            share = 100 * self.store.frames.n_bytes / self.store.frames.spec.n_bytes
            return f"CompressedTensor({tuple(self.size())}, dtype={self.dtype}, device={self.device}, frames of {share:.1f} %)"

    return CompressedTensor


def _rebuilt(store: WeightStore, size: Any, stride: Any, offset: Any, dtype: Any, requires_grad: bool, tags: dict[str, Any]) -> Any:
    tensor = compressed_tensor()(store, size, stride, offset, dtype)
    tensor.__dict__.update(tags)
    return tensor.requires_grad_(requires_grad)
