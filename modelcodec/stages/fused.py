"""Two nodes in one pass: split_float over rans, whose symbols never touch memory. The bytes are those of the stages one by one; a test compares them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelcodec.arena import of_thread
from modelcodec.errors import CorruptFile
from modelcodec.kernels import planes
from modelcodec.kernels import rans as kernels
from modelcodec.stage import Encoded, FrameContext, Plan
from modelcodec.stages.rans import Rans, Stream, lanes_for, sample_step, table_for
from modelcodec.stages.split_float import SplitFloat
from modelcodec.types import Array


def encode(x: Array, plan: Plan, context: FrameContext) -> tuple[Encoded, Encoded] | None:
    """What split_float and, for its symbols, rans would give; the first without its symbols. None where these plans or words have no fused kernel."""
    split, rans = plan.stage, plan.then.get("symbols")
    if not isinstance(split, SplitFloat) or rans is None or not isinstance(rans.stage, Rans) or x.itemsize not in (2, 4) or x.size < 2:
        return None
    s, width = split.low_bits, 1 if split.low_bits >= 7 else 2
    counts = np.zeros(max(1 << (15 - s), 256), np.int64)
    sample = sample_step(x.size, rans.stage.sample)
    kernels.histogram_split(x, s, counts, sample)
    table = table_for(counts, rans.stage.table_bits, width, sampled=sample > 1)
    if table is None:
        return None
    lanes_log2, groups = lanes_for(x.size, rans.stage.lane_words)
    arena = of_thread.encoding
    payload = arena.bytes(kernels.pack_bound(x.size, width, lanes_log2, groups))
    rest = arena.bytes(planes.planes_size(x.size, s + 1))
    low = arena.words(x.size, 2) if x.itemsize == 4 else None
    packed = kernels.pack_split(x, s, table, lanes_log2, groups, payload, rest, low)
    if packed.status:
        return None
    stream = Stream(table, lanes_log2, groups, packed.units_a, packed.units_b, packed.n_escapes)
    symbols = Encoded(stream.write(width), payload=payload[: packed.n_bytes])
    return Encoded(bytes([s]), (rest,) if low is None else (rest, low)), symbols


def decode(header: bytes, rans_header: bytes, payload: Array, parts: Sequence[Array], out: Array, context: FrameContext | None = None) -> None:
    """Decode rans symbols (`payload`) and join them with rest and low (`parts`) into `out` (u2 or u4).

    All of it is untrusted but passed `layout`. Raises CorruptFile.
    """
    s = header[0]
    stream = Stream.read(rans_header, 1 if s >= 7 else 2, out.size)
    low = parts[1] if len(parts) > 1 else None
    status = kernels.unpack_split(
        payload, stream.table, stream.lanes_log2, stream.groups, stream.units_a, stream.units_b, stream.n_escapes, s, parts[0], low, out
    )
    if status:
        raise CorruptFile(f"rans: {status.fact}")

