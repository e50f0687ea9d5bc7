"""A repository of the Hub to a local folder: compressed files as they are, once every digest in them was checked, or restored while they come."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from modelcodec.base import Found, Source
from modelcodec.errors import CorruptFile, UnsafeInput
from modelcodec.formats.atomic import atomic_file
from modelcodec.formats.container import Container
from modelcodec.formats.folder import INDEX_PART
from modelcodec.formats.paths import check_names, inside, shard_names
from modelcodec.formats.write_behind import WriteBehind
from modelcodec.hub import card
from modelcodec.hub.arrival import Arrival
from modelcodec.hub.bases import find_base
from modelcodec.hub.remote_container import fetching, is_container, read_container
from modelcodec.hub.remote_file import RemoteFile
from modelcodec.hub.repository import Address, Snapshot, StoredFile, sha256_of, snapshot
from modelcodec.pool import thread_count
from modelcodec.report import Report
from modelcodec.restoration import restore as decode

PARTS = (".cache", "modelcodec")
"""Folders, one in the other, for what has come of files that have not come whole."""
COPY = "copy"
"""In the place of a format, for files that are no containers."""

Progress: TypeAlias = "Callable[[int, int], None]"


def pull(
    address: str,
    folder: str | Path | None = None,
    *,
    restore: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
    base: Source | None = None,
    progress: Progress | None = None,
) -> Report:
    """Download a repository into a folder, every file under its own name.

    `address`: `user/repo` or `user/repo@revision`. `folder`: default, the repository's name in the current folder. `restore`: decode each compressed file while
    it comes, to the file that was compressed; its SHA-256 is compared where the file tells it, as those that `push` makes do, and the README loses its block.
    Otherwise compressed files stay as they are, ready to load, after a decoding that is thrown away.
    `base`, for deltas: as for `decompress`; without it, what is recorded as `user/repo@revision` comes from the Hub, to the cache of its client, and others are
    looked for in the folder. `progress`: called with stored bytes done and in all.

    Every file appears whole and checked, or not at all. A pull that broke off goes on where it was: files that are there and right are left alone, and of one
    that was on its way, what had come is in `.cache/modelcodec` in the folder.

    memory: as for `decompress`; disk: the folder, and with `restore` the compressed bytes of one file.
    raises: OSError, in words without secrets; CorruptFile, TruncatedFile, UnsupportedFile, LimitExceeded; UnsafeInput for names that lead out of the folder;
    FileExistsError, before anything is downloaded, for a file that is there and differs, without `overwrite`.
    """
    n_threads = thread_count(threads)
    found = snapshot(Address.parse(address))
    check_names(file.name for file in found.files)
    target = Path(folder) if folder is not None else Path(found.repo.rpartition("/")[2])
    items = [_item(found, file, target, restore, base or find_base) for file in found.files]
    target.mkdir(parents=True, exist_ok=True)
    missing = {item.stored.name for item in items if not item.is_there(overwrite)}
    done, total, reports = 0, sum(file.size for file in found.files), []

    def tick(part: int, whole: int) -> None:
        if progress:
            progress(done + (part * size // whole if whole else 0), total)

    for item in items:
        size = item.stored.size
        there = item.stored.name not in missing
        reports.append(item.report(COPY, item.place.stat().st_size) if there else item.download(n_threads, overwrite, tick))
        done += size
        tick(0, 1)
    for depth in (2, 1):
        with suppress(OSError):  # not empty: of another revision, or somebody else's
            target.joinpath(*PARTS[:depth]).rmdir()
    before, after = sum(report.n_bytes for report in reports), sum(report.n_bytes_coded for report in reports)
    return Report(f"{found.repo}@{found.commit}", str(target), "folder", before, after, files=tuple(reports))


def _item(found: Snapshot, stored: StoredFile, target: Path, restoring: bool, base: Source) -> _Item:
    """Raises UnsafeInput for a file whose place would be outside of the folder, or where it steers git."""
    if ".git" in stored.name.lower().split("/"):
        raise UnsafeInput(f"{found.repo}: file name {stored.name!a} is in git's own folder; do not use this repository")
    part = inside(target, "/".join((*PARTS, f"{stored.digest}.part")))
    return _Item(RemoteFile(found, stored), stored, inside(target, stored.name), part, restoring, base)


@dataclass(frozen=True, slots=True)
class _Item:
    """A file of the repository, its place in the folder, and that of what has come of it. Names, sizes and contents are untrusted."""

    remote: RemoteFile
    stored: StoredFile
    place: Path
    part: Path
    restoring: bool
    base: Source

    @property
    def is_card(self) -> bool:
        return self.restoring and self.stored.name == card.NAME

    def report(self, format: str, n_bytes: int, sha256: str | None = None) -> Report:
        return Report(self.remote.where, str(self.place), format, n_bytes, self.stored.size, sha256=sha256)

    def is_there(self, overwrite: bool) -> bool:
        """Whether the place has the right file already. Raises FileExistsError if it has another one that may not be overwritten."""
        if not os.path.lexists(self.place):
            return False
        if self.place.is_file() and (self.stored.matches(self.place) if not self.restoring else self._is_restored()):
            return True
        if overwrite:
            return False
        raise FileExistsError(errno.EEXIST, "exists already and is another file; allow overwriting or name another folder", str(self.place))

    def _is_restored(self) -> bool:
        remote = self.remote
        if self.is_card:
            return card.without_block(bytes(remote.read(0, remote.size))) == self.place.read_bytes()
        take = fetching(remote)
        if not is_container(take, remote.size):
            return self.stored.matches(self.place)
        source = read_container(take, remote.size, remote.where)
        return source.sha256 is not None and source.source_size == self.place.stat().st_size and source.sha256.hex() == sha256_of(self.place)

    def download(self, threads: int, overwrite: bool, progress: Progress) -> Report:
        """Download, check, and give the file its place. What has come of a file that turns out to be damaged is thrown away."""
        for path in (self.place, self.part):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with ExitStack() as stack:
                arrival = stack.enter_context(Arrival(self.remote, self.part))
                if is_container(arrival.take, self.stored.size):
                    archive = read_container(arrival.take, self.stored.size, self.remote.where)
                    source = Found.of(archive, self.place, self.base, stack)
                    report = self._decode(source, threads, overwrite, progress)
                    arrival.wait()
                else:
                    arrival.wait(progress)
                    report = self._check()
                kept = not self.restoring or report.format == COPY
                if kept:
                    arrival.sync()
        except (CorruptFile, UnsafeInput):
            self.part.unlink()
            raise
        if not kept:
            self.part.unlink()
        elif self.is_card:
            self._put_card(overwrite)
        else:
            os.replace(self.part, self.place)
        return report

    def _decode(self, source: Container, threads: int, overwrite: bool, progress: Progress) -> Report:
        if not self.restoring:
            decode(source, None, threads, progress)
        else:
            with atomic_file(self.place, overwrite=overwrite) as file, WriteBehind(file) as sink:
                decode(source, sink, threads, progress)
        return self.report(source.source_format, source.source_size, source.sha256.hex() if source.sha256 else None)

    def _check(self) -> Report:
        """A file that is no container has come whole: compare it with what the Hub says of it."""
        if not self.stored.matches(self.part):
            raise CorruptFile(f"{self.remote.where}: its digest is not the one that the Hub tells; fetch it again")
        if INDEX_PART in self.stored.name and self.stored.name.endswith(".json"):
            with suppress(CorruptFile):  # an index of something else
                shard_names(self.part.read_bytes())
        return self.report(COPY, self.stored.size)

    def _put_card(self, overwrite: bool) -> None:
        """The README without the block, unless the block is all that there is."""
        before = card.without_block(self.part.read_bytes())
        if before:
            with atomic_file(self.place, overwrite=overwrite) as file:
                file.write(before)
        self.part.unlink()
