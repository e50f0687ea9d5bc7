"""Bits a weight at equal error: stage `grid` in real frames, headers and all, beside NNCodec's bitstream, ggml's and torchao's types and int-n plus xz."""

from __future__ import annotations

import lzma
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import ggml, nncodec
from benchmarks.corpus import data_folder
from benchmarks.curves import Curve, Scale, drawn
from benchmarks.curves import Point as Place
from benchmarks.lossless import replace_block
from benchmarks.rounded import Rounded
from modelcodec import formats, frame
from modelcodec.fit.trellis import Quantizer
from modelcodec.fitted import Weights
from modelcodec.formats.container_layout import full_frame_words
from modelcodec.stage import FrameContext, Plan

NETS = ("resnet20-12fca82f.th", "resnet32-d509ac18.th", "stories15M_f32.safetensors")
ERRORS = (0.0002, 0.0006, 0.0013, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06)
STATES = (8, 32, 256)
DECODINGS = 3
LARGE = 4 << 20
"""A net with more weights is measured with fewer points."""
QPS = range(-38, -14)

Tensors = Mapping[str, Weights]


@dataclass(frozen=True, slots=True)
class Point:
    """Squared error over the squares of the weights, bits a weight, and megabytes of float32 that are read back a second on one core."""

    error: float
    bits: float
    speed: float


def weights_of(path: Path) -> Tensors:
    """The float32 matrices and kernels of a checkpoint."""
    data = path.read_bytes()
    checkpoint = formats.identify(memoryview(data), path)
    places = [(view.spec, checkpoint.extents[view.extent].offset + 4 * view.first) for view in checkpoint.views]
    places += [] if places else [(extent.spec, extent.offset) for extent in checkpoint.extents]
    tensors = [(spec, start) for spec, start in places if len(spec.shape) > 1 and spec.dtype.name == "F32"]
    return {spec.name: Weights(spec, np.frombuffer(data, np.uint32, spec.n_words, start)) for spec, start in tensors}


def total(tensors: Tensors) -> tuple[int, float]:
    """Number of weights, and the sum of their squares."""
    values = [weights.values().astype(np.float64) for weights in tensors.values()]
    return sum(x.size for x in values), sum(float(x @ x) for x in values)


def frames_bytes(weights: Weights, words: np.ndarray, plan: Plan) -> tuple[int, float]:
    """Bytes of all frames of a tensor, each decoded again and compared, and seconds that decoding took at its best."""
    n_bytes, seconds, step = 0, 0.0, full_frame_words(weights.spec.dtype, weights.spec.row_words)
    for number, at in enumerate(range(0, words.size, step)):
        x = words[at : at + step]
        context = FrameContext(weights.spec, at, x.size, None, at)
        data, out = frame.encode(x, plan, context, number).data, np.empty_like(x)
        times = []
        for _ in range(DECODINGS):
            start = time.perf_counter()
            frame.decode(memoryview(data), number, out, weights.spec.name, context)
            times.append(time.perf_counter() - start)
        seconds += min(times)
        if not np.array_equal(out, x):
            raise AssertionError(f"{weights.spec.name}: frame {number} did not come back")
        n_bytes += len(data)
    return n_bytes, seconds


def ours(tensors: Tensors, quantizer: Quantizer, steps: Sequence[float]) -> list[Point]:
    """A point for each step."""
    n, squares = total(tensors)
    points = []
    for step in steps:
        n_bytes, seconds, error = 0, 0.0, 0.0
        for weights in tensors.values():
            quantized = quantizer.quantize(weights, step)
            size, spent = frames_bytes(weights, quantized.words, quantized.plan())
            n_bytes, seconds = n_bytes + size, seconds + spent
            values = weights.values().astype(np.float64)
            error += weights.loss(quantized.words).relative_mse * float(values @ values)
        points.append(Point(error / squares, 8 * n_bytes / n, 4 * n / seconds / 1e6))
    return points


def theirs(tensors: Tensors, rounded: Callable[[np.ndarray], Rounded]) -> Point:
    """What a peer makes of all matrices, each with its first dimension as rows."""
    n, squares = total(tensors)
    n_bytes, seconds, error = 0, 0.0, 0.0
    for weights in tensors.values():
        x = np.ascontiguousarray(weights.values().reshape(weights.spec.shape[0], -1))
        given = rounded(x)
        n_bytes, seconds = n_bytes + given.n_bytes, seconds + given.seconds
        error += float(((x.astype(np.float64) - given.matrix) ** 2).sum())
    return Point(error / squares, 8 * n_bytes / n, 4 * n / seconds / 1e6)


def of_nncodec(tensors: Tensors, lambda_scale: float) -> list[Point]:
    """NNCodec's own quantizer and coder, trellis and parameter search on, one quantization parameter for all; payloads alone, without its headers."""
    return [theirs(tensors, partial(nncodec.coded, qp=qp, lambda_scale=lambda_scale)) for qp in QPS]


def ggml_types(tensors: Tensors) -> dict[str, Point]:
    """ggml's types, without data, over each tensor's weights in their order. Raises ImportError."""
    return {kind: theirs(tensors, partial(ggml.rounded, kind=kind)) for kind in ggml.TYPES}


def torchao_types(tensors: Tensors) -> dict[str, Point]:
    """torchao's types, without data. Raises ImportError."""
    import torch

    from benchmarks import torchao

    torch.set_num_threads(1)
    return {f"torchao, {kind}": theirs(tensors, partial(torchao.rounded, kind=kind)) for kind in torchao.TYPES}


