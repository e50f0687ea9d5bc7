"""Promise: `stream` gives the tensors of `load_file` in the file's order, from anything that yields bytes, checked, while they arrive, in bounded memory."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import forge
import numpy as np
import pytest
import rows
from fixtures import BAD, GOOD, MANIFEST, content
from test_bombs import bombs
from test_tensor_file import view, viewed

import modelcodec
from modelcodec import frame as frames
from modelcodec.errors import BadRecipe, CorruptFile, LimitExceeded, ModelCodecError, TruncatedFile, UnsafeInput, UnsupportedFile
from modelcodec.formats import container
from modelcodec.formats.container_layout import SAME
from modelcodec.runtime import forward

MIB = 1 << 20
BOUNDS = [0, 3 * MIB, 256 * MIB]


class Pipe(io.RawIOBase):
    """Bytes that come a few at a time and cannot be gone back to."""

    def __init__(self, data: bytes, most: int = 100_000) -> None:
        self.data, self.most, self.position = memoryview(data), most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        n = min(len(buffer), self.most, len(self.data) - self.position)
        buffer[:n] = self.data[self.position : self.position + n]
        self.position += n
        return n


def weights(n: int, seed: int = 0) -> Any:
    return rows.gaussian(n, "F32", seed).view(np.float32)


@cache
def model() -> dict[str, Any]:
    """Tensors smaller and larger than a frame, one of each stored twice, an empty one and a number."""
    large, small, middle = weights(900_000), weights(300, 1), weights(300_000, 2)
    again = {"large again": large, "small again": small}
    return {"large": large, "small": small, "empty": np.zeros((0, 3), np.float32), "middle": middle, "number": np.array(7), **again}


@cache
def packed_at(level: int) -> bytes:
    return modelcodec.save(model(), level=level)


@pytest.fixture
def saved() -> bytes:
    return packed_at(1)


def check_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("level", [1, 9])
def test_from_a_file_and_from_a_pipe(tmp_path: Path, threads: int, bound: int, level: int) -> None:
    data = packed_at(level)
    (tmp_path / "packed").write_bytes(data)
    for source in (tmp_path / "packed", str(tmp_path / "packed"), Pipe(data), io.BytesIO(data)):
        found = list(modelcodec.stream(source, threads=threads, memory_bound=bound))
        assert [name for name, _ in found] == [e.name for e in container.read(memoryview(data), "").tensors]
        check_same(dict(found), model())


@pytest.mark.parametrize("bound", [0, 64 << 20])
def test_a_tensor_as_an_earlier_one_comes_in_its_frames(bound: int) -> None:
    """Frames of whole rows are more than full ones would be."""
    tensors = dict.fromkeys(("earlier", "same"), np.tile(rows.gaussian(1497, "BF16")[:, None], 700))
    data = modelcodec.save(tensors, level=1)
    earlier, same = container.read(memoryview(data), "").tensors
    assert earlier.n_frames == 3
    assert same.kind == SAME
    check_same(dict(modelcodec.stream(Pipe(data), memory_bound=bound)), tensors)


def test_from_a_pipe_of_the_system(saved: bytes) -> None:
    out, into = os.pipe()

    def write() -> None:
        with open(into, "wb") as file:
            file.write(saved)

    writer = threading.Thread(target=write)
    writer.start()
    with open(out, "rb") as file:
        check_same(dict(modelcodec.stream(file)), model())
    writer.join()


@pytest.mark.parametrize("row", rows.FORMAT_ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("framework", ["np", "pt"])
def test_every_format(row: Any, framework: Any, tmp_path: Path) -> None:
    """The views of a torch file, too, in the order of their storages."""
    name, files = row.make()
    for beside, data in files.items():
        (tmp_path / beside).write_bytes(data)
    modelcodec.compress(tmp_path / name, tmp_path / "packed")
    expected = modelcodec.load_file(tmp_path / "packed", framework)
    found = dict(modelcodec.stream(Pipe((tmp_path / "packed").read_bytes()), framework))
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert (found[key].dtype, found[key].shape) == (tensor.dtype, tensor.shape)
        same = np.array_equal(found[key], tensor) if framework == "np" else found[key].equal(tensor)
        assert same, key


@pytest.mark.parametrize("name", GOOD)
def test_files_of_every_stage(name: str) -> None:
    expected = modelcodec.load(content(name))
    found = dict(modelcodec.stream(Pipe(content(name)), memory_bound=0))
    assert {key: x.tobytes() for key, x in found.items()} == {key: x.tobytes() for key, x in expected.items()}


def test_views_are_what_their_strides_say() -> None:
    views = [((8, 4), (1, 8), 3, 1), ((5, 6), (0, 1), 2, 1), ((), (), 63, 1), ((0, 9), (9, 1), 60, 1), ((1, 4), (1 << 60, 2), 0, 1), ((3, 4), (4, 1), 1, 34)]
    data = viewed(*[view(*arguments, name=str(i).encode()) for i, arguments in enumerate(views)])
    check_same(dict(modelcodec.stream(Pipe(data))), modelcodec.load(data))
    with pytest.raises(LimitExceeded, match="repeats its storage"):
        dict(modelcodec.stream(Pipe(viewed(view((1 << 40, 8), (0, 1))))))


# ---- while bytes arrive ------------------------------------------------------------------------------------------------------------


class Gate(Pipe):
    """Gives the bytes behind the gate only once it is open."""

    def __init__(self, data: bytes, gate: int) -> None:
        super().__init__(data)
        self.gate, self.open = gate, threading.Event()

    def readinto(self, buffer: Any) -> int:
        if self.position >= self.gate:
            assert self.open.wait(60), "the tensor was not given while the rest was to come"
            return super().readinto(buffer)
        return super().readinto(buffer[: self.gate - self.position])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_tensor_comes_before_the_bytes_behind_it(saved: bytes, threads: int) -> None:
    first = container.read(memoryview(saved), "").tensors[0]
    source = Gate(saved, first.start + first.size)
    tensors = modelcodec.stream(source, threads=threads, memory_bound=0)
    name, tensor = next(tensors)
    assert name == first.name
    assert np.array_equal(tensor, model()[name])
    source.open.set()
    assert len(dict(tensors)) == len(model()) - 1


@pytest.mark.parametrize(("bound", "ahead"), [(0, 3 * MIB), (16 * MIB, 16 * MIB + 2 * MIB)])
def test_a_caller_that_takes_its_time_is_not_run_over(bound: int, ahead: int) -> None:
    """What is read and decoded while the caller is busy is bounded; when it has come so far, the rest comes, too."""
    tensors = {f"x{i:02}": weights(MIB // 4, i) for i in range(40)}
    data = modelcodec.save(tensors, level=1)
    source = Pipe(data)
    stream = modelcodec.stream(source, threads=1, memory_bound=bound)
    next(stream)
    before, settled = -1, threading.Event()
    while source.position != before:
        before = source.position
        settled.wait(0.2)
    assert source.position < ahead + 2 * MIB < len(data)
    assert len(dict(stream)) == 39


def test_ending_early(tmp_path: Path, saved: bytes) -> None:
    """Threads end, and a file that was opened is closed."""
    (tmp_path / "packed").write_bytes(saved)
    before = threading.active_count()
    with closing(modelcodec.stream(tmp_path / "packed", memory_bound=0)) as tensors:
        next(tensors)
    assert threading.active_count() == before
    with pytest.raises(StopIteration):
        next(tensors)


# ---- what is wrong is found --------------------------------------------------------------------------------------------------------


def given(data: bytes, error: type[ModelCodecError], match: str, **options: Any) -> list[str]:
    """The names of the tensors that come before the error."""
    names: list[str] = []

    def take() -> None:
        names.extend(name for name, _ in modelcodec.stream(Pipe(data), **options))

    with pytest.raises(error, match=match):
        take()
    return names


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_source_that_is_cut_off(tmp_path: Path, saved: bytes, bound: int) -> None:
    """TruncatedFile, after the tensors that came whole."""
    tensors = container.read(memoryview(saved), "").tensors
    for cut in (0, 7, 8, 100, tensors[0].start - 1):
        assert given(saved[:cut], TruncatedFile, "rest of the file", memory_bound=bound) == []
    for i, entry in enumerate(tensors):
        if entry.size:
            names = given(saved[: entry.start + entry.size - 1], TruncatedFile, "rest of the file", memory_bound=bound)
            # What was to come in one read with the tensor that is cut off is lost with it.
            assert names == [e.name for e in tensors[: len(names)]]
            assert len(names) <= i
            assert names or i == 0 or bound
    (tmp_path / "packed").write_bytes(saved[:-1])
    with pytest.raises(TruncatedFile, match="rest of the file"):
        next(modelcodec.stream(tmp_path / "packed"))


def test_a_connection_that_breaks(saved: bytes) -> None:
    class Broken(Pipe):
        error: Exception

        def readinto(self, buffer: Any) -> int:
            if self.position > len(saved) // 2:
                raise self.error
            return super().readinto(buffer)

    source = Broken(saved)
    source.error = RuntimeError("payload is not complete")
    with pytest.raises(TruncatedFile, match="payload is not complete"):
        dict(modelcodec.stream(source))
    source = Broken(saved)
    source.error = ConnectionResetError("reset")
    with pytest.raises(ConnectionResetError):
        dict(modelcodec.stream(source))


def test_bytes_behind_the_end(tmp_path: Path, saved: bytes) -> None:
    (tmp_path / "packed").write_bytes(saved + b"\0")
    for source in (Pipe(saved + b"\0"), tmp_path / "packed"):
        with pytest.raises(CorruptFile, match="follow the last entry"):
            dict(modelcodec.stream(source))


@pytest.mark.parametrize("threads", [1, 2])
def test_damage_is_found_where_it_is(threads: int) -> None:
    """A flipped bit in each tensor, in turn: those before it come, it does not."""
    tensors = {name: weights(3000, seed) for seed, name in enumerate("abcd")}
    data = modelcodec.save(tensors)
    for i, entry in enumerate(container.read(memoryview(data), "").tensors):
        damaged = bytearray(data)
        damaged[entry.start + entry.size // 2] ^= 4
        assert given(bytes(damaged), CorruptFile, f"{entry.name}, frame 0", threads=threads) == list("abcd")[:i]


FROM_A_PIPE = {"bad-json-end.mcodec": "CorruptFile"}
"""Other errors than of a file whose size is known."""


@pytest.mark.parametrize("name", [name for name in BAD if name != "bad-sha256.mcodec"])
def test_bad_files_give_their_error(name: str) -> None:
    """But for the SHA-256, which is that of the source file."""
    with pytest.raises(ModelCodecError) as found:
        dict(modelcodec.stream(Pipe(content(name))))
    assert type(found.value).__name__ == FROM_A_PIPE.get(name, MANIFEST[name]["error"])


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str) -> None:
    with pytest.raises(ModelCodecError):
        dict(modelcodec.stream(Pipe(BOMBS[name])))


@pytest.mark.parametrize("name", GOOD)
def test_nothing_leans_on_digests(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every digest off, damage gives an error of ours or other tensors; never anything else."""
    monkeypatch.setattr(frames, "CHECK_DIGESTS", False)
    data = bytearray(content(name))
    for at in range(0, len(data), 13):
        data[at] ^= 0x55
        with suppress(ModelCodecError):
            dict(modelcodec.stream(Pipe(bytes(data)), threads=1))
        data[at] ^= 0x55


