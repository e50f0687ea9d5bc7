"""Promise: no file name that a file mentions leads out of its folder, on any system; and a folder's plan tells rightly what becomes of each file."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from modelcodec.errors import CorruptFile, LimitExceeded, UnsafeInput, UnsupportedFile
from modelcodec.formats.folder import plan_folder
from modelcodec.formats.paths import check_name, check_names, inside, shard_names

GOOD = [
    "model.safetensors", "model-00001-of-00002.safetensors", "unet/diffusion_pytorch_model.bin", ".gitattributes", "a/.hidden/b", "...a", "a..b", "..a",
    " leading", "ä/ö/日本.pt", "console.txt", "conx", "com10", "lpt", "auxiliary/null.txt", "a~1", "-rf", "$HOME", "%2e%2e", "a;b", "x" * 255, "\U0001f600",
    "AUX_LOSS.json", "nul_",
]  # fmt: skip

HOSTILE = [
    "", ".", "..", "../x", "a/../../x", "a/..", "a/./b", "./a", "/", "/etc/passwd", "//server/share", "a//b", "a/", "../../../../etc/passwd",
    "a/b/../../../c", "\\", "..\\x", "a\\..\\..\\x", "\\\\server\\share", "a\\b", "C:", "C:x", "C:\\x", "c:/x", "a/C:/b", "file:stream", "a:b",
    "http://host/x", "\\\\?\\C:\\x", "\\\\.\\PhysicalDrive0", "a\0b", "\0", "a\nb", "a\rb", "a\tb", "a\x1bb", "\x7f", "a\x85b", "a\u2028b", "a\u2029b", "a.",
    "a ", "a./b", "a /b", "..  ", ".. ", "...", ". .", "a/...", "con", "CON", "Con.txt", "con.tar.gz", "nul", "NUL.safetensors", "aux", "prn.x", "a/aux/b",
    "com1", "COM9.txt", "lpt1.x", "com¹", "LPT³.bin", "com0", "conin$", "CONOUT$", "nul .txt", "con .", "x" * 256, "a/" * 3000 + "a", "\ud800", "ä" * 200,
]  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_names_pass(name: str, tmp_path: Path) -> None:
    assert str(check_name(name)) == name
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:40])
def test_hostile_names_are_refused(name: str, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"w": name}}).encode()
    for use in (lambda: check_name(name), lambda: check_names(["a", name]), lambda: inside(tmp_path, name), lambda: shard_names(index)):
        with pytest.raises(UnsafeInput) as caught:
            use()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700


@settings(max_examples=500, deadline=None)
@given(name=st.text(alphabet=st.sampled_from("ab./\\: \0CON~") | st.characters(), max_size=12))
def test_what_passes_stays_inside(name: str) -> None:
    try:
        path = check_name(name)
    except UnsafeInput:
        return
    assert os.path.normpath(os.path.join("/folder", path)).startswith("/folder/")
    assert str(path) == name


@pytest.mark.parametrize(
    "names",
    [
        ["a", "A"],
        ["a/x", "A/y"],
        ["straße", "STRASSE"],
        ["\u00e9", "e\u0301"],
        ["a", "a"],
        ["a", "a/b"],
        ["a/b", "a"],
        ["d/\u212b", "d/\u00c5"],
        ["x/y/z", "x/Y/w"],
    ],
    ids=ascii,
)
def test_names_that_would_meet_are_refused(names: list[str]) -> None:
    with pytest.raises(UnsafeInput):
        check_names(names)


def test_names_apart_are_kept_in_order() -> None:
    assert check_names(["b/a", "a", "b/b"]) == (PurePosixPath("b/a"), PurePosixPath("a"), PurePosixPath("b/b"))


# ---- symbolic links ----------------------------------------------------------------------------------------------------------------


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "x").write_text("x")
    (folder / "file").symlink_to(outside / "x")
    (folder / "sub").symlink_to(outside)
    (folder / "future").symlink_to(outside / "not yet")
    (folder / "within").symlink_to(folder / "real")
    for name in ("file", "sub/x", "sub/new", "future"):
        with pytest.raises(UnsafeInput):
            inside(folder, name)
    assert inside(folder, "file", cached=True) == folder / "file"
    with pytest.raises(UnsafeInput):
        inside(folder, "sub/x", cached=True)
    assert inside(folder, "within") == folder / "within"


# ---- indexes of shards -------------------------------------------------------------------------------------------------------------


def test_shard_names_once_and_in_order() -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": {"a": "m-2.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}}
    assert shard_names(json.dumps(index).encode()) == ("m-2.safetensors", "m-1.safetensors")
    assert shard_names(b"{}") == ()


def test_every_repeated_weight_map_is_looked_at() -> None:
    with pytest.raises(UnsafeInput):
        shard_names(b'{"weight_map": {"a": "../x"}, "weight_map": {"a": "x"}}')
    with pytest.raises(UnsafeInput):
        shard_names(b'{"weight_map": {"a": "../x", "a": "x"}}')


NO_INDEX = [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000, *(b'{"weight_map": %s}' % value for value in (b'["a"]', b'{"a": 1}', b'{"a": {"b": "c"}}', b"null"))]


@pytest.mark.parametrize("index", NO_INDEX, ids=lambda index: ascii(index)[:40])
def test_no_index_is_corrupt(index: bytes) -> None:
    with pytest.raises(CorruptFile):
        shard_names(index)


def test_a_huge_index_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from modelcodec.formats import paths
    from modelcodec.limits import Limits

    monkeypatch.setattr(paths, "LIMITS", Limits(header_bytes=100))
    with pytest.raises(LimitExceeded):
        shard_names(b" " * 101)


# ---- the plan of a folder ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """As Hugging Face's cache has it: links to blobs outside, subfolders, texts."""
    root, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    (root / "unet").mkdir(parents=True)
    blobs.mkdir()
    save_file({"w": np.arange(6, dtype="f4")}, blobs / "abc")
    (root / "model.safetensors").symlink_to(blobs / "abc")
    save_file({"w": np.arange(8, dtype="f4")}, root / "unet" / "model.safetensors")
    np.save(root / "array.npy", np.arange(9))
    (root / "config.json").write_text("{}")
    (root / "empty").touch()
    (root / ".gitattributes").write_text("*.bin\n")
    (root / "broken.safetensors").write_bytes(b"no tensors")
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "model.safetensors"}}))
    return root


