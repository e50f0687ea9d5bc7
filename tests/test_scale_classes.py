"""Scale classes: groups of frames that share tables come back bit for bit, are smaller where rows and columns have scales, and refuse damage."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from reference_decoder import restore

import modelcodec
from modelcodec import frame
from modelcodec.errors import CorruptFile, ModelCodecError
from modelcodec.formats import container
from modelcodec.formats.container_layout import CODED, CODED_SHARED
from modelcodec.kernels import scale_classes as kernels
from modelcodec.kernels.frequencies import Table
from modelcodec.recipe import Recipe
from modelcodec.scale_classes import byte_logs, find
from modelcodec.stage import FrameContext, Plan, Shared
from modelcodec.stages.class_rans import ClassRans, ScaleClasses
from modelcodec.stages.split_float import SplitFloat
from modelcodec.types import DTYPE_BY_NAME, TensorSpec

ROOT = Path(__file__).resolve().parent.parent


def scaled(rows: int, columns: int, dtype: type = ml_dtypes.bfloat16, seed: int = 0) -> np.ndarray:
    """Weights whose rows and columns have scales of their own, with a few numbers that no table foresees."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, columns)) * 0.02
    weights *= np.exp(rng.standard_normal((rows, 1)) * 0.5) * np.exp(rng.standard_normal((1, columns)))
    weights = weights.astype(np.float32)
    weights.reshape(-1)[rng.integers(0, rows * columns, 20)] = [0, np.inf, -np.inf, np.nan, 1e30, -1e30, 1e-40, -0.0, 65504, 1e-30] * 2
    with np.errstate(over="ignore"):
        return weights.astype(dtype)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("shape", [(64, 65), (300, 77), (5, 4000), (2048, 1024), (1200, 700, 3, 1), (9000, 100)])
