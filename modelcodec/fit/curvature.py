"""What errors of each layer's weights cost a torch model: Kronecker factors of the Gauss-Newton matrix, layer by layer, for fits that weigh errors by it.

For each input a random direction in the model's outputs is drawn; its gradient by a layer's weights, a matrix rows x columns, is one sample g. The factors are
those under which samples, seen as Gaussian, are most likely: inputs = E[g^T outputs^-1 g], outputs = E[g inputs^-1 g^T]. The gradient by a bias is one more
column. Positions of a convolution and tokens of a sequence are summed before they are squared, so errors that add up over them count as much as they do.
A weight with several uses, such as a table of embeddings that is the head, too, costs what each use does.

A vocabulary's rows are too many to be seen as pairs: only the diagonal of its `outputs` is kept, and samples are never written out. What its rows cost differs
by orders of magnitude, and the many that cost next to nothing shall have no say: inputs = E[g^T g]. A look-up's sample has the rows that were read. A head's
positions are taken singly; where it gives the model's outputs, its gradient's mean square over all random directions is known, so that rows which hardly ever
come up are not left to chance.
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
"""Of weights with more rows, vocabularies, the diagonal of `outputs` is kept."""
_DAMPING = 0.01
"""Part of the mean eigenvalue that is added to a factor before it is inverted."""

Layer = nn.Linear | nn.Conv2d | nn.Embedding
LossKind = Literal["squares", "likelihood"]
Run = Callable[[nn.Module, Any], Tensor]
"""Gives one batch to the model; returns its outputs, samples first and classes last."""


@dataclass(slots=True)
class _Factors:
    """Of one weight, from n samples. `rows_root`, `columns_root`: inverse roots of what the round before found; none before the first round."""

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
        _, rows, columns = samples.shape
        by_rows = samples if self.rows_root is None else self.rows_root @ samples
        by_columns = samples if self.columns_root is None else samples @ self.columns_root
        flat = by_rows.reshape(-1, columns)
        self.inputs += (flat.T @ flat).to("cpu", torch.float64)
        flat = by_columns.transpose(0, 1).reshape(rows, -1)
        self.outputs += (flat @ flat.T).to("cpu", torch.float64)

    def add_rows(self, rows: Tensor, gradients: Tensor) -> None:
        """Samples that are zero but for one row each, of these numbers; gradients: n x columns."""
        by_columns = gradients if self.columns_root is None else gradients @ self.columns_root
        self.inputs += (gradients.T @ gradients).to("cpu", torch.float64)
        self.outputs.index_add_(0, rows.cpu(), by_columns.square().sum(1).to("cpu", torch.float64))

    def add_products(self, squares: Tensor, columns: Tensor) -> None:
        """Samples that are outer products of independent numbers, one a row, whose squares are given (n x rows), and vectors (n x columns)."""
        by_columns = columns if self.columns_root is None else columns @ self.columns_root
        self.inputs += ((squares.sum(1, keepdim=True) * columns).T @ columns).to("cpu", torch.float64)
        self.outputs += (by_columns.square().sum(1) @ squares).to("cpu", torch.float64)

    def refined(self) -> _Factors:
        """For the next round."""
        rows = _inverse_root(self.outputs / self.n) if self.outputs.dim() > 1 else None
        return _Factors(torch.zeros_like(self.inputs), torch.zeros_like(self.outputs), 0, rows, _inverse_root(self.inputs / self.n))


def _inverse_root(matrix: Tensor) -> Tensor:
    """Symmetric; of a damped matrix."""
    scale = float(torch.diagonal(matrix).mean()) or 1.0
    values, vectors = torch.linalg.eigh(matrix / scale + _DAMPING * torch.eye(len(matrix), dtype=torch.float64))
    root: Tensor = vectors * values.clamp_min(_DAMPING / 2).rsqrt() @ vectors.T / scale**0.5
    return root.to(torch.float32)


def curvature(
    model: nn.Module, batches: Iterable[Any], run: Run, *, loss: LossKind = "squares", rounds: int = 2, seed: int = 0
) -> Calibration:
    """`moments`, `outputs`, `means` and `biases` of all linear layers, embeddings and ungrouped two-dimensional convolutions of a model set to evaluate.

    loss: `squares` of the outputs' errors, less their mean over classes (classifiers: safe where they are certain of their calibration data), or the
    `likelihood` of the classes that the model itself foresees (language models). No labels are used. Batches are gone through `rounds` times.
    memory: (rows x columns) numbers of 4 bytes a sample of a batch for the largest layer that is no vocabulary, and the factors.
    Raises BadRecipe where there is nothing to go by.
    """
    names = {name: layer for name, layer in model.named_modules() if isinstance(layer, Layer) and not (isinstance(layer, nn.Conv2d) and layer.groups > 1)}
    weights = _weights(names)
    factors = {weight: _Factors.empty(names[weight]) for weight in weights.values()}
    if model.training:
        raise BadRecipe("curvature: the model is in training mode; call model.eval() first")
    total: dict[str, float] = {}
    for number in range(rounds):
        generator = torch.Generator().manual_seed(seed + number)
        with _watched(model, names) as (given, gave, biases):
            for batch in batches:
                outputs = run(model, batch)
                _check(outputs)
                torch.autograd.backward(outputs, _direction(outputs.detach().float(), loss, generator).to(outputs))
                for name, output in gave.items():
                    if output.grad is not None:
                        squares = _squares(outputs.detach().float(), loss) if output is outputs else None
                        _Use(names[name], given[name], output.grad, squares).add_to(factors[weights[name]])
                for weight in {weights[name] for name, output in gave.items() if output.grad is not None}:
                    factors[weight].n += len(outputs)
                given.clear()
                gave.clear()
        if not any(factor.n for factor in factors.values()):
            raise BadRecipe("curvature: no layer was run; give at least one batch")
        if number == 0:
            total = {weight: float(torch.trace(factor.inputs)) / factor.n for weight, factor in factors.items() if factor.n}
        if number < rounds - 1:
            factors = {weight: factors[weight].refined() for weight in total}
    return _calibration({name: factors[weight] for name, weight in weights.items() if weight in total}, total, weights, biases)


def _weights(names: dict[str, Layer]) -> dict[str, str]:
    """For each layer the first one that has the same weight."""
    first: dict[Tensor, str] = {}
    return {name: first.setdefault(layer.weight, name) for name, layer in names.items()}


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
    found = {name: Bias(_tensor(name, "bias"), -1) for name, layer in names.items() if getattr(layer, "bias", None) is not None}
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


def _squares(outputs: Tensor, loss: LossKind) -> Tensor:
    """Means of the squares of `_direction`."""
    if loss == "squares":
        return torch.full_like(outputs, 1 - 1 / outputs.shape[-1])
    shares = torch.softmax(outputs, -1)
    return shares * (1 - shares)


@dataclass(frozen=True, slots=True)
class _Use:
    """What a layer was given by a batch, the gradient by what it gave, and, where this is known, the mean of that gradient's squares over all directions."""

    layer: Layer
    given: Tensor
    gradient: Tensor
    squares: Tensor | None

    def add_to(self, factors: _Factors) -> None:
        if factors.outputs.dim() > 1:
            factors.add(self._samples())
        elif isinstance(self.layer, nn.Embedding):
            keys, gradients = self._read()
            factors.add_rows(keys % len(self.layer.weight), gradients)
        else:
            squares = self.gradient.float().square() if self.squares is None else self.squares
            factors.add_products(squares.flatten(0, -2), _with_one(self.given).flatten(0, -2))

    def _read(self) -> tuple[Tensor, Tensor]:
        """Which rows the samples read, each once, as sample * rows + row, and the gradients by them, with nothing for a bias."""
        given = self.given if self.given.dim() > 1 else self.given[None]
        keys = given.flatten(1) + len(self.layer.weight) * torch.arange(len(given), device=given.device)[:, None]
        read, place = keys.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        gradient = self.gradient.float().flatten(0, -2)
        summed = gradient.new_zeros(len(read), gradient.shape[1] + 1)
        summed[:, :-1].index_add_(0, place.flatten(), gradient)
        return read, summed

    def _samples(self) -> Tensor:
        """Gradients by the weights and a bias, n x rows x (columns + 1), summed over positions."""
        layer, given, gradient = self.layer, self.given, self.gradient.float()
        if isinstance(layer, nn.Embedding):
            n, (keys, summed) = len(given) if given.dim() > 1 else 1, self._read()
            dense = gradient.new_zeros(n * len(layer.weight), summed.shape[1])
            dense[keys] = summed
            return dense.reshape(n, len(layer.weight), -1)
        if isinstance(layer, nn.Conv2d):
            padded = nn.functional.pad(given, _padding(layer), "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
            columns = nn.functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride).transpose(1, 2)
            rows = gradient.flatten(2)
        else:
            columns = given.reshape(len(given), -1, given.shape[-1])
            rows = gradient.reshape(len(gradient), -1, gradient.shape[-1]).transpose(1, 2)
        return rows @ _with_one(columns)


def _with_one(columns: Tensor) -> Tensor:
    """What a layer was given, and what its bias is."""
    return torch.cat([columns.float(), torch.ones_like(columns[..., :1], dtype=torch.float32)], -1)


def _calibration(factors: dict[str, _Factors], total: dict[str, float], weights: dict[str, str], biases: dict[str, Bias]) -> Calibration:
    """Factors with the bias's entry of the inputs' one, so that `moments` are those of inputs, and the trace of their product that of the samples."""
    moments, outputs, means = {}, {}, {}
    for name, factor in factors.items():
        unit = float(factor.inputs[-1, -1]) or 1.0
        whole = factor.inputs / unit
        product = float(torch.trace(whole) * (torch.trace(factor.outputs) if factor.outputs.dim() > 1 else factor.outputs.sum())) or 1.0
        key = _tensor(name, "weight")
        moments[key], means[key] = whole[:-1, :-1].numpy(), whole[:-1, -1].numpy()
        outputs[key] = (factor.outputs * (total[weights[name]] / product)).numpy()
    return Calibration(moments=moments, outputs=outputs, means=means, biases={_tensor(name, "weight"): bias for name, bias in biases.items()})
