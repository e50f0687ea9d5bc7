"""Decoded bytes as tensors of numpy or torch, without copying."""

from __future__ import annotations

from typing import Any

from modelcodec.errors import UnsupportedFile
from modelcodec.tensor_file import Framework, numpy_dtype
from modelcodec.types import Array, DType, TensorSpec, View
from modelcodec.views import check_repetition, gathered


def bytes_of(view: View, storage: Array, where: str) -> Array:
    """The bytes of a view, which lies inside its storage: a part of that where it is contiguous, else a copy. Raises LimitExceeded."""
    check_repetition(view.spec, storage.size, where)
    return gathered(storage[view.first * view.spec.dtype.bits // 8 :], view.spec, view.strides)


def is_in_bytes(dtype: DType) -> bool:
    """Whether neither numpy nor torch has such elements, so that tensors of them stay one dimension of bytes."""
    return dtype.elements > 1 or dtype.bits % 8 != 0


def torch_dtype(dtype: DType) -> Any:
    """The torch dtype of such a tensor, None where this version of torch has none."""
    import torch

    return getattr(torch, numpy_dtype(dtype).name, None)


def as_tensor(data: Any, spec: TensorSpec, framework: Framework, where: str) -> Any:
    """The tensor whose bytes these are: an array (u1), or for torch a tensor (u1) on any device. Raises UnsupportedFile."""
    is_torch = framework in ("pt", "torch")
    try:
        return _as_torch(data, spec, where) if is_torch else data if is_in_bytes(spec.dtype) else data.view(numpy_dtype(spec.dtype)).reshape(spec.shape)
    except (ValueError, RuntimeError, OverflowError, TypeError) as error:
        library = "torch" if is_torch else "numpy"
        raise UnsupportedFile(f"{where}: {library} has no tensor of the shape {spec.shape} ({error}); decompress the file instead") from None


def _as_torch(data: Any, spec: TensorSpec, where: str) -> Any:
    import torch

    octets = data if isinstance(data, torch.Tensor) else torch.from_numpy(data)
    if is_in_bytes(spec.dtype):
        return octets
    kind = torch_dtype(spec.dtype)
    if kind is None:
        raise UnsupportedFile(f"{where}: this version of torch has no dtype {numpy_dtype(spec.dtype).name}; use framework='np' or update torch")
    # torch views no empty tensor of bytes as wider elements.
    return octets.view(kind).reshape(spec.shape) if octets.numel() else torch.empty(spec.shape, dtype=kind, device=octets.device)
