"""A Hugging Face Hub in this process, for tests: repositories, commits, private ones and tokens, large files by LFS or in Xet storage, and faults on request.

It answers what huggingface_hub 2 and hf_xet ask for when they make a repository, upload a folder, list it and download from it. Xet storage is hf_xet's own
store in a local folder, to which the Hub's answers point the client. Nothing leaves the machine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import pytest

TOKEN = "hf_tokenForTests"
LARGE = (".safetensors", ".bin", ".pt", ".gguf")
"""Endings of files that never stand in git itself."""
LARGE_BYTES = 10 << 20
XET_SEGMENT_BYTES = 48


@dataclass(frozen=True)
class File:
    """A file at a commit: in git with its `content`, or large, with its SHA-256 and in Xet storage also the hash there."""

    size: int
    content: bytes | None = None
    sha256: str = ""
    xet: str = ""

    @property
    def blob(self) -> str:
        """What git names it by; of a large file that is its pointer's name."""
        content = self.sha256.encode() if self.content is None else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob


@dataclass
class Repository:
    private: bool
    commits: list[tuple[str, dict[str, File]]] = field(default_factory=lambda: [(hashlib.sha1(b"first").hexdigest(), {})])
    branches: dict[str, int] = field(default_factory=lambda: {"main": 0})

    def at(self, revision: str) -> tuple[str, dict[str, File]]:
        """Raises KeyError."""
        return (revision, dict(self.commits)[revision]) if revision in dict(self.commits) else self.commits[self.branches[revision]]

    def commit(self, branch: str, files: dict[str, File]) -> str:
        name = hashlib.sha1(f"{len(self.commits)} {time.time()}".encode()).hexdigest()
        self.commits.append((name, files))
        self.branches[branch] = len(self.commits) - 1
        return name


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str
    n_received: int
    """Bytes in the request's body."""


@dataclass
class Faults:
    """What goes wrong next. Data connections break off after `cut_after` bytes, `cuts` times; uploads are refused once `uploads` more have come."""

    cut_after: int = 0
    cuts: int = 0
    uploads: int | None = None


class HubStandIn:
    """Serves until closed. `xet`: the folder of the Xet store, None for LFS alone. `requests` are all that came, in order."""

    def __init__(self, xet: Path | None) -> None:
        self.xet = xet
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults = Faults()
        self.lock = threading.RLock()
        hub = self

        class Handler(_Handler):
            stand_in = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host, so that clients take it for storage that must not see their token.
        self.storage = f"http://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repository: str, revision: str = "main") -> dict[str, File]:
        return self.repositories[repository].at(revision)[1]

    def put(self, repository: str, files: dict[str, bytes], **settings: Any) -> None:
        """A commit made behind everybody's back, with any names and contents; large files as LFS objects."""
        target = self.repositories.setdefault(repository, Repository(private=False, **settings))
        changed = dict(target.at("main")[1])
        for name, content in files.items():
            changed[name] = File(len(content), content)
            if name.endswith(LARGE):
                sha256 = hashlib.sha256(content).hexdigest()
                self.objects[sha256] = content
                changed[name] = File(len(content), None, sha256)
        target.commit("main", changed)

    @contextmanager
    def asked(self) -> Iterator[list[Request]]:
        """The requests that come while the block runs."""
        found: list[Request] = []
        before = len(self.requests)
        yield found
        found += self.requests[before:]

    def content(self, file: File, start: int = 0, end: int | None = None) -> bytes:
        """Bytes of a file, from wherever they are stored."""
        end = file.size if end is None else end
        if file.content is not None:
            return file.content[start:end]
        if file.sha256 in self.objects:
            return self.objects[file.sha256][start:end]
        import hf_xet

        group = hf_xet.XetSession().new_download_stream_group(endpoint=f"local://{self.xet}")
        return b"".join(group.download_stream(hf_xet.XetFileInfo(file.xet, file.size), start=start, end=end))

    def xet_file(self, sha256: str) -> File:
        """What the Xet store has learnt of a file from an upload: its lists of files ("shards") tell the SHA-256 of each."""
        for shard in (self.xet or Path()).glob("xet/xorbs/shards/*.mdb"):
            for file in _files_of_shard(shard.read_bytes()):
                if file.sha256 == sha256:
                    return file
        raise KeyError(sha256)


