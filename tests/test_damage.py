"""Promise: damage is found. A file cut off anywhere is a TruncatedFile; a file with a flipped bit anywhere is an error; nothing is silent or foreign."""

from __future__ import annotations

import random

import numpy as np
import pytest
import rows
from fixtures import BAD, GOOD, MANIFEST, content, restored

from modelcodec import errors
from modelcodec import frame as frames
from modelcodec.errors import CorruptFile, ModelCodecError, TruncatedFile, UnsupportedFile
from modelcodec.formats import container
from modelcodec.recipe import parse_plan
from modelcodec.restoration import restore
from modelcodec.stage import FrameContext
from modelcodec.types import DTYPE_BY_NAME, TensorSpec


@pytest.mark.parametrize("name", GOOD)
def test_every_prefix_is_truncated(name: str) -> None:
    whole = memoryview(content(name))
    for n in range(len(whole)):
        with pytest.raises(TruncatedFile):
            restored(whole[:n])


def _is_found(view: memoryview, parsed: container.Container, in_data: bool) -> bool:
    """Whether a damaged file gives an error. What lies behind the directory does not change what `read` makes of the file, so it is read once."""
    try:
        if in_data and not any(entry.shared for entry in parsed.entries):
            restore(parsed, None, 1, None)
        restore(container.read(view, "file"), None, 1, None)
    except ModelCodecError:
        return True
    return False


@pytest.mark.parametrize("name", GOOD)
def test_every_flipped_bit_is_found(name: str) -> None:
    data = bytearray(content(name))
    view = memoryview(data)
    parsed = container.read(view, "file")
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            assert _is_found(view, parsed, at >= parsed.skeleton.start), f"bit {bit} of byte {at}"
            data[at] ^= 1 << bit
    restored(view)


@pytest.mark.parametrize(
    ("dtype", "plan"),
    [("BF16", "split_float{low_bits=5}(symbols:rans)"), ("BF16", "split_float(symbols:rans{table_bits=8})"), ("F32", "split_float(symbols:rans)")],
)
def test_flipped_bits_of_a_larger_frame_are_found(dtype: str, plan: str) -> None:
    """Frames of the most common kind are decoded another way from 4 KiB on; 4001 words end inside a block of bit planes."""
    x = rows.gaussian(4001, dtype)
    data = bytearray(frames.encode(x, parse_plan(plan), FrameContext(TensorSpec("x", DTYPE_BY_NAME[dtype], (x.size,)), 0, x.size), 0).data)
    view, out = memoryview(data), np.empty_like(x)
    assert len(data) > frames.USUAL_BYTES
    frames.decode(view, 0, out, "frame")
    assert np.array_equal(out, x)
    for at in range(len(data)):
        for bit in range(at % 3, 8, 3):
            data[at] ^= 1 << bit
            with pytest.raises(ModelCodecError):
                frames.decode(view, 0, out, "frame")
            data[at] ^= 1 << bit


@pytest.mark.parametrize("name", BAD)
def test_bad_files_give_their_error(name: str) -> None:
    with pytest.raises(ModelCodecError) as found:
        restored(content(name))
    assert type(found.value).__name__ == MANIFEST[name]["error"]


@pytest.mark.parametrize("name", BAD)
def test_messages_tell_place_fact_and_remedy(name: str) -> None:
    with pytest.raises(ModelCodecError) as found:
        restored(content(name))
    message = str(found.value)
    assert message.startswith("file")
    assert ": " in message
    assert message[-1].isalnum() or message.endswith(")")
    if type(found.value) is CorruptFile:
        assert "fetch" in message or "SHA-256" in message


def test_kinds_of_error_have_their_own_exit_codes() -> None:
    kinds = [errors.BadRecipe, CorruptFile, TruncatedFile, UnsupportedFile, errors.LimitExceeded, errors.UnsafeInput]
    assert [kind.exit_code for kind in kinds] == [2, 3, 4, 5, 6, 7]
    assert issubclass(TruncatedFile, CorruptFile)


@pytest.mark.parametrize("name", GOOD)
def test_bytes_added_removed_or_moved_are_found(name: str) -> None:
    """Random damage of other shapes than one bit: runs zeroed, pieces cut out, doubled or swapped."""
    draw = random.Random(name)
    whole = content(name)
    for _ in range(60):
        data = bytearray(whole)
        a, b = sorted((draw.randrange(len(data) + 1), draw.randrange(len(data) + 1)))
        match draw.randrange(4):
            case 0:
                data[a:b] = bytes(b - a)
            case 1:
                del data[a:b]
            case 2:
                data[b:b] = data[a:b]
            case 3:
                data[a:b] = data[a:b][::-1]
        if data != whole:
            with pytest.raises(ModelCodecError):
                restored(data)
