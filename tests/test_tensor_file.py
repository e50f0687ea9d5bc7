"""Promise: `open` behaves as `safetensors.safe_open` and indexing as numpy's; a slice decodes only the frames that it needs."""

from __future__ import annotations

import io
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import forge
import ml_dtypes
import numpy as np
import pytest
import rows
import safetensors
import safetensors.torch
import sources
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

import modelcodec
from modelcodec.compression import Settings, compress_view
from modelcodec.errors import BadRecipe, CorruptFile, LimitExceeded, ModelCodecError, UnsupportedFile
from modelcodec.formats import container, identify
from modelcodec.formats.container_layout import Entry
from modelcodec.recipe import Recipe
from modelcodec.tensor_file import TensorFile, TensorSlice
from modelcodec.types import DTYPES
from modelcodec.wire import byte_string, varint


def packed(source: bytes) -> bytes:
    out = io.BytesIO()
    view = memoryview(source)
    compress_view(view, identify(view, None), out, Settings(Recipe(), 5, 1, True, False), None)
    return out.getvalue()


def outcome(act: Any) -> Any:
    """What an expression gives, or the kind of error it raises."""
    try:
        return act()
    except (IndexError, TypeError, ValueError) as error:
        return type(error)


def small_frames(array: np.ndarray[Any, Any], frame_words: int) -> TensorFile:
    """A file whose only tensor has frames of so many words, so that slices cross them."""
    words = array.reshape(-1).view(rows.WORD[array.itemsize])
    pieces = [words[at : at + frame_words].tobytes() for at in range(0, words.size, frame_words)]
    entry = forge.coded("x", array.shape, {4: 34, 8: 50}[array.itemsize], [(forge.node(0), piece, piece) for piece in pieces], frame_words)
    return TensorFile.of_bytes(forge.container([forge.skeleton(b""), entry], source_size=array.nbytes))


SHAPES = ((0,), (1,), (17,), (6, 5), (4, 0, 3), (3, 4, 5), (1, 1, 1, 1))


@given(data=st.data(), shape=st.sampled_from(SHAPES), frame_words=st.sampled_from([1, 3, 7, 60]))
@example(data=None, shape=(6, 5), frame_words=3)
def test_slices_are_numpys(data: st.DataObject | None, shape: tuple[int, ...], frame_words: int) -> None:
    array = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape) + 1
    file = small_frames(array, frame_words) if array.size else TensorFile.of_bytes(modelcodec.save({"x": array}))
    indices = (
        [data.draw(st_numpy.basic_indices(shape, allow_newaxis=True))]
        if data
        else [slice(None, None, -1), slice(4, 1, -2), -1, (2, 3), np.int64(1), ..., (None, 0)]
    )
    for index in indices:
        found, expected = file.get_slice("x")[index], array[index]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(found, expected)


@given(start=st.integers(-9, 9) | st.none(), stop=st.integers(-9, 9) | st.none(), step=st.integers(-4, 4) | st.none())
def test_any_slice_of_rows(start: int | None, stop: int | None, step: int | None) -> None:
    array = np.arange(7 * 3, dtype=np.float64).reshape(7, 3)
    part, index = small_frames(array, 4).get_slice("x"), slice(start, stop, step)
    found, expected = outcome(lambda: part[index, 1:]), outcome(lambda: array[index, 1:])
    assert np.array_equal(found, expected) if isinstance(expected, np.ndarray) else found == expected


@pytest.mark.parametrize("index", [7, -8, "a", 1.0, (0, 3), (0, 0, 0), [0, 2], np.array([True] + [False] * 6), True])
def test_odd_indices_do_what_numpy_does(index: Any) -> None:
    array = np.arange(7 * 3, dtype=np.float64).reshape(7, 3)
    part = small_frames(array, 4).get_slice("x")
    found, expected = outcome(lambda: part[index]), outcome(lambda: array[index])
    assert np.array_equal(found, expected) if isinstance(expected, np.ndarray) else found == expected


def test_a_slice_decodes_only_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.arange(100 * 10, dtype=np.float32).reshape(100, 10)
    file = small_frames(array, 50)
    decoded: list[int] = []
    original = container.Container.decode_frame

    def noting(self: container.Container, entry: Entry, number: int, out: Any) -> int:
        decoded.append(number)
        return original(self, entry, number, out)

    monkeypatch.setattr(container.Container, "decode_frame", noting)

    def frames_for(index: Any) -> list[int]:
        decoded.clear()
        assert np.array_equal(file.get_slice("x")[index], array[index])
        return sorted(decoded)

    assert frames_for(slice(0, 5)) == [0]
    assert frames_for(slice(4, 6)) == [0, 1]
    assert frames_for(99) == [19]
    assert frames_for((slice(10, 20), 3)) == [2, 3]
    assert frames_for(slice(40, 40)) == []
    assert frames_for(slice(12, 2, -9)) == [0, 1, 2]
    part = file.get_slice("x")
    decoded.clear()
    assert (part.get_shape(), part.get_dtype()) == ([100, 10], "F32")
    assert decoded == []
    file.get_tensor("x")
    assert sorted(decoded) == list(range(20))


