"""The floor that `info` shows: what an order-0 code of a tensor's symbols would take."""

from __future__ import annotations

import numpy as np

from modelcodec import frame as frames
from modelcodec.formats import container
from modelcodec.types import Array, DType


def floor_bits(archive: container.Container, entry: container.Entry) -> float | None:
    """Bits an element at order 0: of a float, the entropy of its exponent plus sign and mantissa; of anything else, the sum of its bytes' entropies.

    One histogram over the whole tensor; what a table costs is left out. None for an empty tensor. Reads and decodes the tensor, a frame at a time.
    """
    dtype = entry.spec.dtype
    n = entry.spec.n_words
    if n == 0:
        return None
    histograms = [np.zeros(1 << bits, np.int64) for bits in _fields(dtype)]
    holder, rest = archive.resolve(entry), np.empty(0, np.uint8)
    for number in range(holder.n_frames):
        out = np.empty(holder.words_of(number), frames.WORD[holder.spec.dtype.word])
        archive.decode_frame(holder, number, out)
        # An entry of another dtype may hold the bytes, in frames that cut through this one's words.
        octets = np.concatenate([rest, out.view(np.uint8)])
        whole = octets.size // dtype.word * dtype.word
        _count(octets[:whole].view(frames.WORD[dtype.word]), dtype, histograms)
        rest = octets[whole:]
    coded = sum(_entropy(h) for h in histograms) * n
    free = n * _free_bits(dtype)
    weights = 1
    for dimension in entry.spec.shape:
        weights *= dimension
    return (coded + free) / weights


_EXPONENT = {"F16": (10, 5), "BF16": (7, 8), "F32": (23, 8), "F64": (52, 11), "C64": (23, 8), "C128": (52, 11)}
"""dtype -> (bits below the exponent, bits of the exponent)"""


def _fields(dtype: DType) -> list[int]:
    return [_EXPONENT[dtype.name][1]] if dtype.name in _EXPONENT else [8] * dtype.word


def _free_bits(dtype: DType) -> int:
    return 8 * dtype.word - _EXPONENT[dtype.name][1] if dtype.name in _EXPONENT else 0


def _count(x: Array, dtype: DType, histograms: list[Array]) -> None:
    if dtype.name in _EXPONENT:
        below, bits = _EXPONENT[dtype.name]
        histograms[0] += np.bincount(((x >> x.dtype.type(below)) & x.dtype.type((1 << bits) - 1)).astype(np.int64), minlength=1 << bits)
        return
    octets = x.view(np.uint8)
    for k, histogram in enumerate(histograms):
        histogram += np.bincount(octets[k :: dtype.word], minlength=256)


def _entropy(counts: Array) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())
