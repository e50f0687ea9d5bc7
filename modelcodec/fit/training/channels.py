"""Which channels of a network can only be removed together: found by tracing its graph with torch.fx and running it once on an example."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from modelcodec.errors import BadRecipe

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

_STAYS = 0
"""The number of channels that must stay, while tracing."""
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_BY_CHANNEL = (*NORMS, nn.PReLU)
"""Modules with a number for each channel; GroupNorm and LayerNorm, which mix channels, are none of them."""
_PLAIN = (int, float, str, torch.Size, torch.dtype, torch.device, type(None))
"""What says nothing about channels."""
_SUMS = ("add", "add_", operator.add, operator.iadd, torch.add)
_POINTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid,
    nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_SPATIAL = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d,
    nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.Upsample,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or linear layer. `inputs`, `outputs`: the unit of each input feature and output channel, -1 where it stays; `channels`: the channel that an
    input feature belongs to, several after a flattening. `flops`, `n_bytes`: of each pair of an input and an output that meet; `bias_bytes`: of an output."""

    inputs: Ints
    outputs: Ints
    channels: Ints
    groups: int
    flops: int
    n_bytes: int
    bias_bytes: int


@dataclass(frozen=True, slots=True)
class Vector:
    """A module with numbers for each channel, of so many bytes each, and the units of these channels."""

    units: Ints
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Channels:
    """What a network's channels are tied to. A unit is what goes as a whole; units that share an output layer are of one `families`; `summed` ones are those
    that several layers add up to, as in a residual network."""

    layers: Mapping[str, Layer]
    vectors: Mapping[str, Vector]
    families: Ints
    summed: Mask

    @property
    def n_units(self) -> int:
        return self.families.size


def trace(model: nn.Module, *example: Tensor) -> Channels:
    """Trace a model that takes `example`, two samples or more.

    What the tracing does not understand keeps all its channels: attention, channel shuffles, sizes written as numbers. Through shortcuts that pad channels with
    zeros by shares of a shape, channels go in bundles that keep the shares. Raises BadRecipe for a model that torch.fx cannot trace.
    """
    parametrized = next((name for name, module in model.named_modules() if parametrize.is_parametrized(module)), None)
    if parametrized is not None:
        raise BadRecipe(f"{parametrized or type(model).__name__} is parametrized, its channels cannot be cut; let the method that removes channels come first")
    with evaluating(model), torch.no_grad():
        walk = _Walk(model, fx.GraphModule(model, _graph(model)))
        walk.run(*example)
    return walk.found()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in the mode of evaluation; each module is in its own mode again afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.within = ["the model itself"]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.within.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.within.pop()  # not where it raises: the last one is the place of the error
        return result


def _graph(model: nn.Module) -> fx.Graph:
    tracer = _Tracer()
    try:
        return tracer.trace(model)
    except Exception as error:  # whatever the user's own forward raises when it meets stand-ins for tensors
        raise BadRecipe(f"{type(model).__name__} cannot be traced, in {tracer.within[-1]}: {error}; its forward must not depend on values of tensors") from None


