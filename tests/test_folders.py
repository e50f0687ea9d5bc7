"""Folders: nothing is missing without a word, names and permissions are those of the source."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import modelcodec
from modelcodec.errors import CorruptFile, UnsupportedFile


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    folder.mkdir()
    for k in (1, 2):
        save_file({f"w{k}": np.full((64, 65), k, np.float32)}, folder / f"model-0000{k}-of-00002.safetensors")
    index = {"weight_map": {f"w{k}": f"model-0000{k}-of-00002.safetensors" for k in (1, 2)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_a_missing_shard_is_found(sharded: Path) -> None:
    coded = sharded.with_name("coded")
    modelcodec.compress(sharded, coded)
    modelcodec.verify(coded)
    (coded / "model-00002-of-00002.safetensors").unlink()
    for act in (modelcodec.verify, modelcodec.inspect, modelcodec.decompress):
        with pytest.raises(CorruptFile, match="missing"):
            act(coded) if act is not modelcodec.decompress else act(coded, sharded.with_name("back"))
    (sharded / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CorruptFile, match="missing"):
        modelcodec.compress(sharded, overwrite=True)


def test_the_index_of_another_format_may_stand_alone(sharded: Path) -> None:
    """Hugging Face's download filters bring every JSON file, and only one format's shards."""
    elsewhere = {"weight_map": {f"w{k}": f"pytorch_model-0000{k}-of-00002.bin" for k in (1, 2)}}
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps(elsewhere))
    coded = sharded.with_name("coded")
    modelcodec.compress(sharded, coded)
    modelcodec.verify(coded)
    modelcodec.decompress(coded, sharded.with_name("back"))


def test_a_folder_without_containers_is_not_verified(sharded: Path) -> None:
    with pytest.raises(UnsupportedFile):
        modelcodec.verify(sharded)


def test_this_folder_has_a_name(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sharded)
    report = modelcodec.compress(".")
    assert Path(report.destination).name == "sharded.mcodec"
    modelcodec.decompress("../sharded.mcodec", "../back")
    for file in sharded.iterdir():
        assert (sharded.parent / "back" / file.name).read_bytes() == file.read_bytes()


def test_a_default_name_that_is_a_folder_is_refused(sharded: Path) -> None:
    shard = sharded / "model-00001-of-00002.safetensors"
    modelcodec.api.compressed_name(shard).mkdir()
    with pytest.raises(IsADirectoryError):
        modelcodec.compress(shard, overwrite=True)


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
def test_permissions_and_time_are_the_sources(tmp_path: Path) -> None:
    source = tmp_path / "private.safetensors"
    save_file({"w": np.ones((100, 100), np.float32)}, source)
    source.chmod(0o600)
    os.utime(source, ns=(1_600_000_000 * 10**9, 1_600_000_000 * 10**9))
    modelcodec.compress(source, tmp_path / "coded")
    modelcodec.decompress(tmp_path / "coded", tmp_path / "back")
    for name in ("coded", "back"):
        status = (tmp_path / name).stat()
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert status.st_mtime == 1_600_000_000
