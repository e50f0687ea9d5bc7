"""The block in a repository's README.md that says how to load what is compressed in it. It can be taken out again: the README is then as it was."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelcodec.formats import container
from modelcodec.mapping import mapped

NAME = "README.md"
BEGIN, END = b"<!-- modelcodec: begin -->\n", b"<!-- modelcodec: end -->\n"
SEPARATOR = b"\n\n"
"""Between what the README had before and the block."""
_BLOCK = re.compile(re.escape(SEPARATOR + BEGIN) + b".*?" + re.escape(END) + b"|" + re.escape(BEGIN) + b".*?" + re.escape(END), re.DOTALL)


@dataclass(frozen=True, slots=True)
class CardRow:
    """A compressed file. `sha256` is that of the original, None where the file does not tell it or where it is not restored exactly. `bases`: what it is a
    delta to.
    """

    name: str
    n_bytes: int
    n_bytes_coded: int
    sha256: str | None
    lossy: bool
    bases: tuple[str, ...]

    @classmethod
    def of(cls, name: str, path: Path) -> CardRow:
        """What a container tells about itself. Raises what `container.read` raises."""
        with mapped(path) as view:
            archive = container.read(view, str(path))
            lossy = bool(archive.losses())
            sha256 = archive.sha256.hex() if archive.sha256 and not lossy else None
            return cls(name, archive.source_size, len(view), sha256, lossy, archive.base_names)


def with_block(readme: bytes, rows: Sequence[CardRow], repo: str) -> bytes:
    """The README with the block as its end, in place of one that it has."""
    before = without_block(readme)
    return (before + SEPARATOR if before else b"") + BEGIN + _text(rows, repo).encode() + END


def without_block(readme: bytes) -> bytes:
    """The README as it was before the block came."""
    return _BLOCK.sub(b"", readme)


def _text(rows: Sequence[CardRow], repo: str) -> str:
    before, after = sum(row.n_bytes for row in rows), sum(row.n_bytes_coded for row in rows)
    exact = not any(row.lossy for row in rows)
    promise = "Nothing is lost: every file can be restored byte for byte." if exact else "Files marked lossy are restored to what the encoder chose for them."
    bases = sorted({base for row in rows for base in row.bases})
    lines = [
        "## Compressed with modelcodec",
        "",
        f"The weights take {after:,} bytes instead of {before:,} ({100 * after / before if before else 100:.1f} %). {promise}",
        "",
        *(_deltas(bases) if bases else _loading(repo)),
        "",
        f"The original files: `mcodec pull {repo} --restore`.",
        "",
        "| file | bytes | compressed | SHA-256 of the original |",
        "|---|---|---|---|",
    ]
    for row in rows:
        name = row.name.replace("|", "\\|")
        lines.append(f"| {name}{' (lossy)' if row.lossy else ''} | {row.n_bytes:,} | {row.n_bytes_coded:,} | {f'`{row.sha256}`' if row.sha256 else ''} |")
    return "\n".join(lines) + "\n"


def _loading(repo: str) -> list[str]:
    return [
        "```python",
        "import modelcodec  # pip install 'modelcodec[hub]'",
        "",
        "modelcodec.install()  # from here on, whatever reads safetensors files reads compressed ones too",
        f'model = AutoModel.from_pretrained("{repo}")  # or any other class, as before',
        "```",
    ]


def _deltas(bases: Sequence[str]) -> list[str]:
    return ["The weights are stored as what they changed in these files, which restoring needs:", "", *(f"- `{base}`" for base in bases)]
