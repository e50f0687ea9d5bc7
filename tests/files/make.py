"""Make the files of this folder: `python tests/files/make.py`, then look at what git says has changed. `--check` changes nothing and proves what they are.

good-*         what a container may be: each stage, plan, kind of entry, source format. Made by the encoder, so new versions may make other bytes; never
               changed once released, because every version must restore every one of them.
bad-*          one broken rule each, digests and seals right unless they are the rule, made by hand (`forge.py`).
unsupported-*  what a later version may write.

manifest.toml has the SHA-256 of what each good file restores to, and the error that each other file must give.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import struct
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import fitted  # noqa: E402
import forge  # noqa: E402
import rows  # noqa: E402
import sources  # noqa: E402

import modelcodec  # noqa: E402
from modelcodec import compression, errors  # noqa: E402
from modelcodec import frame as frames  # noqa: E402
from modelcodec.formats import container  # noqa: E402
from modelcodec.formats.container_layout import SHARED_NUMBER, SKELETON, SKELETON_ROLE, TENSOR_ROLE  # noqa: E402
from modelcodec.formats.container_writer import EncodedGroup, Item, Writer  # noqa: E402
from modelcodec.recipe import parse_plan  # noqa: E402
from modelcodec.restoration import restore  # noqa: E402
from modelcodec.stage import FrameContext, Plan, Shared  # noqa: E402
from modelcodec.types import DTYPE_BY_NAME, DTYPES, U8, TensorSpec  # noqa: E402
from modelcodec.wire import byte_string, varint  # noqa: E402

MANIFEST = "manifest.toml"


@dataclass(frozen=True)
class Good:
    """A good file: its bytes, what it restores to, and what it is for."""

    name: str
    data: bytes
    source: bytes
    what: str
    reproducible: bool = True


@dataclass(frozen=True)
class Bad:
    """A bad or unsupported file: its bytes, the error that it must give, and the rule that it breaks."""

    name: str
    data: bytes
    error: str
    what: str


# ---- good files ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Planned:
    """A tensor for `_container`: the plan is carried out whether it pays or not."""

    spec: TensorSpec
    data: bytes
    plan: str | Plan
    frame_words: int
    shared: Callable[[rows.Array], Shared | None] | None = None


def _container(planned: list[_Planned]) -> tuple[bytes, bytes]:
    """A container with exactly these plans and frames, and its source, a safetensors file (the tensors alone where safetensors lacks their dtype)."""
    known = all(p.spec.dtype.in_safetensors for p in planned)
    tensors = b"".join(p.data for p in planned)
    source = sources.safetensors_bytes({p.spec.name: (p.spec.dtype.name, p.spec.shape, p.data) for p in planned}) if known else tensors
    n_header = len(source) - len(tensors)
    out = io.BytesIO()
    items = [Item(SKELETON, SKELETON_ROLE, TensorSpec(SKELETON, U8, (n_header,)), 0)]
    items += [Item(p.spec.name, TENSOR_ROLE, p.spec, 0 if i else n_header) for i, p in enumerate(planned)]
    writer = Writer(out, items, {}, reserve=False)
    writer.ordinary([source[:n_header]] if n_header else [], [frames.digest_of(source[:n_header])] if n_header else [])
    for p in planned:
        words = frames.as_words(frames.as_bytes(p.data), p.spec.dtype.word)
        plan = parse_plan(p.plan) if isinstance(p.plan, str) else p.plan
        pieces = [words[at : at + p.frame_words] for at in range(0, words.size, p.frame_words)]
        writer.coded(p.frame_words, 1, [_group(p, i, x, plan) for i, x in enumerate(pieces)])
    return writer.prefix(len(source), "safetensors" if known else "bytes", 0, None) + out.getvalue(), source


def _group(planned: _Planned, number: int, x: rows.Array, plan: Plan) -> EncodedGroup:
    """A group of one frame, with what it shares."""
    shared = planned.shared(x) if planned.shared else None
    frame = frames.encode(x, plan, FrameContext(planned.spec, 0, x.size, shared, number * planned.frame_words), number)
    if shared is None:
        return EncodedGroup((frame,))
    own = FrameContext(TensorSpec("shared", U8, (len(shared.data),)), 0, len(shared.data))
    part = frames.encode(frames.as_bytes(shared.data), parse_plan("zstd"), own, SHARED_NUMBER + number)
    return EncodedGroup((frame,), part, len(shared.data))


def _words_for(row: rows.StageRow, plan: str, width: int) -> rows.Array:
    """Words of this width that the plan shrinks, few of them: the row's sample, or what comes near it."""
    few = rows.for_dtype(row.sample, DTYPE_BY_NAME["C64"])[:96]
    if plan.startswith("fields"):
        return sources.q4_0_blocks(20) if "2x1" in plan else np.tile(np.arange(27, dtype=np.uint8), 12)
    if plan.startswith("widen"):
        kind = int(plan.partition("kind=")[2][:1] or 1) if plan.startswith("widen{") else 1
        narrow = rows.gaussian(96, {2: "F16", 3: "F32"}.get(kind, "BF16"), 5)
        wide = {1: narrow.astype(np.uint32) << np.uint32(16)} if kind == 1 else {}
        if kind == 2:
            wide[2] = narrow.view(np.float16).astype(np.float32).view(np.uint32)
        if kind == 3:
            coarse = rows.gaussian(96, "BF16", 5).astype(np.uint32) << np.uint32(16)
            wide[3] = coarse.view(np.float32).astype(np.float64).view(np.uint64)
        return wide[kind] if kind in wide else rows.numbers(96, 40, 4 if kind < 6 else 8, 4)
    if row.name == "class_rans" and width == 1:
        return rows.numbers(96, 5, 1, 3)
    if row.name == "split_float" or (row.name == "class_rans" and "split_float" in plan):
        return {2: rows.gaussian(96, "BF16", 6), 4: rows.gaussian(96, "BF16", 6).astype(np.uint32) << np.uint32(16), 8: rows.gaussian(96, "F64", 6)}[width]
    if row.name == "sparse":
        return np.where(rows.numbers(96, 6, 1, 7) > 0, 0, rows.numbers(96, 9, 1, 8) + np.uint8(1)).astype(rows.WORD[width])
    return few.astype(rows.WORD[width])


