"""Promise: a kernel gives what its slow reference in plain Python gives, on good input and on bad. Driven by `rows.KERNEL_ROWS`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher
from rows import KERNEL_ROWS, KernelRow

ROOT = Path(__file__).resolve().parent.parent
CASES = 150
MANY_CASES = 10_000

HELD_ELSEWHERE = {"whole_frame", "few_lanes", "frame_encoder", "context_coder", "trellis", "feedback_trellis", "fixed_length"}
"""whole_frame and few_lanes against the general decoder (test_stages.py, test_frame_runs.py), frame_encoder against the planner and the stages
(test_usual_frames.py), the kernels of `grid` against a decoder in plain Python (test_grid.py), those of `fixed_length` against torch (test_fixed_length.py)."""
MODULES = sorted({path.stem for path in (ROOT / "kernels").glob("[a-z]*.py") if "@kernel" in path.read_text(encoding="utf-8")} - {"jit", *HELD_ELSEWHERE})


def compare(row: KernelRow, cases: range) -> None:
    for seed in cases:
        found = row.run(*row.inputs(random.Random(seed)))
        expected = row.reference(*row.inputs(random.Random(seed)))
        assert found == expected, f"{row.name}, case {seed}"


def kernels_of(module_name: str) -> set[str]:
    """Public functions that are compiled, or that call a compiled one of the same name with an underscore."""
    module = import_module(f"modelcodec.kernels.{module_name}")
    found = set()
    for name, value in vars(module).items():
        home = getattr(value, "__module__", "") == module.__name__
        compiled = isinstance(value, Dispatcher) and value.targetoptions.get("inline") != "always" and value.py_func.__module__ == module.__name__
        wraps = callable(value) and home and isinstance(vars(module).get(f"_{name.removesuffix('_split')}"), Dispatcher)
        if not name.startswith("_") and (compiled or wraps):
            found.add(f"{module_name}.{name}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_kernel_has_a_row(module: str) -> None:
    assert kernels_of(module) <= {row.name for row in KERNEL_ROWS}


@pytest.mark.parametrize("row", KERNEL_ROWS, ids=lambda row: row.name)
def test_kernel_is_its_reference(row: KernelRow) -> None:
    compare(row, range(CASES))


@pytest.mark.slow
@pytest.mark.parametrize("row", KERNEL_ROWS, ids=lambda row: row.name)
def test_kernel_is_its_reference_many_times(row: KernelRow) -> None:
    compare(row, range(MANY_CASES))


def test_kernels_for_any_processor_are_their_references() -> None:
    """The arm for any processor; `test_arms` has the others."""
    script = """
import sys; sys.path.insert(0, 'tests'); import test_kernels as t
for row in t.KERNEL_ROWS: t.compare(row, range(40))
from modelcodec.kernels import arms; print(arms.ARM)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "NUMBA_CPU_NAME": "generic"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "vector\n"), done.stderr


def test_a_kernel_made_by_a_function_is_compiled_once_a_machine(tmp_path: Path) -> None:
    """What a kernel closes over is part of its place in the cache, and the same in each process."""
    script = """
import numpy as np
from modelcodec.kernels import context_coder, jit
from modelcodec.kernels.trellis import CODES
compiled = []
jit.BEFORE_COMPILING.append(lambda: compiled.append(1))
context_coder.pack(np.zeros(64, np.int32), context_coder.Geometry.of((8, 8), 0, 64), 256, CODES[1], 0)
print(len(compiled))
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    first, second = (subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True).stdout for _ in range(2))
    assert int(first) > 0
    assert int(second) == 0
