"""Networks with fewer channels: layers cut in place, and fresh networks made to fit a file of cut ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.channels import CONVOLUTIONS, NORMS, TRANSPOSED, Channels, Ints, Mask, evaluating


@dataclass(frozen=True, slots=True)
class Size:
    """What a network costs: multiply-adds of its convolutions and linear layers for one sample, each counted as one; numbers and bytes of its state."""

    flops: int
    weights: int
    n_bytes: int

    @classmethod
    def of(cls, model: nn.Module, *example: Tensor) -> Size:
        state = model.state_dict().values()
        return cls(flops(model, *example), sum(t.numel() for t in state), sum(t.numel() * t.element_size() for t in state))

    def shrunk_to(self, after: Size) -> str:
        """The change, in a line."""
        changes = ((self.flops, after.flops, "multiply-adds a sample"), (self.weights, after.weights, "numbers"), (self.n_bytes, after.n_bytes, "bytes"))
        return ", ".join(f"{before:,} to {now:,} {what}" for before, now, what in changes)


def flops(model: nn.Module, *example: Tensor) -> int:
    """Multiply-adds of convolutions and linear layers for one sample of a batch."""
    total = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], gives: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += (given[0] if isinstance(module, TRANSPOSED) else gives).numel() * weight[0].numel()

    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, (*CONVOLUTIONS, nn.Linear))]
    try:
        with evaluating(model), torch.no_grad():
            model(*example)
    finally:
        for hook in hooks:
            hook.remove()
    return total // len(example[0])


def narrow(model: nn.Module, channels: Channels, kept: Mask) -> None:
    """Remove all units that are not `kept`, in place. What is cut are new parameters: an optimizer is made afterwards."""
    stays = np.append(kept, True)  # unit -1
    for name, layer in channels.layers.items():
        module: Any = model.get_submodule(name)
        sides: list[Ints | None] = [np.flatnonzero(stays[layer.outputs]), np.flatnonzero(stays[layer.inputs])]
        if isinstance(module, TRANSPOSED):
            sides.reverse()
        if layer.groups > 1:
            sides[1] = None  # groups go whole, what is in one stays
        _take(module, "weight", *sides)
        if module.bias is not None:
            _take(module, "bias", np.flatnonzero(stays[layer.outputs]))
        _read_shape(module)
    for name, vector in channels.vectors.items():
        module = model.get_submodule(name)
        places = np.flatnonzero(stays[vector.units])
        for key, tensor in _own(module).items():
            if tensor.dim() == 1:
                _take(module, key, places)
        _read_shape(module, places.size)


def filter_rows(module: nn.Module) -> Tensor:
    """The weights of each output channel of a layer, outputs x weights."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, TRANSPOSED):
        weight = weight.reshape(module.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1)


def _own(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)) if tensor is not None}


def _take(module: nn.Module, key: str, *places: Ints | None) -> None:
    tensor = before = getattr(module, key)
    for dim, chosen in enumerate(places):
        if chosen is not None and chosen.size < tensor.shape[dim]:
            tensor = tensor.detach().index_select(dim, torch.from_numpy(chosen).to(tensor.device))
    if tensor is not before:
        _put(module, key, tensor)


def _put(module: nn.Module, key: str, tensor: Tensor) -> None:
    """In place of a parameter or buffer; as a new object, since a graph that is still about knows the old one by its shape."""
    before = getattr(module, key)
    setattr(module, key, nn.Parameter(tensor, before.requires_grad) if isinstance(before, nn.Parameter) else tensor)


def _read_shape(module: Any, n_channels: int = 0) -> None:
    """Let a module's attributes say what its tensors are. `n_channels`: of one that may have none."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, CONVOLUTIONS):
        of_weight = 0 if isinstance(module, TRANSPOSED) else 1
        sizes = module.weight.shape[:2]
        if module.groups > 1:
            whole = module.in_channels if of_weight == 0 else module.out_channels
            module.groups = sizes[0] // (whole // module.groups)
        other = sizes[1] * module.groups
        module.out_channels, module.in_channels = (sizes[0], other) if of_weight else (other, sizes[0])
    elif isinstance(module, NORMS):
        module.num_features = n_channels
    else:
        module.num_parameters = n_channels


def shrunk(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The model, its layers cut in place to the shapes of a state, so that `load_state_dict` takes it.

    Raises BadRecipe for tensors that differ otherwise than by channels.
    """
    for name, module in model.named_modules():
        own = _own(module)
        wanted = {key: state[f"{name}.{key}" if name else key].shape for key in own if (f"{name}.{key}" if name else key) in state}
        if all(shape == own[key].shape for key, shape in wanted.items()):
            continue
        for key, shape in wanted.items():
            tensor = own[key]
            if not isinstance(module, (*CONVOLUTIONS, *NORMS, nn.Linear, nn.PReLU)) or len(shape) != tensor.dim() or shape[2:] != tensor.shape[2:]:
                raise BadRecipe(f"{name}.{key}: {tuple(shape)} in the file, {tuple(tensor.shape)} in the model; this is another network")
            if any(n > whole for n, whole in zip(shape, tensor.shape, strict=True)):
                raise BadRecipe(f"{name}.{key}: {tuple(shape)} in the file, only {tuple(tensor.shape)} in the model; begin with the network as it was before")
            _put(module, key, tensor.detach()[tuple(slice(n) for n in shape)].clone())
        _read_shape(module, max(shape[0] if shape else 0 for shape in wanted.values()))
    return model
