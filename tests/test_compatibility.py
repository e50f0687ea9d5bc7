"""Promise: every file that a release wrote is read the same way by every later one, and by a decoder that was written from the documents alone."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import reference_decoder
import safetensors
import safetensors.numpy
from fixtures import BAD, FILES, GOOD, MANIFEST, content, restored

from modelcodec.formats import container
from modelcodec.formats.container_layout import DIRECTORY, ORDINARY, ROLE_SINCE, SINCE
from modelcodec.restoration import restore
from modelcodec.tensor_file import TensorFile

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", GOOD)
def test_good_files_restore_to_what_the_manifest_says(name: str) -> None:
    assert hashlib.sha256(restored(content(name))).hexdigest() == MANIFEST[name]["sha256"]


@pytest.mark.parametrize("name", GOOD)
def test_the_reference_decoder_restores_every_good_file(name: str) -> None:
    assert hashlib.sha256(reference_decoder.restore(content(name))).hexdigest() == MANIFEST[name]["sha256"]


@pytest.mark.parametrize("name", GOOD)
def test_the_reference_decoder_finds_the_same_tensors(name: str) -> None:
    data = content(name)
    expected = reference_decoder.tensors(data)
    with TensorFile.of_bytes(data) as file:
        assert set(file.keys()) == set(expected)
        for key, (dtype, shape, raw) in expected.items():
            tensor, part = file.get_tensor(key), file.get_slice(key)
            assert (part.get_dtype(), tuple(part.get_shape())) == (dtype, shape)
            assert tensor.tobytes() == raw


@pytest.mark.parametrize("name", BAD)
def test_the_reference_decoder_refuses_every_bad_file(name: str) -> None:
    with pytest.raises(ValueError, match=r".") as found:
        reference_decoder.restore(content(name))
    if name.startswith("unsupported-") and "safetensors" not in name and "text" not in name:
        assert isinstance(found.value, reference_decoder.Unsupported)


@pytest.mark.parametrize("name", GOOD)
def test_the_safetensors_library_opens_every_container(name: str, tmp_path: Path) -> None:
    """Any loader accepts the envelope; what it finds are bytes of one dimension, so that it cannot take them for weights."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(content(name))
    archive = container.read(memoryview(content(name)), name)
    with safetensors.safe_open(path, "np") as file:
        assert set(file.keys()) == {DIRECTORY, *(entry.name for entry in archive.entries)}
        assert "modelcodec" in file.metadata()
        for entry in archive.entries:
            if entry.kind != ORDINARY:
                part = file.get_slice(entry.name)
                assert (part.get_dtype(), part.get_shape()) == ("U8", [entry.size])
            elif entry.spec.dtype.in_safetensors:
                assert file.get_slice(entry.name).get_shape() == list(entry.spec.shape)


def test_files_of_this_folder_are_what_their_maker_says() -> None:
    """Nothing hides in a test file: each is made again and compared."""
    done = subprocess.run([sys.executable, FILES / "make.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_are_small() -> None:
    sizes = [path.stat().st_size for path in FILES.glob("*.mcodec")]
    assert max(sizes) <= 5000
    assert sum(sizes) <= 200_000


def test_names_and_metadata_of_the_source_stay_in_the_header(tmp_path: Path) -> None:
    """A tool that reads headers alone, as the Hub does, finds the tensors' names."""
    data = content("good-kinds.mcodec")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert header["__metadata__"]["format"] == "pt"
    assert [name for name in header if not name.startswith("__")] == ["embed", "head", "noise", "noise as I8", "scalar", "none"]


def test_ordinary_tensors_are_read_by_any_loader() -> None:
    data = content("good-kinds.mcodec")
    arrays = safetensors.numpy.load(data)
    with TensorFile.of_bytes(data) as file:
        assert (arrays["noise"] == file.get_tensor("noise")).all()
        assert (arrays["scalar"] == file.get_tensor("scalar")).all()


def test_a_container_holds_no_more_than_its_version_has() -> None:
    """The writer tells the lowest version that fits: what a 0.1 reader can read says 0.1."""
    for name in GOOD:
        data = content(name)
        version = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["modelcodec"]
        archive = container.read(memoryview(data), name)
        used = {SINCE[entry.kind] for entry in archive.entries} | {ROLE_SINCE[entry.role] for entry in archive.entries}
        for entry in archive.entries:
            for number in range(entry.n_frames if entry.coded else 0):
                used |= {node.stage.since for node in archive.frame_head(entry, number).root.walk()}
        assert version == "{}.{}".format(*max(used))
        restore(archive, io.BytesIO(), 1, None)
