"""Promises of the training loop and its contract: killed or not the same weights, what is not its own is refused, and the file holds the model as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import modelcodec  # noqa: E402
from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit import KMeans  # noqa: E402
from modelcodec.fit.rules import Ruled  # noqa: E402
from modelcodec.fit.training import parse_method  # noqa: E402
from modelcodec.fit.training.gradual import Gradual  # noqa: E402
from modelcodec.fit.training.learned_step import LearnedStep  # noqa: E402
from modelcodec.fit.training.loop import Passed, train  # noqa: E402
from modelcodec.fit.training.method import Data, Joined, Method, Trained, Training  # noqa: E402
from modelcodec.fit.training.task import Task  # noqa: E402
from tests.digits import Killed, Residual, check_method, digits, digits_task  # noqa: E402


@dataclass(frozen=True, slots=True)
class Shrink(Method):
    """Weight decay as a penalty, ramped by what is done, and counted; hardens to multiples of `step`."""

    price: float = 1e-4
    step: float = 0.0

    def begin(self, model: nn.Module, data: Data | None = None) -> Training:
        return _Shrinking(model, self, data)


class _Shrinking(Training):
    def __init__(self, model: nn.Module, method: Shrink, data: Data | None) -> None:
        super().__init__(model)
        self.method, self.share, self.calls = method, torch.zeros(()), []
        self.looked = [[len(labels) for _, labels in data] for _ in range(2)] if data is not None else []

    def penalty(self) -> torch.Tensor:
        return self.method.price * self.share * sum(p.square().sum() for p in self.model.parameters())

    def after_step(self, done: float) -> None:
        self.calls.append(done)
        self.share = torch.tensor(done)

    def state(self) -> dict[str, Any]:
        return {"share": self.share, "calls": self.calls}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.share, self.calls = state["share"], list(state["calls"])

    def harden(self) -> Any:
        if not self.method.step:
            return None
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_((parameter / self.method.step).round() * self.method.step)
        return Ruled((), KMeans(64))


class Restless(nn.Module):
    """Dropout and BatchNorm: random numbers and buffers that a resumed training must not lose."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop = Residual(), nn.Dropout(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.drop(x))


@dataclass(frozen=True)
class Noisy:
    """Batches that are drawn, and get their noise, only when they are asked for."""

    def __len__(self) -> int:
        return 15

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        x, y = digits()
        for _ in range(len(self)):
            places = torch.randint(0, 1500, (40,))
            yield x[places] + 0.1 * torch.randn(40, 1, 8, 8), y[places]


def _noisy_task(epochs: int = 3) -> Task:
    def sgd(parameters: Any) -> torch.optim.Optimizer:
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for parameter in parameters:
            groups[parameter.dim() > 1].append(parameter)
        return torch.optim.SGD([{"params": groups[True], "weight_decay": 1e-4}, {"params": groups[False], "lr": 0.01}], 0.1, momentum=0.9)

    return replace(digits_task(Restless, epochs=epochs), batches=lambda epoch: Noisy(), optimizer=sgd)


def _state(trained: Trained) -> dict[str, torch.Tensor]:
    return trained.model.state_dict()


def _interrupted(task: Task, method: Method, checkpoint: Path, *, after: int, kind: type[BaseException], save_seconds: float) -> None:
    seen = 0

    def stop(passed: Passed) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            raise kind

    with pytest.raises(kind):
        train(task, method, checkpoint=checkpoint, save_seconds=save_seconds, watch=stop)


def test_a_method_that_is_no_more_than_a_loop(tmp_path: Path) -> None:
    trained, path = check_method(Shrink(step=0.125), digits_task(), tmp_path)
    assert not trained.model.training
    assert all(torch.equal(tensor, (tensor * 8).round() / 8) for tensor in modelcodec.load_file(path, "pt").values())
    assert all("codebook" in row.plan for row in modelcodec.inspect(path).tensors if row.name.endswith("weight"))


