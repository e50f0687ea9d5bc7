"""Promise: every arm of the kernels gives the same bytes, touches no memory but its own, and is chosen for the processors that have it.

Arms are reached in other processes, by telling LLVM to pretend. ARM's own is tried by `run_on_arm.sh`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcodec.kernels import arms

ROOT = Path(__file__).resolve().parent.parent

ARMS = ("avx512vbmi", "avx2", "sse41", "vector", "scalar")
"""Of x86, the most demanding one first."""
SETTINGS: dict[str, tuple[str, dict[str, str]]] = {
    "host": (arms.ARM, {}),
    "skylake-avx512": ("avx2", {"NUMBA_CPU_NAME": "skylake-avx512", "NUMBA_CPU_FEATURES": ""}),
    "haswell": ("avx2", {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}),
    "sandybridge": ("sse41", {"NUMBA_CPU_NAME": "sandybridge", "NUMBA_CPU_FEATURES": ""}),
    "generic": ("vector", {"NUMBA_CPU_NAME": "generic"}),
    "not optimised": ("scalar", {"NUMBA_OPT": "0"}),
}
"""What numba is told -> the arm that this has to choose."""


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, str]]:
    """Arm and digest under some settings. Each has its own folder for compiled kernels, which the next run of the tests finds again."""
    found: dict[str, tuple[str, str]] = {}

    def result(name: str) -> tuple[str, str]:
        if name not in found:
            environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")} | SETTINGS[name][1] | {"PYTHONPATH": str(ROOT)}
            folder = f"arm-{name.replace(' ', '-')}"
            kept = getattr(request.config, "cache", None)  # none where pytest runs without its cache
            environment["XDG_CACHE_HOME"] = str(kept.mkdir(folder) if kept else tmp_path_factory.mktemp(folder))
            done = subprocess.run([sys.executable, "tests/every_arm.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{name}: {done.stderr}"
            arm, digest = done.stdout.split()
            found[name] = arm, digest
        return found[name]

    return result


@pytest.mark.parametrize("name", SETTINGS)
def test_all_arms_give_the_same_bytes(name: str, results: Callable[[str], tuple[str, str]]) -> None:
    wanted = SETTINGS[name][0]
    if name != "host" and not (arms.ARM in ARMS and ARMS.index(wanted) >= ARMS.index(arms.ARM)) and wanted != "scalar":
        pytest.skip(f"this processor cannot run {wanted}")
    arm, digest = results(name)
    assert arm == wanted
    assert digest == results("host")[1]
