"""Stage grid and its fits: what the fit gives comes back, whatever the tensor; damage is an error and never more; a bound asked for is held."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import grid_reference
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcodec import frame
from modelcodec.errors import BadRecipe, ModelCodecError
from modelcodec.fit.allocate import Bits, MaxError, Size, Snr, coded_bytes
from modelcodec.fit.trellis import Quantizer, Trellis, plan_of
from modelcodec.fitted import Weights, values_of
from modelcodec.kernels import context_coder
from modelcodec.kernels import logistic as logarithms
from modelcodec.kernels.context_coder import Geometry
from modelcodec.kernels.logistic import EXP2, LOG2, LOGISTIC, LOGITS, MODERATE
from modelcodec.kernels.trellis import CODES, MOST_INDEX
from modelcodec.stage import FrameContext, Plan
from modelcodec.stages import STAGES
from modelcodec.stages.grid import NO_SHIFTS, Grid, Header, Path, Steps, first_mean_of
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

NUMPY = {"F32": np.dtype("<f4"), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype("<f2")}


def weights(values: np.ndarray, dtype: str = "F32") -> Weights:
    with np.errstate(over="ignore", invalid="ignore"):
        words = np.ascontiguousarray(values).astype(NUMPY[dtype]).reshape(-1).view(f"<u{NUMPY[dtype].itemsize}")
    return Weights(TensorSpec("w", DTYPE_BY_NAME[dtype], values.shape), words)


def kernels(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Smooth kernels with scales of their own in rows and columns."""
    generator = np.random.default_rng(seed)
    x = generator.normal(0, 0.05, shape) * np.exp(generator.normal(0, 0.5, (shape[0],) + (1,) * (len(shape) - 1)))
    return x + generator.normal(0, 0.05, shape[:2] + (1,) * (len(shape) - 2))


def assert_comes_back(tensor: Weights, quantizer: Quantizer, step: float, cuts: tuple[int, ...] = ()) -> None:
    """All frames between the cuts decode to the words of the fit."""
    fitted = Trellis(step, quantizer).fit(tensor)
    edges = (0, *cuts, tensor.words.size)
    for number, (at, end) in enumerate(pairwise(edges)):
        x = fitted.words[at:end]
        context = FrameContext(tensor.spec, at, x.size, None, at)
        data = frame.encode(x, fitted.plan, context, number).data
        out = np.empty_like(x)
        frame.decode(memoryview(data), number, out, "w", context)
        assert np.array_equal(out, x)


def test_registered() -> None:
    assert STAGES[Grid.id] == "grid:Grid"


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("modelled", [True, False])
@pytest.mark.parametrize("step", [0.001, 0.05])
def test_comes_back(dtype: str, modelled: bool, step: float) -> None:
    for states in (1, 8, 256):
        assert_comes_back(weights(kernels((24, 10, 3, 3)), dtype), Quantizer(states=states, modelled=modelled), step)


@pytest.mark.parametrize("shape", [(1,), (7,), (1, 5000), (300, 3), (16, 4, 1, 1), (4, 3, 7, 7), (3, 2, 9, 9), (5, 4, 2, 2, 2), (0, 4), ()])
def test_shapes(shape: tuple[int, ...]) -> None:
    assert_comes_back(weights(np.random.default_rng(1).normal(0, 1, shape)), Quantizer(), 0.2)


def test_frames_start_anywhere() -> None:
    for modelled in (True, False):
        assert_comes_back(weights(kernels((24, 10, 3, 3))), Quantizer(modelled=modelled), 0.02, (1, 90, 95, 1000, 2159))


def assert_decodes(tensor: Weights, words: np.ndarray, plan: Plan, at: int, end: int) -> bytes:
    """The frame of these words decodes to them; its bytes."""
    context, x = FrameContext(tensor.spec, at, end - at, None, at), words[at:end]
    data = frame.encode(x, plan, context, 0).data
    out = np.empty_like(x)
    frame.decode(memoryview(data), 0, out, "w", context)
    assert np.array_equal(out, x)
    return bytes(data)


