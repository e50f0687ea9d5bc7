"""Self-compressing networks: the price decides how many bits rows keep, rows without bits are zero, and the file shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from digits import accuracy, check_method, digits_task, perceptron  # noqa: E402

import modelcodec  # noqa: E402
from modelcodec.fit.training.levels import STEPS  # noqa: E402
from modelcodec.fit.training.loop import train  # noqa: E402
from modelcodec.fit.training.self_compressing import Depths, SelfCompressing  # noqa: E402

N_WEIGHTS = 64 * 48 + 48 * 32 + 32 * 10


def _bytes(path: Path) -> int:
    return sum(tensor.n_bytes_coded for tensor in modelcodec.inspect(path).tensors if tensor.loss is not None)


def test_it_trains_resumes_and_loads_and_takes_no_more_than_its_bits(tmp_path: Path) -> None:
    method = SelfCompressing(0.3, bits=6)
    trained, path = check_method(method, digits_task(epochs=6), tmp_path)
    training = method.begin(perceptron())
    assert float(training.bits_per_weight().detach()) == 6
    rows = 48 + 32 + 10
    assert _bytes(path) < N_WEIGHTS * 6 / 8 * 0.75 + rows + 3 * 80
    assert accuracy(trained.model) > 0.75


def test_a_higher_price_leaves_fewer_bits_and_rows_vanish(tmp_path: Path) -> None:
    sizes, gone = [], []
    for price in (0.0, 10.0):
        trained = train(digits_task(epochs=8, rate=5e-3), SelfCompressing(price, bits=4))
        path = tmp_path / f"{price}.mcodec.safetensors"
        trained.save(path, level=9)
        sizes.append(_bytes(path))
        gone.append(sum(int((x == 0).all(1).sum()) for x in trained.model.state_dict().values() if x.dim() > 1))
    assert gone[0] == 0
    assert gone[1] > 20
    assert sizes[1] < sizes[0] / 2


def test_the_penalty_is_the_mean_of_bits_and_each_row_pays_for_its_weights() -> None:
    training = SelfCompressing(0.5, bits=3, speed=2).begin(perceptron())
    penalty = training.penalty()
    assert float(penalty.detach()) == pytest.approx(1.5)
    penalty.backward()
    for weight, depths in training.levels:
        assert isinstance(depths, Depths)
        row = weight.tensor[0].numel()
        assert torch.allclose(depths.depths.grad, torch.full_like(depths.depths, 0.5 * 2 * row / N_WEIGHTS))


def test_weights_are_cut_and_rounded_as_the_paper_has_it() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 40)
    depths = Depths(weight, bits=3.0, speed=1.0)
    depths.depths.data = torch.tensor([0.0, 1.0, -1.0, -3.0, -5.0])
    value = depths(weight).detach()
    step = torch.from_numpy(STEPS)[depths.exponents].view(-1, 1)
    for row, bits in enumerate((3, 4, 2)):
        half = 2 ** (bits - 1)
        assert torch.equal(value[row], (weight[row] / step[row]).clamp(-half, half - 1).round() * step[row])
    assert not value[3:].any()
