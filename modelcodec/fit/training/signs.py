"""Sums of pseudo-random signs and their transpose for torch: by the codec's own kernels in the processor's memory, by tensor operations elsewhere.

The sums are the same integers everywhere, those of the stage seedbasis. Nothing of the matrix of signs is kept: tensor operations make it tile by tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from modelcodec.kernels import philox
from modelcodec.kernels.philox import Signs

_TILE = 1 << 23
"""Signs that are in memory at a time."""
_ALIGNED = 16
"""A tile begins at a multiple of so many words of its span, where a block of the generator begins, too."""
_LOW = 0xFFFFFFFF


def sums(coefficients: Tensor, signs: Signs, n: int) -> Tensor:
    """For each of a tensor's n words the sum (i4) of its span's coefficients (i4: spans x k), each with its sign."""
    if coefficients.device.type == "cpu":
        return torch.from_numpy(philox.sums(coefficients.numpy(), signs, 0, n))
    return tiled_sums(coefficients, signs, n)


def correlations(values: Tensor, signs: Signs) -> Tensor:
    """For each coefficient (f4: spans x k) the sum of its words' values (f4), each with its sign."""
    if values.device.type == "cpu":
        return torch.from_numpy(philox.correlations(values.contiguous().numpy(), signs, 0).astype(np.float32))
    return tiled_correlations(values, signs)


def tiled_sums(coefficients: Tensor, signs: Signs, n: int) -> Tensor:
    """`sums` on any device."""
    out = torch.empty(len(coefficients), min(signs.span, n), dtype=torch.int32, device=coefficients.device)
    wide = coefficients.double().unsqueeze(2)  # in which the sums are exact
    for spans, places, tile in _tiles(signs, out.shape[0], out.shape[1], coefficients.device):
        out[spans, places] = (tile.double() @ wide[spans]).squeeze(2).int()
    return out.reshape(-1)[:n]


def tiled_correlations(values: Tensor, signs: Signs) -> Tensor:
    """`correlations` on any device."""
    n = values.numel()
    padded = torch.zeros(signs.spans(0, n), min(signs.span, n), device=values.device)
    padded.view(-1)[:n] = values
    out = torch.zeros(len(padded), signs.k, device=values.device)
    for spans, places, tile in _tiles(signs, padded.shape[0], padded.shape[1], values.device):
        out[spans] += (padded[spans, places].unsqueeze(1) @ tile.float()).squeeze(1)
    return out


def _tiles(signs: Signs, n_spans: int, n: int, device: torch.device) -> Iterator[tuple[slice, slice, Tensor]]:
    """The signs (i1: spans x places x k) of the first n words of spans, with the spans and places that they are of."""
    most = max(_TILE // signs.k // _ALIGNED, 1) * _ALIGNED
    n_places = min(n, most)
    step = max(most // n_places, 1)
    for first in range(0, n_spans, step):
        spans = slice(first, min(first + step, n_spans))
        for place in range(0, n, n_places):
            places = slice(place, min(place + n_places, n))
            yield spans, places, _tile(signs, spans, places, device)


def _tile(signs: Signs, spans: slice, places: slice, device: torch.device) -> Tensor:
    n_bytes, n = (signs.k + 7) // 8, places.stop - places.start
    first, last = places.start * n_bytes // 16, (places.stop * n_bytes + 15) // 16
    counters = torch.arange(first, last, device=device)
    number = torch.arange(spans.start, spans.stop, device=device)[:, None]
    blocks = _philox(counters, number, signs.seed)
    octets = ((blocks.unsqueeze(3) >> torch.tensor([0, 8, 16, 24], device=device)) & 255).to(torch.uint8).reshape(len(number), -1)
    own = octets[:, : n * n_bytes].reshape(len(number), n, n_bytes, 1)
    bits = (own >> torch.arange(8, dtype=torch.uint8, device=device)) & 1
    return bits.reshape(len(number), n, 8 * n_bytes)[:, :, : signs.k].to(torch.int8) * 2 - 1


def _philox(counters: Tensor, high: Tensor, seed: int) -> Tensor:
    """Blocks of four numbers of 32 bits in 64 for each two halves of a counter; products wrap around, and their upper half is what is wanted."""
    x0, x1, x2, x3 = (part.expand(len(high), len(counters)) for part in (counters & _LOW, counters >> 32, high & _LOW, high >> 32))
    key0, key1 = seed & _LOW, seed >> 32
    for _ in range(10):
        left, right = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        x0, x2 = ((right >> 32) & _LOW) ^ x1 ^ key0, ((left >> 32) & _LOW) ^ x3 ^ key1
        x1, x3 = right & _LOW, left & _LOW
        key0, key1 = (key0 + 0x9E3779B9) & _LOW, (key1 + 0xBB67AE85) & _LOW
    return torch.stack((x0, x1, x2, x3), 2)
