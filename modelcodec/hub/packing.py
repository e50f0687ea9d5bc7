"""A local folder as a repository shall have it: checkpoints compressed one after the other, everything else as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelcodec import api
from modelcodec.base import NamedBase
from modelcodec.errors import UnsupportedFile
from modelcodec.formats import container
from modelcodec.formats.folder import FolderFile, plan_folder
from modelcodec.hub import card
from modelcodec.mapping import mapped

if TYPE_CHECKING:
    from modelcodec.fitted import Fit

IN_COMMIT_BYTES = 10 << 20
"""Smaller files, if they are not compressed, go into the commit as they are."""
LEFT_OUT = frozenset((".git", ".cache"))
"""Folders that belong to tools on this machine; the Hub takes neither."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Packing:
    """How files are compressed: arguments of `modelcodec.compress`."""

    level: int
    threads: int | None
    fit: Fit | None
    base: str | Path | NamedBase | None


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file for the repository and where its bytes are now. `temporary`: it was made for this and is removed once it is used."""

    name: str
    path: Path
    temporary: bool
    row: card.CardRow | None

    @property
    def is_small(self) -> bool:
        return self.row is None and self.path.stat().st_size < IN_COMMIT_BYTES

    def remove(self) -> None:
        if self.temporary:
            self.path.unlink(missing_ok=True)


def files_for(folder: Path) -> list[FolderFile]:
    """The files of a folder that go to a repository. Raises UnsupportedFile where none holds tensors, UnsafeInput, CorruptFile, OSError."""
    files = [file for file in plan_folder(folder) if LEFT_OUT.isdisjoint(file.name.split("/"))]
    if not any(file.has_tensors for file in files):
        raise UnsupportedFile(f"{folder}: no file in this folder holds tensors; name the folder of a model")
    return files


def packed_files(
    folder: Path, files: Sequence[FolderFile], repo: str, scratch: Path, packing: Packing, progress: Progress | None
) -> Iterator[PackedFile]:
    """The files of a folder, those with tensors compressed, and last the README with the block that tells of them.

    What modelcodec has compressed already stays as it is. What is made for the repository is put into the folder `scratch`. The bytes depend on the folder, the
    settings and the versions of modelcodec and zstd alone.

    raises: what `compress` raises, CorruptFile for a damaged container.
    """
    sizes = {file.name: (folder / file.name).stat().st_size for file in files}
    done, total, rows = 0, sum(sizes.values()), []

    def tick(part: int, whole: int) -> None:
        if progress:
            progress(done + (part * size // whole if whole else 0), total)

    for number, file in enumerate(files):
        size = sizes[file.name]
        if file.name != card.NAME:
            packed = _packed(folder, file, scratch / str(number) / file.name.rpartition("/")[2], packing, tick)
            rows += [packed.row] if packed.row else []
            yield packed
        done += size
        tick(0, 1)
    readme = scratch / card.NAME
    readme.write_bytes(card.with_block((folder / card.NAME).read_bytes() if card.NAME in sizes else b"", rows, repo))
    yield PackedFile(card.NAME, readme, True, None)


def _packed(folder: Path, file: FolderFile, target: Path, packing: Packing, progress: Progress) -> PackedFile:
    source = folder / file.name
    if not file.has_tensors:
        return PackedFile(file.name, source, False, None)
    with mapped(source) as view:
        packed_already = container.is_container(view)
    if packed_already:
        return PackedFile(file.name, source, False, card.CardRow.of(file.name, source))
    target.parent.mkdir()
    # What a fit has changed does not restore to the source, whose digest would say nothing.
    exact = packing.fit is None
    api.compress(
        source, target, level=packing.level, threads=packing.threads, fit=packing.fit, base=packing.base, sha256=exact, overwrite=True, progress=progress
    )
    return PackedFile(file.name, target, True, card.CardRow.of(file.name, target))
