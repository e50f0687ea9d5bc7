"""Modules whose weights stay compressed in memory (docs/compressed_weights.md).

source: the idea is NeuZip's (arXiv 2410.20650); here every parameter of every module takes part, since it is the tensor that is compressed, not the layer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe
from modelcodec.formats import MARKER, OWN_PREFIX
from modelcodec.formats.atomic import atomic_file
from modelcodec.formats.container_layout import SKELETON, SKELETON_ROLE, TENSOR_ROLE, full_frame_words
from modelcodec.formats.container_writer import Item, Writer
from modelcodec.planner import FAST
from modelcodec.runtime import compressed_weight as weights
from modelcodec.runtime.frames_in_memory import Coding, FramesInMemory
from modelcodec.runtime.layers import join_layers
from modelcodec.types import U8, Array, TensorSpec

if TYPE_CHECKING:
    from torch.nn import Module

LEAST_BYTES = 1 << 14
"""Smaller parameters (biases, norms) stay as they are: together they are nothing, and decoding one costs as much time as a large one's first frame."""

_OTHERS = Coding()
"""How what is not compressed in memory is coded when it is saved."""

_as_frames: ContextVar[bool] = ContextVar("_as_frames", default=False)
"""Whether state_dict() shall give compressed tensors as they are."""


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What a model's parameters take: as dense tensors, as they are kept now, and the buffer for what is decoded at once.

    `gpu_bytes`: what GPUs hold now of the compressed ones, beside the frames in the host's memory, which `kept_bytes` counts.
    """

    dense_bytes: int
    kept_bytes: int
    buffer_bytes: int
    n_compressed: int
    n_dense: int
    gpu_bytes: int = 0

    def __str__(self) -> str:
        share = 100 * self.kept_bytes / self.dense_bytes if self.dense_bytes else 100.0
        counted = f"{self.n_compressed} parameters compressed, {self.n_dense} kept dense"
        on_gpu = f", {self.gpu_bytes:,} of GPUs" if self.gpu_bytes else ""
        return f"{self.dense_bytes:,} bytes of parameters take {self.kept_bytes:,} ({share:.1f} %){on_gpu}, and {self.buffer_bytes:,} of a buffer; {counted}"


def compress_module(
    model: Module, *, level: int = FAST, lossless: bool = True, mantissa_bits: int | None = None, fixed_length: bool = False
) -> MemoryReport:
    """Replace the parameters of a model, in place, by compressed ones; its outputs stay the same to the bit.

    `level`: 1 (decodes fastest), 5 or 9 (smallest). `lossless=False` with `mantissa_bits`: keep so many leading bits of each weight's mantissa, rounded.
    `fixed_length`: matrices of bf16 take a form of about 12 bits a weight, for generating token by token: products of a few vectors read it as it is. The
    weights are the same; such products are summed in another order.

    Parameters that are small, on the meta device, of a class of their own, or that would not shrink stay dense. Tied ones stay tied. Optimizers made before
    hold the dense parameters: make them after. What is compressed already stays as it is, but weights of one layer are told of each other again, which
    `torch.load` forgets.
    memory: one parameter's frames beside the model. Raises BadRecipe.
    """
    if lossless != (mantissa_bits is None):
        raise BadRecipe("mantissa_bits rounds weights and needs lossless=False; lossless=False needs mantissa_bits")
    coding = Coding(level, mantissa_bits, fixed_length)
    for places in _places(model):
        module, name, full_name = places[0]
        new = _compressed(module._parameters[name], full_name, coding)
        for module, name, _ in places if new is not None else ():
            setattr(module, name, new)  # not put into _parameters: recurrent modules keep a list of their own
            if _give_dense not in module._state_dict_hooks.values():
                module.register_state_dict_post_hook(_give_dense)  # type: ignore[no-untyped-call]
    join_layers(model)
    for parameter in model.parameters():
        if weights.is_compressed(parameter):
            parameter.store.resident()  # type: ignore[attr-defined]
    return memory_report(model)


def _places(model: Module) -> list[list[tuple[Module, str, str]]]:
    """For each different parameter the modules that have it, under which name, and its full name."""
    places: dict[int, list[tuple[Module, str, str]]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), []).append((module, name, f"{prefix}.{name}" if prefix else name))
    return list(places.values())


def _compressed(parameter: Any, name: str, coding: Coding) -> Any | None:
    """The parameter as a compressed one; None where it stays dense."""
    import torch

    if type(parameter) is not torch.nn.Parameter or parameter.is_meta or parameter.nbytes < LEAST_BYTES or not weights.has_frames(parameter):
        return None
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        raise BadRecipe(f"{name} has hooks on its gradient, which a new parameter would not have; compress the module first, then add them")
    tensor = weights.compressed(parameter, name, coding)
    if tensor.store.frames.n_bytes >= parameter.nbytes:
        return None
    new = torch.nn.Parameter(tensor, parameter.requires_grad)
    new.__dict__.update(parameter.__dict__)
    new.grad = parameter.grad
    return new


def memory_report(model: Module) -> MemoryReport:
    """What the parameters of a model take now."""
    parameters: list[Any] = list(model.parameters())
    compressed = [p for p in parameters if weights.is_compressed(p)]
    dense = [p for p in parameters if not weights.is_compressed(p)]
    dense_bytes = sum(p.nbytes for p in dense)
    decoded_bytes = [p.numel() * p.element_size() for p in compressed]
    kept_bytes = sum(p.store.frames.n_bytes for p in compressed)
    residents = {p.store.held for p in compressed} - {None}
    buffer_bytes = max([*decoded_bytes, *(resident.buffer_bytes for resident in residents)], default=0)
    gpu_bytes = sum(resident.n_bytes for resident in residents)
    return MemoryReport(dense_bytes + sum(decoded_bytes), dense_bytes + kept_bytes, buffer_bytes, len(compressed), len(dense), gpu_bytes)


def _give_dense(module: Module, state: dict[str, Any], prefix: str, local_metadata: Mapping[str, Any]) -> None:
    """Make a module's entries of a state_dict dense; tied weights share memory in it, as they do without compression."""
    import torch

    if _as_frames.get():
        return
    for name in module._parameters:
        tensor: Any = state.get(prefix + name)
        if not weights.is_compressed(tensor) or isinstance(tensor, torch.nn.Parameter):  # a Parameter: the caller wants keep_vars
            continue
        dense = tensor.store.given()
        if dense is None or dense.shape != tensor.shape or not any(value is dense for value in state.values()):
            dense = weights.dense(tensor)
            tensor.store.given = ref(dense)
        state[prefix + name] = dense


