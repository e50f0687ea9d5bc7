"""A file of a repository, read from any place on, over the Hub's own client; a connection that breaks is taken up where it broke."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from functools import cached_property
from importlib.util import find_spec
from threading import Lock
from typing import Any

from modelcodec.errors import ModelCodecError, UnsupportedFile
from modelcodec.hub.repository import Snapshot, StoredFile, hub_errors
from modelcodec.version import VERSION

ATTEMPTS = 5
"""Failures in a row, without a byte in between, after which the caller hears of it."""
PAUSE_SECONDS = 1.0
"""Before the second attempt; twice as long before each further one."""
CLIENT_ERRORS = range(400, 500)


class RemoteFile:
    """A file at one commit, of the size that the Hub tells. Safe to use from several threads.

    Where the file is in Xet storage and hf_xet is installed, its chunks are fetched side by side by that; else it comes over one HTTP connection.
    `where`: its name for messages.
    """

    def __init__(self, found: Snapshot, stored: StoredFile) -> None:
        self._found, self._stored = found, stored
        self.size, self.where = stored.size, f"{found.repo}/{stored.name}"
        self._lock = Lock()

    def read(self, start: int, end: int) -> memoryview:
        """Bytes start .. end - 1. Raises OSError."""
        return memoryview(b"".join(self.stream(start, end)))

    def stream(self, start: int, end: int) -> Iterator[bytes]:
        """The same in pieces as they come, all of them or an error. Raises OSError."""
        failures = 0
        while start < end:
            problem: Exception | None = None
            try:
                for piece in self._connected(start, end):
                    failures = 0
                    start += len(piece)
                    yield piece
            except ModelCodecError:
                raise
            except Exception as error:  # each transport has errors of its own
                problem = error
            if start >= end:
                return
            failures += 1
            if failures == ATTEMPTS or _is_refusal(problem):
                with hub_errors(self.where):
                    raise problem or ConnectionError(errno.EIO, f"byte {start} of {self.size} does not come")
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))

    def _connected(self, start: int, end: int) -> Iterator[bytes]:
        """One connection, which may end early."""
        return iter(self._chunks(start, end)) if self._xet is not None else self._http(start, end)

    def _http(self, start: int, end: int) -> Iterator[bytes]:
        from huggingface_hub import constants
        from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

        part = (start, end) != (0, self.size)
        headers = self._headers | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-{end - 1}"} if part else {})
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with http_stream_backoff("GET", self._url, headers=headers, timeout=timeout, retry_on_exceptions=()) as response:
            hf_raise_for_status(response)
            if part and response.status_code != 206:
                raise UnsupportedFile(f"{self.where}: the server gives whole files only; download it with `hf download`")
            left = end - start
            for piece in response.iter_bytes():
                yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    return

    def _chunks(self, start: int, end: int) -> Any:
        """A stream of hf_xet. It ends early, without an error, where the connection breaks."""
        import hf_xet

        with self._lock:
            group = self._chunk_group
        return group.download_stream(hf_xet.XetFileInfo(self._xet.file_hash, self.size), start=start, end=end)

    @cached_property
    def _chunk_group(self) -> Any:
        import hf_xet

        public = {name: value for name, value in self._headers.items() if name.lower() != "authorization"}
        return hf_xet.XetSession().new_download_stream_group(
            token_refresh_url=self._xet.refresh_route, token_refresh_headers=self._headers, custom_headers=public
        )

    @cached_property
    def _xet(self) -> Any:
        """Where the file is in Xet storage, if it is and that can be read."""
        from huggingface_hub import HfApi, constants

        if not self._stored.sha256 or constants.HF_HUB_DISABLE_XET or not find_spec("hf_xet"):
            return None
        return HfApi().get_hf_file_metadata(url=self._url).xet_file_data

    @cached_property
    def _url(self) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self._found.repo, self._stored.name, revision=self._found.commit)

    @cached_property
    def _headers(self) -> dict[str, str]:
        """With the token that the Hub's client finds."""
        from huggingface_hub.utils import build_hf_headers

        return build_hf_headers(library_name="modelcodec", library_version=VERSION)


def _is_refusal(error: Exception | None) -> bool:
    """Whether asking again will not help."""
    response = getattr(error, "response", None)
    return response is not None and response.status_code in CLIENT_ERRORS
