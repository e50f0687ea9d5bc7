"""The nouns that everything shares: dtypes, tensor specifications, the layout of a source file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, log10, prod
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

Array: TypeAlias = "NDArray[Any]"
"""One-dimensional, C-contiguous, little-endian bit patterns: u1, u2, u4 or u8. Never numbers with a sign or an exponent."""


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype as the format knows it.

    `bits` of an element; `word` bytes of the unit that is coded (1, 2, 4, 8); `block` words that are never split between frames; `elements` in such a block (1,
    but for ggml's block types, whose shapes count elements).
    """

    id: int
    name: str
    bits: int
    word: int
    block: int = 1
    elements: int = 1
    in_safetensors: bool = True

    def n_bytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this dtype and shape; a part of a byte counts as one."""
        n = prod(shape)
        if self.elements > 1:
            if n % self.elements:
                raise ValueError(f"{self.name}: {n} elements are no whole number of blocks of {self.elements}")
            return n // self.elements * self.block
        return (n * self.bits + 7) // 8


def _ggml(kind: int, name: str, elements: int, n_bytes: int) -> DType:
    return DType(64 + kind, name, 0, 1, n_bytes, elements, in_safetensors=False)


DTYPES: tuple[DType, ...] = (
    DType(0, "BOOL", 8, 1),
    DType(1, "U8", 8, 1),
    DType(2, "I8", 8, 1),
    DType(3, "F8_E5M2", 8, 1),
    DType(4, "F8_E4M3", 8, 1),
    DType(5, "F8_E8M0", 8, 1),
    DType(6, "F8_E4M3FNUZ", 8, 1),
    DType(7, "F8_E5M2FNUZ", 8, 1),
    DType(8, "F4", 4, 1),
    DType(9, "F6_E2M3", 6, 1),
    DType(10, "F6_E3M2", 6, 1),
    DType(16, "I16", 16, 2),
    DType(17, "U16", 16, 2),
    DType(18, "F16", 16, 2),
    DType(19, "BF16", 16, 2),
    DType(32, "I32", 32, 4),
    DType(33, "U32", 32, 4),
    DType(34, "F32", 32, 4),
    DType(48, "I64", 64, 8),
    DType(49, "U64", 64, 8),
    DType(50, "F64", 64, 8),
    DType(51, "C64", 64, 4, 2),
    DType(52, "C128", 128, 8, 2, in_safetensors=False),
    _ggml(2, "Q4_0", 32, 18),
    _ggml(3, "Q4_1", 32, 20),
    _ggml(6, "Q5_0", 32, 22),
    _ggml(7, "Q5_1", 32, 24),
    _ggml(8, "Q8_0", 32, 34),
    _ggml(9, "Q8_1", 32, 36),
    _ggml(10, "Q2_K", 256, 84),
    _ggml(11, "Q3_K", 256, 110),
    _ggml(12, "Q4_K", 256, 144),
    _ggml(13, "Q5_K", 256, 176),
    _ggml(14, "Q6_K", 256, 210),
    _ggml(15, "Q8_K", 256, 292),
    _ggml(16, "IQ2_XXS", 256, 66),
    _ggml(17, "IQ2_XS", 256, 74),
    _ggml(18, "IQ3_XXS", 256, 98),
    _ggml(19, "IQ1_S", 256, 50),
    _ggml(20, "IQ4_NL", 32, 18),
    _ggml(21, "IQ3_S", 256, 110),
    _ggml(22, "IQ2_S", 256, 82),
    _ggml(23, "IQ4_XS", 256, 136),
    _ggml(29, "IQ1_M", 256, 56),
    _ggml(34, "TQ1_0", 256, 54),
    _ggml(35, "TQ2_0", 256, 66),
    _ggml(39, "MXFP4", 32, 17),
    _ggml(40, "NVFP4", 64, 36),
)

DTYPE_BY_NAME: Mapping[str, DType] = {d.name: d for d in DTYPES}
DTYPE_BY_ID: Mapping[int, DType] = {d.id: d for d in DTYPES}
U8 = DTYPE_BY_NAME["U8"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name, dtype and shape (in elements; for a source without shapes, one dimension)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    _n_bytes: int = field(default=-1, init=False, repr=False, compare=False)

    @property
    def n_bytes(self) -> int:
        if self._n_bytes < 0:  # asked for again and again: counted once
            object.__setattr__(self, "_n_bytes", self.dtype.n_bytes(self.shape))
        return self._n_bytes

    @property
    def n_words(self) -> int:
        return self.n_bytes // self.dtype.word

    @property
    def row_words(self) -> int:
        """Words of a row: a kernel's row is its first dimension, its columns the product of the rest."""
        return self.n_words // self.shape[0] if len(self.shape) > 1 and self.shape[0] else self.n_words


@dataclass(frozen=True, slots=True)
class Extent:
    """Where a tensor's bytes lie in the source file. Extents of a checkpoint are sorted by offset and never overlap."""

    spec: TensorSpec
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.spec.n_bytes


@dataclass(frozen=True, slots=True)
class View:
    """A named tensor on a storage: `extent` is an index into `Checkpoint.extents`; strides and first element count elements of `spec.dtype`."""

    spec: TensorSpec
    extent: int
    strides: tuple[int, ...]
    first: int


@dataclass(frozen=True, slots=True)
class Loss:
    """How far a lossy tensor is from its original: the largest error of a weight, and the mean squared error over the original's mean square."""

    max_error: float
    relative_mse: float

    @property
    def snr_db(self) -> float:
        """Energy of the original over that of the error, in dB."""
        return -10 * log10(self.relative_mse) if self.relative_mse else inf


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a format's reader found in a source file: which bytes are tensors. All other bytes are the skeleton.

    `metadata` holds the string entries that a safetensors source has in `__metadata__`. `views` is empty where every extent is a tensor itself.
    """

    format: str
    extents: tuple[Extent, ...]
    views: tuple[View, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
