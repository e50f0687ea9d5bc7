"""Promise: weights that are trained as a seed and few coefficients, or a mask, are stored as such, and come out of the decoder as they were trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from digits import Residual, accuracy, check_method, digits, digits_task, perceptron  # noqa: E402

import modelcodec  # noqa: E402
from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit.training import parse_method, signs  # noqa: E402
from modelcodec.fit.training.pranc import PRANC, Seeded, least_squares  # noqa: E402
from modelcodec.fit.training.projection import Projection  # noqa: E402
from modelcodec.fit.training.supermask import Supermask  # noqa: E402
from modelcodec.formats import container  # noqa: E402
from modelcodec.formats.container_layout import Entry  # noqa: E402
from modelcodec.frame import EncodedFrame  # noqa: E402
from modelcodec.kernels import philox  # noqa: E402
from modelcodec.kernels.philox import Signs  # noqa: E402
from modelcodec.runtime.compressed_weight import WeightStore, compressed_tensor  # noqa: E402
from modelcodec.runtime.frames_in_memory import Coding, FramesInMemory  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def read(path: Path) -> tuple[container.Container, memoryview]:
    data = memoryview(path.read_bytes())
    return container.read(data, path.name), data


def fitted(path: Path) -> list[Entry]:
    """The tensors that are not left exact."""
    return [e for e in read(path)[0].tensors if len(e.spec.shape) > 1 and e.spec.n_words >= 256]


def stages_of(path: Path) -> dict[str, str]:
    """The stage at the root of their first frames."""
    archive, _ = read(path)
    return {e.spec.name: archive.frame_head(e, 0).root.stage.name for e in fitted(path)}


def coded_bytes(path: Path) -> int:
    """Bytes of their frames."""
    return sum(e.size for e in fitted(path))


def matrix(made: Signs, n: int) -> np.ndarray[Any, Any]:
    """The basis in full (words x spans * k)."""
    units = np.eye(made.spans(0, n) * made.k, dtype=np.int32).reshape(-1, made.spans(0, n), made.k)
    return np.array([philox.sums(unit, made, 0, n) for unit in units], float).T


@pytest.mark.parametrize(("method", "model", "wanted"), [(PRANC(400), perceptron, 0.7), (Projection(400), Residual, 0.5)], ids=["pranc", "projection"])
def test_few_coefficients_are_trained_and_stored(method: Any, model: Any, wanted: float, tmp_path: Path) -> None:
    trained, path = check_method(method, digits_task(model, epochs=3, rate=3e-2), tmp_path)
    assert accuracy(trained.model) > wanted
    assert set(stages_of(path).values()) == {"seedbasis"}
    assert coded_bytes(path) < 400 / 2 + 60 * len(stages_of(path))


@pytest.mark.parametrize("signed", [False, True])
def test_masks_of_random_signs(signed: bool, tmp_path: Path) -> None:
    """Three values a tensor, so many of them zero; without trained signs a bit a weight, where ternary weights take half a bit more."""
    trained, path = check_method(Supermask(0.5, signed), digits_task(perceptron, rate=3e-2), tmp_path)
    assert accuracy(trained.model) > 0.3
    weights = [module.weight for module in trained.model if isinstance(module, torch.nn.Linear)]
    for weight in weights:
        assert weight.unique().numel() == 3
        assert int(weight.count_nonzero()) == round(weight.numel() / 2)
    assert ("seedbasis" in stages_of(path).values()) != signed
    assert coded_bytes(path) * 8 < (1.65 if signed else 1.15) * sum(weight.numel() for weight in weights) + 8 * 50 * len(weights)


def test_what_a_layer_computes_with_is_what_decoding_gives() -> None:
    """Also in 16 bits, and with rounding in between."""
    for dtype, name in ((torch.float32, "F32"), (torch.bfloat16, "BF16"), (torch.float16, "F16")):
        layer = torch.nn.Linear(70, 30).to(dtype)
        training = PRANC(200, basis=40).begin(layer)
        made = layer.parametrizations.weight
        with torch.no_grad():
            made.original0 += 0.1 * torch.randn(made.original0.shape, generator=torch.Generator().manual_seed(1))
        words = made[0].basis(made.original0).words(0, 2100, name)
        before = layer.weight.detach().clone()
        assert before.view(torch.uint8).numpy().tobytes() == words.tobytes()
        assert torch.equal(training.finish().model.weight, before)


def test_gradients_are_those_of_the_basis() -> None:
    weight = torch.randn(20, 60, generator=torch.Generator().manual_seed(0))
    made = Signs(5, 500, 12)
    how = Seeded(weight, made, levels=1e6)
    (start,) = how.right_inverse(weight)
    start.requires_grad_()
    pull = torch.randn(20, 60, generator=torch.Generator().manual_seed(2))
    (how(start) * pull).sum().backward()
    expected = how.magnitude * matrix(made, 1200).T @ pull.reshape(-1).numpy()
    np.testing.assert_allclose(start.grad.reshape(-1).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("n", "span", "k"), [(1000, 300, 7), (5000, 2500, 64), (700, 1024, 33), (40, 1 << 32, 1)])
def test_tensor_operations_give_what_kernels_give(n: int, span: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on a GPU, here on the processor, in tiles of some and of all words."""
    made = Signs(0xFEDCBA9876543210, span, k)
    draw = torch.Generator().manual_seed(n)
    coefficients = torch.randint(-30_000, 30_000, (made.spans(0, n), k), dtype=torch.int32, generator=draw)
    values = torch.randint(-999, 999, (n,), generator=draw).float()
    for tile in (1 << 10, 1 << 23):
        monkeypatch.setattr(signs, "_TILE", tile)
        assert torch.equal(signs.tiled_sums(coefficients, made, n), signs.sums(coefficients, made, n))
        assert torch.equal(signs.tiled_correlations(values, made), signs.correlations(values, made))


