"""How many bytes an upload would send, by the Hub's own chunker and no network: hf_xet against a store in a local folder."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from modelcodec.errors import BadRecipe
from modelcodec.hub.bases import named_base
from modelcodec.hub.packing import Packing, files_for, packed_files
from modelcodec.hub.repository import Address, Snapshot, snapshot
from modelcodec.planner import SMALL

if TYPE_CHECKING:
    from modelcodec.fitted import Fit


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of the compressed files before and after, and of what would travel. `known`: files of the repository whose chunks were counted out."""

    n_bytes: int
    n_bytes_coded: int
    n_bytes_sent: int
    known: tuple[str, ...]


def bytes_sent(paths: Iterable[Path], store: Path) -> int:
    """Upload files to a store in a folder, made if need be, which keeps their chunks; returns what a server would have been sent.

    Chunks that the store has are not sent again, as on the Hub; the others LZ4-compressed where that helps. Raises BadRecipe without hf_xet.
    """
    try:
        from hf_xet import SKIP_SHA256, XetSession
    except ImportError as error:
        raise BadRecipe(f"to measure an upload takes the Hub's chunker ({error}); pip install 'modelcodec[hub]'") from error
    store.mkdir(parents=True, exist_ok=True)
    commit = XetSession().new_upload_commit(endpoint=f"local://{store.resolve()}")
    for path in paths:
        commit.start_upload_file(str(path.resolve()), sha256=SKIP_SHA256)
    sent: int = commit.wait_to_finish().dedup_metrics.total_bytes_uploaded
    return sent


def estimate(
    folder: str | Path,
    repo: str,
    *,
    branch: str | None = None,
    level: int = SMALL,
    threads: int | None = None,
    fit: Fit | None = None,
    base: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Traffic:
    """What `push` with these arguments would send, without sending or making anything.

    Files that the repository has are counted out. Of files that changed, chunks are counted out as far as the Hub's cache on this machine has the repository's
    version; otherwise every chunk counts, so that the estimate is an upper bound. With HF_HUB_OFFLINE the repository counts as empty.

    disk: the compressed folder, in the system's folder for temporary files. raises: as `push`.
    """
    found = _found(Address(Address.parse(repo).repo, branch))
    there = {file.name: file for file in found.files}
    source, packing = Path(folder), Packing(level, threads, fit, named_base(base))
    files = files_for(source)
    sent, rows, known = 0, [], []
    with TemporaryDirectory(prefix="mcodec-", ignore_cleanup_errors=True) as scratch:
        store = Path(scratch, "store")
        for file in packed_files(source, files, repo, Path(scratch), packing, progress):
            stored = there.get(file.name)
            rows += [file.row] if file.row else []
            if stored and stored.matches(file.path):
                pass
            elif file.is_small:
                sent += file.path.stat().st_size
            else:
                earlier = _cached(found, file.name) if stored else None
                if earlier:
                    bytes_sent([earlier], store)
                    known.append(file.name)
                sent += bytes_sent([file.path], store)
            file.remove()
    return Traffic(sum(row.n_bytes for row in rows), sum(row.n_bytes_coded for row in rows), sent, tuple(known))


def _found(address: Address) -> Snapshot:
    """What the repository has; nothing where there is none to be seen, or the network is not to be used."""
    try:
        return snapshot(address)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENETUNREACH):
            return Snapshot(address.repo, "", ())
        raise


def _cached(found: Snapshot, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(found.repo, name, revision=found.commit)
    return Path(path) if isinstance(path, str) else None
