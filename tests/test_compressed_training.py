"""Training compressed weights, updated inside backward, goes as plain training does, to the bit; what cannot go so is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils.checkpoint import checkpoint  # noqa: E402

from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.runtime import compressed_weight as weights  # noqa: E402
from modelcodec.runtime.compressed_module import compress_module  # noqa: E402
from modelcodec.runtime.training import UpdatesInBackward  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (torch.optim.Adam, {"lr": 1e-3, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3}),
    "adafactor": (torch.optim.Adafactor, {"lr": 1e-2}),
}


class Tied(torch.nn.Module):
    """Residual layers between an embedding and a head that shares its weight; `reentrant` is the kind of checkpoint, None for none."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(200, 128)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(128, 128) for _ in range(2))
        self.norm = torch.nn.LayerNorm(128)
        self.head = torch.nn.Linear(128, 200, bias=False)
        self.head.weight = self.embedding.weight
        self.reentrant = reentrant

    def forward(self, tokens: Any) -> Any:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + (layer(x).tanh() if self.reentrant is None else checkpoint(lambda y, layer=layer: layer(y).tanh(), x, use_reentrant=self.reentrant))
        return self.head(self.norm(x))

    def loss(self, tokens: Any) -> Any:
        return torch.nn.functional.cross_entropy(self(tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten())


def pair(dtype: Any = torch.bfloat16, reentrant: bool | None = None) -> tuple[Tied, Tied]:
    torch.manual_seed(0)
    model = Tied(reentrant).to(dtype)
    plain = copy.deepcopy(model)
    assert compress_module(model).n_compressed == 3
    return model, plain


def batches(n: int) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(200, (3, 9), generator=generator) for _ in range(n)]


def assert_same_training(model: Any, plain: Any, updates: Any, optimizer: Any, max_norm: float | None = None, steps: int = 3) -> None:
    for tokens in batches(steps):
        mine, theirs = model.loss(tokens), plain.loss(tokens)
        assert torch.equal(mine, theirs)
        norm = updates.backward(mine, max_norm=max_norm)
        updates.step()
        theirs.backward()
        if max_norm is not None:
            assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(plain.parameters(), max_norm))
        optimizer.step()
        optimizer.zero_grad()
    expected = plain.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("compress_state", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_every_loss_and_weight_is_that_of_plain_training(dtype: Any, name: str, compress_state: bool) -> None:
    model, plain = pair(dtype)
    kind, options = OPTIMIZERS[name]
    updates = UpdatesInBackward(model.parameters(), kind, compress_state=compress_state, **options)
    assert_same_training(model, plain, updates, kind(plain.parameters(), **options))
    assert weights.is_compressed(model.layers[0].weight)
    kept = [value for state in updates.optimizer.state.values() for value in state.values() if getattr(value, "nbytes", 0) > 1 << 14]
    assert all(weights.is_compressed(value) == compress_state for value in kept)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("max_norm", [None, 0.1, 1e6])
def test_with_gradient_checkpointing_and_clipping(reentrant: bool, max_norm: float | None) -> None:
    model, plain = pair(reentrant=reentrant)
    updates = UpdatesInBackward(model.parameters(), torch.optim.AdamW)
    assert_same_training(model, plain, updates, torch.optim.AdamW(plain.parameters()), max_norm)


def test_groups_and_schedulers() -> None:
    model, plain = pair()

    def groups(one: Tied) -> list[dict[str, Any]]:
        return [{"params": list(one.layers.parameters()), "lr": 1e-2}, {"params": [one.embedding.weight, *one.norm.parameters()]}]

    updates, optimizer = UpdatesInBackward(groups(model), torch.optim.AdamW), torch.optim.AdamW(groups(plain))
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(one, 0.5) for one in (updates.optimizer, optimizer)]
    for _ in range(2):
        assert_same_training(model, plain, updates, optimizer, steps=1)
        for scheduler in schedulers:
            scheduler.step()


@pytest.mark.parametrize("compress_state", [False, True])
def test_the_state_goes_out_and_back(compress_state: bool) -> None:
    model, plain = pair()
    updates, optimizer = UpdatesInBackward(model.parameters(), torch.optim.Adam, compress_state=compress_state), torch.optim.Adam(plain.parameters())
    assert_same_training(model, plain, updates, optimizer)
    state, expected = updates.state_dict(), optimizer.state_dict()
    assert state["param_groups"] == expected["param_groups"]
    assert all(torch.equal(value, state["state"][key][name]) for key, values in expected["state"].items() for name, value in values.items())
    updates.remove()
    again = UpdatesInBackward(model.parameters(), torch.optim.Adam, compress_state=compress_state)
    again.load_state_dict(state)
    assert_same_training(model, plain, again, optimizer)


def test_a_gradient_is_gone_before_the_next_one_comes() -> None:
    model, _ = pair()
    UpdatesInBackward(model.parameters(), torch.optim.SGD, lr=0.1)
    alive = []
    for layer in model.layers:
        layer.register_full_backward_hook(lambda *_: alive.append(sum(p.grad is not None and type(p.grad) is torch.Tensor for p in model.parameters())))
    model.loss(batches(1)[0]).backward()
    assert alive == [0, 0]


def test_spent_gradients_are_not_read() -> None:
    model, _ = pair()
    updates = UpdatesInBackward(model.parameters(), torch.optim.SGD, lr=0.1)
    tokens = batches(1)[0]
    model.loss(tokens).backward()
    with pytest.raises(BadRecipe, match="used up inside backward"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with pytest.raises(BadRecipe, match="Call step"):
        model.loss(tokens).backward()
    updates.step()
    model.loss(tokens).backward()
    model.zero_grad()
    model.loss(tokens).backward()


def test_a_weight_shared_by_segments_of_a_reentrant_checkpoint_is_refused() -> None:
    model, _ = pair(reentrant=True)
    model.layers[1] = model.layers[0]
    UpdatesInBackward(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(BadRecipe, match="reentrant checkpoint"):
        model.loss(batches(1)[0]).backward()


def test_optimizers_of_all_parameters_at_once_are_refused() -> None:
    with pytest.raises(BadRecipe, match="LBFGS"):
        UpdatesInBackward(torch.nn.Linear(2, 2).parameters(), torch.optim.LBFGS)


def test_frozen_weights_stay() -> None:
    model, _ = pair()
    model.layers.requires_grad_(False)
    before = model.layers[0].weight.store.frames
    updates = UpdatesInBackward(model.parameters(), torch.optim.SGD, lr=0.1)
    updates.backward(model.loss(batches(1)[0]))
    updates.step()
    assert model.layers[0].weight.store.frames is before


def test_removed_updates_leave_gradients() -> None:
    model, _ = pair()
    updates = UpdatesInBackward(model.parameters(), torch.optim.SGD, lr=0.1)
    updates.remove()
    model.loss(batches(1)[0]).backward()
    assert all(type(p.grad) is torch.Tensor for p in model.parameters())
