"""What a user brings to a training: a model, batches, a loss; from Python, or as the functions of a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe


def cosine(done: float) -> float:
    """The learning rate's factor: from 1 down to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-3)


def first_of(batch: Any) -> Any:
    return _part(batch, 0)


def second_of(batch: Any) -> Any:
    return _part(batch, 1)


def _part(batch: Any, number: int) -> Any:
    try:
        return batch[number]
    except (KeyError, IndexError, TypeError):
        raise BadRecipe(f"a batch is a {type(batch).__name__} without parts 0 and 1; define inputs(batch) and labels(batch)") from None


@dataclass(frozen=True, slots=True)
class Task:
    """`batches(epoch)` gives the batches of one pass, the same ones whenever it is asked under the same seed; with a length, learning rates and schedules move
    within a pass, else from one to the next. `loss(model, batch)` runs the model. `score(model)`: higher is better, told after each pass. `optimizer`: of the
    parameters that the method trains, in groups if need be; `rate(done)` multiplies the learning rates, `done` from 0 to 1. `inputs`, `labels`: the parts of
    a batch."""

    model: Callable[[], nn.Module]
    batches: Callable[[int], Iterable[Any]]
    loss: Callable[[nn.Module, Any], Tensor]
    score: Callable[[nn.Module], float] | None = None
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adam
    rate: Callable[[float], float] = cosine
    inputs: Callable[[Any], Any] = first_of
    labels: Callable[[Any], Any] = second_of
    epochs: int = 1

    @classmethod
    def of(cls, names: Mapping[str, Any], where: str) -> Task:
        """The functions of a script, by the names of the fields. Raises BadRecipe."""
        known = {field.name: field for field in fields(cls)}
        given = {name: names[name] for name in known if name in names}
        missing = [name for name, field in known.items() if field.default is MISSING and name not in given]
        if missing:
            raise BadRecipe(f"{where}: the function {missing[0]} is missing; a training needs model(), batches(epoch) and loss(model, batch)")
        for name, value in given.items():
            if name == "epochs":
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise BadRecipe(f"{where}: epochs = {value!r}; it is the number of passes, a whole number")
            elif not callable(value) or isinstance(value, nn.Module):
                raise BadRecipe(f"{where}: {name} is a {type(value).__name__}, and a training takes it for a function; make it one, or give it another name")
        return cls(**given)
