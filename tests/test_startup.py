"""Promise: the command line and the package start at once, without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"numpy", "numba", "llvmlite", "torch", "transformers", "rich", "safetensors", "zstandard", "xxhash", "ml_dtypes", "asyncio", "multiprocessing"}

LINES = (
    "--help",
    "--version",
    "compress --help",
    "info --help",
    "cat --help",
    "warmup --help",
    "run --help",
    "fit --help",
    "report --help",
    "hook status",
    "completion fish",
    "compress -3 x",
    "compress -c -o x y",
    "compress missing",
    "nonsense",
    "verify missing",
)
STARTS = {"import": "import modelcodec"} | {line: f"from modelcodec.cli.main import main; main({line.split()!r})" for line in LINES}


@pytest.mark.parametrize("start", STARTS)
def test_nothing_heavy_is_imported(start: str) -> None:
    script = f"{STARTS[start]}\nimport sys\nprint('loaded:', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"
    assert "Traceback" not in done.stderr


def test_only_the_process_of_the_command_line_collects_rarely(tmp_path: Path) -> None:
    """And not where it runs a user's code."""
    (tmp_path / "method.py").write_text("")
    script = f"""
import gc, sys
from pathlib import Path
usual = gc.get_threshold()
from modelcodec.cli.main import main
main(["--version"])
assert gc.get_threshold() == usual
sys.argv = ["mcodec", "--version"]
main()
assert gc.get_threshold() > usual
from modelcodec.cli.user_code import names_of
names_of(Path({str(tmp_path / "method.py")!r}))
assert gc.get_threshold() == usual
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_verb_is_imported_when_it_is_asked_for() -> None:
    script = "import sys; from modelcodec.cli.main import main; main(['--version']); print(*(m for m in sys.modules if m.startswith('modelcodec.cli.')))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.splitlines()[-1].split()) == {"modelcodec.cli.main", "modelcodec.cli.messages", "modelcodec.cli.collecting"}
