"""Promise: a fit keeps what it says: its bound, the zeros and the words that are no numbers; the plan codes exactly its words; a rerun gives the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

import numpy as np
import pytest
import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import Array

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe
from modelcodec.fit import FITS
from modelcodec.fit.blocks import Blocks
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit
from modelcodec.fit.chita import Chita
from modelcodec.fit.filters import Filters
from modelcodec.fit.jlcm import GroupedKMeans
from modelcodec.fit.kernel_vq import KernelVQ
from modelcodec.fit.kmeans import KMeans
from modelcodec.fit.lowrank import LowRank
from modelcodec.fit.magnitude import Magnitude
from modelcodec.fit.nettrim import NetTrim
from modelcodec.fit.nm import NM
from modelcodec.fitted import Fitted, FittedTensor, Weights, values_of
from modelcodec.kernels import kmeans
from modelcodec.stage import FrameContext
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

SHAPES = ((), (0,), (5,), (3, 0), (1, 40), (40, 1), (8, 16), (30, 20), (6, 4, 3, 3), (4, 4, 1, 1), (2, 3, 5))
FITS_HERE: tuple[Fit, ...] = (
    Magnitude(0.5),
    Magnitude(0.3, whole_model=True),
    NM(2, 4),
    NM(1, 4, channels=True),
    Blocks(0.5, 2, 3),
    Filters(0.25),
    NetTrim(0.4),
    NetTrim(0.4, relu=True),
    Chita(0.4),
    KMeans(8),
    KMeans(1),
    KMeans(8, price=1e-3),
    KMeans(4, dimension=3, max_error=0.01),
    KernelVQ(4, bits=3),
    GroupedKMeans(4, 3, max_error=0.05),
    LowRank(0.1),
    Magnitude(0.5) | KMeans(8),
    Magnitude(0.5) | LowRank(0.1),
    LowRank(0.1) | Magnitude(0.5),
    KMeans(16) | NM(2, 4) | KernelVQ(8),
)


def weights_of(values: Array, dtype: str = "F32", name: str = "w") -> Weights:
    words = np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32)
    return Weights(TensorSpec(name, DTYPE_BY_NAME[dtype], values.shape), words)


def numbers(*shape: int, seed: int = 0) -> Array:
    return rows.gaussian(int(np.prod(shape)), "F32", seed, 0.05).view(np.float32).reshape(shape)


def hostile(words: Array, dtype: str, kinds: list[int]) -> Array:
    """Weights with NaN, infinities, zeros of both signs, subnormals and numbers as large as the dtype has, here and there."""
    specials = {"F32": (0x7FC12345, 0xFF800000, 0, 1 << 31, 5, 0x7149F2CA, 0xFF7FFFFF), "BF16": (0x7FC1, 0xFF80, 0, 1 << 15, 5, 0x7149, 0xFF7F)}
    found = specials.get(dtype, (0x7E01, 0xFC00, 0, 1 << 15, 5, 0x7BFF, 0xFBFF))
    words = words.copy()
    for number, kind in enumerate(kinds):
        places = np.arange(words.size) % (7, 50, words.size or 1)[number % 3] == number
        words[places] = found[kind]
    return words


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Weights]:
    found = {}
    for name in ("a", "b")[: draw(st.integers(1, 2))]:
        dtype, shape = draw(st.sampled_from(["F32", "BF16", "F16"])), draw(st.sampled_from(SHAPES))
        n = int(np.prod(shape))
        random = draw(st.booleans())
        words = rows.random_bits(n, DTYPE_BY_NAME[dtype].word, 3) if random else rows.gaussian(n, dtype, 4)
        words = hostile(words, dtype, draw(st.lists(st.integers(0, 6), max_size=4)))
        found[name] = Weights(TensorSpec(name, DTYPE_BY_NAME[dtype], shape), words)
    return found


def calibration_of(tensors: dict[str, Weights]) -> Calibration:
    """Made-up inputs and gradients, some of them zero."""
    inputs, gradients = {}, {}
    for name, weights in tensors.items():
        if weights.spec.shape and weights.words.size:
            inputs[name] = numbers(9, weights.spec.row_words, seed=5)
            gradients[name] = numbers(6, weights.words.size, seed=6) * (np.arange(weights.words.size) % 5 > 0)
    return Calibration(inputs=inputs, gradients=gradients)


def check_coded(weights: Weights, fitted: FittedTensor) -> int:
    """The plan codes the words exactly; returns the bytes of the frame."""
    words = fitted.words
    assert words.dtype == weights.words.dtype
    assert words.shape == weights.words.shape
    context = FrameContext(weights.spec, 0, words.size)
    encoded, out = frames.encode(words, fitted.plan, context, 0), np.empty_like(words)
    frames.decode(memoryview(encoded.data), 0, out, "frame", context)
    assert out.tobytes() == words.tobytes()
    return len(encoded.data)


@pytest.mark.parametrize("fit", FITS_HERE, ids=str)
@settings(max_examples=30)
@given(given_tensors=tensors(), calibrated=st.booleans())
def test_any_tensors(fit: Fit, given_tensors: dict[str, Weights], calibrated: bool) -> None:
    data = calibration_of(given_tensors) if calibrated else None
    before = {name: weights.words.tobytes() for name, weights in given_tensors.items()}
    found = fit(given_tensors, data)
    again = fit(given_tensors, data)
    assert found.tensors.keys() == again.tensors.keys() <= given_tensors.keys()
    assert before == {name: weights.words.tobytes() for name, weights in given_tensors.items()}
    for name, fitted in found.tensors.items():
        weights = given_tensors[name]
        assert np.array_equal(fitted.words, again.tensors[name].words)
        check_coded(weights, fitted)
        values, dtype = weights.values(), weights.spec.dtype.name
        odd = ~np.isfinite(values)
        assert np.array_equal(fitted.words[odd], weights.words[odd])
        assert np.isfinite(values_of(fitted.words, dtype)[~odd]).all()
        zero = values == 0
        if zero.sum() * 32 >= zero.size:
            assert not values_of(fitted.words, dtype)[zero].any()


@given(given_tensors=tensors(), bound=st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1e30]), k=st.sampled_from([1, 3, 16]))
def test_a_largest_error_is_held_for_every_weight(given_tensors: dict[str, Weights], bound: float, k: int) -> None:
    for fit in (KMeans(k, max_error=bound), KMeans(k, 2, max_error=bound), KernelVQ(k, max_error=bound), GroupedKMeans(k, 2, max_error=bound)):
        for name, fitted in fit(given_tensors).tensors.items():
            weights = given_tensors[name]
            finite = np.isfinite(weights.values())
            off = values_of(fitted.words, weights.spec.dtype.name)[finite].astype(np.float64) - weights.values()[finite]
            assert (np.abs(off) <= bound).all()
            assert fitted.loss.max_error <= bound


@given(given_tensors=tensors(), error=st.sampled_from([0.0, 1e-9, 1e-3, 0.05, 0.9]))
def test_low_rank_keeps_its_error_budget(given_tensors: dict[str, Weights], error: float) -> None:
    found = LowRank(error)(given_tensors).tensors
    off = total = 0.0
    for name, weights in given_tensors.items():
        finite = np.isfinite(weights.values())
        values = weights.values()[finite].astype(np.float64)
        if weights.spec.shape:
            total += float(np.square(values).sum())
        if name in found:
            off += float(np.square(values_of(found[name].words, weights.spec.dtype.name)[finite] - values).sum())
    assert off <= error * total * (1 + 1e-9)


@given(given_tensors=tensors(), share=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_a_share_of_zeros_is_held(given_tensors: dict[str, Weights], share: float) -> None:
    data = calibration_of(given_tensors)
    for fit in (Magnitude(share), Chita(share), NetTrim(share)):
        for name, fitted in fit(given_tensors, data).tensors.items():
            n_odd = int((~np.isfinite(given_tensors[name].values())).sum())
            n_zero = int((values_of(fitted.words, given_tensors[name].spec.dtype.name) == 0).sum())
            assert n_zero >= min(int(share * fitted.words.size), fitted.words.size - n_odd)


def test_n_of_m_and_blocks_and_filters() -> None:
    weights = weights_of(numbers(16, 8, 3, 3))
    kept = NM(1, 4)({"w": weights}).tensors["w"].words.reshape(-1, 4) != 0
    assert (kept.sum(axis=1) == 1).all()
    values = weights.values().reshape(16, 8, 9)
    channels = NM(2, 4, channels=True)({"w": weights}).tensors["w"].words.reshape(16, 2, 4, 9) != 0
    assert (channels.sum(axis=2) == 2).all()
    assert np.array_equal(channels.reshape(16, 8, 9)[:, :4].any(axis=(0, 2)), np.ones(4, bool))
    blocks = Blocks(0.5, 4, 8)({"w": weights}).tensors["w"].words.reshape(4, 4, 9, 8).transpose(0, 2, 1, 3).reshape(36, 32) != 0
    assert sorted({int(n) for n in blocks.sum(axis=1)}) == [0, 32]
    assert (blocks.sum(axis=1) == 0).sum() == 18
    filters = Filters(0.25)({"w": weights}).tensors["w"].words.reshape(16, -1)
    energies = np.square(values).sum(axis=(1, 2))
    assert np.array_equal(np.flatnonzero(~filters.any(axis=1)), np.sort(energies.argsort()[:4]))


def test_whole_model_pruning_takes_from_layers_of_small_weights() -> None:
    both = {"large": weights_of(10 * numbers(20, 20)), "small": weights_of(numbers(20, 20, seed=1))}
    found = Magnitude(0.5, whole_model=True)(both).tensors
    zeros = {name: int((fitted.words == 0).sum()) for name, fitted in found.items()}
    assert sum(zeros.values()) == 400
    assert zeros["small"] > 300 > 100 > zeros["large"]


@pytest.mark.parametrize(("fit", "bits"), [(NM(2, 4), 0.646), (NM(1, 4), 0.5), (Blocks(0.5, 1, 8), 0.125), (Blocks(0.5, 8, 1), 0.125), (Magnitude(0.8), 0.722)])
def test_masks_take_what_they_tell(fit: Fit, bits: float) -> None:
    """All weights but the zeros are 1, so that the mask is all there is to code; 6 % and 100 bytes for tables and heads."""
    weights = weights_of(numbers(64, 576))
    ones = np.where(fit({"w": weights}).tensors["w"].words != 0, np.uint32(0x3F800000), np.uint32(0))
    masked = Magnitude(0.0)({"w": Weights(weights.spec, ones)}).tensors["w"]
    assert check_coded(weights, masked) < 1.06 * bits * ones.size / 8 + 100


@given(st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 3)), min_size=1, max_size=9, unique_by=lambda pair: pair[0]), st.integers(1, 4))
def test_one_dimensional_clusters_are_the_best_there_are(pairs: list[tuple[int, int]], k: int) -> None:
    points, weights = (np.array(column, np.float64) for column in zip(*sorted(pairs), strict=True))
    found = kmeans.segments(points, weights, k)
    assert _error(points, weights, tuple(found.starts)) == pytest.approx(_least(points, weights, k, 0.0), abs=1e-9)
    priced = kmeans.segments(points, weights, k, price=2.0)
    assert _error(points, weights, tuple(priced.starts), 2.0) == pytest.approx(_least(points, weights, k, 2.0), abs=1e-9)


def _error(points: Array, weights: Array, bounds: tuple[int, ...], price: float = 0.0) -> float:
    """Squared error, and price * bits."""
    total = 0.0
    for i, j in pairwise(bounds):
        w = weights[i:j]
        total += float((w * np.square(points[i:j] - (points[i:j] * w).sum() / w.sum())).sum()) + price * w.sum() * np.log2(weights.sum() / w.sum())
    return total


def _least(points: Array, weights: Array, k: int, price: float) -> float:
    cuts = (cut for number in range(min(k, points.size)) for cut in combinations(range(1, points.size), number))
    return min(_error(points, weights, (0, *cut, points.size), price) for cut in cuts)


def test_far_off_weights_do_not_drag_others_along() -> None:
    values = numbers(200, 400).copy()
    values[3, 4], values[5, 6] = 1e30, -1e30
    fitted = KMeans(16)({"w": weights_of(values)}).tensors["w"]
    found = fitted.words.view(np.float32).reshape(values.shape)
    assert found[3, 4] == pytest.approx(1e30, rel=0.01)
    rest = np.abs(values) < 1
    assert np.square(found[rest] - values[rest]).mean() < 0.02 * np.square(values[rest]).mean()


def test_many_points_are_clustered_nearly_as_few_are() -> None:
    """80,000 different weights go into bins first; 5,000 do not. Quantizers of one Gaussian, both near the best for 16 levels, 0.01154 (Max 1960)."""
    for n in (5_000, 80_000):
        loss = KMeans(16)({"w": weights_of(numbers(n // 100, 100))}).tensors["w"].loss
        assert loss.relative_mse < 0.0117


def test_a_price_finds_better_codebooks_for_their_bits() -> None:
    weights = weights_of(numbers(64, 576))
    plain = KMeans(16)({"w": weights}).tensors["w"]
    priced = KMeans(64, price=3e-5)({"w": weights}).tensors["w"]
    assert priced.loss.relative_mse < plain.loss.relative_mse
    assert check_coded(weights, priced) < 0.985 * check_coded(weights, plain)


def test_at_most_k_different_weights_kernels_and_weights_a_row() -> None:
    weights = weights_of(numbers(32, 16, 3, 3))
    assert np.unique(KMeans(11)({"w": weights}).tensors["w"].words).size == 11
    kernels = KernelVQ(20, bits=4)({"w": weights}).tensors["w"].words
    assert len(np.unique(kernels.reshape(-1, 9), axis=0)) <= 20
    assert np.unique(kernels).size <= 16
    steep = weights_of(numbers(32, 144) * np.where(np.arange(32) % 2, 1, 20)[:, None])
    grouped, single = (fit({"w": steep}).tensors["w"] for fit in (GroupedKMeans(8, 2), KMeans(8)))
    assert all(np.unique(row).size <= 8 for row in grouped.words.reshape(32, 144))
    small = np.square(grouped.words.view(np.float32).reshape(32, 144)[1::2] - steep.values().reshape(32, 144)[1::2]).sum()
    assert small < 0.1 * np.square(single.words.view(np.float32).reshape(32, 144)[1::2] - steep.values().reshape(32, 144)[1::2]).sum()


def test_importance_moves_centroids_to_weights_that_count() -> None:
    values = numbers(40, 50)
    importance = np.where(values > 0.05, 100.0, 1.0)
    plain, weighted = (KMeans(6)({"w": weights_of(values)}, data).tensors["w"] for data in (None, Calibration(importance={"w": importance})))

    def cost(fitted: FittedTensor) -> float:
        return float((importance * np.square(fitted.words.view(np.float32).reshape(values.shape) - values)).sum())

    assert cost(weighted) < 0.6 * cost(plain)


def _layer() -> tuple[Weights, Array, Calibration]:
    """A layer, 400 inputs that are related to each other, gradients of its rows' outputs."""
    mixing = numbers(48, 48, seed=2).astype(np.float64) * (np.arange(48) + 1)[:, None]
    inputs = numbers(400, 48, seed=3).astype(np.float64) @ mixing
    weights = weights_of(numbers(24, 48, seed=4))
    signals = numbers(400, 24, seed=5).astype(np.float64)
    gradients = (signals[:, :, None] * inputs[:, None, :]).reshape(400, -1)
    return weights, inputs, Calibration(inputs={"w": inputs}, gradients={"w": gradients})