@pytest.mark.parametrize("after", [1, 16, 20, 31])
def test_dropout_batchnorm_lazy_batches_and_groups_resume(tmp_path: Path, after: int) -> None:
    task = _noisy_task()
    whole = _state(train(task, Shrink()))
    _interrupted(task, Shrink(), tmp_path / "c", after=after, kind=Killed, save_seconds=-1)
    resumed = _state(train(task, Shrink(), checkpoint=tmp_path / "c"))
    assert "body.bn1.running_var" in whole
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("after", [7, 16])
def test_an_interrupt_saves_first(tmp_path: Path, after: int) -> None:
    task, steps = _noisy_task(2), []
    whole = _state(train(task, Shrink()))
    _interrupted(task, Shrink(), tmp_path / "c", after=after, kind=KeyboardInterrupt, save_seconds=math.inf)
    resumed = _state(train(task, Shrink(), checkpoint=tmp_path / "c", watch=lambda passed: steps.append((passed.epoch, passed.step))))
    assert steps[0] == ((0, 8) if after == 7 else (1, 1))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_rates_and_shares_move_from_0_to_1() -> None:
    rates: list[float] = []

    def rate(done: float) -> float:
        rates.append(done)
        return 1.0

    training = _Shrinking(nn.Linear(1, 1), Shrink(), None)

    class Watched(Method):
        def begin(self, model: nn.Module, data: Data | None = None) -> Training:
            training.model = model
            return training

    sized = replace(_noisy_task(2), rate=rate)
    train(sized, Watched())
    assert len(training.calls) == 30
    assert training.calls == sorted(training.calls)
    assert (rates[0], training.calls[-1]) == (0, 1)
    training.calls.clear()
    train(replace(sized, batches=lambda epoch: iter(Noisy())), Watched())
    assert (len(training.calls), training.calls[14:16], training.calls[-1]) == (32, [0.0, 0.5], 1)


