"""Promise: a fit keeps what it says: its bound, the zeros and the words that are no numbers; the plan codes exactly its words; a rerun gives the same."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from itertools import combinations, pairwise, permutations
from pathlib import Path

import numpy as np
import pytest
import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import Array

from modelcodec import frame as frames
from modelcodec.errors import BadRecipe
from modelcodec.fit import FITS, fit_named
from modelcodec.fit.allocate import Bits, MaxError, Size, Snr
from modelcodec.fit.batchnorm import BatchNorms
from modelcodec.fit.blocks import Blocks
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.chain import Fit, Fitting
from modelcodec.fit.chita import Chita
from modelcodec.fit.equalize import Equalize, Pair
from modelcodec.fit.filters import Filters
from modelcodec.fit.fp8 import Fp8
from modelcodec.fit.gpfq import Gpfq
from modelcodec.fit.jlcm import GroupedKMeans
from modelcodec.fit.kernel_vq import KernelVQ
from modelcodec.fit.kmeans import KMeans
from modelcodec.fit.lowrank import LowRank
from modelcodec.fit.magnitude import Magnitude
from modelcodec.fit.nettrim import NetTrim
from modelcodec.fit.nm import NM
from modelcodec.fit.nupes import Nupes
from modelcodec.fit.obs import Obs
from modelcodec.fit.trellis import Quantizer, Trellis
from modelcodec.fitted import Fitted, FittedTensor, Weights, values_of
from modelcodec.kernels import kmeans
from modelcodec.stage import FrameContext
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

SHAPES = ((), (0,), (5,), (3, 0), (1, 40), (40, 1), (8, 16), (30, 20), (6, 4, 3, 3), (4, 4, 1, 1), (2, 3, 5))
Tensors = dict[str, Weights]


def equalize(tensors: Tensors) -> Equalize:
    """Whatever tensors can follow each other."""
    matrices = {name: weights.spec for name, weights in tensors.items() if len(weights.spec.shape) > 1 and weights.words.size}
    follow = [Pair(a, b) for a, b in permutations(matrices, 2) if matrices[b].row_words % matrices[a].shape[0] == 0]
    return Equalize(follow or [Pair(name) for name in matrices])


def batch_norms(tensors: Tensors) -> BatchNorms:
    """Of a model with the vector `norm.running_mean`."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(OrderedDict(norm=torch.nn.BatchNorm1d(5))).eval()
    return BatchNorms(model, [torch.from_numpy(numbers(7, 5))], lambda m, batch: m(batch))


ROWS: dict[str, tuple[Fitting | Callable[[Tensors], Fitting], ...]] = {
    "trellis": (Trellis(0.02), Trellis(0.02, Quantizer(states=1, price=0.0, modelled=False))),
    "bits": (Bits(4.0), Bits(16.0, Quantizer(modelled=False))),
    "size": (Size(4000),),
    "snr": (Snr(20.0), Snr(120.0)),
    "max_error": (MaxError(0.01), MaxError(0.1, relative=True), MaxError(0.05, relative=True, block=32), MaxError(1e-3, modelled=False)),
    "prune": (Magnitude(0.5), Magnitude(0.3, whole_model=True)),
    "n_of_m": (NM(2, 4), NM(1, 4, channels=True)),
    "blocks": (Blocks(0.5, 2, 3),),
    "filters": (Filters(0.25),),
    "chita": (Chita(0.4),),
    "nettrim": (NetTrim(0.4), NetTrim(0.4, relu=True)),
    "kmeans": (KMeans(8), KMeans(1), KMeans(8, price=1e-3), KMeans(4, dimension=3, max_error=0.01)),
    "kernel_vq": (KernelVQ(4, bits=3),),
    "jlcm": (GroupedKMeans(4, 3, max_error=0.05),),
    "lowrank": (LowRank(0.1),),
    "obs": (Obs(5.0), Obs(16.0, Quantizer(modelled=False))),
    "gpfq": (Gpfq(6.0),),
    "nupes": (Nupes(4), Nupes(8, power=0.5), Nupes(3, max_error=0.01)),
    "fp8": (Fp8(), Fp8(5), Fp8(rows=True), Fp8(1, rows=True, max_error=0.01)),
    "equalize": (equalize,),
    "batchnorm": (batch_norms,),
}
"""A fit, or what makes one for some tensors."""
CHAINS = (
    Magnitude(0.5) | KMeans(8),
    Magnitude(0.5) | LowRank(0.1),
    LowRank(0.1) | Magnitude(0.5),
    KMeans(16) | NM(2, 4) | KernelVQ(8),
    MaxError(0.01) | Fp8(),
    Magnitude(0.5) | Trellis(0.02) | MaxError(0.1),
)
MASKS_STAY = set(FITS) - {"trellis", "bits", "size", "snr", "max_error", "obs", "gpfq", "batchnorm"}
"""Fits that keep zeros where many are."""
EVERY = [pytest.param(name, fit, id=f"{name}: {getattr(fit, '__name__', fit)}"[:60]) for name, fits in {**ROWS, "chain": CHAINS}.items() for fit in fits]


