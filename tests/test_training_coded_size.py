"""The coded size as a loss: near the real bytes, differentiable, and what it saves is saved in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from digits import Residual, accuracy, check_method, digits_task, perceptron  # noqa: E402

import modelcodec  # noqa: E402
from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit.training import parse_method  # noqa: E402
from modelcodec.fit.training.coded_size import CodedSize, Priced  # noqa: E402
from modelcodec.fit.training.dkm import DKM  # noqa: E402
from modelcodec.fit.training.loop import train  # noqa: E402
from modelcodec.fit.training.plain import Plain  # noqa: E402
from modelcodec.fit.trellis import Quantizer  # noqa: E402
from modelcodec.formats import container  # noqa: E402


@pytest.mark.parametrize("round_at", [0.75, 0.2])
def test_trains_resumes_and_ends_on_the_grid(round_at: float, tmp_path: Path) -> None:
    _, path = check_method(CodedSize(1e-5, 0.1, round_at=round_at), digits_task(), tmp_path)
    archive = container.read(memoryview(path.read_bytes()), "coded size")
    assert all(str(archive.frame_head(entry, 0).root).startswith("grid") for entry in archive.tensors if len(entry.spec.shape) > 1)


def test_norms_are_trained_with_the_weights_of_the_file() -> None:
    state = train(digits_task(lambda: Residual(16), epochs=6, rate=1e-2), Plain()).model.state_dict()

    def model() -> torch.nn.Module:
        net = Residual(16)
        net.load_state_dict(state)
        return net

    coarse, scores = 1.4 * float(state["conv3.weight"].square().mean().sqrt()), []
    for round_at in (1.0, 0.5):
        scores.append(accuracy(train(digits_task(model, epochs=2, rate=1e-3), CodedSize(1e-6, coarse, round_at=round_at)).model))
    assert scores[1] > scores[0] + 0.1
    assert scores[1] > 0.8


@pytest.mark.parametrize("states", [1, 8])
@pytest.mark.parametrize("step", [0.1, 0.5])
def test_the_estimate_is_near_the_real_bits_before_it_is_scaled_to_them(states: int, step: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(100, 200) * torch.rand(100, 1)
    priced = Priced("weight", step, Quantizer(states))
    for _ in range(2):
        priced.look(weight)
    forecast = priced.forecast
    assert forecast is not None
    assert 0.9 < forecast.scale < 1.12
    assert float(priced.bits(weight)) == pytest.approx(forecast.n_bits, rel=1e-4)


@pytest.mark.parametrize("step", [0.0, 0.25])
def test_weights_that_follow_the_gradient_really_take_fewer_bits(step: float) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(100, 200).mul(4).round() / 4).requires_grad_()
    priced = Priced("weight", step, Quantizer())
    priced.look(weight.detach())
    before = priced.forecast
    bits = priced.bits(weight)
    (gradient,) = torch.autograd.grad(bits, weight)
    moved = weight.detach() - 0.2 * gradient / gradient.abs().mean()
    assert float(priced.bits(moved)) < float(bits)
    priced.look(moved if step else moved.mul(4).round() / 4)
    assert before is not None
    assert priced.forecast is not None
    assert priced.forecast.n_bits < 0.95 * before.n_bits


def test_a_price_makes_a_smaller_file_of_the_same_step(tmp_path: Path) -> None:
    found = []
    for price in (0.0, 1e-5):
        trained = train(digits_task(epochs=6), CodedSize(price, 0.05))
        found.append((trained.save(tmp_path / f"{price}").n_bytes_coded, accuracy(trained.model)))
    assert found[1][0] < 0.95 * found[0][0]
    assert found[1][1] > found[0][1] - 0.03


def test_without_a_step_it_prices_what_another_method_leaves(tmp_path: Path) -> None:
    sizes = []
    for method in (DKM(8), DKM(8) | CodedSize(1e-3)):
        trained = train(digits_task(epochs=3), method)
        sizes.append(trained.save(tmp_path / f"{len(sizes)}").n_bytes_coded)
        assert trained.model.state_dict()["1.weight"].unique().numel() <= 8
        plain = perceptron()
        plain.load_state_dict(modelcodec.load_file(tmp_path / f"{len(sizes) - 1}", "pt"))
    assert sizes[1] < sizes[0]
    with pytest.raises(BadRecipe, match="different values"):
        CodedSize(1e-6).begin(torch.nn.Linear(100, 100))


def test_bad_options_are_refused() -> None:
    for text in ("coded_size(-1)", "coded_size(1, -1)", "coded_size(1, every=0)", "coded_size(1, round_at=2)"):
        with pytest.raises(BadRecipe, match="coded_size"):
            parse_method(text)
    assert parse_method("dkm(8) | coded_size(1e-7)") == DKM(8) | CodedSize(1e-7)
    with pytest.raises(BadRecipe, match="a larger one"):
        CodedSize(1e-6, 1e-12).begin(torch.nn.Linear(100, 100))
