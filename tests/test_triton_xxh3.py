"""Promise: digests taken in a GPU's memory are those of the xxhash library. Without a GPU, Triton's interpreter runs the kernel."""

from __future__ import annotations

import numpy as np
from triton_device import DEVICE, torch
from xxhash import xxh3_64_intdigest

from modelcodec.runtime.xxh3 import LEAST_BYTES, Piece, digests


def test_digests_are_those_of_the_library() -> None:
    sizes = [LEAST_BYTES, 256, 1023, 1024, 1025, 1026, 1088, 2047, 2048, 2049, 5000, 20_003]
    data = np.random.default_rng(0).integers(0, 256, 60_000, np.uint8)
    starts = [8 * k for k in range(len(sizes))]
    found = digests(torch.from_numpy(data).to(DEVICE), [Piece(start, size) for start, size in zip(starts, sizes, strict=True)])
    assert found == [xxh3_64_intdigest(data[start : start + size]) for start, size in zip(starts, sizes, strict=True)]


def test_the_last_bytes_of_memory_that_is_no_whole_number_of_words() -> None:
    data = np.random.default_rng(1).integers(0, 256, 2054, np.uint8)
    assert digests(torch.from_numpy(data).to(DEVICE), [Piece(0, 2054)]) == [xxh3_64_intdigest(data)]


def test_nothing_to_digest() -> None:
    assert digests(torch.zeros(8, dtype=torch.uint8, device=DEVICE), []) == []
