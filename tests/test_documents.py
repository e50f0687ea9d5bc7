"""The documents' tables and the code's constants are the same: docs/format.md, docs/stages.md and the README against the package."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import reference_decoder
from forge import frame
from numpy.typing import NDArray
from rows import FORMAT_ROWS, FormatRow
from sources import safetensors_bytes
from xxhash import xxh3_64_intdigest

import modelcodec
from modelcodec import errors, formats
from modelcodec import frame as frames
from modelcodec.cli.compare import EXIT_DIFFERENT
from modelcodec.errors import CorruptFile, LimitExceeded, ModelCodecError
from modelcodec.formats.container_layout import DIRECTORY, LOSSES, SKELETON, VERSION, VIEWS
from modelcodec.limits import LIMITS
from modelcodec.stages import STAGES, stage_of
from modelcodec.types import DTYPES
from modelcodec.wire import byte_string, varint

ROOT = Path(__file__).resolve().parent.parent
FORMAT = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
STAGE = (ROOT / "docs" / "stages.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")

WIDTHS = (1, 2, 4, 8)


def section(text: str, heading: str) -> str:
    """The text under a heading of level two, up to the next one."""
    found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found, f"no section {heading!r}"
    return found[1]


def table(text: str) -> list[list[str]]:
    """The cells of the only Markdown table in a text, without its head."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert set("".join(rows[1])) <= set("-: "), "the second row of a table is its rule"
    return rows[2:]


STAGE_ROWS = table(STAGE.split("\n## ")[0])
KINDS = {int(kind): (int(width), int(narrow)) for kind, width, narrow, _ in table(section(STAGE, "widen (8)"))}


def told(text: str, pattern: str) -> int:
    """The only number that a pattern finds in a text."""
    found = set(re.findall(pattern, text))
    assert len(found) == 1, f"{pattern!r} tells {sorted(found)}"
    return int(found.pop())


# ---- docs/format.md ------------------------------------------------------------------------------------------------------------------


def test_version() -> None:
    highest = "{}.{}".format(*VERSION)
    versions = [row[0] for row in table(section(FORMAT, "2. Envelope: a valid safetensors file"))]
    assert FORMAT.splitlines()[0] == f"# The modelcodec container, version {highest}"
    assert versions[-1] == highest
    assert set(re.findall(r'"modelcodec": "([^"]*)"', FORMAT)) <= set(versions)
    assert {row[4] for row in STAGE_ROWS} <= set(versions)
    assert f"## Limits of version {highest}\n" in README


def test_dtypes() -> None:
    rows = table(section(FORMAT, "6. Dtypes"))
    plain = [(int(number), name, int(bits), int(word), int(block)) for number, name, bits, word, block in rows if number.isdigit()]
    assert plain == [(d.id, d.name, d.bits, d.word, d.block) for d in DTYPES if d.elements == 1]
    assert [row[0] for row in rows if not row[0].isdigit()] == ["64 + t"]


def test_ggml_block_types() -> None:
    listed = re.findall(r"(\w+) \((\d+)\) (\d+) (\d+)", section(FORMAT, "6. Dtypes"))
    assert [(64 + int(kind), name, int(elements), int(n_bytes)) for name, kind, elements, n_bytes in listed] == [
        (d.id, d.name, d.elements, d.block) for d in DTYPES if d.elements > 1
    ]


def test_source_formats() -> None:
    listed = {name: int(number) for number, name in re.findall(r"(\d+) (\w+)", section(FORMAT, "7. Source formats"))}
    assert listed == dict(formats.FORMAT_IDS)
    assert listed.keys() == formats.FORMATS.keys()


def test_names_of_the_containers_own() -> None:
    assert set(re.findall(r"`(__modelcodec__\.\w+)`", FORMAT)) == {DIRECTORY, SKELETON, VIEWS, LOSSES}
    assert f"the prefix `{formats.OWN_PREFIX}`" in FORMAT
    assert f'"{formats.MARKER}": ' in FORMAT


def test_limits() -> None:
    assert told(FORMAT, r"A frame holds at most (\d+) MiB") << 20 == LIMITS.frame_bytes
    assert told(FORMAT, r"number of dimensions \(at most (\d+)\)") == LIMITS.dimensions
    assert told(STAGE, r"a window above (\d+) MiB") << 20 == LIMITS.zstd_window


