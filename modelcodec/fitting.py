"""Which tensors of a source a fit may have, and where in the source its results go."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from math import inf

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe
from modelcodec.fitted import DTYPES, Fit, Fitted, Weights
from modelcodec.types import Array, Checkpoint, Extent, TensorSpec, View
from modelcodec.views import is_row_major


def fitted_checkpoint(source: memoryview, checkpoint: Checkpoint, fit: Fit) -> tuple[Checkpoint, Fitted]:
    """Fit a source's tensors: the checkpoint in which every lossy tensor is an extent of its own, and the results by the extents' names.

    Raises BadRecipe for a fit that gives other tensors than it got, or none.
    """
    places = _places(checkpoint)
    weights = {name: Weights(spec, _words(source, spec, offset)) for name, (spec, offset) in places.items()}
    fitted = fit(weights)
    for name, tensor in fitted.tensors.items():
        if name not in weights or tensor.words.dtype != weights[name].words.dtype or tensor.words.size != weights[name].words.size:
            raise BadRecipe(f"the fit gives {name!r} with {tensor.words.size} words, which is no tensor that it got")
    if not fitted.tensors:
        raise BadRecipe("there is no tensor that the fit applies to; compress without it")
    if not checkpoint.views:
        return checkpoint, fitted
    apart = _apart(checkpoint, {places[name][1]: places[name][0] for name in fitted.tensors})
    names = {extent.offset: extent.spec.name for extent in apart.extents}
    return apart, Fitted({names[places[name][1]]: tensor for name, tensor in fitted.tensors.items()})


def _places(checkpoint: Checkpoint) -> dict[str, tuple[TensorSpec, int]]:
    """Float tensors that lie in one piece, with their offsets; of those at one place the first, of those that overlap none."""
    if not checkpoint.views:
        return {e.spec.name: (e.spec, e.offset) for e in checkpoint.extents if e.spec.dtype.name in DTYPES}
    found: dict[tuple[int, int], TensorSpec] = {}
    for view in checkpoint.views:
        offset = checkpoint.extents[view.extent].offset + view.first * view.spec.dtype.bits // 8
        found.setdefault((offset, offset + _reach(view)), view.spec if is_row_major(view.spec.shape, view.strides) else replace(view.spec, shape=()))
    ordered = sorted(found)
    ends = accumulate((end for _, end in ordered), max, initial=0)
    nexts = [*(start for start, _ in ordered[1:]), inf]
    clear = [place for place, before, after in zip(ordered, ends, nexts, strict=False) if before <= place[0] and place[1] <= after]
    return {found[place].name: (found[place], place[0]) for place in clear if found[place].shape and found[place].dtype.name in DTYPES}


def _reach(view: View) -> int:
    """Bytes from a view's first element to the end of its last one."""
    if 0 in view.spec.shape:
        return 0
    return (1 + sum((d - 1) * s for d, s in zip(view.spec.shape, view.strides, strict=True))) * view.spec.dtype.bits // 8


def _words(source: memoryview, spec: TensorSpec, offset: int) -> Array:
    return frames.as_words(frames.as_bytes(source[offset : offset + spec.n_bytes]), spec.dtype.word)


def _apart(checkpoint: Checkpoint, places: Mapping[int, TensorSpec]) -> Checkpoint:
    """The checkpoint with the tensors at these offsets as extents of their own, what lies around them as others, its views moved to them."""
    extents: list[Extent] = []
    for extent in checkpoint.extents:
        at = extent.offset
        for offset in sorted(offset for offset in places if extent.offset <= offset < extent.end):
            extents += _rest(extent, at, offset)
            extents.append(Extent(places[offset], offset))
            at = extents[-1].end
        extents += _rest(extent, at, extent.end)
    named = tuple(Extent(replace(extent.spec, name=str(k)), extent.offset) for k, extent in enumerate(extents))
    starts = [extent.offset for extent in named]
    views = []
    for view in checkpoint.views:
        offset = checkpoint.extents[view.extent].offset + view.first * view.spec.dtype.bits // 8
        holder = max(bisect_right(starts, offset) - 1, 0)
        views.append(View(view.spec, holder, view.strides, 8 * (offset - starts[holder]) // view.spec.dtype.bits))
    return replace(checkpoint, extents=named, views=tuple(views))


def _rest(extent: Extent, start: int, end: int) -> list[Extent]:
    """What is left of an extent between two places: itself where that is all of it."""
    if start == extent.offset and end == extent.end:
        return [extent]
    n = (end - start) // extent.spec.dtype.word
    return [Extent(TensorSpec(extent.spec.name, extent.spec.dtype, (n,)), start)] if n else []
