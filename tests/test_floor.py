"""Promise: the floors that `info` shows are entropies that can be computed by hand, and nothing coded lies below the floor of its model."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import modelcodec
from modelcodec.cli.main import main
from modelcodec.floor import floor_bits, model_bits
from modelcodec.formats import container
from modelcodec.recipe import Recipe


def order0(x: np.ndarray) -> float:
    """Bits a word at order 0."""
    counts = np.unique(x, return_counts=True)[1]
    return float((counts * np.log2(x.size / counts)).sum() / x.size)


def coded(tensors: dict[str, np.ndarray], level: int = 5, plan: str = "") -> container.Container:
    recipe = Recipe.from_toml(f'[[rule]]\nplan = "{plan}"\n') if plan else None
    return container.read(memoryview(modelcodec.save(tensors, level=level, recipe=recipe)), "file")


def model_of(x: np.ndarray, level: int = 5, plan: str = "") -> float:
    archive = coded({"x": x}, level, plan)
    bits = model_bits(archive, archive.tensors[0])
    assert bits is not None
    assert bits <= 8 * archive.tensors[0].size / x.size
    return bits


def normal(shape: tuple[int, ...], dtype: type, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_symbols_at_their_entropy_and_the_rest_as_it_is() -> None:
    x = normal((200_000,), ml_dtypes.bfloat16)
    assert model_of(x, plan="split_float(symbols:rans)") == pytest.approx(order0(x.view(np.uint16) >> 7 & 0xFF) + 8)
    octets = np.random.default_rng(1).binomial(200, 0.5, 50_000).astype(np.uint8)
    assert model_of(octets, plan="rans") == pytest.approx(order0(octets))


def test_entropy_of_each_frame_for_itself() -> None:
    """Two frames of two numbers each: a bit a weight, where one histogram of both has two."""
    x = np.concatenate([np.tile(np.array(pair, np.uint8), 1 << 19) for pair in ([5, 6], [8, 9])])
    archive = coded({"x": x}, plan="rans")
    assert model_bits(archive, archive.tensors[0]) == pytest.approx(1)
    assert floor_bits(archive, archive.tensors[0]) == pytest.approx(2)


@pytest.mark.parametrize(("dtype", "free"), [(ml_dtypes.float8_e4m3fn, 0), (np.int8, 0), (ml_dtypes.bfloat16, 8)])
def test_classes_are_given(dtype: type, free: int) -> None:
    """Columns of two scales: with classes the model's entropy is about the mean of both, clearly below that of the mixture."""
    loud = np.arange(1024) % 2 * 15 + 1
    x = (normal((512, 1024), np.float32) * loud).astype(dtype)
    symbols = x.view(np.uint8) if dtype is not ml_dtypes.bfloat16 else x.view(np.uint16) >> 7 & 0xFF
    apart = (order0(symbols[:, ::2]) + order0(symbols[:, 1::2])) / 2 + free
    archive = coded({"x": x}, level=9)
    assert "class_rans" in str(archive.frame_head(archive.tensors[0], 0).root)
    model, floor = model_of(x, level=9), floor_bits(archive, archive.tensors[0])
    assert floor is not None
    assert model < floor - 0.3
    assert apart - 0.1 < model < apart + 0.06, "a symbol may hold bits of the mantissa, which classes also help"
    assert 8 * archive.tensors[0].size / x.size < model + 0.08


def test_what_has_no_model() -> None:
    noise = np.random.default_rng(2).integers(0, 256, 5000).astype(np.uint8)
    assert model_of(noise) == 8
    archive = coded({"text": np.frombuffer(b"to be or not to be, " * 2000, np.uint8), "a": normal((5000,), np.float32), "b": normal((5000,), np.float32)})
    by_name = {entry.name: model_bits(archive, entry) for entry in archive.tensors}
    assert 0 < (by_name["text"] or 0) < 0.1
    assert sorted((by_name["a"] or 0, by_name["b"] or 0))[0] == 0
    empty = coded({"empty": np.empty((0, 3), np.float32), "scalar": np.float32(1).reshape(())})
    assert [model_bits(empty, entry) for entry in empty.tensors] == [None, 32]


def test_masks_and_values_add_up() -> None:
    rng = np.random.default_rng(3)
    x = np.where(rng.random(400_000) < 0.25, normal((400_000,), ml_dtypes.bfloat16), 0).astype(ml_dtypes.bfloat16)
    mask = -(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    values = x[x != 0]
    exact = mask + (order0(values.view(np.uint16) >> 7 & 0xFF) + 8) * values.size / x.size
    assert model_of(x, plan="sparse(mask:rans, values:split_float(symbols:rans))") == pytest.approx(exact, abs=0.01)


def test_info_tells_damage_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(modelcodec.save({"x": normal((100, 1000), ml_dtypes.bfloat16)}, level=9))
    data[len(data) // 2] ^= 1
    path = tmp_path / "damaged.mcodec.safetensors"
    path.write_bytes(data)
    assert main(["info", str(path)]) == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "damaged" in err