def assert_accepted(nodes: bytes, n: int, width: int, accepted: bool) -> None:
    """The package and the reference decoder both take a frame of n zeros with these nodes, or both refuse it for asking too much."""
    data, decoded = frame(nodes, decoded=bytes(n * width)), np.ones(n, f"<u{width}")
    reference = reference_decoder.Frame(reference_decoder.Shape(n, width))
    if accepted:
        frames.decode(memoryview(data), 0, decoded, "test")
        assert not decoded.any()
        assert not any(reference_decoder.read_frame(data, 0, reference)[0])
    else:
        with pytest.raises(LimitExceeded):
            frames.decode(memoryview(data), 0, decoded, "test")
        with pytest.raises(reference_decoder.Corrupt):
            reference_decoder.read_frame(data, 0, reference)


ZERO = bytes([1, 1, 0])
"""The node `constant`, with a zero of one byte."""


def fields(*children: bytes) -> bytes:
    """The node `fields`, each field a single byte."""
    return bytes([9]) + byte_string(varint(len(children)) + varint(1) * 2 * len(children)) + b"".join(children)


def test_nodes_a_frame() -> None:
    most = told(FORMAT, r"at most (\d+) nodes a frame")
    assert most == LIMITS.nodes
    for n_nodes in (most, most + 1):
        # A root with 3 inner nodes and as many leaves as are left, at most 16 below each.
        leaves = n_nodes - 4
        inner = [fields(*[ZERO] * k) for k in (16, 16, leaves - 32 - 13)]
        assert_accepted(fields(*inner, *[ZERO] * 13), 16 * 16 * (leaves - 45), 1, accepted=n_nodes == most)


def test_depth_of_a_frame() -> None:
    most = told(FORMAT, r"nodes a frame, (\d+) deep")
    assert most == LIMITS.depth
    for depth in (most, most + 1):
        tree = ZERO
        for _ in range(depth - 1):
            tree = fields(tree)
        assert_accepted(tree, 5, 1, accepted=depth == most)


def test_arrays_of_a_frame() -> None:
    times, spare = told(FORMAT, r"at most (\d+) times\s+the frame's bytes"), told(FORMAT, r"the frame's bytes plus (\d+) KiB") << 10
    assert times == LIMITS.frame_arrays
    # A chain of split_float with s = 6: `times` arrays as large as the frame and, over it, 7 bytes for each 8 words and stage.
    nodes = bytes([4, 1, 6]) * (times - 1) + bytes([1, 2, 0, 0]) + ZERO * (times - 1)
    most = spare // (7 * (times - 1)) * 8
    assert_accepted(nodes, most, 2, accepted=True)
    assert_accepted(nodes, most + 1, 2, accepted=False)


# ---- docs/stages.md ------------------------------------------------------------------------------------------------------------------


def test_stages() -> None:
    assert [int(row[0]) for row in STAGE_ROWS] == sorted(STAGES)
    assert re.findall(r"^## (\w+) \((\d+)\)$", STAGE, re.MULTILINE) == [(name, number) for number, name, *_ in STAGE_ROWS]


def smallest_header(name: str, width: int) -> bytes:
    """A header that the stage of this name accepts for no words of this width, if it accepts any."""
    if name == "rans":
        # B = 8, one lane, no units, no escaped words; then lo = 0, two symbols, no escape, each symbol half of the slots.
        return bytes([8, 0, 0, 0]) + bytes(width) + b"\x01".ljust(width, b"\0") + b"\x80\x00\x04\x00"
    if name == "widen":
        return bytes([next((kind for kind, (wide, _) in KINDS.items() if wide == width), 1)])
    if name == "grid":
        return bytes([0, 0]) + struct.pack("<f", 1.0) + b"\0"
    if name == "lowrank":
        return bytes([1]) + struct.pack("<f", 1.0) + b"\0\1\0"
    if name == "seedbasis":
        return struct.pack("<BfQ", 1, 1.0, 0) + varint(256) + b"\1\0"
    headers = {"raw": b"", "planes": b"", "delta": b"", "zstd": b"\x09" + bytes(4), "split_float": b"\x07", "sparse": b"\x00", "fields": b"\x01\x01\x01"}
    headers |= {"class_rans": b"\x00\x00\x00", "codebook": b"\1\1\0", "constant": bytes(width), "palette": bytes(1 + width)}
    return headers[name]


