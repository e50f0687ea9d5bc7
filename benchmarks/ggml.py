"""ggml's own quantizers, k- and i-quants with an importance matrix too: xllamacpp (`pip install xllamacpp`) brings its library, the gguf package reads back."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = ("IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "MXFP4", "IQ4_NL", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0")
MIXES = (("IQ4_XS", "Q4_K"), ("IQ4_XS", "Q5_K"), ("Q4_K", "Q6_K"), ("Q5_K", "Q6_K"))
"""A table of embeddings in a coarser type than the other matrices."""


@cache
def _library() -> ctypes.CDLL:
    found = find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise ImportError("xllamacpp is not installed")
    library = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *(ctypes.c_int64,) * 3, ctypes.c_void_p]
    return library


def rounded(weights: NDArray[np.float32], kind: str, importance: NDArray[np.float32] | None = None) -> tuple[NDArray[np.float32], int]:
    """A matrix as it comes back from a type, and the bytes it takes there. importance: one number a column. Raises ImportError.

    Blocks go over the weights in their order: where a row is no multiple of 256, llama-quantize would fall back to an older type, which takes more bits.
    """
    import gguf

    number: Any = gguf.GGMLQuantizationType[kind]
    block, n_bytes = gguf.GGML_QUANT_SIZES[number]
    x = np.pad(weights.reshape(-1).astype(np.float32), (0, -weights.size % block))
    data = np.zeros(x.size // block * n_bytes, np.uint8)
    of_weights = None if importance is None else np.resize(importance.astype(np.float32), x.size)
    size = _library().ggml_quantize_chunk(int(number), x.ctypes.data, data.ctypes.data, 0, 1, x.size, None if of_weights is None else of_weights.ctypes.data)
    if size != data.size:
        raise AssertionError(f"{kind}: {size} bytes, {data.size} are expected")
    back = gguf.quants.dequantize(data, number)[: weights.size]
    return back.reshape(weights.shape).astype(np.float32), size
