"""Small neighbours as one: a network's biases and norms cost more by themselves, in names and tables, than they save."""

from __future__ import annotations

from dataclasses import replace

from modelcodec.types import Checkpoint, Extent, TensorSpec, View

SMALL_BYTES = 40 << 10
"""Larger storages stay by themselves: they have rows, and a scale of their own."""
MOST_GAP_BYTES = 8
"""Bytes between two storages that may become part of the run; a length, as torch's legacy format has."""


def join_small(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with runs of small extents of one dtype joined, the bytes between them included, its views moved to them, and extents named by number.

    Only for checkpoints whose extents have names that nobody asks for: every tensor is a view.
    """
    joined: list[Extent] = []
    moved: list[tuple[int, int]] = []
    for extent in checkpoint.extents:
        if joined and _neighbours(joined[-1], extent):
            run = joined[-1]
            n = (extent.end - run.offset) // run.spec.dtype.word
            joined[-1] = Extent(TensorSpec(run.spec.name, run.spec.dtype, (n,)), run.offset)
        else:
            joined.append(extent)
        moved.append((len(joined) - 1, extent.offset - joined[-1].offset))
    joined = [Extent(replace(extent.spec, name=str(k)), extent.offset) for k, extent in enumerate(joined)]
    views = tuple(_moved(view, *moved[view.extent]) for view in checkpoint.views)
    return replace(checkpoint, extents=tuple(joined), views=views)


def _neighbours(run: Extent, extent: Extent) -> bool:
    a, b = run.spec, extent.spec
    gap = extent.offset - run.end
    same = a.dtype is b.dtype and a.dtype.block == 1 and a.dtype.elements == 1
    return same and 0 <= gap <= MOST_GAP_BYTES and gap % a.dtype.word == 0 and b.n_bytes <= SMALL_BYTES and (a.n_bytes <= SMALL_BYTES or len(a.shape) == 1)


def _moved(view: View, extent: int, offset: int) -> View:
    return View(view.spec, extent, view.strides, view.first + 8 * offset // view.spec.dtype.bits)
