"""Training of compressed weights: each parameter is updated inside backward, as soon as its gradient is there (docs/compressed_weights.md).

source: updates inside backward are LOMO's (arXiv 2306.09782); together with weights that stay compressed, NeuZip's (arXiv 2410.20650).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from modelcodec.errors import BadRecipe
from modelcodec.runtime import compressed_weight as weights
from modelcodec.runtime.frames_in_memory import Coding

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

LEAST_STATE_BYTES = 1 << 14
"""Smaller tensors of an optimizer's state stay dense."""
_CLIP_EPSILON = 1e-6
"""What torch.nn.utils.clip_grad_norm_ adds to the norm."""


class UpdatesInBackward:
    """Carries out an optimizer's step for each parameter inside backward, so that full gradients are never in memory all at once.

    `optimizer` is any class of torch.optim that updates each parameter by itself (SGD, Adam, AdamW, ...); `params`, dense or compressed, and the options are
    what it takes. What it makes of them is `self.optimizer`: learning rate schedulers go there. `compress_state` keeps the optimizer's state as frames.

    A training step is `loss.backward()`, then `step()`. Between the two a gradient is spent: whatever reads it (clipping, a scaler) or adds to it (a second
    backward, a weight shared by segments of a reentrant checkpoint) raises BadRecipe. Clipping by global norm is `backward(loss, max_norm=...)`, which goes
    backward twice. Weights come out as with the optimizer's ordinary step, to the bit.
    """

    def __init__(self, params: Iterable[Any], optimizer: type[Optimizer], *, compress_state: bool = False, **options: Any) -> None:
        import torch

        if issubclass(optimizer, torch.optim.LBFGS):
            raise BadRecipe("LBFGS updates all parameters at once, which needs all gradients; use an optimizer that updates each parameter by itself")
        self.optimizer = optimizer(params, **options)
        self._coding = Coding() if compress_state else None
        self._norms: dict[int, Tensor] | None = None
        self._scale: Tensor | None = None
        self._group_of = {id(p): place for place, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        self._hooks = [p.register_post_accumulate_grad_hook(self._take) for p in self._parameters() if p.requires_grad]

    def _parameters(self) -> Iterator[Any]:
        return (parameter for group in self.optimizer.param_groups for parameter in group["params"])

    def step(self) -> None:
        """End a training step: gradients may come again."""
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget that gradients were spent."""
        for parameter in self._parameters():
            parameter.grad = None

    def remove(self) -> None:
        """Leave the parameters to others: from now on backward gives their gradients."""
        for hook in self._hooks:
            hook.remove()
        self.zero_grad()

    def backward(self, loss: Tensor, *, max_norm: float | None = None) -> Tensor | None:
        """Go backward from a loss; with `max_norm` twice: first for the gradients' global norm, which is returned, then with gradients scaled to at most that.

        The scaled gradients are those of torch.nn.utils.clip_grad_norm_, to the bit.
        """
        import torch

        if max_norm is None:
            loss.backward()  # type: ignore[no-untyped-call]
            return None
        self._norms = {}
        try:
            loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
            norms = [self._norms[id(p)] for p in self._parameters() if id(p) in self._norms]
        finally:
            self._norms = None
        total = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.tensor(0.0)
        self._scale = torch.clamp(max_norm / (total + _CLIP_EPSILON), max=1.0)
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._scale = None
        return total

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state_dict, with dense tensors."""
        packed: dict[str, Any] = self.optimizer.state_dict()
        state = {
            key: {name: weights.dense(value) if weights.is_compressed(value) else value for name, value in values.items()}
            for key, values in packed["state"].items()
        }
        return {**packed, "state": state}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """What `state_dict`, of this or of the optimizer itself, gave."""
        self.optimizer.load_state_dict(dict(state_dict))
        for values in self.optimizer.state.values():
            values.update({name: self._kept(value) for name, value in values.items()})

    def _take(self, parameter: Any) -> None:
        """Called by autograd when a parameter's gradient is complete."""
        import torch

        gradient, parameter.grad = parameter.grad, None
        with torch.no_grad():
            if self._norms is not None:
                self._norms[id(parameter)] = torch.linalg.vector_norm(gradient)
                return
            if self._scale is not None:
                gradient.mul_(self._scale.to(gradient.device))
            if weights.is_compressed(parameter):
                with weights.decoded(parameter) as dense:
                    self._update(parameter, dense, gradient)
                    weights.write(parameter, dense)
            else:
                self._update(parameter, parameter, gradient)
        parameter.grad = _spent_gradient(parameter)

    def _update(self, parameter: Any, dense: Tensor, gradient: Tensor) -> None:
        """The optimizer's own step on the elements of one parameter, with that parameter's state."""
        held = self.optimizer.state.get(parameter, {})
        with ExitStack() as stack, self._alone(parameter, dense):
            lent = {name: stack.enter_context(weights.decoded(value)) if weights.is_compressed(value) else value for name, value in held.items()}
            if lent:
                self.optimizer.state[dense] = dict(lent)
            dense.grad = gradient
            self.optimizer.step()
            state = self.optimizer.state.pop(dense, {})
            for name, value in state.items():
                if weights.is_compressed(held.get(name)) and value is lent[name]:
                    weights.write(held[name], value)
                    state[name] = held[name]
                else:
                    state[name] = self._kept(value)
        if state:
            self.optimizer.state[parameter] = state

    @contextmanager
    def _alone(self, parameter: Any, dense: Tensor) -> Iterator[None]:
        """The optimizer with `dense` in the place of a parameter, and no other."""
        groups = self.optimizer.param_groups
        group = groups[self._group_of[id(parameter)]]
        members = group["params"]
        self.optimizer.param_groups, group["params"] = [group], [dense]
        try:
            yield
        finally:
            self.optimizer.param_groups, group["params"] = groups, members

    def _kept(self, value: Any) -> Any:
        """A tensor of the state as it is kept until the next step."""
        import torch

        large = isinstance(value, torch.Tensor) and value.dim() and value.nbytes >= LEAST_STATE_BYTES and weights.has_frames(value)
        if self._coding is None or not large or weights.is_compressed(value):
            return value
        return weights.compressed(value, "optimizer state", self._coding)


def _spent_gradient(parameter: Any) -> Any:
    geometry = {"strides": parameter.stride(), "dtype": parameter.dtype, "device": parameter.device}
    return _spent_gradient_class()._make_wrapper_subclass(_spent_gradient_class(), parameter.size(), **geometry)


@cache
def _spent_gradient_class() -> Any:
    import torch

    class SpentGradient(torch.Tensor):
        """Stands where a gradient was that has been used up."""

        __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
            raise BadRecipe(
                f"{func} reads a gradient, or adds to one, that was used up inside backward to update its weight. Call step() before the next backward; clip "
                "by backward(loss, max_norm=...). Gradient accumulation, gradient scalers and weights shared by segments of a reentrant checkpoint need all "
                "gradients at once: use an ordinary optimizer for them"
            )

        def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
            return f"SpentGradient({tuple(self.size())})"

    return SpentGradient
