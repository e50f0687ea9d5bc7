"""Memory that is used again for each frame: fresh pages cost more than coding what is put into them."""

from __future__ import annotations

from collections import deque
from threading import local

import numpy as np

from modelcodec.types import Array

BLOCK_BYTES = 4 << 20
"""Room for all arrays of a usual frame."""
ALIGNMENT = 64


class Arena:
    """Hands out arrays that hold until the next `reset`; a block that was too small is kept beside a larger one until then."""

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)
        self._used = 0

    def reset(self) -> None:
        """All arrays handed out may be overwritten from now on."""
        self._used = 0

    def bytes(self, n: int) -> Array:
        """n bytes (u1), aligned to 64, of any contents."""
        at = self._used
        if at + n > self._block.size:
            # What was handed out keeps the old block alive.
            self._block = np.empty(max(n, BLOCK_BYTES) + ALIGNMENT, np.uint8)
            at = -self._block.ctypes.data % ALIGNMENT
            # The start of a block that is used again is aligned as well.
            self._block, at = self._block[at:], 0
        self._used = at + n + -n % ALIGNMENT
        return self._block[at : at + n]

    def words(self, n: int, width: int) -> Array:
        """n words of `width` bytes."""
        return self.bytes(n * width).view(f"<u{width}")


class _Arenas(local):
    def __init__(self) -> None:
        self.encoding, self.decoding, self.reading_back = Arena(), Arena(), Arena()


of_thread = _Arenas()
"""The calling thread's own: for the frame that it encodes, for the parts of the one that it decodes, for what it reads back."""


class Buffers:
    """Buffers of a few sizes that several threads take and give back; larger ones are made when asked for and not kept."""

    def __init__(self, *sizes: int) -> None:
        self._spare: dict[int, deque[Array]] = {n_bytes: deque() for n_bytes in sorted(sizes)}

    def take(self, n: int) -> Array:
        """A buffer (u1) of at least n bytes, of any contents."""
        for n_bytes, spare in self._spare.items():
            if n <= n_bytes:
                try:
                    return spare.pop()
                except IndexError:
                    return np.empty(n_bytes, np.uint8)
        return np.empty(n, np.uint8)

    def give(self, buffer: Array) -> None:
        """The buffer, which `take` gave, may be overwritten from now on."""
        if buffer.size in self._spare:
            self._spare[buffer.size].append(buffer)
