"""ggml's own quantizers and readers, k- and i-quants with an importance matrix too: xllamacpp (`pip install xllamacpp gguf`) brings its library."""

from __future__ import annotations

import ctypes
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rounded import Rounded

TYPES = ("IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "MXFP4", "IQ4_NL", "Q4_0", "Q4_K", "Q4_1", "Q5_0", "Q5_K", "Q5_1", "Q6_K", "Q8_0")
MIXES = (("IQ4_XS", "Q4_K"), ("IQ4_XS", "Q5_K"), ("Q4_K", "Q6_K"), ("Q5_K", "Q6_K"))
"""A table of embeddings in a coarser type than the other matrices."""


class _Traits(ctypes.Structure):
    """ggml_type_traits, as far as it is read here."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("size", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@cache
def _library() -> ctypes.CDLL:
    found = find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise ImportError("xllamacpp is not installed")
    library = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *(ctypes.c_int64,) * 3, ctypes.c_void_p]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    return library


def rounded(weights: NDArray[np.float32], kind: str, importance: NDArray[np.float32] | None = None) -> Rounded:
    """A matrix in a type and back. importance: one number a column. Raises ImportError.

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
    back = np.empty(x.size, np.float32)
    start = time.perf_counter()
    _library().ggml_get_type_traits(int(number)).contents.to_float(data.ctypes.data, back.ctypes.data, x.size)
    return Rounded(back[: weights.size].reshape(weights.shape), size, time.perf_counter() - start)
