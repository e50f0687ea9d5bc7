"""What a training method is: put on a user's model, it adds to the user's own loop, and leaves weights that the codec stores small.

    training = DKM(16).begin(model)
    optimizer = torch.optim.Adam(training.model.parameters())
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        (loss(training.model, batch) + training.penalty()).backward()
        optimizer.step()
        training.after_step((step + 1) / len(batches))
    training.finish().save("model.mcodec.safetensors")
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modelcodec import api
from modelcodec.fit.chain import Chain, Fitting
from modelcodec.report import Report

Data = Iterable[tuple[Any, Any]]
"""Batches of inputs and labels."""
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model, plain again, its weights as the decoder will give them; `fit` finds the plans that code exactly these, None leaves it to the planner."""

    model: nn.Module
    fit: Fitting | None = None
    remarks: tuple[str, ...] = ()
    """What the method has to tell of its result, beside its size."""

    def save(self, path: str | Path, *, level: int | None = None, overwrite: bool = False) -> Report:
        """Write the weights, compressed; tied ones once. Raises as `modelcodec.compress` does."""
        fit, source = self.fit, BytesIO(safetensors.torch.save(_untied(self.model)))
        return api.compress(source, path, level=level, overwrite=overwrite, fit=None if fit is None else lambda tensors: fit(tensors, None))


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """The state, tensors that share memory under the first of their names, as safetensors' own `save_model` has it."""
    found: dict[tuple[object, ...], str] = {}
    state = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        if found.setdefault(place, name) == name:
            state[name] = tensor.detach().cpu().contiguous()
    return state


class Training(ABC):
    """A method at work on `model`, which is the one to train and may be another than it was begun with (a smaller one)."""

    model: nn.Module

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def penalty(self) -> Tensor:
        """What to add to the loss, for the forward pass just done."""
        return torch.zeros(())

    def after_step(self, done: float) -> None:  # noqa: B027 - most methods need no such call
        """Called after each step of the optimizer, with the share of the whole training that is done, 0 to 1; the last call has 1."""

    def state(self) -> dict[str, Any]:
        """What is needed to go on later beside `model.state_dict()`: tensors, numbers and text in dicts and lists."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - as after_step
        """Go on from a `state()`, its tensors on the model's device; `model` has its own state already."""

    @abstractmethod
    def harden(self) -> Fitting | None:
        """Let `model`'s tensors read as the decoder will give them, parametrizations still in place, and tell how they are coded."""

    def remarks(self) -> tuple[str, ...]:
        """What there is to tell of the result, a line each, after `harden`."""
        return ()

    def finish(self) -> Trained:
        """End the training: parametrizations are gone, their values stay. Of the model's own a remark tells."""
        fit = self.harden()
        own = _own_parametrizations(self.model)
        bake(self.model)
        return Trained(self.model, fit, self.remarks() + own)


class Method(ABC):
    """Options of a way to train, as a frozen dataclass."""

    @abstractmethod
    def begin(self, model: nn.Module, data: Data | None = None) -> Training:
        """Put the method on a model, which may change in place. data: for methods that look at some batches first; they raise BadRecipe without."""

    def __or__(self, then: Method) -> Joined:
        return Joined(self, then)


@dataclass(frozen=True, slots=True)
class Joined(Method):
    """Two methods at once: `then` is put on what `first` made of the model, penalties add up."""

    first: Method
    then: Method

    def begin(self, model: nn.Module, data: Data | None = None) -> Training:
        first = self.first.begin(model, data)
        return _Both(first, self.then.begin(first.model, data))


class _Both(Training):
    def __init__(self, first: Training, then: Training) -> None:
        super().__init__(then.model)
        self._parts = (first, then)

    def penalty(self) -> Tensor:
        return self._parts[0].penalty() + self._parts[1].penalty()

    def after_step(self, done: float) -> None:
        for part in self._parts:
            part.after_step(done)

    def state(self) -> dict[str, Any]:
        return {"first": self._parts[0].state(), "then": self._parts[1].state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._parts[0].restore(state["first"])
        self._parts[1].restore(state["then"])

    def harden(self) -> Fitting | None:
        fits = [fit for fit in (part.harden() for part in self._parts) if fit is not None]
        return Chain(*fits) if len(fits) == 2 else fits[0] if fits else None

    def remarks(self) -> tuple[str, ...]:
        return self._parts[0].remarks() + self._parts[1].remarks()


def of_method(parametrization: nn.Module) -> bool:
    """Whether a method put it there; else it is the model's own."""
    return type(parametrization).__module__.startswith("modelcodec.")


def _own_parametrizations(model: nn.Module) -> tuple[str, ...]:
    """A line where the model has any."""
    found = {
        f"{name}.{tensor}".removeprefix("."): type(how).__name__.removeprefix("_")
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module)
        for tensor, each in module.parametrizations.items()
        for how in each
        if not of_method(how)
    }
    if not found:
        return ()
    some = ", ".join(f"{name} by {how}" for name, how in list(found.items())[:_MOST_NAMED])
    left = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return (f"the file has tensors as the layers see them, for a model without parametrizations of its own, which this one had: {some}{left}",)


def bake(model: nn.Module) -> None:
    """Replace every parametrized tensor by its value."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