def _files_of_shard(data: bytes) -> Iterator[File]:
    """xet-core's shard: a header, then for each file its hash, its segments, where the flags say so a digest of each segment, and the SHA-256."""
    at = XET_SEGMENT_BYTES
    while data[at : at + 32] != b"\xff" * 32:
        flags, n = (int.from_bytes(data[at + 32 + k : at + 36 + k], "little") for k in (0, 4))
        segments = at + XET_SEGMENT_BYTES
        size = sum(int.from_bytes(data[s + 36 : s + 40], "little") for s in range(segments, segments + n * XET_SEGMENT_BYTES, XET_SEGMENT_BYTES))
        end = segments + n * XET_SEGMENT_BYTES * (2 if flags >> 31 else 1)
        yield File(size, None, _hash_text(data[end : end + 32]) if flags >> 30 & 1 else "", _hash_text(data[at : at + 32]))
        at = end + (XET_SEGMENT_BYTES if flags >> 30 & 1 else 0)


def _hash_text(digest: bytes) -> str:
    """As xet-core writes a hash: four numbers of 64 bits."""
    return "".join(f"{int.from_bytes(digest[k : k + 8], 'little'):016x}" for k in range(0, 32, 8))


@contextmanager
def serving(xet: Path | None, cache: Path) -> Iterator[HubStandIn]:
    """A Hub that huggingface_hub, in this process, takes for the real one, with a token that may do everything and caches of its own."""
    from huggingface_hub import constants

    hub = HubStandIn(xet)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", hub.url)
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
            patch.setattr(constants, "HF_HUB_DISABLE_XET", xet is None)
            patch.setattr(constants, "HF_HUB_CACHE", str(cache))
            patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
            patch.setenv("HF_TOKEN", TOKEN)
            yield hub
    finally:
        hub.close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


class _NotThere(Exception):
    """Answered with 404 and this as the Hub's error code."""


