"""Promise: statistics are what errors of weights cost; a file of them gives the same ones back, and is the same for the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelcodec.errors import BadRecipe
from modelcodec.fit.calibration import Bias, Calibration
from modelcodec.types import DTYPE_BY_NAME, TensorSpec


def test_a_file_gives_statistics_back(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    moments, means = draw.standard_normal((6, 6)).astype(np.float32), draw.standard_normal(6)
    data = Calibration(moments={"a/b.weight": moments}, means={"a/b.weight": means}, biases={"a/b.weight": Bias("a/b.bias", -1)})
    data.save(tmp_path / "one")
    found = Calibration.load(tmp_path / "one")
    found.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    spec = TensorSpec("a/b.weight", DTYPE_BY_NAME["F32"], (4, 6))
    assert np.array_equal(found.moments["a/b.weight"], moments)
    assert np.allclose(found.means_of(spec), means)
    assert found.biases == data.biases
    assert found.outputs_of(spec) is None


@pytest.mark.parametrize("content", [b"", b"no statistics", b'\x02\0\0\0\0\0\0\0{}'])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(BadRecipe, match="no calibration"):
        Calibration.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "nothing")


def test_statistics_of_another_shape_are_refused() -> None:
    data = Calibration(outputs={"w": np.eye(3)}, means={"w": np.ones(5)})
    spec = TensorSpec("w", DTYPE_BY_NAME["F32"], (4, 6))
    for wrong in (data.outputs_of, data.means_of):
        with pytest.raises(BadRecipe):
            wrong(spec)


def _loss(data: Calibration, name: str, errors: np.ndarray) -> float:
    flat = errors.reshape(len(errors), -1)
    return float(np.einsum("ij,ij->", data.outputs[name] @ flat, flat @ data.moments[name]))


def test_the_curvature_of_a_linear_model_is_its_loss() -> None:
    torch = pytest.importorskip("torch")
    from modelcodec.fit.curvature import curvature

    generator = torch.Generator().manual_seed(1)
    model, x = torch.nn.Linear(8, 5).eval(), torch.randn(4000, 8, generator=generator) @ torch.randn(8, 8, generator=generator) + 1
    data = curvature(model, x.split(500), lambda m, batch: m(batch))
    errors = 0.1 * torch.randn(5, 8, generator=generator)
    off = x @ errors.T
    real = torch.square(off - off.mean(1, keepdim=True)).sum(1).mean()
    assert _loss(data, "weight", errors.numpy()) == pytest.approx(float(real), rel=0.05)
    assert np.allclose(data.means["weight"], x.mean(0).numpy(), atol=0.1 * float(x.std()))
    assert data.biases == {"weight": Bias("bias", -1)}
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_the_curvature_of_a_convolutional_model_foretells_its_loss() -> None:
    """Errors of different layers are weighed against each other as they count at the end, and norms take up mean errors."""
    torch = pytest.importorskip("torch")
    from modelcodec.fit.curvature import curvature

    torch.manual_seed(2)
    nn = torch.nn
    first = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(*first, nn.Conv2d(8, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)).eval()
    x = torch.randn(400, 3, 8, 8)
    data = curvature(model, x.split(100), lambda m, batch: m(batch))
    assert data.biases == {"0.weight": Bias("1.running_mean", 1), "3.weight": Bias("3.bias", -1), "6.weight": Bias("6.bias", -1)}
    with torch.no_grad():
        before = model(x)
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                errors = 0.05 * weight.std() * torch.randn_like(weight)
                weight += errors
                off = model(x) - before
                weight -= errors
                real = float(torch.square(off - off.mean(1, keepdim=True)).sum(1).mean())
                assert 0.5 < _loss(data, name, errors.numpy()) / real < 2


def test_models_that_cannot_be_measured_are_refused() -> None:
    torch = pytest.importorskip("torch")
    from modelcodec.fit.curvature import curvature

    model = torch.nn.Linear(4, 3)
    with pytest.raises(BadRecipe, match="eval"):
        curvature(model, [torch.ones(2, 4)], lambda m, batch: m(batch))
    with pytest.raises(BadRecipe, match="batch"):
        curvature(model.eval(), [], lambda m, batch: m(batch))
    with pytest.raises(BadRecipe, match="logits"):
        curvature(model, [torch.ones(2, 4)], lambda m, batch: m(batch).sum())


def test_sequences_and_likelihood() -> None:
    torch = pytest.importorskip("torch")
    from modelcodec.fit.curvature import curvature

    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Embedding(20, 8), torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 20, bias=False)).eval()
    data = curvature(model, torch.randint(20, (60, 12)).split(20), lambda m, batch: m(batch), loss="likelihood")
    assert data.outputs["1.weight"].shape == (8, 8)
    assert set(data.biases) == {"1.weight"}
    assert all(np.trace(x) > 0 for x in (*data.moments.values(), *data.outputs.values()))


@pytest.mark.parametrize("most_rows", [100, 10])
@pytest.mark.parametrize("tied", [True, False])
def test_the_curvature_of_embeddings_foretells_their_loss(monkeypatch: pytest.MonkeyPatch, most_rows: int, tied: bool) -> None:
    """In a table that is the head, too, errors cost what both uses do; with more rows than are seen as pairs, and with fewer."""
    torch = pytest.importorskip("torch")
    from modelcodec.fit import curvature

    monkeypatch.setattr(curvature, "_MOST_ROWS", most_rows)
    torch.manual_seed(4)
    nn = torch.nn
    model = nn.Sequential(nn.Embedding(24, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 24, bias=False)).eval()
    if tied:
        model[3].weight = model[0].weight
    frequencies = 2.0 ** -torch.arange(24.0)
    tokens = torch.multinomial(frequencies, 600 * 4, replacement=True).reshape(600, 4)
    data = curvature.curvature(model, tokens.split(100), lambda m, batch: m(batch), loss="likelihood")
    assert data.outputs["0.weight"].ndim == data.outputs["3.weight"].ndim == (2 if most_rows > 24 else 1)
    with torch.no_grad():
        before = torch.log_softmax(model(tokens), -1)
        for name in ("0.weight",) if tied else ("0.weight", "3.weight"):
            weight, foreseen, real = model.get_parameter(name), 0.0, 0.0
            for _ in range(8):
                errors = 0.02 * torch.randn_like(weight)
                weight += errors
                after = torch.log_softmax(model(tokens), -1)
                weight -= errors
                real += 2 * float((before.exp() * (before - after)).sum()) / len(tokens)
                costs = data.outputs[name] if most_rows > 24 else np.diag(data.outputs[name])
                foreseen += float(np.einsum("ij,ij->", costs @ errors.numpy(), errors.numpy() @ data.moments[name]))
            assert 0.6 < foreseen / real < 1.6


def test_positions_are_tokens_of_one_sample() -> None:
    torch = pytest.importorskip("torch")
    from modelcodec.fit.curvature import curvature

    class Placed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places, self.head = torch.nn.Embedding(9, 4), torch.nn.Embedding(6, 4), torch.nn.Linear(4, 5)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))

    data = curvature(Placed().eval(), torch.randint(9, (40, 5)).split(10), lambda m, batch: m(batch))
    costs = np.diag(data.outputs["places.weight"])
    assert (costs[:5] > 0).all()
    assert costs[5] == 0
