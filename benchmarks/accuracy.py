"""Accuracy at real bits: CIFAR-10 ResNets rounded with calibration, as files decoded by the ordinary decoder, beside NNCodec without data."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import modelcodec
from benchmarks.corpus import data_folder
from benchmarks.lossless import replace_block
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.curvature import curvature
from modelcodec.fit.obs import Obs
from modelcodec.fit.trellis import Quantizer, Trellis
from modelcodec.fitted import Fit
from modelcodec.formats import container

NETS = ("resnet20-12fca82f.th", "resnet32-d509ac18.th")
BITS = (1.0, 1.15, 1.35, 1.6, 1.9, 2.3, 2.8)
SIGMAS = (0.15, 0.2, 0.27, 0.36, 0.45, 0.55)
"""Steps of the fit without data, over the weights' root mean square."""
QPS = range(-30, -17)
BATCH = 50
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What the nets were trained with."""


class Block(nn.Module):
    """Two convolutions and a shortcut that skips pixels and pads channels with zeros."""

    def __init__(self, given: int, gives: int) -> None:
        super().__init__()
        self.stride = gives // given
        self.conv1, self.bn1 = nn.Conv2d(given, gives, 3, self.stride, 1, bias=False), nn.BatchNorm2d(gives)
        self.conv2, self.bn2 = nn.Conv2d(gives, gives, 3, 1, 1, bias=False), nn.BatchNorm2d(gives)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, x.shape[1] // 2, x.shape[1] // 2))
        return functional.relu(x + y)


class ResNet(nn.Module):
    """He et al.'s CIFAR-10 networks (arXiv 1512.03385) with shortcuts of type A."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(blocks)))
        self.layer2 = nn.Sequential(*(Block(16 if k == 0 else 32, 32) for k in range(blocks)))
        self.layer3 = nn.Sequential(*(Block(32 if k == 0 else 64, 64) for k in range(blocks)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x)))))).mean((2, 3)))


def net_of(state: Mapping[str, Tensor]) -> ResNet:
    net = ResNet(sum(name.startswith("layer1.") and name.endswith(".conv1.weight") for name in state))
    net.load_state_dict(dict(state), strict=False)  # older files count no batches
    return net.eval()


def images(folder: Path, kind: str) -> tuple[Tensor, Tensor]:
    """All images of `test_10000` or `train_5000`, normalized, and their labels."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    pixels = np.asarray(Image.open(folder / f"cifar10_{kind}x1024rgb.png")).reshape(-1, 32, 32, 3)
    x = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255
    labels = json.loads((folder / f"cifar10_{kind.removesuffix('_10000')}_labels.json").read_text())
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(SPREAD).view(3, 1, 1), torch.tensor(labels)


def accuracy(net: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Percent of images that the net names rightly."""
    with torch.no_grad():
        right = sum(int((net(x).argmax(1) == y).sum()) for x, y in zip(test[0].split(250), test[1].split(250), strict=True))
    return 100 * right / len(test[1])


@dataclass(frozen=True, slots=True)
class Row:
    """Bits a weight, of all bytes of the frames of matrices and kernels; percent of test images."""

    label: str
    bits: float
    accuracy: float


def ours(label: str, source: bytes, fit: Fit, test: tuple[Tensor, Tensor]) -> Row:
    """A file is made and read back; what is measured is what comes out of it."""
    out = BytesIO()
    modelcodec.compress(BytesIO(source), out, fit=fit)
    data = out.getvalue()
    archive = container.read(memoryview(data), label)
    of_weights = [entry for entry in archive.tensors if len(entry.spec.shape) > 1]
    bits = 8 * sum(entry.size for entry in of_weights) / sum(entry.spec.n_words for entry in of_weights)
    return Row(label, bits, accuracy(net_of({name: torch.from_numpy(np.array(x)) for name, x in modelcodec.load(data).items()}), test))