@pytest.mark.parametrize(("number", "name", "parts", "widths", "since"), STAGE_ROWS, ids=[row[1] for row in STAGE_ROWS])
def test_stage(number: str, name: str, parts: str, widths: str, since: str) -> None:
    stage = stage_of(int(number))
    assert (stage.id, stage.name, "{}.{}".format(*stage.since)) == (int(number), name, since)
    if name not in ("planes", "fields"):  # as many parts as the data have
        assert stage.parts == (() if parts == "-" else tuple(parts.split(", ")))
    for width in WIDTHS:
        if str(width) in widths.split():
            stage.layout(smallest_header(name, width), width, 0)
        else:
            with pytest.raises(CorruptFile):
                stage.layout(smallest_header(name, width), width, 0)


def test_kinds_of_widening() -> None:
    widen = stage_of(8)
    for kind in range(256):
        for width in WIDTHS:
            if kind in KINDS and KINDS[kind][0] == width:
                layout = widen.layout(bytes([kind]), width, 3)
                assert [(part.width, part.n) for part in layout.parts] == [(KINDS[kind][1], 3)]
                assert layout.n_payload == 0
            else:
                with pytest.raises(CorruptFile):
                    widen.layout(bytes([kind]), width, 3)


# ---- the reference decoder -----------------------------------------------------------------------------------------------------------


def test_reference_decoder_has_the_tables_of_the_documents() -> None:
    assert reference_decoder.VERSION == VERSION
    assert {n: (d.name, d.bits, d.word, d.block, d.elements, d.in_safetensors) for n, d in reference_decoder.DTYPES.items()} == {
        d.id: (d.name, d.bits, d.word, d.block, d.elements, d.in_safetensors) for d in DTYPES
    }
    assert {(str(number), " ".join(map(str, widths))) for number, (_, widths) in reference_decoder.STAGES.items()} == {(row[0], row[3]) for row in STAGE_ROWS}
    assert {kind: (wide, narrow) for kind, (wide, narrow, _) in reference_decoder.WIDEN_KINDS.items()} == KINDS
    assert len(formats.FORMAT_IDS) == reference_decoder.N_FORMATS


def bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (array.view(np.uint32) >> 16).astype(np.uint16)