def test_the_same_as_safe_open(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(12.0).reshape(3, 4), "a": torch.ones(5, dtype=torch.bfloat16), "s": torch.tensor(3), "e": torch.zeros(0, 2)}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    modelcodec.compress(tmp_path / "model.safetensors", tmp_path / "packed")
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as theirs, modelcodec.open(tmp_path / "packed", "pt") as ours:
        assert set(ours.keys()) == set(theirs.keys())
        assert ours.metadata() == theirs.metadata()
        for name in theirs.keys():  # noqa: SIM118
            assert torch.equal(ours.get_tensor(name), theirs.get_tensor(name))
            assert ours.get_tensor(name).dtype == theirs.get_tensor(name).dtype
        assert torch.equal(ours.get_slice("b")[1:, 2], theirs.get_slice("b")[1:, 2])
        assert ours.get_slice("b").get_shape() == theirs.get_slice("b").get_shape()
        assert ours.get_slice("a").get_dtype() == theirs.get_slice("a").get_dtype()
    assert {name: tensor.dtype for name, tensor in modelcodec.load_file(tmp_path / "packed", "pt").items()} == {name: t.dtype for name, t in tensors.items()}


TORCH = (
    "bool",
    "uint8",
    "int8",
    "int16",
    "uint16",
    "float16",
    "bfloat16",
    "int32",
    "uint32",
    "float32",
    "int64",
    "uint64",
    "float64",
    "complex64",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
)


