"""Tensors of a compressed checkpoint in the order of the file, decoded while its bytes arrive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modelcodec.pool import thread_count
from modelcodec.runtime.device_memory import DeviceMemory
from modelcodec.runtime.pipeline import Destination, Pipeline
from modelcodec.runtime.sources import Location, files_of, name_of
from modelcodec.runtime.tensors import as_tensor
from modelcodec.tensor_file import Framework

MEMORY_BOUND = 256 << 20


def stream(
    source: Location, framework: Framework = "np", *, threads: int | None = None, device: Any = None, memory_bound: int = MEMORY_BOUND
) -> Iterator[tuple[str, Any]]:
    """Names and tensors of a compressed checkpoint in the order of the file, read and decoded ahead in the background.

    `source`: a path, a folder or an index of shards; a URL that fsspec understands (`https://`, `hf://`, `s3://`); or a binary file object, which may be a pipe
    and is read to its end. `threads`: how many decode (default: one a processor); one more reads. `device`: where torch tensors go; a GPU that can decode
    (docs/gpu.md) gets frames, another one decoded bytes, both through pinned memory. Every tensor was checked when it comes. Tensors of a torch file that
    share a storage may share memory. Close the iterator to end early.

    memory: the tensor that is waited for, two frames a thread, and `memory_bound` bytes read and decoded ahead.
    raises: TruncatedFile, CorruptFile, UnsupportedFile, LimitExceeded, OSError, where they are met; BadRecipe for a URL whose package is not installed.
    """
    if framework not in ("np", "numpy", "pt", "torch"):
        raise ValueError(f"framework is {framework!r}, 'np' and 'pt' are possible")
    if device is not None and framework in ("np", "numpy"):
        raise ValueError("device is for torch tensors; set framework='pt'")
    if memory_bound < 0:
        raise ValueError(f"memory_bound is {memory_bound}, at least 0 is needed")
    return _tensors(source, framework, thread_count(threads), device, memory_bound)


def _tensors(source: Location, framework: Framework, threads: int, device: Any, memory_bound: int) -> Iterator[tuple[str, Any]]:
    destination = Destination() if device is None else DeviceMemory(device)
    for file in files_of(source):
        where = name_of(file)
        with Pipeline(file, threads, memory_bound, destination) as pipeline:
            for spec, data in pipeline:
                tensor = as_tensor(data, spec, framework, where)
                del data
                yield spec.name, tensor if device is None else tensor.to(device)
                del tensor
