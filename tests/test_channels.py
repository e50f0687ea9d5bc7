"""Channels that are removed together: networks of all kinds compute the same without channels that were zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit.training.budget import Costs, remove  # noqa: E402
from modelcodec.fit.training.channels import Channels, trace  # noqa: E402
from modelcodec.fit.training.narrow import Size, flops, narrow, shrunk  # noqa: E402


class Plain(nn.Module):
    """Convolutions, then features per channel in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.norm, self.act = nn.BatchNorm2d(8), nn.PReLU(12)
        self.fc1, self.fc2 = nn.Linear(12 * 9, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.conv1(x))), 2)
        x = self.act(self.conv2(x))[..., :3, :3]
        return self.fc2(functional.relu(self.fc1(x.reshape(x.size(0), -1))))


class Block(nn.Module):
    def __init__(self, given: int, gives: int, pad: int | None) -> None:
        super().__init__()
        self.stride, self.pad = gives // given, pad
        self.conv1, self.bn1 = nn.Conv2d(given, gives, 3, self.stride, 1, bias=False), nn.BatchNorm2d(gives)
        self.conv2, self.bn2 = nn.Conv2d(gives, gives, 3, 1, 1, bias=False), nn.BatchNorm2d(gives)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            sides = (x.shape[1] // 2,) * 2 if self.pad is None else (self.pad,) * 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *sides))
        return functional.relu(x + y)


class PaddedShortcuts(nn.Sequential):
    """A ResNet with shortcuts of type A: zeros for new channels, as many as shapes or as numbers say."""

    def __init__(self, numbers: bool) -> None:
        pads = (4, 8) if numbers else (None, None)
        super().__init__(
            nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), Block(8, 8, None), Block(8, 16, pads[0]), Block(16, 32, pads[1]),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip


class Squeezed(nn.Module):
    """Depthwise and grouped convolutions, squeeze and excitation, a projected shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.depth = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.norm, self.squeeze, self.excite = nn.BatchNorm2d(16), nn.Linear(16, 6), nn.Linear(6, 16)
        self.grouped, self.project, self.last = nn.Conv2d(16, 24, 3, padding=1, groups=4), nn.Conv2d(8, 24, 1), nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = functional.relu(self.wide(x))
        y = functional.relu6(self.norm(self.depth(wide)))
        b, c, _, _ = y.size()
        scale = torch.sigmoid(self.excite(functional.relu(self.squeeze(y.mean((2, 3))))))
        y = self.grouped(y * scale.view(b, c, 1, 1)) + self.project(wide)
        return self.last(functional.relu(y)).mean((2, 3))


class Joined(nn.Module):
    """Concatenations, a transposed convolution, a layer used twice, channels last for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.twice = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(9, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.up, self.mix, self.fc = nn.ConvTranspose2d(12, 8, 2, 2), nn.ConvTranspose2d(8, 8, 3, groups=4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = functional.relu(self.a(x))
        b = functional.relu(self.twice(functional.relu(self.twice(self.b(torch.cat([x, a], 1))))))
        y = functional.relu(self.mix(self.up(torch.cat([a, b], dim=1))))
        return self.fc(y.permute(0, 2, 3, 1).contiguous()).flatten(1, 2).mean(1)


class Sequence(nn.Module):
    """A Transformer's layer: only what is between the linear layers of its perceptron can go."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.qkv, self.out = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc1, self.fc2 = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out((q @ k.transpose(-1, -2)).softmax(-1) @ v)
        return x + self.fc2(functional.gelu(self.fc1(self.norm(x))))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "plain": (Plain, (3, 14, 14), 36),
    "pads by shapes": (lambda: PaddedShortcuts(False), (3, 8, 8), 8 + 16 + 32 + 2),
    "pads by numbers": (lambda: PaddedShortcuts(True), (3, 8, 8), 8 + 16 + 32 + 8),
    "squeezed": (Squeezed, (3, 6, 6), 6 + 4),
    "joined": (Joined, (3, 6, 6), 6 + 6 + 4),
    "sequence": (Sequence, (7, 5), 32),
}  # fmt: skip
"""How it is made, what one sample looks like, how many units it has."""


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape, _ = MODELS[name]
    model = make().double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.bias.normal_()
    return model.eval(), torch.randn(2, *shape, dtype=torch.double)


def silence(model: nn.Module, channels: Channels, kept: np.ndarray) -> None:
    """Let the channels that go be zero."""
    stays = np.append(kept, True)
    with torch.no_grad():
        for name, units in [*((n, layer.outputs) for n, layer in channels.layers.items()), *((n, vector.units) for n, vector in channels.vectors.items())]:
            module, gone = model.get_submodule(name), torch.from_numpy(~stays[units])
            if isinstance(module, nn.ConvTranspose2d):
                of_group = gone.view(module.groups, -1)
                for group, weight in enumerate(module.weight.chunk(module.groups)):
                    weight[:, of_group[group]] = 0
            else:
                module.weight[gone] = 0
            if getattr(module, "bias", None) is not None:
                module.bias[gone] = 0


def half(channels: Channels) -> np.ndarray:
    """Units that stay when about half of the multiply-adds go, in an order by chance."""
    costs = Costs.of(channels, "flops")
    order = np.random.default_rng(1).permutation(channels.n_units)
    fixed = costs.total(np.zeros(channels.n_units, bool)) / costs.total(np.ones(channels.n_units, bool))
    return remove(costs, order, 0.5 + fixed / 2, 1)


@pytest.mark.parametrize("name", MODELS)
def test_without_channels_that_are_zero_a_network_computes_the_same(name: str) -> None:
    model, x = made(name)
    channels = trace(model, x)
    assert channels.n_units == MODELS[name][2]
    kept = half(channels)
    silence(model, channels, kept)
    before, wanted = Size.of(model, x), model(x)
    narrow(model, channels, kept)
    after = Size.of(model, x)
    assert after.flops < 0.8 * before.flops
    assert after.weights < before.weights
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-12)
    model.train()(x).sum().backward()  # and it trains


@pytest.mark.parametrize("name", MODELS)
def test_costs_foretell_what_the_smaller_network_costs(name: str) -> None:
    model, x = made(name)
    channels = trace(model, x)
    kept = half(channels)
    everything = np.ones_like(kept)
    of_flops, of_bytes, before = Costs.of(channels, "flops"), Costs.of(channels, "bytes"), Size.of(model, x)
    assert of_flops.total(everything) == before.flops
    narrow(model, channels, kept)
    after = Size.of(model, x)
    assert of_flops.total(kept) == after.flops
    assert of_bytes.total(everything) - of_bytes.total(kept) == before.n_bytes - after.n_bytes


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_network_is_shrunk_to_a_state(name: str) -> None:
    model, x = made(name)
    channels = trace(model, x)
    narrow(model, channels, half(channels))
    fresh = shrunk(MODELS[name][0]().double(), model.state_dict())
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), model(x))
    assert str(fresh) == str(model)


def test_modes_and_running_statistics_stay_as_they_were() -> None:
    model, x = made("squeezed")
    model.train()
    model.norm.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, x)
    assert flops(model, x) == flops(model, x[:1])
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class Fixed(nn.Module):
    """Sizes written as numbers, weights used elsewhere, channels mixed by a norm: nothing can go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.tied = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 1)
        self.again, self.fc, self.last = nn.Conv2d(8, 8, 1), nn.Linear(8 * 16, 6), nn.Linear(6, 6)
        self.again.weight = self.tied.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(functional.relu(self.tied(self.norm(self.conv(x)))))
        return functional.linear(self.last(self.fc(x.view(-1, 128))), self.last.weight)


def test_what_the_tracing_cannot_follow_stays() -> None:
    model, x = Fixed(), torch.randn(2, 3, 4, 4)
    channels = trace(model, x)
    assert channels.n_units == 0
    narrow(model, channels, np.ones(0, bool))
    assert model.again.weight is model.tied.weight


class Depends(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced_says_where() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Depends()))
    with pytest.raises(BadRecipe, match=r"Sequential cannot be traced, in 1\.1: .*control flow"):
        trace(model, torch.randn(2, 4))


def test_a_parametrized_layer_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(BadRecipe, match="1 is parametrized"):
        trace(model, torch.randn(2, 4))


@pytest.mark.parametrize("state", [{"0.weight": torch.zeros(5, 4)}, {"0.weight": torch.zeros(3, 4, 1)}])
def test_a_state_of_another_network_is_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(BadRecipe, match=r"0\.weight: .* in the file"):
        shrunk(nn.Sequential(nn.Linear(4, 4)), state)
