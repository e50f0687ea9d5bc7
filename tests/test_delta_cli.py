"""Promise: `--base` stores what changed, the base is asked for by name where it is missing, and `rebase` frees a delta of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sources import safetensors_bytes

from modelcodec.cli.main import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with base.safetensors and fine.safetensors."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(3)
    old = random.normal(0, 0.02, (64, 128)).astype(np.float32)
    fine = old * (1 + 0.01 * random.normal(size=old.shape)).astype(np.float32)
    for name, array in (("base", old), ("fine", fine)):
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors_bytes({"w": ("F32", (64, 128), array.tobytes())}))
    return tmp_path


def run(*args: str) -> int:
    return main([*args, "-q"] if args[0] != "info" else list(args))


def told(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    capsys.readouterr()
    assert main(["info", "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)


def test_compress_and_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = (folder / "fine.safetensors").read_bytes()
    assert run("compress", "fine.safetensors", "--base", "base.safetensors", "--rm") == 0
    assert told(capsys, "fine.mcodec.safetensors")["tensors"][0]["plan"] == "delta, given base.safetensors"
    assert run("decompress", "fine.mcodec.safetensors") == 0
    assert (folder / "fine.safetensors").read_bytes() == source
    (folder / "elsewhere").mkdir()
    (folder / "base.safetensors").rename(folder / "elsewhere" / "other.safetensors")
    assert run("decompress", "-f", "fine.mcodec.safetensors") == 2
    assert "'base.safetensors', which is not here; name it with --base" in capsys.readouterr().err
    for options in (("decompress",), ("compress", "-d")):
        assert run(*options, "-f", "fine.mcodec.safetensors", "--base", "elsewhere/other.safetensors") == 0
    assert (folder / "fine.safetensors").read_bytes() == source


def test_info_without_the_base(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", "fine.safetensors", "--base", "base.safetensors") == 0
    (folder / "base.safetensors").rename(folder / "away")
    assert told(capsys, "--no-floor", "fine.mcodec.safetensors")["tensors"][0]["plan"].startswith("delta")
    assert told(capsys, "--base", "away", "fine.mcodec.safetensors")["tensors"][0]["model_bits"] < 20
    assert main(["info", "fine.mcodec.safetensors"]) == 2


def test_rebase(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", "fine.safetensors", "--base", "base.safetensors", "-o", "delta") == 0
    assert run("rebase", "delta", "-o", "plain", "-5") == 0
    assert run("compress", "fine.safetensors", "-o", "same", "-5") == 0
    assert (folder / "plain").read_bytes() == (folder / "same").read_bytes()
    assert run("rebase", "plain", "-o", "again", "--onto", "base.safetensors") == 0
    assert (folder / "again").read_bytes() == (folder / "delta").read_bytes()
    assert run("rebase", "plain") == 2
    assert "name the destination" in capsys.readouterr().err
    assert run("rebase", "fine.safetensors", "-o", "no") == 5
