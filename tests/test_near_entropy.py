"""Tensors whose entropy is known come out close to it: quantized, sparse, few-valued, widened, tied. Each row tells the bits that its numbers hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

import modelcodec

ROWS, COLUMNS = 512, 1024
N = ROWS * COLUMNS
Made = tuple[dict[str, np.ndarray], float]
"""Tensors, and the bits that they hold together."""


def weights(seed: int = 0, spread: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((ROWS, COLUMNS)) * 0.02 * np.exp(spread * rng.standard_normal((ROWS, 1)))


def order0(x: np.ndarray) -> float:
    """Bits of an array at order 0."""
    _, counts = np.unique(x, return_counts=True)
    return float((counts * np.log2(x.size / counts)).sum())


def mask_bits(share: float) -> float:
    return -N * (share * np.log2(share) + (1 - share) * np.log2(1 - share))


def float_bits(x: np.ndarray) -> float:
    """Bits of float32 or bfloat16 at order 0: exponent and two bits of mantissa as one symbol, the rest free."""
    words = np.ascontiguousarray(x).view(f"u{x.itemsize}").reshape(-1).astype(np.uint32)
    symbols = (words >> np.uint32(21 if x.itemsize == 4 else 5)) & np.uint32(0x3FF)
    return order0(symbols) + x.size * (8 * x.itemsize - 10)


def quantized(bits: int, group: int = COLUMNS) -> np.ndarray:
    """Symmetric integers of so many bits, a scale for each group of a row."""
    most = 2 ** (bits - 1) - 1
    grouped = weights().reshape(-1, group)
    return np.round(grouped / (np.abs(grouped).max(1, keepdims=True) / most)).astype(np.int8).reshape(ROWS, COLUMNS)


def int8_per_row() -> Made:
    x = quantized(8)
    return {"w": x}, order0(x)


def int4_per_row() -> Made:
    x = quantized(4)
    nibbles = (x + 8).astype(np.uint8)
    return {"w": nibbles[:, ::2] | nibbles[:, 1::2] << 4}, order0(x)


def int4_gptq() -> Made:
    """Eight numbers of the input dimension in each int32."""
    x = quantized(4)
    nibbles = (x + 8).astype(np.uint64).reshape(ROWS, COLUMNS // 8, 8)
    packed = (nibbles << (4 * np.arange(8, dtype=np.uint64))).sum(2, dtype=np.uint64).astype(np.uint32)
    return {"qweight": packed.view(np.int32), "scales": np.ones((1, ROWS), np.float16)}, order0(x)


def int4_awq() -> Made:
    """The same, in AWQ's order of nibbles."""
    x = quantized(4)
    nibbles = (x + 8).astype(np.uint64).reshape(ROWS, COLUMNS // 8, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
    return {"qweight": (nibbles << (4 * np.arange(8, dtype=np.uint64))).sum(2, dtype=np.uint64).astype(np.uint32).view(np.int32)}, order0(x)


def fp8_e4m3() -> Made:
    w = weights()
    x = (w / (np.abs(w).max(1, keepdims=True) / 448)).astype(ml_dtypes.float8_e4m3fn)
    return {"w": x}, order0(x.view(np.uint8))


def fp8_e5m2() -> Made:
    x = (weights() * 100).astype(ml_dtypes.float8_e5m2)
    return {"w": x}, order0(x.view(np.uint8))


def mxfp4() -> Made:
    """Blocks of 32 with a power of two as scale: nibbles, and scales of one byte."""
    blocks = weights(spread=0.5).reshape(-1, 32)
    exponent = np.floor(np.log2(np.abs(blocks).max(1, keepdims=True))) - 2
    codes = np.abs(np.abs(blocks / 2.0**exponent)[:, :, None] - np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])).argmin(2).astype(np.uint8)
    nibbles = codes | (blocks < 0).astype(np.uint8) << 3
    packed, scales = nibbles[:, ::2] | nibbles[:, 1::2] << 4, (exponent + 127).astype(np.uint8).reshape(-1)
    return {"blocks": packed.reshape(ROWS, -1), "scales": scales.reshape(ROWS, -1)}, order0(nibbles) + order0(scales)


def ternary() -> Made:
    x = np.random.default_rng(1).integers(-1, 2, (ROWS, COLUMNS)).astype(ml_dtypes.bfloat16)
    return {"w": x}, N * np.log2(3)


def binary() -> Made:
    return {"w": (np.random.default_rng(2).integers(0, 2, (ROWS, COLUMNS)) * 2 - 1).astype(np.float32) * np.float32(0.037)}, N


def palette_of_16() -> Made:
    rng = np.random.default_rng(3)
    return {"w": rng.choice(rng.standard_normal(16).astype(np.float32), (ROWS, COLUMNS))}, N * 4


