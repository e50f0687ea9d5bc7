"""What compressing, restoring and inspecting tell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from modelcodec.types import Loss, TensorSpec


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor: `n_bytes` in the source, `n_bytes_coded` in the container, `plan` the tree of most of its frames. The name of a storage is that of the
    tensors on it.

    Only where they were asked for, in bits an element: `floor_bits`, the order-0 entropy of its symbols plus its incompressible bits; `model_bits`, what the
    plan could reach, without what describes its tables. `loss`: how far a lossy tensor is from its original.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    plan: str
    n_bytes: int
    n_bytes_coded: int
    n_weights: int
    floor_bits: float | None = None
    model_bits: float | None = None
    loss: Loss | None = None

    @property
    def ratio(self) -> float:
        return self.n_bytes_coded / self.n_bytes if self.n_bytes else 1.0

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes_coded / self.n_weights if self.n_weights else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """One file, or with `files` a folder. `n_bytes` is the size of the original, `n_bytes_coded` that of the container."""

    source: str
    destination: str
    format: str
    n_bytes: int
    n_bytes_coded: int
    tensors: tuple[TensorReport, ...] = ()
    sha256: str | None = None
    files: tuple[Report, ...] = ()

    @property
    def ratio(self) -> float:
        """Coded size over original size: below 1 where bytes were saved."""
        return self.n_bytes_coded / self.n_bytes if self.n_bytes else 1.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the ratios."""
        table = asdict(self)
        table["ratio"] = self.ratio
        for row, tensor in zip(table["tensors"], self.tensors, strict=True):
            row.update(ratio=tensor.ratio, bits_per_weight=tensor.bits_per_weight)
        table["files"] = [file.as_dict() for file in self.files]
        return table


def weights_of(spec: TensorSpec) -> int:
    n = 1
    for dimension in spec.shape:
        n *= dimension
    return n
