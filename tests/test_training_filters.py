"""Filter pruning: what is left costs what was asked for, trains, resumes, and loads; scores are what their papers say."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

import modelcodec  # noqa: E402
from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit.training import parse_method  # noqa: E402
from modelcodec.fit.training.budget import Costs  # noqa: E402
from modelcodec.fit.training.channels import trace  # noqa: E402
from modelcodec.fit.training.chip import Chip, independence  # noqa: E402
from modelcodec.fit.training.filter_norm import FilterNorm  # noqa: E402
from modelcodec.fit.training.filter_pruning import FilterPruning  # noqa: E402
from modelcodec.fit.training.group_lasso import GroupLasso  # noqa: E402
from modelcodec.fit.training.hrel import HRel, relevance  # noqa: E402
from modelcodec.fit.training.knapsack import Knapsack, packed, taylor  # noqa: E402
from modelcodec.fit.training.narrow import Size, shrunk  # noqa: E402
from tests.digits import N_TRAINED, Residual, accuracy, check_method, digits, digits_task  # noqa: E402

Batch = tuple[Tensor, Tensor]


pytestmark = pytest.mark.usefixtures("one_thread")


def batch(n: int = 60) -> Batch:
    x, y = digits()
    return x[:n], y[:n]


METHODS = (FilterNorm(0.5), Chip(0.5, of="bytes"), HRel(0.5, least=3, residual=True), Knapsack(0.5, batches=2))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_pruned_network_trains_resumes_and_loads(method: FilterPruning, tmp_path: Path) -> None:
    task = digits_task(lambda: Residual(16), epochs=3, rate=1e-2)
    whole = Size.of(task.model(), batch()[0])
    trained, path = check_method(method, task, tmp_path, lambda: shrunk(task.model(), modelcodec.load_file(tmp_path / "trained.mcodec.safetensors", "pt")))
    size = Size.of(trained.model, batch()[0])
    assert size.flops <= 0.5 * whole.flops if method.of == "flops" else size.n_bytes <= 0.5 * whole.n_bytes
    assert path.stat().st_size < 0.55 * whole.n_bytes
    assert accuracy(trained.model) > 0.7
    assert min(layer.out_channels for layer in trained.model.modules() if isinstance(layer, nn.Conv2d)) >= method.least


def test_a_residual_stream_stays_unless_it_is_to_go() -> None:
    task = digits_task(lambda: Residual(16))
    for residual, stream in ((False, 16), (True, 11)):
        model = FilterNorm(0.5, residual=residual).begin(task.model(), [batch()]).model
        assert (model.conv1.out_channels, model.linear.in_features, model.bn3.num_features) == (stream,) * 3
        assert model.conv2.out_channels < 12
    with pytest.raises(BadRecipe, match="let residual ones go"):
        FilterNorm(0.05).begin(task.model(), [batch()])


def test_what_it_cost_and_costs_is_told() -> None:
    model = Residual()
    training = Chip(0.6).begin(model, [batch()])
    assert training.model is model
    assert training.after == Size.of(model, batch()[0])
    assert training.before == Size.of(Residual(), batch()[0])
    assert training.after.flops <= 0.6 * training.before.flops < 1.5 * training.after.flops
    assert training.harden() is None


@pytest.mark.parametrize(
    "text", ["filter_norm(0.5)", "chip(0.5, of=bytes, batches=2)", "hrel(0.5, order=2)", "knapsack(0.5, batches=3)", "group_lasso(1e-4, depth=1e-3)"]
)
def test_methods_have_names(text: str) -> None:
    method = parse_method(text)
    assert repr(method) == repr(replace(method))
    assert "0x" not in repr(method), "a checkpoint knows its method by this text"


@pytest.mark.parametrize("text", ["filter_norm(0)", "chip(1.1)", "chip(0.5, of=size)", "hrel(0.5, order=1)", "knapsack(0.5, batches=0)", "group_lasso(-1)"])
def test_options_out_of_range_are_refused(text: str) -> None:
    with pytest.raises(BadRecipe, match=r"over 0|0 or more"):
        parse_method(text)


def test_without_data_or_within_no_budget_it_says_why() -> None:
    with pytest.raises(BadRecipe, match="no batch of data"):
        Chip(0.5).begin(Residual())
    with pytest.raises(BadRecipe, match="one class a sample"):
        HRel(0.5).begin(Residual(), [(batch()[0], batch()[0])])
    with pytest.raises(BadRecipe, match=r"keep = 0\.01: 0\.\d+ is left"):
        FilterNorm(0.01, least=4).begin(Residual(), [batch()])


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 9, 4), (6, 4, 1)])
def test_independence_is_what_the_nuclear_norm_loses(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    maps = torch.randn(shape)
    wanted = torch.zeros(shape[1])
    for sample in maps if shape[2] > 1 else maps.permute(2, 1, 0):
        for channel in range(shape[1]):
            without = sample.clone()
            without[channel] = 0
            wanted[channel] += torch.linalg.matrix_norm(sample, "nuc") - torch.linalg.matrix_norm(without, "nuc")
    torch.testing.assert_close(independence(maps).float(), wanted, rtol=1e-4, atol=1e-4)


def test_a_channel_that_another_can_replace_is_the_least_independent() -> None:
    torch.manual_seed(0)
    maps = torch.randn(8, 5, 30)
    maps[:, 3] = 0.9 * maps[:, 1]
    assert sorted(independence(maps).argsort()[:2].tolist()) == [1, 3]


def test_relevance_is_the_information_that_maps_have_of_labels() -> None:
    torch.manual_seed(0)
    labels = torch.arange(4).repeat(16)
    telling = nn.functional.one_hot(labels, 4).float() * 5
    maps = torch.stack([telling, telling + torch.randn(64, 4), torch.randn(64, 4)], 1)
    found = relevance(maps, labels)
    assert found[0] > found[1] > found[2]
    torch.testing.assert_close(relevance(1000 * maps, labels), found)
    exact = torch.stack([labels, labels % 2, torch.zeros(64)], 1)[:, :, None].float() * 1e6  # kernels of 0 and 1 alone, after a narrow width
    assert 0.5 < float(relevance(exact, labels)[1]) < float(relevance(exact, labels)[0]) <= 2.0
    assert abs(float(relevance(exact, labels)[2])) < 1e-6  # a constant tells nothing


def test_taylor_importance_is_the_change_of_the_loss_when_a_channel_is_scaled() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 10)).double()
    x, y = batch(5)
    x = x.double()
    channels = trace(model, x)
    found = taylor(model, channels, [((x,), y)], nn.functional.cross_entropy)
    step = 1e-6
    for channel in range(3):
        changes = []
        for sample, label in zip(x, y, strict=True):
            maps = model[:2](sample[None])
            losses = []
            for scale in (1 - step, 1 + step):
                scaled = maps.clone()
                scaled[:, channel] *= scale
                losses.append(nn.functional.cross_entropy(model[2:](scaled), label[None]).item())
            changes.append((losses[1] - losses[0]) / (2 * step))
        assert found[channel] == pytest.approx(np.square(changes).mean(), rel=1e-4)


def test_a_knapsack_is_worth_as_much_as_the_best_of_all_selections() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4))
    costs = Costs.of(trace(model, torch.randn(2, 6)), "flops")
    everything = np.ones(11, bool)
    selections = np.array(list(product((False, True), repeat=11)))
    selections = selections[selections[:, :5].any(1) & selections[:, 5:].any(1)]
    prices = np.array([costs.total(kept) for kept in selections])
    reached = []
    for seed in range(20):
        worth = np.random.default_rng(seed).exponential(size=11)
        for keep in (0.3, 0.6):
            kept = packed(costs, worth, keep, 1, everything)
            assert costs.total(kept) <= keep * costs.total(everything)
            reached.append(worth[kept].sum() / (selections @ worth)[prices <= keep * costs.total(everything)].max())
    assert min(reached) > 0.9
    assert np.mean(reached) > 0.99


def test_group_lasso_removes_channels_and_changes_next_to_nothing(tmp_path: Path) -> None:
    method = GroupLasso(3e-3, threshold=0.1)
    task = digits_task(lambda: Residual(16), epochs=5, rate=3e-2)
    trained, _ = check_method(method, task, tmp_path, lambda: shrunk(task.model(), modelcodec.load_file(tmp_path / "trained.mcodec.safetensors", "pt")))
    whole = Size.of(task.model(), batch()[0])
    assert Size.of(trained.model, batch()[0]).flops < 0.9 * whole.flops
    assert accuracy(trained.model) > 0.7


def test_group_lasso_on_a_shortcut_removes_a_whole_layer() -> None:
    model = Residual()
    training = GroupLasso(0.0, depth=1.0).begin(model, [batch()])
    with torch.no_grad():
        for name in ("conv2.weight", "bn2.weight", "bn2.bias", "conv3.weight"):
            model.get_parameter(name).mul_(1e-3)
    x = batch()[0]
    wanted = model.eval()(x)
    assert float(training.penalty().detach()) < 1
    training.finish()
    assert (model.conv2.out_channels, model.conv3.out_channels) == (1, 8)
    torch.testing.assert_close(model(x), wanted, atol=1e-4, rtol=0)


def test_a_method_that_parametrizes_must_come_after_pruning() -> None:
    model = parse_method("filter_norm(0.5) | dkm(4)").begin(Residual(16), [batch()]).model
    assert model.conv2.parametrizations.weight.original.shape[0] == model.conv2.out_channels < 16
    with pytest.raises(BadRecipe, match="parametrized"):
        parse_method("dkm(4) | filter_norm(0.5)").begin(Residual(), [batch()])
    with pytest.raises(BadRecipe, match="train with group_lasso first"):
        parse_method("group_lasso() | dkm(4)").begin(Residual(), [batch()]).penalty()


def test_it_needs_no_loop_of_ours() -> None:
    x, y = digits()
    torch.manual_seed(0)
    model = Residual(16)
    training = Knapsack(0.5, batches=1).begin(model, [(x[:100], y[:100])])
    optimizer = torch.optim.Adam(training.model.parameters(), 1e-2)
    for places in 3 * torch.arange(N_TRAINED).split(50):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(training.model(x[places]), y[places]) + training.penalty()).backward()
        optimizer.step()
    assert accuracy(training.finish().model) > 0.5
