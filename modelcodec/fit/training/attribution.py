"""Attributions stay: the compressed network looks at the same places as the original (source: Park et al., "Attribution Preservation in Network Compression for
Reliable Network Interpretation", arXiv 2010.15054)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from modelcodec.errors import BadRecipe
from modelcodec.fit.attribution import classes_of, energy, grad_cam, last_maps
from modelcodec.fit.training.distillation import original_of
from modelcodec.fit.training.method import Data, Method, Training


@dataclass(frozen=True, slots=True)
class Attribution(Method):
    """Adds `price` times the squared distance between the attribution maps of the model in training and those of the model as it began, each of length 1.

    Maps are a layer's channels in one, `weighted` by what the class that the original decides for gains from each (else all alike, squared). `layer` by name;
    without it the one that gives the last maps, found with `data`. `drop`: share of the original's channels that is left out, others in each step. Joins with
    any method, `lsq(2) | attribution(100)`; before one that makes a smaller model. memory: a copy of the model, which each step runs once.
    """

    price: float = 100.0
    weighted: bool = True
    drop: float = 0.0
    layer: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.price < math.inf or not 0 <= self.drop < 1:
            raise BadRecipe(f"attribution: price = {self.price}, drop = {self.drop}; prices from 0 and shares from 0 to less than 1 are possible")

    def begin(self, model: nn.Module, data: Data | None = None) -> AttributionMatching:
        return AttributionMatching(model, self, data)


class AttributionMatching(Training):
    def __init__(self, model: nn.Module, method: Attribution, data: Data | None) -> None:
        super().__init__(model)
        self._method, self._original = method, original_of(model)
        self._seen: dict[str, Any] = {}
        layer = method.layer or _layer_of_last_maps(self._original, data)
        watched = _module(model, layer)

        # Hooks go along when a model is copied, and the copy is not the one that is seen.
        def see_maps(module: nn.Module, _given: Any, output: Any) -> None:
            if module is watched and torch.is_grad_enabled():
                self._seen["maps"] = output

        def see_answers(module: nn.Module, given: tuple[Any, ...], options: dict[str, Any], answers: Any) -> None:
            if module is model and torch.is_grad_enabled():
                self._seen |= {"inputs": (given, options), "answers": answers}

        def part(module: nn.Module, _given: Any, output: Tensor) -> Tensor:
            self._seen["original"] = output.detach().requires_grad_().clone()  # a clone, since what follows may work in place
            return self._seen["original"]  # type: ignore[no-any-return]

        self._hooks = [
            watched.register_forward_hook(see_maps), model.register_forward_hook(see_answers, with_kwargs=True),
            _module(self._original, layer).register_forward_hook(part),
        ]  # fmt: skip

    def penalty(self) -> Tensor:
        if not {"maps", "answers"} <= self._seen.keys():
            raise BadRecipe("attribution: the penalty is that of a forward pass, and the model has not been run, with gradients, since the last one")
        maps, answers, (given, options) = (self._seen.pop(name) for name in ("maps", "answers", "inputs"))
        with torch.enable_grad():
            originals = self._original.to(answers.device)(*given, **options)
            classes, original = classes_of(originals), self._seen.pop("original")
            wanted = self._map(original, originals, classes, self._kept(original)).detach()
        return self._method.price * (functional.normalize(self._map(maps, answers, classes)) - functional.normalize(wanted)).square().mean()

    def _map(self, maps: Tensor, answers: Tensor, classes: Tensor, kept: Tensor | None = None) -> Tensor:
        return grad_cam(maps, answers, classes, kept) if self._method.weighted else energy(maps, kept)

    def _kept(self, maps: Tensor) -> Tensor | None:
        """Ones and zeros, one a channel."""
        if not self._method.drop:
            return None
        n = maps.shape[1]
        kept = torch.ones(n)
        kept[torch.randperm(n)[: int(self._method.drop * n)]] = 0
        return kept.to(maps.device)

    def harden(self) -> None:
        for hook in self._hooks:
            hook.remove()


def _layer_of_last_maps(model: nn.Module, data: Data | None) -> str:
    for inputs, _ in data or ():
        if not isinstance(inputs, Tensor):
            raise BadRecipe("attribution: the inputs of a batch are no tensor; name the layer")
        return last_maps(model, inputs.to(next(model.parameters()).device))
    raise BadRecipe("attribution: which layer gives the last maps is found by running the model; begin it with data, or name the layer")


def _module(model: nn.Module, layer: str) -> nn.Module:
    try:
        return model.get_submodule(layer)
    except AttributeError as error:
        raise BadRecipe(f"attribution: layer = {layer!r}: {error}; name one of named_modules()") from None
