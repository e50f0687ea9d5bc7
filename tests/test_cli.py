"""Promise: the command line does what zstd users expect, says what it does, loses nothing, and ends with the exit code of what happened."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from modelcodec.cli import progress
from modelcodec.cli.main import main

ROOT = Path(__file__).parent.parent
PROGRAM = (sys.executable, "-m", "modelcodec.cli.main")

posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX terminals, pipes and signals")

SAFETENSORS_NAME = {"bfloat16": "BF16", "float32": "F32", "float16": "F16", "int64": "I64"}


class Done(NamedTuple):
    """How a run ended: exit code, bytes on standard output, text on standard error."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]
NOTICE = "mcodec: compiling kernels, once on this machine ...\n"


def spawn(*args: str | Path, **settings: Any) -> subprocess.Popen[bytes]:
    """The command in a process of its own, for pipes, signals and terminals."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.Popen([*PROGRAM, *map(str, args)], cwd=ROOT, **pipes)


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command in this process and in a new folder, with `stdin` as its standard input, and kernels that count as compiled."""
    monkeypatch.chdir(tmp_path)

    def call(*args: str | Path, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = main([str(arg) for arg in args])
        out, err = capfdbinary.readouterr()
        return Done(code, out, err.decode().replace(NOTICE, ""))  # whether a kernel is compiled already is not what is tested here

    return call


def tensors() -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(7)
    return {
        "layer.weight": random.normal(0, 0.02, (96, 64)).astype(ml_dtypes.bfloat16),
        "layer.bias": random.normal(0, 0.1, 64).astype(np.float32),
        "table[0]": np.arange(12, dtype=np.int64).reshape(3, 4),
        "steps": np.array(5000, dtype=np.int64),
        "red \x1b[31m[bold]": np.zeros((4, 4), np.float16),
    }


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small safetensors file; "table[0]" and the last name are awkward on purpose."""
    path = tmp_path / "model.safetensors"
    header: dict[str, Any] = {}
    data = b""
    for name, x in tensors().items():
        header[name] = {"dtype": SAFETENSORS_NAME[str(x.dtype)], "shape": x.shape, "data_offsets": [len(data), len(data) + x.nbytes]}
        data += x.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.fixture
def packed(model: Path, run: Run) -> Path:
    """The same, compressed."""
    assert run("compress", "-q", model).code == 0
    return model.with_name("model.mcodec.safetensors")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- there and back ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "coded"), [("m.safetensors", "m.mcodec.safetensors"), ("m.bin", "m.bin.mcodec"), ("notes", "notes.mcodec")])
def test_a_file_comes_back_under_its_name(name: str, coded: str, model: Path, run: Run, tmp_path: Path) -> None:
    source = model.rename(tmp_path / name)
    before = digest(source)
    done = run("compress", name)
    assert (done.code, done.out) == (0, b"")
    assert done.err.startswith(f"{name}: ")
    assert done.err.endswith(f"verified; wrote {coded}\n")
    assert digest(source) == before
    source.unlink()
    assert run("decompress", coded).err.endswith(f"digests match; wrote {name}\n")
    assert digest(source) == before
    assert names(tmp_path) == {name, coded}


def test_a_folder_comes_back(model: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    source = model.rename(tmp_path / "repo" / "model.safetensors")
    (tmp_path / "repo" / "config.json").write_text("{}")
    assert run("compress", "repo").code == 0
    assert names(tmp_path / "repo.mcodec") == {"model.safetensors", "config.json"}
    assert run("verify", "repo.mcodec").code == 0
    assert run("info", "repo.mcodec").code == 0
    assert run("decompress", "repo.mcodec", "-o", "back").code == 0
    assert digest(tmp_path / "back" / "model.safetensors") == digest(source)
    assert run("compress", "repo").code == 74


def test_standard_streams(model: Path, run: Run) -> None:
    data = model.read_bytes()
    coded = run("compress", "-", stdin=data)
    assert (coded.code, coded.err) == (0, "")
    assert run("compress", stdin=data).out == coded.out
    assert run("compress", "-c", model).out == coded.out
    assert run("compress", "-o", "-", model).out == coded.out
    restored = run("decompress", stdin=coded.out)
    assert (restored.code, restored.err, restored.out) == (0, "", data)
    assert run("-d", "-o", "back", "-", stdin=coded.out).code == 0
    assert Path("back").read_bytes() == data


@posix
def test_pipes_between_processes(model: Path) -> None:
    first = spawn("-qc", model)
    second = spawn("-qdc", "-", stdin=first.stdout)
    out, err = second.communicate(timeout=120)
    first.communicate(timeout=120)
    assert (out, err) == (model.read_bytes(), b"")
    assert (first.returncode, second.returncode) == (0, 0)


@posix
def test_a_named_pipe_is_written_to_not_replaced(model: Path, packed: Path, run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    assert run("decompress", packed, "-o", "pipe").code == 0
    reader.join(60)
    assert read == [model.read_bytes()]
    assert (tmp_path / "pipe").is_fifo()


# ---- zstd's letters ----------------------------------------------------------------------------------------------------------------


def test_levels(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    coded = {level: run("-c", f"-{level}", model).out for level in (1, 5, 9)}
    assert all(coded.values())
    assert run("-c", model).out == coded[5]
    assert run("-c", "--level", "9", model).out == coded[9]
    monkeypatch.setenv("MCODEC_COMPRESS_LEVEL", "9")
    assert run("-c", model).out == coded[9]
    assert run("-c", "-1", model).out == coded[1]
    assert run("-dc", stdin=coded[1]).out == model.read_bytes()


@pytest.mark.parametrize("level", ["-0", "-2", "-3", "-4", "-6", "-7", "-8", "-19", "-22", "-11", "--level=3", "-q3"])
def test_other_levels_name_the_three(level: str, model: Path, run: Run, tmp_path: Path) -> None:
    done = run("compress", level, model)
    assert done.code == 2
    assert "-1 (fast), -5 (default), -9 (small)" in done.err
    assert names(tmp_path) == {model.name}


@pytest.mark.parametrize("line", [["-d"], ["compress", "-d"], ["decompress"], ["-dkT1"], ["-d", "-T", "2"], ["-vd"]])
def test_ways_to_decompress(line: list[str], model: Path, packed: Path, run: Run) -> None:
    before = digest(model)
    model.unlink()
    assert run(*line, packed).code == 0
    assert digest(model) == before
    assert packed.exists()


@pytest.mark.parametrize("option", ["-9", "--sha256", "--no-verify"])
def test_restoring_takes_no_settings(option: str, packed: Path, run: Run) -> None:
    assert run("-d", option, "-f", packed).code == 2


def test_nothing_is_overwritten_without_force(model: Path, packed: Path, run: Run) -> None:
    packed.write_bytes(b"precious")
    done = run("compress", model)
    assert done.code == 74
    assert packed.name in done.err
    assert "-f" in done.err
    assert packed.read_bytes() == b"precious"
    assert run("compress", "-f", model).code == 0
    assert run("decompress", packed).code == 74
    assert run("decompress", "-f", packed).code == 0


def test_rm_removes_the_input_after_success(model: Path, run: Run, tmp_path: Path) -> None:
    before = digest(model)
    assert run("compress", "--rm", model).code == 0
    assert names(tmp_path) == {"model.mcodec.safetensors"}
    assert run("-d", "--rm", "model.mcodec.safetensors").code == 0
    assert names(tmp_path) == {model.name}
    assert digest(model) == before
    assert run("compress", "--rm", "-k", model).code == 0
    assert model.exists()


@pytest.mark.parametrize("line", [["--no-verify"], ["-c"], ["-o", "-"], ["-o", os.devnull]])
def test_rm_is_refused_where_the_result_is_not_safe(line: list[str], model: Path, run: Run) -> None:
    assert run("compress", "--rm", *line, model).code == 2
    assert model.exists()


def test_rm_keeps_the_input_of_a_failure(model: Path, packed: Path, run: Run) -> None:
    assert run("compress", "--rm", model).code == 74
    assert model.exists()
    packed.write_bytes(packed.read_bytes()[:-1])
    assert run("decompress", "--rm", "-f", packed).code == 4
    assert packed.exists()


def test_several_inputs_into_a_folder(model: Path, run: Run, tmp_path: Path) -> None:
    for folder in ("a", "b", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "x.bin").write_bytes(b"a" * 100)
    (tmp_path / "b" / "x.bin").write_bytes(b"b" * 100)
    assert run("compress", model, "a/x.bin", "-o", "file").code == 2
    assert run("compress", "a/x.bin", "b/x.bin", "-o", "out", "-f").code == 2, "one would overwrite the other"
    assert names(tmp_path / "out") == set()
    assert run("compress", model, "a/x.bin", "-o", "out").code == 0
    assert names(tmp_path / "out") == {"model.mcodec.safetensors", "x.bin.mcodec"}
    assert run("compress", "b/x.bin", "-o", "out/x.mcodec").code == 0
    assert run("decompress", "out/x.bin.mcodec", "out/x.mcodec", "-c").out == b"a" * 100 + b"b" * 100
    assert run("compress", "-c", model, "a/x.bin").code == 2


@pytest.mark.parametrize("line", [["-c", "-o", "x"], ["-q", "-v"], ["--json", "-c"], ["-T", "-1"], ["--unknown"]])
def test_what_cannot_be_meant(line: list[str], model: Path, run: Run, tmp_path: Path) -> None:
    done = run("compress", *line, model)
    assert done.code == 2
    assert done.err.startswith("mcodec: ")
    assert "Try 'mcodec compress --help'" in done.err
    assert names(tmp_path) == {model.name}


def test_a_file_in_the_place_of_a_verb(model: Path, run: Run) -> None:
    assert "mcodec compress model.safetensors" in run("model.safetensors").err
    assert "the verbs are compress" in run("comprss").err


# ---- what is said ------------------------------------------------------------------------------------------------------------------


def test_quiet_and_verbose(model: Path, run: Run) -> None:
    assert run("compress", "-q", "-f", model) == Done(0, b"", "")
    loud = run("compress", "-v", "-f", model)
    assert loud.out == b""
    assert "layer.weight" in loud.err
    assert "/s" in loud.err


def test_json_is_one_line_a_file(model: Path, run: Run) -> None:
    done = run("compress", "--json", "--sha256", model, "missing")
    assert done.code == 74
    good, bad = done.lines
    assert good["n_bytes"] == model.stat().st_size
    assert good["n_bytes_coded"] == Path(good["destination"]).stat().st_size
    assert good["ratio"] == pytest.approx(good["n_bytes_coded"] / good["n_bytes"])
    assert good["sha256"] == digest(model)
    assert (bad["source"], bad["kind"], bad["exit_code"]) == ("missing", "FileNotFoundError", 74)
    restored, checked = run("decompress", "-f", "--json", good["destination"]), run("verify", "--json", good["destination"])
    assert restored.lines[0]["n_bytes"] == checked.lines[0]["n_bytes"] == good["n_bytes"]


def test_info_tells_what_became_of_each_tensor(packed: Path, run: Run) -> None:
    done = run("info", packed)
    assert done.code == 0
    table = done.out.decode()
    assert all(
        word in table
        for word in ("tensor", "dtype", "shape", "plan", "before", "after", "bits", "floor", "ratio", "layer.weight", "96x64", "scalar", "5 tensors")
    )
    assert "\x1b" not in table, "a name must not steer the terminal"
    assert "red \\x1b[31m[bold]" in table
    (record,) = run("info", "--json", packed).lines
    rows = {row["name"]: row for row in record["tensors"]}
    assert {name: row["shape"] for name, row in rows.items()} == {name: list(x.shape) for name, x in tensors().items()}
    weight = rows["layer.weight"]
    assert weight["dtype"] == "BF16"
    assert weight["bits_per_weight"] == pytest.approx(8 * weight["n_bytes_coded"] / (96 * 64))
    assert 8 < weight["floor_bits"] < 16
    assert {row["dtype"]: row["n_tensors"] for row in record["dtypes"]} == {"BF16": 1, "F32": 1, "I64": 2, "F16": 1}
    assert run("info", "--json", "--no-floor", packed).lines[0]["tensors"][0]["floor_bits"] is None


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_fits_the_terminal(columns: int, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelcodec import api
    from modelcodec.cli import table

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    table.print_table(api.inspect(packed, floors=True), terminal)
    lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()
    assert "ratio" in lines[1]
    assert max(len(line.rstrip()) for line in lines[1:] if not line.startswith("plan ")) <= columns


# ---- damage ------------------------------------------------------------------------------------------------------------------------


def test_damage_has_its_exit_codes(model: Path, packed: Path, run: Run, tmp_path: Path) -> None:
    good = packed.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for name, data, code in (("flipped", bytes(flipped), 3), ("short", good[:-9], 4), ("model", model.read_bytes(), 5)):
        (tmp_path / f"{name}.mcodec").write_bytes(data)
        for verb in ("verify", "decompress"):
            done = run(verb, f"{name}.mcodec")
            assert done.code == code
            assert done.err.startswith(f"mcodec: {name}.mcodec")
            assert done.err.count("\n") == 1
    assert run("verify", packed).code == 0
    assert not names(tmp_path) & {"flipped", "short"}


def test_the_first_failure_gives_the_code_and_the_rest_is_done(model: Path, packed: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "short.mcodec").write_bytes(packed.read_bytes()[:-9])
    done = run("verify", "short.mcodec", "missing", packed)
    assert done.code == 4
    short, missing, good = done.err.splitlines()
    assert short.startswith("mcodec: short.mcodec: ")
    assert missing.startswith("mcodec: missing: ")
    assert good.endswith("every digest matches")
    assert run("verify", "missing", "short.mcodec").code == 74


# ---- cat ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ("layer.weight", ()),
        ("layer.weight[2:5, :]", (slice(2, 5), slice(None))),
        ("layer.weight[-1]", -1),
        ("layer.weight[::-2, 3]", (slice(None, None, -2), 3)),
        ("layer.weight[..., 1:]", (..., slice(1, None))),
        ("layer.weight[90:200]", slice(90, 200)),
        ("layer.bias[3]", 3),
        ("table[0]", ()),
        ("table[0][1]", 1),
        ("steps", ()),
    ],
)
def test_cat_gives_what_numpy_gives(wanted: str, index: Any, packed: Path, run: Run) -> None:
    stored = tensors()[wanted if wanted == "table[0]" else wanted.rpartition("[")[0] or wanted]
    expected = np.asarray(stored[index])
    done = run("cat", packed, wanted, "-q")
    assert done.code == 0
    read = np.load(io.BytesIO(done.out))
    assert read.shape == expected.shape
    assert read.tobytes() == expected.tobytes()
    assert read.dtype == (np.dtype("V2") if expected.dtype == ml_dtypes.bfloat16 else expected.dtype)


def test_cat_into_a_file(packed: Path, run: Run) -> None:
    done = run("cat", packed, "layer.weight", "-o", "w.npy")
    assert (done.code, done.out) == (0, b"")
    assert "ml_dtypes.bfloat16" in done.err
    np.testing.assert_array_equal(np.load("w.npy").view(ml_dtypes.bfloat16), tensors()["layer.weight"])
    assert run("cat", packed, "layer.bias", "-o", "w.npy").code == 74
    assert run("cat", packed, "layer.bias", "-o", "w.npy", "-f").code == 0
    np.testing.assert_array_equal(np.load("w.npy"), tensors()["layer.bias"])


@pytest.mark.parametrize(
    "wanted",
    [
        "nothing",
        "layer.weight[96]",
        "layer.weight[1,2,3]",
        "layer.weight[x]",
        "layer.weight[::0]",
        "layer.weight[__import__('os')]",
        "layer.weight[]",
        "steps[0]",
    ],
)
def test_cat_refuses_what_is_not_there(wanted: str, packed: Path, run: Run) -> None:
    done = run("cat", packed, wanted)
    assert (done.code, done.out) == (2, b"")
    assert wanted.partition("[")[0] in done.err


# ---- terminals, signals, closed streams --------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, Callable[[], str]]]:
    """A pseudo terminal: the end for a process, and what was written to it once the process has ended."""
    import pty

    parent, child = pty.openpty()
    pieces: list[bytes] = []

    def drain() -> None:
        try:
            while piece := os.read(parent, 65536):
                pieces.append(piece)
        except OSError:  # Linux: the other end was closed
            pass

    reader = threading.Thread(target=drain)
    reader.start()

    def text() -> str:
        if not closed:
            os.close(child)
            closed.append(True)
        reader.join(60)
        return b"".join(pieces).decode()

    closed: list[bool] = []
    yield child, text
    text()
    os.close(parent)


@posix
@pytest.mark.parametrize("verb", [["compress", "-c"], ["decompress", "-c"], ["compress", "-o", "-"]])
def test_no_binary_goes_to_a_terminal(verb: list[str], model: Path, terminal: Any) -> None:
    child, text = terminal
    process = spawn(*verb, model, stdout=child)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert b"terminal" in err
    assert text() == ""


@posix
def test_nothing_is_read_from_a_terminal(terminal: Any) -> None:
    child, _ = terminal
    for line in (["compress"], ["compress", "-"], ["-d"]):
        process = spawn(*line, stdin=child)
        assert process.wait(timeout=120) == 2
        process.communicate()


@posix
def test_cat_shows_numbers_on_a_terminal(packed: Path, terminal: Any) -> None:
    child, text = terminal
    assert spawn("cat", packed, "table[0][1:]", stdout=child).wait(timeout=120) == 0
    assert "int64  2x4" in text()
    assert "[ 8  9 10 11]" in text()


@posix
@pytest.mark.parametrize(("options", "shown"), [([], True), (["-q"], False), (["-c"], False)])
def test_a_bar_is_shown_on_a_terminal_only(options: list[str], shown: bool, model: Path, terminal: Any) -> None:
    child, text = terminal
    script = f"from modelcodec.cli import main, progress; progress.QUICK_SECONDS = 0; raise SystemExit(main.main(['compress', *{options!r}, {str(model)!r}]))"
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=child, env=environment)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert ("━" in text()) == shown


def test_no_bar_where_there_is_no_terminal() -> None:
    with progress.bar("file", wanted=True) as callback:
        assert callback is None


@posix
def test_an_interrupt_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    # Test runners may ignore SIGINT, and children inherit that.
    process = spawn("compress", "-q", tmp_path / "pipe", "-o", tmp_path / "out", preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    with open(tmp_path / "pipe", "wb") as pipe:  # opens once the process reads
        pipe.write(b"x" * 1000)
        pipe.flush()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.decode().strip() == "mcodec: interrupted"
    assert names(tmp_path) == {"pipe"}


@posix
@pytest.mark.parametrize("line", [["info"], ["info", "--json"], ["decompress", "-c"]])
def test_a_reader_that_goes_away(line: list[str], packed: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = spawn(*line, packed, stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 141
    assert [line for line in err.splitlines() if b"compiling" not in line] == []


@posix
def test_standard_output_closed_or_full(packed: Path) -> None:
    with open(os.devnull) as null:
        closed = subprocess.run(["/bin/sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, "-dc", packed], cwd=ROOT, stdin=null, capture_output=True, timeout=120)
    assert closed.returncode == 74
    assert b"standard stream was closed" in closed.stderr
    if not Path("/dev/full").exists():
        return
    for line in (["info"], ["info", "--json"], ["-dc"]):
        with open("/dev/full", "wb") as full:
            process = spawn(*line, packed, stdout=full)
            _, err = process.communicate(timeout=120)
        assert process.returncode == 74
        assert b"No space left" in err
        assert b"Traceback" not in err


# ---- the rest ----------------------------------------------------------------------------------------------------------------------


def test_help_tells_the_exit_codes(run: Run) -> None:
    text = run("--help").out.decode()
    for code in (3, 4, 5, 6, 7, 74, 130):
        assert f"{code:3d} " in text


@pytest.mark.parametrize(("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef mcodec"), ("fish", "complete --no-files --command mcodec")])
def test_completion_scripts(shell: str, mark: str, run: Run) -> None:
    assert mark in run("completion", shell).out.decode()


@pytest.mark.parametrize(("words", "word", "offered"), [("mcodec de", 1, {"decompress"}), ("mcodec compress --no", 2, {"--no-verify"})])
def test_the_shell_completes(words: str, word: int, offered: set[str]) -> None:
    environment = os.environ | {"_MCODEC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(word)}
    done = subprocess.run(PROGRAM, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered


def test_the_shell_completes_tensor_names(packed: Path) -> None:
    environment = os.environ | {"_MCODEC_COMPLETE": "bash_complete", "COMP_WORDS": f"mcodec cat {packed} lay", "COMP_CWORD": "3"}
    done = subprocess.run(PROGRAM, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == {"layer.weight", "layer.bias"}


def test_the_first_run_tells_that_it_compiles(model: Path, tmp_path: Path) -> None:
    def run(*args: str) -> str:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "LOCALAPPDATA": str(tmp_path / "cache"), "HOME": str(tmp_path)}
        command = [sys.executable, "-m", "modelcodec.cli.main", "compress", "-f", *args, str(model)]
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stderr

    first = run()
    assert first.startswith(NOTICE)
    assert first.count("compiling") == 1
    assert "compiling" not in run()
    assert run("-q") == ""


def test_warmup(run: Run) -> None:
    done = run("warmup")
    assert done.code == 0
    assert "compiled" in done.err
    assert run("warmup", "-q").err == ""
