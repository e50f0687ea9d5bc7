"""Promise: few different vectors are coded by their places, whatever the dtype, the rows' lists and the frame's place in the tensor."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import rows
from hypothesis import given
from hypothesis import strategies as st
from rows import WORD, Array
from safetensors.numpy import save

import modelcodec
from modelcodec import frame as frames
from modelcodec.compression import Settings, compress_view
from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.formats import container, identify
from modelcodec.formats.container_layout import full_frame_words
from modelcodec.recipe import Recipe, Rule, parse_plan
from modelcodec.stage import FrameContext, Plan, Shared
from modelcodec.stages.codebook import Book, Codebook
from modelcodec.stages.rans import Rans
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

THEN = {"entries": Plan(Rans()), "groups": Plan(Rans()), "indices": Plan(Rans())}


def coded(x: Array, stage: Codebook, context: FrameContext) -> tuple[frames.EncodedFrame, frames.Node]:
    """A frame that decodes to x, with a shared part that is read as a decoder reads it."""
    encoded = frames.encode(x, Plan(stage, THEN), context, 3)
    out = np.full_like(x, 0x5A)
    as_read = replace(context, shared=Shared(context.shared.data) if context.shared else None)
    frames.decode(memoryview(encoded.data), 3, out, "frame", as_read)
    assert out.tobytes() == x.tobytes()
    return encoded, frames.read_head(memoryview(encoded.data), 3, x.itemsize, x.size, "frame").root


def spec_of(dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec("w", DTYPE_BY_NAME[dtype], shape)


@given(data=st.data())
def test_any_vectors_from_anywhere_in_a_tensor(data: st.DataObject) -> None:
    """Frames that begin and end inside rows and vectors, with and without a list for each row."""
    dtype = data.draw(st.sampled_from(["U8", "BF16", "F32", "F64"]))
    n_rows, columns = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 30))
    at = data.draw(st.integers(0, n_rows * columns - 1))
    n = data.draw(st.integers(1, n_rows * columns - at))
    few = rows.random_bits(data.draw(st.integers(1, 20)), DTYPE_BY_NAME[dtype].word, 1)
    x = few[rows.numbers(n, few.size, 1, data.draw(st.integers(0, 5)))]
    lists = rows.numbers(n_rows, data.draw(st.integers(1, 4)), 1, 7).tobytes() if data.draw(st.booleans()) else b""
    dimension = data.draw(st.integers(1, 9))
    stage = Codebook(dimension, dimension == 1 and data.draw(st.booleans()), lists)
    coded(x, stage, FrameContext(spec_of(dtype, n_rows, columns), 0, n, None, at))


@pytest.mark.parametrize("modelled", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_frames_of_a_group_share_their_codebook(modelled: bool, grouped: bool) -> None:
    lists = bytes(row % 3 for row in range(700)) if grouped else b""
    x = (np.round(rows.gaussian(700 * 400, "F32", 1, 2.0).view(np.float32)) * np.float32(0.5)).view(np.uint32)
    spec, stage = spec_of("F32", 700, 400), Codebook(1, modelled, lists)
    shared = stage.prepare(spec, x, 0)
    assert shared is not None
    step = full_frame_words(spec.dtype, spec.row_words)
    for at in range(0, x.size, step):
        piece = x[at : at + step]
        encoded, root = coded(piece, stage, FrameContext(spec, at, piece.size, shared, at))
        assert root.stage is Codebook
        assert root.layout.parts[0].n == 0
        assert len(encoded.data) < 0.125 * piece.nbytes


def test_a_file_of_vectors() -> None:
    """Through a container: kernels of nine weights over several frames, which do not begin with a kernel."""
    kernels = rows.gaussian(200 * 9, "F32", 2).reshape(200, 9)
    x = kernels[rows.numbers(150 * 250, 200, 1, 3)].reshape(150, 250, 3, 3).view(np.float32)
    source = memoryview(save({"w": x}))
    recipe = Recipe((Rule(plan=parse_plan("codebook{dimension=9}(indices:rans)")),))
    out = BytesIO()
    compress_view(source, identify(source, None), out, Settings(recipe, 5, 1, True, False), None)
    archive = container.read(memoryview(out.getvalue()), "file")
    assert archive.tensors[0].shared
    assert np.array_equal(modelcodec.load(out.getvalue())["w"], x)
    assert len(out.getvalue()) < x.size * 1.0 / 8 + 12_000  # an index of a byte for nine weights, and the codebook


def test_codebooks_cost_what_their_indices_and_entries_do() -> None:
    x = rows.random_bits(16, 4, 1)[rows.numbers(36_864, 16, 1, 2)]
    encoded, _ = coded(x, Codebook(), FrameContext(spec_of("F32", 64, 64, 3, 3), 0, x.size))
    assert len(encoded.data) < x.size * 4 / 8 * 1.003 + 64 + 60
    near_uniform = np.round(rows.gaussian(36_864, "F32", 4, 2.0).view(np.float32))
    steep = (np.round(near_uniform.reshape(64, 576) * np.linspace(0.2, 3, 64, dtype=np.float32)[:, None])).reshape(-1).view(np.uint32)
    plain, _ = coded(steep, Codebook(), FrameContext(spec_of("F32", 64, 64, 3, 3), 0, steep.size))
    modelled, _ = coded(steep, Codebook(modelled=True), FrameContext(spec_of("F32", 64, 64, 3, 3), 0, steep.size))
    assert len(modelled.data) < 0.93 * len(plain.data)


def test_too_many_different_vectors_are_left_to_others() -> None:
    x = np.arange(70_000, dtype=np.uint32)
    assert Codebook().encode(x, FrameContext(spec_of("F32", 70_000), 0, x.size)) is None


@pytest.mark.parametrize("text", ["codebook{dimension=0}", "codebook{dimension=1025}", "codebook{dimension=2, modelled=True}", "codebook{lists=1}"])
def test_impossible_options_are_refused(text: str) -> None:
    with pytest.raises(BadRecipe):
        parse_plan(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x00\x00",  # no words in a vector
        b"\x01\x00\x01",  # two entries, no kind
        b"\x01\x00\x00\x02" + bytes(4),
        b"\x01\x00\x00\x00" + bytes(3),
        b"\x01\x00\x00\x00" + bytes(5),
        b"\x01\x00\x01\x01\x00" + bytes(4) + b"\x00\x01",  # a place past the palette
        b"\x01\x01\xff\xff\x03\xff\xff\x03\x00",  # more entries than a codebook may have
    ],
)
def test_a_damaged_shared_part_is_an_error(data: bytes) -> None:
    with pytest.raises(CorruptFile):
        Book.read(data, 4)


def test_a_shared_part_that_does_not_fit_the_frame_is_an_error() -> None:
    x = rows.random_bits(3, 4, 1)[rows.numbers(300_000, 3, 1, 2)]
    spec = spec_of("F32", 300, 1000)
    shared = Codebook().prepare(spec, x, 0)
    context = FrameContext(spec, 0, 1000, shared)
    data = memoryview(frames.encode(x[:1000], Plan(Codebook(), THEN), context, 0).data)
    two_words = Book.of_vectors(x[:1000].reshape(-1, 2))
    two_lists = Book.of_vectors(x[:1000].reshape(-1, 1), np.arange(1000) % 2)
    one_entry = Book.of_vectors(x[:1].reshape(-1, 1))
    for wrong in (None, *(Shared(book.write()) for book in (two_words, two_lists, one_entry) if book), Shared(b"\x01")):
        with pytest.raises(CorruptFile):
            frames.decode(data, 0, np.empty(1000, WORD[4]), "frame", replace(context, shared=wrong))
