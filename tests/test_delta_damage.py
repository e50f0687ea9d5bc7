"""Promise: a damaged delta, or one with a base that somebody chose to harm, is an error or harmless: nothing crashes, hangs or reads foreign memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import rows
from sources import safetensors_bytes

from modelcodec import api
from modelcodec import frame as frames
from modelcodec.base import Found
from modelcodec.errors import CorruptFile, ModelCodecError
from modelcodec.formats import container
from modelcodec.formats.container_layout import CODED_BASE
from modelcodec.kernels import delta
from modelcodec.restoration import restore
from modelcodec.stage import FrameContext, Shared
from modelcodec.stages.delta import Changes, Delta
from modelcodec.types import DTYPE_BY_NAME, TensorSpec


def small_pair() -> tuple[bytes, bytes]:
    """A base and a file with tensors of 2 and 4 bytes that became deltas, one of them its base's."""
    half, single = rows.gaussian(1500, "BF16", 3), rows.gaussian(900, "F32", 4)
    shapes = {"half": ("BF16", (30, 50)), "single": ("F32", (30, 30)), "same": ("F32", (900,))}
    near = single + rows.numbers(900, 1 << 14, 4, 5)
    sources = ({"half": half, "single": single, "same": single}, {"half": rows.base_of(half), "single": near, "same": single})
    base, fine = (
        safetensors_bytes({name: (dtype, shape, words[name].tobytes()) for name, (dtype, shape) in shapes.items()}) for words in sources
    )
    return base, fine


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, bytearray]:
    base, fine = small_pair()
    (tmp_path / "base").write_bytes(base)
    (tmp_path / "fine").write_bytes(fine)
    api.compress(tmp_path / "fine", tmp_path / "packed", base=tmp_path / "base", level=9)
    packed = bytearray((tmp_path / "packed").read_bytes())
    assert [entry.kind for entry in container.read(memoryview(packed), "file").tensors] == [CODED_BASE] * 3
    return tmp_path / "base", packed


def check(packed: bytearray | bytes, base: Path) -> None:
    with ExitStack() as stack:
        restore(Found.of(container.read(memoryview(packed), "file"), None, base, stack), None, 1, None)


def test_every_byte_counts(files: tuple[Path, bytearray]) -> None:
    base, packed = files
    check(packed, base)
    for at in range(len(packed)):
        packed[at] ^= 1 << at % 8
        with pytest.raises(ModelCodecError):
            check(packed, base)
        packed[at] ^= 1 << at % 8
    for n in range(0, len(packed), 7):
        with pytest.raises(ModelCodecError):
            check(packed[:n], base)


def damaged(data: bytes, seed: int, n: int) -> Iterator[bytearray]:
    """The bytes with a few of them changed, or a stretch of them doubled or gone."""
    draw = random.Random(seed)
    for _ in range(n):
        changed = bytearray(data)
        for _ in range(draw.randrange(1, 5)):
            changed[draw.randrange(len(changed))] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
        if draw.randrange(8) == 0:
            a, b = sorted(draw.randrange(len(changed)) for _ in range(2))
            changed[a:b] = draw.choice([b"", changed[a:b] * 2])
        yield changed


def test_damage_without_digests_is_harmless(files: tuple[Path, bytearray], monkeypatch: pytest.MonkeyPatch) -> None:
    base, packed = files
    monkeypatch.setattr(frames, "CHECK_DIGESTS", False)
    refused = 0
    for changed in damaged(packed, 1, 400):
        try:
            check(changed, base)
        except ModelCodecError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_damaged_parts_of_a_frame_are_harmless(width: int) -> None:
    """Header, payload, shared part and base of a frame, each damaged by itself: memory behind the frame's own words stays as it was."""
    n = 700
    x = rows.random_bits(n, width, 1) if width == 1 else rows.gaussian(n, {2: "BF16", 4: "F32", 8: "F64"}[width], 2)
    dtype = DTYPE_BY_NAME[{1: "F8_E4M3", 2: "BF16", 4: "F32", 8: "F64"}[width]]
    spec, base, shared = TensorSpec("x", dtype, (n,)), rows.base_of(x), rows.changes_of(x).data
    encoded = Delta().encode(x, FrameContext(spec, 0, n, Shared(shared), base=base))
    assert encoded is not None
    payload = bytes(encoded.payload)
    cases = [(bytes(header), payload, shared, base) for header in damaged(encoded.header, 2, 300)]
    cases += [(encoded.header, bytes(changed[: len(payload)].ljust(len(payload), b"\0")), shared, base) for changed in damaged(payload, 3, 300)]
    cases += [(encoded.header, payload, bytes(changed), base) for changed in damaged(shared, 4, 600)]
    bases = (np.frombuffer(bytes(changed[: base.nbytes].ljust(base.nbytes)), base.dtype) for changed in damaged(base.tobytes(), 5, 100))
    cases += [(encoded.header, payload, shared, other) for other in bases]
    decoded = 0
    for header, data, changes, other in cases:
        room = np.full(n + 64, 0x5A, x.dtype)
        try:
            if Delta.layout(header, width, n).n_payload != len(data):
                continue
            Delta.decode(header, np.frombuffer(data, np.uint8), (), room[32:-32], FrameContext(spec, 0, n, Shared(changes), base=other))
            decoded += 1
        except ModelCodecError:
            pass
        assert (room[:32] == 0x5A).all()
        assert (room[-32:] == 0x5A).all()
    assert decoded


def test_a_delta_needs_a_base_and_its_place() -> None:
    x = rows.gaussian(400, "BF16", 2)
    base, shared = rows.base_of(x), rows.changes_of(x)
    spec = TensorSpec("x", DTYPE_BY_NAME["BF16"], (400,))
    encoded = Delta().encode(x, FrameContext(spec, 0, 400, shared, base=base))
    assert encoded is not None
    payload, out = np.frombuffer(bytes(encoded.payload), np.uint8), np.empty_like(x)
    for context in (
        None,
        FrameContext(spec, 0, 400, shared),
        FrameContext(spec, 0, 400, None, base=base),
        FrameContext(spec, 0, 399, shared, base=base),
        FrameContext(spec, 30, 400, shared, base=base),
        FrameContext(spec, 0, 400, shared, base=base.astype(np.uint32)),
    ):
        with pytest.raises(CorruptFile):
            Delta.decode(encoded.header, payload, (), out, context)
    assert Delta().encode(x, FrameContext(spec, 0, 400, shared)) is None


@pytest.mark.parametrize(("mantissa_bits", "offset"), [(1, 0), (15, 0), (7, 1 << 12), (255, 0)])
def test_scales_that_no_word_has_are_refused(mantissa_bits: int, offset: int) -> None:
    changes = Changes.read(rows.changes_of(rows.gaussian(400, "BF16", 2)).data)
    with pytest.raises(CorruptFile, match="mantissa"):
        Changes.of(Shared(Changes(mantissa_bits, offset, changes.classes).write()), 2)


def test_kernels_refuse_what_does_not_fit() -> None:
    x = rows.gaussian(400, "BF16", 2)
    scales = Changes.read(rows.changes_of(x).data).scales
    for words, base, first in ((x, x[:399], 0), (x, x.astype(np.uint32), 0), (x, x, 30), (x, x, -1)):
        with pytest.raises(ValueError, match=r"words|base"):
            delta.split(words, base, scales, first)
    with pytest.raises(ValueError, match="symbols"):
        delta.join(np.zeros(3, np.uint16), np.zeros(400, np.uint8), np.zeros(0, np.uint8), x[:0], x, scales, 0, x.copy())