class _Ties:
    """Sets of channels that go together."""

    def __init__(self) -> None:
        self._parents = [_STAYS]

    def new(self, n: int) -> Ints:
        first = len(self._parents)
        self._parents.extend(range(first, first + n))
        return np.arange(first, first + n)

    def root(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = channel = parents[parents[channel]]
        return channel

    def tie(self, a: Ints, b: Ints) -> None:
        """The smaller number stands for both, so that what is tied to one that stays does."""
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self._parents[high] = low

    def bundle(self, bundles: Ints) -> None:
        """Each row goes together."""
        for column in bundles.T[1:]:
            self.tie(bundles[:, 0], column)

    def pin(self, channels: Ints) -> None:
        self.tie(channels, np.full(channels.size, _STAYS))

    def roots(self, channels: Ints) -> Ints:
        return np.array([self.root(channel) for channel in channels.tolist()], np.int64)


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor's dimension that runs over channels, and their numbers."""

    dim: int
    ids: Ints


@dataclass(frozen=True, slots=True)
class _Met:
    """A layer as the walk met it, before it is known what is tied in the end."""

    inputs: Ints
    outputs: Ints
    flops: int


class _Walk(fx.Interpreter):
    """Runs the graph, and along with each tensor has the numbers of its channels."""

    def __init__(self, model: nn.Module, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._ties = _Ties()
        self._values: dict[fx.Node, _Value | None] = {}
        self._met: dict[str, _Met] = {}
        self._vectors: dict[str, Ints] = {}
        self._summed = [np.empty(0, np.int64)]
        owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        self._shared = {number for number, n in owners.items() if n > 1}
        self._shared |= {id(self.fetch_attr(str(node.target))) for node in module.graph.nodes if node.op == "get_attr"}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self._values[n] = self._value(n, result)
        return result

    def _value(self, node: fx.Node, result: Any) -> _Value | None:
        if node.op in ("placeholder", "get_attr"):
            return None
        if node.op == "output" or not isinstance(result, Tensor):
            return None if isinstance(result, _PLAIN) else self._unknown(node, result)
        if node.op == "call_module":
            return self._module(node, self.fetch_attr(str(node.target)), result)
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return _RULES.get(name, _Walk._unknown)(self, node, result)

    def _unknown(self, node: fx.Node, result: Any) -> _Value | None:
        for given in node.all_input_nodes:
            self._pin(given)
        return None

    def _pin(self, node: fx.Node) -> None:
        if (value := self._values[node]) is not None:
            self._ties.pin(value.ids)

    def _given(self, node: fx.Node, place: int, name: str, default: Any = None) -> Any:
        """An argument, as a node or a literal."""
        return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)

    def _first(self, node: fx.Node) -> tuple[Tensor, _Value | None]:
        given = self._given(node, 0, "input")
        return self.env[given], self._values[given]

    def _module(self, node: fx.Node, module: nn.Module, result: Tensor) -> _Value | None:
        if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
            return self._layer(node, module, result)
        if isinstance(module, _BY_CHANNEL) and not (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            return self._vector(node, module, result)
        if isinstance(module, (*_POINTWISE, nn.PReLU)):
            return self._pointwise(node, result)
        if isinstance(module, _SPATIAL):
            return self._spatial(node, result)
        return self._reshaped(node, result) if isinstance(module, nn.Flatten) else self._unknown(node, result)

    def _layer(self, node: fx.Node, module: Any, result: Tensor) -> _Value | None:
        x, value = self._first(node)
        is_conv = not isinstance(module, nn.Linear)
        n_inputs, n_outputs = (module.in_channels, module.out_channels) if is_conv else (module.in_features, module.out_features)
        dim = x.dim() - (len(module.kernel_size) + 1 if is_conv else 1)
        name, ties = str(node.target), self._ties
        if value is not None and value.dim != dim:
            ties.pin(value.ids)
        inputs = value.ids if value is not None and value.dim == dim else np.full(n_inputs, _STAYS)
        before = self._met.get(name)
        outputs = ties.new(n_outputs) if before is None else before.outputs
        if before is not None:
            ties.tie(inputs, before.inputs)
        if any(id(p) in self._shared for p in module.parameters()):
            ties.pin(np.concatenate((inputs, outputs)))
        if is_conv and module.groups > 1:
            ties.bundle(np.concatenate((inputs.reshape(module.groups, -1), outputs.reshape(module.groups, -1)), 1))
        places = (x if isinstance(module, TRANSPOSED) else result).select(dim, 0)[0].numel()
        uses = places * math.prod(module.weight.shape[2:]) + (0 if before is None else before.flops)
        self._met[name] = _Met(inputs, outputs, uses)
        return _Value(dim, outputs)

    def _vector(self, node: fx.Node, module: nn.Module, result: Tensor) -> _Value | None:
        _, value = self._first(node)
        if value is None or value.dim != 1 or any(id(p) in self._shared for p in module.parameters()):
            return self._unknown(node, result)
        ids = self._vectors.setdefault(str(node.target), value.ids)
        self._ties.tie(ids, value.ids)
        return value

    def _pointwise(self, node: fx.Node, result: Tensor) -> _Value | None:
        """Any number of tensors, broadcast."""
        operands = [(given, self.env[given]) for given in node.all_input_nodes if isinstance(self.env[given], Tensor)]
        values = [(self._values[given], result.dim() - tensor.dim()) for given, tensor in operands]
        dims = {value.dim + missing for value, missing in values if value is not None}
        if len(dims) != 1:
            return self._unknown(node, result)
        dim = dims.pop()
        ids: Ints | None = None
        for (given, tensor), (value, missing) in zip(operands, values, strict=True):
            if dim < missing or tensor.shape[dim - missing] != result.shape[dim]:
                self._pin(given)  # one channel for all
            elif value is None:
                return self._unknown(node, result)
            elif ids is None:
                ids = value.ids
            else:
                self._ties.tie(ids, value.ids)
                if node.target in _SUMS:
                    self._summed.append(ids)
        return None if ids is None else _Value(dim, ids)

    def _spatial(self, node: fx.Node, result: Tensor) -> _Value | None:
        x, value = self._first(node)
        return value if value is not None and value.dim == 1 and result.shape[:2] == x.shape[:2] else self._unknown(node, result)

    def _reshaped(self, node: fx.Node, result: Tensor) -> _Value | None:
        """Row by row, the channels' dimension alone or merged with ones after it."""
        x, value = self._first(node)
        if value is None:
            return None
        before = math.prod(x.shape[: value.dim])
        n = value.ids.size
        dim = next((d for d, size in enumerate(result.shape) if size % n == 0 and math.prod(result.shape[:d]) == before), None)
        if dim is None or (node.target in ("view", "reshape", torch.reshape) and self._is_literal(node, dim)):
            return self._unknown(node, result)
        return _Value(dim, np.repeat(value.ids, result.shape[dim] // n))

    def _is_literal(self, node: fx.Node, dim: int) -> bool:
        """Whether a shape is written with a number in place `dim`, which would no longer be true of fewer channels."""
        sizes = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], tuple | list) else node.args[1:] or node.kwargs.get("shape", ())
        size = sizes[dim] if isinstance(sizes, tuple | list) and dim < len(sizes) else -1
        return isinstance(size, int) and size != -1

    def _moved(self, node: fx.Node, result: Tensor) -> _Value | None:
        x, value = self._first(node)
        if value is None:
            return None
        order = list(range(x.dim()))
        given: Any = node.args[1] if isinstance(node.args[-1], tuple | list) else node.args[1:]
        if not all(isinstance(place, int) for place in given):
            return self._unknown(node, result)
        places = [place % x.dim() for place in given]
        if len(places) == x.dim() and node.target in ("permute", torch.permute):
            order = places
        elif len(places) == 2 and node.target in ("transpose", torch.transpose):
            order[places[0]], order[places[1]] = order[places[1]], order[places[0]]
        else:
            return self._unknown(node, result)
        return _Value(order.index(value.dim), value.ids)

    def _reduced(self, node: fx.Node, result: Tensor) -> _Value | None:
        x, value = self._first(node)
        given = self._given(node, 1, "dim")
        dims = {int(d) % x.dim() for d in (given if isinstance(given, tuple | list) else (given,)) if isinstance(d, int)}
        if value is None or not dims or value.dim in dims:
            return self._unknown(node, result)
        return _Value(value.dim - (sum(d < value.dim for d in dims) if result.dim() < x.dim() else 0), value.ids)

    def _joined(self, node: fx.Node, result: Tensor) -> _Value | None:
        nodes = self._given(node, 0, "tensors")
        given = self._given(node, 1, "dim", 0)
        if not isinstance(nodes, tuple | list) or not isinstance(given, int):
            return self._unknown(node, result)
        dim, found = given % result.dim(), [self._values[part] for part in nodes]
        along = {value.dim for value in found if value is not None}
        if len(along) != 1:
            return self._unknown(node, result)
        if along == {dim}:
            sizes = [self.env[part].shape[dim] for part in nodes]
            return _Value(dim, np.concatenate([np.full(n, _STAYS) if v is None else v.ids for v, n in zip(found, sizes, strict=True)]))
        return self._pointwise(node, result)

    def _padded(self, node: fx.Node, result: Tensor) -> _Value | None:
        x, value = self._first(node)
        if value is None:
            return None
        written = self._given(node, 1, "pad")
        place = 2 * (x.dim() - 1 - value.dim)
        sizes: Any = self.map_nodes_to_values(written, node)
        before, after = [*sizes, *(0,) * 2 * x.dim()][place : place + 2]
        if before == after == 0:
            return value
        if before < 0 or after < 0 or self._given(node, 2, "mode", "constant") != "constant":
            return self._unknown(node, result)
        left, right = self._ties.new(before), self._ties.new(after)
        amounts = written[place : place + 2] if isinstance(written, tuple | list) else (written,)
        if all(isinstance(amount, fx.Node) or amount == 0 for amount in amounts):
            n = math.gcd(value.ids.size, before, after)  # amounts taken from shapes: fewer channels keep their proportions
            self._ties.bundle(np.concatenate([part.reshape(n, -1) for part in (value.ids, left, right)], 1))
        else:
            self._ties.pin(np.concatenate((left, right)))
            if any(isinstance(amount, fx.Node) for amount in amounts):
                self._ties.pin(value.ids)
        return _Value(value.dim, np.concatenate((left, value.ids, right)))

    def _sliced(self, node: fx.Node, result: Tensor) -> _Value | None:
        x, value = self._first(node)
        if value is None:
            return None
        given = node.args[1]
        index: list[Any] = list(given) if isinstance(given, tuple | list) else [given]
        taken = sum(part is not None and part is not Ellipsis for part in index)
        rest = [slice(None)] * (x.dim() - taken)
        place = next((k for k, part in enumerate(index) if part is Ellipsis), len(index))
        index[place : place + 1] = rest
        before = after = 0
        for part in index:
            if before == value.dim and part is not None:
                break
            before, after = before + (part is not None), after + (part is None or isinstance(part, slice))
        if not all(part is None or isinstance(part, int | slice) for part in index) or part != slice(None):
            return self._unknown(node, result)
        return _Value(after, value.ids)

    def found(self) -> Channels:
        """The units, numbered as they are met. Channels that no layer makes are in none."""
        ties = self._ties
        numbers = {_STAYS: -1}
        for met in self._met.values():
            for root in ties.roots(met.outputs).tolist():
                numbers.setdefault(root, len(numbers) - 1)

        def units(ids: Ints) -> Ints:
            return np.array([numbers.get(root, -1) for root in ties.roots(ids).tolist()], np.int64)

        layers = {}
        for name, met in self._met.items():
            module: Any = self.fetch_attr(name)
            size = module.weight.element_size()
            kernel = math.prod(module.weight.shape[2:])
            channels = np.unique(met.inputs, return_inverse=True)[1] if (met.inputs != _STAYS).all() else np.arange(met.inputs.size)
            bias = 0 if module.bias is None else size
            layers[name] = Layer(units(met.inputs), units(met.outputs), channels, getattr(module, "groups", 1), met.flops, kernel * size, bias)
        vectors = {name: Vector(units(ids), _bytes_by_channel(self.fetch_attr(name))) for name, ids in self._vectors.items()}
        families = _families([layer.outputs for layer in layers.values()], len(numbers) - 1)
        return Channels(layers, vectors, families, np.isin(np.arange(families.size), units(np.concatenate(self._summed))))


def _bytes_by_channel(module: nn.Module) -> int:
    return sum(tensor.element_size() for tensor in module.state_dict().values() if tensor.dim() == 1)


def _families(outputs: list[Ints], n_units: int) -> Ints:
    """The number of each unit's family: those that are outputs of one layer, and so on."""
    ties = _Ties()
    ties.new(n_units)
    for units in outputs:
        of_layer = np.unique(units[units >= 0]) + 1
        ties.tie(of_layer[:-1], of_layer[1:])
    return np.unique(ties.roots(np.arange(n_units) + 1), return_inverse=True)[1]


_RULES: dict[str, Callable[[_Walk, fx.Node, Any], _Value | None]] = {
    **dict.fromkeys(
        (
            "relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh", "hardtanh", "hardswish", "hardsigmoid",
            "softplus", "dropout", "dropout1d", "dropout2d", "dropout3d", "clamp", "clip", "abs", "neg", "exp", "sqrt", "rsqrt", "square", "pow", "clone",
            "contiguous", "detach", "to", "float", "half", "bfloat16", "add", "add_", "iadd", "sub", "sub_", "isub", "mul", "mul_", "imul", "div", "div_",
            "truediv", "itruediv", "maximum", "minimum",
        ),
        _Walk._pointwise,
    ),
    **dict.fromkeys(
        (
            "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d",
            "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "interpolate",
        ),
        _Walk._spatial,
    ),
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze"), _Walk._reshaped),
    **dict.fromkeys(("transpose", "permute"), _Walk._moved),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _Walk._reduced),
    **dict.fromkeys(("cat", "concat"), _Walk._joined),
    "pad": _Walk._padded,
    "getitem": _Walk._sliced,
}  # fmt: skip