def test_calibrated_pruning_hurts_less() -> None:
    weights, inputs, data = _layer()

    def answers(found: Fitted) -> Array:
        return inputs @ (found.tensors["w"].words.view(np.float32).astype(np.float64)).reshape(24, 48).T

    def response_error(found: Fitted, shape: Callable[[Array], Array] = np.asarray) -> float:
        return float(np.square(shape(answers(found)) - shape(inputs @ weights.values().reshape(24, 48).T)).sum())

    def loss_model(found: Fitted) -> float:
        return float(np.square(data.gradients["w"] @ (found.tensors["w"].words.view(np.float32) - weights.values())).sum())

    plain, trimmed, chita = (fit({"w": weights}, data) for fit in (Magnitude(0.5), NetTrim(0.5), Chita(0.5)))
    assert response_error(trimmed) < 0.5 * response_error(plain)
    assert loss_model(chita) < 0.3 * loss_model(plain)
    rectified = NetTrim(0.5, relu=True)({"w": weights}, data)
    assert response_error(rectified, lambda x: np.maximum(x, 0)) < response_error(trimmed, lambda x: np.maximum(x, 0))


def test_calibrated_low_rank_keeps_the_response() -> None:
    weights, inputs, data = _layer()
    plain, calibrated = (LowRank(0.05)({"w": weights}, d).tensors["w"] for d in (None, data))
    wanted = inputs @ weights.values().reshape(24, 48).T
    errors = [float(np.square(inputs @ f.words.view(np.float32).reshape(24, 48).T - wanted).sum() / np.square(wanted).sum()) for f in (plain, calibrated)]
    assert errors[1] < 0.06
    assert check_coded(weights, calibrated) < check_coded(weights, plain)


