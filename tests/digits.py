"""A training of a second or two on real data, scikit-learn's 1,797 handwritten digits, and what every method that trains must hold on it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("sklearn.datasets")

import modelcodec  # noqa: E402
from modelcodec.fit.training.loop import Passed, train  # noqa: E402
from modelcodec.fit.training.method import Method, Trained  # noqa: E402
from modelcodec.fit.training.task import Task  # noqa: E402

torch.set_num_threads(1)  # matrices this small only wait for threads
N_TRAINED = 1500


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (1797, 1, 8, 8) between 0 and 1, and labels."""
    found = datasets.load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)


def perceptron() -> torch.nn.Module:
    """5,000 weights in three linear layers."""
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 48), torch.nn.ReLU(), torch.nn.Linear(48, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10)
    )  # fmt: skip


class Residual(torch.nn.Module):
    """A convolutional net with BatchNorm and a residual connection."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(1, width, 3, padding=1, bias=False), torch.nn.BatchNorm2d(width)
        self.conv2, self.bn2 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False), torch.nn.BatchNorm2d(width)
        self.conv3, self.bn3 = torch.nn.Conv2d(width, width, 3, padding=1, bias=False), torch.nn.BatchNorm2d(width)
        self.linear = torch.nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x)))))
        return self.linear(torch.relu(x + y).mean((2, 3)))


def accuracy(model: torch.nn.Module) -> float:
    """Share of the digits kept back that the model names rightly."""
    x, y = digits()
    with torch.no_grad():
        return float((model.eval()(x[N_TRAINED:]).argmax(1) == y[N_TRAINED:]).float().mean())


def digits_task(model: Callable[[], torch.nn.Module] = perceptron, epochs: int = 3, rate: float = 3e-3) -> Task:
    x, y = digits()

    def batches(epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(x[places], y[places]) for places in torch.randperm(N_TRAINED).split(50)]

    def loss(net: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(net(batch[0]), batch[1])

    return Task(model, batches, loss, accuracy, lambda parameters: torch.optim.Adam(parameters, rate), epochs=epochs)


class Killed(Exception):
    """Stands for the end of the process."""


def check_method(method: Method, task: Task, folder: Path, model: Callable[[], torch.nn.Module] | None = None) -> tuple[Trained, Path]:
    """Train, once at a stretch and once killed in the middle of a pass: the same weights; save, and load into a plain model: the same answers.

    `model` makes a plain model that the file's tensors fit into, where it is not the task's. Returns what was trained, and the file.
    """
    trained = train(task, method)
    checkpoint = folder / "training"
    seen = 0

    def kill(passed: Passed) -> None:
        nonlocal seen
        seen += 1
        if seen == 40:
            raise Killed

    with pytest.raises(Killed):
        train(task, method, checkpoint=checkpoint, save_seconds=-1, watch=kill)
    again = train(task, method, checkpoint=checkpoint)
    state = trained.model.state_dict()
    assert state.keys() == again.model.state_dict().keys()
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    path = folder / "trained.mcodec.safetensors"
    trained.save(path, level=9)
    plain = (model or task.model)()
    plain.load_state_dict({**plain.state_dict(), **modelcodec.load_file(path, "pt")})
    x, _ = digits()
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), trained.model.eval()(x))
    return trained, path
