"""A fuzzer of everything that reads untrusted bytes, with every digest switched off: the decoder's safety must not lean on them.

    NUMBA_BOUNDSCHECK=1 python tests/fuzz/decode.py --seconds 60
    python tests/fuzz/decode.py --replay FINDING

Three targets: whole containers (restored, and each tensor loaded), single frames (with what their groups share, and where they lie in their tensor), and source
files (identified). Seeds are the good files of tests/files and what they restore to, and frames of deltas. Inputs that make the code go a way that none went
before are kept and mutated further; ways are told apart by error and lines, or by atheris's coverage where that is installed (not with --no-atheris). Some
frames are grown from random trees instead, and must decode to what they were made of.

Anything but a ModelCodecError is a finding, and so are an input that takes more than a second or 512 MB, a crash and a hang. Inputs lie against the end of
their memory and so does what frames are decoded to: a kernel that reads or writes past it crashes. Findings are saved, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import math
import mmap
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from struct import Struct
from typing import TYPE_CHECKING

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import numpy as np  # noqa: E402

if TYPE_CHECKING:
    from modelcodec.stage import FrameContext
    from modelcodec.types import TensorSpec

CONTAINER, FRAME, SOURCE = 0, 1, 2
TARGETS = ("container", "frame", "source")
SLOW_SECONDS = 1.0
HANG_SECONDS = 20.0
MOST_MEMORY = 512 << 20
MOST_BYTES = 1 << 16
KEPT = 4000
HUGE = tuple(
    base + delta for base in (1 << 7, 1 << 8, 1 << 15, 1 << 16, 1 << 20, 1 << 31, 1 << 32, 1 << 53, (1 << 63) - 1, (1 << 64) - 1) for delta in (-1, 0, 1)
)


@dataclass(frozen=True)
class Input:
    """What is decoded: for a frame also its width, its number of words, its first word in its group, the bytes that this shares, the tensor's dtype and shape,
    its first word in that, and the bytes of its base (repeated as often as needed)."""

    target: int
    data: bytes
    width: int = 1
    n: int = 0
    first: int = 0
    shared: bytes = b""
    dtype: int = 1
    shape: tuple[int, ...] = ()
    at: int = 0
    base: bytes = b""

    _head = Struct("<BBIIIB4III")

    def pack(self) -> bytes:
        sizes = (*self.shape, 0, 0, 0, 0)[:4]
        head = self._head.pack(self.target, self.width, self.n, self.first, len(self.shared), self.dtype, *sizes, self.at, len(self.base))
        return head + self.shared + self.base + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Input:
        data = data.ljust(cls._head.size, b"\0")
        target, width, n, first, n_shared, dtype, *sizes, at, n_base = cls._head.unpack_from(data)
        widths = (1, 2, 4, 8)
        width = width if width in widths else widths[width % 4]
        shared, data = data[cls._head.size :][:n_shared], data[cls._head.size + n_shared :]
        n, first, shape = (n - 1) % ((1 << 20) // width) + 1, first % (1 << 20), tuple(size for size in sizes if size)
        return cls(target % 3, data[n_base:], width, n, first, shared, dtype, shape, at, data[:n_base])


# ---- what is fuzzed --------------------------------------------------------------------------------------------------------------------


class Guarded:
    """Memory whose end is the end of what may be touched."""

    def __init__(self, n_bytes: int) -> None:
        self.size = -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.area = mmap.mmap(-1, self.size + mmap.PAGESIZE)
        self.array = np.frombuffer(self.area, np.uint8)
        if sys.platform == "linux":
            address = self.array.ctypes.data
            if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address + self.size), ctypes.c_size_t(mmap.PAGESIZE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def last(self, n_bytes: int) -> np.ndarray:
        return self.array[self.size - n_bytes : self.size]


class Targets:
    """The code under test, imported once."""

    def __init__(self) -> None:
        from modelcodec import errors, formats
        from modelcodec import frame as frames
        from modelcodec.formats import container
        from modelcodec.restoration import restore
        from modelcodec.stage import FrameContext, Shared
        from modelcodec.stages import zstd
        from modelcodec.tensor_file import TensorFile
        from modelcodec.types import DTYPE_BY_ID, DTYPE_BY_NAME, TensorSpec

        frames.CHECK_DIGESTS = zstd.CHECK_PAYLOAD = False
        self.error = errors.ModelCodecError
        self.frames, self.container, self.restore, self.formats = frames, container, restore, formats
        self.context, self.shared, self.tensor_file, self.spec = FrameContext, Shared, TensorFile, TensorSpec
        self.dtypes, self.usual = DTYPE_BY_ID, {1: DTYPE_BY_NAME["U8"], 2: DTYPE_BY_NAME["BF16"], 4: DTYPE_BY_NAME["F32"], 8: DTYPE_BY_NAME["F64"]}
        self.source, self.out = Guarded(MOST_BYTES * 4), Guarded(1 << 20)

    def run(self, case: Input) -> str:
        """Decode; returns the way that was gone: what came out, or the error and where it arose. Raises what is a finding."""
        memory = self.source.last(len(case.data))
        memory[:] = np.frombuffer(case.data, np.uint8)
        self.frames.USUAL_BYTES = 2 if len(case.data) % 2 else 1 << 30  # the fast way for common frames, or the general one
        try:
            return (self._container, self._frame, self._source)[case.target](case, memoryview(memory))
        except self.error as error:
            return _way_of(error)

    def _container(self, case: Input, data: memoryview) -> str:
        archive = self.container.read(data, "fuzz")
        if archive.source_size > MOST_BYTES << 8:
            return "large"  # as large as it says: it would be restored, a frame at a time
        self.restore(archive, None, 1, None)
        with self.tensor_file.of_bytes(data) as file:
            for name in file.keys():  # noqa: SIM118
                with suppress(self.error):
                    file.get_tensor(name)
        return "restored " + " ".join(f"{e.kind}{e.spec.dtype.name}{len(e.spec.shape)}" for e in archive.entries[:6])

    def _frame(self, case: Input, data: memoryview) -> str:
        out = self.out.last(case.n * case.width).view(f"<u{case.width}")
        base = np.frombuffer(case.base * (out.nbytes // len(case.base) + 1), out.dtype, case.n) if case.base else None
        spec, at = self._tensor(case)
        context = self.context(spec, case.first, case.n, self.shared(case.shared) if case.shared else None, at, base)
        self.frames.decode(data, 0, out, "fuzz", context)
        return "decoded " + str(self.frames.read_head(data, 0, case.width, case.n, "fuzz").root)

    def _tensor(self, case: Input) -> tuple[TensorSpec, int]:
        """The tensor of a frame, and where it lies in that: one in which it does."""
        dtype = self.dtypes.get(case.dtype)
        if dtype is not None and dtype.word == case.width and dtype.elements == 1 and 0 < math.prod(case.shape) < 1 << 50:
            spec = self.spec("x", dtype, case.shape)
            if case.at + case.n <= spec.n_words:
                return spec, case.at
        return self.spec("x", self.usual[case.width], (case.n,)), 0

    def _source(self, case: Input, data: memoryview) -> str:
        found = self.formats.identify(data, None)
        return f"{found.format} {min(len(found.extents), 9)} {min(len(found.views), 9)}"


def _way_of(error: BaseException | None) -> str:
    """The kinds of an error and of those that it was raised for, and the lines that they went through."""
    way = []
    while error:
        way.append(type(error).__name__)
        trace = error.__traceback__
        while trace:
            way.append(f"{trace.tb_frame.f_code.co_name}{trace.tb_lineno}")
            trace = trace.tb_next
        error = error.__context__
    return " ".join(way)


def seeds() -> list[Input]:
    """The good files, each of their frames, and the source files of each format that they restore to; frames of deltas, which no file holds without a base."""
    from fixtures import GOOD, content, restored

    from modelcodec.formats import container

    found = []
    for name in GOOD:
        data = content(name)
        found.append(Input(CONTAINER, data))
        archive = container.read(memoryview(data), name)
        for entry in archive.entries:
            for number in range(entry.n_frames) if entry.coded else ():
                start, end = entry.span(number)
                found.append(_frame_of(data[start:end], archive.context(entry, number)))
        if name.startswith(("good-format", "good-kinds", "good-nested")):
            found.append(Input(SOURCE, restored(data)))
    return [case for case in [*found, *_deltas()] if len(case.data) <= MOST_BYTES]


def _frame_of(data: bytes, context: FrameContext) -> Input:
    spec, shared, base = context.spec, context.shared.data if context.shared else b"", b"" if context.base is None else context.base.tobytes()
    shape = (*spec.shape[:3], math.prod(spec.shape[3:])) if len(spec.shape) > 4 else spec.shape
    return Input(FRAME, data, spec.dtype.word, context.n, context.first, shared, spec.dtype.id, shape, context.at, base)


def _deltas() -> list[Input]:
    import rows

    from modelcodec import frame as frames
    from modelcodec.recipe import parse_plan
    from modelcodec.stage import FrameContext
    from modelcodec.types import DTYPE_BY_NAME, TensorSpec

    found = []
    for row in rows.STAGE_ROWS:
        for dtype in row.dtypes if row.base and row.shared else ():
            x = rows.gaussian(300, dtype)
            context = FrameContext(TensorSpec("x", DTYPE_BY_NAME[dtype], (30, 10)), 0, x.size, row.shared(x), 0, row.base(x))
            found.append(_frame_of(frames.encode(x, parse_plan(row.plans[0]), context, 0).data, context))
    return found


class Grower:
    """Frames of random trees, made by the stages without asking whether they pay: also of arrays that are empty or tiny, which no encoder would split."""

    def __init__(self) -> None:
        from modelcodec.stage import FrameContext
        from modelcodec.stages import STAGES, stage_of
        from modelcodec.types import U8, TensorSpec

        self.context = FrameContext(TensorSpec("x", U8, (1,)), 0, 0)
        options = {"rans": (8, 10, 12), "zstd": (1, 19), "split_float": range(14), "palette": (1, 16, 256), "widen": range(1, 9), "sparse": (0, 1, 255)}
        options["fields"] = (((1, 1),), ((2, 1), (1, 16)), ((8, 1), (4, 2), (2, 4), (1, 3)), ((1, 1),) * 16)  # type: ignore[assignment]
        kinds = [stage_of(number) for number in STAGES]
        self.stages = [kind(option) for kind in kinds for option in options.get(kind.name, ())] + [kind() for kind in kinds if kind.name not in options] * 3

    def frame(self, draw: random.Random) -> tuple[Input, bytes]:
        """A frame, and what it must decode to."""
        width, n = draw.choice((1, 2, 2, 4, 4, 8)), draw.choice((1, 2, 7, 8, 9, 27, 63, 64, 65, 216, 300))
        few = [draw.getrandbits(8 * width) for _ in range(draw.choice((1, 2, 20)))]
        word = draw.choice(
            (lambda: 0, lambda: draw.choice(few), lambda: draw.choice((0, 0, 1, few[0])), lambda: draw.getrandbits(8 * width), lambda: draw.randrange(3))
        )
        x = np.array([word() for _ in range(n)], f"<u{width}")
        from modelcodec.frame import check_of

        loose: list[bool] = []
        head, payload = self._node(x, draw, 1, loose)
        if any(loose):
            payload += check_of(payload)
        return Input(FRAME, varint(len(head) + 12) + head + bytes(12) + payload, width, n), x.tobytes()

    def _node(self, x: np.ndarray, draw: random.Random, depth: int, loose: list[bool]) -> tuple[bytes, bytes]:
        """Head and payload of a node for x; `loose` grows by whether each node is."""
        encoded = None
        if depth < 7 and len(loose) < 19 and draw.randrange(4):
            stage = draw.choice(self.stages)
            encoded = stage.encode(x, self.context)
        loose.append(encoded is not None and stage.loose)
        if encoded is None:
            return b"\0\0", x.tobytes()
        head, payload = varint(stage.id) + varint(len(encoded.header)) + encoded.header, bytes(encoded.payload)
        for part in encoded.parts:
            inner_head, inner_payload = self._node(part, draw, depth + 1, loose)
            head, payload = head + inner_head, payload + inner_payload
        return head, payload


# ---- mutations -------------------------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F and len(out) < 9:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def mutated(case: Input, draw: random.Random, corpus: list[Input]) -> Input:
    """A case with one to four changes; mostly such that keep the length, which other lengths in the file depend on."""
    data, shared = bytearray(case.data), bytearray(case.shared)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        area = shared if shared and draw.randrange(3) == 0 else data
        _change(area, draw, corpus[draw.randrange(len(corpus))].data)
    changed = replace(case, data=bytes(data[:MOST_BYTES]), shared=bytes(shared[:MOST_BYTES]))
    if case.target == FRAME and draw.randrange(12) == 0:
        changed = replace(changed, n=max(1, min((1 << 20) // changed.width, draw.choice((case.n + 1, case.n - 1, case.n // 2, case.n * 2, 1)))))
    if case.target == FRAME and draw.randrange(30) == 0:
        changed = replace(changed, width=draw.choice((1, 2, 4, 8)), n=min(case.n, 1 << 17))
    if case.target == FRAME and shared and draw.randrange(12) == 0:
        changed = replace(changed, first=draw.choice((0, 1, case.n, 1 << 19)))
    if case.target == FRAME and draw.randrange(12) == 0:
        changed = replace(changed, at=draw.choice((0, 1, case.n, case.at + 1)), shape=draw.choice(((1 << 20,), (9, 1 << 20), (1 << 20, 3, 3), (5, 7, 8, 8))))
    return changed


def _change(data: bytearray, draw: random.Random, other: bytes) -> None:
    n = len(data)
    at = draw.randrange(n + 1)
    kind = draw.randrange(12)
    if kind <= 3 and n:
        data[min(at, n - 1)] ^= 1 << draw.randrange(8)
    elif kind <= 5 and n:
        data[min(at, n - 1)] = draw.choice((0, 1, 2, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    elif kind == 6:
        value = draw.choice(HUGE)
        piece = draw.choice((varint(value), value.to_bytes(9, "little")[: draw.choice((1, 2, 4, 8))]))
        data[at : at + len(piece)] = piece[: max(n - at, 0)]
    elif kind == 7:
        data[at:at] = draw.choice((varint(draw.choice(HUGE)), bytes(draw.randrange(9)), draw.randbytes(draw.randrange(9))))
    elif kind == 8:
        del data[at : at + draw.choice((1, 2, 8, draw.randrange(n + 1)))]
    elif kind == 9:
        start, length = draw.randrange(n + 1), draw.choice((1, 4, 8, 32))
        piece = bytes(data[start : start + length])
        data[at : at + len(piece)] = piece
    elif kind == 10 and other:
        start, length = draw.randrange(len(other)), draw.choice((4, 16, 64, 256))
        piece = other[start : start + length][: max(n - at, 0)]
        data[at : at + len(piece)] = piece
    elif kind == 11:
        # A number somewhere in text (JSON, a pickle), or a run of one byte.
        digits = [i for i in range(at, min(n, at + 40)) if 0x30 <= data[i] <= 0x39]
        if digits:
            data[digits[0]] = draw.choice(b"0123456789-e")
        else:
            data[at : at + 8] = bytes([draw.randrange(256)]) * min(8, n - at)


# ---- the work --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """How far a worker is: inputs tried, inputs kept, findings saved, microseconds of the slowest."""

    tried: int = 0
    kept: int = 0
    found: int = 0
    slowest: int = 0


class Desk:
    """Memory that the worker shares with the one who watches it: the facts, and the input that is being tried. It outlives the worker."""

    _head = Struct("<5Q")

    def __init__(self, path: Path) -> None:
        size = self._head.size + 4 * MOST_BYTES
        if not path.exists():
            path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self.area = mmap.mmap(file.fileno(), size)

    def put(self, facts: Facts, data: bytes) -> None:
        start = self._head.size
        self.area[start : start + len(data)] = data
        self._head.pack_into(self.area, 0, facts.tried, facts.kept, facts.found, facts.slowest, len(data))

    def get(self) -> tuple[Facts, bytes]:
        *facts, length = self._head.unpack_from(self.area)
        return Facts(*facts), bytes(self.area[self._head.size : self._head.size + length])


class Worker:
    """Tries inputs, and keeps the slowest."""

    def __init__(self, desk: Desk, findings: Path) -> None:
        self.targets, self.desk, self.findings = Targets(), desk, findings
        self.tried = self.kept = self.found = 0
        self.slowest = 0.01
        self.grower, self.known = Grower(), seeds()
        for case in self.known:
            self.targets.run(case)  # compiles and imports what there is

    def try_one(self, case: Input) -> str:
        packed = case.pack()
        self.tried += 1
        self.desk.put(Facts(self.tried, self.kept, self.found, int(self.slowest * 1e6)), packed)
        start = time.perf_counter()
        way = self.targets.run(case)
        seconds = time.perf_counter() - start
        if seconds > self.slowest:
            self.slowest = seconds
            self.findings.mkdir(parents=True, exist_ok=True)
            (self.findings / "slowest").write_bytes(packed)
        if seconds > SLOW_SECONDS:
            raise TimeoutError(f"{seconds:.1f} s")
        return way


def save(findings: Path, packed: bytes, what: str) -> None:
    findings.mkdir(parents=True, exist_ok=True)
    path = findings / f"finding-{hashlib.sha256(packed).hexdigest()[:16]}"
    path.write_bytes(packed)
    print(f"{path}: {TARGETS[Input.unpack(packed).target]}: {what}", file=sys.stderr, flush=True)


def limit_memory() -> None:
    if sys.platform != "linux":
        return
    import resource

    size = int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_MEMORY, size + MOST_MEMORY))


def grow(worker: Worker, draw: random.Random, corpus: list[Input]) -> bool:
    """Decode a frame of a random tree, which must give what it was made of, and let it replace an earlier one. False for a finding."""
    case, expected = worker.grower.frame(draw)
    try:
        way = worker.try_one(case)
        if not way.startswith("LimitExceeded") and worker.targets.out.last(len(expected)).tobytes() != expected:
            raise AssertionError("a frame decodes to something else than it was made of")
    except Exception as error:
        worker.found += 1
        save(worker.findings, case.pack(), f"{type(error).__name__}: {error}"[:300])
        return False
    if len(corpus) < KEPT // 4:
        corpus.append(case)
    else:
        corpus[-1 - draw.randrange(100)] = case
    return True


def by_ways(worker: Worker, seconds: float, seed: int) -> None:
    """Random mutations; what goes a new way joins the corpus."""
    corpora: dict[int, list[Input]] = {CONTAINER: [], FRAME: [], SOURCE: []}
    ways: set[str] = set()
    for case in worker.known:
        ways.add(worker.targets.run(case))
        corpora[case.target].append(case)
    limit_memory()
    draw = random.Random(seed)
    end = time.monotonic() + seconds
    weights = (CONTAINER, FRAME, FRAME, FRAME, SOURCE)
    while time.monotonic() < end and worker.found < 10:
        if draw.randrange(8) == 0 and not grow(worker, draw, corpora[FRAME]):
            continue
        corpus = corpora[draw.choice(weights)]
        # The newest were the hardest to find.
        place = draw.randrange(len(corpus)) if draw.randrange(2) else len(corpus) - 1 - int(draw.expovariate(0.05)) % len(corpus)
        case = mutated(corpus[place], draw, corpus)
        try:
            way = worker.try_one(case)
        except Exception as error:
            worker.found += 1
            save(worker.findings, case.pack(), f"{type(error).__name__}: {error}"[:300])
            continue
        if way not in ways:
            ways.add(way)
            if len(corpus) < KEPT:
                corpus.append(case)
                worker.kept += 1


def by_coverage(worker: Worker, seconds: float, seed: int) -> None:
    """atheris: libFuzzer with coverage of the Python code, and the mutations of this file beside its own."""
    import atheris

    limit_memory()
    draw = random.Random(seed)
    corpus = worker.findings / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for case in worker.known:
        (corpus / hashlib.sha256(case.pack()).hexdigest()[:16]).write_bytes(case.pack())

    def test_one_input(data: bytes) -> None:
        worker.try_one(Input.unpack(data))

    def mutator(data: bytes, most: int, seed: int) -> bytes:
        if draw.randrange(4) == 0:
            changed: bytes = atheris.Mutate(data, most)
            return changed
        return mutated(Input.unpack(data), draw, worker.known).pack()[:most]

    arguments = [sys.argv[0], f"-max_total_time={max(1, int(seconds))}", f"-seed={seed + 1}", f"-max_len={4 * MOST_BYTES}", "-timeout=10", "-rss_limit_mb=0",
                 f"-artifact_prefix={worker.findings}/finding-", "-verbosity=0", str(corpus)]  # fmt: skip
    atheris.Setup(arguments, test_one_input, custom_mutator=mutator)
    atheris.Fuzz()


def work(desk: Path, findings: Path, seconds: float, seed: int, with_atheris: bool) -> None:
    if with_atheris:
        import atheris

        from modelcodec import kernels

        for module in iter_modules(kernels.__path__):  # compiled code: what atheris puts into Python code does not compile
            with suppress(ImportError):
                import_module(f"modelcodec.kernels.{module.name}")
        with atheris.instrument_imports(include=["modelcodec"]):
            worker = Worker(Desk(desk), findings)
    else:
        worker = Worker(Desk(desk), findings)
    (by_coverage if with_atheris else by_ways)(worker, seconds, seed)


# ---- the watch -------------------------------------------------------------------------------------------------------------------------


def watch(seconds: float, seed: int, findings: Path, with_atheris: bool) -> int:
    """Run a worker; a crash or a hang of it is a finding too. Returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        desk_path = Path(folder) / "desk"
        desk = Desk(desk_path)
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--worker",
            str(desk_path),
            "--seconds",
            str(seconds),
            "--seed",
            str(seed),
            "--findings",
            str(findings),
        ]
        with subprocess.Popen(command + ([] if with_atheris else ["--no-atheris"])) as child:
            ended = _wait(child, desk)
        facts, packed = desk.get()
    if ended:
        save(findings, packed, ended)
    n_findings = facts.found + bool(ended)
    guide = "atheris" if with_atheris else f"{facts.kept} kept"
    print(f"{facts.tried} inputs in {seconds:.0f} s ({guide}), slowest {facts.slowest / 1000:.1f} ms ({findings / 'slowest'}), {n_findings} findings")
    return 1 if n_findings else 0


