"""What a calibrated fit may know of a model's data: statistics by tensor name, made once, by whoever runs the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelcodec.errors import BadRecipe
from modelcodec.types import TensorSpec

Floats = NDArray[np.floating]

_MEANT = "modelcodec.calibration"
"""The metadata entry of a file of statistics."""


@dataclass(frozen=True, slots=True)
class Bias:
    """A vector that can take up what a layer's outputs are off in the mean; `sign`: 1 where outputs lose it (a running mean), else -1."""

    tensor: str
    sign: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Each statistic by the name of the weight tensor; none has to be there.

    `importance`: what a squared error of each weight costs, in the tensor's shape (a Fisher diagonal). `inputs`: samples of the layer's inputs, one a row, as
    long as a row of the weights. `moments`: their second moments, columns x columns. `gradients`: the loss's gradient for each sample, one a row, as many
    numbers as weights. `outputs`: what errors of a layer's outputs cost, rows x rows; errors E cost about trace(outputs * E * moments * E^T). `means`:
    those of the inputs; `biases` can make up for what errors do to them. A layer of many rows may have the diagonal of `outputs` only.
    """

    importance: Mapping[str, Floats] = field(default_factory=dict)
    inputs: Mapping[str, Floats] = field(default_factory=dict)
    moments: Mapping[str, Floats] = field(default_factory=dict)
    gradients: Mapping[str, Floats] = field(default_factory=dict)
    outputs: Mapping[str, Floats] = field(default_factory=dict)
    means: Mapping[str, Floats] = field(default_factory=dict)
    biases: Mapping[str, Bias] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, the same for the same statistics; float64 becomes float32."""
        from safetensors.numpy import save

        arrays = {f"{kind}/{name}": _single(given) for kind in _ARRAYS for name, given in getattr(self, kind).items()}
        biases = {name: [bias.tensor, bias.sign] for name, bias in sorted(self.biases.items())}
        Path(path).write_bytes(save(arrays, {_MEANT: json.dumps(biases)}))

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Raises BadRecipe for a file that is none of `save`, OSError."""
        from safetensors import SafetensorError, safe_open

        found: dict[str, dict[str, Floats]] = {kind: {} for kind in _ARRAYS}
        Path(path).stat()
        try:
            with safe_open(path, "np") as file:
                biases = json.loads(file.metadata()[_MEANT])
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    kind, _, name = key.partition("/")
                    found[kind][name] = file.get_tensor(key)
            return cls(**found, biases={name: Bias(str(tensor), int(sign)) for name, (tensor, sign) in biases.items()})
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadRecipe(f"{path}: holds no calibration statistics ({error!r}); make them with Calibration.save") from None

    def importance_of(self, spec: TensorSpec) -> NDArray[np.float64] | None:
        """One number a weight, not negative: given, or the second moment of the input that it is multiplied by. Raises BadRecipe."""
        given = self.importance.get(spec.name)
        if given is None:
            moments = self.moments_of(spec)
            return None if moments is None else np.tile(np.diag(moments), spec.n_words // spec.row_words)
        importance = _checked(given, spec.n_words, f"{spec.name}: importance").reshape(-1)
        if (importance < 0).any():
            raise BadRecipe(f"{spec.name}: importance is negative somewhere; give squares")
        return importance

    def moments_of(self, spec: TensorSpec) -> NDArray[np.float64] | None:
        """Columns x columns. Raises BadRecipe."""
        given, inputs = self.moments.get(spec.name), self.inputs_of(spec)
        if given is not None:
            return _checked(given, spec.row_words**2, f"{spec.name}: moments").reshape(spec.row_words, spec.row_words)
        return None if inputs is None else inputs.T @ inputs / len(inputs)

    def outputs_of(self, spec: TensorSpec) -> NDArray[np.float64] | None:
        """Rows x rows, or the diagonal. Raises BadRecipe."""
        given, rows = self.outputs.get(spec.name), spec.n_words // spec.row_words
        if given is None:
            return None
        whole = np.ndim(given) > 1
        numbers = _checked(given, rows**2 if whole else rows, f"{spec.name}: outputs")
        return numbers.reshape(rows, rows) if whole else numbers

    def means_of(self, spec: TensorSpec) -> NDArray[np.float64] | None:
        """One number a column. Raises BadRecipe."""
        given = self.means.get(spec.name)
        return None if given is None else _checked(given, spec.row_words, f"{spec.name}: means").reshape(-1)

    def inputs_of(self, spec: TensorSpec) -> NDArray[np.float64] | None:
        """Samples x columns. Raises BadRecipe."""
        return _rows(self.inputs.get(spec.name), spec.row_words, f"{spec.name}: inputs")

    def gradients_of(self, spec: TensorSpec) -> NDArray[np.float64] | None:
        """Samples x weights. Raises BadRecipe."""
        return _rows(self.gradients.get(spec.name), spec.n_words, f"{spec.name}: gradients")


_ARRAYS = tuple(found.name for found in fields(Calibration) if found.name != "biases")


def _single(given: Floats) -> Floats:
    numbers = np.asarray(given)
    return np.ascontiguousarray(numbers, np.float32) if numbers.dtype == np.float64 else np.ascontiguousarray(numbers)


def _rows(given: Floats | None, columns: int, what: str) -> NDArray[np.float64] | None:
    return None if given is None else _checked(given, max(len(given), 1) * columns, what).reshape(-1, columns)


def _checked(given: Floats, size: int, what: str) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = np.asarray(given, np.float64)
    if numbers.size != size or not np.isfinite(numbers).all():
        raise BadRecipe(f"{what}: {numbers.size} numbers, {size} finite ones are needed; collect the statistics from this very model")
    return numbers
