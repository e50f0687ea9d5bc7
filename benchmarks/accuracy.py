"""Quality at real bits, of files decoded by the ordinary decoder: CIFAR-10 ResNets beside NNCodec, a language model beside ggml's types."""

from __future__ import annotations

import csv
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
from benchmarks import ggml, nncodec, stories
from benchmarks.corpus import data_folder
from benchmarks.curves import Curve, Point, Scale, drawn
from benchmarks.lossless import replace_block
from modelcodec.fit.calibration import Calibration
from modelcodec.fit.curvature import curvature
from modelcodec.fit.obs import Obs
from modelcodec.fit.trellis import Quantizer, Trellis
from modelcodec.fitted import Fit
from modelcodec.formats import container

ORIGINAL, CALIBRATED, WITHOUT_DATA, GGML = "as it was", "calibrated", "without data", "ggml"
BITS = (1.0, 1.15, 1.35, 1.6, 1.9, 2.3, 2.8)
SIGMAS = (0.15, 0.2, 0.27, 0.36, 0.45, 0.55)
"""Steps of the fit without data, over the weights' root mean square."""
QPS = range(-30, -17)
STORY_BITS = (1.25, 1.5, 2.0, 2.5, 3.25, 4.0)
STORY_SIGMAS = (0.03, 0.06, 0.12, 0.25, 0.4)
WRITTEN, STORIES = 96, 4
"""Sequences that the language model writes itself, to be calibrated with; one story in so many is tested."""
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
    """Of one way to make a net small (`kind`): bits a weight, and its quality: percent of test images, or nats a token."""

    kind: str
    label: str
    bits: float
    quality: float


def fitted(source: bytes, fit: Fit) -> tuple[Any, dict[str, Tensor]]:
    """A file is made and read back: its archive, and the tensors that come out of it."""
    out = BytesIO()
    modelcodec.compress(BytesIO(source), out, fit=fit)
    return container.read(memoryview(out.getvalue()), "fitted"), {name: torch.from_numpy(np.array(x)) for name, x in modelcodec.load(out.getvalue()).items()}


def bits_of(archive: Any, *, matrices: bool) -> float:
    """Of all bytes of the frames, a weight; of matrices and kernels alone, or of everything."""
    entries = [entry for entry in archive.tensors if not matrices or len(entry.spec.shape) > 1]
    return 8 * sum(entry.size for entry in entries) / sum(entry.spec.n_words for entry in entries)


def ours(kind: str, source: bytes, fit: Fit, test: tuple[Tensor, Tensor]) -> Row:
    archive, state = fitted(source, fit)
    bits = bits_of(archive, matrices=True)
    return Row(kind, f"{bits:.2f}", bits, accuracy(net_of(state), test))


def of_nncodec(state: Mapping[str, Tensor], test: tuple[Tensor, Tensor]) -> Iterator[Row]:
    """NNCodec's own quantizer and coder without data, trellis on, one quantization parameter for all; payloads alone."""
    for qp in QPS:
        n_bytes = n = 0
        restored = dict(state)
        for name, weight in state.items():
            if weight.dim() < 2:
                continue
            x = np.ascontiguousarray(weight.reshape(len(weight), -1).numpy())
            coded = nncodec.coded(x, qp, 0.0)
            n_bytes, n = n_bytes + coded.n_bytes, n + x.size
            restored[name] = torch.from_numpy(coded.matrix).reshape(weight.shape)
        yield Row("NNCodec", f"qp {qp}", 8 * n_bytes / n, accuracy(net_of(restored), test))


def resnet_rows(path: Path, quick: bool) -> Iterator[Row]:
    from safetensors.torch import save

    held = torch.load(path, map_location="cpu", weights_only=True)
    state = {key.removeprefix("module."): x for key, x in held["state_dict"].items()}
    test, (train, _) = images(path.parent, "test_10000"), images(path.parent, "train_5000")
    if quick:
        test, train = (test[0][:2000], test[1][:2000]), train[:1000]
    source, net = save({name: x.contiguous() for name, x in state.items()}), net_of(state)
    yield Row(ORIGINAL, "", 32.0, accuracy(net, test))
    found = timed(lambda: curvature(net, train.split(BATCH), lambda model, batch: model(batch)), f"statistics of {len(train)} images")
    quantizer = Quantizer(states=8, passes=3) if quick else Quantizer(states=32, passes=3)
    for bits in BITS[1::4] if quick else BITS:
        yield ours(CALIBRATED, source, _with(Obs(bits, quantizer), found), test)
    matrices = torch.cat([x.reshape(-1) for x in state.values() if x.dim() > 1])
    for sigma in SIGMAS[::5] if quick else SIGMAS:
        yield ours(WITHOUT_DATA, source, _matrices(Trellis(sigma * float(matrices.square().mean().sqrt()), quantizer)), test)
    if not quick:
        try:
            yield from of_nncodec(state, test)
        except ImportError:
            print("nncodec is not installed (pip install --no-deps nncodec==2.1.3): left out.", file=sys.stderr)