def test_a_product_of_thin_matrices_takes_little() -> None:
    values = numbers(300, 6) @ numbers(6, 200, seed=1)
    fitted = LowRank(0.001)({"w": weights_of(values)}).tensors["w"]
    assert fitted.loss.relative_mse <= 0.001
    assert check_coded(weights_of(values), fitted) < 500 * 6 * 7 / 8 + 200


def test_deep_compression() -> None:
    """Prune, cluster, code: fewer bits than either alone, zeros kept, at the error that both make together."""
    weights = weights_of(numbers(64, 576))
    pruned, clustered, both = (fit({"w": weights}).tensors["w"] for fit in (Magnitude(0.6), KMeans(16), Magnitude(0.6) | KMeans(16)))
    assert np.array_equal(both.words == 0, pruned.words == 0)
    assert check_coded(weights, both) < min(check_coded(weights, pruned), 0.75 * check_coded(weights, clustered))
    assert both.loss.relative_mse == pytest.approx(weights.loss(both.words).relative_mse)
    assert both.loss.relative_mse < pruned.loss.relative_mse + clustered.loss.relative_mse


@pytest.mark.parametrize(
    "make",
    [
        lambda: Magnitude(1.1),
        lambda: NM(5, 4),
        lambda: NM(0, 4),
        lambda: Blocks(0.5, 0, 1),
        lambda: Filters(-1),
        lambda: Chita(0.5, 0.0),
        lambda: KMeans(0),
        lambda: KMeans(4, 0),
        lambda: KMeans(4, 2, price=0.1),
        lambda: KMeans(4, max_error=-1.0),
        lambda: KernelVQ(70_000),
        lambda: GroupedKMeans(8, 300),
        lambda: LowRank(1.0),
        lambda: LowRank(float("nan")),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], Fit]) -> None:
    with pytest.raises(BadRecipe):
        make()


