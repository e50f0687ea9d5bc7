"""Promise: a fine-tune is stored as what it changed, and comes back byte for byte; without its base, or with another one, it says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import reference_decoder
from sources import safetensors_bytes

import modelcodec
from modelcodec import api, base, compression
from modelcodec.base import NamedBase
from modelcodec.errors import BadRecipe, LimitExceeded, ModelCodecError, UnsafeInput
from modelcodec.formats import container

Tensors = dict[str, tuple[str, np.ndarray[Any, Any]]]

KINDS = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn}


def weights(dtype: str, rows: int = 96, columns: int = 128, seed: int = 1) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(seed)
    return (random.normal(0, 0.02, (rows, columns)) * random.uniform(0.3, 3, columns)).astype(KINDS[dtype])


def moved(array: np.ndarray[Any, Any], by: float, seed: int = 2) -> np.ndarray[Any, Any]:
    """Each weight changed by a part of itself."""
    return (array.astype(np.float64) * (1 + by * np.random.default_rng(seed).normal(size=array.shape))).astype(array.dtype)


def write(path: Path, tensors: Tensors) -> Path:
    path.write_bytes(safetensors_bytes({name: (dtype, array.shape, array.tobytes()) for name, (dtype, array) in tensors.items()}))
    return path


def plans(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.plan for tensor in api.inspect(path).tensors}


def comes_back(packed: Path, source: Path, **options: Any) -> bool:
    back = packed.with_name("back")
    api.decompress(packed, back, overwrite=True, **options)
    return back.read_bytes() == source.read_bytes()


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and its fine-tune, with tensors of every kind of change."""
    new = weights("F32", 20, 64, 9)
    old: Tensors = {
        "same": ("F32", weights("F32")),
        "moved": ("F32", weights("F32", seed=3)),
        "half": ("BF16", weights("BF16", seed=4)),
        "other": ("F32", weights("F32", seed=5)),
        "embed": ("F32", weights("F32", 60, 64, 6)),
        "old name": ("F16", weights("F16", seed=7)),
        "counts": ("I64", np.arange(900, dtype=np.int64)),
        "tables": ("I64", np.arange(900, dtype=np.int64)),
    }
    fine: Tensors = {
        "same": old["same"],
        "moved": ("F32", moved(old["moved"][1], 0.01)),
        "half": ("BF16", moved(old["half"][1], 0.2)),
        "other": ("F32", weights("F32", seed=50)),
        "embed": ("F32", np.concatenate([moved(old["embed"][1], 0.01), new])),
        "new name": ("F16", moved(old["old name"][1], 0.1)),
        "counts": ("I64", np.arange(900, dtype=np.int64)),
        "tables": ("I64", np.arange(900, dtype=np.int64)[::-1].copy()),
        "scalar": ("F32", np.array(3.5, np.float32)),
    }
    return write(tmp_path / "base.safetensors", old), write(tmp_path / "fine.safetensors", fine)


@pytest.mark.parametrize("level", [1, 5, 9])
def test_each_tensor_is_stored_the_better_way(pair: tuple[Path, Path], tmp_path: Path, level: int) -> None:
    old, fine = pair
    packed = tmp_path / "fine.mcodec.safetensors"
    report = api.compress(fine, packed, base=old, level=level)
    found = {tensor.name: tensor for tensor in report.tensors}
    for name in ("same", "moved", "half", "embed", "new name", "counts"):
        assert found[name].plan == "delta, given base.safetensors", name
    assert not any("delta" in found[name].plan for name in ("other", "tables", "scalar"))
    assert found["same"].n_bytes_coded <= 32
    assert found["moved"].ratio < 0.64
    assert comes_back(packed, fine)
    assert comes_back(packed, fine, base=old)
    assert comes_back(packed, fine, base=tmp_path)


@pytest.mark.parametrize("dtype", sorted(KINDS))
def test_floats_of_every_width(dtype: str, tmp_path: Path) -> None:
    """A change of one hundredth of each weight leaves so many bits of mantissa as noise, and no more is stored."""
    old = weights(dtype, 256, 192)
    mantissa_bits = {"F32": 23, "F64": 52, "F16": 10, "BF16": 7, "F8_E4M3": 3}[dtype]
    write(tmp_path / "base.safetensors", {"w": (dtype, old)})
    fine = write(tmp_path / "fine.safetensors", {"w": (dtype, moved(old, 0.01))})
    (tensor,) = api.compress(fine, base=tmp_path / "base.safetensors").tensors
    assert tensor.plan.startswith("delta")
    noise = max(mantissa_bits - np.log2(100) + 2.05 + 0.5, 1.0)
    assert tensor.bits_per_weight < noise + 0.6
    assert comes_back(tmp_path / "fine.mcodec.safetensors", fine)