def of(fit: Fitting | Callable[[Tensors], Fitting], tensors: Tensors) -> Fitting:
    return fit(tensors) if fit in (equalize, batch_norms) else fit  # type: ignore[call-arg, return-value]


def test_every_fit_has_a_row() -> None:
    assert ROWS.keys() == FITS.keys()
    for name, fits in ROWS.items():
        assert all(isinstance(fit, fit_named(name)) for fit in fits if fit not in (equalize, batch_norms))


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
def tensors(draw: st.DrawFn) -> Tensors:
    found = {}
    for name in ("a", "b", "norm.running_mean")[: draw(st.integers(1, 3))]:
        dtype, shape = draw(st.sampled_from(["F32", "BF16", "F16"])), draw(st.sampled_from(SHAPES)) if len(name) == 1 else (5,)
        n = int(np.prod(shape))
        random = draw(st.booleans())
        words = rows.random_bits(n, DTYPE_BY_NAME[dtype].word, 3) if random else rows.gaussian(n, dtype, 4)
        words = hostile(words, dtype, draw(st.lists(st.integers(0, 6), max_size=4)))
        found[name] = Weights(TensorSpec(name, DTYPE_BY_NAME[dtype], shape), words)
    return found


def calibration_of(tensors: Tensors) -> Calibration:
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


@pytest.mark.parametrize(("kind", "fit"), EVERY)
@settings(max_examples=30)
@given(given_tensors=tensors(), calibrated=st.booleans())
def test_any_tensors(kind: str, fit: Fitting, given_tensors: Tensors, calibrated: bool) -> None:
    data = calibration_of(given_tensors) if calibrated else None
    before = {name: weights.words.tobytes() for name, weights in given_tensors.items()}
    try:
        found = of(fit, given_tensors)(given_tensors, data)
    except BadRecipe:  # too few bits for these, no data, no norm
        return
    again = of(fit, given_tensors)(given_tensors, data)
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
        if kind in MASKS_STAY and zero.sum() * 32 >= zero.size:
            assert not values_of(fitted.words, dtype)[zero].any()


THREADS = """
import os, sys
n = int(sys.argv[1])
os.environ["OPENBLAS_NUM_THREADS"] = str(n)
os.sched_getaffinity = lambda process: set(range(n))
sys.path[:0] = ["tests", "."]
import test_fits
test_fits.print_digests()
"""


def print_digests() -> None:
    """Of what every fit makes of two layers; but BatchNorms, which runs a model."""
    layers = {name: weights_of(numbers(*shape), name=name) for name, shape in (("a", (32, 16, 3, 3)), ("b", (48, 96)))}
    data = calibration_of(layers)
    for name in FITS.keys() - {"batchnorm"}:
        for number, fit in enumerate(ROWS[name]):
            found = of(fit, layers)(layers, data).tensors
            print(name, number, hashlib.sha256(b"".join(found[layer].words.tobytes() + str(found[layer].plan).encode() for layer in sorted(found))).hexdigest())