def _wait(child: subprocess.Popen[bytes], desk: Desk) -> str | None:
    """What ended the worker badly, None where nothing did."""
    number, since = -1, time.monotonic()
    while child.poll() is None:
        time.sleep(0.1)
        now = desk.get()[0].tried
        if now != number:
            number, since = now, time.monotonic()
        elif now and time.monotonic() - since > HANG_SECONDS:
            child.kill()
            return "hangs"
    if child.returncode < 0:
        return f"crashes with signal {-child.returncode}"
    return f"ends with exit code {child.returncode}" if child.returncode else None


def replay(path: Path) -> int:
    """Run one saved input, with its error shown. Exit code 1 if it is a finding still."""
    start = time.perf_counter()
    case = Input.unpack(path.read_bytes())
    print(TARGETS[case.target], Targets().run(case), f"{time.perf_counter() - start:.3f} s")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="of the mutations; default: another each time")
    parser.add_argument("--findings", type=Path, default=Path(tempfile.gettempdir()) / "modelcodec-fuzz", help="folder for inputs that are findings")
    parser.add_argument("--replay", type=Path, help="run one saved input")
    parser.add_argument("--no-atheris", action="store_true", help="mutate without atheris even where it is installed")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay)
    with_atheris = not options.no_atheris and _has_atheris()
    seed = int.from_bytes(os.urandom(4), "little") % (1 << 31) if options.seed is None else options.seed
    if options.worker:
        work(options.worker, options.findings, options.seconds, seed, with_atheris)
        return 0
    print(f"seed {seed}, findings go to {options.findings}")
    return watch(options.seconds, seed, options.findings, with_atheris)


def _has_atheris() -> bool:
    from importlib.util import find_spec

    return find_spec("atheris") is not None


if __name__ == "__main__":
    sys.exit(main())
