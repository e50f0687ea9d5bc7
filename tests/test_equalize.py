"""Promise: equalization finds the layers that follow each other, moves ranges between them, and leaves what the network computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcodec.errors import BadRecipe
from modelcodec.fit.equalize import Equalize, Norm, Pair
from modelcodec.fit.nupes import Nupes
from modelcodec.fit.rules import Ruled
from modelcodec.fitted import DTYPES, Fitted, Weights, values_of
from modelcodec.kernels.casts import rounded
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

torch = pytest.importorskip("torch")
nn = torch.nn
Tensors = dict[str, Weights]


def tensors_of(state: dict[str, torch.Tensor], dtype: str = "F32") -> Tensors:
    return {
        name: Weights(TensorSpec(name, DTYPE_BY_NAME[dtype], tuple(held.shape)), rounded(held.detach().numpy().astype(np.float32).reshape(-1), dtype))
        for name, held in state.items()
        if held.is_floating_point()
    }


def state_of(tensors: Tensors, fitted: Fitted) -> dict[str, torch.Tensor]:
    words = {name: fitted.tensors[name].words if name in fitted.tensors else weights.words for name, weights in tensors.items()}
    return {name: torch.from_numpy(values_of(words[name], w.spec.dtype.name).copy()).reshape(w.spec.shape) for name, w in tensors.items()}


class Net(nn.Module):
    """A plain convolution, a depthwise one, one of two groups, a branch, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.depthwise, self.depthwise_norm = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=2)
        self.branch = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12 * 4, 10)
        self.last = nn.Linear(10, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.depthwise_norm(self.depthwise(self.act(self.stem_norm(self.stem(x))))))
        x = torch.relu(self.grouped(x))
        x = nn.functional.max_pool2d(self.act(self.branch(x)) + x, 3)
        return self.last(nn.functional.relu(self.head(torch.flatten(x, 1))))


EXPECTED = {
    Pair("stem.weight", "depthwise.weight", "stem.bias", Norm("stem_norm", 1e-5), 8),
    Pair("depthwise.weight", "grouped.weight", None, Norm("depthwise_norm", 1e-5), 2),
    Pair("head.weight", "last.weight", "head.bias"),
}


@pytest.fixture
def net() -> nn.Module:
    """Of channels whose ranges differ by factors of a hundred."""
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= torch.exp(torch.empty(len(module.weight)).uniform_(-2.3, 2.3)).reshape(-1, *(1,) * (module.weight.dim() - 1))
        if isinstance(module, nn.BatchNorm2d):
            for held in (module.weight, module.running_var):
                held.data.uniform_(0.1, 3)
            for held in (module.bias, module.running_mean):
                held.data.normal_()
            module.weight.data[2] *= -1
            module.weight.data[3] = 0
    return net.eval().requires_grad_(False)


def test_layers_that_follow_each_other_are_found(net: nn.Module) -> None:
    from modelcodec.fit.tracing import pairs

    assert set(pairs(net)) == EXPECTED
    without_factors, other_map = (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6, affine=False), nn.ReLU()), (nn.Conv1d(6, 6, 3), nn.Sigmoid())
    chain = nn.Sequential(*without_factors, *other_map, nn.Conv1d(6, 2, 3), nn.BatchNorm1d(2))
    assert set(pairs(chain)) == {Pair("5.weight", None, "5.bias", Norm("6", 1e-5))}
    flat = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3), nn.Flatten(), nn.Linear(3, 3))
    assert set(pairs(flat)) == {Pair("0.weight", "3.weight", "0.bias")}
    tied = nn.Linear(4, 4)
    assert pairs(nn.Sequential(tied, nn.ReLU(), tied)) == ()


def test_models_that_cannot_be_traced_are_refused() -> None:
    from modelcodec.fit.tracing import pairs

    class Depends(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(BadRecipe, match="traced"):
        pairs(Depends())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_network_computes_stays(net: nn.Module, dtype: str) -> None:
    tensors, x = tensors_of(net.state_dict(), dtype), torch.randn(16, 3, 8, 8)
    fitted = Equalize(tuple(EXPECTED))(tensors)
    net.load_state_dict(state_of(tensors, Fitted()), strict=False)
    before = net(x)
    net.load_state_dict(state_of(tensors, fitted), strict=False)
    precision = {"F32": 1e-5, "F16": 4e-3, "BF16": 3e-2}[dtype]
    assert float((net(x) - before).square().mean().sqrt()) < precision * float(before.square().mean().sqrt())
    first, second = (values_of(fitted.tensors[name].words, dtype).reshape(-1, columns) for name, columns in (("head.weight", 48), ("last.weight", 10)))
    assert np.allclose(np.abs(first).max(axis=1), np.abs(second).max(axis=0), rtol=0.02)


def test_one_step_a_tensor_hurts_less(net: nn.Module) -> None:
    tensors, x = tensors_of(net.state_dict()), torch.randn(64, 3, 8, 8)
    before, every = net(x), Ruled(usual=Nupes(6, power=1.0))

    def error(fit: Callable[..., Fitted]) -> float:
        net.load_state_dict(state_of(tensors, fit(tensors, None)), strict=False)
        return float((net(x) - before).square().mean())

    assert error(Equalize(tuple(EXPECTED)) | every) < 0.5 * error(every)


def test_pairs_of_another_model_are_refused(net: nn.Module) -> None:
    tensors = tensors_of(net.state_dict())
    wrong = Pair("none"), Pair("stem.bias"), Pair("stem.weight", "last.weight"), Pair("stem.weight", "stem.weight"), Pair("stem.weight", bias="head.bias")
    for pair in wrong:
        with pytest.raises(BadRecipe, match="equalize"):
            Equalize((pair,))(tensors)
    for groups in (0, 3, -2):
        with pytest.raises(BadRecipe, match="groups"):
            Equalize((Pair("stem.weight", "depthwise.weight", groups=groups),))(tensors)


TOUCHED = ("stem.weight", "stem_norm.weight", "stem_norm.bias", "stem_norm.running_mean", "stem_norm.running_var", "depthwise.weight")
HOSTILE = st.sampled_from([0.0, -0.0, 1e30, -3e38, 1e-42, float("nan"), float("inf"), float("-inf"), -1.0])


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(TOUCHED), st.tuples(st.integers(0, 7), HOSTILE)), st.sampled_from(DTYPES))
def test_numbers_stay_numbers(changes: dict[str, tuple[int, float]], dtype: str) -> None:
    torch.manual_seed(1)
    state = Net().state_dict()
    for name, (place, number) in changes.items():
        state[name].reshape(-1)[place] = number
    tensors = tensors_of(state, dtype)
    found = Equalize(tuple(EXPECTED))(tensors)
    for name, fitted in found.tensors.items():
        finite = np.isfinite(tensors[name].values())
        assert np.isfinite(values_of(fitted.words, dtype)[finite]).all()
        assert np.array_equal(fitted.words[~finite], tensors[name].words[~finite])
