"""A compressed checkpoint straight into the parameters and buffers of a torch module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any, cast

from modelcodec.pool import thread_count
from modelcodec.runtime.device_memory import DeviceMemory
from modelcodec.runtime.gpu import decodes_on
from modelcodec.runtime.pipeline import Pipeline
from modelcodec.runtime.sources import Location, files_of, name_of
from modelcodec.runtime.streaming import MEMORY_BOUND
from modelcodec.runtime.tensors import as_tensor, is_in_bytes, torch_dtype
from modelcodec.types import TensorSpec

if TYPE_CHECKING:
    import torch

WORD_BYTES = 8
"""Frames are decoded in words of up to so many bytes."""


def load_model(
    model: torch.nn.Module, source: Location, *, strict: bool = True, device: Any = None, threads: int | None = None
) -> tuple[list[str], list[str]]:
    """Load a compressed checkpoint into a module in place, as `safetensors.torch.load_model` does; returns missing and unexpected names.

    `source`, `threads`: as for `stream`. What has the dtype and shape of its parameter, on the CPU or on a GPU that can decode, is decoded in its place; the
    rest is converted and copied as by `load_state_dict`, whose hooks are run. Parameters and buffers on the meta device are made on `device` (default: the
    CPU) in their own dtype; tied ones stay tied. A name whose parameter is tied to one that was loaded is not missing.

    memory: what `stream` takes, and all tensors for which the module has no place until the end.
    raises: RuntimeError for shapes that do not match, and with `strict` for missing or unexpected names; what `stream` raises. Parts may be loaded then.
    """
    targets = _Targets(model, device)
    state: dict[str, torch.Tensor] = {}
    for file in files_of(source):
        with Pipeline(file, thread_count(threads), MEMORY_BOUND, targets) as pipeline:
            for spec, data in pipeline:
                state[spec.name] = targets.load(spec, as_tensor(data, spec, "pt", name_of(file)))
                del data
    # Loaded tensors are the module's own by now and are not copied again; what is left to do is to run hooks, and to find out what is missing or does not fit.
    found = model.load_state_dict(state, strict=False)
    missing = sorted(targets.without_tied(found.missing_keys, state))
    unexpected = sorted(found.unexpected_keys)
    if strict and (missing or unexpected):
        faults = [f"{kind} key(s) in state_dict: {', '.join(map(repr, names))}" for kind, names in (("Missing", missing), ("Unexpected", unexpected)) if names]
        raise RuntimeError("\n    ".join((f"Error(s) in loading state_dict for {type(model).__name__}:", *faults)))
    return missing, unexpected


class _Targets(DeviceMemory):
    """The parameters and persistent buffers of a module, by name."""

    def __init__(self, model: torch.nn.Module, device: Any) -> None:
        import torch

        # Extra state may be anything.
        self._tensors = {name: x for name, x in model.state_dict(keep_vars=True).items() if isinstance(x, torch.Tensor)}
        super().__init__(device or "cpu", {x.device for x in self._tensors.values()})
        self._names: dict[int, list[str]] = defaultdict(list)
        for name, x in self._tensors.items():
            self._names[id(x)].append(name)
        self._placed: set[str] = set()
        self._taken: set[int] = set()
        self._holders: dict[int, list[tuple[dict[str, Any], str]]] = defaultdict(list)
        for module in model.modules():
            for holder in (module._parameters, module._buffers):
                for key, held in holder.items():
                    self._holders[id(held)].append((cast(dict[str, Any], holder), key))

    def place(self, spec: TensorSpec) -> Any:
        """The memory of a tensor's target, if it can have the decoded bytes as they are."""
        import torch

        target = self._tensors.get(spec.name)
        if target is None or not _is_plain(target) or not (target.device.type == "cpu" or decodes_on(target.device)) or not target.is_contiguous():
            return None
        if tuple(target.shape) != spec.shape or target.dtype != torch_dtype(spec.dtype) or is_in_bytes(spec.dtype) or not spec.n_bytes:
            return None
        address = target.data_ptr()
        if address % WORD_BYTES or address in self._taken:  # of tied ones, no two may be decoded into their place at a time
            return None
        self._taken.add(address)
        self._placed.add(spec.name)
        memory = target.detach().reshape(-1).view(torch.uint8)
        return memory if decodes_on(target.device) else memory.numpy()

    def allocate(self, spec: TensorSpec) -> Any:
        """Memory where the target is, or where it shall be."""
        target = self._tensors.get(spec.name)
        return self.on(self.device if target is None or target.is_meta else target.device, spec.n_bytes)

    def load(self, spec: TensorSpec, tensor: torch.Tensor) -> torch.Tensor:
        """The target once it has the tensor's elements, or the tensor where there is no target for it."""
        import torch

        target = self._tensors.get(spec.name)
        if target is None or torch.nn.parameter.is_lazy(target) or target.shape != tensor.shape:
            return tensor
        if target.is_meta:
            return self._made(target, tensor)
        if spec.name not in self._placed:
            with torch.no_grad():
                target.copy_(tensor)
        return target

    def _made(self, target: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """Put a real tensor wherever the module has this one of the meta device."""
        import torch

        made = tensor.to(self.device, target.dtype)
        if isinstance(target, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=target.requires_grad)
        for holder, name in self._holders[id(target)]:
            holder[name] = made
        self._tensors.update(dict.fromkeys(self._names[id(target)], made))
        return made

    def without_tied(self, missing: Iterable[str], loaded: Container[str]) -> list[str]:
        """The missing names whose tensors were not loaded under another name either."""
        there = {_identity(x) for name, x in self._tensors.items() if name in loaded}
        return [name for name in missing if name not in self._tensors or _identity(self._tensors[name]) not in there]


def _is_plain(x: torch.Tensor) -> bool:
    """Whether its memory is what it seems, which that of a subclass is not, or not yet."""
    import torch

    return type(x) in (torch.Tensor, torch.nn.Parameter)


def _identity(x: torch.Tensor) -> tuple[Any, ...]:
    """The same for tensors that are tied."""
    if x.is_meta or not _is_plain(x) or not x.numel():
        return (id(x),)
    return x.device, x.data_ptr(), x.shape, x.stride()
