"""`mcodec warmup` compiles every kernel: none is left that a later run would have to wait for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
from importlib import import_module
from modelcodec.kernels.ahead import parameters, to_encode
from modelcodec.warmup import uncompiled, warmup
warmup()
print(*uncompiled(), sep="\\n", end="")
for name in to_encode(9):
    module, function = name.split(".")
    for kinds in getattr(import_module(f"modelcodec.kernels.{module}"), function).signatures:
        if kinds != parameters(name):
            print(f"{name} is called with {kinds}, and compiled ahead for {parameters(name)}")
"""


def test_no_kernel_is_left_uncompiled() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