@pytest.mark.parametrize("modelled", [True, False])
@pytest.mark.parametrize("span", [1, 7, 90, 2160, 1 << 40])
def test_spans_have_steps(modelled: bool, span: int) -> None:
    tensor = weights(kernels((24, 10, 3, 3)), "BF16")
    exponents = (np.arange(-(-2160 // span)) * 7 % 50).astype(np.uint8)
    steps = Steps(exponents, span)
    quantized = Quantizer(modelled=modelled).quantize(tensor, 0.002, steps=steps)
    error = np.abs(tensor.values() - values_of(quantized.words, "BF16"))
    assert (error < 0.002 * 3 * steps.of_words(2160)).all()
    for at, end in ((0, 2160), (100, 101), (89, 1000), (630, 637)):
        assert_decodes(tensor, quantized.words, quantized.plan(), at, end)


def test_a_span_may_be_longer_than_any_tensor() -> None:
    """No encoder writes such a file, which is one by the document."""
    header = Header(Path(CODES[1], 0, 1.0, NO_SHIFTS), None, 0, 1, 0, (1 << 63) - 1, 1).write()
    parts, out = (np.array([0, 1, 2, 3], np.uint8), np.array([8], np.uint8)), np.empty(4, np.uint32)
    Grid.decode(header, np.empty(0, np.uint8), parts, out, FrameContext(TensorSpec("w", DTYPE_BY_NAME["F32"], (12,)), 5, 4, None, 5))
    assert out.view(np.float32).tolist() == [0, -1024, 1024, -2048]


def test_steps_that_are_too_few_are_not_coded() -> None:
    tensor, steps = weights(kernels((24, 10, 3, 3))), Steps(np.zeros(23, np.uint8), 90)
    indices = Quantizer().quantize(tensor, 0.02).grid.indices
    assert Grid(indices, steps=steps).encode(tensor.words, FrameContext(tensor.spec, 0, 2160)) is None


def test_exponents_are_near_their_entropy() -> None:
    """Blocks of 8 weights with exponents of two bits: the frame's bytes beyond those of the same indices in one step."""
    exponents = (np.random.default_rng(6).integers(0, 4, 4096) * 5).astype(np.uint8)
    tensor, indices = weights(np.zeros((128, 256))), np.zeros(1 << 15, np.int32)
    sizes = []
    for steps in (Steps(exponents, 8), Steps(np.full(4096, 5, np.uint8), 8)):
        sizes.append(len(assert_decodes(tensor, tensor.words, plan_of(Grid(indices, states=1, modelled=False, steps=steps)), 0, indices.size)))
    assert sizes[0] - sizes[1] < 4096 / 4 * 1.06


@pytest.mark.parametrize("modelled", [True, False])
def test_steps_that_are_all_the_same_are_one(modelled: bool) -> None:
    """Words of several frames do not change, where some frames have steps and others one."""
    tensor, exponents = weights(kernels((24, 10, 3, 3))), np.full(24, 9, np.uint8)
    exponents[20] = 200
    quantized = Quantizer(modelled=modelled).quantize(tensor, 0.01, steps=Steps(exponents, 90))
    for at, end in ((0, 1000), (1000, 2160), (1810, 1880)):
        assert_decodes(tensor, quantized.words, quantized.plan(), at, end)
    one = frame.encode(quantized.words[:1000], quantized.plan(), FrameContext(tensor.spec, 0, 1000), 0)
    assert "exponents" not in str(frame.read_head(memoryview(one.data), 0, 4, 1000, "w").root)


def test_what_no_place_stands_for_stays_exact() -> None:
    values = kernels((12, 60)).astype(np.float32)
    values[3, 7], values[4, 4], values[5, 5], values[0, 0], values[11, 59] = np.nan, np.inf, -np.inf, 1e30, -1e-40
    tensor = weights(values)
    tensor.words[200] = 0x7FC12345  # a NaN with a payload
    fitted = Trellis(0.02).fit(tensor)
    far = ~(np.abs(tensor.values()) < 1e6)
    assert np.array_equal(fitted.words[far], tensor.words[far])
    assert fitted.loss.max_error < 0.08
    assert_comes_back(tensor, Quantizer(), 0.02)


def test_kernels_are_predicted() -> None:
    """Weights that follow from the others of their kernel take fewer bits than the same ones in another order."""
    values = kernels((64, 32, 3, 3))
    shuffled = np.random.default_rng(2).permuted(values.reshape(64, -1), axis=1).reshape(values.shape)
    sizes = [coded_bytes(tensor, Quantizer().quantize(tensor, 0.02)) for tensor in (weights(values), weights(shuffled))]
    assert sizes[0] < 0.93 * sizes[1]


def test_near_the_bound_of_theory() -> None:
    """Gaussian weights: bits over 0.5 log2(variance / error), of 0.255 that a scalar quantizer leaves."""
    tensor = weights(np.random.default_rng(3).normal(0, 1, (256, 256)))
    for states, most in ((8, 0.125), (256, 0.085)):
        quantized = Quantizer(states=states).quantize(tensor, 0.35)
        bits = 8 * coded_bytes(tensor, quantized) / tensor.words.size
        assert bits + 0.5 * np.log2(tensor.loss(quantized.words).relative_mse) < most


def test_arithmetic_is_fixed() -> None:
    """Tables and bytes are those of every other machine: a change of these digests is a change of the format."""
    tables = hashlib.sha256(b"".join(table.astype("<i8").tobytes() for table in (LOG2, EXP2, LOGISTIC))).hexdigest()
    assert tables[:16] == "cdaa66e1b2644d6a"
    raw = np.random.PCG64(5).random_raw(4096)
    indices = ((raw >> np.uint64(7)) % np.uint64(9)).astype(np.int32) - np.int32(4)
    indices[::97] *= 500
    packed = context_coder.pack(indices, Geometry(0, 36, 9), 700, CODES[8], 3).data
    assert packed is not None
    assert hashlib.sha256(packed.tobytes()).hexdigest()[:16] == "e60117dc0c31889a"


_PLACES = [
    *[((6, 5, 3, 3), 0, 270), ((6, 5, 3, 3), 31, 200), ((40, 30), 7, 900), ((2000,), 5, 300)],
    *[((3, 2, 4, 4, 4), 0, 384), ((3, 5, 2, 2, 2), 4, 110), ((2, 3, 8, 8), 10, 350)],
]


@pytest.mark.parametrize(("shape", "at", "n"), _PLACES)
def test_the_document_is_enough(shape: tuple[int, ...], at: int, n: int) -> None:
    scales = np.repeat([1, 3, 0.2, 30, 1], n // 5 + 1)[:n]
    indices = np.rint(scales * np.random.default_rng(n).laplace(0, 4, n)).astype(np.int32)
    number, mean = first_mean_of(indices)
    packed = context_coder.pack(indices, Geometry.of(shape, at, n), mean, CODES[32], 9).data
    assert packed is not None
    assert grid_reference.decode(packed.tobytes(), n, shape, at, number, 9, 0o45, 0o10) == indices.tolist()


def test_shortcuts_are_what_the_document_says() -> None:
    """Functions of the kernels that come to the same by another way than the reference decoder's."""
    powers = [2**e + d for e in range(62) for d in (-1, 0, 1) if 2**e + d > 0]
    assert [logarithms.log2(x) for x in powers] == [grid_reference.log2(x) for x in powers]
    logits = [*range(-20600, 20600, 7), -20480, -20481, 20479, 20480, -(2**58), 2**58]
    assert [logarithms.logistic(t) for t in logits] == [grid_reference.logistic(t) for t in logits]
    moderate = range(-MODERATE, MODERATE + 1)
    assert [logarithms.squash(m) for m in moderate] == [grid_reference.logistic(4 * m) >> 14 for m in moderate]
    bounded = [min(max(p, 24), 65512) for p in range(65537)]
    assert LOGITS.tolist() == [grid_reference.log2(p) - grid_reference.log2(65536 - p) for p in bounded]
    whole = 2**30
    for part in {0, 1, whole // 2, whole // 2 + 1, *(k * whole // 8 + d for k in range(1, 9) for d in range(-3, 4) if k * whole // 8 + d <= whole)}:
        shares = {context_coder._share_of_one(part), context_coder._share(part, whole), context_coder._early_share(part, whole)}
        assert shares == {((part + 1) << 16) // (whole + 2)}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 9, 27, 64]), st.integers(1, 700), st.sampled_from([1, 3, 40, 3000, MOST_INDEX]), st.integers(0, 63))
def test_any_indices_pack(seed: int, kernel: int, n: int, most: int, state: int) -> None:
    generator = np.random.default_rng(seed)
    indices = generator.integers(-most, most + 1, n).astype(np.int32)
    geometry = Geometry.of((5, int(generator.integers(1, 30)), kernel), int(generator.integers(0, 300)), n)
    packed = context_coder.pack(indices, geometry, 900, CODES[64], state).data
    out = np.empty_like(indices)
    if packed is not None:
        assert context_coder.unpack(packed, geometry, 900, CODES[64], state, out)
        assert np.array_equal(out, indices)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([1, 9, 64]), st.integers(1, 2000))
def test_any_bytes_unpack_to_indices(data: bytes, kernel: int, n: int) -> None:
    out = np.empty(n, np.int32)
    context_coder.unpack(np.frombuffer(bytearray(data), np.uint8), Geometry.of((7, 11, kernel), 0, n), 1, CODES[256], 255, out)
    assert np.abs(out).max() <= MOST_INDEX


@pytest.mark.parametrize("modelled", [True, False])
@pytest.mark.parametrize("steps", [None, Steps((np.arange(62) ** 2 % 5 * 9).astype(np.uint8), 7)])
def test_damage_is_an_error_or_other_words(modelled: bool, steps: Steps | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "CHECK_DIGESTS", False)
    tensor = weights(kernels((6, 8, 3, 3)))
    tensor.words[[3, 77]] = 0x7F800000
    quantized = Quantizer(modelled=modelled).quantize(tensor, 0.02, steps=steps)
    context = FrameContext(tensor.spec, 0, tensor.words.size, None, 0)
    data = bytes(frame.encode(quantized.words, quantized.plan(), context, 0).data)
    out = np.empty_like(tensor.words)
    generator = np.random.default_rng(4)
    for place in [*range(40), *generator.integers(40, len(data), 200), *range(len(data) - 20, len(data))]:
        for byte in (0, 255, data[place] ^ 1 << int(generator.integers(8))):
            damaged = data[:place] + bytes([byte]) + data[place + 1 :]
            try:
                frame.decode(memoryview(damaged), 0, out, "w", context)
            except ModelCodecError:
                continue


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=30), st.integers(0, 100))
def test_any_header_is_an_error_or_a_layout(header: bytes, n: int) -> None:
    try:
        layout = Grid.layout(header, 4, n)
    except ModelCodecError:
        return
    assert layout.n_payload >= 0


_HOSTILE = st.sampled_from([0.0, -0.0, 1e30, -1e30, 1e-42, float("nan"), float("inf"), float("-inf"), 3.4e38, 1.0])


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(sorted(NUMPY)),
    bound=st.sampled_from([1e-4, 1e-2, 0.3]),
    hostile=st.lists(_HOSTILE, max_size=6),
    modelled=st.booleans(),
    span=st.sampled_from([None, "row", 1, 7, 32, 300]),
)
def test_a_bound_is_held(seed: int, dtype: str, bound: float, hostile: list[float], modelled: bool, span: int | str | None) -> None:
    generator = np.random.default_rng(seed)
    values = generator.normal(0, 1, (6, 40)) * np.exp(generator.normal(0, 1, (6, 1)))
    values.reshape(-1)[generator.integers(0, 240, len(hostile))] = hostile
    tensor = weights(values, dtype)
    fitted = MaxError(bound, span is not None, modelled, span if isinstance(span, int) else None)({"w": tensor}).tensors.get("w")
    if fitted is None:
        return
    before, after = tensor.values().astype(np.float64), values_of(fitted.words, dtype).astype(np.float64)
    finite = np.isfinite(before)
    assert np.array_equal(fitted.words[~finite], tensor.words[~finite])
    n = span if isinstance(span, int) else 40
    largest = np.maximum.reduceat(np.where(finite, np.abs(before), 0), np.arange(0, 240, n))
    allowed = bound * (np.repeat(largest, n)[:240] if span else np.ones(240))
    assert (np.abs(before[finite] - after[finite]) <= allowed[finite]).all()
    for at, end in ((0, 240), (37, 201)):
        assert_decodes(tensor, fitted.words, fitted.plan, at, end)


def test_blocks_far_from_most_are_kept_and_do_no_harm() -> None:
    """One block of weights that are 10^30 times larger, one of such smaller ones: the others have a step near their own bounds."""
    values = np.random.default_rng(8).normal(0, 1, (64, 320)).astype(np.float32)
    plain = coded_size(weights(values))
    values[3, 32:64] *= np.float32(1e30)
    values[9, :32] *= np.float32(1e-30)
    assert coded_size(weights(values)) < plain + 2 * 32 * 8 + 64


def coded_size(tensor: Weights) -> int:
    fitted = MaxError(0.01, relative=True, block=32)({"w": tensor}).tensors["w"]
    return len(assert_decodes(tensor, fitted.words, fitted.plan, 0, tensor.words.size))


def test_promises_of_size_and_error() -> None:
    matrix = np.random.default_rng(7).normal(0, 0.3, (100, 64))
    tensors = {"a": weights(kernels((32, 16, 3, 3))), "b": weights(matrix, "BF16"), "zeros": weights(np.zeros((9, 9)))}
    n = sum(tensor.words.size for tensor in tensors.values())
    quantizer = Quantizer(passes=1)
    for fit, most in ((Bits(3.0, quantizer), 3.0 * n / 8), (Size(1500, quantizer), 1500)):
        fitted = fit(tensors)
        n_bytes = 0
        for name, tensor in fitted.tensors.items():
            context = FrameContext(tensors[name].spec, 0, tensor.words.size, None, 0)
            n_bytes += len(frame.encode(tensor.words, tensor.plan, context, 0).data)
        assert 0.97 * most <= n_bytes <= most
    fitted = Snr(25.0, quantizer)(tensors)
    squares = {name: float(np.square(tensor.values().astype(np.float64)).sum()) for name, tensor in tensors.items()}
    error = sum(fitted.tensors[name].loss.relative_mse * square for name, square in squares.items())
    assert 0.97 * 10**-2.5 <= error / sum(squares.values()) <= 10**-2.5


def test_the_same_again() -> None:
    tensor = weights(kernels((24, 10, 3, 3)))
    first, second = (Quantizer(states=32).quantize(tensor, 0.03) for _ in range(2))
    assert np.array_equal(first.words, second.words)


def test_what_cannot_be_is_said() -> None:
    blocks = (lambda: MaxError(0.1, block=32), lambda: MaxError(0.1, relative=True, block=0))
    for make in (lambda: Quantizer(states=5), lambda: Quantizer(price=-1.0), lambda: MaxError(0.0), *blocks, lambda: Bits(3.0)({})):
        with pytest.raises(BadRecipe):
            make()
    with pytest.raises(BadRecipe, match="step"):
        Quantizer().quantize(weights(np.ones((2, 8))), 1e38, steps=Steps(np.array([0, 255], np.uint8), 8))
    with pytest.raises(BadRecipe):
        Size(3)({"w": weights(kernels((24, 10, 3, 3)))})