def test_statistics_of_another_model_are_refused() -> None:
    weights = weights_of(numbers(4, 6))
    for data in (
        Calibration(importance={"w": np.ones(23)}),
        Calibration(importance={"w": -np.ones(24)}),
        Calibration(moments={"w": np.full((6, 6), np.nan)}),
        Calibration(inputs={"w": np.ones((3, 7))}),
    ):
        with pytest.raises(BadRecipe):
            KMeans(4)({"w": weights}, data)
    with pytest.raises(BadRecipe):
        LowRank(0.1)({"w": weights}, Calibration(moments={"w": -np.eye(6)}))


def test_every_fit_here_is_registered() -> None:
    places = {f"{type(fit).__module__.rsplit('.', 1)[1]}:{type(fit).__name__}" for fit in FITS_HERE if type(fit).__name__ != "Chain"}
    assert places <= set(FITS.values())


@pytest.mark.parametrize(("padding", "stride"), [(1, 2), ("same", 1), ((0, 1), (2, 1)), ("valid", 1)])
def test_statistics_of_a_torch_model(padding: int | str | tuple[int, int], stride: int | tuple[int, int]) -> None:
    """Second moments and per-sample gradients are those of the layers' inputs and of the loss; calibrated fits take them."""
    torch = pytest.importorskip("torch")
    from modelcodec.fit import collect

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 6, 3, padding=padding, stride=stride), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5))
    images = torch.randn(8, 2, 6, 6)
    model(images)
    moments = collect.moments(model, [images[:5], images[5:]], lambda m, batch: m(batch)).moments
    hidden = torch.relu(model[0](images)).reshape(8, -1).double()
    assert np.allclose(moments["3.weight"], (hidden.T @ hidden / 8).detach().numpy(), atol=1e-6)
    squares = torch.square(model[0](images) - model[0].bias[:, None, None]).mean(dim=(0, 2, 3)).detach().numpy()
    kernels = model[0].weight.detach().reshape(6, -1).numpy()
    assert np.allclose(np.einsum("ri,ij,rj->r", kernels, moments["0.weight"], kernels), squares, rtol=1e-4)

    found = collect.gradients(model, images.split(1), lambda m, x: torch.square(m(x)).sum())
    torch.square(model(images)).sum().backward()
    assert np.allclose(found.gradients["3.weight"].sum(axis=0), model[3].weight.grad.reshape(-1).numpy(), rtol=1e-3, atol=1e-4)
    assert found.importance["0.weight"].shape == (6 * 2 * 9,)
    tensors = {name: weights_of(dict(model.named_parameters())[name].detach().numpy(), name=name) for name in ("0.weight", "3.weight")}
    assert Chita(0.5)(tensors, found).tensors.keys() == NetTrim(0.5)(tensors, Calibration(moments=moments)).tensors.keys() == tensors.keys()