def test_round_trip_through_a_file(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    weights = scaled(shape[0], int(np.prod(shape[1:])), dtype).reshape(shape)
    data = modelcodec.save({"w": weights}, level=9)
    small, fast = len(data), len(modelcodec.save({"w": weights}, level=5))
    assert small <= fast
    with modelcodec.open(_kept(tmp_path, data)) as file:
        assert file.get_tensor("w").tobytes() == weights.tobytes()
        for first in (0, 1, shape[0] // 2, shape[0] - 3):
            assert file.get_slice("w")[first : first + 2].tobytes() == weights[first : first + 2].tobytes()


def _kept(folder: Path, data: bytes) -> Path:
    path = folder / "w.mcodec.safetensors"
    path.write_bytes(data)
    return path


def test_scales_are_worth_several_percent_and_tell_the_newer_version() -> None:
    weights = scaled(1024, 1024)
    small, plain = modelcodec.save({"w": weights}, level=9), modelcodec.save({"w": weights}, level=5)
    assert len(small) < 0.97 * len(plain)
    assert b'"modelcodec":"0.2"' in small[:400]
    assert b'"modelcodec":"0.1"' in plain[:400]
    (entry,) = container.read(memoryview(small), "").tensors
    assert entry.kind == CODED_SHARED
    assert len(entry.shared) == 1


ROW_LOUD, COLUMN_LOUD = np.exp2(np.arange(512) % 4 / 2)[:, None], np.exp2(np.arange(1024) % 8 / 2)


def numbers() -> np.ndarray:
    """Rows of 4 scales and columns of 8, eleven different products."""
    return np.random.default_rng(12).standard_normal((512, 1024)) * ROW_LOUD * COLUMN_LOUD


def nibbles() -> np.ndarray:
    """Offset binary of 4 bits, two in a byte."""
    x = np.clip(np.round(numbers() / 7), -8, 7) + 8
    return (x[:, ::2].astype(np.uint8) | x[:, 1::2].astype(np.uint8) << 4).astype(np.uint8)


BYTES = {
    "F8_E4M3": lambda: numbers().astype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": lambda: numbers().astype(ml_dtypes.float8_e5m2),
    "I8": lambda: np.round(numbers()).astype(np.int8),
    "U8": lambda: (np.round(numbers()) + 128).astype(np.uint8),
    "packed U8": nibbles,
}


def entropy_by_scale(x: np.ndarray) -> float:
    """Bits of bytes whose scales are known: at order 0 among those of the same product; of a packed pair the columns stand side by side."""
    octets, columns = x.view(np.uint8), COLUMN_LOUD if x.shape[1] == COLUMN_LOUD.size else COLUMN_LOUD[::2]
    bits = 0.0
    for loud in np.unique(ROW_LOUD * columns):
        counts = np.bincount(octets[ROW_LOUD * columns == loud], minlength=256)
        counts = counts[counts > 0]
        bits += float((counts * np.log2(counts.sum() / counts)).sum())
    return bits


@pytest.mark.parametrize("name", BYTES)
def test_bytes_by_scale_come_near_the_entropy_of_known_scales(name: str) -> None:
    x = BYTES[name]()
    small, plain = modelcodec.save({"w": x}, level=9), modelcodec.save({"w": x}, level=5)
    assert modelcodec.load(small)["w"].tobytes() == x.tobytes()
    assert len(small) < 0.97 * len(plain)
    assert 8 * len(small) < 1.02 * entropy_by_scale(x) + 8 * 6000, "6000 bytes of tables and scales"


@pytest.mark.parametrize("shape", [(64, 64), (3000, 3), (5, 70_000), (1100, 1000, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu, np.bool_])
def test_bytes_without_scales_take_no_more_than_without_classes(shape: tuple[int, ...], dtype: type) -> None:
    rng = np.random.default_rng(1)
    n = int(np.prod(shape))
    draws = {"flat": rng.integers(0, 256, n), "bell": rng.binomial(255, 0.5, n), "few": rng.integers(0, 3, n), "counted": np.arange(n)}
    for name, drawn in draws.items():
        octets = drawn.astype(np.uint8).reshape(shape)
        x = octets < 100 if dtype is np.bool_ else octets.view(dtype)
        small, plain = modelcodec.save({"w": x}, level=9), modelcodec.save({"w": x}, level=5)
        assert len(small) <= len(plain) + 64, name
        assert modelcodec.load(small)["w"].tobytes() == x.tobytes()


def test_logs_of_bytes_are_magnitudes() -> None:
    for dtype, kind in (("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2), ("I8", np.int8)):
        values = np.abs(np.arange(256, dtype=np.uint8).view(kind).astype(np.float64))
        real = np.isfinite(values) & (values > 0)
        logs = byte_logs(dtype, np.zeros(0, np.uint8)).astype(int)
        offset = logs[real] / 128 - np.log2(values[real])
        assert np.ptp(offset) < 0.09, "between powers of two a log is linear"
        assert logs[values == 0].max() < logs[real].min()


def test_kernels_take_bytes_by_their_logs() -> None:
    """Bytes count as floats with the same magnitudes do."""
    x = (np.round(numbers()).astype(np.int8)).reshape(-1).view(np.uint8)[: 300 * 1024 + 77]
    logs = byte_logs("I8", x)
    for of_bytes, of_floats in zip(kernels.fit(x, 7, 1024, 2, logs), kernels.fit(logs[x], 7, 1024, 2), strict=True):
        assert np.array_equal(of_bytes, of_floats)
    scales = np.arange(301, dtype=np.uint8) % 64, np.arange(1024).astype(np.uint8) % 64
    counts, counted = kernels.count(x, 0, 1024, *scales, 2)
    wide, also = kernels.count(x.astype(np.uint16), 0, 1024, *scales, 2)
    assert counted == also
    assert np.array_equal(counts, wide)


def test_the_reference_decoder_agrees(tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    modelcodec.save_file({"w": scaled(40, 130), "v": scaled(33, 200, np.float32), "n": nibbles()[:40]}, tmp_path / "w.mcodec.safetensors", level=9)
    modelcodec.decompress(tmp_path / "w.mcodec.safetensors", source)
    data = (tmp_path / "w.mcodec.safetensors").read_bytes()
    assert restore(data) == source.read_bytes()


def _group(rows: int = 70, columns: int = 90, dtype: type = ml_dtypes.bfloat16) -> tuple[np.ndarray, Plan, FrameContext]:
    x = scaled(rows, columns, dtype).reshape(-1).view(np.uint32 if dtype is np.float32 else np.uint16)
    found = find(x, columns, 7, (7, 6, 5))
    assert found is not None
    spec = TensorSpec("w", DTYPE_BY_NAME["BF16"], (rows, columns))
    shared = Shared(found.classes.write())
    return x, Plan(SplitFloat(found.low_bits), {"symbols": Plan(ClassRans())}), FrameContext(spec, 0, x.size, shared)


@pytest.mark.parametrize("shape", [(64, 65), (300, 77), (9, 5000), (40000, 7), (512, 600), (700, 750)])
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("low_bits", [7, 5, 0, 13])
def test_one_pass_and_two_give_the_same(shape: tuple[int, int], dtype: type, low_bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, context = _group(*shape, dtype)
    plan = Plan(SplitFloat(low_bits), {"symbols": Plan(ClassRans())})
    together, out = frame.encode(x, plan, context, 0).data, np.empty_like(x)
    frame.decode(memoryview(together), 0, out, "fused", context)
    assert np.array_equal(out, x)
    monkeypatch.setattr(frame, "fused", lambda *stages: None)
    assert frame.encode(x, plan, context, 0).data == together
    out[:] = 0
    frame.decode(memoryview(together), 0, out, "apart", context)
    assert np.array_equal(out, x)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("n", [1, 63, 5000, 70_000, (1 << 18) + 77])
def test_symbols_alone_and_wild_payloads(width: int, n: int) -> None:
    rng = np.random.default_rng(n)
    x, _, context = _group(700, 750)
    context = FrameContext(context.spec, 1000, n, context.shared)
    symbols = (x[1000 : 1000 + n] >> 7 & 0xFF).astype(f"<u{width}")
    symbols[:: max(n // 5, 1)] = rng.integers(0, 256**width)
    encoded = ClassRans().encode(symbols, context)
    assert encoded is not None
    payload, out = np.frombuffer(encoded.payload, np.uint8), np.empty_like(symbols)
    assert ClassRans.layout(encoded.header, width, n).n_payload == payload.size
    ClassRans.decode(encoded.header, payload, (), out, context)
    assert np.array_equal(out, symbols)
    for _ in range(20):
        wild = rng.integers(0, 256, payload.size, np.uint8)
        wild[: rng.integers(0, payload.size + 1)] = rng.choice([0, 255])
        with pytest.raises(CorruptFile):
            ClassRans.decode(encoded.header, wild, (), out, context)


def test_a_symbol_without_room_is_an_error_only_where_it_comes_up() -> None:
    n, low, high = 1 << 17, Table(11, np.array([3, 900], np.uint16), np.array([2000, 47], np.uint16), 1), np.array([0, 32], np.uint8)
    context = FrameContext(TensorSpec("", DTYPE_BY_NAME["U16"], (1, n)), 0, n, Shared(ScaleClasses(high[:1], np.zeros(n, np.uint8), high[:0], (low,)).write()))
    for symbols, fits in ((np.full(n, 3, np.uint16), True), (np.where(np.arange(n) == 500, 900, 3).astype(np.uint16), False)):
        encoded, out = ClassRans().encode(symbols, context), np.empty(n, np.uint8)
        assert encoded is not None
        if fits:
            ClassRans.decode(encoded.header, np.frombuffer(encoded.payload, np.uint8), (), out, context)
            assert (out == 3).all()
        else:
            with pytest.raises(CorruptFile, match="symbol"):
                ClassRans.decode(encoded.header, np.frombuffer(encoded.payload, np.uint8), (), out, context)


def test_all_arms_give_the_same_bytes(tmp_path: Path) -> None:
    """Vector code, where this machine has it, and the code of processors without it."""
    script = """
import sys; sys.path.insert(0, "tests")
import modelcodec, test_scale_classes
open(sys.argv[1], "wb").write(modelcodec.save(test_scale_classes.several(), level=9))
"""
    for arm in ({}, {"NUMBA_CPU_NAME": "haswell"}):
        done = subprocess.run([sys.executable, "-c", script, tmp_path / "w"], cwd=ROOT, env={**os.environ, **arm}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "w").read_bytes() == modelcodec.save(several(), level=9)


def several() -> dict[str, np.ndarray]:
    floats = {"a": scaled(700, 800), "b": scaled(500, 300, np.float32), "c": scaled(900, 90, np.float16), "d": scaled(7000, 5)}
    return floats | {"e": nibbles(), "f": BYTES["F8_E4M3"]()}


def test_shared_parts_survive_writing() -> None:
    _, _, context = _group()
    assert context.shared is not None
    assert ScaleClasses.read(context.shared.data).write() == context.shared.data


def test_damage_is_found_and_never_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    x, plan, context = _group(64, 65)
    coded = bytearray(frame.encode(x, plan, context, 0).data)
    out = np.empty_like(x)
    frame.decode(memoryview(coded), 0, out, "whole", context)
    assert np.array_equal(out, x)
    for bit in [*range(8 * 40), *range(8 * 40, 8 * len(coded), 11)]:
        coded[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ModelCodecError):
            frame.decode(memoryview(coded), 0, out, "flipped", context)
        coded[bit // 8] ^= 1 << bit % 8
    # Without digests nothing may crash, hang or raise anything foreign, whatever the shared part or the payload say.
    monkeypatch.setattr(frame, "CHECK_DIGESTS", False)
    assert context.shared is not None
    shared, rng = bytearray(context.shared.data), np.random.default_rng(1)
    for _ in range(3000):
        damaged, payload = bytearray(shared), bytearray(coded)
        for target in (damaged, payload):
            if rng.integers(2):
                target[rng.integers(len(target))] = rng.integers(256)
        with suppress(ModelCodecError):
            frame.decode(memoryview(payload), 0, out, "random", FrameContext(context.spec, 0, x.size, Shared(bytes(damaged))))


def test_class_rans_needs_its_place() -> None:
    x, plan, context = _group()
    coded = memoryview(frame.encode(x, plan, context, 0).data)
    with pytest.raises(CorruptFile, match="not known"):
        frame.decode(coded, 0, np.empty_like(x), "alone")
    with pytest.raises(CorruptFile, match="rows"):
        frame.decode(coded, 0, np.empty_like(x), "below", FrameContext(context.spec, 90, x.size, context.shared))


@pytest.mark.parametrize("wrong", ["scale", "thresholds", "bits", "symbol", "classes", "rest"])
def test_wrong_shared_parts(wrong: str) -> None:
    table = Table(11, np.array([3, 5], np.uint16), np.array([1000, 1000], np.uint16), 48)
    scales, thresholds, tables = np.array([0, 63], np.uint8), np.array([10, 20], np.uint8), (table,) * 3
    good = ScaleClasses(scales, scales, thresholds, tables).write()
    ScaleClasses.read(good)
    if wrong == "scale":
        data = ScaleClasses(scales + np.uint8(1), scales, thresholds, tables).write()
    elif wrong == "thresholds":
        data = ScaleClasses(scales, scales, thresholds[::-1].copy(), tables).write()
    elif wrong == "bits":
        data = good[:9] + bytes([12]) + good[10:]
    elif wrong == "symbol":
        high = Table(11, np.array([3, 1023], np.uint16), table.frequencies, 48)
        data = ScaleClasses(scales, scales, thresholds, (table, table, high)).write()
    elif wrong == "classes":
        data = ScaleClasses(scales, scales, np.arange(32, dtype=np.uint8), (table,) * 33).write()
    else:
        data = good + b"\0"
    with pytest.raises(CorruptFile):
        ScaleClasses.read(data)


def test_threads_do_not_change_the_bytes(tmp_path: Path) -> None:
    source = tmp_path / "m.safetensors"
    modelcodec.save_file({str(k): scaled(600, 300, seed=k) for k in range(4)}, tmp_path / "m.mcodec.safetensors", level=9)
    modelcodec.decompress(tmp_path / "m.mcodec.safetensors", source)
    for threads in (1, 2, 5):
        modelcodec.compress(source, tmp_path / f"{threads}", level=9, threads=threads)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == (tmp_path / "5").read_bytes()


def test_rules_keep_their_own_plans() -> None:
    weights = scaled(64, 256)
    recipe = Recipe.from_toml('[[rule]]\ntensors = "w"\nplan = "split_float(symbols:rans)"\n')
    (entry,) = container.read(memoryview(modelcodec.save({"w": weights}, level=9, recipe=recipe)), "").tensors
    assert entry.kind == CODED
