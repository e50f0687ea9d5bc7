"""Promise: `torch_load` gives from a compressed file what `torch.load` gives from the original, executes no more, and tells damage as ours."""

from __future__ import annotations

import io
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("torch")
import torch

import modelcodec
from modelcodec.errors import CorruptFile, TruncatedFile
from modelcodec.runtime.restored_file import RestoredFile


@pytest.fixture(scope="module", params=[True, False], ids=["zip", "legacy"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with views, tied weights, small things and a tensor of several frames; compressed beside it."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1000, 600, generator=generator)
    content = {f"small.{n}": torch.randn(3, generator=generator) for n in range(5)}
    content |= {"base": base, "view": base[10:20].t(), "half": base.to(torch.bfloat16), "empty": torch.zeros(0, 4), "state": {"step": 7, "betas": (0.9, 0.99)}}
    path = tmp_path_factory.mktemp("torch") / "model.pt"
    torch.save(content, path, _use_new_zipfile_serialization=request.param)
    modelcodec.compress(path)
    return path


def packed(file: Path) -> Path:
    return file.with_name(file.name + ".mcodec")


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    return {name: equal(value, other[name]) for name, value in one.items()} == dict.fromkeys(other, True) if isinstance(one, dict) else one == other


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_as_torch_load(file: Path, threads: int) -> None:
    found, expected = modelcodec.torch_load(packed(file), threads=threads), torch.load(file, weights_only=True)
    assert equal(found, expected)
    assert found["view"].untyped_storage().data_ptr() == found["base"].untyped_storage().data_ptr()
    assert modelcodec.torch_load(packed(file), map_location="meta")["base"].device.type == "meta"


def test_an_ordinary_file_passes_through(file: Path) -> None:
    assert equal(modelcodec.torch_load(str(file)), torch.load(file, weights_only=True))


class Command:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_no_code_is_executed(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(3), "x": Command()}, tmp_path / "bad.pt")
    modelcodec.compress(tmp_path / "bad.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        modelcodec.torch_load(tmp_path / "bad.pt.mcodec")


def test_damage_is_told_as_ours(file: Path, tmp_path: Path) -> None:
    content = packed(file).read_bytes()
    # Inside the largest storage.
    broken = bytearray(content)
    broken[len(content) // 2] ^= 1
    (tmp_path / "broken").write_bytes(broken)
    with pytest.raises(CorruptFile, match="frame"):
        modelcodec.torch_load(tmp_path / "broken")
    (tmp_path / "short").write_bytes(content[:-100])
    with pytest.raises(TruncatedFile):
        modelcodec.torch_load(tmp_path / "short")


def test_the_restored_file_reads_like_the_original(file: Path) -> None:
    expected, random = file.read_bytes(), Random(0)
    with io.BufferedReader(RestoredFile(packed(file), threads=2), 100) as found:
        assert found.read() == expected
        assert found.read(1) == b""
        for _ in range(300):
            at, size = random.randrange(len(expected)), random.choice([1, 7, 100, 5000, 1 << 20])
            found.seek(at)
            assert found.read(size) == expected[at : at + size]
            assert found.tell() == min(at + size, len(expected))
        assert found.seek(-5, os.SEEK_END) == len(expected) - 5
        assert found.seek(2, os.SEEK_CUR) == len(expected) - 3
        assert found.read() == expected[-3:]
        found.seek(len(expected) + 10)
        assert found.read() == b""
    with RestoredFile(packed(file)) as raw, pytest.raises(ValueError, match="negative"):
        raw.seek(-1)


def test_only_what_is_read_is_decoded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelcodec.formats.container import Container

    decoded: list[str] = []
    original = Container.decode_frame

    def noting(self: Container, entry: Any, number: int, out: Any) -> int:
        decoded.append(entry.name)
        return original(self, entry, number, out)

    with RestoredFile(packed(file)) as found:
        monkeypatch.setattr(Container, "decode_frame", noting)
        found.seek(-20, os.SEEK_END)
        assert len(found.read(20)) == 20
        assert len(decoded) <= 1
