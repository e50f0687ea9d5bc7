"""Promise: a network that is trained with its original's attributions keeps them better than one that is not, and `compare` measures how far they moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn.datasets")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from modelcodec.cli.main import main  # noqa: E402
from modelcodec.errors import BadRecipe  # noqa: E402
from modelcodec.fit.attribution import INPUT, energy, grad_cam, last_maps, shifts  # noqa: E402
from modelcodec.fit.training.attribution import Attribution  # noqa: E402
from modelcodec.fit.training.learned_step import LearnedStep  # noqa: E402
from modelcodec.fit.training.loop import train  # noqa: E402
from modelcodec.fit.training.method import Method  # noqa: E402
from modelcodec.fit.training.plain import Plain  # noqa: E402
from tests.digits import Residual, check_method, digits, digits_task  # noqa: E402


def _trained() -> dict[str, torch.Tensor]:
    return train(digits_task(Residual, epochs=2), Plain()).model.state_dict()


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return _trained()


def _model(state: dict[str, torch.Tensor]) -> nn.Module:
    model = Residual()
    model.load_state_dict(state)
    return model


def test_grad_cam_is_what_the_answer_gains() -> None:
    torch.manual_seed(0)
    maps, weights = torch.randn(4, 3, 5, 5, requires_grad=True), torch.randn(10, 3)
    answers = functional.linear(maps.mean((2, 3)), weights)
    classes = torch.tensor([1, 5, 9, 0])
    gains = weights[classes]  # 25 places, each 1/25 of the mean
    wanted = torch.relu(torch.einsum("nc,nchw->nhw", gains, maps)).flatten(1)
    assert torch.allclose(grad_cam(maps, answers, classes), wanted, atol=1e-6)
    kept = torch.tensor([1.0, 0.0, 1.0])
    wanted = torch.relu(torch.einsum("nc,nchw->nhw", gains * kept, maps)).flatten(1)
    assert torch.allclose(grad_cam(maps, answers, classes, kept), wanted, atol=1e-6)
    assert torch.allclose(energy(maps), maps.square().mean(1).flatten(1))


def test_the_last_maps(state: dict[str, torch.Tensor]) -> None:
    assert last_maps(_model(state).eval(), digits()[0][:2]) == "bn3"
    with pytest.raises(BadRecipe, match="no layer of the model gives maps"):
        last_maps(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits()[0][:2])


def test_shifts_of_a_network_from_itself_and_others(state: dict[str, torch.Tensor]) -> None:
    model, images = _model(state), digits()[0]
    found = shifts(model, _model(state), images.split(64), 100)
    assert (found.n_images, found.agreement) == (100, 1)
    assert [row.name for row in found.layers] == ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3", INPUT]
    assert all(row.n_places == 64 and min(row.cosine, row.rank_correlation, row.overlap) > 1 - 1e-6 for row in found.layers)
    close, far = ({name: x + s * x.std() * torch.randn_like(x) if x.dim() > 1 else x for name, x in state.items()} for s in (0.05, 0.5))
    near, off = (shifts(model, _model(other), images.split(64), 100).layers[-1] for other in (close, far))
    assert 1 > near.cosine > off.cosine
    assert 1 > near.rank_correlation > off.rank_correlation
    assert 1 > near.overlap > off.overlap


@pytest.mark.parametrize("method", [Attribution(10), Attribution(10, weighted=False), Attribution(10, drop=0.3), LearnedStep(2) | Attribution(10)])
def test_it_joins_and_resumes(state: dict[str, torch.Tensor], tmp_path: Path, method: Method) -> None:
    trained, _ = check_method(method, digits_task(lambda: _model(state), epochs=2), tmp_path)
    assert not any(module._forward_hooks for module in trained.model.modules())


def test_attributions_stay_nearer(state: dict[str, torch.Tensor]) -> None:
    original, images = _model(state), digits()[0]
    task = digits_task(lambda: _model(state), epochs=3)
    rows = []
    for method in (LearnedStep(2), LearnedStep(2) | Attribution(100, layer="conv3")):
        found = shifts(original, train(task, method).model, images.split(200), 400)
        rows.append({row.name: row for row in found.layers}["conv3"])
    without, kept = rows
    assert kept.cosine > without.cosine + 0.02
    assert kept.rank_correlation > without.rank_correlation


def test_what_it_needs(state: dict[str, torch.Tensor]) -> None:
    model = _model(state)
    with pytest.raises(BadRecipe, match="begin it with data, or name the layer"):
        Attribution().begin(model)
    with pytest.raises(BadRecipe, match="name one of named_modules"):
        Attribution(layer="nothing").begin(model)
    with pytest.raises(BadRecipe, match="has not been run"):
        Attribution(layer="bn3").begin(model).penalty()
    with pytest.raises(BadRecipe, match="prices from 0"):
        Attribution(-1)


SCRIPT = """
import torch
from sklearn.datasets import load_digits


def model():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10))


def batches(epoch):
    return [(x, None) for x in torch.tensor(load_digits().images, dtype=torch.float32)[:, None].split(64)]
"""


def test_compare_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "task.py").write_text(SCRIPT)
    torch.manual_seed(0)
    tensors = {"0.weight": torch.randn(4, 1, 3, 3), "0.bias": torch.randn(4), "3.weight": torch.randn(10, 144), "3.bias": torch.randn(10)}
    save_file(tensors, tmp_path / "a.safetensors")
    save_file({name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in tensors.items()}, tmp_path / "b.safetensors")
    torch.save({"state": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "a.pt")
    options = ["--attribution", str(tmp_path / "task.py")]
    assert main(["compare", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), *options]) == 8
    out = capsys.readouterr().out
    assert "1000 images, " in out
    assert all(heading in out for heading in ("attribution", "cosine", "rank correlation", "overlap"))
    assert main(["compare", "--json", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), *options]) == 8
    record = json.loads(capsys.readouterr().out)["attribution"]
    assert [row["name"] for row in record["layers"]] == ["0", "1", "input"]
    assert all(0.5 < row["cosine"] < 1 for row in record["layers"])
    # names in a checkpoint may all have the same beginning
    assert main(["compare", "--json", str(tmp_path / "a.pt"), str(tmp_path / "a.pt"), *options]) == 0
    record = json.loads(capsys.readouterr().out)["attribution"]
    assert (record["agreement"], record["layers"][0]["overlap"]) == (1, 1)
    del tensors["3.bias"]
    save_file(tensors, tmp_path / "c.safetensors")
    assert main(["compare", str(tmp_path / "a.safetensors"), str(tmp_path / "c.safetensors"), *options]) == 2
    assert "c.safetensors: the tensor 3.bias is missing" in capsys.readouterr().err