@pytest.mark.parametrize("name", TORCH)
def test_every_dtype_of_torch(name: str) -> None:
    dtype = getattr(torch, name)
    octets = torch.from_numpy(rows.random_bits(48 * dtype.itemsize, 1) & np.uint8(1 if name == "bool" else 255))
    tensor = octets.view(dtype).reshape(6, 8)
    loaded = modelcodec.load(modelcodec.save({"x": tensor}), "pt")["x"]
    assert (loaded.dtype, loaded.shape) == (dtype, tensor.shape)
    assert torch.equal(loaded.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize("name", ["BF16", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_dtypes_of_ml_dtypes(name: str) -> None:
    source = sources.safetensors_bytes({"x": (name, (4, 4), bytes(range(16 if name != "BF16" else 32)))})
    tensor = modelcodec.load(packed(source))["x"]
    assert tensor.dtype.type.__module__ == ml_dtypes.bfloat16.__module__ or tensor.dtype.type in vars(ml_dtypes).values()
    assert (tensor.shape, tensor.tobytes()) == ((4, 4), bytes(range(tensor.nbytes)))


@pytest.mark.parametrize("name", ["F4", "F6_E2M3", "F6_E3M2"])
@pytest.mark.parametrize("framework", ["np", "pt"])
def test_packed_dtypes_come_as_bytes(name: str, framework: Any) -> None:
    """And a slice of one is a slice of these bytes."""
    dtype = next(d for d in DTYPES if d.name == name)
    raw = bytes(range(dtype.n_bytes((8, 4))))
    with TensorFile.of_bytes(packed(sources.safetensors_bytes({"x": (name, (8, 4), raw)})), framework) as file:
        assert bytes(file.get_tensor("x").tolist()) == raw
        assert file.get_slice("x").get_shape() == [8, 4]
        assert bytes(file.get_slice("x")[3:9].tolist()) == raw[3:9]
        assert int(file.get_slice("x")[-1]) == raw[-1]


def viewed(*views: bytes, n: int = 64, size: int = 1) -> bytes:
    """A container of one storage of n bytes, 0 .. n - 1, with these views."""
    data = varint(len(views)) + b"".join(views)
    own = forge.Entry(forge.OWN + "views", (len(data),), role=forge.VIEWS, data=data)
    return forge.container([forge.skeleton(b""), own, forge.Entry("storage", (n,), data=bytes(range(n)))])


def view(shape: tuple[int, ...], strides: tuple[int, ...], first: int = 0, dtype: int = 1, name: bytes = b"v") -> bytes:
    return byte_string(name) + bytes([dtype]) + varint(len(shape)) + b"".join(map(varint, (*shape, *strides, 2, first)))


@pytest.mark.parametrize("framework", ["np", "pt"])
@pytest.mark.parametrize(
    ("shape", "strides", "first", "dtype"),
    [
        ((64,), (1,), 0, 1),
        ((4, 8), (8, 1), 3, 1),
        ((8, 4), (1, 8), 3, 1),
        ((3, 3), (9, 2), 5, 1),
        ((5, 6), (0, 1), 2, 1),
        ((5, 6), (1, 0), 2, 1),
        ((2, 3, 4), (3, 1, 7), 1, 1),
        ((), (), 63, 1),
        ((0, 9), (9, 1), 60, 1),
        ((1, 4), (1 << 60, 2), 0, 1),
        ((4, 1), (3, 1 << 62), 0, 34),
        ((3, 4), (1, 4), 1, 34),
        ((2, 2), (1, 3), 0, 50),
        ((4, 4), (2, 1), 0, 19),
    ],
)
def test_views_are_what_their_strides_say(shape: tuple[int, ...], strides: tuple[int, ...], first: int, dtype: int, framework: Any) -> None:
    size = {1: 1, 19: 2, 34: 4, 50: 8}[dtype]
    storage = np.frombuffer(bytes(range(64)), f"V{size}")
    places = first + sum(
        (np.arange(n).reshape((-1,) + (1,) * (len(shape) - i - 1)) * s for i, (n, s) in enumerate(zip(shape, strides, strict=True)) if n > 1),
        np.zeros(shape, int),
    )
    expected = storage[places] if 0 not in shape else np.empty(shape, f"V{size}")
    with TensorFile.of_bytes(viewed(view(shape, strides, first, dtype)), framework) as file:
        tensor = file.get_tensor("v")
        assert tuple(tensor.shape) == shape
        raw = tensor.tobytes() if framework == "np" else tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        assert raw == expected.tobytes()


def test_a_view_much_larger_than_its_storage_is_refused() -> None:
    """A stride of zero makes a small file stand for any number of elements: they are copied out up to a limit."""
    with TensorFile.of_bytes(viewed(view((1 << 40, 8), (0, 1)), view((1000, 8), (0, 1), name=b"small"))) as file:
        with pytest.raises(LimitExceeded):
            file.get_tensor("v")
        with pytest.raises(LimitExceeded):
            file.get_slice("v")[5:7]
        assert file.get_tensor("small")[999].tolist() == list(range(8))


@pytest.mark.parametrize("shape", [(0, 1 << 62), (1 << 31, 0, 1 << 31), (1,) * 64, (0,) * 64])
def test_shapes_at_the_edge(shape: tuple[int, ...]) -> None:
    """What numpy cannot hold is refused with an error of ours."""
    data = b"" if 0 in shape else b"\7"
    archive = forge.container([forge.skeleton(b""), forge.Entry("x", shape, data=data)])
    with TensorFile.of_bytes(archive) as file:
        try:
            assert file.get_tensor("x").shape == shape
        except UnsupportedFile as error:
            assert "numpy" in str(error)  # noqa: PT017


def test_a_source_with_a_shape_beyond_the_format_is_kept_as_bytes() -> None:
    source = sources.safetensors_bytes({"x": ("F32", (1 << 62, 1 << 62, 0), b""), "y": ("U8", (200,), bytes(200))})
    archive = container.read(memoryview(packed(source)), "file")
    assert (archive.source_format, len(archive.tensors)) == ("bytes", 1)


def test_many_readers_at_once(tmp_path: Path) -> None:
    """One open file, read by many threads."""
    array = rows.gaussian(400 * 1000, "F32").view(np.float32).reshape(400, 1000)
    modelcodec.save_file({"x": array}, tmp_path / "packed")
    faults: list[str] = []
    with modelcodec.open(tmp_path / "packed", threads=2) as file:

        def read(seed: int) -> None:
            draw = np.random.default_rng(seed)
            for _ in range(20):
                a, b = sorted(draw.integers(0, 401, 2))
                if not np.array_equal(file.get_slice("x")[a:b], array[a:b]):
                    faults.append(f"{a}:{b}")

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not faults


def test_errors(tmp_path: Path) -> None:
    modelcodec.save_file({"x": np.zeros(3, np.float32)}, tmp_path / "packed")
    with modelcodec.open(tmp_path / "packed") as file:
        with pytest.raises(KeyError, match="y"):
            file.get_tensor("y")
        with pytest.raises(KeyError, match="y"):
            file.get_slice("y")
        assert isinstance(file.get_slice("x"), TensorSlice)
    with pytest.raises(KeyError):
        file.get_tensor("x")
    with pytest.raises(ValueError, match="framework"):
        modelcodec.open(tmp_path / "packed", "tf")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        modelcodec.open(tmp_path / "missing")
    (tmp_path / "plain.safetensors").write_bytes(sources.safetensors_file()[1]["model.safetensors"])
    with pytest.raises(UnsupportedFile):
        modelcodec.open(tmp_path / "plain.safetensors")


def test_a_damaged_frame_harms_no_other_tensor() -> None:
    tensors = {name: rows.gaussian(3000, "F32", seed).view(np.float32) for seed, name in enumerate("abc")}
    data = bytearray(modelcodec.save(tensors))
    middle = next(e for e in container.read(memoryview(bytes(data)), "file").tensors if e.name == "b")
    data[middle.start + middle.size // 2] ^= 1
    with TensorFile.of_bytes(data) as file:
        assert np.array_equal(file.get_tensor("a"), tensors["a"])
        assert np.array_equal(file.get_tensor("c"), tensors["c"])
        with pytest.raises(CorruptFile, match="b, frame 0"):
            file.get_tensor("b")


def test_an_entry_of_the_tensors_own_digest_is_checked() -> None:
    raw = [(forge.node(0), bytes(64), bytes(64))]
    entry = forge.coded("x", (64,), 1, raw, 64)
    broken = forge.Entry("x", (64,), 1, forge.CODED, frames=entry.frames, frame_words=64, digest=5)
    with TensorFile.of_bytes(forge.container([forge.skeleton(b""), broken], source_size=64)) as file, pytest.raises(ModelCodecError, match="digest"):
        file.get_tensor("x")


@pytest.mark.parametrize("name", ["__metadata__", "__modelcodec__.x"])
def test_names_that_the_container_keeps(name: str) -> None:
    with pytest.raises(BadRecipe, match="rename"):
        modelcodec.save({name: np.zeros(4, np.float32)})
    with pytest.raises(BadRecipe, match="rename"):
        modelcodec.save({"x": np.zeros(4, np.float32)}, {"modelcodec": "1"})


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_arrays_of_any_memory_layout(order: Any, byte_order: str) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=f"{byte_order}f4", order=order)
    for variant in (array, array.T, array[:, ::2], array[::-1]):
        assert np.array_equal(modelcodec.load(modelcodec.save({"x": variant}))["x"], variant)


def test_entries_of_many_frames_are_not_decoded_with_others() -> None:
    """Short entries go together in one call, whose memory grows with their frames, not with their bytes."""
    tree, n = forge.node(1, b"\1\0"), 4096
    entry = forge.coded("x", (2 * n,), 19, [(tree, b"", b"\1\0" * 2)] * n, 2)
    same = [forge.Entry(f"y{k}", (2 * n,), 19, kind=forge.SAME, same=1, digest=entry.tensor_digest()) for k in range(8)]
    data = forge.container([forge.skeleton(b""), entry, *same], source_size=9 * 4 * n)
    tracemalloc.start()
    try:
        loaded = modelcodec.load(data, threads=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all((tensor.view(np.uint16) == 1).all() for tensor in loaded.values())
    assert peak < 8 << 20


def _long_entries(n: int, n_bytes: int) -> list[forge.Entry]:
    return [forge.Entry(f"t{k}", (n_bytes,), data=bytes([k]) * n_bytes) for k in range(n)]


def test_whoever_catches_an_error_finds_no_thread_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback keeps the frames that it went through, but nothing that goes on."""
    n_bytes, at_work, original = 9 << 20, 0, container.Container.decode_runs

    def slow(self: container.Container, runs: Any) -> Any:
        nonlocal at_work
        at_work += 1
        try:
            if runs[0][0].name != "t0":
                time.sleep(0.1)
            return original(self, runs)
        finally:
            at_work -= 1

    monkeypatch.setattr(container.Container, "decode_runs", slow)
    first, *others = _long_entries(6, n_bytes)
    data = forge.container([forge.skeleton(b""), replace(first, digest=5), *others], source_size=6 * n_bytes)
    n_threads = threading.active_count()
    with TensorFile.of_bytes(data, threads=3) as file, pytest.raises(CorruptFile, match="t0: the tensor's digest") as caught:
        file.get_tensors()
    assert caught.tb is not None
    assert (at_work, threading.active_count()) == (0, n_threads)


def test_memory_for_a_tensor_is_made_when_it_is_its_turn() -> None:
    """What is planned ahead does not grow with the file: frames that many entries share are many."""
    tree, n, n_same = forge.node(1, b"\1\0"), 1024, 20
    entry = forge.coded("x", (2 * n,), 19, [(tree, b"", b"\1\0" * 2)] * n, 2)
    same = [forge.Entry(f"y{k}", (2 * n,), 19, kind=forge.SAME, same=1, digest=entry.tensor_digest()) for k in range(n_same)]
    data = forge.container([forge.skeleton(b""), entry, *same], source_size=(n_same + 1) * 4 * n)
    tracemalloc.start()
    try:
        with TensorFile.of_bytes(data, threads=1) as file:
            for tensor in file._decode_entries(file._source.tensors):
                assert (tensor.view(np.uint16) == 1).all()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 700_000
