"""Weights in 12 bits each for generating one token at a time, on a GPU or on the CPU: made when a model is loaded, never stored (docs/gpu.md).

A layer's time is then that of reading its weights, which no entropy decoder keeps up with. Exponents get 4 bits: 15 neighbouring ones and zero have a code, all
others are listed beside the matrix. exact: unpacked weights are the original ones, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelcodec.kernels.fixed_length import MOST_VECTORS
from modelcodec.runtime import fixed_length_cpu as cpu
from modelcodec.runtime.gpu import decodes_on

if TYPE_CHECKING:
    import torch

MOST_BITS = 13
"""A matrix that takes more bits a weight, with padding and ten bytes for each escaped weight, stays as it is."""
PARTS = (128, 64, 32)
"""An eighth of a block of columns, widest loads first; wide ones are taken where their padding is at most one column in MOST_PADDING."""
MOST_PADDING = 48
ROWS = 4
"""Of a GPU's program: they share x. More would leave too few programs."""


@dataclass(frozen=True, slots=True, eq=False)
class FixedLength:
    """A matrix of bf16 [n_rows, n_columns]; the tensors are laid out as `modelcodec.kernels.triton.fixed_length` tells."""

    n_rows: int
    n_columns: int
    part: int
    base: int
    signed_mantissas: torch.Tensor
    codes: torch.Tensor
    row_starts: torch.Tensor
    places: torch.Tensor
    values: torch.Tensor

    @classmethod
    def of(cls, weight: torch.Tensor) -> FixedLength | None:
        """The matrix in this form, made by the CPU, on the device where it lies; None where it would take more than MOST_BITS a weight."""
        import torch

        if weight.dtype != torch.bfloat16 or weight.ndim != 2 or not weight.numel():
            raise ValueError(f"a matrix of bfloat16 is wanted, not {weight.dtype} of shape {tuple(weight.shape)}")
        n_rows, n_columns = weight.shape
        part = next((part for part in PARTS if -n_columns % (8 * part) * MOST_PADDING <= n_columns), PARTS[-1])
        words = weight.detach().cpu().contiguous().view(torch.int16).numpy()
        packed = cpu.pack(words, part, MOST_BITS * weight.numel() // 8, torch.get_num_threads())
        if packed is None:
            return None
        form = cls(
            n_rows,
            n_columns,
            part,
            packed.base,
            torch.from_numpy(packed.signed_mantissas),
            torch.from_numpy(packed.codes),
            torch.from_numpy(packed.row_starts),
            torch.from_numpy(packed.places),
            torch.from_numpy(packed.values).view(torch.bfloat16),
        )
        return form.to(weight.device)

    def to(self, device: torch.device) -> FixedLength:
        """The same on a device; it shares the memory if it is there already."""
        tensors = {name: getattr(self, name).to(device) for name in ("signed_mantissas", "codes", "row_starts", "places", "values")}
        return replace(self, **tensors)

    def on_cpu(self) -> cpu.Matrix:
        """The same for functions of the CPU, where it lies."""
        addresses = (t.data_ptr() for t in (self.codes, self.signed_mantissas, self.row_starts, self.places, self.values))
        return cpu.Matrix(self.n_rows, self.n_columns, self.codes.shape[1], self.part, self.base, tuple(addresses))

    @property
    def n_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.signed_mantissas, self.codes, self.row_starts, self.places, self.values))

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """The matrix times each vector of x (bf16 [..., n_columns], contiguous, 1 to MOST_VECTORS of them), plus a bias (bf16 [n_rows]), as bf16 [..., n_rows].

        Summed in f4. Given `out` (bf16 or f4, contiguous), fills and returns it; a GPU then allocates nothing.
        """
        import torch

        n = x.numel() // self.n_columns
        if x.shape[-1] != self.n_columns or not 1 <= n <= MOST_VECTORS or x.dtype != torch.bfloat16 or not x.is_contiguous():
            raise ValueError(f"1 to {MOST_VECTORS} contiguous vectors of {self.n_columns} bfloat16 are wanted, not {x.dtype} of shape {tuple(x.shape)}")
        if bias is not None and (bias.shape != (self.n_rows,) or bias.dtype != torch.bfloat16 or not bias.is_contiguous()):
            raise ValueError(f"a contiguous bias of {self.n_rows} bfloat16 is wanted, not {bias.dtype} of shape {tuple(bias.shape)}")
        if out is None:
            out = torch.empty((*x.shape[:-1], self.n_rows), dtype=torch.bfloat16, device=x.device)
        elif out.numel() != n * self.n_rows or out.dtype not in (torch.bfloat16, torch.float32) or not out.is_contiguous():
            raise ValueError(f"{n * self.n_rows} contiguous bfloat16 or float32 are wanted, not {out.dtype} of shape {tuple(out.shape)}")
        if decodes_on(x.device):
            self._multiply_on_gpu(x, bias, out)
        elif not cpu.multiply(self.on_cpu(), x, bias, out, torch.get_num_threads()):
            weight = torch.empty(self.n_rows, self.n_columns, dtype=torch.bfloat16)
            self.unpack(weight)
            out.copy_(torch.nn.functional.linear(x, weight, bias).view(out.shape))
        return out

    def _multiply_on_gpu(self, x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        import torch

        from modelcodec.kernels.triton.fixed_length import X_SCALE, multiply

        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            multiply[(-(-self.n_rows // ROWS),)](
                self.signed_mantissas, self.codes, x, x if bias is None else bias, out, self.row_starts, self.places, self.values,
                self.n_rows, self.n_columns, self.codes.shape[1], 2.0 ** (self.base - X_SCALE),
                PART=self.part, ROWS=ROWS, VECTORS=x.numel() // self.n_columns, BIASED=bias is not None, num_warps=1,
            )  # fmt: skip

    def unpack(self, out: torch.Tensor) -> None:
        """Write the weights into `out` (bf16 [n_rows, n_columns], contiguous)."""
        if out.shape[0] != self.n_rows:
            raise ValueError(f"{self.n_rows} rows are wanted, not {out.shape[0]}")
        self._unpack(None, out)

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """The rows with these numbers (i8 or i4, of any shape) as bf16 [..., n_columns].

        For a number that is none of a row, a GPU gives NaNs, since nothing waits to look; on the CPU, raises IndexError.
        """
        import torch

        out = torch.empty((*chosen.shape, self.n_columns), dtype=torch.bfloat16, device=chosen.device)
        if not decodes_on(chosen.device) and bool(((chosen < 0) | (chosen >= self.n_rows)).any()):
            raise IndexError(f"a number of a row is out of range, there are {self.n_rows} rows")
        self._unpack(chosen.contiguous(), out.view(-1, self.n_columns))
        return out

    def _unpack(self, chosen: torch.Tensor | None, out: torch.Tensor) -> None:
        import torch

        if out.shape[1:] != (self.n_columns,) or out.dtype != torch.bfloat16 or not out.is_contiguous():
            raise ValueError(f"a contiguous matrix of bfloat16 with {self.n_columns} columns is wanted, not {out.dtype} of shape {tuple(out.shape)}")
        if decodes_on(out.device):
            self._unpack_on_gpu(chosen, out)
        else:
            rows = torch.arange(self.n_rows) if chosen is None else chosen.view(-1).to(torch.int64)
            cpu.unpack(self.on_cpu(), rows.numpy(), out.view(torch.int16).numpy(), torch.get_num_threads())

    def _unpack_on_gpu(self, chosen: torch.Tensor | None, out: torch.Tensor) -> None:
        import torch

        from modelcodec.kernels.triton.fixed_length import unpack

        n_words = self.codes.shape[1]
        with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
            unpack[(out.shape[0], n_words // self.part)](
                self.signed_mantissas, self.codes, out.view(torch.int16), self.row_starts, self.places, self.values.view(torch.int16),
                self.row_starts if chosen is None else chosen, self.n_rows, self.n_columns, n_words, self.base,
                CHOSEN=chosen is not None, PART=self.part, num_warps=1,
            )  # fmt: skip
