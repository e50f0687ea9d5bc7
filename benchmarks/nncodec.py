"""NNCodec's own quantizer and coder on one matrix: its payload, without its headers, and what that decodes to (`pip install nncodec==2.1.3`)."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounded import Rounded

_UNARY_BITS = 10

Matrix = NDArray[np.float32]


def coded(x: Matrix, qp: int, lambda_scale: float) -> Rounded:
    """A matrix at a quantization parameter, trellis on, and back. Raises ImportError where the package is not there."""
    from nncodec.extensions import deepCABAC

    off = deepCABAC.HdspMode.AlwaysOff
    indices, decoded = np.zeros(x.shape, np.int32), np.zeros(x.shape, np.float32)
    rows, none = np.zeros(len(x), np.int32), np.zeros(2, np.int8)
    encoder = deepCABAC.Encoder()
    encoder.initCtxModels(_UNARY_BITS, 0)
    encoder.quantLayer(x, indices, 1, 2, qp, lambda_scale, _UNARY_BITS, 0, 1)
    encoder = deepCABAC.Encoder()
    encoder.initCtxModels(_UNARY_BITS, 1)
    encoder.encodeLayer(indices, 1, 0, 1, 0, 0, rows, off, none, 0, 0)
    stream = encoder.finish()
    start = time.perf_counter()
    decoder = deepCABAC.Decoder()
    decoder.setStream(stream)
    decoder.initCtxModels(_UNARY_BITS)
    decoder.decodeLayer(indices, 1, 0, 1, 0, off, none, 0, 0)
    decoder.dequantLayer(decoded, indices, 2, qp, 0)
    return Rounded(decoded, len(stream), time.perf_counter() - start)
