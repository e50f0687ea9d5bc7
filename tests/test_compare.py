"""`compare` tells how far tensors are from others, whatever files they lie in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import modelcodec
from modelcodec.cli.main import main
from modelcodec.errors import LimitExceeded, UnsupportedFile

RNG = np.random.default_rng(0)
W = RNG.standard_normal((40, 30)).astype(np.float32)


def _file(folder: Path, name: str, **tensors: np.ndarray) -> Path:
    save_file(tensors, folder / name)
    return folder / name


def test_figures(tmp_path: Path) -> None:
    noise = (RNG.standard_normal(W.shape) * 0.01).astype(np.float32)
    a, b = _file(tmp_path, "a.safetensors", w=W, same=W), _file(tmp_path, "b.safetensors", w=W + noise, same=W)
    found = modelcodec.compare(a, b)
    same, row = sorted(found.tensors, key=lambda tensor: tensor.n_different)
    error = (W + noise).astype(np.float64) - W
    assert (row.name, row.shape, row.n_elements) == ("w", (40, 30), 1200)
    assert row.max_error == np.abs(error).max()
    assert row.rmse == pytest.approx(math.sqrt((error**2).mean()))
    assert row.snr_db == pytest.approx(10 * math.log10((W.astype(np.float64) ** 2).sum() / (error**2).sum()))
    assert row.cosine == pytest.approx(1 - 0.5e-4, abs=2e-5)
    assert (same.n_different, same.max_error, same.snr_db, same.rmse) == (0, 0, math.inf, 0)
    assert not found.equal
    assert modelcodec.compare(a, a).equal


def test_files_of_other_kinds_and_dtypes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    a = _file(tmp_path, "a.safetensors", w=W, half=W.astype(np.float16), brain=W.astype(ml_dtypes.bfloat16), n=np.arange(5))
    modelcodec.compress(a)
    assert modelcodec.compare(a, tmp_path / "a.mcodec.safetensors").equal
    state = {"w": torch.from_numpy(W.T.copy()).T, "half": torch.from_numpy(W), "brain": torch.from_numpy(W).bfloat16(), "n": torch.arange(5)}
    torch.save(state, tmp_path / "b.pt")
    modelcodec.compress(tmp_path / "b.pt")
    for other in ("b.pt", "b.pt.mcodec"):
        rows = {row.name: row for row in modelcodec.compare(a, tmp_path / other).tensors}
        assert [rows[name].n_different for name in ("w", "brain", "n")] == [0, 0, 0]
        assert rows["half"].max_error == np.abs(W.astype(np.float16).astype(np.float64) - W).max()


def test_what_is_not_in_both(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    _file(folder, "1.safetensors", a=W, b=W)
    _file(folder, "2.safetensors", c=W)
    found = modelcodec.compare(folder, _file(tmp_path, "other.safetensors", b=W, c=W[:3], d=W))
    assert ([row.name for row in found.tensors], found.missing, found.added, found.unlike) == (["b"], ("a",), ("d",), ("c",))
    (tmp_path / "none").write_bytes(b"nothing")
    with pytest.raises(UnsupportedFile):
        modelcodec.compare(folder, tmp_path / "none")


def test_infinities_and_nan(tmp_path: Path) -> None:
    x = np.array([np.nan, np.inf, 1, 2, np.nan, 0], np.float32)
    y = np.array([np.nan, np.inf, 1, np.nan, 5, 0], np.float32)
    (row,) = modelcodec.compare(_file(tmp_path, "a", w=x), _file(tmp_path, "b", w=y)).tensors
    assert (row.n_different, row.max_error, row.rmse, row.snr_db) == (2, math.inf, math.inf, -math.inf)
    (row,) = modelcodec.compare(_file(tmp_path, "a", w=x), _file(tmp_path, "b", w=x)).tensors
    assert (row.n_different, row.max_error, row.snr_db) == (0, 0, math.inf)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = _file(tmp_path, "a.safetensors", w=W, same=W), _file(tmp_path, "b.safetensors", w=W * 2, same=W, new=W)
    assert main(["compare", str(a), str(a)]) == 0
    assert capsys.readouterr().out.endswith("2 tensors compared, all with the same bits\n")
    assert main(["compare", str(a), str(b)]) == 8
    out = capsys.readouterr().out
    assert "0.00 dB" in out
    assert "new: only in B" in out
    assert main(["compare", "--json", str(a), str(b)]) == 8
    record = json.loads(capsys.readouterr().out)
    assert (record["added"], record["equal"]) == (["new"], False)
    assert [row["snr_db"] for row in record["tensors"] if row["name"] == "same"] == [None]
    assert main(["compare", str(a), str(tmp_path / "missing")]) == 74


def test_a_view_that_repeats_its_storage_without_end_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "bomb.pt")
    with pytest.raises(LimitExceeded, match="repeats its storage"):
        modelcodec.compare(tmp_path / "bomb.pt", tmp_path / "bomb.pt")
