"""Weights in 12 bits each for generating one token at a time on a GPU: made when a model is loaded, never stored (docs/gpu.md).

A layer's time is then that of reading its weights, which no entropy decoder keeps up with. Exponents get 4 bits: 15 neighbouring ones and zero have a code, all
others are listed beside the matrix. exact: unpacked weights are the original ones, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CODES = 15
"""Exponents with a code."""
MOST_BITS = 13
"""A matrix that takes more bits a weight, with padding and ten bytes for each escaped weight, stays as it is."""
PARTS = (128, 64, 32)
"""An eighth of a block of columns, widest loads first; wide ones are taken where their padding is at most one column in MOST_PADDING."""
MOST_PADDING = 48
ROWS = 4
"""Of a program: they share x. More would leave too few programs."""
MOST_VECTORS = 4
"""Multiplied at a time: a warp has registers for the sums of so many."""
CHUNK_WEIGHTS = 1 << 24
"""Laid out at a time, in 20 bytes each."""


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
        """The matrix in this form, on the device where it lies; None where it would take more than MOST_BITS a weight.

        memory: 20 bytes for each of CHUNK_WEIGHTS weights while it is made.
        """
        import torch

        if weight.dtype != torch.bfloat16 or weight.ndim != 2 or not weight.numel():
            raise ValueError(f"a matrix of bfloat16 is wanted, not {weight.dtype} of shape {tuple(weight.shape)}")
        n_rows, n_columns = weight.shape
        part = next((part for part in PARTS if -n_columns % (8 * part) * MOST_PADDING <= n_columns), PARTS[-1])
        words = weight.detach().contiguous().view(torch.int16)
        chunks = torch.split(words, max(CHUNK_WEIGHTS // n_columns, 1))
        base = _base(torch.stack([torch.bincount((chunk.to(torch.int32) >> 7 & 0xFF).view(-1), minlength=256) for chunk in chunks]).sum(0))
        signed_mantissas, codes, places = zip(*(_laid_out(chunk.to(torch.int32) & 0xFFFF, base, part) for chunk in chunks), strict=True)
        starts = range(0, weight.numel(), chunks[0].numel())
        all_places = torch.cat([found + start for found, start in zip(places, starts, strict=True)])
        form = cls(
            n_rows,
            n_columns,
            part,
            base,
            torch.cat(signed_mantissas),
            torch.cat(codes),
            torch.searchsorted(all_places, torch.arange(n_rows + 1, device=weight.device) * n_columns).to(torch.int32),
            all_places,
            words.view(-1)[all_places].view(torch.bfloat16),
        )
        return form if 8 * form.n_bytes <= MOST_BITS * weight.numel() else None

    @property
    def n_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.signed_mantissas, self.codes, self.row_starts, self.places, self.values))

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """The matrix times each vector of x (bf16 [..., n_columns], contiguous, 1 to MOST_VECTORS of them), plus a bias (bf16 [n_rows]), as bf16 [..., n_rows].

        Summed in f4. Given `out` (bf16 or f4, contiguous), fills and returns it and allocates nothing.
        """
        import torch

        from modelcodec.kernels.triton.fixed_length import X_SCALE, multiply

        n = x.numel() // self.n_columns
        if x.shape[-1] != self.n_columns or not 1 <= n <= MOST_VECTORS or x.dtype != torch.bfloat16 or not x.is_contiguous():
            raise ValueError(f"1 to {MOST_VECTORS} contiguous vectors of {self.n_columns} bfloat16 are wanted, not {x.dtype} of shape {tuple(x.shape)}")
        if bias is not None and (bias.shape != (self.n_rows,) or bias.dtype != torch.bfloat16 or not bias.is_contiguous()):
            raise ValueError(f"a contiguous bias of {self.n_rows} bfloat16 is wanted, not {bias.dtype} of shape {tuple(bias.shape)}")
        if out is None:
            out = torch.empty((*x.shape[:-1], self.n_rows), dtype=torch.bfloat16, device=x.device)
        elif out.numel() != n * self.n_rows or out.dtype not in (torch.bfloat16, torch.float32) or not out.is_contiguous():
            raise ValueError(f"{n * self.n_rows} contiguous bfloat16 or float32 are wanted, not {out.dtype} of shape {tuple(out.shape)}")
        with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
            multiply[(-(-self.n_rows // ROWS),)](
                self.signed_mantissas, self.codes, x, x if bias is None else bias, out, self.row_starts, self.places, self.values,
                self.n_rows, self.n_columns, self.codes.shape[1], 2.0 ** (self.base - X_SCALE),
                PART=self.part, ROWS=ROWS, VECTORS=n, BIASED=bias is not None, num_warps=1,
            )  # fmt: skip
        return out

    def unpack(self, out: torch.Tensor) -> None:
        """Write the weights into `out` (bf16 [n_rows, n_columns], contiguous)."""
        if out.shape[0] != self.n_rows:
            raise ValueError(f"{self.n_rows} rows are wanted, not {out.shape[0]}")
        self._unpack(None, out)

    def rows(self, chosen: torch.Tensor) -> torch.Tensor:
        """The rows with these numbers (i8 or i4, of any shape) as bf16 [..., n_columns]; NaNs for a number that is none of a row: nothing waits to look."""
        import torch

        out = torch.empty((*chosen.shape, self.n_columns), dtype=torch.bfloat16, device=chosen.device)
        self._unpack(chosen.contiguous(), out.view(-1, self.n_columns))
        return out

    def _unpack(self, chosen: torch.Tensor | None, out: torch.Tensor) -> None:
        import torch

        from modelcodec.kernels.triton.fixed_length import unpack

        if out.shape[1:] != (self.n_columns,) or out.dtype != torch.bfloat16 or not out.is_contiguous():
            raise ValueError(f"a contiguous matrix of bfloat16 with {self.n_columns} columns is wanted, not {out.dtype} of shape {tuple(out.shape)}")
        n_words = self.codes.shape[1]
        with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
            unpack[(out.shape[0], n_words // self.part)](
                self.signed_mantissas, self.codes, out.view(torch.int16), self.row_starts, self.places, self.values.view(torch.int16),
                self.row_starts if chosen is None else chosen, self.n_rows, self.n_columns, n_words, self.base,
                CHOSEN=chosen is not None, PART=self.part, num_warps=1,
            )  # fmt: skip


def _base(counts: torch.Tensor) -> int:
    """The base with which the most weights have a code; counts of each exponent."""
    from modelcodec.kernels.triton.fixed_length import X_SCALE

    bases = min(256 - CODES, X_SCALE + 127)  # 2^(base - X_SCALE) is a float
    return int(counts[1:].unfold(0, CODES, 1).sum(1)[:bases].argmax())


def _laid_out(words: torch.Tensor, base: int, part: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signed mantissas and codes of some rows' words (i4), packed, and the places of the words that are escaped."""
    import torch

    codes = (words >> 7 & 0xFF) - base
    coded = (codes >= 1) & (codes <= CODES)
    places = (~coded & (words & 0x7FFF != 0)).view(-1).nonzero().view(-1)
    signed_mantissas = words >> 8 & 0x80 | words & 0x7F
    signed_mantissas.view(-1)[places] = 0
    return _packed(signed_mantissas, 8, part), _packed(torch.where(coded, codes, 0), 4, part), places


def _packed(numbers: torch.Tensor, bits: int, part: int) -> torch.Tensor:
    """Numbers of 4 or 8 bits (i4), 32 / bits in a word, those `part` columns apart together; rows padded with zeros to whole blocks."""
    import torch

    n_rows, n_columns = numbers.shape
    padded = torch.nn.functional.pad(numbers, (0, -n_columns % (8 * part))).view(n_rows, -1, 32 // bits, part)
    words = torch.zeros_like(padded[:, :, 0])
    for j in range(32 // bits):
        words |= padded[:, :, j] << bits * j
    return words.view(n_rows, -1)
