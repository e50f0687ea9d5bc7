"""The weights of a model that methods train for the file, and the way back from a trained model to the codec's fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit
from modelcodec.fit.rules import is_usual
from modelcodec.fitted import FittedTensor, Weights
from modelcodec.stage import Plan
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

LAYERS = (nn.Linear, _ConvNd, nn.Embedding)
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight by its `name` in the plain model's state, and the layers that share it."""

    name: str
    layers: tuple[nn.Module, ...]

    @property
    def tensor(self) -> Tensor:
        """What the layers compute with, parametrizations applied."""
        tensor: Tensor = self.layers[0].weight  # type: ignore[assignment]
        return tensor

    def parametrize(self, how: nn.Module) -> None:
        """Let all layers see the weight through `how`; a tied weight stays one."""
        for layer in self.layers:
            parametrize.register_parametrization(layer, "weight", how)

    def values(self, tensor: Tensor) -> Weights:
        """A tensor in this one's place, as fits take it."""
        return weights_of(self.name, tensor)


def usual_weights(model: nn.Module) -> list[Weight]:
    """Weights of linear layers, convolutions and embeddings, without those that fits leave exact by default. Raises BadRecipe where there are none."""
    found: dict[int, tuple[str, list[nn.Module]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and module.weight.dtype in _DTYPES:
            weight = f"{name}.weight" if name else "weight"
            if "weight" not in module._parameters and not parametrize.is_parametrized(module, "weight"):
                raise BadRecipe(f"{weight} is no parameter: a hook makes it, as torch.nn.utils.weight_norm has it; remove it, or use one of parametrizations")
            if is_usual(TensorSpec(weight, DTYPE_BY_NAME[_DTYPES[module.weight.dtype]], tuple(module.weight.shape))):
                found.setdefault(id(_stored(module)), (weight, []))[1].append(module)
    if not found:
        raise BadRecipe("the model has no weights to train for the file: no linear layer, convolution or embedding of 256 weights or more")
    with torch.no_grad():
        for name, layers in found.values():
            if not bool(layers[0].weight.isfinite().all()):  # type: ignore[operator]
                raise BadRecipe(f"{name} has weights that are no numbers; train from sound ones")
    return [Weight(name, tuple(layers)) for name, layers in found.values()]


def chosen_weights(model: nn.Module, exact: str, embeddings: bool) -> list[Weight]:
    """The usual weights, embeddings only where wanted, without those whose names match one of the patterns in `exact` (as in `conv1* fc*`). Raises BadRecipe
    where none are left."""
    found = [
        weight
        for weight in usual_weights(model)
        if (embeddings or not any(isinstance(layer, nn.Embedding) for layer in weight.layers))
        and not any(fnmatchcase(weight.name, pattern) for pattern in exact.split())
    ]
    if not found:
        raise BadRecipe(f"no weights are left to train for the file: exact = {exact!r}, and embeddings {'count' if embeddings else 'do not count'}")
    return found


def _stored(module: nn.Module) -> object:
    """What is the same object for layers that share a weight."""
    if not parametrize.is_parametrized(module, "weight"):
        return module.weight
    original: object = getattr(module.parametrizations["weight"], "original", module)  # type: ignore[index]
    return original


class _Replaced(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """The value, exactly, whose gradient goes to x as if it were x (Bengio, Léonard & Courville, arXiv 1308.3432)."""
    replaced: Tensor = _Replaced.apply(x, value.detach())  # type: ignore[no-untyped-call]
    return replaced


def weights_of(name: str, tensor: Tensor) -> Weights:
    """A tensor as fits take it: its words, row by row, in the memory of the processor."""
    kind = DTYPE_BY_NAME[_DTYPES[tensor.dtype]]
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    words = flat.view(torch.int32 if kind.word == 4 else torch.int16).numpy().view(f"<u{kind.word}")
    return Weights(TensorSpec(name, kind, tuple(tensor.shape)), words)


def tensor_of(fitted: Weights, like: Tensor) -> Tensor:
    """The way back: a tensor of the shape, dtype and device of `like`."""
    return torch.from_numpy(fitted.words.view("<i4" if fitted.words.itemsize == 4 else "<i2")).view(like.dtype).reshape(like.shape).to(like.device)


@dataclass(frozen=True, slots=True)
class Planned(Fit):
    """Weights that a training has given their last values: they stay, each coded by the plan found for it."""

    plans: Mapping[str, Plan]

    def fit(self, weights: Weights, data: Calibration | None) -> FittedTensor | None:
        plan = self.plans.get(weights.spec.name)
        return None if plan is None else weights.fitted(weights.words, plan)
