"""Promise: the bytes that come out depend on input, settings and versions alone, and nothing that was given is changed."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rows
import sources

import modelcodec
from modelcodec import compression

ROOT = Path(__file__).resolve().parent.parent
LEVELS = (1, 5, 9)
SCRIPT = """
import sys; sys.path[:0] = ['tests', '.']
import test_determinism as t
for level in t.LEVELS: print(t.digest(t.packed(t.checkpoint(), level, threads=2)))
"""


def checkpoint() -> bytes:
    """Every kind of plan, in tensors of several frames and of a few words."""
    half = rows.gaussian(700 * 1000, "BF16")
    tensors = {
        "w": ("BF16", (700, 1000), half.tobytes()),
        "w again": ("U16", (700_000,), half.tobytes()),
        "wide": ("F32", (400, 700), rows.gaussian(280_000, "F32", 2).tobytes()),
        "wider": ("F32", (300_000,), (rows.gaussian(300_000, "F16", 3).view(np.float16)).astype(np.float32).tobytes()),
        "double": ("F64", (50_000,), rows.gaussian(50_000, "F64", 4).tobytes()),
        "sparse": ("F16", (300_000,), np.where(rows.numbers(300_000, 5, 1) > 0, 0, rows.gaussian(300_000, "F16", 5)).astype("<u2").tobytes()),
        "few": ("F32", (100_000,), rows.random_bits(30, 4)[rows.numbers(100_000, 30, 1)].tobytes()),
        "ids": ("I64", (90_000,), rows.numbers(90_000, 50_000, 8).tobytes()),
        "steps": ("I32", (50_000,), np.arange(50_000, dtype="<i4").tobytes()),
        "noise": ("U8", (100_000,), rows.random_bits(100_000, 1).tobytes()),
        "scalar": ("F32", (), bytes(4)),
    }
    return sources.safetensors_bytes(tensors, {"format": "pt"})


def packed(source: bytes, level: int, threads: int) -> bytes:
    out = io.BytesIO()
    modelcodec.compress(io.BytesIO(source), out, level=level, threads=threads)
    return out.getvalue()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("level", LEVELS)
def test_same_bytes_for_any_number_of_threads(level: int) -> None:
    source = checkpoint()
    assert len({digest(packed(source, level, threads)) for threads in (1, 2, 3, 8)}) == 1


def test_same_bytes_on_a_processor_without_vector_code() -> None:
    """In other processes: one for this processor, one for an older one, whose kernels are other code."""
    found = []
    for settings in ({}, {"NUMBA_CPU_NAME": "haswell"}):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU")} | settings
        done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert found[0] == found[1]
    assert len(found[0]) == len(LEVELS)


def test_same_bytes_with_another_hash_seed_and_another_name(tmp_path: Path) -> None:
    """Neither names nor times of files, nor the order of sets, have a part in it."""
    source = checkpoint()[:300_000]
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(source)
        os.utime(tmp_path / name, (len(name), 10**9 + ord(name[0])))
        script = f"import modelcodec; modelcodec.compress({str(tmp_path / name)!r}, {str(tmp_path / name) + '.out'!r})"
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": str(ord(name[0]))}, check=True)
    assert (tmp_path / "a.safetensors.out").read_bytes() == (tmp_path / "b.safetensors.out").read_bytes()


def test_the_place_kept_for_header_and_directory_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "IN_MEMORY_BYTES", 0)
    source = checkpoint()
    found = {digest(packed(source, 5, threads)) for threads in (1, 4)}
    assert len(found) == 1
    out = io.BytesIO()
    modelcodec.decompress(io.BytesIO(packed(source, 5, 2)), out)
    assert out.getvalue() == source


def test_sources_are_not_changed(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    source.write_bytes(checkpoint())
    os.utime(source, (1, 2))
    source.chmod(0o444)
    before = (digest(source.read_bytes()), source.stat().st_mtime_ns, source.stat().st_mode)
    modelcodec.compress(source)
    container = tmp_path / "model.mcodec.safetensors"
    packed_before = digest(container.read_bytes()), container.stat().st_mtime_ns
    modelcodec.decompress(container, tmp_path / "back")
    modelcodec.verify(container)
    modelcodec.inspect(container, floors=True)
    assert before == (digest(source.read_bytes()), source.stat().st_mtime_ns, source.stat().st_mode)
    assert packed_before == (digest(container.read_bytes()), container.stat().st_mtime_ns)


def test_arrays_are_not_changed() -> None:
    arrays = {name: array.copy() for name, array in rows.edge_arrays(4).items()}
    for array in arrays.values():
        array.flags.writeable = False
    for level in LEVELS:
        modelcodec.save(arrays, level=level)
    assert all(array.tobytes() == rows.edge_arrays(4)[name].tobytes() for name, array in arrays.items())


def test_what_is_loaded_is_the_callers_own() -> None:
    data = modelcodec.save({"x": np.arange(1000, dtype=np.float32), "y": np.zeros(())})
    first = modelcodec.load(data)
    first["x"][:] = 0
    assert modelcodec.load(data)["x"][5] == 5
