"""Methods that leave few different weights: as many as they promise, coded at their entropy, and better than rounding afterwards."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
pytest.importorskip("sklearn")

from digits import Residual, accuracy, check_method, digits_task, perceptron  # noqa: E402

import modelcodec  # noqa: E402
from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit import Bits  # noqa: E402
from modelcodec.fit.training import parse_method  # noqa: E402
from modelcodec.fit.training.binary import Binary  # noqa: E402
from modelcodec.fit.training.binary_kernels import BinaryKernels, Selected, assigned, sinkhorn  # noqa: E402
from modelcodec.fit.training.learned_step import LearnedStep, Stepped  # noqa: E402
from modelcodec.fit.training.levels import STEPS  # noqa: E402
from modelcodec.fit.training.loop import train  # noqa: E402
from modelcodec.fit.training.method import Method, Trained  # noqa: E402
from modelcodec.fit.training.ternary import Ternary  # noqa: E402
from modelcodec.fit.trellis import Quantizer  # noqa: E402

HIDDEN = "1.weight"


@cache
def _learned() -> dict[str, torch.Tensor]:
    """The state of a perceptron that knows the digits."""
    model = perceptron()
    task = digits_task(lambda: model)
    optimizer = task.optimizer(model.parameters())
    torch.manual_seed(0)
    for epoch in range(12):
        for batch in task.batches(epoch):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
    return model.state_dict()


def _knowing() -> torch.nn.Module:
    model = perceptron()
    model.load_state_dict(_learned())
    return model


def _wide() -> torch.nn.Module:
    return Residual(16)


def _coded(trained: Trained) -> modelcodec.Report:
    out = BytesIO()
    source = BytesIO(safetensors_torch.save({name: x.contiguous() for name, x in trained.model.state_dict().items()}))
    fit = trained.fit
    assert fit is not None
    return modelcodec.compress(source, out, level=9, fit=lambda tensors: fit(tensors, None))


def _of_row(x: torch.Tensor) -> int:
    return max(row.unique().numel() for row in x)


@pytest.mark.parametrize(
    ("method", "most"), [(LearnedStep(3), 8), (LearnedStep(2, rows=True), 4), (Binary(), 2), (Ternary(), 3), (Ternary("twn", rows=True), 3)]
)
def test_rows_have_as_few_different_weights_as_the_method_says(method: Method, most: int, tmp_path: Path) -> None:
    trained, path = check_method(method, digits_task(), tmp_path)
    plans = {tensor.name: tensor.plan for tensor in modelcodec.inspect(path).tensors}
    for name, x in trained.model.state_dict().items():
        if x.dim() > 1:
            assert _of_row(x) <= most
            assert plans[name].startswith("grid")
            if not getattr(method, "rows", True):
                assert x.unique().numel() <= most


@pytest.mark.parametrize(
    "method", [LearnedStep(2), LearnedStep(4, rows=True), LearnedStep(8), Binary(), Binary(rows=False), Ternary(), Ternary("twn", rows=True)]
)
def test_a_layer_takes_its_entropy(method: Method) -> None:
    torch.manual_seed(0)
    trained = method.begin(torch.nn.Sequential(torch.nn.Linear(400, 300))).finish()
    weight = trained.model[0].weight.detach()
    exponents = trained.fit.exponents["0.weight"]
    numbers = (weight / torch.from_numpy(STEPS[exponents]).view(-1, 1)).round()
    counts = numbers.unique(return_counts=True)[1].double()
    entropy = float(-(counts * (counts / counts.sum()).log2()).sum()) / 8 + exponents.size
    (coded,) = (tensor.n_bytes_coded for tensor in _coded(trained).tensors if tensor.name == "0.weight")
    assert coded < 1.02 * entropy + 80


def test_sub_codebook_kernels_take_their_bits(tmp_path: Path) -> None:
    trained, path = check_method(BinaryKernels(4), digits_task(_wide), tmp_path)
    tensors = {tensor.name: tensor for tensor in modelcodec.inspect(path).tensors}
    for name in ("conv2.weight", "conv3.weight"):
        kernels = trained.model.state_dict()[name].reshape(-1, 9)
        assert len(kernels.unique(dim=0)) <= 16
        assert kernels.abs().unique().numel() == 1
        assert tensors[name].plan.startswith("codebook")
        assert tensors[name].n_bytes_coded < len(kernels) * 4 / 8 + 16 * 9 / 8 + 100


def test_a_wide_layer_of_kernels_takes_little_more_than_its_bits() -> None:
    torch.manual_seed(0)
    trained = BinaryKernels(5).begin(torch.nn.Sequential(torch.nn.Conv2d(64, 128, 3))).finish()
    (coded,) = (tensor.n_bytes_coded for tensor in _coded(trained).tensors if tensor.name == "0.weight")
    assert coded < 1.04 * 64 * 128 * 5 / 8


@pytest.mark.parametrize("method", [LearnedStep(2), Binary(), Ternary("twn")])
def test_training_beats_rounding_at_equal_bytes(method: Method) -> None:
    trained = train(digits_task(_knowing, epochs=3), method)
    weights = [tensor for tensor in _coded(trained).tensors if tensor.loss is not None]
    names, bits = {tensor.name for tensor in weights}, 8 * sum(t.n_bytes_coded for t in weights) / sum(t.n_weights for t in weights)
    out = BytesIO()
    rounding = Bits(bits, Quantizer(states=1, price=0.0, passes=0))
    source = BytesIO(safetensors_torch.save(_learned()))
    modelcodec.compress(source, out, level=9, fit=lambda tensors: rounding({name: tensors[name] for name in names}))
    rounded = perceptron()
    rounded.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in modelcodec.load(out.getvalue()).items()})
    assert accuracy(trained.model) > accuracy(rounded) + 0.01


def test_the_gradient_of_a_step_is_the_papers() -> None:
    torch.manual_seed(0)
    weight, wanted = torch.randn(6, 50), torch.randn(6, 50)
    stepped = Stepped(weight, bits=3, rows=True)
    stepped.octaves.data = torch.linspace(-1, 1, 6)
    value = stepped(weight)
    (value * wanted).sum().backward()
    step = torch.from_numpy(STEPS)[stepped.exponents].view(-1, 1)
    ratio = weight / step
    of_step = torch.where(ratio <= -4, -4.0, torch.where(ratio >= 3, 3.0, ratio.round() - ratio))
    gradient = (of_step * wanted).sum(1) / (50 * 3) ** 0.5
    exact = (stepped.began + stepped.octaves).detach().exp2()
    assert torch.allclose(stepped.octaves.grad * exact * np.log(2), gradient, rtol=1e-4)
    assert torch.equal(value.detach(), ratio.clamp(-4, 3).round() * step)


def test_steps_follow_a_users_own_loop() -> None:
    training = LearnedStep(2).begin(_knowing())
    first = [levels.octaves.detach().clone() for _, levels in training.levels]
    task = digits_task()
    optimizer = torch.optim.SGD(training.model.parameters(), 0.05)
    for batch in task.batches(0):
        optimizer.zero_grad()
        (task.loss(training.model, batch) + training.penalty()).backward()
        optimizer.step()
    assert all(not torch.equal(before, levels.octaves) for before, (_, levels) in zip(first, training.levels, strict=True))
    assert all(float(levels.octaves.detach().abs()) < 2 for _, levels in training.levels)
    model = training.finish().model
    assert model.state_dict().keys() == perceptron().state_dict().keys()
    assert type(model[1]) is torch.nn.Linear


class _Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(40, 16), torch.nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x))


def test_tied_weights_are_rounded_once_and_stay_tied() -> None:
    training = LearnedStep(3, rows=True).begin(_Tied())
    seen = training.model.table.weight.detach().clone()
    model = training.finish().model
    assert model.head.weight is model.table.weight
    assert torch.equal(model.table.weight, seen)
    assert _of_row(seen) <= 8
    with pytest.raises(BadRecipe, match="embeddings do not count"):
        Binary().begin(_Tied())


class _TiedKernels(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Conv2d(8, 8, 3, padding=1)
        self.again.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.first(x))


def test_tied_kernels_are_selected_once_and_stay_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    training = BinaryKernels(4).begin(_TiedKernels())
    optimizer = torch.optim.Adam(training.model.parameters(), 0.01)
    for _ in range(5):
        optimizer.zero_grad()
        training.model(torch.randn(4, 8, 8, 8)).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        seen = training.model.first.weight.clone()
    trained = training.finish()
    assert trained.model.first.weight is trained.model.again.weight
    assert torch.equal(trained.model.first.weight, seen)
    trained.save(tmp_path / "tied.mcodec.safetensors")
    stored = modelcodec.load_file(tmp_path / "tied.mcodec.safetensors", "pt")
    assert "again.weight" not in stored
    assert torch.equal(stored["first.weight"], seen)


@pytest.mark.parametrize("bits", [3, 8])
def test_bfloat16_models_keep_their_levels(bits: int, tmp_path: Path) -> None:
    trained = LearnedStep(bits, rows=True).begin(perceptron().to(torch.bfloat16)).finish()
    report = trained.save(tmp_path / "m.mcodec.safetensors", level=9)
    (hidden,) = (tensor for tensor in report.tensors if tensor.name == HIDDEN)
    assert hidden.plan.startswith("grid")
    assert hidden.n_bytes_coded < bits * 3072 / 8 + 48 + 80
    loaded = modelcodec.load_file(tmp_path / "m.mcodec.safetensors", "pt")
    assert all(torch.equal(loaded[name], x) for name, x in trained.model.state_dict().items())


def test_named_weights_stay_out_and_wrong_options_are_told() -> None:
    trained = parse_method("binary(exact=1.* 5.*)").begin(_knowing()).finish()
    assert torch.equal(trained.model.state_dict()[HIDDEN], _learned()[HIDDEN])
    assert _of_row(trained.model.state_dict()["3.weight"]) == 2
    wrong_ones = {
        "lsq(1)": "2 to 8", "ternary(absmax)": "absmean, twn", "binary_kernels(9)": "1 to 8", "self_compressing(-1)": "price = -1",
        "distill(1, 0)": "temperature",
    }  # fmt: skip
    for wrong, why in wrong_ones.items():
        with pytest.raises(BadRecipe, match=why):
            parse_method(wrong)
    with pytest.raises(BadRecipe, match="no weights are left"):
        Binary(exact="*").begin(_knowing())
    with pytest.raises(BadRecipe, match="no kernels of"):
        BinaryKernels().begin(_knowing())


def test_selections_are_of_different_patterns_and_move() -> None:
    torch.manual_seed(0)
    scores = torch.randn(8, 32)
    relaxed = sinkhorn(scores).exp()
    assert torch.allclose(relaxed.sum(1), torch.ones(8))
    assert float(relaxed.sum(0).max()) < 1.2
    clashing = np.tile(np.arange(5.0), (5, 1))
    assert sorted(assigned(clashing)) == [0, 1, 2, 3, 4]
    weight = torch.randn(16, 16, 3, 3)
    selected = Selected(weight, 3)
    first = selected.selection().argmax(1)
    optimizer = torch.optim.Adam(selected.parameters(), 0.01)
    wanted = torch.where(torch.arange(9) % 2 == 0, 1.0, -1.0).view(3, 3)  # one pattern for all kernels
    for _ in range(60):
        optimizer.zero_grad()
        (selected(weight) - wanted).square().mean().backward()
        optimizer.step()
    last = selected.selection().argmax(1)
    assert last.unique().numel() == 8
    assert not torch.equal(first, last)
    near = (selected.patterns @ wanted.reshape(9))[last].max()
    assert near > (selected.patterns @ wanted.reshape(9))[first].max() or near == 9
