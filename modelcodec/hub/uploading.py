"""A folder to the Hub: compressed, in one commit, and only what the repository does not have yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from modelcodec.errors import BadRecipe
from modelcodec.hub.bases import named_base
from modelcodec.hub.card import CardRow
from modelcodec.hub.packing import PackedFile, Packing, files_for, packed_files
from modelcodec.hub.repository import Address, StoredFile, hub_errors, snapshot
from modelcodec.planner import SMALL
from modelcodec.pool import ordered

if TYPE_CHECKING:
    from modelcodec.fitted import Fit

AT_A_TIME = 2
"""Files that are sent while the next one is compressed."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push came to: names of the files that were sent, and the commit; None where the repository had everything."""

    repo: str
    commit: str | None
    sent: tuple[str, ...]
    compressed: tuple[CardRow, ...]

    @property
    def n_bytes(self) -> int:
        """Of the compressed files, before."""
        return sum(row.n_bytes for row in self.compressed)

    @property
    def n_bytes_coded(self) -> int:
        return sum(row.n_bytes_coded for row in self.compressed)


def push(
    folder: str | Path,
    repo: str,
    *,
    branch: str | None = None,
    private: bool = False,
    level: int = SMALL,
    threads: int | None = None,
    fit: Fit | None = None,
    base: str | Path | None = None,
    message: str | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Compress a folder and upload it in one commit: every file under its own name, README.md with a block on how to load it.

    `repo`: `user/repo`, made where it does not exist. `branch`: made where it does not exist; default: main. `private`: make it private; a public one that
    exists is refused. Files that the repository has are not sent, others only in the chunks that the Hub does not have; so a push that broke off goes on where
    it was. Nothing that the folder lacks is deleted.
    `level` (the smallest where nothing is said: a file is packed once and travels often), `threads`, `fit`: as for `compress`. `base`: too, or
    `user/repo@revision`, recorded with the commit, so that restoring finds it. `progress`: called with bytes compressed and bytes in all.

    memory: as for `compress`; disk: up to four compressed files at a time.
    raises: what `compress` raises; UnsupportedFile for a folder without tensors; BadRecipe; OSError, in words without secrets, for what the Hub refuses and
    for a connection that fails.
    """
    address = Address.parse(repo)
    if address.revision:
        raise BadRecipe(f"{repo}: a push makes a new revision; name a branch to put it on")
    source, packing = Path(folder), Packing(level, threads, fit, named_base(base))
    files = files_for(source)
    with hub_errors(repo):
        from huggingface_hub import HfApi

        api = HfApi()
        name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(name).private:
            raise BadRecipe(f"{name}: the repository exists and is public; make it private in its settings, or push without asking for that")
        if branch:
            api.create_branch(name, branch=branch, exist_ok=True)
    there = {file.name: file for file in snapshot(Address(name, branch)).files}
    compressed: list[CardRow] = []
    with TemporaryDirectory(prefix="mcodec-", ignore_cleanup_errors=True) as scratch:
        changed = _changed(packed_files(source, files, name, Path(scratch), packing, progress), there, compressed)
        additions = list(ordered(lambda file: _send(api, name, branch, file), changed, AT_A_TIME, ahead=AT_A_TIME))
        if not additions:
            return Pushed(name, None, (), tuple(compressed))
        with hub_errors(name):
            done = api.create_commit(name, additions, commit_message=message or "Upload, compressed with modelcodec", revision=branch)
    return Pushed(name, done.oid, tuple(addition.path_in_repo for addition in additions), tuple(compressed))


def _changed(files: Iterator[PackedFile], there: dict[str, StoredFile], compressed: list[CardRow]) -> Iterator[PackedFile]:
    """The files that the repository has not, or not with these bytes. Takes note of those that are compressed."""
    for file in files:
        if file.row:
            compressed.append(file.row)
        stored = there.get(file.name)
        if stored and stored.matches(file.path):
            file.remove()
        else:
            yield file


def _send(api: Any, repo: str, branch: str | None, file: PackedFile) -> Any:
    """Upload a file's bytes, unless they are few and go into the commit itself; returns the operation for the commit."""
    from huggingface_hub import CommitOperationAdd

    with hub_errors(repo):
        addition = CommitOperationAdd(file.name, file.path)
        if not file.is_small:
            api.preupload_lfs_files(repo, [addition], revision=branch)
    if addition.path_or_fileobj == b"":  # sent, and let go of
        file.remove()
    return addition
