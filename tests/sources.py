"""Small source files, one for each format, made without their libraries where that is easy: a file's name, and the bytes of all files that lie together."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Made = tuple[str, dict[str, bytes]]


def weights(*shape: int, seed: int = 0) -> Array:
    """float32 numbers that hold bfloat16, bell-shaped, from integers alone."""
    n = int(np.prod(shape))
    octets = np.frombuffer(np.random.PCG64(seed).random_raw(n).astype("<u8").tobytes(), np.uint8).reshape(n, 8)
    values = (octets.astype(np.int64).sum(axis=1) - 1020).astype(np.float32) / np.float32(8192)
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32).reshape(shape)


def q4_0_blocks(n: int, seed: int = 3) -> Array:
    """ggml's Q4_0: a float16 scale, then 32 numbers of 4 bits."""
    scales = (np.abs(weights(n, seed=seed)) + np.float32(0.01)).astype(np.float16)
    quants = (np.clip(weights(n, 32, seed=seed + 1) * 60 + 8, 0, 15)).astype(np.uint8)
    packed = quants[:, :16] | quants[:, 16:] << 4
    return np.concatenate([scales.view(np.uint8).reshape(n, 2), packed], axis=1).reshape(-1)


def safetensors_bytes(tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: dict[str, str] | None = None, padding: int = 0) -> bytes:
    """A safetensors file, its tensors in this order, its header followed by spaces."""
    rows: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        rows[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    header = json.dumps(rows).encode() + b" " * padding
    return len(header).to_bytes(8, "little") + header + b"".join(data for _, _, data in tensors.values())


def safetensors_file() -> Made:
    bf16 = (weights(8, 24).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    tensors = {
        "embed.weight": ("BF16", (8, 24), bf16.tobytes()),
        "norm.scale": ("F32", (), np.float32(1).tobytes()),
        "steps": ("I64", (64,), np.arange(64).tobytes()),
        "empty": ("F16", (0, 4), b""),
    }
    return "model.safetensors", {"model.safetensors": safetensors_bytes(tensors, {"format": "pt", "naïve": "é"}, padding=3)}


def _state_dict() -> dict[str, Any]:
    """Two tensors on one storage, one of them transposed, and a tensor of integers."""
    import torch

    shared = torch.from_numpy(weights(16, 24).copy())
    return {"weight": shared, "weight_t": shared.t(), "steps": torch.arange(40)}


def torch_zip_file() -> Made:
    import torch

    out = io.BytesIO()
    torch.save(_state_dict(), out)
    return "model.pt", {"model.pt": out.getvalue()}


def torch_legacy_file() -> Made:
    """A storage is named after its address, and storages are sorted by it; here there is one, named by a number, so that the file is always the same."""
    import torch

    out = io.BytesIO()
    state = _state_dict()
    torch.save({name: state[name] for name in ("weight", "weight_t")}, out, _use_new_zipfile_serialization=False)
    data = out.getvalue()
    (key,) = set(re.findall(rb"X[\x09-\x14]\0\0\0([0-9]{9,20})", data))
    return "model.ckpt", {"model.ckpt": data.replace(struct.pack("<I", len(key)) + key, struct.pack("<I", 4) + b"1000")}


def gguf_file() -> Made:
    """Version 3: two keys, a float tensor, a block-quantized one, one of a type that nobody knows."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    tensors = [("a", (32, 6), 0, weights(6, 32).tobytes()), ("b", (32, 16), 2, q4_0_blocks(16).tobytes()), ("c", (7,), 999, b"unknown")]
    keys = [text("general.architecture") + struct.pack("<I", 8) + text("test"), text("numbers") + struct.pack("<IIQ3I", 9, 4, 3, 1, 2, 3)]
    infos, data = b"", b""
    for name, shape, kind, payload in tensors:
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, len(data))
        data += payload + bytes(-len(payload) % 32)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + infos
    return "model.gguf", {"model.gguf": header + bytes(-len(header) % 32) + data}


def _npy(array: Array) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=(1, 0))
    return out.getvalue()


def npy_file() -> Made:
    return "weights.npy", {"weights.npy": _npy(np.asfortranarray(weights(12, 20)))}


def npz_file() -> Made:
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, array in (("kernel", weights(12, 20)), ("steps", np.arange(50, dtype=np.int32))):
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(array))
    return "weights.npz", {"weights.npz": out.getvalue()}


def _field(number: int, value: int | bytes) -> bytes:
    """A protobuf field: a varint, or bytes."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def _onnx(*initializers: bytes) -> bytes:
    return _field(1, 8) + _field(7, _field(2, b"graph") + b"".join(_field(5, tensor) for tensor in initializers))


def onnx_file() -> Made:
    first = _field(1, 12) + _field(1, 20) + _field(2, 1) + _field(8, b"kernel") + _field(9, weights(12, 20).tobytes())
    second = _field(1, 50) + _field(2, 7) + _field(8, b"steps") + _field(9, np.arange(50).tobytes())
    return "model.onnx", {"model.onnx": _onnx(first, second)}


def onnx_data_file() -> Made:
    data = bytes(64) + weights(12, 20).tobytes()
    places = {b"location": b"model.onnx_data", b"offset": b"64", b"length": b"960"}
    external = b"".join(_field(13, _field(1, key) + _field(2, value)) for key, value in places.items())
    tensor = _field(1, 12) + _field(1, 20) + _field(2, 1) + _field(8, b"kernel") + external + _field(14, 1)
    return "model.onnx_data", {"model.onnx": _onnx(tensor), "model.onnx_data": data}


def any_file() -> Made:
    return "README.md", {"README.md": b"Nothing here is a tensor. " * 20 + pickle.dumps({"protocol": [1, 2, 3]}, protocol=2)}