def int_n_xz(tensors: Tensors) -> dict[str, Point]:
    """Round to n bits with a float32 scale a row, then xz -9e a tensor."""
    return {f"int{bits} + xz": theirs(tensors, partial(_int_xz, bits=bits)) for bits in (8, 6, 5, 4)}


def _int_xz(x: np.ndarray, bits: int) -> Rounded:
    scale = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-30)) / (2 ** (bits - 1) - 1)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    data = lzma.compress(np.rint(x / scale).astype(np.int8).tobytes(), lzma.FORMAT_RAW, filters=filters)
    start = time.perf_counter()
    back = np.frombuffer(lzma.decompress(data, lzma.FORMAT_RAW, filters=filters), np.int8).reshape(x.shape) * scale
    return Rounded(back, len(data) + scale.nbytes, time.perf_counter() - start)


def types_of_others(tensors: Tensors) -> dict[str, Point]:
    """Single points: ggml's and torchao's types where they are installed, and int-n with xz."""
    types: dict[str, Point] = {}
    for package, measured in (("xllamacpp and gguf", ggml_types), ("torchao", torchao_types)):
        try:
            types.update(measured(tensors))
        except ImportError:
            print(f"{package}: not installed (pip install {package.replace(' and', '')}), left out.", file=sys.stderr)
    return types | int_n_xz(tensors)


def at(points: Sequence[Point], error: float) -> float | None:
    """Bits at an error, between the measured points along a line in log error; None outside of them."""
    ordered = sorted(points, key=lambda point: point.error)
    if not ordered[0].error <= error <= ordered[-1].error:
        return None
    return float(np.interp(np.log(error), [np.log(point.error) for point in ordered], [point.bits for point in ordered]))


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one net: curves of bits over error, ours first, and single points of other types."""

    name: str
    n: int
    curves: Mapping[str, Sequence[Point]]
    best: str
    types: Mapping[str, Point]

    @classmethod
    def of(cls, name: str, tensors: Tensors, quick: bool) -> Measured:
        n, squares = total(tensors)
        large = quick or n > LARGE
        steps = [float(np.sqrt(squares / n)) * ratio for ratio in np.geomspace(0.009, 0.7, 6 if large else 24)]
        curves = {}
        for count in STATES[:1] if large else STATES:
            curves[f"grid, {count} states"] = ours(tensors, Quantizer(states=count), steps)
        best = tuple(curves)[-1]
        curves["grid, 8 states, fast"] = ours(tensors, Quantizer(modelled=False), steps)
        try:
            if not large:
                curves["NNCodec"] = of_nncodec(tensors, 0.0)
                curves["NNCodec, lambda_scale 1"] = of_nncodec(tensors, 1.0)
        except ImportError:
            print("nncodec is not installed (pip install --no-deps nncodec==2.1.3): left out.", file=sys.stderr)
        return cls(name, n, curves, best, types_of_others(tensors))

    def tables(self) -> Iterator[str]:
        """Bits at given errors, and what others' types take beside us at their error; how fast each is read back, in the middle of a curve."""
        yield f"**{self.name}**, {self.n:,} weights ([picture]({self.picture})).\n"
        yield "| bits a weight at relative squared error | " + " | ".join(f"{error:g}" for error in ERRORS) + " | MB/s |"
        yield "|---|" + "---|" * (len(ERRORS) + 1)
        for label, points in self.curves.items():
            found = [at(points, error) for error in ERRORS]
            yield f"| {label} | " + " | ".join("-" if bits is None else f"{bits:.3f}" for bits in found) + f" | {points[len(points) // 2].speed:.0f} |"
        yield f"\n| type | error | its bits | {self.best} | saved | MB/s |\n|---|---|---|---|---|---|"
        for label, point in self.types.items():
            bits = at(self.curves[self.best], point.error)
            cells = ("-", "-") if bits is None else (f"{bits:.3f}", f"{100 - 100 * bits / point.bits:.1f} %")
            yield f"| {label} | {point.error:.2g} | {point.bits:.3f} | {cells[0]} | {cells[1]} | {point.speed:.0f} |"
        yield ""

    @property
    def picture(self) -> str:
        return f"error-{self.name.partition('.')[0].partition('-')[0]}.svg"

    def drawn(self) -> str:
        curves = [Curve(label, [Place(point.bits, point.error) for point in points]) for label, points in self.curves.items()]
        types = [Place(point.bits, point.error, label) for label, point in self.types.items()]
        return drawn(self.name, Scale("squared error over squares of the weights", True), [*curves, Curve("other types", types, True)])


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Print the tables; write them to docs/benchmarks.md unless `quick`. Returns 0, or 1 where there is nothing to measure."""
    folder = data_folder(root, data)
    names = [name for name in NETS if (not only or any(part in name for part in only)) and folder is not None and (folder / name).exists()]
    if folder is None or not names:
        print("No net to measure is there (--data, $MODELCODEC_DATA or ../shared/data).", file=sys.stderr)
        return 1
    measured = [Measured.of(name, weights_of(folder / name), quick) for name in names]
    block = "\n".join(line for found in measured for line in found.tables())
    print(block)
    if not quick:
        for found in measured:
            (root / "docs" / found.picture).write_text(found.drawn())
        replace_block(root / "docs" / "benchmarks.md", block, "lossy")
    return 0
