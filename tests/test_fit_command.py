"""Promise: `mcodec fit` trains a user's model into a file, tells how it goes, and goes on where it was stopped or killed, to the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn.datasets")

import modelcodec  # noqa: E402
from modelcodec.cli.main import main  # noqa: E402

ROOT = Path(__file__).parent.parent
METHOD = "dkm(8)"
SCRIPT = """
from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import torch
from beside import digits

torch.set_num_threads(1)
epochs = 3


@dataclass
class Part:
    x: torch.Tensor
    y: torch.Tensor


images, digit = digits()


def model():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def batches(epoch):
    return [Part(images[k], digit[k]) for k in torch.randperm(1500).split(50)]


def loss(net, part):
    time.sleep(float(os.environ.get("PAUSE", 0)))
    if os.path.exists(os.environ.get("INTERRUPT", "")):
        os.unlink(os.environ["INTERRUPT"])
        signal.raise_signal(signal.SIGINT)
    return torch.nn.functional.cross_entropy(net(part.x), part.y)


def score(net):
    return float((net(images[1500:]).argmax(1) == digit[1500:]).float().mean())


def optimizer(parameters):
    return torch.optim.Adam(parameters, 5e-3)


def inputs(part):
    return part.x


def labels(part):
    return part.y
"""
BESIDE = """
import torch
from sklearn.datasets import load_digits


def digits():
    found = load_digits()
    return torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text(BESIDE)
    (tmp_path / "task.py").write_text(SCRIPT)
    return tmp_path


def _fit(folder: Path, out: str, *options: str, method: str = METHOD) -> int:
    return main(["fit", method, str(folder / "task.py"), "--out", str(folder / out), *options])


def test_a_file_of_few_weights_with_size_and_score(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _fit(folder, "a.mcodec.safetensors") == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("mcodec: compiling")]
    assert out == ""
    assert [line.partition(":")[0] for line in lines[:3]] == ["pass 1 of 3", "pass 2 of 3", "pass 3 of 3"]
    assert all("loss" in line and "score" in line for line in lines[:3])
    tensors = modelcodec.load_file(folder / "a.mcodec.safetensors", "pt")
    assert len(tensors["1.weight"].unique()) <= 8
    assert sorted(path.name for path in folder.glob("a*")) == ["a.mcodec.safetensors"], "the checkpoint is gone"
    assert _fit(folder, "b", "--json", "--seed", "3", "--epochs", "1", "-9") == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert (record["method"], record["seed"], record["epochs"]) == (METHOD, 3, 1)
    assert record["n_bytes_coded"] == (folder / "b").stat().st_size
    assert 0.1 < record["score"] <= 1
    assert _fit(folder, "c", "--quiet", "--epochs", "1") == 0
    assert capsys.readouterr().err == ""
    assert _fit(folder, "c") == 74
    assert "exists already" in capsys.readouterr().err
    assert _fit(folder, "c", "-f", "-q", "--epochs", "0") == 0


def _killed_after_a_pass(folder: Path, out: str) -> None:
    """Run the command in a process of its own, and kill it as soon as there is a checkpoint."""
    command = [sys.executable, "-m", "modelcodec.cli.main", "fit", METHOD, str(folder / "task.py"), "-q", "-o", str(folder / out)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PAUSE": "0.03"})
    while not (folder / f"{out}.training").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() != 0


def test_killed_and_interrupted_it_goes_on_to_the_same_bytes(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _fit(folder, "whole", "-q") == 0
    _killed_after_a_pass(folder, "again")
    monkeypatch.setenv("INTERRUPT", str(folder / "interrupt"))
    (folder / "interrupt").touch()
    capsys.readouterr()
    assert _fit(folder, "again") == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"mcodec: interrupted; the same command goes on from {folder / 'again.training'}"
    assert not (folder / "again").exists()
    assert _fit(folder, "again") == 0
    assert "pass 1" not in capsys.readouterr().err
    assert (folder / "again").read_bytes() == (folder / "whole").read_bytes()
    assert not (folder / "again.training").exists()


def test_the_checkpoint_of_another_script_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"of": {"method": "", "seed": 0}}, folder / "out.training")
    assert _fit(folder, "out") == 2
    assert "another training, its method is" in capsys.readouterr().err
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        (("def loss", "def losses"), 2, "task.py: the function loss is missing"),
        (("import torch\n", "import torch; torch.nothing()\n"), 2, "task.py, line 9: AttributeError"),
        (("net(part.x)", "net(part.z)"), 2, "task.py, line 38: AttributeError: 'Part' object has no attribute 'z'"),
        (("def model():", "def model(:"), 2, "task.py, line 25: SyntaxError"),
        (("images, digit = digits()", "images, digit = digits(); open('missing')"), 74, "missing"),
    ],
)
def test_what_is_wrong_with_a_script(folder: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], code: int, told: str) -> None:
    script = folder / "task.py"
    assert script.read_text().count(change[0]) == 1
    script.write_text(script.read_text().replace(*change))
    assert _fit(folder, "out") == code
    assert told in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_what_is_wrong_with_the_rest(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert _fit(folder, "out", method="nonsense(1)") == 2
    assert "there is no training method 'nonsense'" in capsys.readouterr().err
    assert _fit(folder, "none/out") == 74
    assert main(["fit", METHOD, str(folder / "missing.py"), "-o", str(folder / "out")]) == 74
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("modelcodec.fit.training.")]:
        monkeypatch.delitem(sys.modules, name)
    assert _fit(folder, "out") == 2
    assert "pip install 'modelcodec[torch]'" in capsys.readouterr().err


def test_the_help_imports_nothing_heavy() -> None:
    script = "import sys; from modelcodec.cli.main import main; main(['fit', '--help']); print(set(sys.modules) & {'torch', 'numpy', 'numba', 'rich'})"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
