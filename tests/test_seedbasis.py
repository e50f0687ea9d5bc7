"""Promise: a seed and its coefficients give the same words on every machine, and what they cannot give is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from io import BytesIO

import numpy as np
import pytest
import reference_decoder
import rows
import sources
from hypothesis import given
from hypothesis import strategies as st
from rows import WORD, Array

import modelcodec
from modelcodec import frame as frames
from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.fitted import Fitted, Weights
from modelcodec.formats.container_layout import full_frame_words
from modelcodec.kernels import philox
from modelcodec.limits import LIMITS
from modelcodec.recipe import parse_plan
from modelcodec.stage import FrameContext, Plan, Shared
from modelcodec.stages.rans import Rans
from modelcodec.stages.seedbasis import Basis, Coefficients, SeedBasis
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

THEN = {"coefficients": Plan(Rans()), "mask": Plan(Rans())}


def basis_of(n: int, k: int, span: int = 300, most: int = 100, seed: int = 7) -> Basis:
    """A basis of a tensor of n words."""
    spans = -(-n // span)
    integers = rows.numbers(spans * k, 2 * most + 1, 4, seed).astype(np.int64) - most
    return Basis(0xFEDCBA9876543210 + seed, span, integers.astype(np.int32).reshape(spans, k), float(np.float32(1e-3)))


def spec_of(dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec("w", DTYPE_BY_NAME[dtype], shape)


def coded(x: Array, basis: Basis, context: FrameContext) -> tuple[frames.EncodedFrame, frames.Node]:
    encoded = frames.encode(x, Plan(SeedBasis(basis), THEN), context, 3)
    out = np.full_like(x, 0x5A)
    as_read = replace(context, shared=Shared(context.shared.data) if context.shared else None)
    frames.decode(memoryview(encoded.data), 3, out, "frame", as_read)
    assert out.tobytes() == x.tobytes()
    return encoded, frames.read_head(memoryview(encoded.data), 3, x.itemsize, x.size, "frame").root


@pytest.mark.parametrize(
    ("counter", "key", "output"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_the_generator_gives_the_known_answers(counter: str, key: str, output: str) -> None:
    """Those of Random123, its authors' library: philox4x32 of ten rounds."""

    def number(*words: str) -> int:
        return sum(int(word, 16) << 32 * i for i, word in enumerate(words))

    first, second, third, fourth = counter.split()
    found = philox.blocks(number(first, second), 1, number(third, fourth), number(*key.split()))
    assert [f"{word:08x}" for word in found[0].tolist()] == output.split()