def story_rows(path: Path, quick: bool) -> Iterator[Row]:
    """Nats a token over text that the model has not seen; calibrated on text that it writes itself. Bits are of all weights, on both sides."""
    from safetensors.torch import load

    source = path.read_bytes()
    state, text = load(source), stories.unseen(path.parent)[:: 32 if quick else STORIES]
    net = stories.net_of(state)
    yield Row(ORIGINAL, "", 32.0, stories.loss(net, text))
    own = stories.written(net, 16 if quick else WRITTEN)
    found = timed(lambda: curvature(net, own.split(2), lambda model, batch: model(batch), loss="likelihood"), f"statistics of {len(own)} sequences")
    quantizer = Quantizer(states=8, passes=1) if quick else Quantizer(states=8, passes=2)
    for bits in STORY_BITS[2:3] if quick else STORY_BITS:
        archive, given = fitted(source, _with(Obs(bits, quantizer), found))
        yield Row(CALIBRATED, f"{bits:.2f}", bits_of(archive, matrices=False), stories.loss(stories.net_of(given), text))
    spread = float(torch.cat([x.reshape(-1) for x in state.values() if x.dim() > 1]).square().mean().sqrt())
    for sigma in STORY_SIGMAS[2:3] if quick else STORY_SIGMAS:
        archive, given = fitted(source, _matrices(Trellis(sigma * spread, quantizer)))
        bits = bits_of(archive, matrices=False)
        yield Row(WITHOUT_DATA, f"{bits:.2f}", bits, stories.loss(stories.net_of(given), text))
    try:
        yield from ggml_rows(state, text, stories.input_squares(net, own), quick)
    except ImportError:
        print("xllamacpp and gguf are not installed (pip install xllamacpp gguf): ggml's types are left out.", file=sys.stderr)


def ggml_rows(state: Mapping[str, Tensor], text: Sequence[Tensor], squares: Mapping[str, Tensor], quick: bool) -> Iterator[Row]:
    """All matrices in one type, or the table in a coarser one, with an importance matrix of the text that we calibrate with; vectors in float32."""
    for of_table, kind in ggml.MIXES[:1] if quick else [*((kind, kind) for kind in ggml.TYPES), *ggml.MIXES]:
        given, n_bytes = dict(state), 0
        for name, weight in state.items():
            size = 4 * weight.numel()
            if weight.dim() > 1:
                rounded = ggml.rounded(weight.numpy(), of_table if "embeddings" in name else kind, squares[name].numpy())
                size, given[name] = rounded.n_bytes, torch.from_numpy(rounded.matrix)
            n_bytes += size
        bits = 8 * n_bytes / sum(weight.numel() for weight in state.values())
        yield Row(GGML, kind if kind == of_table else f"{of_table} + {kind}", bits, stories.loss(stories.net_of(given), text))


