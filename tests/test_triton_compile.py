"""Promise: the kernels that the interpreter runs are ones that Triton compiles for a GPU; compiling needs none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from modelcodec.kernels.triton import fixed_length, frames, xxh3

def compiles(kernel, constants, types):
    signature = {name: "constexpr" if name in constants else types.get(name, "*i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    assert compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["cubin"]

staged = {"tasks": "*i64", "bytes_": "*u8", "halves": "*i16"}
compiles(frames.decode, {"WIDTH": 2, "CLASSES": False, "ALIGNED": True}, {**staged, "out": "*i16"})
compiles(frames.decode, {"WIDTH": 4, "CLASSES": True, "ALIGNED": False}, staged)
sizes = dict.fromkeys(("n_rows", "n_columns", "n_words", "base"), "i32")
product = {**sizes, **dict.fromkeys(("x", "bias", "y", "values"), "*bf16"), "places": "*i64", "factor": "fp32"}
compiles(fixed_length.multiply, {"PART": 128, "ROWS": 4, "VECTORS": 1, "BIASED": False}, product)
compiles(fixed_length.multiply, {"PART": 32, "ROWS": 4, "VECTORS": 3, "BIASED": True}, product)
for chosen in (False, True):
    compiles(fixed_length.unpack, {"CHOSEN": chosen, "PART": 32}, {**sizes, "out": "*i16", "values": "*i16", "rows": "*i64", "places": "*i64"})
compiles(xxh3.accumulate, {}, dict.fromkeys(xxh3.accumulate.arg_names, "*i64"))
"""


def test_kernels_compile_for_hopper() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
