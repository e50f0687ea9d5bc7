"""Promise: rounding with error feedback costs a layer less than rounding by itself, in the bits asked for; what is no number stays; a rerun gives the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from modelcodec.errors import BadRecipe
from modelcodec.fit.allocate import Bits, coded_bytes
from modelcodec.fit.calibration import Bias, Calibration
from modelcodec.fit.gpfq import Gpfq
from modelcodec.fit.obs import Obs
from modelcodec.fit.trellis import Quantized, Quantizer
from modelcodec.fitted import Fitted, Weights, values_of
from modelcodec.kernels import feedback_trellis, trellis
from modelcodec.kernels.feedback_trellis import Curvature, Found
from modelcodec.kernels.trellis import CODES, NO_SHIFTS, Code
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

DRAW = np.random.default_rng(7)


def definite(n: int, seed: int) -> np.ndarray:
    """Second moments of strongly correlated numbers whose mean is not zero."""
    draw = np.random.default_rng(seed)
    samples = draw.standard_normal((4 * n, n)) @ draw.standard_normal((n, n)) + 3
    return samples.T @ samples / len(samples)


def places(indices: np.ndarray, code: Code) -> np.ndarray:
    out = np.empty(indices.size, np.float32)
    trellis.restore(indices.reshape(-1), code.h0, code.h1, 0, NO_SHIFTS, np.full(1, 1 / 256, np.float32), indices.size + 1, 0, out)
    return out.reshape(indices.shape).astype(np.float64)


def found(x: np.ndarray, inputs: np.ndarray, outputs: np.ndarray, code: Code) -> Found:
    none = np.zeros(x.shape, np.int32)
    return feedback_trellis.search(x, Curvature.of(inputs), Curvature.of(outputs), code, 0.0, none, none + 2560, NO_SHIFTS)


def loss(errors: np.ndarray, inputs: np.ndarray, outputs: np.ndarray) -> float:
    return float(np.einsum("ij,ij->", outputs @ errors, errors @ inputs))


def test_factors() -> None:
    matrix = definite(30, 0)
    curvature = Curvature.of(matrix)
    upper = np.triu(curvature.feedback, 1) + np.eye(30)
    assert np.allclose(upper * curvature.diagonal @ upper.T, matrix)


@pytest.mark.parametrize("states", [1, 8, 32])
def test_feedback_pays(states: int) -> None:
    code, inputs, outputs = CODES[states], definite(36, 1), definite(10, 2)
    x = 4 * DRAW.standard_normal((10, 36))
    fed = found(x, inputs, outputs, code)
    errors = places(fed.indices, code) - x
    assert np.allclose(errors, fed.errors)
    alone = places(trellis.search(x.reshape(-1), code).indices, code).reshape(x.shape) - x
    assert loss(errors, inputs, outputs) < 0.6 * loss(alone, inputs, outputs)


def test_without_correlation_it_is_the_plain_search() -> None:
    x, code = 4 * DRAW.standard_normal((1, 300)), CODES[8]
    assert np.array_equal(found(x, np.eye(300), np.eye(1), code).indices[0], trellis.search(x[0], code).indices)


def test_a_diagonal_is_a_matrix() -> None:
    x, code, inputs, diagonal = 4 * DRAW.standard_normal((10, 36)), CODES[8], definite(36, 1), DRAW.uniform(0.5, 2, 10)
    assert np.array_equal(found(x, inputs, diagonal, code).indices, found(x, inputs, np.diag(diagonal), code).indices)


def test_each_scalar_choice_is_the_cheapest_given_those_before() -> None:
    """With one state the search is GPTQ's: the last weight of a row has no alternative that costs less."""
    inputs, x = definite(5, 3), 3 * DRAW.standard_normal((1, 5))
    indices = found(x, inputs, np.eye(1), CODES[1]).indices
    others = (indices + np.array([[0, 0, 0, 0, moved]], np.int32) for moved, in product((-2, -1, 1, 2)))
    least = min(loss(places(other, CODES[1]) - x, inputs, np.eye(1)) for other in others)
    assert loss(places(indices, CODES[1]) - x, inputs, np.eye(1)) <= least