def _stage_files() -> Iterator[Good]:
    """A stage's plans, the first in each width that the stage takes, the others in one; each tensor in two frames and a rest."""
    for row in rows.STAGE_ROWS:
        if row.base:  # such a file is nothing without another one; tests/test_delta_compatibility.py has both
            continue
        planned: list[_Planned] = []
        for number, plan in enumerate(row.plans):
            dtypes = [DTYPE_BY_NAME[name] for name in row.dtypes]
            record = {"2x1": 18, "8x1": 27}.get(plan[15:18], 1)
            fitting = [dtype for dtype in dtypes if _words_for(row, plan, dtype.word).itemsize == dtype.word and (dtype.block == 1 or dtype.block == record)]
            for dtype in fitting if number == 0 else fitting[number % len(fitting) :][:1]:
                words = _words_for(row, plan, dtype.word)
                frame_words = words.size * 2 // 5 // record * record
                shape = (dtype.elements * words.size // dtype.block,) if dtype.elements > 1 else (words.size,)
                planned.append(_Planned(TensorSpec(f"{number} {dtype.name}", dtype, shape), words.tobytes(), plan, max(frame_words, record), row.shared))
        for part, some in enumerate([planned[i : i + 4] for i in range(0, len(planned), 4)]):
            data, source = _container(some)
            yield Good(f"good-stage-{row.name}-{part}", data, source, f"the stage {row.name}, in {', '.join(sorted({str(p.plan) for p in some}))}")


def _rans_files() -> Iterator[Good]:
    """The interleavings that only large frames have, in small ones."""
    words = np.minimum(rows.gaussian(9000, "F16", 3) >> np.uint16(12), np.uint16(4)).astype(np.uint8)
    for lanes_log2, groups, n in ((6, 2, 9000), (6, 2, 4100), (6, 1, 200), (3, 1, 150)):
        with mock.patch("modelcodec.stages.rans.lanes_for", lambda n, lane_words=0, lanes=(lanes_log2, groups): lanes):
            spec = TensorSpec("x", DTYPE_BY_NAME["U8"], (n,))
            data, source = _container(
                [_Planned(spec, np.where(words[:n] == 2, words[:n], np.arange(n) % 997 == 0).astype(np.uint8).tobytes(), "rans{table_bits=8}", n)]
            )
        yield Good(f"good-rans-{1 << lanes_log2}-lanes-{groups}-groups-{n}", data, source, f"rans with {1 << lanes_log2} lanes and {groups} groups")


def _fitted_files() -> Iterator[Good]:
    """The stages that fits use, whose plans no recipe writes; their parts are rans where that pays."""
    for file in fitted.files():
        planned = []
        for each in file.tensors:
            plan = Plan(each.stage, {part: parse_plan("rans") for part in each.stage.parts})
            planned.append(_Planned(each.spec, each.words.tobytes(), plan, each.frame_words, lambda _, shared=each.shared: shared))
        data, source = _container(planned)
        yield Good(f"good-{file.name}", data, source, file.what)


def _compressed(source: bytes, name: str, files: dict[str, bytes] | None = None, **settings: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        for file_name, data in (files or {name: source}).items():
            (Path(folder) / file_name).write_bytes(data)
        modelcodec.compress(Path(folder) / name, Path(folder) / "out", **settings)
        return (Path(folder) / "out").read_bytes()


def _dtype_files() -> Iterator[Good]:
    """Every dtype."""
    plain = {d.name: (d.name, (4, 2), bytes(range(d.n_bytes((4, 2))))) for d in DTYPES if d.in_safetensors}
    source = sources.safetensors_bytes(plain)
    yield Good("good-dtypes", _compressed(source, "x.safetensors"), source, "every dtype that safetensors has")
    blocks = [_Planned(TensorSpec(d.name, d, (2 * max(d.elements, 8),)), b"\x07" * d.n_bytes((2 * max(d.elements, 8),)), "constant", d.block) for d in DTYPES]
    for part in (0, 1):
        data, source = _container([replace(p, data=bytes(len(p.data))) for p in blocks if not p.spec.dtype.in_safetensors][part::2])
        yield Good(f"good-block-dtypes-{part}", data, source, "dtypes that only GGUF and NumPy have")


def _kind_files() -> Iterator[Good]:
    weights = sources.weights(10, 24).tobytes()
    noise = rows.random_bits(100, 1).tobytes()
    tied = sources.safetensors_bytes(
        {
            "embed": ("F32", (10, 24), weights),
            "head": ("F32", (240,), weights),
            "noise": ("U8", (100,), noise),
            "noise as I8": ("I8", (10, 10), noise),
            "scalar": ("F64", (), bytes(8)),
            "none": ("F64", (0,), b""),
        },
        {"format": "pt", 'quote" \\ \n': "\u20ac"},
        padding=5,
    )
    good = _compressed(tied, "x.safetensors")
    yield Good("good-kinds", good, tied, "an ordinary, a coded and two same entries, a 0-d and an empty one, metadata with escapes")
    yield Good("good-sha256", _compressed(tied[:-8] + bytes(8), "x.safetensors", sha256=True), tied[:-8] + bytes(8), "the SHA-256 of the source is kept")
    with mock.patch.object(compression, "IN_MEMORY_BYTES", 0):
        yield Good(
            "good-reserved",
            _compressed(tied, "x.safetensors"),
            tied,
            "room for header and directory was kept before they were known, as for sources above 64 MiB",
        )
    kept = HERE / "good-kinds.mcodec"  # what a release wrote, not what today's encoder would
    inner = kept.read_bytes() if kept.exists() else good
    yield Good("good-nested", _compressed(inner, "x.mcodec.safetensors"), inner, "a container in a container")
    yield Good("good-empty", _compressed(b"", "x"), b"", "an empty file")
    yield Good("good-bytes", _compressed(noise, "x"), noise, "a file that nothing is known of")
    nothing = sources.safetensors_bytes({})
    yield Good("good-no-tensors", _compressed(nothing, "x.safetensors"), nothing, "a safetensors file without tensors")
    holes = (
        sources.safetensors_bytes({"b": ("U8", (300,), bytes(300))}).replace(b'"data_offsets": [0, 300]', b'"data_offsets": [7, 307]') + b"between and after"
    )
    yield Good("good-holes", _compressed(holes, "x.safetensors"), holes, "bytes before and after the only tensor")


def _format_files() -> Iterator[Good]:
    for row in rows.FORMAT_ROWS:
        name, files = row.make()
        yield Good(f"good-format-{row.name}", _compressed(files[name], name, files), files[name], f"a source of the format {row.name}", row.reproducible)


def good_files() -> Iterator[Good]:
    yield from _stage_files()
    yield from _rans_files()
    yield from _fitted_files()
    yield from _dtype_files()
    yield from _kind_files()
    yield from _format_files()


# ---- bad files -----------------------------------------------------------------------------------------------------------------------

RAW, CONSTANT, ZSTD, RANS, SPLIT, PLANES, PALETTE, SPARSE, WIDEN, FIELDS = range(10)
GRID, CODEBOOK, LOWRANK, SEEDBASIS = 11, 13, 14, 15
_RAW = forge.node(RAW)


def _one(tree: bytes, payload: bytes = b"", *, n: int = 64, dtype: int = 1, decoded: bytes = b"") -> bytes:
    """A container with one tensor of one frame, whose digests are those of `decoded`."""
    spec = replace(forge.coded("x", (n,), dtype, [(tree, payload, decoded)], n), gap=0)
    return forge.container([forge.skeleton(b""), spec], source_size=n * _WIDTHS[dtype])


_U32, _BF16, _F32 = 33, 19, 34
_WIDTHS = {1: 1, _BF16: 2, _U32: 4, _F32: 4, 50: 8}


def _sharing(shared: bytes, tree: bytes, payload: bytes, *, n: int, dtype: int) -> bytes:
    """A container with one tensor of one frame, all of whose bits are zero, and its shared part."""
    decoded = bytes(n * _WIDTHS[dtype])
    pieces = [forge.frame(_RAW, shared, decoded=shared, number=SHARED_NUMBER), forge.frame(tree, payload, decoded=decoded)]
    row = b"".join(map(varint, (n, 1, len(shared), *map(len, pieces))))
    entry = forge.coded("x", (n,), dtype, [(tree, payload, decoded)], n)
    return forge.container([forge.skeleton(b""), replace(entry, kind=forge.CODED_SHARED, frames=pieces, row=row)], source_size=len(decoded), version="0.3")


def zstd_raw(content: bytes, *, claims: int | None = None, window: int | None = None) -> bytes:
    """A zstd frame of one stored block, made by hand. `window`: the exponent of its window, instead of a single segment."""
    size = (len(content) if claims is None else claims).to_bytes(4, "little")
    head = b"\xa0" + size if window is None else b"\x80" + bytes([(window - 10) << 3]) + size
    return b"\x28\xb5\x2f\xfd" + head + (len(content) << 3 | 1).to_bytes(3, "little") + content


def _zstd(payload: bytes, n_payload: int | None = None) -> bytes:
    return _one(forge.node(ZSTD, varint(len(payload) if n_payload is None else n_payload) + forge.check_of(payload)), payload, decoded=bytes(64))


def _bad_frames() -> Iterator[Bad]:
    """Frames that break the rule of a stage."""
    corrupt = "CorruptFile"
    good = zstd_raw(bytes(64))
    yield Bad("bad-zstd-trailing", _zstd(good + b"\0"), corrupt, "a byte follows the zstd frame")
    yield Bad("bad-zstd-two-frames", _zstd(zstd_raw(bytes(64)) + zstd_raw(b"")), corrupt, "a second zstd frame follows")
    yield Bad("bad-zstd-size", _zstd(zstd_raw(bytes(64), claims=65)), corrupt, "the zstd frame claims another size")
    yield Bad("bad-zstd-less", _zstd(zstd_raw(bytes(63), claims=64)), corrupt, "the zstd frame holds less than it claims")
    yield Bad("bad-zstd-window", _zstd(zstd_raw(bytes(64), window=31)), corrupt, "the zstd frame asks for a window of 2 GiB")
    yield Bad("bad-zstd-magic", _zstd(b"\x29" + good[1:]), corrupt, "not a zstd frame")
    yield Bad("bad-zstd-skippable", _zstd(b"\x50\x2a\x4d\x18" + (64).to_bytes(4, "little") + bytes(64)), corrupt, "a skippable zstd frame")
    yield Bad("bad-raw-header", _one(forge.node(RAW, b"\0"), bytes(64), decoded=bytes(64)), corrupt, "raw with a header")
    yield Bad("bad-raw-short", _one(_RAW, bytes(63), decoded=bytes(64)), corrupt, "a payload shorter than its nodes imply")
    yield Bad("bad-raw-long", _one(_RAW, bytes(65), decoded=bytes(64)), corrupt, "a payload longer than its nodes imply")
    yield Bad("bad-constant-width", _one(forge.node(CONSTANT, bytes(2)), decoded=bytes(64)), corrupt, "a constant of the wrong width")
    palette = forge.node(PALETTE, varint(1) + b"\5\6", _RAW)
    yield Bad("bad-palette-index", _one(palette, bytes(63) + b"\2", decoded=b"\5" * 63 + b"\0"), corrupt, "an index past the palette's end")
    yield Bad("bad-palette-header", _one(forge.node(PALETTE, varint(2) + b"\5\6", _RAW), bytes(64)), corrupt, "a palette shorter than it says")
    sparse = forge.node(SPARSE, varint(2), _RAW, _RAW)
    yield Bad("bad-sparse-zero", _one(sparse, b"\3" + bytes(7) + b"\7\0", decoded=b"\7" + bytes(63)), corrupt, "a zero among the values that are not zero")
    yield Bad("bad-sparse-few", _one(sparse, b"\1" + bytes(7) + b"\7\7", decoded=b"\7" + bytes(63)), corrupt, "more values than ones in the mask")
    yield Bad("bad-sparse-many", _one(sparse, b"\7" + bytes(7) + b"\7\7", decoded=b"\7\7" + bytes(62)), corrupt, "fewer values than ones in the mask")
    short = forge.node(SPARSE, varint(1), _RAW, _RAW)
    yield Bad("bad-sparse-padding", _one(short, bytes(7) + b"\x10" + b"\7", n=60, decoded=bytes(60)), corrupt, "a bit past the end of the mask")
    yield Bad("bad-sparse-count", _one(forge.node(SPARSE, varint(65), _RAW, _RAW), bytes(8 + 65)), corrupt, "more values than words")
    split = forge.node(SPLIT, b"\x0d", _RAW, _RAW)
    yield Bad(
        "bad-split-symbol",
        _one(split, b"\4" + bytes(15) + bytes(2 * 14), n=16, dtype=19, decoded=bytes(32)),
        corrupt,
        "a symbol that does not fit above the cut",
    )
    yield Bad(
        "bad-split-padding",
        _one(split, bytes(15) + bytes(7) + b"\x80" + bytes(20), n=15, dtype=19, decoded=bytes(30)),
        corrupt,
        "a number past the end of a plane",
    )
    yield Bad("bad-split-cut", _one(forge.node(SPLIT, b"\x0e", _RAW, _RAW), bytes(16 + 30), n=16, dtype=19), corrupt, "a cut below what 16 bits have")
    yield Bad("bad-split-width", _one(forge.node(SPLIT, b"\7", _RAW, _RAW), bytes(128)), corrupt, "split_float of single bytes")
    yield Bad(
        "bad-widen-nan",
        _one(forge.node(WIDEN, b"\2", _RAW), b"\1\x7c" + bytes(30), n=16, dtype=34, decoded=bytes(64)),
        corrupt,
        "a NaN that only looks widened",
    )
    yield Bad("bad-widen-kind", _one(forge.node(WIDEN, b"\3", _RAW), bytes(32), n=16, dtype=34), corrupt, "a kind of widening for another width")
    yield Bad("bad-planes-header", _one(forge.node(PLANES, b"\0", _RAW, _RAW), bytes(32), n=16, dtype=19), corrupt, "planes with a header")
    yield Bad("bad-fields-record", _one(forge.node(FIELDS, b"\1\1\7", _RAW), bytes(64)), corrupt, "records that are not whole")
    yield Bad("bad-fields-none", _one(forge.node(FIELDS, b"\0")), corrupt, "a record without fields")
    yield Bad("bad-fields-empty", _one(forge.node(FIELDS, b"\2\1\0\1\1", _RAW, _RAW), bytes(64)), corrupt, "a field without words")
    yield Bad("bad-node-left", _one(_RAW + b"\0", bytes(64), decoded=bytes(64)), corrupt, "a byte is left in the head")
    yield Bad("bad-varint", _one(b"\0" + b"\x80\0", bytes(64), decoded=bytes(64)), corrupt, "a number that is not in its shortest form")


def _bad_rans() -> Iterator[Bad]:
    """rans streams of two symbols with equal frequencies, one lane: each word takes a bit."""
    # lo 0, range 2; no escape; twice frequency 128: b = 8, m = 0 in seven bits.
    table = 0 | (1 << 8) | (0 << 16) | (8 << 20) | (8 << 31)
    table_bytes = table.to_bytes(6, "little")
    states = (0x10000).to_bytes(4, "little")

    def stream(header: bytes, payload: bytes, n: int = 64) -> bytes:
        return _one(forge.node(RANS, header), payload, n=n, decoded=bytes(n))

    head = b"\x08\0" + varint(0) + varint(0)
    corrupt = "CorruptFile"
    yield Bad("bad-rans-state", stream(head + table_bytes, (0x10001).to_bytes(4, "little"), 1), corrupt, "a final state that is not 2^16")
    yield Bad("bad-rans-units-few", stream(head + table_bytes, states), corrupt, "more units are needed than there are")
    yield Bad("bad-rans-units-many", stream(b"\x08\0" + varint(64) + varint(0) + table_bytes, bytes(128) + states), corrupt, "units are left over")
    yield Bad("bad-rans-units-huge", stream(b"\x08\0" + varint((1 << 63) - 1) + varint(0) + table_bytes, states), corrupt, "2^63 units")
    yield Bad(
        "bad-rans-escapes", stream(b"\x08\0" + varint(0) + varint(1) + table_bytes, states + b"\0", 1), corrupt, "an escaped word that no escape stands for"
    )
    yield Bad("bad-rans-bits", stream(b"\x0d\0" + varint(0) + varint(0) + table_bytes, states), corrupt, "frequencies that sum to 2^13")
    yield Bad("bad-rans-lanes", stream(b"\x08\7" + varint(0) + varint(0) + table_bytes, states * 128), corrupt, "128 lanes")
    yield Bad("bad-rans-groups", stream(b"\x08\x15" + varint(0) * 3 + table_bytes, states * 64), corrupt, "two groups of 32 lanes")
    yield Bad("bad-rans-sum", stream(head + (table - (1 << 31)).to_bytes(6, "little"), states), corrupt, "frequencies that do not sum to 2^B")
    yield Bad("bad-rans-table-padding", stream(head + (table | 1 << 47).to_bytes(6, "little"), states), corrupt, "bits after the table")
    yield Bad("bad-rans-table-short", stream(head + table_bytes[:4], states), corrupt, "a table that ends early")
    yield Bad("bad-rans-range", stream(head + (table | 255).to_bytes(6, "little"), states), corrupt, "a symbol above the largest word")
    wide = forge.node(RANS, head + table_bytes)
    yield Bad("bad-rans-width", _one(wide, states, dtype=34, n=16, decoded=bytes(64)), corrupt, "rans of words of four bytes")


def _bad_grids() -> Iterator[Bad]:
    """Grids of sixteen zeros, but for one rule."""
    corrupt = "CorruptFile"

    def head(flags: int = 0, state: int = 0, step: float = 1.0, rest: bytes = b"\0") -> bytes:
        return bytes([flags, state]) + struct.pack("<f", step) + rest

    def grid(header: bytes, payload: bytes = bytes(16), *parts: bytes, dtype: int = _F32) -> bytes:
        return _one(forge.node(GRID, header, *parts), payload, n=16, dtype=dtype, decoded=bytes(64))

    def spans(span: int, n_steps: int, exponents: bytes, step: float = 1.0) -> bytes:
        return grid(head(0x80, step=step, rest=b"\0" + varint(span) + varint(n_steps)), bytes(16) + exponents, _RAW, _RAW)

    places = struct.pack("<4I", 3, 3, 7, 7)
    yield Bad("bad-grid-states", grid(head(1), bytes(16), _RAW), corrupt, "a trellis of two states")
    yield Bad("bad-grid-first-state", grid(head(2, 4), bytes(16), _RAW), corrupt, "a first state that there is not")
    yield Bad("bad-grid-flags", grid(head(0x50, rest=b"\0\0\0"), b""), corrupt, "context-coded indices of two bytes")
    yield Bad("bad-grid-step", grid(head(step=float("nan")), bytes(16), _RAW), corrupt, "a step that is no number")
    yield Bad("bad-grid-step-zero", grid(head(step=-0.0), bytes(16), _RAW), corrupt, "a step of zero")
    yield Bad("bad-grid-mean", grid(head(0x10, rest=b"\xe1\0\0"), b""), corrupt, "a first mean that is too large")
    yield Bad("bad-grid-index", grid(head(0x40), b"\xff\xff" + bytes(30), _RAW), corrupt, "an index of -32768")
    yield Bad("bad-grid-left", grid(head(0x10, rest=b"\0\x40\0"), bytes(64)), corrupt, "coded indices with bytes that are never read")
    yield Bad("bad-grid-exceptions", grid(head(rest=varint(17)), bytes(16 + 17 * 8), _RAW), corrupt, "more exceptions than words")
    yield Bad("bad-grid-place", grid(head(rest=varint(1)), struct.pack("<2I", 16, 0) + bytes(16), _RAW), corrupt, "an exception past the last word")
    yield Bad("bad-grid-places", grid(head(rest=varint(2)), places + bytes(16), _RAW), corrupt, "two exceptions in one place")
    yield Bad("bad-grid-dtype", grid(head(), bytes(16), _RAW, dtype=_U32), corrupt, "a grid of integers")
    yield Bad("bad-grid-steps", spans(16, 2, bytes(2)), corrupt, "steps for two spans where there is one")
    yield Bad("bad-grid-steps-few", spans(5, 3, bytes(3)), corrupt, "steps for three spans where there are four")
    yield Bad("bad-grid-steps-many", spans(1, 17, bytes(17)), corrupt, "more steps than words")
    yield Bad("bad-grid-no-steps", spans(16, 0, b""), corrupt, "steps of spans, of which there are none")
    yield Bad("bad-grid-span", spans(0, 1, bytes(1)), corrupt, "spans without words")
    yield Bad("bad-grid-span-large", spans((1 << 63) - 1, 2, bytes(2)), corrupt, "two spans of 2^63 - 1 words")
    yield Bad("bad-grid-span-step", spans(8, 2, b"\0\xff", 3e38), corrupt, "a span's step that is infinite")
    inside = forge.node(SPARSE, varint(1), _RAW, forge.node(GRID, head(), _RAW))
    payload = b"\1\0\1" + forge.check_of(b"\1\0\1")
    yield Bad("bad-grid-inside", _one(inside, payload, n=16, dtype=_F32, decoded=bytes(64)), corrupt, "a grid of some of a frame's words")


def _bad_codebooks() -> Iterator[Bad]:
    """Codebooks of zero in frames of sixteen words, but for one rule."""
    corrupt = "CorruptFile"

    def book(header: bytes, payload: bytes, n_parts: int = 3) -> bytes:
        return _one(forge.node(CODEBOOK, header, *[_RAW] * n_parts), payload, n=16, dtype=_BF16, decoded=bytes(32))

    def sharing(shared: bytes) -> bytes:
        return _sharing(shared, forge.node(CODEBOOK, b"\1\1\0", *[_RAW] * 3), bytes(16), n=16, dtype=_BF16)

    one = b"\0\0"
    yield Bad("bad-codebook-flags", book(b"\6\1\0" + one + b"\0\0", bytes(2), 2), corrupt, "context-coded indices of two bytes")
    yield Bad("bad-codebook-flags-later", book(b"\x10\1\0" + one, bytes(18)), corrupt, "a flag that is not known")
    yield Bad("bad-codebook-no-words", book(b"\0\0\0" + one, bytes(2)), corrupt, "vectors of no words")
    yield Bad("bad-codebook-dimension", book(b"\0" + varint(1025) + b"\0" + one, bytes(2050 + 32)), corrupt, "vectors of more than 1024 words")
    yield Bad("bad-codebook-lead", book(b"\0\4\4" + one, bytes(8 + 3 + 8)), corrupt, "a whole vector's words before the first vector")
    yield Bad("bad-codebook-lists", book(b"\0\1\0\1\0\0", bytes(4 + 16)), corrupt, "two lists, and nothing that tells which is meant")
    yield Bad("bad-codebook-large", book(b"\0\1\0\1" + varint(65535) + b"\0", bytes(16)), corrupt, "more than 65536 vectors")
    yield Bad("bad-codebook-index", book(b"\0\1\0" + one, bytes(17) + b"\1"), corrupt, "an index past the end of the list")
    yield Bad("bad-codebook-rows", book(b"\x08\1\0" + one + b"\2", bytes(2 + 2 + 16)), corrupt, "lists for two rows where there is one")
    yield Bad("bad-codebook-group", book(b"\x08\1\0" + one + b"\1", bytes(2) + b"\1" + bytes(16)), corrupt, "a row with a list that there is not")
    yield Bad("bad-codebook-modelled-vectors", book(b"\4\2\0" + one + b"\0\0", bytes(4), 2), corrupt, "context-coded indices of vectors of two words")
    yield Bad("bad-codebook-mean", book(b"\4\1\0" + one + b"\xe1\0", bytes(2), 2), corrupt, "a first mean that is too large")
    yield Bad("bad-codebook-left", book(b"\4\1\0" + one + b"\0\x40", bytes(2 + 64), 2), corrupt, "coded indices with bytes that are never read")
    yield Bad("bad-codebook-not-shared", book(b"\1\1\0", bytes(16)), corrupt, "shared lists without a shared part")
    yield Bad("bad-codebook-shared-dimension", sharing(b"\2" + one + b"\0" + bytes(4)), corrupt, "shared vectors of another number of words")
    yield Bad("bad-codebook-shared-kind", sharing(b"\1" + one + b"\2" + bytes(2)), corrupt, "shared entries that are told in an unknown way")
    yield Bad("bad-codebook-shared-palette", sharing(b"\1" + one + b"\1\0" + bytes(2) + b"\1"), corrupt, "a place past the palette's end")
    yield Bad("bad-codebook-shared-left", sharing(b"\1" + one + b"\0" + bytes(3)), corrupt, "a byte after the shared lists")


def _bad_lowranks() -> Iterator[Bad]:
    """Products that are a row of sixteen zeros, but for one rule."""
    corrupt = "CorruptFile"

    def head(flags: int = 0, scale: float = 1.0, rows: int = 1, rank: int = 1, rest: bytes = b"\x10\0\0") -> bytes:
        return bytes([flags]) + struct.pack("<f", scale) + varint(rows) + varint(rank) + rest

    def product(header: bytes, payload: bytes = bytes(17), n_parts: int = 2, dtype: int = _F32, n: int = 16) -> bytes:
        return _one(forge.node(LOWRANK, header, *[_RAW] * n_parts), payload, n=n, dtype=dtype, decoded=bytes(4 * n))

    def sharing(shared: bytes, rank: int = 1) -> bytes:
        return _sharing(shared, forge.node(LOWRANK, head(1, rank=rank, rest=b"\0"), _RAW, _RAW), bytes(rank), n=16, dtype=_F32)

    yield Bad("bad-lowrank-flags", product(head(5, rest=b"\0"), bytes(1)), corrupt, "a shared matrix of wide words")
    yield Bad("bad-lowrank-flags-later", product(head(16)), corrupt, "a flag that is not known")
    yield Bad("bad-lowrank-scale", product(head(scale=float("inf"))), corrupt, "an infinite scale")
    yield Bad("bad-lowrank-rows", product(head(rows=2), bytes(18)), corrupt, "two rows where there is one")
    yield Bad("bad-lowrank-no-rank", product(head(rank=0, rest=b"\x10\0"), b""), corrupt, "a rank of zero")
    yield Bad("bad-lowrank-rank", product(head(rank=17, rest=b"\x10" + bytes(18)), bytes(17 * 17)), corrupt, "a rank above the number of columns")
    yield Bad("bad-lowrank-columns", product(head(rest=b"\x08\0\0"), bytes(9)), corrupt, "rows of another length than the tensor's")
    yield Bad("bad-lowrank-shift", product(head(rest=b"\x10\x10\0")), corrupt, "a shift of 16")
    yield Bad("bad-lowrank-mask", product(head(8, rest=b"\x0c\0\0"), bytes(13 + 1) + b"\x10", 3, n=12), corrupt, "a bit past the end of the mask")
    yield Bad("bad-lowrank-place", product(head(rest=b"\x10\0\1"), struct.pack("<2I", 16, 0) + bytes(17)), corrupt, "an exception past the last word")
    yield Bad("bad-lowrank-dtype", product(head(), dtype=_U32), corrupt, "a product of integers")
    # 256 products of 2^15, 2^15 and 2^15: 2^53.
    words = forge.node(CONSTANT, b"\xff\xff")
    large = forge.node(LOWRANK, head(6, rows=16, rank=256, rest=varint(256) + b"\x0f" * 256 + b"\0"), words, words)
    entry = forge.coded("x", (16, 256), _F32, [(large, b"", bytes(4 * 4096))], 4096)
    yield Bad("bad-lowrank-exact", forge.container([forge.skeleton(b""), entry], source_size=4 * 4096), corrupt, "sums that may not be exact in float64")
    yield Bad("bad-lowrank-not-shared", product(head(1, rest=b"\0"), bytes(1)), corrupt, "a shared matrix without a shared part")
    yield Bad("bad-lowrank-shared-rank", sharing(b"\1\x10\1\0" + bytes(16), rank=2), corrupt, "a shared matrix of another rank")
    yield Bad("bad-lowrank-shared-columns", sharing(b"\1\x08\1\0" + bytes(8)), corrupt, "a shared matrix of other columns than the tensor's")
    yield Bad("bad-lowrank-shared-width", sharing(b"\1\x10\3\0" + bytes(48)), corrupt, "a shared matrix of words of three bytes")
    yield Bad("bad-lowrank-shared-left", sharing(b"\1\x10\1\0" + bytes(17)), corrupt, "a byte after the shared matrix")


def _bad_seedbases() -> Iterator[Bad]:
    """Sixteen zeros as a sum of one coefficient of zero each, but for one rule."""
    corrupt = "CorruptFile"

    def head(flags: int = 0, scale: float = 1.0, span: int = 256, k: int = 1, rest: bytes = b"\1\0") -> bytes:
        return struct.pack("<BfQ", flags, scale, 5) + varint(span) + varint(k) + rest

    def basis(header: bytes, payload: bytes = b"\0", n_parts: int = 1, dtype: int = _F32, n: int = 16) -> bytes:
        return _one(forge.node(SEEDBASIS, header, *[_RAW] * n_parts), payload, n=n, dtype=dtype, decoded=bytes(4 * n))

    def sharing(shared: bytes, k: int = 1) -> bytes:
        return _sharing(shared, forge.node(SEEDBASIS, head(1, k=k, rest=b"\0"), _RAW), b"", n=16, dtype=_F32)

    yield Bad("bad-seedbasis-flags", basis(head(3, rest=b"\0"), b""), corrupt, "shared coefficients of two bytes")
    yield Bad("bad-seedbasis-flags-later", basis(head(8)), corrupt, "a flag that is not known")
    yield Bad("bad-seedbasis-scale", basis(head(scale=float("nan"))), corrupt, "a scale that is no number")
    yield Bad("bad-seedbasis-span", basis(head(span=255)), corrupt, "a span of 255 words")
    yield Bad("bad-seedbasis-span-large", basis(head(span=(1 << 32) + 1)), corrupt, "a span of more than 2^32 words")
    yield Bad("bad-seedbasis-none", basis(head(k=0), b""), corrupt, "spans without coefficients")
    many, large = (forge.node(SEEDBASIS, head(k=k, span=1 << 20), forge.node(CONSTANT, b"\0")) for k in (32769, 32768))
    yield Bad("bad-seedbasis-many", _one(many, n=16, dtype=_F32, decoded=bytes(64)), corrupt, "spans of more than 32768 coefficients")
    yield Bad("bad-seedbasis-signs", _one(large, n=8193, dtype=_F32, decoded=bytes(4 * 8193)), corrupt, "more than 2^28 signs in a frame")
    yield Bad("bad-seedbasis-no-spans", basis(head(rest=b"\0\0"), b""), corrupt, "coefficients of no span")
    yield Bad("bad-seedbasis-spans", basis(head(rest=b"\2\0"), bytes(2)), corrupt, "coefficients of two spans where there is one")
    yield Bad("bad-seedbasis-mask", basis(head(4), b"\0\xff\x1f", 2, n=12), corrupt, "a bit past the end of the mask")
    yield Bad("bad-seedbasis-place", basis(head(rest=b"\1\1"), b"\0" + struct.pack("<2I", 16, 0)), corrupt, "an exception past the last word")
    yield Bad("bad-seedbasis-dtype", basis(head(), dtype=_U32), corrupt, "sums that are integers")
    inside = forge.node(SPARSE, varint(1), _RAW, forge.node(SEEDBASIS, head(), _RAW))
    payload = b"\1\0\0" + forge.check_of(b"\1\0\0")
    yield Bad("bad-seedbasis-inside", _one(inside, payload, n=16, dtype=_F32, decoded=bytes(64)), corrupt, "sums of some of a frame's words")
    yield Bad("bad-seedbasis-not-shared", basis(head(1, rest=b"\0"), b""), corrupt, "shared coefficients without a shared part")
    yield Bad("bad-seedbasis-shared-number", sharing(b"\1\1\1\0", k=2), corrupt, "a shared part with another number of coefficients")
    yield Bad("bad-seedbasis-shared-spans", sharing(b"\1\0\1"), corrupt, "a shared part without spans")
    yield Bad("bad-seedbasis-shared-width", sharing(b"\1\1\3\0\0\0"), corrupt, "shared coefficients of three bytes")
    yield Bad("bad-seedbasis-shared-left", sharing(b"\1\1\1\0\0"), corrupt, "a byte after the shared coefficients")


def _bad_containers() -> Iterator[Bad]:
    """Containers whose envelope or directory breaks a rule."""
    corrupt = "CorruptFile"
    raw = [(_RAW, bytes(64), bytes(64))]
    x = forge.coded("x", (64,), 1, raw, 64)
    none, data = forge.skeleton(b""), bytes(16)
    plain = forge.Entry("x", (16,), data=data)
    good = forge.container([none, x], source_size=64)
    opening = 8 + int.from_bytes(good[:8], "little")

    def changed(at: int) -> bytes:
        return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]

    yield Bad("bad-header-digest", changed(opening), corrupt, "the digest of the header")
    yield Bad("bad-directory-digest", changed(opening + 8), corrupt, "the digest of the directory")
    yield Bad("bad-seal", _resealed(x, seal=1), corrupt, "the seal of a frame's head")
    yield Bad(
        "bad-frame-digest",
        forge.container([none, replace(x, frames=[forge.frame(_RAW, bytes(64), digest=5)])], source_size=64),
        corrupt,
        "the digest of a frame",
    )
    yield Bad("bad-tensor-digest", forge.container([none, replace(x, digest=5)], source_size=64), corrupt, "the digest of a tensor")
    two = forge.coded("x", (128,), 1, raw * 2, 64)
    yield Bad("bad-frames-swapped", forge.container([none, replace(two, frames=two.frames[::-1])], source_size=128), corrupt, "frames that changed places")
    yield Bad("bad-ordinary-digest", forge.container([none, replace(plain, digests=[5])]), corrupt, "the digest of a stored frame")
    identity = bytes([0]) + bytes(16) + varint(16) + b"\0" + varint(2) + none.directory_row() + plain.directory_row() + b"\0"
    yield Bad("bad-identity", forge.container([none, plain], directory=identity), corrupt, "the identity")
    sha256 = bytes([1]) + bytes(32) + _identity(good) + varint(64) + b"\0" + varint(2) + none.directory_row() + x.directory_row() + b"\0"
    yield Bad("bad-sha256", forge.container([none, x], directory=sha256), corrupt, "the SHA-256 of the source")
    yield Bad("bad-no-marker", forge.container([none, plain], version=None), corrupt, "a directory without a marker")
    yield Bad("bad-no-directory", sources.safetensors_bytes({"x": ("U8", (16,), data)}, {"modelcodec": "0.1"}), corrupt, "a marker without a directory")
    yield Bad("bad-version", forge.container([none, plain], version="0.x"), corrupt, "a version that is none")
    yield Bad("bad-trailing", good + bytes(8), corrupt, "bytes after the last entry")
    yield Bad("bad-source-size", forge.container([none, plain], source_size=17), corrupt, "tensors and skeleton that do not make up the source")
    yield Bad("bad-gap", forge.container([none, replace(plain, gap=1)], tail=0), corrupt, "a gap longer than the skeleton")
    yield Bad("bad-tail", forge.container([forge.skeleton(b"abc"), plain], tail=0), corrupt, "skeleton that is left over")
    yield Bad("bad-no-skeleton", forge.container([plain]), corrupt, "no skeleton")
    yield Bad("bad-second-skeleton", forge.container([none, replace(forge.skeleton(b""), name="x")]), corrupt, "two skeletons")
    yield Bad("bad-own-name", forge.container([none, replace(plain, name=forge.OWN + "x")]), corrupt, "a tensor with a name of the codec's own")
    yield Bad("bad-role", forge.container([none, replace(plain, role=3)]), corrupt, "an unknown role")
    yield Bad("bad-kind", forge.container([none, replace(plain, kind=3, row=b"\0")]), corrupt, "an unknown kind")
    yield Bad("bad-shape-differs", forge.container([none, replace(plain, told=("U8", [4, 4]))]), corrupt, "header and directory with different shapes")
    yield Bad("bad-dtype-differs", forge.container([none, replace(plain, told=("I8", [16]))]), corrupt, "header and directory with different dtypes")
    yield Bad("bad-entries", forge.container([none, plain], n_entries=3), corrupt, "more entries than the header has")
    yield Bad("bad-frame-words", forge.container([none, replace(x, frame_words=0)], source_size=64), corrupt, "frames of no words")
    yield Bad("bad-frame-words-large", forge.container([none, replace(x, frame_words=(1 << 20) + 1)], source_size=64), corrupt, "frames of more than 1 MiB")
    yield Bad(
        "bad-frame-length", forge.container([none, replace(x, row=varint(64) + varint(70))], source_size=64), corrupt, "frames that do not fill their entry"
    )
    same = forge.Entry("y", (16,), kind=forge.SAME, same=1, digest=plain.tensor_digest())
    both = {"source_size": 32}
    yield Bad("bad-same-self", forge.container([none, plain, replace(same, same=2)], **both), corrupt, "an entry that is the same as itself")
    yield Bad("bad-same-later", forge.container([none, replace(same, same=2), plain], **both), corrupt, "an entry that is the same as a later one")
    yield Bad(
        "bad-same-same",
        forge.container([none, plain, same, replace(same, name="z", same=2)], source_size=48),
        corrupt,
        "same as an entry without bytes of its own",
    )
    yield Bad("bad-same-size", forge.container([none, plain, replace(same, shape=(8,))], source_size=24), corrupt, "same as an entry of another size")
    yield Bad("bad-same-digest", forge.container([none, plain, replace(same, digest=5)], **both), corrupt, "same as an entry with another digest")
    yield from _bad_headers(good, opening)
    yield from _bad_views(plain)


def _identity(good: bytes) -> bytes:
    opening = 8 + int.from_bytes(good[:8], "little")
    return good[opening + 17 : opening + 33]


def _resealed(entry: forge.Entry, seal: int) -> bytes:
    return forge.container([forge.skeleton(b""), replace(entry, frames=[forge.frame(_RAW, bytes(64), decoded=bytes(64), number=seal)])], source_size=64)


def _bad_headers(good: bytes, opening: int) -> Iterator[Bad]:
    """JSON headers, with their right digest, that break a rule of the envelope."""
    text = good[8:opening].rstrip()
    entries = [forge.skeleton(b""), forge.coded("x", (64,), 1, [(_RAW, bytes(64), bytes(64))], 64)]

    def told(header: bytes) -> bytes:
        return forge.container(entries, source_size=64, header=header)

    yield Bad("bad-json", told(text[:-1]), "CorruptFile", "a header that is no JSON")
    yield Bad("bad-json-list", told(b"[" + text + b"]"), "UnsupportedFile", "a header that is no object")
    yield Bad("bad-json-twice", told(text[:-1] + b',"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), "CorruptFile", "a name that stands twice")
    yield Bad("bad-json-hole", told(text[:-1] + b',"z":{"dtype":"U8","shape":[1],"data_offsets":[9999,10000]}}'), "CorruptFile", "a hole between two entries")
    yield Bad("bad-json-overlap", told(text[:-1] + b',"z":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'), "CorruptFile", "two entries that overlap")
    last = text[: text.rindex(b",")] + b",9999]}}"
    yield Bad("bad-json-end", told(last), "TruncatedFile", "an entry that ends past the end of the file")
    yield Bad("bad-json-negative", told(text.replace(b"[0,", b"[-1,", 1)), "CorruptFile", "a negative offset")
    yield Bad("bad-json-float", told(text.replace(b"[0,", b"[0.0,", 1)), "CorruptFile", "an offset that is no whole number")
    yield Bad("bad-json-metadata", told(text.replace(b'"modelcodec":"0.1"', b'"modelcodec":"0.1","a":1')), "CorruptFile", "metadata that are no strings")
    yield Bad("bad-json-extra", told(text.replace(b'{"dtype"', b'{"extra":0,"dtype"', 1)), "CorruptFile", "an entry with a key that no safetensors file has")


def _bad_views(plain: forge.Entry) -> Iterator[Bad]:
    """Views that do not lie inside their entries."""

    def views(*rows_of_views: bytes) -> bytes:
        data = varint(len(rows_of_views)) + b"".join(rows_of_views)
        own = forge.Entry(forge.OWN + "views", (len(data),), role=forge.VIEWS, data=data)
        return forge.container([forge.skeleton(b""), own, plain])

    def view(name: bytes = b"v", dtype: int = 1, shape: tuple[int, ...] = (16,), strides: tuple[int, ...] = (1,), entry: int = 2, first: int = 0) -> bytes:
        return byte_string(name) + bytes([dtype]) + varint(len(shape)) + b"".join(map(varint, (*shape, *strides, entry, first)))

    corrupt = "CorruptFile"
    yield Bad("bad-view-first", views(view(first=1)), corrupt, "a view past the end of its entry")
    yield Bad("bad-view-stride", views(view(strides=(2,))), corrupt, "a view whose last element lies outside")
    yield Bad("bad-view-dtype", views(view(dtype=19)), corrupt, "a view whose elements are too wide")
    yield Bad("bad-view-entry", views(view(entry=3)), corrupt, "a view on an entry that is not there")
    yield Bad("bad-view-skeleton", views(view(entry=0)), corrupt, "a view on the skeleton")
    yield Bad("bad-view-overflow", views(view(shape=(1 << 32, 1 << 31), strides=(0, 0))), corrupt, "a view of 2^63 elements")
    yield Bad("bad-view-name", views(view(name=b"\xff")), corrupt, "a name that is not UTF-8")
    yield Bad("bad-view-left", views(view() + b"\0"), corrupt, "a byte after the last view")


def _unsupported_files() -> Iterator[Bad]:
    plain, none = forge.Entry("x", (16,), data=bytes(16)), forge.skeleton(b"")
    later = "UnsupportedFile"
    yield Bad("unsupported-minor", forge.container([none, plain], version="0.999"), later, "format version 0.999")
    yield Bad("unsupported-major", forge.container([none, plain], version="1.0"), later, "format version 1.0")
    yield Bad("unsupported-stage", _one(forge.node(98), decoded=bytes(64)), later, "a stage that is not known")
    yield Bad(
        "unsupported-stage-inside",
        _one(forge.node(PALETTE, varint(0) + b"\5", forge.node(99)), decoded=bytes(64)),
        later,
        "an unknown stage inside a known one",
    )
    yield Bad("unsupported-flags", forge.container([none, plain], flags=4), later, "a flag of the directory that is not known")
    yield Bad("unsupported-dtype", forge.container([none, replace(plain, dtype=63, told=("U8", [16]))]), later, "a dtype that is not known")
    yield Bad("unsupported-format", forge.container([none, plain], format_id=99), later, "a source format that is not known")
    yield Bad("unsupported-safetensors", sources.safetensors_bytes({"x": ("U8", (16,), bytes(16))}), later, "a safetensors file that is no container")
    yield Bad("unsupported-text", b"This is not a container at all, but a text of some length.", later, "a file of another kind")


def bad_files() -> Iterator[Bad]:
    yield from _bad_frames()
    yield from _bad_rans()
    yield from _bad_grids()
    yield from _bad_codebooks()
    yield from _bad_lowranks()
    yield from _bad_seedbases()
    yield from _bad_containers()
    yield from _unsupported_files()


# ---- the folder ------------------------------------------------------------------------------------------------------------------------


def restored(data: bytes) -> bytes:
    """What a container restores to, every digest checked."""
    out = io.BytesIO()
    restore(container.read(memoryview(data), "file"), out, 1, None)
    return out.getvalue()


def error_of(data: bytes) -> str:
    try:
        restored(data)
    except errors.ModelCodecError as error:
        return type(error).__name__
    return "none"


def manifest() -> dict[str, dict[str, Any]]:
    """File name -> what it is, and `sha256` or `error`."""
    table: dict[str, dict[str, Any]] = tomllib.loads((HERE / MANIFEST).read_text(encoding="utf-8"))
    return table


def _path(made: Good | Bad) -> Path:
    return HERE / f"{made.name}.mcodec"


def _entry(made: Good | Bad) -> str:
    fact = f'sha256 = "{hashlib.sha256(made.source).hexdigest()}"' if isinstance(made, Good) else f'error = "{made.error}"'
    what = made.what.replace("\\", "\\\\").replace('"', '\\"')
    return f'["{_path(made).name}"]\nwhat = "{what}"\n{fact}\n'


def _wrong(made: Good | Bad, data: bytes) -> str | None:
    """What is wrong with a file's bytes, if anything."""
    if isinstance(made, Bad):
        found = error_of(data)
        return None if found == made.error else f"gives {found}, not {made.error}"
    return None if restored(data) == made.source else "restores to something else"


def write() -> None:
    made = [*good_files(), *bad_files()]
    for each in made:
        if wrong := _wrong(each, each.data):
            raise AssertionError(f"{each.name} {wrong}")
    for path in HERE.glob("*.mcodec"):
        path.unlink()
    for each in made:
        _path(each).write_bytes(each.data)
    (HERE / MANIFEST).write_text("\n".join(map(_entry, made)), encoding="utf-8")
    print(f"{len(made)} files, {sum(len(each.data) for each in made)} bytes")


def check() -> int:
    """Compare what is on disk with what would be made. Other bytes of a good file are no fault while it restores to the same."""
    faults, changed, told = [], [], manifest()
    made = [*good_files(), *bad_files()]
    on_disk = {path.name for path in HERE.glob("*.mcodec")}
    for name in sorted(on_disk ^ {_path(each).name for each in made} | on_disk ^ set(told)):
        faults.append(f"{name}: not in all three of folder, manifest and maker")
    for each in made:
        path = _path(each)
        if path.name not in on_disk:
            continue
        data = path.read_bytes()
        if wrong := _wrong(each, data):
            faults.append(f"{path.name}: {wrong}")
        if isinstance(each, Good) and told[path.name].get("sha256") != hashlib.sha256(each.source).hexdigest() and each.reproducible:
            faults.append(f"{path.name}: the manifest has another SHA-256")
        if isinstance(each, Bad) and data != each.data:
            faults.append(f"{path.name}: other bytes than its maker's")
        if isinstance(each, Good) and data != each.data:
            changed.append(path.name)
    print(*faults, sep="\n")
    print(f"{len(made)} files checked, {len(faults)} faults; of the good ones the encoder would make {len(changed)} otherwise: {', '.join(changed) or 'none'}")
    return 1 if faults else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    sys.exit(check() if parser.parse_args().check else write())
