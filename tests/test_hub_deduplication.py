"""Promise: of a new revision only what changed is sent, measured by the Hub's own client against a store in a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("hf_xet")
from safetensors.numpy import save_file

import modelcodec
from modelcodec.hub.traffic import bytes_sent

FRAME_BYTES = 1 << 20
AROUND_BYTES = 5 * (128 << 10)
"""The Hub's chunker cuts by content, into at most 128 KiB: what is sent around a change, until the cuts are the same again, and for header and directory."""


def weights(seed: int, rows: int, columns: int = 512) -> Any:
    return (np.random.default_rng(seed).standard_normal((rows, columns), np.float32) * np.float32(0.02)).astype(ml_dtypes.bfloat16)


class Uploads:
    """Revisions of one model that are uploaded one after the other, each compressed at one level."""

    def __init__(self, folder: Path, level: int) -> None:
        self.folder, self.level = folder, level

    def __call__(self, tensors: dict[str, Any]) -> int:
        """Bytes that the revision sends."""
        save_file(tensors, self.folder / "model.safetensors", {"format": "pt"})
        packed = self.folder / "packed"
        modelcodec.compress(self.folder / "model.safetensors", packed, level=self.level, overwrite=True)
        self.n_bytes = packed.stat().st_size
        return bytes_sent([packed], self.folder / "store")


@pytest.fixture(params=[1, 5, 9])
def upload(request: pytest.FixtureRequest, tmp_path: Path) -> Uploads:
    return Uploads(tmp_path, request.param)


def test_one_tensor_changed_sends_little_more_than_that(upload: Uploads) -> None:
    model = {f"layer.{i:02}": weights(i, 1024) for i in range(24)}
    first = upload(model)
    assert 0.9 * upload.n_bytes < first < 1.1 * upload.n_bytes
    changed = upload(model | {"layer.07": weights(100, 1024)})
    assert changed < upload.n_bytes / 24 + AROUND_BYTES
    assert upload(model) < AROUND_BYTES, "back again: all of it is known"


def test_a_tensor_inserted_at_the_front_moves_nothing(upload: Uploads) -> None:
    model = {f"layer.{i:02}": weights(i, 1024) for i in range(24)}
    upload(model)
    before = upload.n_bytes
    inserted = upload({"a.new": weights(100, 128)} | model)
    assert inserted < upload.n_bytes - before + AROUND_BYTES


def test_rows_edited_inside_a_large_tensor_send_a_few_frames(upload: Uploads) -> None:
    table = weights(0, 16384)
    upload({"table": table})
    table[5000:5003] = weights(1, 3)
    # At level 9 frames share a part, eight at a time.
    assert upload({"table": table}) < (8 if upload.level == 9 else 2) * FRAME_BYTES + AROUND_BYTES
    longer = np.concatenate([table, weights(2, 8)])
    assert upload({"table": longer}) < (8 if upload.level == 9 else 2) * FRAME_BYTES + AROUND_BYTES


def test_a_large_file_keeps_its_place(tmp_path: Path) -> None:
    """Beyond 64 MiB header and directory have a place of their own, whose size depends on names and shapes alone."""
    upload = Uploads(tmp_path, 1)
    model = {f"layer.{i:02}": weights(i, 4096) for i in range(17)}
    upload(model)
    assert upload(model | {"layer.07": weights(100, 4096)}) < upload.n_bytes / 17 + AROUND_BYTES
