"""Sources above the bound of what is coded in memory go straight to the file, header and directory in a place that was kept for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference_decoder import restore

import modelcodec
from modelcodec import compression


@pytest.mark.parametrize("level", [1, 5, 9])
def test_header_in_a_kept_place(tmp_path: Path, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    tensors = {f"layer.{k}": (rng.standard_normal((60, 70 + k)) * np.exp(rng.standard_normal((1, 70 + k)))).astype(np.float32) for k in range(9)}
    tensors |= {"scalar": np.float64(3), "nothing": np.empty((0, 5), np.int16), "random": rng.integers(0, 256, 999, np.uint8), "again": tensors["layer.3"]}
    near = modelcodec.save(tensors, level=level)
    monkeypatch.setattr(compression, "IN_MEMORY_BYTES", 100)
    far = modelcodec.save(tensors, level=level)
    assert len(near) < len(far) < len(near) + 200 * len(tensors)
    for data in (near, far):
        loaded = modelcodec.load(data)
        assert {name: array.tobytes() for name, array in loaded.items()} == {name: array.tobytes() for name, array in tensors.items()}
    assert restore(near) == restore(far)
    path = tmp_path / "far.mcodec.safetensors"
    modelcodec.save_file(tensors, path, level=level)
    assert path.read_bytes() == far
    modelcodec.decompress(path, tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == restore(near)
