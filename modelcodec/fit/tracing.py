"""Which layers of a torch model follow each other, for fits that move factors between them."""

from __future__ import annotations

from collections import Counter

import torch
from torch import fx, nn
from torch.nn import functional

from modelcodec.errors import BadRecipe
from modelcodec.fit.equalize import Norm, Pair

_KERNELS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_KEEPS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Dropout, nn.Dropout2d)
"""Modules that give a channel times a positive factor where they are given it."""
_KEEPS_CALLED = {torch.relu, torch.relu_, functional.relu, functional.relu_, functional.leaky_relu, "relu", "relu_"}
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
"""The same behind convolutions, whose channels are not the last dimension."""
_POOLS_CALLED = {functional.max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d}
_FLATTENS = {torch.flatten, torch.mean, "flatten", "mean"}
_FROM_CHANNELS = ((1,), (2, 3), (-2, -1), (-1, -2))
"""Dimensions over which an image may be flattened, or its mean taken, before a linear layer."""


def pairs(model: nn.Module) -> tuple[Pair, ...]:
    """Layers whose outputs only one layer takes, through nothing but a BatchNorm and maps that keep a channel's positive factor; and those with a BatchNorm
    only. Raises BadRecipe for a model that torch.fx cannot trace."""
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception as error:  # the model's own code is run
        raise BadRecipe(f"equalize: the model cannot be traced ({error}); give the pairs by their tensors' names") from error
    walk = _Walk(model, graph)
    found = [walk.pair(node) for node in graph.nodes if isinstance(walk.module(node), _LAYERS)]
    return tuple(pair for pair in found if pair is not None)


_LAYERS = (*_KERNELS, nn.Linear)


class _Walk:
    """The modules of a traced model that have no parameters, or parameters of their own, used once."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
        holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        self.modules = {}
        for name, module in model.named_modules():
            own = list(module.parameters(recurse=False))
            if not own or (calls[name] == 1 and all(holders[id(parameter)] == 1 for parameter in own)):
                self.modules[name] = module

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def pair(self, node: fx.Node) -> Pair | None:
        """A layer with the layer that takes its channels, its norm, or both."""
        first, at, norm = self.module(node), _only_user(node), None
        if at is not None and isinstance(self.module(at), _NORMS):
            norm = _norm(str(at.target), self.module(at))
            at = _only_user(at) if norm is not None else None
        flat = False
        while at is not None and not isinstance(self.module(at), _LAYERS):
            flat = flat or self.flattens(at)
            at = _only_user(at) if self.keeps(at, isinstance(first, _KERNELS)) else None
        second = None if at is None else self.module(at)
        takes = isinstance(second, _LAYERS) and isinstance(second, _KERNELS) == (isinstance(first, _KERNELS) and not flat)
        if norm is None and not takes:
            return None
        bias = f"{node.target}.bias" if getattr(first, "bias", None) is not None else None
        groups = int(getattr(second, "groups", 1)) if takes else 1
        return Pair(f"{node.target}.weight", f"{at.target}.weight" if at is not None and takes else None, bias, norm, groups)

    def keeps(self, node: fx.Node, from_kernel: bool) -> bool:
        """Whether a channel's factor comes through, still one of the same channel."""
        module, called = self.module(node), None if node.op == "call_module" else node.target
        if isinstance(module, _KEEPS) or called in _KEEPS_CALLED:
            return True
        return from_kernel and (isinstance(module, _POOLS) or called in _POOLS_CALLED or self.flattens(node))

    def flattens(self, node: fx.Node) -> bool:
        module = self.module(node)
        if isinstance(module, nn.Flatten):
            return module.start_dim == 1 and module.end_dim == -1
        if node.op == "call_module" or node.target not in _FLATTENS:
            return False
        given = node.args[1] if len(node.args) == 2 else node.kwargs.get("dim", node.kwargs.get("start_dim"))
        dimensions = tuple(given) if isinstance(given, list | tuple) else (given,)
        return dimensions in (_FROM_CHANNELS[:1] if "flatten" in str(node.target) else _FROM_CHANNELS[1:]) and not node.kwargs.get("keepdim")


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _norm(name: str, module: nn.Module | None) -> Norm | None:
    """A norm with factors and running statistics of its own, as it is used in evaluation."""
    if not isinstance(module, _NORMS) or not module.affine or not module.track_running_stats:
        return None
    return Norm(name, module.eps)
