"""Memory that is used again for each frame: fresh pages cost more than coding what is put into them."""

from __future__ import annotations

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
        self.encoding, self.decoding = Arena(), Arena()


of_thread = _Arenas()
"""The calling thread's own: one for the frame that it encodes, one for the frame that it decodes, since the first is read back while it is made."""
