"""Which compressed weights of a model a GPU decodes together: those of an item of a ModuleList or Sequential, for instance of a decoder layer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelcodec.runtime import compressed_weight as weights
from modelcodec.runtime.gpu_weights import Layer, close_scope, open_scope

if TYPE_CHECKING:
    from torch.nn import Module

_OF_EXPERTS = 3
"""Dimensions of a weight that is mostly one of many experts, of which a forward pass uses some: it is not decoded whole with others."""


def join_layers(model: Module) -> None:
    """Tell the compressed weights of each layer of each other, and make its forward pass a scope in which they are decoded once.

    A layer is an item that has two of them or more, the innermost for each weight.
    """
    stores, items = _stores(model), _items(model)
    n_inside = Counter(name for parameter in stores for name in _around(parameter) if name in items)
    members: dict[tuple[str, int], list[Any]] = defaultdict(list)
    for parameter, store in stores.items():
        home = next((name for name in _around(parameter) if n_inside[name] > 1), None)
        if home is not None:
            members[home, store.frames.spec.dtype.word].append(store)
    for (home, _), together in members.items():
        if len(together) > 1:
            _join(together)
            _decode_once(items[home])


def _stores(model: Module) -> dict[str, Any]:
    """What may be decoded with others, once each, by the name of its parameter."""
    compressed: dict[str, Any] = {name: p for name, p in model.named_parameters() if weights.is_compressed(p)}
    return {name: p.store for name, p in compressed.items() if p.dim() != _OF_EXPERTS and not p.store.coding.fixed_length}


def _items(model: Module) -> dict[str, Module]:
    from torch import nn

    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList | nn.Sequential)]
    return {f"{name}.{number}" if name else number: item for name, module in lists for number, item in module.named_children()}


def _around(parameter: str) -> list[str]:
    """Names of the modules around a parameter, the innermost first."""
    parts = parameter.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]


def _join(together: Sequence[Any]) -> None:
    """Unless they are a layer already."""
    coded = [store.frames for store in together]
    layer = together[0].layer
    if layer is None or any(store.layer is not layer for store in together) or list(map(id, layer.coded)) != list(map(id, coded)):
        layer = Layer(coded)
        for place, store in enumerate(together):
            store.join(layer, place)


def _decode_once(module: Module) -> None:
    if open_scope not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(open_scope)
        module.register_forward_hook(close_scope, always_call=True)