@pytest.mark.parametrize("length", [10, 20, 1500])
def test_a_wrong_length_ends_schedules_all_the_same_and_is_told(length: int, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Misled(Noisy):
        def __len__(self) -> int:
            return length

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return iter(list(Noisy()))

    task, method = replace(_noisy_task(2), batches=lambda epoch: Misled()), Gradual(0.5, end=1.0)
    trained = train(task, method)
    assert len(trained.remarks) == 1
    assert trained.remarks[0].startswith(f"batches(1) has the length {length} and gave 15 batches")
    weight = trained.model.state_dict()["body.conv2.weight"]
    assert int((weight == 0).sum()) == weight.numel() // 2
    _interrupted(task, method, tmp_path / "c", after=20, kind=Killed, save_seconds=-1)
    assert all(torch.equal(tensor, _state(trained)[name]) for name, tensor in _state(train(task, method, checkpoint=tmp_path / "c")).items())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "its seed is 0, not 1"),
        ({"method": Shrink(1e-3)}, "its method is"),
        ({"epochs": 3}, "its passes is 2"),
        ({"identity": "b"}, "its task is a"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    _interrupted(_noisy_task(2), Shrink(), tmp_path / "c", after=3, kind=KeyboardInterrupt, save_seconds=1)
    state = torch.load(tmp_path / "c", weights_only=True)
    state["of"]["task"] = "a"
    torch.save(state, tmp_path / "c")
    task = _noisy_task(changes.get("epochs", 2))
    others = {"seed": 0, "identity": "a"} | {key: value for key, value in changes.items() if key in ("seed", "identity")}
    with pytest.raises(BadRecipe, match=told):
        train(task, changes.get("method", Shrink()), checkpoint=tmp_path / "c", **others)


def test_a_checkpoint_of_another_model_or_none_is_refused(tmp_path: Path) -> None:
    _interrupted(_noisy_task(2), Shrink(), tmp_path / "c", after=3, kind=KeyboardInterrupt, save_seconds=1)
    with pytest.raises(BadRecipe, match="another model"):
        train(replace(_noisy_task(2), model=Residual), Shrink(), checkpoint=tmp_path / "c")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    (tmp_path / "text").write_text("nothing")
    for name in ("weights.pt", "text"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(BadRecipe, match="no checkpoint"):
            train(_noisy_task(2), Shrink(), checkpoint=tmp_path / name)
        assert (tmp_path / name).read_bytes() == before


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    task = replace(_noisy_task(), loss=lambda model, batch: model(batch[0]).sum() * math.nan)
    with pytest.raises(BadRecipe, match="pass 1, batch 1: the loss is nan"):
        train(task, Shrink(), checkpoint=tmp_path / "c", save_seconds=-1)
    assert not (tmp_path / "c").exists()
    with pytest.raises(BadRecipe, match="gives 0 batches"):
        train(replace(_noisy_task(), batches=lambda epoch: []), Shrink())


def test_no_passes_at_all_leave_the_model() -> None:
    torch.manual_seed(5)
    model = Restless()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = _state(train(replace(_noisy_task(), model=lambda: model, epochs=0), Shrink()))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_joined_methods(tmp_path: Path) -> None:
    joined = Shrink() | (Shrink() | Shrink(step=0.5))
    assert isinstance(joined, Joined)
    x, y = digits()
    model = Restless()
    norm = float(sum(p.detach().square().sum() for p in model.parameters()))
    both = joined.begin(model, [(x[:10], y[:10])])
    first, (second, third) = both._parts[0], both._parts[1]._parts
    for training, share in ((first, 1.0), (second, 0.5), (third, 0.25)):
        training.after_step(share)
    assert float(both.penalty().detach()) == pytest.approx(1e-4 * 1.75 * norm, rel=1e-5)
    again = joined.begin(Restless())
    again.restore(both.state())
    assert [float(part.share) for part in (again._parts[0], *again._parts[1]._parts)] == [1.0, 0.5, 0.25]
    both.after_step(1.0)
    assert [training.calls[-1] for training in (first, second, third)] == [1.0] * 3
    trained = both.finish()
    assert trained.fit is not None
    trained.save(tmp_path / "joined.mcodec.safetensors")
    stored = modelcodec.load_file(tmp_path / "joined.mcodec.safetensors", "pt")["body.conv2.weight"]
    assert torch.equal(stored, (2 * stored).round() / 2)


def test_methods_may_look_at_batches_more_than_once() -> None:
    looked: list[Training] = []

    class Looking(Method):
        def begin(self, model: nn.Module, data: Data | None = None) -> Training:
            looked.append(_Shrinking(model, Shrink(), data))
            return looked[0]

    train(replace(_noisy_task(), epochs=0), Looking())
    assert looked[0].looked == [[40] * 15] * 2


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("method", [Shrink(), LearnedStep(4)])
def test_tied_weights_are_saved_once(tmp_path: Path, method: Method) -> None:
    from safetensors.torch import load_model

    trained = method.begin(Tied()).finish()
    trained.save(tmp_path / "tied.mcodec.safetensors")
    assert list(modelcodec.load_file(tmp_path / "tied.mcodec.safetensors")) == ["embedding.weight"]
    modelcodec.decompress(tmp_path / "tied.mcodec.safetensors", tmp_path / "tied.safetensors")
    other = Tied()
    load_model(other, tmp_path / "tied.safetensors")
    assert torch.equal(other.head.weight, trained.model.head.weight)


def test_the_models_own_parametrizations_are_computed_into_the_file_and_told(tmp_path: Path) -> None:
    model, x = Residual(), digits()[0][:20]
    for conv in (model.conv2, model.conv3):
        nn.utils.parametrizations.weight_norm(conv)
    trained = LearnedStep(4).begin(model).finish()
    assert trained.remarks == (
        "the file has tensors as the layers see them, for a model without parametrizations of its own, which this one had: "
        "conv2.weight by WeightNorm, conv3.weight by WeightNorm",
    )
    trained.save(tmp_path / "plain.mcodec.safetensors")
    plain = Residual()
    plain.load_state_dict(modelcodec.load_file(tmp_path / "plain.mcodec.safetensors", "pt"))
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), trained.model.eval()(x))
    assert LearnedStep(4).begin(Residual()).finish().remarks == ()


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_a_hook_makes_are_refused() -> None:
    with pytest.raises(BadRecipe, match=r"^weight is no parameter: a hook makes it"):
        LearnedStep(4).begin(nn.utils.weight_norm(nn.Linear(30, 30)))


def test_a_task_of_names() -> None:
    def one(*_: Any) -> Any: ...

    task = Task.of({"model": one, "batches": one, "loss": one, "epochs": 4, "other": 3}, "x.py")
    assert (task.epochs, task.loss, task.score) == (4, one, None)
    with pytest.raises(BadRecipe, match=r"x\.py: the function loss is missing"):
        Task.of({"model": one, "batches": one}, "x.py")
    for name, value in (("labels", torch.zeros(3)), ("model", nn.Linear(1, 1)), ("epochs", "3"), ("epochs", -1)):
        with pytest.raises(BadRecipe, match=f"x.py: {name} "):
            Task.of({"model": one, "batches": one, "loss": one} | {name: value}, "x.py")


def test_methods_as_text() -> None:
    with pytest.raises(BadRecipe, match="there is no training method 'nonsense'"):
        parse_method("nonsense(3)")
