"""Lossy tensors: what decoding gives is what the fit said, exactly; the file tells how far that is from the original."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import reference_decoder
from safetensors.numpy import save

import modelcodec
from modelcodec.compression import Settings, compress_view
from modelcodec.errors import CorruptFile
from modelcodec.fitted import Fitted, FittedTensor
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
    monkeypatch.setattr(container, "losses_bytes", lambda losses: entry)
    data = _compressed({"a[1]": Loss(0.125, 0.0052)})
    with pytest.raises(CorruptFile):
        container.read(memoryview(data), "lossy").losses()
    with pytest.raises(CorruptFile):
        modelcodec.decompress(BytesIO(data), BytesIO())
    with pytest.raises(reference_decoder.Corrupt):
        reference_decoder.restore(data)
