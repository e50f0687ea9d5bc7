"""Promise: every stage gives back what it was given, bit for bit, and refuses what it cannot be. Driven by `rows.STAGE_ROWS`."""

from __future__ import annotations

import random
from unittest import mock

import numpy as np
import pytest
import rows
from hypothesis import given
from hypothesis import strategies as st
from rows import STAGE_ROWS, WORD, Array, StageRow, edge_arrays, for_dtype

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe, ModelCodecError
from modelcodec.recipe import parse_plan
from modelcodec.stage import FrameContext, Plan
from modelcodec.stages import STAGES, stage_of
from modelcodec.types import DTYPE_BY_NAME, DType, TensorSpec
from modelcodec.wire import varint

CASES = [pytest.param(row, plan, dtype, id=f"{plan}-{dtype}") for row in STAGE_ROWS for plan in row.plans for dtype in row.dtypes]


def context_of(dtype: DType, x: Array, row: StageRow | None = None) -> FrameContext:
    shared = row.shared(x) if row and row.shared else None
    base = row.base(x) if row and row.base else None
    return FrameContext(TensorSpec("x", dtype, (x.size * dtype.elements // dtype.block,)), 0, x.size, shared, base=base)


def through_frame(x: Array, plan: Plan, dtype: DType, row: StageRow | None = None) -> frames.EncodedFrame:
    """Encode and decode as a frame; the input stays as it was."""
    before, context = x.tobytes(), context_of(dtype, x, row)
    encoded = frames.encode(x, plan, context, 7)
    out = np.full_like(x, 0x5A)
    digest = frames.decode(memoryview(encoded.data), 7, out, "frame", context)
    assert out.tobytes() == before == x.tobytes()
    assert digest == encoded.digest == frames.digest_of(x)
    return encoded


def test_every_stage_has_a_row() -> None:
    without_row = {stage_of(number).name for number in STAGES if not stage_of(number).fitted} - {row.name for row in STAGE_ROWS}
    assert not without_row
    assert all(stage_of(number).id == number for number in STAGES)


@pytest.mark.parametrize(("row", "text", "dtype_name"), CASES)
def test_round_trip_of_edge_arrays(row: StageRow, text: str, dtype_name: str) -> None:
    dtype, plan = DTYPE_BY_NAME[dtype_name], parse_plan(text)
    for name, array in edge_arrays(dtype.word).items():
        x = for_dtype(array, dtype)
        encoded = through_frame(x, plan, dtype, row)
        assert len(encoded.data) <= x.nbytes + 32, name


@pytest.mark.parametrize(("row", "text", "dtype_name"), CASES)
def test_stage_alone(row: StageRow, text: str, dtype_name: str) -> None:
    """Without the frame, which would store what does not shrink: header, layout and parts fit each other, and decode gives the words back."""
    stage, dtype = parse_plan(text).stage, DTYPE_BY_NAME[dtype_name]
    for array in edge_arrays(dtype.word).values():
        x = for_dtype(array, dtype)
        context = context_of(dtype, x, row)
        encoded = stage.encode(x, context)
        if encoded is None:
            continue
        layout = type(stage).layout(encoded.header, x.itemsize, x.size)
        payload = np.frombuffer(bytes(encoded.payload), np.uint8)
        assert layout.n_payload == payload.size
        assert [(part.width, part.n) for part in layout.parts] == [(part.itemsize, part.size) for part in encoded.parts]
        assert len(type(stage).part_names(len(encoded.parts))) == len(encoded.parts)
        out = np.full_like(x, 0x5A)
        type(stage).decode(encoded.header, payload, encoded.parts, out, context)
        assert out.tobytes() == x.tobytes()


@pytest.mark.parametrize("row", STAGE_ROWS, ids=lambda row: row.name)
def test_stage_does_what_it_is_for(row: StageRow) -> None:
    """The sample is coded by the stage, not stored, and takes no more than the row says."""
    x = row.sample
    dtype = next(d for d in map(DTYPE_BY_NAME.__getitem__, (*row.dtypes, "U8", "BF16", "F32", "F64")) if d.word == x.itemsize)
    encoded = through_frame(x, parse_plan(row.plans[0]), dtype, row)
    head = frames.read_head(memoryview(encoded.data), 7, x.itemsize, x.size, "frame")
    assert head.root.stage.name == row.name
    assert len(encoded.data) <= row.bound * x.nbytes


@pytest.mark.parametrize("row", STAGE_ROWS, ids=lambda row: row.name)
@given(data=st.data())
def test_round_trip_of_any_words(row: StageRow, data: st.DataObject) -> None:
    dtype = DTYPE_BY_NAME[data.draw(st.sampled_from(row.dtypes))]
    most = data.draw(st.sampled_from([0, 1, 3, 255, 2 ** (8 * dtype.word) - 1]))
    words = data.draw(st.lists(st.integers(0, most), max_size=300))
    x = for_dtype(np.array(words, WORD[dtype.word]), dtype)
    through_frame(x, parse_plan(data.draw(st.sampled_from(row.plans))), dtype, row)


@pytest.mark.parametrize("row", STAGE_ROWS, ids=lambda row: row.name)
@given(header=st.binary(max_size=40), width=st.sampled_from([1, 2, 4, 8]), n=st.integers(0, 300))
def test_any_header_is_read_or_refused(row: StageRow, header: bytes, width: int, n: int) -> None:
    """A header that `layout` takes implies sizes that are not negative; parts and payload of these sizes, full of anything, decode or are refused."""
    kind = type(parse_plan(row.plans[0]).stage)
    try:
        layout = kind.layout(header, width, n)
    except ModelCodecError:
        return
    assert layout.n_payload >= 0
    assert all(part.n >= 0 and part.width in WORD for part in layout.parts)
    if layout.n_payload + sum(part.n * part.width for part in layout.parts) > 1 << 20:
        return
    parts = [np.full(part.n, 0xC3, WORD[part.width]) for part in layout.parts]
    try:
        out = np.empty(n, WORD[width])
        kind.decode(header, np.full(layout.n_payload, 0x3C, np.uint8), parts, out, context_of(DTYPE_BY_NAME["U8"], out, row))
    except ModelCodecError:
        return


@pytest.mark.parametrize(
    "text",
    [
        "rans{table_bits=7}",
        "rans{table_bits=13}",
        "split_float{low_bits=14}",
        "widen{kind=0}",
        "widen{kind=9}",
        "palette{most=0}",
        "palette{most=257}",
        "zstd{level=0}",
        "zstd{level=23}",
        "fields{fields=3x1}",
        "fields{fields=1x0}",
        "fields{fields=}",
        "fields{fields=1x1+}",
        f"fields{{fields={'+'.join(['1x1'] * 17)}}}",
        f"fields{{fields=1x{'9' * 5000}}}",
    ],
)
def test_impossible_options_are_refused(text: str) -> None:
    with pytest.raises(BadRecipe):
        parse_plan(text)


@pytest.mark.parametrize(
    ("inner", "times"),
    [
        ("split_float{{low_bits=0}}(symbols:{})", 9),
        ("split_float{{low_bits=0}}(symbols:{})", 7),
        ("fields{{fields=1x1+1x1+1x1+1x1}}(field 0:{}, field 1:{}, field 2:{})", 4),
    ],
)
def test_a_tree_that_no_decoder_reads_is_not_written(inner: str, times: int) -> None:
    """More depth, arrays or nodes than the format has room for: the recipe is bad, the file is not."""
    text = "rans"
    for _ in range(times):
        text = inner.format(*[text] * inner.count("{}"))
    x = np.zeros(1 << 19, np.uint8 if "fields" in inner else np.uint16)
    x[: x.size // 2 : 4093] = 1
    with pytest.raises(BadRecipe, match=r"simpler|deep"):
        through_frame(x, parse_plan(text), DTYPE_BY_NAME["U8"])


def test_fused_stages_keep_raw_what_does_not_shrink() -> None:
    """As the stages one by one do: symbols that are random, in words that shrink all the same."""
    x = rows.random_bits(70_000, 2).astype(np.uint32) << np.uint32(16)
    plan, dtype = parse_plan("split_float{low_bits=7}(symbols:rans, low:constant)"), DTYPE_BY_NAME["F32"]
    together = through_frame(x, plan, dtype)
    with mock.patch.object(frames, "fused", return_value=None):
        apart = through_frame(x, plan, dtype)
    assert bytes(together.data) == bytes(apart.data)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("low_bits", [5, 7, 10])
def test_the_fast_way_is_the_general_one(dtype: str, low_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of the most common kind are decoded in one call. On damaged frames, too, it gives what stage by stage gives, or nothing."""
    monkeypatch.setattr(frames, "CHECK_DIGESTS", False)
    draw = random.Random(low_bits)
    for n in (1, 63, 64, 200, 1001, 4000):
        x = rows.gaussian(n, dtype, n)
        plan = parse_plan(f"split_float{{low_bits={low_bits}}}(symbols:rans{{table_bits={draw.choice((8, 10, 12))}}})")
        data = bytearray(frames.encode(x, plan, context_of(DTYPE_BY_NAME[dtype], x), 0).data)
        for _ in range(150):
            damaged = bytearray(data)
            for _ in range(draw.randrange(3)):
                damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
            found = []
            for least in (2, 1 << 30):
                monkeypatch.setattr(frames, "USUAL_BYTES", least)
                out = np.zeros_like(x)
                try:
                    frames.decode(memoryview(damaged), 0, out, "frame")
                    found.append(out.tobytes())
                except ModelCodecError as error:
                    found.append(type(error).__name__.encode())
            assert found[0] == found[1]


def test_frames_know_their_number() -> None:
    """A frame in another's place is found: its seal is that of its own number."""
    x = np.arange(100, dtype=np.uint8)
    encoded = frames.encode(x, parse_plan("raw"), context_of(DTYPE_BY_NAME["U8"], x), 3)
    with pytest.raises(ModelCodecError, match="seal"):
        frames.decode(memoryview(encoded.data), 4, np.empty_like(x), "frame")


def test_stage_ids_are_written_as_they_are_registered() -> None:
    for number in STAGES:
        assert varint(number) == bytes([stage_of(number).id])


def test_no_bytes_are_of_the_kind_that_kernels_are_compiled_for() -> None:
    """Or what zstd decodes to nothing would have them compiled once more."""
    assert frames.as_bytes(b"").flags.writeable
    assert frames.as_bytes(b"x").flags.writeable
