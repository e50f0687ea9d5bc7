"""The arms suite: what each arm of the kernels reaches on one file. The arms of lesser processors are had by telling the compiler that this is one."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SYNTHETIC_BYTES, QUICK_BYTES = 128 << 20, 16 << 20
SECONDS = 6.0

ARMS: dict[str, dict[str, str]] = {
    "this processor": {},
    "AVX2 (haswell)": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
    "SSE4.1 (sandybridge)": {"NUMBA_CPU_NAME": "sandybridge", "NUMBA_CPU_FEATURES": ""},
    "generic vectors": {"NUMBA_CPU_NAME": "generic"},
    "scalar, not optimised": {"NUMBA_OPT": "0"},
}
"""Settings of numba, as in tests/test_arms.py. Vectors of 64-bit ARM are tested by emulation (tests/run_on_arm.sh), which tells nothing of their speed."""


def measured(path: Path, seconds: float) -> dict[str, object]:
    """What this process reaches: the arm, GB/s of memcpy, and for each level the digest of the result, GB/s of compressing and of decompressing."""
    from benchmarks.corpus import read
    from benchmarks.lossless import LEVELS, Memcpy, ModelCodecRun, keep_freed_memory, measure
    from modelcodec.kernels import arms

    keep_freed_memory()
    source = read(path, path.name)
    runs = [ModelCodecRun(source, level, 1, False) for level in LEVELS]
    rows = measure(source, [Memcpy(source, 1), *runs], seconds, 3)
    digests = [hashlib.sha256(run.compress(run.fresh())).hexdigest()[:16] for run in runs]
    speeds = [[row.compress_gb_s, row.decompress_gb_s] for row in rows]
    return {"arm": arms.ARM, "memcpy": speeds[0][1], "levels": speeds[1:], "digests": digests}


def run(root: Path, data: Path | None, only: Sequence[str] | None, quick: bool) -> int:
    """Measure each arm in a process of its own, print, write the block (not with `quick`). Returns 1 if an arm gives other bytes than the first."""
    from benchmarks.corpus import gaussian
    from benchmarks.lossless import LEVELS, machine, replace_block

    lines = [f"| | arm | memcpy | {' | '.join(f'-{level} compress | -{level} decompress' for level in LEVELS)} |", "|---" * (3 + 2 * len(LEVELS)) + "|"]
    digests = []
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as scratch:
        path = Path(scratch) / "gaussian_bf16.safetensors"
        gaussian(QUICK_BYTES if quick else SYNTHETIC_BYTES, path)
        for label, settings in ARMS.items():
            if only and not any(name in label for name in only):
                continue
            command = [sys.executable, __file__, str(path), "0" if quick else str(SECONDS)]
            done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root), **settings}, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout)
            digests.append(found["digests"])
            cells = [f"{speed:.2f}" for level in found["levels"] for speed in level]
            lines.append(f"| {label} | {found['arm']} | {found['memcpy']:.1f} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    same = all(each == digests[0] for each in digests)
    print("all arms give the same bytes" if same else "BROKEN: arms differ in their bytes")
    if not (quick or only):
        replace_block(root / "docs" / "benchmarks.md", f"{machine()}, one thread, GB/s.\n\n" + "\n".join(lines), "arms")
    return 0 if same else 1


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]), float(sys.argv[2]))))
