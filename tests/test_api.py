"""Promise: the public functions do what their documentation says: names, overwriting, folders, file objects, reports, errors."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forge
import numpy as np
import pytest
import rows
import sources
from fixtures import FILES

import modelcodec
from modelcodec import api
from modelcodec import frame as frames
from modelcodec.errors import BadRecipe, CorruptFile, ModelCodecError, TruncatedFile, UnsafeInput, UnsupportedFile

ROOT = Path(__file__).resolve().parent.parent
MODEL = sources.safetensors_file()[1]["model.safetensors"]
FUNCTIONS = {"compress", "decompress", "open", "load", "load_file", "save", "save_file", "inspect", "verify"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(MODEL)
    return path


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_public_names() -> None:
    assert set(modelcodec.__all__) >= FUNCTIONS | {"Recipe", "Report", "Limits", "ModelCodecError", "__version__"}
    for name in modelcodec.__all__:
        assert getattr(modelcodec, name) is not None
        assert name in dir(modelcodec)
    assert all(getattr(modelcodec, name).__doc__ for name in FUNCTIONS)
    with pytest.raises(AttributeError, match="nothing"):
        modelcodec.nothing  # noqa: B018
    assert all(
        issubclass(getattr(modelcodec, name), ModelCodecError)
        for name in modelcodec.__all__
        if name.endswith(("File", "Recipe", "Exceeded", "Input")) and name != "Recipe"
    )


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("model.safetensors", "model.mcodec.safetensors"),
        ("a.b.safetensors", "a.b.mcodec.safetensors"),
        ("model.pt", "model.pt.mcodec"),
        ("noending", "noending.mcodec"),
        (".hidden", ".hidden.mcodec"),
        ("folder", "folder.mcodec"),
    ],
)
def test_default_names(name: str, packed: str) -> None:
    assert api.compressed_name(Path(name)) == Path(packed)
    assert api.restored_name(Path(packed)) == Path(name)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin", ".mcodec", ".mcodec.safetensors"])
def test_names_that_do_not_tell(name: str) -> None:
    with pytest.raises(BadRecipe, match="name the destination"):
        api.restored_name(Path(name))


def test_a_file_and_back_by_default_names(model: Path) -> None:
    report = modelcodec.compress(model)
    packed = model.with_name("model.mcodec.safetensors")
    assert report.destination == str(packed)
    model.unlink()
    assert modelcodec.decompress(str(packed)).destination == str(model)
    assert model.read_bytes() == MODEL


def test_destinations(model: Path, tmp_path: Path) -> None:
    """A path, a text, a folder that is there, a file object."""
    modelcodec.compress(str(model), str(tmp_path / "a"))
    (tmp_path / "sub").mkdir()
    modelcodec.compress(model, tmp_path / "sub")
    out = io.BytesIO()
    modelcodec.compress(model, out)
    found = {(tmp_path / "a").read_bytes(), (tmp_path / "sub" / "model.mcodec.safetensors").read_bytes(), out.getvalue()}
    assert len(found) == 1
    with pytest.raises(FileNotFoundError):
        modelcodec.compress(model, tmp_path / "missing" / "x")


def test_file_objects(model: Path) -> None:
    """Streams that cannot seek are read to their end."""

    class Stream(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.left = data

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            n = min(len(buffer), 1000, len(self.left))
            buffer[:n] = self.left[:n]
            self.left = self.left[n:]
            return n

    packed, back = io.BytesIO(), io.BytesIO()
    report = modelcodec.compress(Stream(MODEL), packed)  # type: ignore[arg-type]
    assert (report.source, report.destination, report.n_bytes) == ("-", "-", len(MODEL))
    modelcodec.decompress(Stream(packed.getvalue()), back)  # type: ignore[arg-type]
    assert back.getvalue() == MODEL
    with pytest.raises(BadRecipe, match="destination"):
        modelcodec.compress(io.BytesIO(MODEL))
    with model.open("rb") as file:
        file.seek(8)  # from where it stands, as a stream
        modelcodec.compress(file, packed)


def test_nothing_goes_to_a_file_object_when_the_input_is_bad() -> None:
    out = io.BytesIO()
    with pytest.raises(ModelCodecError):
        modelcodec.decompress(io.BytesIO(MODEL[:-1]), out)
    assert out.getvalue() == b""


def test_nothing_is_overwritten_unless_asked(model: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        modelcodec.compress(model, packed)
    assert packed.read_bytes() == b"mine"
    modelcodec.compress(model, packed, overwrite=True)
    with pytest.raises(FileExistsError):
        modelcodec.decompress(packed, model)
    modelcodec.decompress(packed, model, overwrite=True)
    assert model.read_bytes() == MODEL
    for function in (modelcodec.compress, modelcodec.decompress):
        with pytest.raises(BadRecipe, match="same file"):
            function(packed, packed, overwrite=True)
    modelcodec.save_file({"x": np.zeros(3)}, packed)
    assert list(modelcodec.load_file(packed)) == ["x"]


def test_folders(tmp_path: Path) -> None:
    """Every file keeps its name, files without tensors are copied, and the folder comes back."""
    folder = tmp_path / "repository"
    (folder / "sub").mkdir(parents=True)
    for name, data in {
        "model.safetensors": MODEL,
        "sub/weights.npy": sources.npy_file()[1]["weights.npy"],
        "config.json": b"{}",
        "empty": b"",
        "inner.mcodec.safetensors": (FILES / "good-kinds.mcodec").read_bytes(),
        "model.safetensors.index.json": json.dumps({"weight_map": {"a": "model.safetensors"}}).encode(),
    }.items():
        (folder / name).write_bytes(data)
    before, ticks = files_in(folder), []
    report = modelcodec.compress(folder, progress=lambda done, total: ticks.append((done, total)))
    packed = tmp_path / "repository.mcodec"
    assert report.destination == str(packed)
    assert files_in(packed).keys() == before.keys() == files_in(folder).keys()
    assert files_in(packed)["config.json"] == b"{}"
    assert files_in(packed)["model.safetensors"] != MODEL
    assert {Path(r.source).name: r.format for r in report.files}["config.json"] == "copy"
    assert report.n_bytes == sum(map(len, before.values()))
    assert ticks[-1] == (report.n_bytes, report.n_bytes)
    assert ticks == sorted(ticks)
    assert len(modelcodec.verify(packed).files) == len(modelcodec.inspect(packed).files) == 3
    modelcodec.decompress(packed, tmp_path / "back")
    assert files_in(tmp_path / "back") == before == files_in(folder)
    with pytest.raises(FileExistsError):
        modelcodec.decompress(packed, tmp_path / "back")
    modelcodec.decompress(packed, tmp_path / "back", overwrite=True)


def test_folders_that_cannot_be_meant(tmp_path: Path, model: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "m.npy").write_bytes(sources.npy_file()[1]["weights.npy"])
    for destination in (folder, folder / "inside", model):
        with pytest.raises(BadRecipe):
            modelcodec.compress(folder, destination)
    with pytest.raises(BadRecipe):
        modelcodec.compress(folder, io.BytesIO())
    (folder / "model.safetensors.index.json").write_bytes(b'{"weight_map": {"a": "../../x"}}')
    with pytest.raises(UnsafeInput):
        modelcodec.compress(folder, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*"))


def test_a_damaged_file_in_a_folder_leaves_the_old_one(tmp_path: Path) -> None:
    folder, out = tmp_path / "f", tmp_path / "out"
    folder.mkdir()
    data = bytearray((FILES / "good-kinds.mcodec").read_bytes())
    data[-20] ^= 1
    (folder / "m.safetensors").write_bytes(data)
    out.mkdir()
    (out / "m.safetensors").write_bytes(b"old")
    with pytest.raises(CorruptFile):
        modelcodec.decompress(folder, out, overwrite=True)
    assert files_in(out) == {"m.safetensors": b"old"}


def test_reports(model: Path, tmp_path: Path) -> None:
    report = modelcodec.compress(model, tmp_path / "packed", sha256=True)
    assert (report.n_bytes, report.n_bytes_coded) == (len(MODEL), (tmp_path / "packed").stat().st_size)
    assert report.sha256 == hashlib.sha256(MODEL).hexdigest()
    assert report.ratio == report.n_bytes_coded / report.n_bytes
    assert [row.name for row in report.tensors] == ["embed.weight", "norm.scale", "steps", "empty"]
    first = report.tensors[0]
    assert (first.dtype, first.shape, first.n_weights, first.n_bytes) == ("BF16", (8, 24), 192, 384)
    assert first.bits_per_weight == 8 * first.n_bytes_coded / 192
    assert first.plan.startswith("split_float")
    assert report.tensors[1].plan == "stored"
    assert json.loads(json.dumps(report.as_dict()))["tensors"][0]["ratio"] == first.ratio
    assert modelcodec.inspect(tmp_path / "packed").tensors == report.tensors == modelcodec.decompress(tmp_path / "packed", tmp_path / "back").tensors
    assert modelcodec.verify(tmp_path / "packed").tensors == report.tensors


def test_floors_are_the_entropy_of_the_symbols(tmp_path: Path) -> None:
    """Of a float the exponent's entropy and the other bits, of bytes their entropy; tensors of other dtypes may share the bytes."""
    octets = np.tile(np.arange(4, dtype=np.uint8), 600_000 // 4)
    odd = octets[: 1000 * 599]  # rows of 599 bytes: frames end inside a word of 4
    words = sources.safetensors_bytes(
        {
            "two bits": ("U8", (octets.size,), octets.tobytes()),
            "odd": ("U8", (4000, 599), np.tile(odd, 4).tobytes()),
            "same": ("F32", (599_000,), np.tile(odd, 4).tobytes()),
        }
    )
    (tmp_path / "m.safetensors").write_bytes(words)
    modelcodec.compress(tmp_path / "m.safetensors", tmp_path / "packed")
    floors = [row.floor_bits for row in modelcodec.inspect(tmp_path / "packed", floors=True).tensors]
    assert floors[0] == pytest.approx(2)
    assert floors[1] == pytest.approx(2, abs=0.01)
    assert floors[2] is not None
    assert modelcodec.inspect(tmp_path / "packed").tensors[0].floor_bits is None


def test_progress_goes_to_the_end(model: Path, tmp_path: Path) -> None:
    for function, source, destination in ((modelcodec.compress, model, tmp_path / "packed"), (modelcodec.decompress, tmp_path / "packed", tmp_path / "back")):
        ticks: list[tuple[int, int]] = []
        function(source, destination, progress=lambda done, total, ticks=ticks: ticks.append((done, total)))
        assert ticks == sorted(ticks)
        assert ticks[-1][1] == len(MODEL)
        assert ticks[-1][0] <= len(MODEL)


@pytest.mark.parametrize("level", [0, 2, 3, 10, -1, 99])
def test_levels_that_do_not_exist(level: int, model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="1, 5, 9"):
        modelcodec.compress(model, tmp_path / "x", level=level)
    with pytest.raises(BadRecipe):
        modelcodec.save({}, level=level)
    assert not (tmp_path / "x").exists()


def test_smaller_levels_are_smaller(tmp_path: Path) -> None:
    array = rows.gaussian(300 * 1000, "BF16").reshape(300, 1000)
    sizes = [len(modelcodec.save({"x": array}, level=level)) for level in (1, 5, 9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < array.nbytes


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_that_do_not_exist(threads: int, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threads"):
        modelcodec.compress(model, tmp_path / "x", threads=threads)


def test_errors_have_their_kinds(tmp_path: Path, model: Path) -> None:
    packed = tmp_path / "packed"
    modelcodec.compress(model, packed)
    whole = packed.read_bytes()
    cases: list[tuple[bytes, type[ModelCodecError]]] = [
        (whole[:-1], TruncatedFile),
        (whole + b"\0", CorruptFile),
        (MODEL, UnsupportedFile),
        (b"", TruncatedFile),
    ]
    for data, kind in cases:
        packed.write_bytes(data)
        for function in (
            modelcodec.verify,
            modelcodec.inspect,
            modelcodec.load_file,
            modelcodec.open,
            lambda path: modelcodec.decompress(path, tmp_path / "out"),
        ):
            with pytest.raises(kind) as found:
                function(packed)
            assert type(found.value) is kind
            assert str(packed) in str(found.value)
    assert not (tmp_path / "out").exists()
    for function in (modelcodec.verify, modelcodec.compress, modelcodec.load_file):
        with pytest.raises(FileNotFoundError):
            function(tmp_path / "missing")


def test_a_restored_file_that_does_not_fit_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory tells the size: nothing is written until the disk is full."""
    pieces = [forge.frame(forge.node(1, b"\0"))] * 1024
    entry = forge.Entry("x", (1 << 30,), 1, forge.CODED, frames=pieces, frame_words=1 << 20)
    (tmp_path / "huge.mcodec").write_bytes(forge.container([forge.skeleton(b""), entry], source_size=1 << 30))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 29))
    with pytest.raises(OSError, match="free"):
        modelcodec.decompress(tmp_path / "huge.mcodec")
    assert [path.name for path in tmp_path.iterdir()] == ["huge.mcodec"]


def test_the_package_works_outside_the_checkout(tmp_path: Path) -> None:
    """Nothing depends on the current folder."""
    (tmp_path / "m.safetensors").write_bytes(MODEL)
    work = "modelcodec.compress('m.safetensors'); print(modelcodec.verify('m.mcodec.safetensors').n_bytes)"
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import modelcodec; {work}"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(MODEL))), done.stderr


def test_compress_finds_an_encoder_that_is_wrong(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was written is decoded before it is said to be done; a fault of memory or of the encoder keeps the destination as it was."""
    original = frames.encode

    def wrong(x: Any, *rest: Any) -> Any:
        changed = x.copy()
        changed.reshape(-1).view(np.uint8)[0] ^= 1
        return original(changed, *rest)

    monkeypatch.setattr(frames, "encode", wrong)
    with pytest.raises(ModelCodecError, match="nothing was kept"):
        modelcodec.compress(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    modelcodec.compress(model, tmp_path / "out", verify=False)