def test_specials_and_new_signs_come_back(tmp_path: Path) -> None:
    """NaN payloads, infinities, zeros of both signs and subnormals on either side."""
    specials = np.array([0, 0x80000000, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 1, 0x807FFFFF, 0x7F7FFFFF, 0x3F800000], np.uint32)
    old, fine = np.repeat(specials, 1000), np.tile(specials, 1000)
    plain = weights("F32", 100, 100).reshape(-1).view(np.uint32)
    fine[::3], old[1::5] = plain[::3], plain[1::5]
    write(tmp_path / "base.safetensors", {"w": ("F32", old.view(np.float32))})
    source = write(tmp_path / "fine.safetensors", {"w": ("F32", fine.view(np.float32))})
    api.compress(source, base=tmp_path / "base.safetensors")
    assert comes_back(tmp_path / "fine.mcodec.safetensors", source)


def test_zeros_that_stay_cost_little(tmp_path: Path) -> None:
    """A pruned model is trained on: what is zero in both takes no raw bits."""
    old = weights("F32", 200, 200)
    old[np.random.default_rng(5).random(old.shape) < 0.8] = 0
    write(tmp_path / "base.safetensors", {"w": ("F32", old)})
    source = write(tmp_path / "fine.safetensors", {"w": ("F32", moved(old, 0.01))})
    (tensor,) = api.compress(source, base=tmp_path / "base.safetensors").tensors
    assert tensor.bits_per_weight < 0.2 * 20 + 1.2