def nncodec(state: Mapping[str, Tensor], test: tuple[Tensor, Tensor]) -> Iterator[Row]:
    """NNCodec's own quantizer and coder without data, trellis on, one quantization parameter for all; payloads alone."""
    from nncodec.extensions import deepCABAC

    off, unary = deepCABAC.HdspMode.AlwaysOff, 10
    for qp in QPS:
        n_bytes = n = 0
        restored = dict(state)
        for name, weight in state.items():
            if weight.dim() < 2:
                continue
            x = np.ascontiguousarray(weight.reshape(len(weight), -1).numpy())
            indices, y = np.zeros(x.shape, np.int32), np.zeros(x.shape, np.float32)
            rows, none = np.zeros(len(x), np.int32), np.zeros(2, np.int8)
            encoder = deepCABAC.Encoder()
            encoder.initCtxModels(unary, 0)
            encoder.quantLayer(x, indices, 1, 2, qp, 0.0, unary, 0, 1)
            encoder = deepCABAC.Encoder()
            encoder.initCtxModels(unary, 1)
            encoder.encodeLayer(indices, 1, 0, 1, 0, 0, rows, off, none, 0, 0)
            stream = encoder.finish()
            decoder = deepCABAC.Decoder()
            decoder.setStream(stream)
            decoder.initCtxModels(unary)
            decoder.decodeLayer(indices, 1, 0, 1, 0, off, none, 0, 0)
            decoder.dequantLayer(y, indices, 2, qp, 0)
            n_bytes, n = n_bytes + len(stream), n + x.size
            restored[name] = torch.from_numpy(y).reshape(weight.shape)
        yield Row(f"NNCodec, qp {qp}", 8 * n_bytes / n, accuracy(net_of(restored), test))


def rows(state: Mapping[str, Tensor], folder: Path, quick: bool) -> Iterator[Row]:
    from safetensors.torch import save

    test, (train, _) = images(folder, "test_10000"), images(folder, "train_5000")
    if quick:
        test, train = (test[0][:2000], test[1][:2000]), train[:1000]
    source, net = save({name: x.contiguous() for name, x in state.items()}), net_of(state)
    yield Row("as it was", 32.0, accuracy(net, test))
    start = time.perf_counter()
    found = curvature(net, train.split(BATCH), lambda model, batch: model(batch))
    print(f"statistics of {len(train)} images: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    quantizer = Quantizer(states=8, passes=3) if quick else Quantizer(states=32, passes=3)
    for bits in BITS[1::4] if quick else BITS:
        yield ours(f"calibrated, {quantizer.states} states", source, _with(Obs(bits, quantizer), found), test)
    matrices = torch.cat([x.reshape(-1) for x in state.values() if x.dim() > 1])
    for sigma in SIGMAS[::5] if quick else SIGMAS:
        step = sigma * float(matrices.square().mean().sqrt())
        yield ours(f"without data, {quantizer.states} states", source, _matrices(Trellis(step, quantizer)), test)
    if not quick:
        try:
            yield from nncodec(state, test)
        except ImportError:
            print("nncodec is not installed (pip install --no-deps nncodec==2.1.3): left out.", file=sys.stderr)


def _with(fit: Callable[..., Any], data: Calibration) -> Fit:
    return lambda tensors: fit(tensors, data)


def _matrices(fit: Callable[..., Any]) -> Fit:
    return lambda tensors: fit({name: weights for name, weights in tensors.items() if len(weights.spec.shape) > 1})


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Print the tables; write them to docs/benchmarks.md unless `quick`. Returns 0, or 1 where there is nothing to measure."""
    folder = data_folder(root, data)
    names = [name for name in NETS if (not only or any(part in name for part in only)) and folder is not None and (folder / name).exists()]
    if folder is None or not names:
        print("No net to measure is there (--data, $MODELCODEC_DATA or ../shared/data).", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    lines: list[str] = []
    for name in names:
        held = torch.load(folder / name, map_location="cpu", weights_only=True)
        state = {key.removeprefix("module."): x for key, x in held["state_dict"].items()}
        lines += [f"**{name}**\n", "| | bits a weight | accuracy |", "|---|---|---|"]
        for row in rows(state, folder, quick):
            lines.append(f"| {row.label} | {row.bits:.3f} | {row.accuracy:.2f} % |")
            print(lines[-1], flush=True)
        lines.append("")
    if not quick:
        replace_block(root / "docs" / "benchmarks.md", "\n".join(lines), "accuracy")
    return 0