def as_safetensors(tensors: dict[str, tuple[str, NDArray[Any]]]) -> bytes:
    return safetensors_bytes({name: (dtype, array.shape, array.tobytes()) for name, (dtype, array) in tensors.items()}, {"format": "pt"})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A safetensors file with tensors for every stage and every kind of entry, and a torch file with views."""
    folder = tmp_path_factory.mktemp("sources")
    random = np.random.default_rng(7)
    weights = random.normal(0, 0.02, (400, 90)).astype(np.float32)
    # Rows and columns of different scales, so that words have classes; a row has the same neighbours in every frame of a group.
    scaled = (random.normal(0, 0.02, (1500, 512)) * np.exp2(random.integers(0, 5, (1500, 1))) * np.exp2(random.integers(0, 5, 512))).astype(np.float32)
    noise = random.integers(0, 256, 5000).astype(np.uint8)
    tensors: dict[str, tuple[str, NDArray[Any]]] = {
        "weight": ("BF16", bfloat16(weights)),
        "scaled": ("BF16", bfloat16(scaled)),
        "float": ("F32", weights),
        "half": ("F16", weights.astype(np.float16)),
        "half_in_float": ("F32", weights.astype(np.float16).astype(np.float32)),
        "bfloat_in_float": ("F32", weights.view(np.uint32) >> 16 << 16),
        "float_in_double": ("F64", weights.astype(np.float64)),
        "double": ("F64", random.normal(0, 1, 5000)),
        "sparse": ("F32", np.where(random.random((400, 90)) < 0.1, weights, 0).astype(np.float32)),
        "few_values": ("F32", random.choice([0.5, -1.0, 3.0], 3000, p=[0.5, 0.3, 0.2]).astype(np.float32)),
        "indices": ("I64", random.integers(0, 3000, 4000)),
        "zeros": ("I32", np.zeros(100, np.int32)),
        "noise": ("U8", noise),
        "scalar": ("F32", np.array(3.5, np.float32)),
        "empty": ("F32", np.zeros((0, 3), np.float32)),
        "tied": ("F32", weights),
    }
    (folder / "model.safetensors").write_bytes(as_safetensors(tensors))
    torch = pytest.importorskip("torch")
    storage = torch.from_numpy(weights)
    torch.save({"whole": storage, "transposed": storage.t(), "piece": storage[3:9, 10:], "step": torch.tensor(7)}, folder / "model.pt")
    return [folder / "model.safetensors", folder / "model.pt"]


def decoded_by_reference(data: bytes) -> bytes | None:
    try:
        return reference_decoder.restore(data)
    except ValueError:
        return None


def decoded_by_package(data: bytes) -> bytes | None:
    restored = BytesIO()
    try:
        modelcodec.decompress(BytesIO(data), restored)
    except ModelCodecError:
        return None
    return restored.getvalue()


@pytest.mark.parametrize("level", [1, 5, 9])
def test_reference_decoder_restores_what_the_package_writes(level: int, models: list[Path], tmp_path: Path) -> None:
    for source in models:
        compressed = tmp_path / (source.name + ".mcodec")
        modelcodec.compress(source, compressed, level=level, sha256=level == 9)
        data = compressed.read_bytes()
        assert reference_decoder.restore(data) == source.read_bytes()
        if level == 9 and source.suffix == ".safetensors":
            assert {entry.kind for entry in reference_decoder.read_container(data).entries} == {0, 1, 2, 3}
        told = {name: raw for name, (_, _, raw) in reference_decoder.tensors(data).items()}
        assert told == {name: array.tobytes() for name, array in modelcodec.load_file(compressed).items()}


@pytest.mark.parametrize("row", FORMAT_ROWS, ids=[row.name for row in FORMAT_ROWS])
def test_reference_decoder_restores_every_source_format(row: FormatRow, tmp_path: Path) -> None:
    name, files = row.make()
    for each, data in files.items():
        (tmp_path / each).write_bytes(data)
    compressed = BytesIO()
    modelcodec.compress(tmp_path / name, compressed)
    assert reference_decoder.restore(compressed.getvalue()) == files[name]
    assert len(reference_decoder.tensors(compressed.getvalue())) == row.n_tensors


def mended(data: bytearray, intact: bytes) -> bytes:
    """`data` with the seals of frames and the digests of header and directory made right again, where they still stand as in `intact`."""
    entries = reference_decoder.read_container(intact).entries
    for entry in entries:
        at = entry.stored.begin
        for number, _, _, length in entry.pieces:
            head = reference_decoder.Cursor(bytes(data[at : at + length]))
            with suppress(ValueError):
                end = at + head.varint() + head.position
                if at + 4 <= end <= at + length:
                    data[end - 4 : end] = (xxh3_64_intdigest(data[at : end - 4], number) & 0xFFFFFFFF).to_bytes(4, "little")
            at += length
    start, end = 8 + int.from_bytes(intact[:8], "little"), entries[0].stored.begin
    data[start : start + 8] = xxh3_64_intdigest(data[:start]).to_bytes(8, "little")
    data[start + 8 : start + 16] = xxh3_64_intdigest(data[start + 16 : end]).to_bytes(8, "little")
    return bytes(data)


def test_both_decoders_refuse_the_same_damage() -> None:
    """What one restores the other restores to the same bytes, also where the digests fit, so that the rules behind them are asked."""
    weights = np.random.default_rng(3).normal(0, 0.02, 700).astype(np.float32)
    arrays = {"weight": weights, "few": weights.round(2), "wide": weights.astype(np.float16).astype(np.float32), "sparse": weights * (weights > 0.03)}
    arrays |= {"empty": weights[:0], "noise": weights.view(np.uint32) * np.uint32(2654435761), "same": weights}
    intact = BytesIO()
    modelcodec.compress(BytesIO(as_safetensors({name: ("F32", array) for name, array in arrays.items()})), intact)
    random = Random(11)
    for round_ in range(600):
        data = bytearray(intact.getvalue())
        data[random.randrange(len(data) if round_ % 2 else 2000)] = random.randrange(256)
        damaged = mended(data, intact.getvalue()) if round_ % 3 else bytes(data)
        assert decoded_by_package(damaged) == decoded_by_reference(damaged), f"round {round_}"


# ---- README.md -----------------------------------------------------------------------------------------------------------------------


def test_exit_codes() -> None:
    words = {"settings": errors.BadRecipe, "damaged": errors.CorruptFile, "cut short": errors.TruncatedFile, "unsupported": errors.UnsupportedFile}
    words |= {"beyond limits": errors.LimitExceeded, "unsafe": errors.UnsafeInput}
    found = re.search(r"Exit codes: ([^.]*)\.", README)
    assert found
    listed = {" ".join(text.split()): int(code) for code, text in re.findall(r"(\d+) ([^,\d]+)", found[1])}
    assert listed == {text: kind.exit_code for text, kind in words.items()} | {
        "compared tensors differ": EXIT_DIFFERENT,
        "input or output": errors.EXIT_OS_ERROR,
    }
    assert set(words.values()) == {kind for kind in vars(errors).values() if isinstance(kind, type) and "exit_code" in vars(kind)} - {errors.ModelCodecError}
