"""Distillation: what a compressed network answers shall be what the original answered (sources: Polino, Pascanu & Alistarh, "Model compression via
distillation and quantization", arXiv 1802.05668; Hinton, Vinyals & Dean, arXiv 1503.02531)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from modelcodec.errors import BadRecipe
from modelcodec.fit.training.method import Data, Method, Training, of_method


@dataclass(frozen=True, slots=True)
class Distill(Method):
    """Adds `price` times the divergence between the answers of the model as it began and those of the model in training, both softened by a `temperature`.

    It only adds to the loss and joins with any method: `lsq(2) | distill(1)`; with one that makes a smaller model it stands before it. Answers are logits
    over classes, in the last dimension, or in the second out of four or five; or something with `logits`, or a tuple with them in front.
    memory: a copy of the model. time: each step runs it once, on the inputs of the last forward pass.
    """

    price: float = 1.0
    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.price < math.inf or not 0 < self.temperature < math.inf:
            raise BadRecipe(f"distill: price = {self.price}, temperature = {self.temperature}; prices from 0 and temperatures above 0 are possible")

    def begin(self, model: nn.Module, data: Data | None = None) -> Distillation:
        return Distillation(model, self)


@dataclass(slots=True)
class _Seen:
    """The last forward pass in training."""

    inputs: tuple[tuple[Any, ...], dict[str, Any]] = field(default_factory=lambda: ((), {}))
    answers: Tensor | None = None


class Distillation(Training):
    def __init__(self, model: nn.Module, method: Distill) -> None:
        super().__init__(model)
        self._method, self._seen = method, _Seen()
        self._teacher = original_of(model)
        seen = self._seen

        def look(module: nn.Module, given: tuple[Any, ...], options: dict[str, Any], answers: Any) -> None:
            if torch.is_grad_enabled():
                seen.inputs, seen.answers = (given, options), logits_of(answers)

        self._hook = model.register_forward_hook(look, with_kwargs=True)

    def penalty(self) -> Tensor:
        answers, self._seen.answers = self._seen.answers, None
        if answers is None:
            raise BadRecipe("distill: the penalty is that of a forward pass, and the model has not been run, with gradients, since the last one")
        given, options = self._seen.inputs
        with torch.no_grad():
            wanted = logits_of(self._teacher.to(answers.device)(*given, **options))
        return self._method.price * divergence(answers, wanted, self._method.temperature)

    def harden(self) -> None:
        self._hook.remove()


def original_of(model: nn.Module) -> nn.Module:
    """A copy of a model, in evaluation mode and without gradients, with the tensors that parametrizations were put on."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for module in [each for each in copied.modules() if isinstance(each, parametrize.ParametrizationList)]:
        for number, how in enumerate(list(module)):
            if not of_method(how):
                continue  # the user's own, without which it is another network
            if not number and not hasattr(module, "original"):
                raise BadRecipe("the method before this one makes weights of something else, and nothing is left of the original to learn from; put it behind")
            module[number] = nn.Identity()  # not removed: the copy's class, which would change, is the model's own
    return copied


def logits_of(answers: Any) -> Tensor:
    """Raises BadRecipe where a model answers with something else."""
    found = answers.get("logits") if isinstance(answers, Mapping) else getattr(answers, "logits", answers)
    found = found[0] if isinstance(found, (tuple, list)) and found else found
    if not isinstance(found, Tensor) or found.dim() < 2:
        raise BadRecipe(f"distill: the model answers with {type(answers).__name__}, which has no logits of two dimensions or more")
    return found


def divergence(answers: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened answers, in the mean over all that was asked, times the temperature's square, which keeps gradients as large."""
    classes = 1 if answers.dim() in (4, 5) else -1
    log_given, log_wanted = (functional.log_softmax(x.float() / temperature, classes) for x in (answers, wanted))
    found: Tensor = (log_wanted.exp() * (log_wanted - log_given)).sum(classes).mean() * temperature**2
    return found
