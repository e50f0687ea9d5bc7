"""A container behind the interface of safetensors' open files, as loaders expect it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError

from modelcodec.errors import CorruptFile, LimitExceeded, ModelCodecError, TruncatedFile, UnsupportedFile
from modelcodec.runtime.tensors import as_tensor, is_in_bytes
from modelcodec.tensor_file import TensorFile, TensorSlice
from modelcodec.types import DTYPE_BY_NAME

_TORCH = ("pt", "torch", "pytorch")
_NUMPY = ("np", "numpy")
_FLOAT4 = "float4_e2m1fn_x2"
"""torch's dtype for F4: two of them in an element."""


class CorruptShard(CorruptFile, SafetensorError):
    """A damaged container where a caller reads safetensors files, and may expect their error."""


class TruncatedShard(TruncatedFile, SafetensorError):
    """The same for one that ends too early."""


class UnsupportedShard(UnsupportedFile, SafetensorError):
    """The same for one that this version, or the framework asked for, cannot take."""


class ShardBeyondLimits(LimitExceeded, SafetensorError):
    """The same for one that asks for more than `Limits` allows."""


_KINDS: Mapping[type[ModelCodecError], type[ModelCodecError]] = {
    CorruptFile: CorruptShard,
    TruncatedFile: TruncatedShard,
    UnsupportedFile: UnsupportedShard,
    LimitExceeded: ShardBeyondLimits,
}