def test_any_number_of_threads_gives_the_same() -> None:
    found = []
    for threads in ("1", "3"):
        done = subprocess.run([sys.executable, "-c", THREADS, threads], cwd=Path(__file__).resolve().parent.parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(sorted(done.stdout.splitlines()))
    assert found[0] == found[1]
    assert len(found[0]) == sum(map(len, ROWS.values())) - 1


@given(given_tensors=tensors(), bound=st.sampled_from([0.0, 1e-6, 1e-3, 0.1, 1e30]), k=st.sampled_from([1, 3, 16]))
def test_a_largest_error_is_held_for_every_weight(given_tensors: Tensors, bound: float, k: int) -> None:
    clustered = (KMeans(k, max_error=bound), KMeans(k, 2, max_error=bound), KernelVQ(k, max_error=bound), GroupedKMeans(k, 2, max_error=bound))
    for fit in (*clustered, Nupes(4, max_error=bound), Fp8(max_error=bound), Fp8(rows=True, max_error=bound), *((MaxError(bound),) if bound else ())):
        for name, fitted in fit(given_tensors).tensors.items():
            weights = given_tensors[name]
            finite = np.isfinite(weights.values())
            off = values_of(fitted.words, weights.spec.dtype.name)[finite].astype(np.float64) - weights.values()[finite]
            assert (np.abs(off) <= bound).all()
            assert fitted.loss.max_error <= bound


@given(given_tensors=tensors(), error=st.sampled_from([0.0, 1e-9, 1e-3, 0.05, 0.9]))
def test_low_rank_keeps_its_error_budget(given_tensors: Tensors, error: float) -> None:
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
def test_a_share_of_zeros_is_held(given_tensors: Tensors, share: float) -> None:
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
        lambda: Nupes(1),
        lambda: Nupes(4, power=3.0),
        lambda: Nupes(4, max_error=-1.0),
        lambda: Fp8(6),
        lambda: Fp8(max_error=float("nan")),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], Fit]) -> None:
    with pytest.raises(BadRecipe):
        make()


def test_powers_suit_the_weights() -> None:
    """The uniform grid is best for uniform weights, small powers for heavy tails, and golden section finds what a scan finds."""
    even = weights_of(np.linspace(-1, 1, 999, dtype=np.float32).reshape(27, 37))
    tails = weights_of(numbers(100, 100) ** 3)
    for weights in (even, tails):
        scanned = min(Nupes(4, power=power)({"w": weights}).tensors["w"].loss.relative_mse for power in np.geomspace(0.1, 2, 60))
        assert Nupes(4)({"w": weights}).tensors["w"].loss.relative_mse < 1.03 * scanned
    uniform, found = (Nupes(4, power)({"w": tails}).tensors["w"] for power in (1.0, None))
    assert found.loss.relative_mse < 0.5 * uniform.loss.relative_mse
    assert np.unique(found.words).size <= 15
    assert np.abs(found.words.view(np.float32)).max() == np.abs(tails.values()).max()