def test_a_frame_that_is_larger_coded_than_decoded_is_not_read() -> None:
    """It would be memory that no bound counts."""
    tree, payload = forge.node(0), bytes(64)
    entry = forge.Entry("x", (64,), 1, forge.CODED, frames=[forge.frame(tree, payload, decoded=payload) + bytes(4 * MIB)], frame_words=64)
    with pytest.raises(LimitExceeded, match="x: 1 frames"):
        dict(modelcodec.stream(Pipe(forge.container([forge.skeleton(b""), entry], source_size=64))))


def test_repeated_tensors_are_kept_outside_of_memory(saved: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a source that cannot go back, with a bound that they do not fit."""
    kept: list[int] = []
    original = forward.ForwardReader._keep

    def noting(self: Any, start: int, data: memoryview) -> None:
        original(self, start, data)
        kept.append(self._copies._rolled)

    monkeypatch.setattr(forward.ForwardReader, "_keep", noting)
    check_same(dict(modelcodec.stream(Pipe(saved), memory_bound=MIB)), model())
    assert kept[-1]


def test_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="framework"):
        modelcodec.stream(tmp_path, "tf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threads"):
        modelcodec.stream(tmp_path, threads=0)
    with pytest.raises(ValueError, match="memory_bound"):
        modelcodec.stream(tmp_path, memory_bound=-1)
    with pytest.raises(ValueError, match="framework='pt'"):
        modelcodec.stream(tmp_path, device="cpu")
    with pytest.raises(FileNotFoundError):
        next(modelcodec.stream(tmp_path / "missing"))
    (tmp_path / "plain.safetensors").write_bytes(rows.FORMAT_ROWS[0].make()[1]["model.safetensors"])
    with pytest.raises(UnsupportedFile, match="not one that modelcodec wrote"):
        next(modelcodec.stream(tmp_path / "plain.safetensors"))


def test_to_a_device() -> None:
    torch = pytest.importorskip("torch")
    data = modelcodec.save({"x": np.arange(6, dtype=np.int32)})
    assert dict(modelcodec.stream(Pipe(data), "pt", device="cpu"))["x"].tolist() == list(range(6))
    assert dict(modelcodec.stream(Pipe(data), "pt", device=torch.device("meta")))["x"].is_meta


# ---- folders and addresses ---------------------------------------------------------------------------------------------------------


def shards() -> dict[str, dict[str, Any]]:
    return {f"model-{i}-of-2.safetensors": {f"x{i}": weights(500, i), f"y{i}": weights(70, 9 + i)} for i in (1, 2)}


def write_shards(folder: Path, **extra: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    weight_map = {}
    for file, tensors in shards().items():
        modelcodec.save_file(tensors, folder / file)
        weight_map.update(dict.fromkeys(tensors, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**weight_map, **extra}}))
    return {name: tensor for tensors in shards().values() for name, tensor in tensors.items()}


def test_a_folder_of_shards(tmp_path: Path) -> None:
    expected = write_shards(tmp_path / "model")
    check_same(dict(modelcodec.stream(tmp_path / "model")), expected)
    check_same(dict(modelcodec.stream(tmp_path / "model" / "model.safetensors.index.json")), expected)
    write_shards(tmp_path / "model", x="../other.safetensors")
    with pytest.raises(UnsafeInput):
        dict(modelcodec.stream(tmp_path / "model"))


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFile, match="without a checkpoint"):
        dict(modelcodec.stream(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    modelcodec.save_file(model(), tmp_path / "model.mcodec.safetensors")
    check_same(dict(modelcodec.stream(tmp_path)), model())
    modelcodec.save_file(model(), tmp_path / "other.mcodec")
    with pytest.raises(UnsupportedFile, match="several checkpoints"):
        dict(modelcodec.stream(tmp_path))


def test_addresses_of_fsspec(tmp_path: Path, saved: bytes) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.pipe("/test_stream/packed", saved)
    check_same(dict(modelcodec.stream("memory://test_stream/packed")), model())
    expected = write_shards(tmp_path / "model")
    memory.put(str(tmp_path / "model") + "/", "/test_stream/model/", recursive=True)
    check_same(dict(modelcodec.stream("memory://test_stream/model")), expected)
    check_same(dict(modelcodec.stream("memory://test_stream/model/model.safetensors.index.json")), expected)
    with pytest.raises(FileNotFoundError):
        dict(modelcodec.stream("memory://test_stream/missing"))
    memory.rm("/test_stream", recursive=True)
    with pytest.raises(BadRecipe, match=r"modelcodec\[remote\]"):
        dict(modelcodec.stream("nonsense://x"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, *arguments: Any) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = self.folder / self.path[1:]
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if path.name == "cut" else data)
        self.close_connection = path.name == "cut"

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """A server that knows no ranges."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_over_http(tmp_path: Path, saved: bytes) -> None:
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    (tmp_path / "packed").write_bytes(saved)
    (tmp_path / "cut").write_bytes(saved)
    expected = write_shards(tmp_path)
    with served(tmp_path) as address:
        check_same(dict(modelcodec.stream(f"{address}/packed")), model())
        check_same(dict(modelcodec.stream(f"{address}/model.safetensors.index.json")), expected)
        with pytest.raises(TruncatedFile):
            dict(modelcodec.stream(f"{address}/cut"))
        with pytest.raises(FileNotFoundError):
            dict(modelcodec.stream(f"{address}/missing"))