def test_plan_of_a_folder(repository: Path) -> None:
    assert plan_folder(repository) == [
        (".gitattributes", False),
        ("array.npy", True),
        ("broken.safetensors", False),
        ("config.json", False),
        ("empty", False),
        ("model.safetensors", True),
        ("model.safetensors.index.json", False),
        ("unet/model.safetensors", True),
    ]


def test_a_container_in_a_folder_is_wrapped(repository: Path) -> None:
    """Restoring the folder restores every container in it, so one that was there before needs one more layer, even where it is not sound."""
    save_file({"w": np.arange(6, dtype="f4")}, repository / "old.mcodec.safetensors", metadata={"modelcodec": "0.1"})
    assert ("old.mcodec.safetensors", True) in plan_folder(repository)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "sub/../../x", "C:\\x", "a\0b"])
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json", "unet/model.safetensors.index.fp16.json"])
def test_an_unsafe_index_in_a_folder_is_named(repository: Path, index: str, name: str) -> None:
    (repository / index).write_text(json.dumps({"weight_map": {"w": "model.safetensors", "x": name}}))
    with pytest.raises(UnsafeInput) as caught:
        plan_folder(repository)
    assert str(repository / index) in str(caught.value)


def test_unsafe_names_in_a_folder(repository: Path) -> None:
    (repository / "Config.json").write_text("{}")
    with pytest.raises(UnsafeInput):
        plan_folder(repository)


def test_links_to_folders_are_left_out(repository: Path) -> None:
    (repository / "loop").symlink_to(repository)
    (repository / "home").symlink_to("/")
    assert len(plan_folder(repository)) == 8


def test_what_is_no_file_is_an_error(repository: Path) -> None:
    os.mkfifo(repository / "fifo")
    with pytest.raises(UnsupportedFile):
        plan_folder(repository)
    (repository / "fifo").unlink()
    (repository / "dangling").symlink_to(repository / "nowhere")
    with pytest.raises(FileNotFoundError):
        plan_folder(repository)
