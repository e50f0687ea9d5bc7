"""Bases of deltas that are repositories: `user/repo@revision` when compressing, pinned to its commit; found again by that name when restoring."""

from __future__ import annotations

import re
from pathlib import Path

from modelcodec.base import NamedBase
from modelcodec.hub.repository import Address, hub_errors

_RECORDED = re.compile(r"([^/@]+/[^/@]+)@([^/@]+)/(.+)")


def named_base(base: str | Path | None) -> str | Path | NamedBase | None:
    """A base to compress against: a local file or folder where there is one of this name, otherwise a repository, downloaded to the Hub's cache.

    Raises OSError, BadRecipe.
    """
    if base is None or Path(base).exists():
        return base
    address = Address.parse(str(base))
    with hub_errors(str(address)):
        from huggingface_hub import HfApi, snapshot_download

        commit = str(HfApi().repo_info(address.repo, revision=address.revision).sha)
        return NamedBase(Path(snapshot_download(address.repo, revision=commit)), f"{address.repo}@{commit}")


def find_base(name: str) -> Path | None:
    """The file of a base by the name that a delta recorded, from the Hub's cache or the Hub; None for a name that tells no repository.

    The name is untrusted; whether the file is the right one is told by the digests in the delta. Raises OSError.
    """
    recorded = _RECORDED.fullmatch(name)
    if recorded is None:
        return None
    repo, revision, file = recorded.groups()
    with hub_errors(name):
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(repo, file, revision=revision))
