"""`mcodec warmup` compiles every kernel: none is left that a later run would have to wait for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
from modelcodec.warmup import uncompiled, warmup
warmup()
print(*uncompiled(), sep="\\n", end="")
"""


def test_no_kernel_is_left_uncompiled() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
