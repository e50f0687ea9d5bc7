"""Two nodes in one pass: split_float over class_rans, as `fused` does it over rans."""

from __future__ import annotations

from collections.abc import Sequence

from modelcodec.arena import of_thread
from modelcodec.errors import CorruptFile
from modelcodec.kernels import class_rans as kernels
from modelcodec.kernels import planes
from modelcodec.stage import Encoded, FrameContext, Plan
from modelcodec.stages.class_rans import ClassRans, ScaleClasses, Stream, place_of
from modelcodec.stages.rans import lanes_for
from modelcodec.stages.split_float import SplitFloat
from modelcodec.types import Array


def encode(x: Array, plan: Plan, context: FrameContext) -> tuple[Encoded, Encoded] | None:
    """What split_float and, for its symbols, class_rans would give; the first without its symbols. None where these plans or words have no fused kernel."""
    split, symbols = plan.stage, plan.then.get("symbols")
    if not isinstance(split, SplitFloat) or symbols is None or not isinstance(symbols.stage, ClassRans) or x.itemsize not in (2, 4) or context.shared is None:
        return None
    classes = ScaleClasses.of(context.shared).coder
    if x.size == 0 or x.size != context.n or not classes.has_escapes or not classes.holds(context.first, x.size):
        return None
    s = split.low_bits
    lanes_log2, groups = lanes_for(x.size)
    arena = of_thread.encoding
    payload = arena.bytes(kernels.pack_bound(x.size, 1 if s >= 7 else 2, lanes_log2, groups))
    rest = arena.bytes(planes.planes_size(x.size, s + 1))
    low = arena.words(x.size, 2) if x.itemsize == 4 else None
    packed = kernels.pack_split(x, s, lanes_log2, groups, classes, context.first, payload, rest, low)
    stream = Stream(lanes_log2, groups, packed.units_a, packed.units_b, packed.n_escapes)
    return Encoded(bytes([s]), (rest,) if low is None else (rest, low)), Encoded(stream.write(), payload=payload[: packed.n_bytes])


def decode(header: bytes, symbols_header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
    """Decode symbols of class_rans (`payload`) and join them with rest and low (`parts`) into `out` (u2 or u4).

    All of it is untrusted but passed `layout`. Raises CorruptFile.
    """
    stream = Stream.read(symbols_header, out.size)
    classes, first = place_of(context, out.size)
    low = parts[1] if len(parts) > 1 else None
    status = kernels.unpack_split(
        payload, stream.lanes_log2, stream.groups, stream.units_a, stream.units_b, stream.n_escapes, classes, first, header[0], parts[0], low, out
    )
    if status:
        raise CorruptFile(f"class_rans: {status.fact}")