def test_words_are_exact_sums_rounded_twice() -> None:
    basis = basis_of(40, 19, most=30_000)
    found = basis.words(0, 40, "F32").view(np.float32)
    for i in range(40):
        stream = philox.blocks(3 * i // 16, 2, 0, basis.seed).tobytes()[3 * i % 16 :]
        exact = sum((1 if stream[t // 8] >> t % 8 & 1 else -1) * int(c) for t, c in enumerate(basis.coefficients[0]))
        assert found[i] == np.float32(float(Fraction(exact) * Fraction(basis.scale)))


def test_signs_are_as_good_as_independent_ones() -> None:
    """Of 64 coefficients and 4,000 words: columns are balanced and nearly orthogonal, also across spans."""
    signs = philox.Signs(1, 2000, 64)
    columns = [philox.sums(np.repeat(np.eye(64, dtype=np.int32)[k : k + 1], 2, 0), signs, 0, 4000) for k in range(64)]
    matrix = np.array([column[half : half + 2000] for column in columns for half in (0, 2000)], float)
    products = matrix @ matrix.T / 2000
    assert abs(matrix.mean(axis=1)).max() < 5 / 2000**0.5
    assert abs(products - np.eye(128)).max() < 5 / 2000**0.5
    assert abs(np.square(products - np.eye(128)).sum() * 2000 / (128 * 127) - 1) < 0.1


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@given(data=st.data())
def test_any_frame_of_sums(dtype: str, data: st.DataObject) -> None:
    """Frames that begin and end inside spans; some words are others, some are masked."""
    n_words = data.draw(st.integers(1, 1500))
    basis = basis_of(n_words, data.draw(st.integers(1, 40)), data.draw(st.sampled_from([256, 300, 5000])), data.draw(st.sampled_from([3, 100, 32_767])))
    at = data.draw(st.integers(0, n_words - 1))
    n = data.draw(st.integers(1, n_words - at))
    x = basis.words(at, n, dtype).copy()
    x[rows.numbers(n, 7, 1, 4) == 0] = 0 if data.draw(st.booleans()) else WORD[x.itemsize].type(0xFFFF)
    _, root = coded(x, basis, FrameContext(spec_of(dtype, n_words), 0, n, None, at))
    assert root.stage.name in ("seedbasis", "raw")


def test_frames_of_a_group_share_their_coefficients() -> None:
    spec = spec_of("F32", 800, 700)
    basis = basis_of(spec.n_words, 24, 1 << 16)
    x = basis.words(0, spec.n_words, "F32")
    shared = SeedBasis(basis).prepare(spec, x, 0)
    assert shared is not None
    step = full_frame_words(spec.dtype, spec.row_words)
    for at in range(0, x.size, step):
        piece = x[at : at + step]
        encoded, root = coded(piece, basis, FrameContext(spec, at, piece.size, shared, at))
        assert root.layout.parts[0].n == 0
        assert len(encoded.data) < 50
    for damaged in (None, Coefficients(basis.coefficients[:, 1:]), Coefficients(basis.coefficients[:-1])):
        part = damaged and Shared(damaged.write())
        with pytest.raises(CorruptFile, match="shared"):
            frames.decode(memoryview(encoded.data), 3, np.empty_like(piece), "frame", FrameContext(spec, at, piece.size, part, at))


def test_a_file_is_as_small_as_its_coefficients() -> None:
    """Half a million words of 2,160 coefficients, in frames that share them and in one that has its own; the independent decoder agrees on the small ones."""
    wide, small = basis_of(525_000, 24, 6000), basis_of(3000, 10, 1000)
    bases = {"wide": wide, "small": small}

    def fit(tensors: Mapping[str, Weights]) -> Fitted:
        return Fitted({name: w.fitted(bases[name].words(0, w.words.size, "F32"), Plan(SeedBasis(bases[name]), THEN)) for name, w in tensors.items()})

    def written(**shapes: tuple[int, int]) -> bytes:
        out = BytesIO()
        source = sources.safetensors_bytes({name: ("F32", shape, bytes(4 * shape[0] * shape[1])) for name, shape in shapes.items()})
        modelcodec.compress(BytesIO(source), out, fit=fit, level=9)
        return out.getvalue()

    data = written(wide=(750, 700), small=(30, 100))
    assert len(data) < wide.coefficients.size + 1000
    assert modelcodec.load(data)["wide"].tobytes() == wide.words(0, 525_000, "F32").tobytes()
    assert reference_decoder.tensors(written(small=(30, 100)))["small"][2] == small.words(0, 3000, "F32").tobytes()


def test_masked_zeros_take_a_bit() -> None:
    """Random signs of one magnitude, half of them masked: no more than the mask."""
    basis = Basis(3, 1 << 16, np.full((1, 1), 9, np.int32), 0.01)
    x = basis.words(0, 8000, "F32").copy()
    x[rows.numbers(x.size, 2, 1, 5) == 0] = 0
    encoded, root = coded(x, basis, FrameContext(spec_of("F32", 80, 100), 0, x.size))
    assert len(root.layout.parts) == 2
    assert len(encoded.data) < x.size / 8 + 100


def test_other_words_stay_raw() -> None:
    x = rows.random_bits(4096, 4, 1)
    _, root = coded(x, basis_of(4096, 3), FrameContext(spec_of("F32", 64, 64), 0, x.size))
    assert root.stage.name == "raw"


def test_a_frame_has_so_many_signs() -> None:
    basis = basis_of(10_000, LIMITS.frame_signs // 9_000, 1 << 20, most=1)
    context = FrameContext(spec_of("F32", 10_000), 0, 9_000)
    assert SeedBasis(basis).encode(np.zeros(9_000, np.uint32), context) is not None
    assert SeedBasis(basis).encode(np.zeros(9_001, np.uint32), replace(context, n=9_001)) is None


@pytest.mark.parametrize("text", ["seedbasis{basis=1}", "seedbasis{seed=2}"])
def test_a_basis_is_no_option_of_a_recipe(text: str) -> None:
    with pytest.raises(BadRecipe):
        parse_plan(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x01\x01\x00",  # no coefficients
        b"\x01\x00\x01\x00",  # no spans
        b"\x01\x01\x03\x00\x00",  # words of three bytes
        b"\x02\x01\x01\x00",
        b"\x01\x01\x01\x00\x00",
        b"\x01\x01\x02\x00\x00\x00",
    ],
)
def test_a_damaged_shared_part_is_an_error(data: bytes) -> None:
    with pytest.raises(CorruptFile):
        Coefficients.read(data)


def test_damaged_frames_give_an_error_or_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """With digests off: whatever a bit of the frame says, nothing but an error of ours comes of it."""
    monkeypatch.setattr(frames, "CHECK_DIGESTS", False)
    basis = basis_of(400, 11, most=300)
    x = basis.words(0, 400, "BF16").copy()
    x[:40:3], x[50:53] = 0, 0x7FC0
    context = FrameContext(spec_of("BF16", 20, 20), 0, x.size)
    data = bytearray(coded(x, basis, context)[0].data)
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            try:
                frames.decode(memoryview(data), 3, np.empty_like(x), "frame", context)
            except frames.ModelCodecError:
                pass
            finally:
                data[at] ^= 1 << bit
