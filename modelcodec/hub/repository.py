"""Repositories on the Hugging Face Hub: how they are named, what one holds at a commit, and errors of the Hub's client in our own kinds."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modelcodec.errors import BadRecipe, ModelCodecError

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_NOT_ALLOWED = (401, 403)


@dataclass(frozen=True, slots=True)
class Address:
    """`user/repo`, or `user/repo@revision`: a branch, a tag or a commit."""

    repo: str
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises BadRecipe where a revision is announced and missing; the Hub's client knows what a repository can be called."""
        repo, at, revision = text.partition("@")
        if at and not revision:
            raise BadRecipe(f"{text}: no revision follows the @; name a branch, a tag or a commit")
        return cls(repo, revision or None)

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as the Hub lists it, untrusted: `sha256` of large files, whose bytes stand outside of git; `blob` is git's own digest of the others."""

    name: str
    size: int
    sha256: str | None
    blob: str

    @property
    def digest(self) -> str:
        return self.sha256 or self.blob

    def matches(self, path: Path) -> bool:
        """Whether a local file has these bytes."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256:
            return sha256_of(path) == self.sha256
        # What git names a blob by: it tells damage, and is not asked to withstand more.
        return hashlib.sha1(b"blob %d\0" % self.size + path.read_bytes(), usedforsecurity=False).hexdigest() == self.blob


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a repository holds at a commit."""

    repo: str
    commit: str
    files: tuple[StoredFile, ...]


def snapshot(address: Address) -> Snapshot:
    """The files of a repository. Raises OSError, BadRecipe for what is no repository's name."""
    with hub_errors(str(address)):
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi()
        commit = str(api.repo_info(address.repo, revision=address.revision).sha)
        listed = api.list_repo_tree(address.repo, recursive=True, revision=commit)
        files = [StoredFile(f.path, f.size, f.lfs.sha256 if f.lfs else None, f.blob_id) for f in listed if isinstance(f, RepoFile)]
    return Snapshot(address.repo, commit, tuple(files))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quieten(*, bars: bool) -> None:
    """Let the Hub's client say nothing in this process that is no error, since its warnings hold URLs; `bars` leaves it its progress bars."""
    with hub_errors("modelcodec.hub"):
        from huggingface_hub.utils import disable_progress_bars, logging

        logging.set_verbosity(logging.ERROR)
        if not bars:
            disable_progress_bars()


@contextmanager
def hub_errors(place: str) -> Iterator[None]:
    """Errors of the Hub's client as OSError, or BadRecipe for what it does not take. The words hold no URL and no header: a signed URL is a secret."""
    try:
        yield
    except ModelCodecError:
        raise
    except ImportError as error:
        raise BadRecipe(f"{place}: this needs huggingface_hub ({error}); pip install 'modelcodec[hub]'") from error
    except Exception as error:
        raise _translated(place, error) from error


def _translated(place: str, error: Exception) -> Exception:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return OSError(errno.EACCES, f"its authors grant access on request; ask for it on the repository's page, then {_LOG_IN}", place)
    if isinstance(error, errors.RepositoryNotFoundError):
        unseen = "that the token in use may not read" if _has_token() else "and there is no token"
        return OSError(errno.ENOENT, f"no such repository on the Hub, or a private one {unseen}; check the name, or {_LOG_IN}", place)
    if isinstance(error, errors.RevisionNotFoundError):
        return OSError(errno.ENOENT, "the repository has no such branch, tag or commit; name another revision", place)
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return OSError(errno.ENOENT, "the repository has no such file; check its name", place)
    if isinstance(error, errors.LocalTokenNotFoundError):
        return OSError(errno.EACCES, f"the Hub wants to know who asks; {_LOG_IN}", place)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return OSError(errno.ENETUNREACH, "HF_HUB_OFFLINE is set; unset it to reach the Hub", place)
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in _NOT_ALLOWED:
            fact = "the token in use does not allow this" if _has_token() else "there is no token"
            return OSError(errno.EACCES, f"the Hub answered {status}: {fact}; {_LOG_IN}, to a token that allows it", place)
        return OSError(errno.EIO, f"the Hub answered {status}; try again later", place)
    if isinstance(error, errors.HFValidationError):
        return BadRecipe(f"{place}: no name of a repository; it looks like user/repo or user/repo@revision")
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):  # of this machine: no such file, disk full
        return error
    if isinstance(error, ValueError) and error.args and "README" in str(error):
        return BadRecipe(f"{place}: the Hub does not take README.md: {error}")
    cause = error.__cause__ if type(error) is RuntimeError and isinstance(error.__cause__, Exception) else error
    if isinstance(cause, errors.HfHubHTTPError):
        return _translated(place, cause)
    return OSError(errno.EIO, f"the connection to the Hub failed ({type(cause).__name__}); run it again: what has come through is not sent again", place)


def _has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None
