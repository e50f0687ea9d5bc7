"""A repository folder: which of its files are compressed under the same name, and which are copied as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from modelcodec.errors import CorruptFile, UnsafeInput, UnsupportedFile
from modelcodec.formats import container, identify
from modelcodec.formats.paths import check_names, shard_names
from modelcodec.mapping import mapped

INDEX_PART = ".index."
"""In the names of `model.safetensors.index.json`, `pytorch_model.bin.index.json` and their variants, `model.safetensors.index.fp16.json`."""


class FolderFile(NamedTuple):
    """A file of a folder: its relative name, with slashes, and whether it is compressed. Files that are not are copied."""

    name: str
    has_tensors: bool


def plan_folder(folder: Path) -> list[FolderFile]:
    """Every file below `folder`, sorted by name, with what becomes of it.

    A file is compressed if a format other than `bytes` reads it, or if it looks like one of our containers: restoring the folder would restore that, too.
    Links to files are followed, as Hugging Face's cache is made of them; links to folders are left out, and so are folders without files.
    Raises UnsafeInput for a name, of a file or in an index of shards, that is not safe everywhere; UnsupportedFile for a fifo or a device; CorruptFile for an
    index that cannot be read; OSError.
    """
    names = sorted(_walk(folder, ""))
    check_names(names)
    return [FolderFile(name, _has_tensors(folder / name)) for name in names]


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = prefix + entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder / entry.name, f"{name}/")
            elif entry.is_file():
                yield name
            elif not entry.is_dir():
                entry.stat()  # a link that leads nowhere raises its own error
                raise UnsupportedFile(f"{folder / entry.name} is neither a file nor a folder; remove it")


def _has_tensors(path: Path) -> bool:
    with mapped(path) as source:
        if INDEX_PART in path.name and path.suffix == ".json":
            _check_index(source, path)
        return identify(source, path).format != "bytes" or container.is_container(source)


def _check_index(source: memoryview, path: Path) -> None:
    try:
        shard_names(source)
    except UnsafeInput as error:
        raise UnsafeInput(f"{path}: {error}") from error
    except CorruptFile as error:
        raise CorruptFile(f"{path}: {error}") from error
