"""Promise: with every digest switched off, no input crashes, hangs or raises an error that is not ours; and two decoders agree on what is damaged."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import decode
import pytest
import reference_decoder
from fixtures import GOOD, content, restored

from modelcodec import frame as frames
from modelcodec.errors import ModelCodecError
from modelcodec.formats import container
from modelcodec.stages import zstd

FUZZER = Path(decode.__file__)
SECONDS = 8


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NUMBA_BOUNDSCHECK": "1"}
    return subprocess.run([sys.executable, str(FUZZER), *arguments], env=environment, capture_output=True, text=True, timeout=300)


def test_random_inputs_are_decoded_or_refused(tmp_path: Path) -> None:
    """A short run; continuous integration runs the fuzzer for 60 s."""
    done = run("--seconds", str(SECONDS), "--seed", "1", "--findings", str(tmp_path))
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_finding_is_saved_and_can_be_run_again(tmp_path: Path) -> None:
    case = decode.Input(decode.FRAME, b"\0" * 20, 4, 5, 3, b"shared")
    assert decode.Input.unpack(case.pack()) == case
    decode.save(tmp_path, case.pack(), "an example")
    (finding,) = tmp_path.iterdir()
    done = run("--replay", str(finding))
    assert (done.returncode, done.stdout.split()[:2]) == (0, ["frame", "CorruptFile"])


def test_memory_ends_where_it_is_said_to() -> None:
    """The guard behind inputs and outputs: one byte too far kills the process."""
    script = "import decode, ctypes; a = decode.Guarded(100).last(10); a[:] = 1; print(a.sum(), flush=True); ctypes.string_at(a.ctypes.data, {n})"
    for n, code in ((10, 0), (11, -11)):
        done = subprocess.run([sys.executable, "-c", script.format(n=n)], cwd=FUZZER.parent, capture_output=True, text=True)
        assert (done.stdout, done.returncode) == ("10\n", code)


DIGEST_RULES = ("seal fits", "has its digest", "identity fits", "check of a zstd", "payload fits its check")


@pytest.mark.parametrize("name", GOOD)
def test_both_decoders_take_and_refuse_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage in directory and frames that no digest shows: this package's decoder and the reference, which share no code, restore the same or both refuse."""
    original = reference_decoder.need
    monkeypatch.setattr(frames, "CHECK_DIGESTS", False)
    monkeypatch.setattr(zstd, "CHECK_PAYLOAD", False)
    monkeypatch.setattr(reference_decoder, "need", lambda condition, rule: None if any(part in rule for part in DIGEST_RULES) else original(condition, rule))
    whole = content(name)
    parsed = container.read(memoryview(whole), name)
    directory = 24 + int.from_bytes(whole[:8], "little")
    spans = [(directory, parsed.entries[0].start), *[(entry.start, entry.start + entry.size) for entry in parsed.entries if entry.coded]]
    draw = random.Random(name)
    for _ in range(40):
        data = bytearray(whole)
        start, end = draw.choice(spans)
        for _ in range(draw.choice((1, 1, 2))):
            at = draw.randrange(start, end)
            data[at] = draw.choice((data[at] ^ 1 << draw.randrange(8), 0, 1, 0x7F, 0xFF, data[at] + 1 & 0xFF))
        ours = theirs = b"refused"
        try:
            ours = restored(data)
        except ModelCodecError as error:
            reason = repr(error)
        try:
            theirs = reference_decoder.restore(bytes(data))
        except ValueError as error:
            reason = repr(error)
        assert ours == theirs, f"byte {at}: ours {ours[:20]!r}, theirs {theirs[:20]!r}, {reason}"
