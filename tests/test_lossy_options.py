"""Promise: what `compress` is asked to lose, it loses no more than, and it says how much."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import modelcodec
from modelcodec.cli.main import main
from modelcodec.errors import BadRecipe
from modelcodec.fit.allocate import MaxError
from modelcodec.fit.fp8 import Fp8
from modelcodec.fit.rules import Ruled, is_usual
from modelcodec.fit.text import parse_fit
from modelcodec.recipe import Recipe
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

RNG = np.random.default_rng(0)
TENSORS = {
    "layer.0.weight": (RNG.standard_normal((96, 128)) * 0.05).astype(np.float32),
    "layer.1.weight": (RNG.standard_normal((32, 8, 3, 3)) * 0.2).astype(np.float32),
    "layer.1.norm.weight": RNG.standard_normal((16, 32)).astype(np.float32),
    "layer.1.bias": RNG.standard_normal(300).astype(np.float32),
    "head.weight": (RNG.standard_normal((10, 96)) * 0.1).astype(np.float16),
    "small": RNG.standard_normal((3, 4)).astype(np.float32),
}
LOSSY = ["layer.0.weight", "layer.1.weight", "head.weight"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def compressed(source: Path, *options: str) -> Path:
    target = source.with_name("out.mcodec.safetensors")
    assert main(["compress", "-f", "-q", *options, str(source), "-o", str(target)]) == 0
    return target


def errors(path: Path) -> dict[str, np.ndarray]:
    back = modelcodec.load_file(path)
    return {name: np.abs(back[name].astype(np.float64) - tensor) for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("level", ["-1", "-5"])
def test_bits(source: Path, level: str) -> None:
    out = compressed(source, "--bits", "4", level)
    rows = {row.name: row for row in modelcodec.inspect(out).tensors}
    assert sorted(name for name, row in rows.items() if row.loss) == sorted(LOSSY)
    lossy = [rows[name] for name in LOSSY]
    assert 8 * sum(row.n_bytes_coded for row in lossy) / sum(row.n_weights for row in lossy) < 4.1  # entries are padded
    found = errors(out)
    assert all(not found[name].any() for name in TENSORS if name not in LOSSY)
    for name in LOSSY:
        assert rows[name].loss is not None
        assert found[name].max() == pytest.approx(rows[name].loss.max_error, rel=1e-6)


def test_a_bound_is_held(source: Path) -> None:
    found = errors(compressed(source, "--max-error", "0.004"))
    assert all(0 < found[name].max() <= 0.004 for name in LOSSY)
    found = errors(compressed(source, "--max-error", "2%"))
    for name in LOSSY:
        most = np.abs(TENSORS[name].astype(np.float64)).reshape(len(TENSORS[name]), -1).max(axis=1)
        assert (found[name].reshape(len(most), -1).max(axis=1) <= 0.02 * most).all()
        assert found[name].any()


def test_a_bound_is_held_in_blocks(source: Path) -> None:
    found = errors(compressed(source, "--max-error", "2%", "--block", "50"))
    for name in LOSSY:
        starts = np.arange(0, found[name].size, 50)
        most = np.maximum.reduceat(np.abs(TENSORS[name].astype(np.float64)).reshape(-1), starts)
        assert (np.maximum.reduceat(found[name].reshape(-1), starts) <= 0.02 * most).all()
        assert found[name].any()


def test_snr(source: Path) -> None:
    out = compressed(source, "--snr", "25")
    found = errors(out)
    energy = sum(float((TENSORS[name].astype(np.float64) ** 2).sum()) for name in LOSSY)
    assert 25 <= 10 * np.log10(energy / sum(float((found[name] ** 2).sum()) for name in LOSSY)) < 25.5


@pytest.mark.parametrize("size", ["35%", "20kB"])
def test_target_size(source: Path, size: str) -> None:
    most = 0.35 * source.stat().st_size if size.endswith("%") else 20_000
    assert 0.9 * most < compressed(source, "--target-size", size).stat().st_size <= most


def test_drop(source: Path) -> None:
    script = source.with_name("my_eval.py")
    script.write_text(
        "import numpy as np\n"
        f"W = np.load({str(source.with_name('w.npy'))!r})\n"
        "def score(tensors):\n"
        "    assert set(tensors) == {'layer.0.weight', 'layer.1.weight', 'layer.1.norm.weight', 'layer.1.bias', 'head.weight', 'small'}\n"
        "    return -float(np.abs(tensors['layer.0.weight'] - W).mean())\n"
    )
    np.save(source.with_name("w.npy"), TENSORS["layer.0.weight"])
    found = errors(compressed(source, "--drop", "0.002", "--eval", str(script)))
    assert 0.0015 < found["layer.0.weight"].mean() <= 0.002


def test_an_error_in_the_users_file_is_told_as_its_own(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = source.with_name("my_eval.py")
    script.write_text("def score(tensors):\n    return tensors['nothing'].mean()\n")
    assert main(["compress", "--drop", "0.1", "--eval", str(script), str(source)]) == 2
    assert f"{script}, line 2: KeyError" in capsys.readouterr().err


def test_files_of_options_are_read_once_for_all_inputs(source: Path) -> None:
    """A script that counts how often it is run, with two inputs."""
    script, count, other = source.with_name("my_eval.py"), source.with_name("count"), source.with_name("other.safetensors")
    other.write_bytes(source.read_bytes())
    script.write_text(f"with open({str(count)!r}, 'a') as file: file.write('run ')\ndef score(tensors):\n    return 0.0\n")
    assert main(["compress", "-q", "--drop", "0.1", "--eval", str(script), str(source), str(other)]) == 0
    assert count.read_text() == "run "


def test_recipe(source: Path) -> None:
    recipe = source.with_name("recipe.toml")
    recipe.write_text('[[rule]]\ntensors = "layer.1.*weight"\nfit = "prune(0.5)"\n\n[[rule]]\ntensors = "head.*"\n')
    found = errors(compressed(source, "--recipe", str(recipe)))
    assert [name for name in TENSORS if found[name].any()] == ["layer.1.weight", "layer.1.norm.weight"]
    found = errors(compressed(source, "--recipe", str(recipe), "--bits", "5"))
    assert [name for name in TENSORS if found[name].any()] == ["layer.0.weight", "layer.1.weight", "layer.1.norm.weight"]
    back = modelcodec.load_file(source.with_name("out.mcodec.safetensors"))
    assert np.count_nonzero(back["layer.1.weight"]) == TENSORS["layer.1.weight"].size / 2


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--bits", "0"], 2),
        (["--bits", "3", "--snr", "20"], 2),
        (["--drop", "1"], 2),
        (["--bits", "3", "--rm"], 2),
        (["--bits", "3", "--sha256"], 2),
        (["--max-error", "much"], 2),
        (["--max-error", "-1"], 2),
        (["--max-error", "1", "--block", "32"], 2),
        (["--max-error", "1%", "--block", "0"], 2),
        (["--bits", "3", "--block", "32"], 2),
        (["--target-size", "small"], 2),
        (["--target-size", "1%"], 2),
        (["--drop", "1", "--eval", "missing.py"], 74),
        (["--recipe", "missing.toml"], 74),
    ],
)
def test_wrong_use_is_told_in_a_line(source: Path, options: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", *options, str(source)]) == code
    told = capsys.readouterr().err
    assert told.startswith("mcodec: ")
    assert "Traceback" not in told
    assert not source.with_name("model.mcodec.safetensors").exists()


def test_fits_as_text() -> None:
    for text in ("bits(3)", "bits(bits=3, states=32)", "snr(30)", "max_error(1e-3, relative=true)", "trellis(0.01) | trellis(0.02)", "nupes(4)", "fp8"):
        assert callable(parse_fit(text))
    assert parse_fit("fp8(2, rows=true)") == Fp8(2, rows=True)
    assert parse_fit("max_error(0.01, true, block=32)") == MaxError(0.01, relative=True, block=32)
    for text in ("", "bits", "bits(x)", "nothing(1)", "bits(1, 2)", "bits(1, bits=2)", "bits(1) |", "bits(1", "bits(3, states=7)", "bits(3, other=7)"):
        with pytest.raises(BadRecipe):
            parse_fit(text)
    for text in ("equalize", "batchnorm(true)"):
        with pytest.raises(BadRecipe, match="in Python"):
            parse_fit(text)


def test_rules_and_what_is_usual() -> None:
    def spec(name: str, *shape: int, dtype: str = "F32") -> TensorSpec:
        return TensorSpec(name, DTYPE_BY_NAME[dtype], shape)

    assert is_usual(spec("model.layers.0.mlp.up_proj.weight", 64, 64))
    for kept in (spec("model.norm.weight", 64, 64), spec("mlp.gate.weight", 64, 64), spec("w", 4096), spec("w", 3, 3), spec("w", 64, 64, dtype="I32")):
        assert not is_usual(kept)
    recipe = Recipe.from_toml('[[rule]]\ntensors = "a"\nfit = "bits(3)"\n')
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert Ruled(recipe.rules)({}).tensors == {}


def test_json_tells_the_losses(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = compressed(source, "--bits", "4")
    capsys.readouterr()
    assert main(["info", "--json", str(out)]) == 0
    losses = {row["name"]: row["loss"] for row in json.loads(capsys.readouterr().out)["tensors"]}
    assert [name for name, loss in losses.items() if loss] == [name for name in load_file(source) if name in LOSSY]


def test_calibrated(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    from modelcodec.fit.curvature import curvature

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16)).eval()
    inputs = torch.randn(256, 24) * torch.linspace(0.05, 3, 24)
    save_torch(model.state_dict(), tmp_path / "model.safetensors")
    curvature(model, [inputs[:128], inputs[128:]], lambda net, batch: net(batch)).save(tmp_path / "statistics.safetensors")
    script = tmp_path / "calibrate.py"
    statistics = str(tmp_path / "statistics.safetensors")
    script.write_text(f"from modelcodec.fit.calibration import Calibration\ndef calibrate():\n    return Calibration.load({statistics!r})\n")

    def error(*options: str) -> float:
        back = modelcodec.load_file(compressed(tmp_path / "model.safetensors", "--bits", "3", *options), "pt")
        expected = model(inputs)
        return float((torch.func.functional_call(model, back, inputs) - expected).square().mean().detach())

    plain, calibrated = error(), error("--calibrate", statistics)
    assert calibrated < plain
    assert error("--calibrate", str(script)) == calibrated
    script.write_text("def calibrate():\n    return 3\n")
    assert main(["compress", "--bits", "3", "--calibrate", str(script), str(tmp_path / "model.safetensors")]) == 2
    assert main(["compress", "--snr", "20", "--calibrate", str(script), str(tmp_path / "model.safetensors")]) == 2
