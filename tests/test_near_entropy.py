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


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Index of the nearest of some ascending levels."""
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, x).astype(np.uint8)


def packed(nibbles: np.ndarray) -> np.ndarray:
    return (nibbles[:, ::2] | nibbles[:, 1::2] << 4).reshape(ROWS, -1)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
NF4 = np.array([-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1])


def e2m1(x: np.ndarray) -> np.ndarray:
    return nearest(np.abs(x), E2M1) | (x < 0).astype(np.uint8) << 3


def mxfp4() -> Made:
    """Blocks of 32 with a power of two as scale, in bytes without a type, as gpt-oss has them: nibbles, and scales of one byte."""
    blocks = weights(spread=0.5).reshape(-1, 32)
    exponent = np.floor(np.log2(np.abs(blocks).max(1, keepdims=True))) - 2
    nibbles, scales = e2m1(blocks / 2.0**exponent), (exponent + 127).astype(np.uint8)
    return {"blocks": packed(nibbles), "scales": scales.reshape(ROWS, -1)}, order0(nibbles) + order0(scales)


def mxfp4_with_e8m0_scales() -> Made:
    tensors, bits = mxfp4()
    return {"weight": tensors["blocks"], "weight_scale": tensors["scales"].view(ml_dtypes.float8_e8m0fnu)}, bits


def nvfp4() -> Made:
    """Blocks of 16 with an e4m3 scale, and one scale for all."""
    blocks = weights(spread=0.5).reshape(-1, 16)
    most = np.abs(blocks).max(1, keepdims=True) / 6
    scales = (most / (most.max() / 448)).astype(ml_dtypes.float8_e4m3fn)
    nibbles = e2m1(blocks / (scales.astype(np.float64) * most.max() / 448))
    return {"weight": packed(nibbles), "weight_scale": scales.reshape(ROWS, -1)}, order0(nibbles) + order0(scales.view(np.uint8))


def nf4_of_64(nested: bool) -> Made:
    """The layout of bitsandbytes: nibbles in one column, and the largest magnitude of each 64 numbers; nested, that in 8 bits of its own."""
    blocks = weights().astype(np.float32).reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    nibbles = nearest(blocks / absmax[:, None], NF4)
    weight = packed(nibbles).reshape(-1, 1)
    if not nested:
        return {"weight": weight, "weight.absmax": absmax}, order0(nibbles) + float_bits(absmax)
    around = (absmax - absmax.mean()).reshape(-1, 256)
    nested_absmax = np.abs(around).max(1)
    codes = np.round(around / nested_absmax[:, None] * 127 + 128).astype(np.uint8).reshape(-1)
    return {"weight": weight, "weight.absmax": codes, "weight.nested_absmax": nested_absmax}, order0(nibbles) + order0(codes) + 32 * nested_absmax.size


def nf4() -> Made:
    return nf4_of_64(nested=False)


def nf4_nested() -> Made:
    return nf4_of_64(nested=True)


def ternary() -> Made:
    x = np.random.default_rng(1).integers(-1, 2, (ROWS, COLUMNS)).astype(ml_dtypes.bfloat16)
    return {"w": x}, N * np.log2(3)


def binary() -> Made:
    return {"w": (np.random.default_rng(2).integers(0, 2, (ROWS, COLUMNS)) * 2 - 1).astype(np.float32) * np.float32(0.037)}, N


def palette_of_16() -> Made:
    rng = np.random.default_rng(3)
    return {"w": rng.choice(rng.standard_normal(16).astype(np.float32), (ROWS, COLUMNS))}, N * 4


def palette_of_200_in_bfloat16() -> Made:
    """Centroids of k-means, which are not equally frequent."""
    rng = np.random.default_rng(3)
    centroids = np.unique(rng.standard_normal(200).astype(ml_dtypes.bfloat16))
    indices = np.minimum(rng.geometric(0.02, (ROWS, COLUMNS)), centroids.size) - 1
    return {"w": centroids[indices]}, order0(indices)


def embedding_never_trained() -> Made:
    """Rows of a vocabulary that is larger than the corpus: two in three are still what they were made as."""
    x = weights().astype(ml_dtypes.bfloat16)
    trained = np.random.default_rng(11).random(ROWS) < 1 / 3
    x[~trained] = x[0]
    return {"embedding": x}, float_bits(x[trained]) + float_bits(x[0])


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
    """A block-diagonal matrix with rows and columns permuted: the mask is which of 8 blocks each row and column belongs to, 3 bits."""
    rng = np.random.default_rng(8)
    mask = np.kron(np.eye(8), np.ones((ROWS // 8, COLUMNS // 8)))[rng.permutation(ROWS)][:, rng.permutation(COLUMNS)]
    x = np.where(mask, weights(), 0).astype(np.float32)
    return {"w": x}, 3 * (ROWS + COLUMNS) + float_bits(x[x != 0])


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


TABLE_BYTES = 64
"""A slower level's finer table may cost some bytes more than it saves."""


@dataclass(frozen=True)
class EntropyRow:
    make: Callable[[], Made]
    most: float
    """The coded size may be so many times the entropy, at levels 5 and 9; at level 1 4 % more."""
    levels: tuple[int, ...] = (1, 5, 9)
    """Those that come near it; the others are only larger."""


ENTROPY_ROWS = (
    EntropyRow(int8_per_row, 1.005),
    EntropyRow(int4_per_row, 1.01),
    EntropyRow(int4_gptq, 1.01),
    EntropyRow(int4_awq, 1.01),
    EntropyRow(fp8_e4m3, 1.005),
    EntropyRow(fp8_e5m2, 1.005),
    EntropyRow(mxfp4, 1.01),
    EntropyRow(mxfp4_with_e8m0_scales, 1.01),
    EntropyRow(nvfp4, 1.01),
    EntropyRow(nf4, 1.01),
    EntropyRow(nf4_nested, 1.01),
    EntropyRow(ternary, 1.02),
    EntropyRow(binary, 1.01),
    EntropyRow(palette_of_16, 1.01),
    EntropyRow(palette_of_200_in_bfloat16, 1.01),
    EntropyRow(embedding_never_trained, 1.05, levels=(9,)),
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
    sizes = []
    for level in (1, 5, 9):
        coded = modelcodec.save(tensors, level=level)
        loaded = modelcodec.load(coded)
        assert {name: x.tobytes() for name, x in loaded.items()} == {name: x.tobytes() for name, x in tensors.items()}
        sizes.append(len(coded))
        allowed = row.most if level > 1 else row.most + 0.04
        assert level not in row.levels or 8 * len(coded) <= allowed * bits + 8 * 1500, f"level {level}: {8 * len(coded) / bits:.4f} times the entropy"
    assert max(sizes[1] - sizes[0], sizes[2] - sizes[1]) <= TABLE_BYTES, f"a slower level is larger: {sizes}"
