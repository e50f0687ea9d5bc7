"""Promise: a small file cannot ask for much. Whatever a length says, nothing is allocated that the file has not earned, and the answer comes at once.

The bombs are decoded in a process of their own that may take little more memory than it has when it starts; digests and seals are right in all of them.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forge
import numpy as np
import pytest
from forge import CODED, SAME, VIEWS, Entry, container, frame, node, skeleton
from test_tensor_file import view, viewed

import modelcodec
from modelcodec import errors
from modelcodec.formats import container as containers
from modelcodec.formats.container_directory import read_views
from modelcodec.restoration import restore
from modelcodec.wire import byte_string, varint

ROOT = Path(__file__).resolve().parent.parent
MORE_MEMORY = 64 << 20
HANG_SECONDS = 1.0
HUGE = (1 << 31, 1 << 32, 1 << 53, (1 << 63) - 1)
RAW, CONSTANT, ZSTD, RANS, SPLIT, PLANES, PALETTE, SPARSE, WIDEN, FIELDS, CLASS_RANS = range(11)
SEEDBASIS = 15
ZERO = node(CONSTANT, b"\0")


def seeded(span: int, k: int, spans: int, exceptions: int, n: int = 64) -> bytes:
    """Frames of pseudo-random sums whose header says these numbers."""
    return one(node(SEEDBASIS, struct.pack("<BfQ", 0, 1.0, 0) + b"".join(map(varint, (span, k, spans, exceptions))), ZERO), n=n, dtype=34)


_RAW_NODE = node(RAW)


def one(tree: bytes, payload: bytes = b"", n: int = 64, dtype: int = 1, frame_words: int | None = None) -> bytes:
    """A tensor of n words in frames of this tree."""
    width = {1: 1, 19: 2, 34: 4, 50: 8}[dtype]
    words = frame_words or n
    frames = [frame(tree, payload, number=number) for number in range(-(-n // words))]
    return container([skeleton(b""), Entry("x", (n,), dtype, CODED, frames=frames, frame_words=words)], source_size=n * width)


def shaped(shape: tuple[int, ...], **changes: Any) -> bytes:
    entry = Entry("x", shape, data=bytes(16), told=("U8", [16]), **changes)
    return container([skeleton(b""), entry], source_size=16)


def nested(inner: Callable[[bytes], bytes], times: int, leaf: bytes = ZERO) -> bytes:
    for _ in range(times):
        leaf = inner(leaf)
    return leaf


def zstd_claiming(size: int) -> bytes:
    payload = b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"
    return one(node(ZSTD, varint(len(payload)) + forge.check_of(payload)), payload)


def own_entry(role: int, name: str, n_frames: int) -> bytes:
    """Skeleton or views of so many MiB, a few bytes each."""
    entry = Entry(forge.OWN + name, (n_frames << 20,), 1, CODED, role=role, frames=[frame(ZERO, number=i) for i in range(n_frames)], frame_words=1 << 20)
    if role == VIEWS:
        return container([skeleton(b""), entry, Entry("x", (16,), data=bytes(16))])
    return container([entry], source_size=n_frames << 20)


def shared(rows: int, columns: int, classes: int = 0, size: int = 64, coded_size: int | None = None, group: int = 8) -> bytes:
    """A group of frames of class_rans whose shared part says these numbers."""
    part = (varint(columns) + varint(rows) + bytes(8) + bytes([classes]) + bytes(64))[:size].ljust(size, b"\0")
    part_frame = frame(node(RAW), part, decoded=part, number=1 << 32)
    coded = frame(node(CLASS_RANS, b"\0" + varint(0) + varint(0)), (1 << 16).to_bytes(4, "little"), digest=0)
    row = varint(64) + varint(group) + varint(size) + varint(len(part_frame) if coded_size is None else coded_size) + varint(len(coded))
    entry = Entry("x", (64,), 1, forge.CODED_SHARED, frames=[part_frame, coded], row=row, digests=[0])
    return container([skeleton(b""), entry], source_size=64, version="0.2")


_OPENING = b'{"__metadata__":{"modelcodec":"0.1"},"__modelcodec__.directory":'


def bombs() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for n in HUGE:
        found |= {
            f"shape {n:#x}": shaped((n,)),
            f"frames {n:#x}": container([skeleton(b""), Entry("x", (n,), 1, CODED, frames=[frame(ZERO)], frame_words=1)], source_size=min(n, (1 << 63) - 1)),
            f"frame length {n:#x}": container([skeleton(b""), Entry("x", (64,), 1, CODED, frames=[frame(ZERO)], row=varint(64) + varint(n))], source_size=64),
            f"frame words {n:#x}": container([skeleton(b""), Entry("x", (64,), 1, CODED, frames=[frame(ZERO)], frame_words=n)], source_size=64),
            f"head length {n:#x}": container([skeleton(b""), Entry("x", (64,), 1, CODED, frames=[varint(n) + bytes(30)], frame_words=64)], source_size=64),
            f"same {n:#x}": container([skeleton(b""), Entry("x", (n,), kind=SAME, same=0, told=("U8", [0]))], source_size=n),
            f"source size {n:#x}": container([skeleton(b""), Entry("x", (16,), data=bytes(16))], source_size=n),
            f"gap {n:#x}": container([skeleton(b""), Entry("x", (16,), data=bytes(16), gap=n)], tail=0),
            f"tail {n:#x}": container([skeleton(b""), Entry("x", (16,), data=bytes(16))], tail=n),
            f"entries {n:#x}": container([skeleton(b""), Entry("x", (16,), data=bytes(16))], n_entries=n),
            f"skeleton {n:#x}": container([Entry(forge.OWN + "skeleton", (n,), role=forge.SKELETON, data=b"", told=("U8", [0]))], source_size=n, tail=n),
            f"zstd content {n:#x}": zstd_claiming(n),
            f"seedbasis span {n:#x}": seeded(n, 1, 1, 0),
            f"seedbasis coefficients {n:#x}": seeded(256, n, 1, 0),
            f"seedbasis spans {n:#x}": seeded(256, 1, n, 0),
            f"seedbasis exceptions {n:#x}": seeded(256, 1, 1, n),
            f"zstd payload {n:#x}": one(node(ZSTD, varint(n) + bytes(4))),
            f"rans units {n:#x}": one(node(RANS, b"\x08\0" + varint(n) + varint(0) + bytes(8))),
            f"rans escapes {n:#x}": one(node(RANS, b"\x08\0" + varint(0) + varint(n) + bytes(8))),
            f"palette {n:#x}": one(node(PALETTE, varint(n), _RAW_NODE)),
            f"sparse values {n:#x}": one(node(SPARSE, varint(n), _RAW_NODE, _RAW_NODE)),
            f"fields {n:#x}": one(node(FIELDS, varint(n) + b"\1\1", _RAW_NODE)),
            f"field words {n:#x}": one(node(FIELDS, b"\1\x08" + varint(n), _RAW_NODE)),
            f"node header {n:#x}": one(varint(RAW) + varint(n)),
            f"stage {n:#x}": one(varint(n) + b"\0"),
            f"views {n:#x}": _views(varint(n)),
            f"view name {n:#x}": _views(b"\1" + varint(n) + b"x"),
            f"view first {n:#x}": viewed(view((16,), (1,), first=n)),
            f"view stride {n:#x}": viewed(view((2,), (n,))),
            f"view dimension {n:#x}": viewed(view((n, n), (0, 0))),
            f"view dimensions {n:#x}": _views(b"\1" + byte_string(b"v") + b"\1" + varint(n)),
            f"rows {n:#x}": shared(n, 1),
            f"columns {n:#x}": shared(1, n),
            f"shared part {n:#x}": shared(1, 1, coded_size=n),
            f"json header {n:#x}": n.to_bytes(8, "little") + b'{"__metadata__":{"modelcodec":"0.1"}}',
        }
    return found | {
        "shape that wraps": shaped((1 << 32, 1 << 32)),
        "shape that wraps to 16": shaped(((1 << 62) + 4, 4)),
        "shape of many dimensions": shaped((2,) * 64),
        "65 dimensions": shaped((1,) * 65),
        "skeleton of more than 1 GiB": own_entry(forge.SKELETON, "skeleton", 1025),
        "views of more than 1 GiB": own_entry(VIEWS, "views", 1025),
        "9 deep": one(nested(lambda leaf: node(SPARSE, varint(64), ZERO, leaf), 8)),
        "10,000 deep": one(nested(lambda leaf: node(SPARSE, varint(64), ZERO, leaf), 10_000)),
        "65 nodes": one(node(FIELDS, b"\4" + b"\1\1" * 4, *[node(FIELDS, b"\x10" + b"\1\1" * 16, *[ZERO] * 16)] * 4), n=64),
        "10^6 nodes": one(node(FIELDS, b"\x10" + b"\1\1" * 16, *[node(FIELDS, b"\x10" + b"\1\1" * 16, *[ZERO] * 16)] * 16) * 3000, n=256),
        "arrays of 9 times the frame": one(nested(lambda leaf: node(SPLIT, b"\0", leaf, ZERO), 7, node(CONSTANT, b"\0\0")), n=1 << 19, dtype=19),
        "signs of a frame": seeded(1 << 20, 1 << 15, 1, 0, n=1 << 18),
        "json 10^5 deep": forge.container([skeleton(b"")], header=b'{"__metadata__":' + b"[" * 100_000),
        "json numbers of 10^5 digits": forge.container([skeleton(b"")], header=_OPENING + b"9" * 100_000 + b"}"),
        "json numbers beyond 64 bits": forge.container(
            [skeleton(b"")], header=_OPENING + b'{"dtype":"U8","shape":[1],"data_offsets":[0,99999999999999999999]}}'
        ),
        "json floats": forge.container([skeleton(b"")], header=_OPENING + b'{"dtype":"U8","shape":[1e999],"data_offsets":[0,1e999]}}'),
        "255 classes": shared(1, 1, classes=254),
        "shared part of 2 MiB": shared(1, 1, size=2 << 20),
        "no frames a group": shared(1, 1, group=0),
        "9 frames a group": shared(1, 1, group=9),
    }


def _views(data: bytes) -> bytes:
    own = Entry(forge.OWN + "views", (len(data),), role=VIEWS, data=data)
    return container([skeleton(b""), own, Entry("x", (16,), data=bytes(16))])


def defuse() -> None:
    """Decode every bomb with little memory to spare, and print what became of each: the error, and seconds."""
    import resource

    from modelcodec.formats import container as containers

    every = bombs()
    sample = next(iter((ROOT / "tests" / "files").glob("good-stage-split*"))).read_bytes()
    restore(containers.read(memoryview(sample), "warm"), None, 1, None)
    for data in every.values():
        outcome_of(data)  # compiles and imports what there is to compile and import
    size = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE_MEMORY, size + MORE_MEMORY))
    found = {}
    for name, data in every.items():
        start = time.perf_counter()
        error = outcome_of(data)
        found[name] = (error, time.perf_counter() - start)
    print(json.dumps(found))


def outcome_of(data: bytes) -> str:
    from modelcodec.tensor_file import TensorFile

    try:
        with TensorFile.of_bytes(data) as file:
            restore(file._source, None, 1, None)
            for name in file.keys():  # noqa: SIM118
                file.get_tensor(name)
    except Exception as error:
        return type(error).__name__
    return "none"


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[str, float]]:
    if sys.platform != "linux":
        pytest.skip("limits of memory are those of Linux")
    script = "import sys; sys.path[:0] = ['tests', '.']; import test_bombs; test_bombs.defuse()"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, tuple[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_at_once(name: str, outcomes: dict[str, tuple[str, float]]) -> None:
    error, seconds = outcomes[name]
    assert issubclass(getattr(errors, error, type(None)), errors.ModelCodecError), f"{name} gives {error}"
    assert seconds < HANG_SECONDS


def test_times(outcomes: dict[str, tuple[str, float]]) -> None:
    """50 ms is the goal; the clock of a shared machine is only asked for what a hang would show."""
    slowest = sorted(outcomes.items(), key=lambda row: -row[1][1])[:5]
    print(*(f"{1000 * seconds:7.1f} ms  {error:16} {name}" for name, (error, seconds) in slowest), sep="\n")
    assert len(outcomes) >= 30


@pytest.mark.parametrize("name", ["skeleton of more than 1 GiB", "views of more than 1 GiB", "9 deep", "65 nodes", "arrays of 9 times the frame"])
def test_what_is_too_much_is_a_limit(name: str, outcomes: dict[str, tuple[str, float]]) -> None:
    assert outcomes[name][0] == "LimitExceeded"


def test_more_views_than_their_bytes_can_name() -> None:
    """Names that count up compress without end: a file of a few KB would keep the reader busy for minutes."""
    views = b"".join(byte_string(str(k).encode()) + bytes([1, 0, 1, 0]) for k in range(6000))
    data = varint(6000) + views
    tensor = next(entry for entry in containers.read(memoryview(modelcodec.save({"w": np.zeros(4, np.uint8)})), "").entries if entry.name == "w")
    assert len(read_views(data, [tensor, tensor], 1000, "")) == 6000
    with pytest.raises(errors.LimitExceeded, match="views"):
        read_views(data, [tensor, tensor], 10, "")