def layer(dtype: str = "F32", seed: int = 4) -> tuple[dict[str, Weights], Calibration]:
    draw = np.random.default_rng(seed)
    values = draw.standard_normal((24, 6, 3, 3)).astype(np.float32)
    words = {"F32": values.view(np.uint32), "F16": values.astype(np.float16).view(np.uint16), "BF16": (values.view(np.uint32) >> 16).astype(np.uint16)}[dtype]
    kernel = Weights(TensorSpec("w", DTYPE_BY_NAME[dtype], values.shape), words.reshape(-1))
    mean = Weights(TensorSpec("mean", DTYPE_BY_NAME["F32"], (24,)), np.zeros(24, np.uint32))
    means = 6 * draw.standard_normal(54)
    moments = definite(54, seed) + np.outer(means, means)
    data = Calibration(moments={"w": moments}, outputs={"w": definite(24, seed + 1)}, means={"w": means}, biases={"w": Bias("mean", 1)})
    return {"w": kernel, "mean": mean}, data


def errors_of(tensors: dict[str, Weights], fitted: Fitted) -> np.ndarray:
    dtype = tensors["w"].spec.dtype.name
    return (values_of(fitted.tensors["w"].words, dtype).astype(np.float64) - tensors["w"].values()).reshape(24, 54)


def bits_of(tensors: dict[str, Weights], fitted: Fitted) -> float:
    made = fitted.tensors["w"]
    return 8 * coded_bytes(tensors["w"], Quantized(made.plan.stage, made.words, 0)) / made.words.size  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("modelled", [True, False])
def test_bits_are_kept_and_the_layer_feels_less(dtype: str, modelled: bool) -> None:
    tensors, data = layer(dtype)
    quantizer = Quantizer(passes=2, modelled=modelled)
    calibrated, plain = Obs(3.5, quantizer, corrected=False)(tensors, data), Bits(3.5, quantizer)({"w": tensors["w"]})
    assert bits_of(tensors, calibrated) <= 3.5
    assert set(calibrated.tensors) == {"w"}
    of = data.moments["w"], data.outputs["w"]
    assert loss(errors_of(tensors, calibrated), *of) < 0.5 * loss(errors_of(tensors, plain), *of)


def test_greedy_paths_cost_more_than_foresight_and_less_than_none() -> None:
    tensors, data = layer()
    diagonal = replace(data, outputs={})
    fits = (Obs(3.5, corrected=False), Gpfq(3.5, corrected=False))
    foresight, greedy = (errors_of(tensors, fit(tensors, diagonal)) for fit in fits)
    none = errors_of(tensors, Bits(3.5)({"w": tensors["w"]}))
    costs = [loss(errors, data.moments["w"], np.eye(24)) for errors in (foresight, greedy, none)]
    assert costs == sorted(costs)


def test_mean_errors_are_taken_up() -> None:
    """With the running mean moved, less is left of the loss than without, and the mean of the outputs is as it was."""
    left = without = 0.0
    for seed in (4, 8, 12):
        tensors, data = layer(seed=seed)
        fitted, plain = Obs(3.5)(tensors, data), Obs(3.5, corrected=False)(tensors, data)
        moved = values_of(fitted.tensors["mean"].words, "F32").astype(np.float64)
        assert np.allclose(moved, errors_of(tensors, fitted) @ data.means["w"], rtol=1e-5, atol=1e-6)
        centred = data.moments["w"] - np.outer(data.means["w"], data.means["w"])
        left += loss(errors_of(tensors, fitted), centred, data.outputs["w"])
        without += loss(errors_of(tensors, plain), data.moments["w"], data.outputs["w"])
    assert left < without