def unstructured_zeros() -> Made:
    x = np.where(np.random.default_rng(4).random((ROWS, COLUMNS)) < 0.1, weights(), 0).astype(np.float32)
    return {"w": x}, mask_bits(0.1) + float_bits(x[x != 0])


def masked_by_multiplication() -> Made:
    """Weights times a mask leave -0: the zeros keep their random signs, a bit each."""
    w = weights().astype(np.float32)
    x = w * (np.random.default_rng(5).random((ROWS, COLUMNS)) < 0.1).astype(np.float32)
    return {"w": x}, mask_bits(0.1) + float_bits(x[x != 0]) + int((x == 0).sum())


def two_of_four() -> Made:
    rng = np.random.default_rng(6)
    x = weights().astype(np.float32).reshape(-1, 4)
    np.put_along_axis(x, np.argsort(rng.random(x.shape), 1)[:, :2], 0, 1)
    return {"w": x.reshape(ROWS, COLUMNS)}, N / 4 * np.log2(6) + float_bits(x[x != 0])


def zero_channels() -> Made:
    x = weights().astype(np.float32)
    x[:, np.random.default_rng(7).random(COLUMNS) < 0.3] = 0
    return {"w": x}, COLUMNS + float_bits(x[x != 0])


def block_diagonal() -> Made:
    """A block-diagonal matrix with rows and columns permuted."""
    rng = np.random.default_rng(8)
    mask = np.kron(np.eye(8), np.ones((ROWS // 8, COLUMNS // 8)))[rng.permutation(ROWS)][:, rng.permutation(COLUMNS)]
    x = np.where(mask, weights(), 0).astype(np.float32)
    return {"w": x}, mask_bits(0.125) + float_bits(x[x != 0])


def bfloat16_in_float32() -> Made:
    x = weights().astype(ml_dtypes.bfloat16)
    return {"w": x.astype(np.float32)}, float_bits(x)


def float16_in_float32() -> Made:
    x = weights().astype(np.float16)
    symbols = x.view(np.uint16) >> np.uint16(7) & np.uint16(0xFF)
    return {"w": x.astype(np.float32)}, order0(symbols) + 8 * N


def dequantized_int8() -> Made:
    x = quantized(8)
    return {"w": x.astype(np.float32) * np.float32(0.0123)}, order0(x)


def token_ids() -> Made:
    x = np.random.default_rng(9).integers(0, 32000, (ROWS, COLUMNS))
    return {"ids": x}, N * np.log2(32000)


def booleans() -> Made:
    x = np.random.default_rng(10).random((ROWS, COLUMNS)) < 0.1
    return {"mask": x}, mask_bits(0.1)


def tied() -> Made:
    x = weights().astype(np.float32)
    return {"lm_head": x, "embedding": x.copy()}, float_bits(x)


def positions() -> Made:
    return {"position_ids": np.arange(N)}, 8.0 * 8192


@dataclass(frozen=True)
class EntropyRow:
    make: Callable[[], Made]
    most: float
    """The coded size may be so many times the entropy, at levels 5 and 9."""


ENTROPY_ROWS = (
    EntropyRow(int8_per_row, 1.005),
    EntropyRow(int4_per_row, 1.01),
    EntropyRow(int4_gptq, 1.01),
    EntropyRow(int4_awq, 1.01),
    EntropyRow(fp8_e4m3, 1.005),
    EntropyRow(fp8_e5m2, 1.005),
    EntropyRow(mxfp4, 1.01),
    EntropyRow(ternary, 1.02),
    EntropyRow(binary, 1.01),
    EntropyRow(palette_of_16, 1.01),
    EntropyRow(unstructured_zeros, 1.02),
    EntropyRow(masked_by_multiplication, 1.02),
    EntropyRow(two_of_four, 1.01),
    EntropyRow(zero_channels, 1.02),
    EntropyRow(block_diagonal, 1.02),
    EntropyRow(bfloat16_in_float32, 1.005),
    EntropyRow(float16_in_float32, 1.005),
    EntropyRow(dequantized_int8, 1.01),
    EntropyRow(token_ids, 1.005),
    EntropyRow(booleans, 1.02),
    EntropyRow(tied, 1.005),
    EntropyRow(positions, 1.0),
)


@pytest.mark.parametrize("row", ENTROPY_ROWS, ids=lambda row: row.make.__name__)
def test_size_is_near_the_entropy(row: EntropyRow) -> None:
    tensors, bits = row.make()
    for level in (1, 5, 9):
        coded = modelcodec.save(tensors, level=level)
        loaded = modelcodec.load(coded)
        assert {name: x.tobytes() for name, x in loaded.items()} == {name: x.tobytes() for name, x in tensors.items()}
        allowed = row.most if level > 1 else row.most + 0.04
        assert 8 * len(coded) <= allowed * bits + 8 * 1500, f"level {level}: {8 * len(coded) / bits:.4f} times the entropy"