def test_the_start_nearest_to_a_model() -> None:
    values = np.random.default_rng(0).normal(size=1200)
    made = Signs(9, 400, 150)
    found = least_squares(values, made)
    full = matrix(made, 1200)
    best = np.linalg.lstsq(full, values, rcond=None)[0]
    assert np.linalg.norm(full @ found.reshape(-1) - values) < 1.0001 * np.linalg.norm(full @ best - values)
    layer = torch.nn.Linear(64, 64)
    before = layer.weight.detach().clone()
    PRANC(3000, start="model").begin(layer)
    assert float((layer.weight.detach() - before).square().sum() / before.square().sum()) < 0.45


def test_a_projection_begins_where_its_seed_says_and_a_pranc_there_too() -> None:
    pranc, projection = perceptron(), perceptron()
    projection.load_state_dict(pranc.state_dict())
    PRANC(300).begin(pranc)
    Projection(300).begin(projection)
    assert torch.equal(pranc[1].weight, projection[1].weight)
    assert pranc[1].weight.abs().unique().numel() == 1
    assert projection[1].parametrizations.weight.original0.count_nonzero() == 0


def test_an_image_as_a_network(tmp_path: Path) -> None:
    """A digit as a network of its coordinates, as in the paper: 4,400 weights, 300 coefficients."""

    class Sine(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sin(3 * x)

    torch.manual_seed(0)
    line = torch.linspace(-1, 1, 8)
    places, image = torch.cartesian_prod(line, line), digits()[0][0].reshape(-1, 1)
    net = torch.nn.Sequential(torch.nn.Linear(2, 64), Sine(), torch.nn.Linear(64, 64), Sine(), torch.nn.Linear(64, 1))
    training = PRANC(300).begin(net)
    optimizer = torch.optim.Adam(training.model.parameters(), 1e-2)
    for step in range(300):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(training.model(places), image).backward()
        optimizer.step()
        training.after_step((step + 1) / 300)
    path = tmp_path / "image.mcodec.safetensors"
    training.finish().save(path, level=9)
    state = modelcodec.load_file(path, "pt")
    assert stages_of(path)["2.weight"] == "seedbasis"
    plain = torch.nn.Sequential(torch.nn.Linear(2, 64), Sine(), torch.nn.Linear(64, 64), Sine(), torch.nn.Linear(64, 1))
    plain.load_state_dict(state)
    assert float(torch.nn.functional.mse_loss(plain(places), image).detach()) < 1e-3


def test_a_layer_keeps_coefficients_and_makes_its_weights_in_each_forward(tmp_path: Path) -> None:
    """Half a million weights, two frames that share their coefficients: in memory as in the file, decoded when the layer runs."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(700, 750)
    path = tmp_path / "layer.mcodec.safetensors"
    training = PRANC(2000).begin(layer)
    torch.nn.init.normal_(layer.parametrizations.weight.original0, std=0.1)
    training.finish().save(path)
    archive, data = read(path)
    entry = next(e for e in archive.tensors if e.spec.name == "weight")
    spans = [entry.span(number) for number in range(entry.n_frames)]
    shared = [archive.context(entry, number).shared for number in range(0, entry.n_frames, entry.group_frames)]
    coded = tuple(EncodedFrame(bytes(data[start:end]), 0) for start, end in spans)
    in_memory = FramesInMemory(entry.spec, entry.frame_words, entry.group_frames, coded, tuple(shared))
    assert in_memory.n_bytes < 2500
    small = torch.nn.Linear(700, 750)
    small.load_state_dict({"bias": layer.bias.detach()}, strict=False)
    made = compressed_tensor()(WeightStore(in_memory, Coding(), torch.device("cpu"), ()), layer.weight.size(), layer.weight.stride(), 0, torch.float32)
    small.weight = torch.nn.Parameter(made, requires_grad=False)
    x = torch.randn(3, 700)
    with torch.no_grad():
        assert torch.equal(small(x), layer(x))


def test_tied_weights_stay() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
    net[1].weight = net[0].weight
    PRANC(100).begin(net)
    assert [hasattr(layer, "parametrizations") for layer in net] == [False, False, True]


@pytest.mark.parametrize("text", ["pranc(0)", "pranc(start=zero)", "pranc(levels=0)", "projection(basis=513)", "supermask(0)", "supermask(1.5)"])
def test_impossible_options(text: str) -> None:
    with pytest.raises(BadRecipe):
        parse_method(text)


@pytest.mark.parametrize("method", [PRANC(50), Supermask()], ids=["pranc", "supermask"])
def test_a_weight_is_made_by_one_seed(method: Any) -> None:
    layer = torch.nn.Linear(32, 32)
    method.begin(layer)
    with pytest.raises(BadRecipe, match="already"):
        method.begin(layer)