@pytest.mark.parametrize("hostile", [np.nan, np.inf, -np.inf, 1e30, -3e38])
def test_what_no_place_stands_for_stays(hostile: float) -> None:
    tensors, data = layer()
    words = tensors["w"].words.copy()
    words.view(np.float32)[[0, 700, 1295]] = hostile
    tensors["w"] = replace(tensors["w"], words=words)
    fitted = Obs(4.0)(tensors, data).tensors["w"]
    assert np.array_equal(fitted.words[[0, 700, 1295]], words[[0, 700, 1295]])
    given, wanted = (np.delete(found.view(np.float32), [0, 700, 1295]) for found in (fitted.words, words))
    assert np.abs(given - wanted).max() < 1


def table(n_rows: int = 300) -> tuple[dict[str, Weights], Calibration, np.ndarray]:
    """An embedding whose rows are read as often as words are, some never."""
    values = DRAW.standard_normal((n_rows, 24)).astype(np.float32)
    frequencies = 1.0 / np.arange(1, n_rows + 1) ** 1.5
    frequencies[n_rows // 2 :] = 0
    tensors = {"w": Weights(TensorSpec("w", DTYPE_BY_NAME["F32"], values.shape), values.view(np.uint32).reshape(-1))}
    return tensors, Calibration(moments={"w": definite(24, 5)}, outputs={"w": frequencies}), frequencies


def test_rows_that_cost_more_get_finer_steps() -> None:
    """Given as a matrix, the same costs leave all rows the same step."""
    tensors, data, frequencies = table()
    costs = []
    for outputs in (frequencies, np.diag(frequencies)):
        fitted = Obs(2.0)(tensors, replace(data, outputs={"w": outputs}))
        assert bits_of(tensors, fitted) <= 2.0
        errors = values_of(fitted.tensors["w"].words, "F32").astype(np.float64) - tensors["w"].values()
        costs.append(loss(errors.reshape(300, 24), data.moments["w"], np.diag(frequencies)))
    assert costs[0] < 0.5 * costs[1]


def test_bits_that_were_sought_on_some_rows_are_kept_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelcodec.fit import obs

    monkeypatch.setattr(obs, "_SAMPLED", 1200)
    tensors, data, _ = table()
    kernel, of_kernel = layer()
    both = Calibration(moments={**data.moments, "k": of_kernel.moments["w"]}, outputs={**data.outputs, "k": of_kernel.outputs["w"]})
    tensors["k"] = replace(kernel["w"], spec=replace(kernel["w"].spec, name="k"))
    fitted = Obs(2.5)(tensors, both)
    n_bytes = sum(coded_bytes(tensors[name], Quantized(made.plan.stage, made.words, 0)) for name, made in fitted.tensors.items())  # type: ignore[arg-type]
    bits = 8 * n_bytes / sum(weights.words.size for weights in tensors.values())
    assert 2.4 < bits <= 2.5


def test_dead_layers_cost_nothing_and_break_nothing() -> None:
    tensors, data = layer()
    dead = Calibration(moments={"w": np.zeros((54, 54))}, outputs={"w": np.zeros((24, 24))})
    assert bits_of(tensors, Obs(2.0)(tensors, dead)) <= 2.0
    zeros = {**tensors, "w": replace(tensors["w"], words=np.zeros_like(tensors["w"].words))}
    assert not Obs(2.0)(zeros, data).tensors["w"].words.any()


def test_a_rerun_gives_the_same() -> None:
    tensors, data = layer()
    first, again = Obs(2.5)(tensors, data), Obs(2.5)(tensors, data)
    assert all(np.array_equal(first.tensors[name].words, again.tensors[name].words) for name in ("w", "mean"))


def test_what_cannot_be_done_is_refused() -> None:
    tensors, data = layer()
    for fit, given in ((Obs(2.0), None), (Obs(2.0), Calibration()), (Obs(0.01), data)):
        with pytest.raises(BadRecipe, match="obs"):
            fit(tensors, given)
    with pytest.raises(BadRecipe):
        Obs(-1.0)
    with pytest.raises(BadRecipe, match="no data"):
        Obs(2.0)(tensors, Calibration(moments={"w": -definite(54, 1)}))
