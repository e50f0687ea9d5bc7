"""The floors that `info` shows: what an order-0 code of a tensor's symbols would take, and what the model that the planner chose could reach."""

from __future__ import annotations

from math import prod

import numpy as np

from modelcodec import frame as frames
from modelcodec.formats import container
from modelcodec.formats.container_layout import SAME, Entry
from modelcodec.kernels.class_rans import ESCAPE, MOST_CLASSES
from modelcodec.stage import FrameContext
from modelcodec.stages.class_rans import ClassRans, ScaleClasses
from modelcodec.stages.rans import Rans
from modelcodec.types import Array, DType


def floor_bits(archive: container.Container, entry: Entry) -> float | None:
    """Bits an element at order 0: of a float, the entropy of its exponent plus sign and mantissa; of anything else, the sum of its bytes' entropies.

    One histogram over the whole tensor; what a table costs is left out. None for an empty tensor. Reads and decodes the tensor, a frame at a time.
    """
    dtype = entry.spec.dtype
    n = entry.spec.n_words
    if n == 0:
        return None
    histograms = [np.zeros(1 << bits, np.int64) for bits in _fields(dtype)]
    holder, rest = archive.resolve(entry), np.empty(0, np.uint8)
    for number in range(holder.n_frames):
        out = np.empty(holder.words_of(number), frames.WORD[holder.spec.dtype.word])
        archive.decode_frame(holder, number, out)
        # An entry of another dtype may hold the bytes, in frames that cut through this one's words.
        octets = np.concatenate([rest, out.view(np.uint8)])
        whole = octets.size // dtype.word * dtype.word
        _count(octets[:whole].view(frames.WORD[dtype.word]), dtype, histograms)
        rest = octets[whole:]
    coded = sum(_entropy(h) for h in histograms) * n
    free = n * _free_bits(dtype)
    return (coded + free) / prod(entry.spec.shape)


def model_bits(archive: container.Container, entry: Entry) -> float | None:
    """Bits an element that the model used could reach: the entropy of what is coded given what its decoder knows, and all else as it is.

    rans: the order-0 entropy of its words in the frame; class_rans: that of words given their class, in the group of frames; raw its words; zstd, whose model
    nobody else has, what it takes. What describes the model is left out: tables, scales, palettes, heads. None for an empty tensor, 0 for one that another
    one holds. Decodes the tensor, a frame at a time.
    """
    n_elements = prod(entry.spec.shape)
    if n_elements == 0 or entry.kind == SAME:
        return 0.0 if n_elements else None
    if not entry.coded:
        return 8 * entry.spec.n_bytes / n_elements
    bits, of_classes = 0.0, np.zeros((MOST_CLASSES, ESCAPE + 1), np.int64)
    for number in range(entry.n_frames):
        head = archive.frame_head(entry, number)
        nodes = list(head.root.walk())
        context, (start, end) = archive.context(entry, number), entry.span(number)
        payload = frames.as_bytes(archive.buffer[start + head.start : end])
        for node in nodes:
            if node.stage is Rans:
                bits += node.n * _entropy(np.bincount(_words(node, payload, context)))
            elif node.stage is ClassRans:
                _count_by_class(_words(node, payload, context), context, of_classes)
            else:
                bits += 8 * node.layout.n_payload
        if number + 1 == entry.n_frames or (number + 1) % max(entry.group_frames, 1) == 0:
            bits += sum(int(counts.sum()) * _entropy(counts) for counts in of_classes)
            of_classes[:] = 0
    return bits / n_elements


def _words(node: frames.Node, payload: Array, context: FrameContext) -> Array:
    out = np.empty(node.n, frames.WORD[node.width])
    parts = [_words(child, payload, context) for child in node.children]
    node.stage.decode(node.header, payload[node.start : node.start + node.layout.n_payload], parts, out, context)
    return out


def _count_by_class(words: Array, context: FrameContext, counts: Array) -> None:
    """Add the words to the counts of their classes; those that are always escaped count as one symbol."""
    classes = ScaleClasses.of(context.shared)
    row, column = np.divmod(np.arange(context.first, context.first + words.size), classes.column_scales.size)
    sums = classes.row_scales[row] + classes.column_scales[column]
    of_word = np.searchsorted(classes.thresholds, sums, side="right") * counts.shape[1]
    counts += np.bincount(of_word + np.minimum(words.astype(np.int64), ESCAPE), minlength=counts.size).reshape(counts.shape)


_EXPONENT = {"F16": (10, 5), "BF16": (7, 8), "F32": (23, 8), "F64": (52, 11), "C64": (23, 8), "C128": (52, 11)}
"""dtype -> (bits below the exponent, bits of the exponent)"""


def _fields(dtype: DType) -> list[int]:
    return [_EXPONENT[dtype.name][1]] if dtype.name in _EXPONENT else [8] * dtype.word


def _free_bits(dtype: DType) -> int:
    return 8 * dtype.word - _EXPONENT[dtype.name][1] if dtype.name in _EXPONENT else 0


def _count(x: Array, dtype: DType, histograms: list[Array]) -> None:
    if dtype.name in _EXPONENT:
        below, bits = _EXPONENT[dtype.name]
        histograms[0] += np.bincount(((x >> x.dtype.type(below)) & x.dtype.type((1 << bits) - 1)).astype(np.int64), minlength=1 << bits)
        return
    octets = x.view(np.uint8)
    for k, histogram in enumerate(histograms):
        histogram += np.bincount(octets[k :: dtype.word], minlength=256)


def _entropy(counts: Array) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())
