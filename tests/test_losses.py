"""Lossy tensors: what decoding gives is what the fit said, exactly; the file tells how far that is from the original."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import reference_decoder
from safetensors.numpy import save

import modelcodec
from modelcodec.cli.main import main
from modelcodec.compression import Settings, compress_view
from modelcodec.errors import BadRecipe, CorruptFile
from modelcodec.fitted import Fitted, FittedTensor, Weights
from modelcodec.formats import container, identify
from modelcodec.recipe import Recipe, parse_plan
from modelcodec.types import Loss
from modelcodec.wire import varint

ROUNDED = np.float32(np.round(np.random.default_rng(0).standard_normal((64, 128)) * 4) / 4)
PLAN = parse_plan("palette(indices:rans)")


def _compressed(losses: dict[str, Loss], words: np.ndarray = ROUNDED) -> bytes:
    original = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    source = memoryview(save({"a[1]": original, "b": original, "norm": original[0]}))
    fitted = Fitted({name: FittedTensor(words.reshape(-1).view(np.uint32), PLAN, loss) for name, loss in losses.items()})
    out = BytesIO()
    compress_view(source, identify(source, None), out, Settings(Recipe(), 5, 1, True, False), None, fitted)
    return out.getvalue()


def test_fitted_tensors_come_back_as_fitted_and_others_as_they_were() -> None:
    data = _compressed({"a[1]": Loss(0.125, 0.0052)})
    tensors = modelcodec.load(data)
    assert np.array_equal(tensors["a[1]"], ROUNDED)
    assert not np.array_equal(tensors["b"], ROUNDED)
    archive = container.read(memoryview(data), "lossy")
    assert archive.losses() == {"a[1]": Loss(0.125, pytest.approx(0.0052))}
    assert b'"modelcodec":"0.3"' in data[:500]
    plan = str(archive.frame_head(next(e for e in archive.tensors if e.name == "a[1]"), 0).root)
    assert plan == "palette(indices:rans)"


def test_the_reference_decoder_reads_it() -> None:
    data = _compressed({"a[1]": Loss(0.125, 0.0052), "b": Loss(1.0, 0.5)})
    restored = reference_decoder.restore(data)
    assert ROUNDED.tobytes() in restored
    back = BytesIO()
    modelcodec.decompress(BytesIO(data), back)
    assert back.getvalue() == restored


def rounded(weights: Mapping[str, Weights]) -> Fitted:
    """Matrices to quarters."""
    fitted = {}
    for name, tensor in weights.items():
        if len(tensor.spec.shape) > 1:
            values = np.round(tensor.words.view(np.float32) * 4) / np.float32(4)
            error = values - tensor.words.view(np.float32)
            fitted[name] = FittedTensor(values.view(np.uint32), PLAN, Loss(float(np.abs(error).max()), float((error**2).mean())))
    return Fitted(fitted)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_a_torch_file_are_fitted_where_they_lie(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    large, small = torch.randn(100, 300), torch.randn(3, 5)
    state = {"bias": torch.randn(7), "small": small, "norm": torch.randn(5), "large": large, "tied": large}
    state |= {"part": torch.randn(50)[10:30], "turned": torch.randn(8, 6).T}
    path = tmp_path / "model.pt"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    report = modelcodec.compress(path, fit=rounded)
    assert report.n_bytes_coded < report.n_bytes / 3
    modelcodec.verify(f"{path}.mcodec")
    modelcodec.decompress(f"{path}.mcodec", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert (tmp_path / "back.pt").stat().st_size == path.stat().st_size
    for name, tensor in state.items():
        expected = (tensor * 4).round() / 4 if name in ("small", "large", "tied") else tensor
        assert torch.equal(back[name], expected), name
    loaded = modelcodec.load_file(f"{path}.mcodec", "pt")
    assert all(torch.equal(loaded[name], back[name]) for name in state)


def test_info_tells_the_losses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.mcodec").write_bytes(_compressed({"a[1]": Loss(0.125, 0.01)}))
    assert main(["info", str(tmp_path / "m.mcodec")]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert rows["a[1]"].rstrip().endswith("0.125  20.00 dB")
    assert rows["b"].rstrip().endswith("-         -")
    assert main(["info", "--json", str(tmp_path / "m.mcodec")]) == 0
    tensors = json.loads(capsys.readouterr().out)["tensors"]
    assert [tensor["loss"] for tensor in tensors if tensor["name"] in ("a[1]", "b")] == [{"max_error": 0.125, "relative_mse": pytest.approx(0.01)}, None]


def test_a_fit_that_gives_other_tensors_is_refused() -> None:
    source = save({"a": ROUNDED})
    short = FittedTensor(np.zeros(3, np.uint32), PLAN, Loss(0, 0))
    for fitted in (Fitted(), Fitted({"b": short}), Fitted({"a": short})):
        with pytest.raises(BadRecipe):
            modelcodec.compress(BytesIO(source), BytesIO(), fit=lambda weights, fitted=fitted: fitted)
    with pytest.raises(BadRecipe, match="SHA-256"):
        modelcodec.compress(BytesIO(source), BytesIO(), fit=rounded, sha256=True)


def test_a_lossless_file_has_no_losses() -> None:
    data = modelcodec.save({"w": ROUNDED})
    assert container.read(memoryview(data), "lossless").losses() == {}
    assert b"losses" not in data


@pytest.mark.parametrize(
    "entry",
    [
        varint(0),
        varint(1) + varint(0) + np.float32([1, 1]).tobytes(),
        varint(1) + varint(9) + np.float32([1, 1]).tobytes(),
        varint(1) + varint(2) + np.float32([np.nan, 1]).tobytes(),
        varint(1) + varint(2) + np.float32([1, -1]).tobytes(),
        varint(2) + 2 * (varint(2) + np.float32([1, 1]).tobytes()),
        varint(1) + varint(2) + np.float32([1, 1]).tobytes() + b"\0",
        varint(1) + varint(2) + b"\0\0\0",
    ],
)
def test_a_damaged_losses_entry_is_an_error(entry: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelcodec.compression.losses_bytes", lambda losses: entry)
    data = _compressed({"a[1]": Loss(0.125, 0.0052)})
    with pytest.raises(CorruptFile):
        container.read(memoryview(data), "lossy").losses()
    with pytest.raises(CorruptFile):
        modelcodec.decompress(BytesIO(data), BytesIO())
    with pytest.raises(reference_decoder.Corrupt):
        reference_decoder.restore(data)
