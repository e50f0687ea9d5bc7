"""What errors of each layer's weights cost a torch model: Kronecker factors of the Gauss-Newton matrix, layer by layer, for fits that weigh errors by it.

For each input a random direction in the model's outputs is drawn; its gradient by a layer's weights, a matrix rows x columns, is one sample g. The factors are
those under which samples, seen as Gaussian, are most likely: inputs = E[g^T outputs^-1 g], outputs = E[g inputs^-1 g^T]. The gradient by a bias is one more
column. Positions of a convolution and tokens of a sequence are summed before they are squared, so errors that add up over them count as much as they do.
sources: Martens & Grosse, K-FAC, arXiv 1503.05671; Grosse & Martens, arXiv 1602.01407; Gupta, Koren & Singer, Shampoo, arXiv 1802.09568 (one-sided sums of
whole gradients); the likelihood's fixed point: Dutilleul, "The MLE algorithm for the matrix normal distribution", J. Stat. Comput. Simul. 64 (1999).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Bias, Calibration
from modelcodec.fit.collect import _padding

_MOST_ROWS = 8192
"""Of layers with more rows, vocabularies, the diagonal of `outputs` is kept."""
_DAMPING = 0.01
"""Part of the mean eigenvalue that is added to a factor before it is inverted."""

Layer = nn.Linear | nn.Conv2d
Run = Callable[[nn.Module, Any], Tensor]
"""Gives one batch to the model; returns its outputs, samples first and classes last."""


@dataclass(slots=True)
class _Factors:
    """Of one layer. `rows_root`, `columns_root`: inverse roots of what the round before found; none before the first round."""

    inputs: Tensor
    outputs: Tensor
    n: int = 0
    rows_root: Tensor | None = None
    columns_root: Tensor | None = None

    @classmethod
    def empty(cls, layer: Layer) -> _Factors:
        rows, columns = layer.weight.shape[0], layer.weight[0].numel() + 1
        outputs = (rows, rows) if rows <= _MOST_ROWS else (rows,)
        return cls(torch.zeros(columns, columns, dtype=torch.float64), torch.zeros(outputs, dtype=torch.float64))

    def add(self, samples: Tensor) -> None:
        """samples: n x rows x columns."""
        n, rows, columns = samples.shape
        by_rows = samples
        if self.rows_root is not None:
            by_rows = self.rows_root @ samples if self.rows_root.dim() > 1 else self.rows_root[:, None] * samples
        by_columns = samples if self.columns_root is None else samples @ self.columns_root
        flat = by_rows.reshape(-1, columns)
        self.inputs += (flat.T @ flat).to("cpu", torch.float64)
        if self.outputs.dim() > 1:
            flat = by_columns.transpose(0, 1).reshape(rows, -1)
            self.outputs += (flat @ flat.T).to("cpu", torch.float64)
        else:
            self.outputs += by_columns.square().sum((0, 2)).to("cpu", torch.float64)
        self.n += n

    def refined(self) -> _Factors:
        """For the next round."""
        rows, columns = _inverse_root(self.outputs / self.n), _inverse_root(self.inputs / self.n)
        return _Factors(torch.zeros_like(self.inputs), torch.zeros_like(self.outputs), rows_root=rows, columns_root=columns)


def _inverse_root(matrix: Tensor) -> Tensor:
    """Symmetric; of a damped matrix, or of a diagonal."""
    if matrix.dim() == 1:
        return (matrix + (_DAMPING * float(matrix.mean()) or 1.0)).rsqrt().to(torch.float32)
    scale = float(torch.diagonal(matrix).mean()) or 1.0
    values, vectors = torch.linalg.eigh(matrix / scale + _DAMPING * torch.eye(len(matrix), dtype=torch.float64))
    root: Tensor = vectors * values.clamp_min(_DAMPING / 2).rsqrt() @ vectors.T / scale**0.5
    return root.to(torch.float32)


def curvature(
    model: nn.Module, batches: Iterable[Any], run: Run, *, loss: Literal["squares", "likelihood"] = "squares", rounds: int = 2, seed: int = 0
) -> Calibration:
    """`moments`, `outputs`, `means` and `biases` of all linear layers and ungrouped two-dimensional convolutions of a model that is set to evaluate.

    loss: `squares` of the outputs' errors, less their mean over classes (classifiers: safe where they are certain of their calibration data), or the
    `likelihood` of the classes that the model itself foresees (language models). No labels are used. Batches are gone through `rounds` times.
    memory: (rows x columns) numbers of 4 bytes a sample of a batch for the largest layer, and the factors. Raises BadRecipe where there is nothing to go by.
    """
    names = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)}
    factors = {name: _Factors.empty(layer) for name, layer in names.items()}
    if model.training:
        raise BadRecipe("curvature: the model is in training mode; call model.eval() first")
    biases: dict[str, Bias] = {}
    total: dict[str, float] = {}
    for number in range(rounds):
        generator = torch.Generator().manual_seed(seed + number)
        with _watched(model, names) as (given, gave, found):
            for batch in batches:
                outputs = run(model, batch)
                _check(outputs)
                torch.autograd.backward(outputs, _direction(outputs.detach().float(), loss, generator).to(outputs))
                for name, output in gave.items():
                    if output.grad is not None:
                        factors[name].add(_samples(names[name], given[name], output.grad))
                given.clear()
                gave.clear()
        biases = found
        if not any(factor.n for factor in factors.values()):
            raise BadRecipe("curvature: no layer was run; give at least one batch")
        if number == 0:
            total = {name: float(torch.trace(factor.inputs)) / factor.n for name, factor in factors.items() if factor.n}
        if number < rounds - 1:
            factors = {name: factors[name].refined() for name in total}
    return _calibration({name: factors[name] for name in total}, total, biases)


def _tensor(layer: str, kind: str) -> str:
    """A parameter's name in the model."""
    return f"{layer}.{kind}" if layer else kind


