"""The files of tests/files, for the tests that run over all of them."""

from __future__ import annotations

import io
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from modelcodec.formats import container
from modelcodec.restoration import restore

FILES = Path(__file__).resolve().parent / "files"
MANIFEST: dict[str, dict[str, Any]] = tomllib.loads((FILES / "manifest.toml").read_text(encoding="utf-8"))
GOOD = sorted(name for name in MANIFEST if name.startswith("good-"))
BAD = sorted(name for name in MANIFEST if not name.startswith("good-"))


@cache
def content(name: str) -> bytes:
    return (FILES / name).read_bytes()


def restored(data: bytes | memoryview) -> bytes:
    """What a container restores to, every digest checked."""
    out = io.BytesIO()
    restore(container.read(memoryview(data), "file"), out, 1, None)
    return out.getvalue()
