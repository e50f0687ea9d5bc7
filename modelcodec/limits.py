"""Every cap on what an untrusted file may ask for, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps that hold before anything is allocated.

    The format's own constants (`frame_bytes`, `nodes`, `depth`, `dimensions`, `frame_signs`) are part of the specification; the others protect the machine and
    may be raised.
    """

    header_bytes: int = 100_000_000
    """JSON header of a safetensors file: the cap that the safetensors library itself has."""
    entries: int = 10_000_000
    """Tensors in a file; each costs at least 40 bytes of header, so this is never reached by a real file below the header cap."""
    dimensions: int = 64
    frame_bytes: int = 1 << 20
    """Decoded bytes of one frame: what a frame head can ask for."""
    nodes: int = 64
    depth: int = 8
    frame_arrays: int = 8
    """The arrays of all nodes of a frame hold at most this many times the frame's bytes, plus 64 KiB."""
    frame_signs: int = 1 << 28
    """Pseudo-random signs that a frame of seedbasis sums up, some tens of milliseconds of work; constants of few bytes may stand for its coefficients."""
    zstd_window: int = 1 << 23
    skeleton_bytes: int = 1 << 30
    """Skeleton kept in memory while a file is restored: headers, pickles, zip records, ONNX graphs without their weights."""
    views: int = 10_000_000
    few_views: int = 4096
    views_a_byte: int = 64
    """Names compress well, but not without end: a file has at most so many views, and so many more for each stored byte of their entry."""
    view_bytes: int = 1 << 30
    """A view larger than its storage, which strides of 0 allow, is materialised up to this size."""
    pickle_operations: int = 50_000_000
    """Steps of the inert pickle reader."""
    path_bytes: int = 4096


LIMITS = Limits()