# ---- saving ---------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Item:
    """A tensor to be written; `same` is the index of an earlier one that it is tied to."""

    spec: TensorSpec
    tensor: Any
    same: int | None

    def coded(self) -> FramesInMemory | None:
        """Its frames: those that are in memory already, unless they hold other elements, or the same in another order; None for an empty or 0-d tensor."""
        if not self.spec.shape or not self.spec.n_bytes:
            return None
        if weights.is_compressed(self.tensor) and self.tensor.is_contiguous() and not self.tensor.store.casts:
            kept = self.tensor.store.frames
            if isinstance(kept, FramesInMemory) and (kept.spec.dtype, kept.spec.shape) == (self.spec.dtype, self.spec.shape):
                return kept
        return FramesInMemory.encode(self.spec, frames.as_words(self.octets(), self.spec.dtype.word), _OTHERS)

    def octets(self) -> Array:
        """Its bytes (u1), dense and in the order of the shape."""
        import torch

        tensor = weights.dense(self.tensor) if weights.is_compressed(self.tensor) else self.tensor.detach()
        octets: Array = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return octets


def save_compressed(model: Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a model's state_dict as a container that `modelcodec.open` and the hooked loaders read; frames in memory are written as they are.

    `metadata` is by default what transformers expects of a safetensors file. An existing file is replaced, whole or not at all.
    memory: one dense tensor. Raises BadRecipe, OSError.
    """
    token = _as_frames.set(True)
    try:
        items = _items(model.state_dict())
    finally:
        _as_frames.reset(token)
    metadata = {"format": "pt"} if metadata is None else metadata
    header = _header(items, metadata)
    skeleton = TensorSpec(SKELETON, U8, (len(header),))
    rows = [Item(SKELETON, SKELETON_ROLE, skeleton, 0)]
    rows += [Item(item.spec.name, TENSOR_ROLE, item.spec, 0 if place else len(header)) for place, item in enumerate(items)]
    octets = frames.as_bytes(header)
    with atomic_file(Path(path), overwrite=True) as file:
        writer = Writer(file, rows, metadata, reserve=True)
        _write(writer, FramesInMemory.encode(skeleton, octets, _OTHERS), lambda: octets)
        for item in items:
            if item.same is None:
                _write(writer, item.coded(), item.octets)
            else:
                writer.same(item.same + 1)
        prefix = writer.prefix(len(header) + sum(item.spec.n_bytes for item in items), "safetensors", 0 if items else len(header), None)
        file.seek(0)
        file.write(prefix)


def _write(writer: Writer, coded: FramesInMemory | None, octets: Callable[[], Array]) -> None:
    """The next entry as frames, or as it is where these are not smaller."""
    if coded is not None:
        writer.coded(coded.frame_words, coded.group_frames, coded.groups())
        if writer.last_size() < coded.spec.n_bytes:
            return
        writer.take_back()
    data, spec = octets(), writer.items[len(writer.rows)].spec
    step = full_frame_words(spec.dtype) * spec.dtype.word
    pieces = [data[at : at + step] for at in range(0, data.size, step)]
    writer.ordinary(pieces, [frames.digest_of(piece) for piece in pieces])


def _items(state: Mapping[str, Any]) -> list[_Item]:
    """The tensors in the order that safetensors writes them, widest elements first, so that each is aligned."""
    import torch

    for name, value in state.items():
        if not isinstance(value, torch.Tensor) or name == "__metadata__" or name.startswith(OWN_PREFIX):
            raise BadRecipe(f"state_dict: {name!r} is no tensor, or has a name that the container keeps for itself; leave it out or rename it")
    items: list[_Item] = []
    seen: dict[Any, int] = {}
    for name, tensor in sorted(state.items(), key=lambda row: (-row[1].element_size(), row[0])):
        spec = TensorSpec(name, weights.dtype_of(tensor), tuple(tensor.shape))
        memory = id(tensor.store) if weights.is_compressed(tensor) else tensor.data_ptr()
        key = memory, spec.dtype, spec.shape, tensor.stride(), tensor.storage_offset()
        tied = spec.shape and spec.n_bytes
        items.append(_Item(spec, tensor, seen.get(key) if tied else None))
        if tied:
            seen.setdefault(key, len(items) - 1)
    return items


def _header(items: list[_Item], metadata: Mapping[str, str]) -> bytes:
    """The header of the safetensors file that the container stands for."""
    if MARKER in metadata:
        raise BadRecipe(f"metadata with the key {MARKER!r}: the container keeps it for itself; rename it")
    rows: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for item in items:
        rows[item.spec.name] = {"dtype": item.spec.dtype.name, "shape": list(item.spec.shape), "data_offsets": [at, at + item.spec.n_bytes]}
        at += item.spec.n_bytes
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