def test_bytes_do_not_depend_on_threads_or_on_how_the_base_is_stored(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, fine = pair
    (tmp_path / "packed").mkdir()
    api.compress(old, tmp_path / "packed" / "base.safetensors", level=1)
    packed = [tmp_path / name for name in ("a", "b", "c")]
    api.compress(fine, packed[0], base=old, threads=1)
    api.compress(fine, packed[1], base=old, threads=3)
    api.compress(fine, packed[2], base=tmp_path / "packed" / "base.safetensors", threads=2)
    assert packed[0].read_bytes() == packed[1].read_bytes() == packed[2].read_bytes()
    assert comes_back(packed[0], fine, base=tmp_path / "packed" / "base.safetensors")


def test_frames_of_a_large_tensor(tmp_path: Path) -> None:
    """Several groups of frames, at every level, whose rows end where the base's have ended."""
    old = weights("BF16", 5000, 1024)
    fine = np.concatenate([moved(old[:4000], 0.3), weights("BF16", 1500, 1024, 8)])
    write(tmp_path / "base.safetensors", {"w": ("BF16", old[:4000])})
    source = write(tmp_path / "fine.safetensors", {"w": ("BF16", fine)})
    for level in (1, 9):
        api.compress(source, tmp_path / "packed", base=tmp_path / "base.safetensors", level=level, overwrite=True)
        assert comes_back(tmp_path / "packed", source)
        with modelcodec.open(tmp_path / "packed") as file:
            part = file.get_slice("w")[3990:4010]
        assert part.tobytes() == fine[3990:4010].tobytes()


def test_rows_and_tensors_are_read_at_random(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, fine = pair
    packed = tmp_path / "elsewhere.mcodec"
    api.compress(fine, packed, base=old)
    data = packed.read_bytes()
    with modelcodec.open(packed) as file, pytest.raises(KeyError):
        file.get_tensor("nothing")
    plain = modelcodec.load(modelcodec.save({"w": np.zeros(3, np.float32)}))
    assert plain["w"].tolist() == [0, 0, 0]
    source = reference_decoder.tensors(packed_plain(fine, tmp_path))
    for loaded in (modelcodec.load_file(packed), modelcodec.load(data, base=old), modelcodec.load(data, base=lambda name: tmp_path / name)):
        assert {name: array.tobytes() for name, array in loaded.items()} == {name: raw for name, (_, _, raw) in source.items()}


def packed_plain(source: Path, folder: Path) -> bytes:
    api.compress(source, folder / "plain", overwrite=True)
    return (folder / "plain").read_bytes()


def test_the_reference_decoder_restores_deltas(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The documents alone tell how."""
    old, fine = pair
    tensors = {name: raw for name, (_, _, raw) in reference_decoder.tensors(packed_plain(old, tmp_path)).items()}
    for level in (5, 9):
        api.compress(fine, tmp_path / "packed", base=old, level=level, overwrite=True)
        assert reference_decoder.restore((tmp_path / "packed").read_bytes(), tensors) == fine.read_bytes()


def test_what_uses_no_base_says_nothing_of_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, _ = pair
    lone = write(tmp_path / "lone.safetensors", {"w": ("F32", weights("F32", seed=77))})
    api.compress(lone, tmp_path / "a", base=old)
    api.compress(lone, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# ---- finding and checking bases ------------------------------------------------------------------------------------------------------


def test_a_missing_base_is_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, fine = pair
    api.compress(fine, tmp_path / "packed", base=old)
    old.rename(tmp_path / "hidden")
    for act in (api.verify, api.decompress, lambda path: modelcodec.load_file(path), lambda path: modelcodec.load(path.read_bytes())):
        with pytest.raises(BadRecipe, match=r"packed|bytes") as found:
            act(tmp_path / "packed") if act is not api.decompress else api.decompress(tmp_path / "packed", tmp_path / "out")
        assert "'base.safetensors'" in str(found.value)
        assert "--base" in str(found.value)
    assert not (tmp_path / "out").exists()
    assert plans(tmp_path / "packed")["moved"] == "delta, given base.safetensors"
    assert comes_back(tmp_path / "packed", fine, base=tmp_path / "hidden")


@pytest.mark.parametrize("change", ["another", "one bit", "shorter", "renamed", "dtype"])
def test_a_wrong_base_is_named(pair: tuple[Path, Path], tmp_path: Path, change: str) -> None:
    old, fine = pair
    api.compress(fine, tmp_path / "packed", base=old)
    whole = bytearray(old.read_bytes())
    if change == "one bit":
        for at in range(len(whole) - 8, len(whole) // 8, -4096):  # in every tensor
            whole[at] ^= 1
        old.write_bytes(whole)
    elif change == "another":
        write(old, {name: ("F32", weights("F32", seed=90 + k)) for k, name in enumerate(("same", "moved", "half", "embed", "old name", "counts"))})
    elif change == "shorter":
        write(old, {name: ("F32", weights("F32", 3, 5)) for name in ("same", "moved", "half", "embed", "old name", "counts")})
    elif change == "renamed":
        write(old, {"w": ("F32", weights("F32"))})
    else:
        write(old, {name: ("U8", np.zeros(3, np.uint8)) for name in ("same", "moved", "half", "embed", "old name", "counts")})
    with pytest.raises(BadRecipe, match=r"base\.safetensors"):
        api.verify(tmp_path / "packed")


def test_bases_are_found_compressed_and_by_the_last_part_of_a_name(pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, fine = pair
    api.compress(fine, tmp_path / "packed", base=NamedBase(old, "user/repo@1234/base.safetensors"))
    api.compress(old)
    old.unlink()
    assert (tmp_path / "base.mcodec.safetensors").exists()
    assert comes_back(tmp_path / "packed", fine)
    asked = []

    def finder(name: str) -> Path:
        asked.append(name)
        return tmp_path / "base.mcodec.safetensors"

    assert comes_back(tmp_path / "packed", fine, base=finder)
    assert asked == ["user/repo@1234/base.safetensors"]


def test_folders(tmp_path: Path) -> None:
    """Shards of the fine-tune find their tensors in other shards of the base."""
    old, fine = tmp_path / "old", tmp_path / "fine"
    old.mkdir(), fine.mkdir()
    arrays = {f"layer.{k}": weights("F32", seed=k) for k in range(4)}
    write(old / "a.safetensors", {name: ("F32", arrays[name]) for name in ("layer.0", "layer.1")})
    write(old / "b.safetensors", {name: ("F32", arrays[name]) for name in ("layer.2", "layer.3")})
    write(fine / "a.safetensors", {name: ("F32", moved(arrays[name], 0.01)) for name in ("layer.0", "layer.2", "layer.3")})
    write(fine / "b.safetensors", {name: ("F32", moved(arrays[name], 0.01)) for name in ("layer.1",)})
    (fine / "config.json").write_text("{}")
    api.compress(fine, tmp_path / "packed", base=old)
    assert plans(tmp_path / "packed" / "a.safetensors")["layer.3"] == "delta, given b.safetensors"
    for found in (old, lambda name: old / name):
        api.decompress(tmp_path / "packed", tmp_path / "back", base=found, overwrite=True)
        assert all((tmp_path / "back" / path.name).read_bytes() == path.read_bytes() for path in fine.iterdir())
    with pytest.raises(BadRecipe, match="name the folder"):
        api.verify(tmp_path / "packed" / "a.safetensors", base=old / "a.safetensors")
    with pytest.raises(BadRecipe, match="is not that file"):  # what has the base's name beside it is a neighbour
        api.verify(tmp_path / "packed" / "b.safetensors")


# ---- chains --------------------------------------------------------------------------------------------------------------------------


def chain(folder: Path, n: int) -> list[Path]:
    """Steps of a training run, each stored as a delta to the one before, whose source is gone."""
    array, packed = weights("F32", 32, 128), []
    for step in range(n):
        source = write(folder / f"step{step}.safetensors", {"w": ("F32", array)})
        packed.append(folder / f"step{step}.mcodec.safetensors")
        api.compress(source, packed[-1], base=packed[-2] if step else None)
        source.rename(folder / f"{step}.kept")
        array = moved(array, 0.01, step)
    return packed


def test_chains_of_deltas(tmp_path: Path) -> None:
    packed = chain(tmp_path, 4)
    for step, path in enumerate(packed):
        assert comes_back(path, tmp_path / f"{step}.kept")
    packed[1].unlink()
    with pytest.raises(BadRecipe, match="step1"):
        api.verify(packed[3])


def test_chains_end_at_a_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = chain(tmp_path, 5)
    monkeypatch.setattr(base, "MOST_DEPTH", 4)
    api.verify(packed[4])
    monkeypatch.setattr(base, "MOST_DEPTH", 3)
    with pytest.raises(LimitExceeded, match="rebase"):
        api.verify(packed[4])


def test_a_delta_to_itself_ends(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """By its name, it is not taken for its own base; named as such, or through another one, it is refused."""
    old, fine = pair
    api.compress(fine, tmp_path / "packed", base=old)
    old.unlink()
    (tmp_path / "packed").rename(old)
    with pytest.raises(BadRecipe, match="not here"):
        api.verify(old)
    with pytest.raises((LimitExceeded, BadRecipe)):
        api.verify(old, base=old)
    with pytest.raises((LimitExceeded, BadRecipe)):
        api.verify(old, base=lambda name: old)


def test_rebase(tmp_path: Path) -> None:
    packed, kept = chain(tmp_path, 3), tmp_path / "2.kept"
    flat, onto, plain = tmp_path / "flat", tmp_path / "onto", tmp_path / "plain.mcodec"
    api.rebase(packed[2], flat, level=5)
    api.compress(kept, plain, level=5)
    assert flat.read_bytes() == plain.read_bytes()
    api.rebase(packed[2], onto, onto=packed[0])
    assert container.read(memoryview(onto.read_bytes()), "onto").base_names == ("step0.mcodec.safetensors",)
    packed[1].unlink()
    assert comes_back(onto, kept)
    with pytest.raises(BadRecipe):
        api.rebase(packed[2], tmp_path / "more")


# ---- hostile files -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../base.safetensors", "/etc/passwd", "a/../../b", "C:\\base", "", "con"])
def test_names_lead_nowhere_else(pair: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    old, fine = pair
    with pytest.raises(UnsafeInput):
        api.compress(fine, tmp_path / "packed", base=NamedBase(old, name or "/"))
    data = bytearray(forged(old, fine, tmp_path, name))
    with pytest.raises(ModelCodecError) as found:
        modelcodec.load(bytes(data), base=tmp_path)
    assert isinstance(found.value, UnsafeInput)


def forged(old: Path, fine: Path, folder: Path, name: str) -> bytes:
    """The fine-tune's delta, with another name of its base."""
    archive = folder / "forged"
    with base.opened(old) as opened, pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "check_name", lambda text: None)
        patch.setattr(base, "opened", lambda _: _Opened(base.Base(opened.files, (name,))))
        patch.setattr(api, "opened", base.opened)
        api.compress(fine, archive, base=old)
    return archive.read_bytes()


class _Opened:
    def __init__(self, chosen: base.Base) -> None:
        self.chosen = chosen

    def __enter__(self) -> base.Base:
        return self.chosen

    def __exit__(self, *_: object) -> None:
        return None


def test_a_large_source_is_written_the_other_way(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Header and directory have room for what they tell of bases, where they are written last into a place that was kept free."""
    old, fine = pair
    monkeypatch.setattr(compression, "IN_MEMORY_BYTES", 0)
    api.compress(fine, tmp_path / "packed", base=NamedBase(old, "a" * 200 + "/" + "b" * 200))
    assert comes_back(tmp_path / "packed", fine, base=old)