def timed(work: Callable[[], Calibration], what: str) -> Calibration:
    start = time.perf_counter()
    found = work()
    print(f"{what}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return found


def _with(fit: Callable[..., Any], data: Calibration) -> Fit:
    return lambda tensors: fit(tensors, data)


def _matrices(fit: Callable[..., Any]) -> Fit:
    return lambda tensors: fit({name: weights for name, weights in tensors.items() if len(weights.spec.shape) > 1})


@dataclass(frozen=True, slots=True)
class Net:
    """A checkpoint to measure; `falls`: its quality is a loss, shown as what is added to that of the original."""

    name: str
    rows: Callable[[Path, bool], Iterator[Row]]
    unit: str
    falls: bool = False

    def table(self, rows: Sequence[Row]) -> Iterator[str]:
        yield f"**{self.name}** ([picture]({self.picture}))\n"
        yield f"| | bits a weight | {self.unit} |\n|---|---|---|"
        for row in rows:
            label = f"{row.kind}, {row.label}" if row.kind in (GGML, "NNCodec") else row.kind
            yield f"| {label} | {row.bits:.3f} | {row.quality:.{4 if self.falls else 2}f} |"
        yield ""
        if any(row.kind == GGML for row in rows):
            yield from savings(rows)

    @property
    def picture(self) -> str:
        return f"quality-{self.name.partition('.')[0].partition('-')[0]}.svg"

    def drawn(self, rows: Sequence[Row]) -> str:
        """Quality over bits: that of the best, or, in powers of ten, how much loss is added."""
        base = next(row.quality for row in rows if row.kind == ORIGINAL)
        kinds = dict.fromkeys(row.kind for row in rows if row.kind != ORIGINAL)
        scale = Scale(f"{self.unit}, above that of the original", True) if self.falls else Scale(self.unit)

        def points(kind: str) -> list[Point]:
            of_kind = [row for row in rows if row.kind == kind and (not self.falls or row.quality > base)]
            return [Point(row.bits, row.quality - base if self.falls else row.quality, row.label if kind == GGML else "") for row in of_kind]

        return drawn(self.name, scale, [Curve(kind, points(kind), kind == GGML) for kind in kinds])


def savings(rows: Sequence[Row]) -> Iterator[str]:
    """What ggml's types take beside us at the same loss, which lies between two of our points."""
    base = next(row.quality for row in rows if row.kind == ORIGINAL)
    calibrated = sorted((row.quality - base, row.bits) for row in rows if row.kind == CALIBRATED and row.quality > base)
    yield f"| type | its bits | loss added | {CALIBRATED} | saved |\n|---|---|---|---|---|"
    for row in rows:
        added = row.quality - base
        if row.kind == GGML and calibrated and calibrated[0][0] <= added <= calibrated[-1][0]:
            bits = float(np.interp(np.log(added), [np.log(loss) for loss, _ in calibrated], [bits for _, bits in calibrated]))
            yield f"| {row.label} | {row.bits:.3f} | {added:.4f} | {bits:.3f} | {100 - 100 * bits / row.bits:.0f} % |"
    yield ""


NETS = (
    Net("resnet20-12fca82f.th", resnet_rows, "accuracy, %"),
    Net("resnet32-d509ac18.th", resnet_rows, "accuracy, %"),
    Net(stories.NAME, story_rows, "nats a token", True),
)


def kept_rows(path: Path) -> dict[str, list[Row]]:
    """What was measured before, by net."""
    found: dict[str, list[Row]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for net, kind, label, bits, quality in list(csv.reader(file))[1:]:
                found.setdefault(net, []).append(Row(kind, label, float(bits), float(quality)))
    return found


def keep_rows(path: Path, rows: Mapping[str, Sequence[Row]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("net", "kind", "label", "bits a weight", "quality"))
        writer.writerows((net, row.kind, row.label, f"{row.bits:.4f}", f"{row.quality:.5f}") for net, found in rows.items() for row in found)


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Print what is measured; keep it and, with what was kept of other nets, write docs/benchmarks.md unless `quick`. Returns 0, or 1 without a net."""
    folder = data_folder(root, data)
    nets = [net for net in NETS if (not only or any(part in net.name for part in only)) and folder is not None and (folder / net.name).exists()]
    if folder is None or not nets:
        print("No net to measure is there (--data, $MODELCODEC_DATA or ../shared/data).", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    path = root / "benchmarks" / "results" / "accuracy.csv"
    kept = kept_rows(path)
    for net in nets:
        kept[net.name] = []
        for row in net.rows(folder / net.name, quick):
            kept[net.name].append(row)
            print(f"{net.name}: {row.kind} {row.label}: {row.bits:.3f} bits, {row.quality:.4f} {net.unit}", flush=True)
    if not quick:
        keep_rows(path, {net.name: kept[net.name] for net in NETS if net.name in kept})
        write_block(root, kept)
    return 0


def write_block(root: Path, kept: Mapping[str, Sequence[Row]]) -> None:
    """Tables and pictures of all nets."""
    lines: list[str] = []
    for net in NETS:
        if rows := kept.get(net.name):
            lines += net.table(rows)
            (root / "docs" / net.picture).write_text(net.drawn(rows))
    replace_block(root / "docs" / "benchmarks.md", "\n".join(lines), "accuracy")