class _Handler(BaseHTTPRequestHandler):
    stand_in: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        url = urlparse(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.stand_in.requests.append(Request(self.command, unquote(url.path), self.headers.get("Range", ""), len(self.body)))
        try:
            for pattern, name in _ROUTES:
                found = re.fullmatch(pattern, url.path)
                if found:
                    getattr(self, name)(*map(unquote, found.groups()))
                    return
            raise _NotThere("EntryNotFound")
        except _NotThere as error:
            status = 401 if str(error) == "RepoNotFound" and not self._is_known() else 404
            self._json({"error": str(error)}, status, {"X-Error-Code": str(error), "X-Error-Message": "not found"})
        except PermissionError:
            self._json({"error": "Invalid username or password."}, 401)

    # ---- what is asked ----

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str) -> Repository:
        repository = self.stand_in.repositories.get(name)
        if repository is None or (repository.private and not self._is_known()):
            raise _NotThere("RepoNotFound")
        return repository

    def _at(self, name: str, revision: str) -> tuple[str, dict[str, File]]:
        repository = self._repository(name)
        try:
            return repository.at(revision or "main")
        except KeyError:
            raise _NotThere("RevisionNotFound") from None

    def _writing(self) -> None:
        if not self._is_known():
            raise PermissionError

    # ---- answers ----

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _create(self) -> None:
        self._writing()
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        link = {"url": f"{self.stand_in.url}/{name}", "id": name, "name": name}
        if name in self.stand_in.repositories:
            self._json({"error": "You already created this model repo"} | link, 409)
            return
        self.stand_in.repositories[name] = Repository(private=bool(asked.get("private") or asked.get("visibility") == "private"))
        attributes = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        self.stand_in.repositories[name].commit("main", {".gitattributes": File(len(attributes), attributes)})
        self._json(link)

    def _branch(self, name: str, branch: str) -> None:
        self._writing()
        repository = self._repository(name)
        if branch in repository.branches:
            self._json({"error": "Reference already exists"}, 409)
            return
        repository.branches[branch] = repository.branches["main"]
        self._json({})

    def _info(self, name: str, revision: str) -> None:
        commit, files = self._at(name, revision)
        self._json({"_id": "1", "id": name, "sha": commit, "private": self._repository(name).private, "siblings": [{"rfilename": path} for path in files]})

    def _tree(self, name: str, revision: str) -> None:
        """Always of the whole repository."""
        _, files = self._at(name, revision)
        self._json([self._listed(path, file) for path, file in sorted(files.items())])

    def _paths(self, name: str, revision: str) -> None:
        _, files = self._at(name, revision)
        wanted = json.loads(self.body)["paths"] if self.body[:1] == b"{" else parse_qs(self.body.decode())["paths"]
        self._json([self._listed(path, files[path]) for path in wanted if path in files])

    @staticmethod
    def _listed(path: str, file: File) -> dict[str, Any]:
        listed: dict[str, Any] = {"type": "file", "oid": file.blob, "size": file.size, "path": path}
        if file.sha256:
            listed |= {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 135}} | ({"xetHash": file.xet} if file.xet else {})
        return listed

    def _preupload(self, name: str, revision: str) -> None:
        self._writing()
        _, files = self._at(name, revision)
        answers = []
        for asked in json.loads(self.body)["files"]:
            large = asked["path"].endswith(LARGE) or asked["size"] >= LARGE_BYTES
            known = files.get(asked["path"])
            answers.append({"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": known.etag if known else None})
        self._json({"files": answers})

    def _batch(self, name: str) -> None:
        self._writing()
        objects = []
        for asked in json.loads(self.body)["objects"]:
            known = asked["oid"] in self.stand_in.objects
            upload = {} if known else {"actions": {"upload": {"href": f"{self.stand_in.storage}/store/{asked['oid']}", "header": {}}}}
            objects.append({"oid": asked["oid"], "size": asked["size"]} | upload)
        self._json({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def _store(self, sha256: str) -> None:
        if self.command == "PUT":
            faults = self.stand_in.faults
            with self.stand_in.lock:
                if faults.uploads == 0:
                    self._send(b"", 403)
                    return
                faults.uploads = None if faults.uploads is None else faults.uploads - 1
            self.stand_in.objects[sha256] = self.body
            self._send(b"")
            return
        files = (file for repository in self.stand_in.repositories.values() for _, tree in repository.commits for file in tree.values())
        self._content(next(file for file in files if file.sha256 == sha256), {})

    def _commit(self, name: str, branch: str) -> None:
        self._writing()
        files = dict(self._at(name, branch)[1])
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = File(len(content), content)
            elif operation["key"] == "lfsFile":
                sha256 = value["oid"]
                known = self.stand_in.objects.get(sha256)
                files[value["path"]] = self.stand_in.xet_file(sha256) if known is None else File(len(known), None, sha256)
        commit = self._repository(name).commit(branch, files)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.stand_in.url}/{name}/commit/{commit}", "hookOutput": ""})

    def _xet_token(self, name: str, kind: str, revision: str) -> None:
        if kind == "write":
            self._writing()
        self._repository(name)
        until, url = int(time.time()) + 3600, f"local://{self.stand_in.xet}"
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(until)}
        self._json({"accessToken": "xet", "exp": until, "casUrl": url}, headers=headers)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        commit, files = self._at(name, revision)
        if path not in files:
            raise _NotThere("EntryNotFound")
        file = files[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{file.etag}"'}
        if not file.sha256:
            self._content(file, headers)
            return
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"', "Location": f"{self.stand_in.storage}/store/{file.sha256}"}
        if file.xet:
            refresh = f"{self.stand_in.url}/api/models/{name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": file.xet, "Link": f'<{refresh}>; rel="xet-auth"'}
        self._send(b"", 302, headers)

    def _content(self, file: File, headers: dict[str, str]) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(found[1]) if found else 0
        end = min(int(found[2]) + 1, file.size) if found and found[2] else file.size
        content = self.stand_in.content(file, start, end) if self.command != "HEAD" else b"\0" * file.size
        headers = headers | {"Accept-Ranges": "bytes"} | ({"Content-Range": f"bytes {start}-{end - 1}/{file.size}"} if found else {})
        faults = self.stand_in.faults
        with self.stand_in.lock:
            cut = faults.cuts > 0 and file.sha256 != "" and len(content) > faults.cut_after
            faults.cuts -= cut
        if cut:
            headers = headers | {"Content-Length": str(len(content)), "Connection": "close"}
            content, self.close_connection = content[: faults.cut_after], True
        self._send(content, 206 if found else 200, headers)

    def _accepted(self) -> None:
        self._json({"errors": [], "warnings": []})


_MODEL = r"/api/models/([^/]+/[^/]+)"
_ROUTES = (
    (r"/api/repos/create", "_create"),
    (r"/api/validate-yaml", "_accepted"),
    (_MODEL + r"()", "_info"),
    (_MODEL + r"/revision/([^/]+)", "_info"),
    (_MODEL + r"/branch/([^/]+)", "_branch"),
    (_MODEL + r"/tree/([^/]+)", "_tree"),
    (_MODEL + r"/paths-info/([^/]+)", "_paths"),
    (_MODEL + r"/preupload/([^/]+)", "_preupload"),
    (_MODEL + r"/commit/([^/]+)", "_commit"),
    (_MODEL + r"/xet-(read|write)-token/([^/]+)", "_xet_token"),
    (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "_batch"),
    (r"/store/([0-9a-f]+)", "_store"),
    (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "_resolve"),
)
"""What the Hub serves: a pattern for the path and the method whose arguments are its groups."""