def test_fp8_numbers_are_those_of_the_format() -> None:
    """With the scale of the tensor and the power of two of its row taken out, ml_dtypes' own E4M3 and E5M2 hold every weight."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    weights = weights_of(numbers(30, 64) * np.exp2(np.arange(30) % 7)[:, None])
    for bits, kind in ((4, ml_dtypes.float8_e4m3fn), (5, ml_dtypes.float8_e5m2)):
        for by_row in (False, True):
            found = Fp8(bits, by_row)({"w": weights}).tensors["w"].words.view(np.float32).reshape(30, 64)
            scales = [(8 + phase) / 8 * 2.0**power for phase in range(8) for power in range(-24, 8)]

            def held(row: Array, scales: list[float] = scales, kind: type = kind) -> bool:
                return any(np.array_equal((row / s).astype(kind).astype(np.float32) * np.float32(s), row) for s in scales)

            assert all(map(held, found)) if by_row else held(found)
            assert np.unique(np.abs(found[0])).size <= 128


def test_fp8_takes_the_format_that_errs_least() -> None:
    even, normal, tails = weights_of(np.linspace(-1, 1, 999, dtype=np.float32).reshape(27, 37)), weights_of(numbers(64, 64)), weights_of(numbers(64, 64) ** 5)
    for weights in (even, normal, tails):
        errors = [Fp8(bits)({"w": weights}).tensors["w"].loss.relative_mse for bits in range(1, 6)]
        assert Fp8()({"w": weights}).tensors["w"].loss.relative_mse == min(errors)
    assert Fp8(1)({"w": even}).tensors["w"].loss.relative_mse < Fp8(2)({"w": even}).tensors["w"].loss.relative_mse
    assert Fp8(4)({"w": tails}).tensors["w"].loss.relative_mse < Fp8(1)({"w": tails}).tensors["w"].loss.relative_mse
    steep = weights_of(numbers(64, 64) * np.exp2(-(np.arange(64) % 9))[:, None])
    assert Fp8(2, rows=True)({"w": steep}).tensors["w"].loss.relative_mse < Fp8(2)({"w": steep}).tensors["w"].loss.relative_mse


@pytest.mark.parametrize("variances", [False, True])
def test_norms_are_measured_on_the_lossy_network(variances: bool) -> None:
    """Each norm's statistics change as what it is given does, by the layers and norms before it as they are now; without a loss nothing changes."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Conv2d(6, 4, 3), torch.nn.BatchNorm2d(4))
    model, batch = torch.nn.Sequential(*layers).eval(), torch.randn(50, 3, 9, 9) + 1
    model[1].running_mean.normal_()
    model[4].running_var.uniform_(0.5, 2)
    tensors = {name: weights_of(held.detach().numpy(), name=name) for name, held in model.state_dict().items() if held.dim()}
    halved = Magnitude(0.5)({name: weights for name, weights in tensors.items() if len(weights.spec.shape) > 1})
    before = {name: held.clone() for name, held in model.state_dict().items()}
    was = {norm: model[:norm](batch).transpose(0, 1).flatten(1) for norm in (1, 4)}
    found = ((lambda given, data: halved) | BatchNorms(model, [batch], lambda m, x: m(x), variances))(tensors).tensors
    assert all(torch.equal(held, before[name]) for name, held in model.state_dict().items())
    kinds = ("running_mean", "running_var") if variances else ("running_mean",)
    assert found.keys() == {*halved.tensors, *(f"{norm}.{kind}" for norm in (1, 4) for kind in kinds)}
    given = {name: torch.from_numpy(fitted.words.view(np.float32).copy()).reshape(before[name].shape) for name, fitted in found.items()}
    model.load_state_dict(given, strict=False)
    for norm in (1, 4):
        given = model[:norm](batch).transpose(0, 1).flatten(1)
        assert torch.allclose(model[norm].running_mean, before[f"{norm}.running_mean"] + given.mean(1) - was[norm].mean(1), atol=1e-5)
        ratio = given.var(1) / was[norm].var(1) if variances else 1
        assert torch.allclose(model[norm].running_var, before[f"{norm}.running_var"] * ratio, rtol=1e-3)
    model.load_state_dict(before)
    for name, fitted in BatchNorms(model, [batch], lambda m, x: m(x), variances)(tensors).tensors.items():
        assert np.array_equal(fitted.words, tensors[name].words)
    with pytest.raises(BadRecipe, match="none"):
        BatchNorms(model, [batch], lambda m, x: m(x))({"other": weights_of(numbers(6))})
    with pytest.raises(BadRecipe, match="eval"):
        BatchNorms(model.train(), [batch], lambda m, x: m(x))(tensors)


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