@contextmanager
def _told_as_safetensors() -> Iterator[None]:
    """Errors of the block are safetensors' errors too."""
    try:
        yield
    except ModelCodecError as error:
        kind = _KINDS.get(type(error))
        if kind is None:
            raise
        raise kind(str(error)) from error


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """A tensor's header entry in the file that was compressed, as safetensors' class of that name tells it."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class Shard:
    """What the hook's `safe_open` gives for a container: names as safetensors lists them, tensors decoded when asked for, on the device asked for.

    Safe to use from several threads; decoding holds no GIL.
    """

    def __init__(self, file: TensorFile, framework: str, device: str | int | None) -> None:
        self._file: TensorFile | None = file
        self._torch = framework in _TORCH
        self._device = device if self._torch and device not in (None, "cpu") else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def keys(self) -> list[str]:
        """The names, sorted, as `safe_open` gives them."""
        return sorted(self.offset_keys())

    def offset_keys(self) -> list[str]:
        """The names in the order of the file."""
        return self._opened().keys()

    def metadata(self) -> dict[str, str] | None:
        return self._opened().metadata() or None

    def get_tensor(self, name: str) -> Any:
        """The whole tensor. Raises an error that is both ours and a SafetensorError for damage, SafetensorError for an unknown name."""
        part = self._slice(name)
        with _told_as_safetensors():
            tensor = self._decoded_on_gpu(name)
            return self._placed(self._shaped(name, self._opened().get_tensor(name), part)) if tensor is None else tensor

    def get_slice(self, name: str) -> ShardSlice:
        """A lazy view: indexing decodes what the first axis asks for."""
        return ShardSlice(self, name, self._slice(name))

    def get_tensors(self) -> dict[str, Any]:
        """Every tensor, in the order of the file."""
        return {name: self.get_tensor(name) for name in self.offset_keys()}

    def get_tensor_meta(self, name: str) -> TensorMeta:
        """Dtype, shape and place of a tensor in the file that was compressed."""
        part = self._slice(name)
        return TensorMeta(part.get_dtype(), part.get_shape(), self._offsets[name])

    @cached_property
    def _offsets(self) -> dict[str, tuple[int, int]]:
        """Where each tensor lies in the source's data section: one after the other, since safetensors files have no holes."""
        offsets, at = {}, 0
        for name in self.offset_keys():
            part = self._slice(name)
            end = at + DTYPE_BY_NAME[part.get_dtype()].n_bytes(tuple(part.get_shape()))
            offsets[name] = (at, end)
            at = end
        return offsets

    def prefetch(self, plan: Mapping[str, slice | None] | None = None, *, device: str | int | None = None, threads: int = 8) -> Prefetched:
        """The tensors of `plan` (all, where None), each handed out once. They are decoded when taken, on the file's own threads, whatever `threads` says."""
        if not self._torch:
            raise SafetensorError("prefetch requires framework pt")
        names = self.offset_keys()
        for name in plan or ():
            self._slice(name)
        chosen = dict.fromkeys(names) if plan is None else {name: plan[name] for name in names if name in plan}
        return Prefetched(Shard(self._opened(), "pt", self._device if device is None else device), chosen)

    def part(self, name: str, part: TensorSlice, index: Any) -> Any:
        """What indexing a tensor gives."""
        if _is_packed(part) or index is Ellipsis:
            return self.get_tensor(name)[index]
        self._opened()
        with _told_as_safetensors():
            return self._placed(part[index])

    def _opened(self) -> TensorFile:
        if self._file is None:
            raise SafetensorError("File is closed")
        return self._file

    def _slice(self, name: str) -> TensorSlice:
        try:
            return self._opened().get_slice(name)
        except KeyError:
            raise SafetensorError(f"File does not contain tensor {name}") from None

    def _shaped(self, name: str, tensor: Any, part: TensorSlice) -> Any:
        """Packed dtypes come as bytes: F4 becomes torch's, as in safetensors, which has no others either."""
        if not _is_packed(part):
            return tensor
        shape = part.get_shape()
        if self._torch and part.get_dtype() == "F4" and shape and shape[-1] % 2 == 0:
            import torch

            if hasattr(torch, _FLOAT4):
                return tensor.reshape(*shape[:-1], shape[-1] // 2).view(getattr(torch, _FLOAT4))
        raise UnsupportedFile(f"tensor {name!r}: {part.get_dtype()} of shape {shape} has no counterpart in this framework; decompress the file instead")

    def _decoded_on_gpu(self, name: str) -> Any | None:
        """A whole tensor where it shall be; None where the CPU decodes it."""
        if self._device is None:
            return None
        import torch

        from modelcodec.runtime.device_memory import tensor_on
        from modelcodec.runtime.gpu import decodes_on

        device = torch.device(self._device)
        whole = self._opened().whole_entry(name)
        if not decodes_on(device) or whole is None or is_in_bytes(whole[1].spec.dtype):
            return None
        return as_tensor(tensor_on(*whole, device), whole[1].spec, "pt", name)

    def _placed(self, tensor: Any) -> Any:
        return tensor if self._device is None else tensor.to(self._device)


class ShardSlice:
    """What `get_slice` gives: shape and dtype without decoding, elements by indexing, on the file's device."""

    def __init__(self, shard: Shard, name: str, part: TensorSlice) -> None:
        self._shard, self._name, self._part = shard, name, part

    def get_shape(self) -> list[int]:
        return self._part.get_shape()

    def get_dtype(self) -> str:
        return self._part.get_dtype()

    def __getitem__(self, index: Any) -> Any:
        return self._shard.part(self._name, self._part, index)


class Prefetched:
    """What `prefetch` gives: tensors to be taken once each, by name or by iterating over (name, tensor)."""

    def __init__(self, shard: Shard, plan: dict[str, slice | None]) -> None:
        self._shard, self._plan, self._waiting = shard, plan, dict(plan)

    def names(self) -> list[str]:
        return list(self._plan)

    def __len__(self) -> int:
        return len(self._plan)

    def take(self, name: str) -> Any:
        """Raises SafetensorError for a tensor that is not in the plan, or was taken before."""
        if name not in self._waiting:
            raise SafetensorError(f"tensor {name} is not planned, or was taken already")
        rows = self._waiting.pop(name)
        return self._shard.get_tensor(name) if rows is None else self._shard.get_slice(name)[rows]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name in list(self._waiting):
            if name in self._waiting:
                yield name, self.take(name)

    def close(self) -> None:
        self._waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_shard(path: Any, framework: str, device: str | int | None, check: Callable[[], object]) -> Shard:
    """Open a container. `check` raises where safetensors refuses the other arguments; the container itself is sound when it is called."""
    with _told_as_safetensors():
        file = TensorFile(path, "np" if framework in _NUMPY else "pt")
        try:
            check()
            if framework not in _TORCH + _NUMPY:
                raise UnsupportedFile(f"{path}: a compressed file opens with framework 'pt' or 'np', not {framework!r}; convert from numpy, or decompress it")
        except BaseException:
            file.close()
            raise
    return Shard(file, framework, device)


def deserialized(data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """What safetensors' `deserialize` gives, from the bytes of a container: name, and dtype, shape and raw bytes."""
    with _told_as_safetensors(), TensorFile.of_bytes(data) as file:
        return [(name, _raw(file, name)) for name in file.keys()]  # noqa: SIM118


def _raw(file: TensorFile, name: str) -> dict[str, Any]:
    part = file.get_slice(name)
    return {"dtype": part.get_dtype(), "shape": part.get_shape(), "data": file.get_tensor(name).reshape(-1).view(np.uint8).data}


def _is_packed(part: TensorSlice) -> bool:
    """Whether elements are no whole bytes."""
    return bool(DTYPE_BY_NAME[part.get_dtype()].bits % 8)