def _check(outputs: object) -> None:
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        raise BadRecipe("curvature: the model's run gives no tensor of samples x classes; return the logits")


@contextmanager
def _watched(model: nn.Module, names: dict[str, Layer]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Bias]]]:
    """Inputs and outputs of the layers as the model runs, and the vectors that follow them. Parameters get no gradients of their own."""
    given: dict[str, Tensor] = {}
    gave: dict[str, Tensor] = {}
    found = {name: Bias(_tensor(name, "bias"), -1) for name, layer in names.items() if layer.bias is not None}
    hooks = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.requires_grad_()
            output.retain_grad()
            given[name], gave[name] = inputs[0].detach(), output
            return output

        return hook

    def follow(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            for layer, output in gave.items():
                if output is inputs[0]:
                    found[layer] = Bias(_tensor(name, "running_mean"), 1)

        return hook

    kept = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in kept:
        parameter.requires_grad_(False)
    for name, module in model.named_modules():
        if name in names:
            hooks.append(module.register_forward_hook(watch(name)))
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(follow(name)))
    try:
        yield given, gave, found
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, required in kept.items():
            parameter.requires_grad_(required)


def _direction(outputs: Tensor, loss: str, generator: torch.Generator) -> Tensor:
    """Random, with the loss's second derivatives by the outputs as its covariance."""
    if loss == "squares":
        signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs) * 2 - 1
        return signs - signs.mean(-1, keepdim=True)
    shares = torch.softmax(outputs, -1)
    drawn = torch.multinomial(shares.reshape(-1, shares.shape[-1]).cpu(), 1, generator=generator).to(outputs.device)
    return shares.reshape(-1, shares.shape[-1]).scatter_add(1, drawn, torch.full_like(drawn, -1.0, dtype=shares.dtype)).reshape(outputs.shape)


def _samples(layer: Layer, given: Tensor, gradient: Tensor) -> Tensor:
    """Gradients by the weights and a bias, n x rows x (columns + 1), summed over positions."""
    if isinstance(layer, nn.Conv2d):
        padded = nn.functional.pad(given, _padding(layer), "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
        columns = nn.functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride).transpose(1, 2)
        rows = gradient.flatten(2)
    else:
        columns = given.reshape(len(given), -1, given.shape[-1])
        rows = gradient.reshape(len(gradient), -1, gradient.shape[-1]).transpose(1, 2)
    return torch.cat([rows.float() @ columns.float(), rows.float().sum(2, keepdim=True)], 2)


def _calibration(factors: dict[str, _Factors], total: dict[str, float], biases: dict[str, Bias]) -> Calibration:
    """Factors with the bias's entry of the inputs' one, so that `moments` are those of inputs, and the trace of their product that of the samples."""
    moments, outputs, means = {}, {}, {}
    for name, factor in factors.items():
        unit = float(factor.inputs[-1, -1]) or 1.0
        whole = factor.inputs / unit
        product = float(torch.trace(whole) * (torch.trace(factor.outputs) if factor.outputs.dim() > 1 else factor.outputs.sum())) or 1.0
        key = _tensor(name, "weight")
        moments[key], means[key] = whole[:-1, :-1].numpy(), whole[:-1, -1].numpy()
        outputs[key] = (factor.outputs * (total[name] / product)).numpy()
    return Calibration(moments=moments, outputs=outputs, means=means, biases={_tensor(name, "weight"): bias for name, bias in biases.items()})
