"""The arm without vector code: it leaves every round to the scalar code of `class_rans.py`."""

from __future__ import annotations

from numba import int64

from modelcodec.kernels.jit import inlined


@inlined
def unpack_rounds(payload, middle, states, classes, entries, bits, groups, n, n_a, symbols):
    """Rounds that were decoded in each group, and the places after the units of A and B that were taken."""
    return 0, int64(0), int64(middle)
