"""A local Hub: the part of the Hub's HTTP API that `datasets` and `huggingface_hub` use.

`ROOT/NAMESPACE/NAME/` has the files of the branch `main` of a dataset or model,
`ROOT/NAMESPACE/NAME@REVISION/` those of another branch or tag. Commits and blobs have the ids of
git and LFS. Large formats are redirected to another host name, like the CDN of the real Hub.
Faults can be injected, and every request is logged.

Routes: https://huggingface.co/docs/hub/api and the requests of huggingface_hub 2.4 (hf_api.py,
file_download.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

Kind = Literal["status", "reset", "cut", "stall", "trickle", "no-range", "early", "flip"]
"""Another status; the connection reset, closed early or stalled, or a few bytes per second; the
complete file for a range, a range of the right length that starts too early, one bit changed."""
TRICKLE_BYTES = 2
EARLY_BYTES = 7
BODY_FAULTS: tuple[Kind, ...] = ("status", "reset", "cut", "stall", "trickle", "flip")
LFS_SUFFIXES = (".parquet", ".gz", ".zst", ".arrow")
PAGE = 1000

REPO = r"(?P<repo>[^/]+/[^/]+)"
REVISION = r"(?P<revision>refs/[^/]+/[^/]+|[^/]+)"
ROUTES = [
    ("GET", re.compile(r"/api/whoami-v2"), "whoami"),
    ("GET", re.compile(rf"/api/(?:datasets|models)/{REPO}(?:/revision/{REVISION})?"), "info"),
    (
        "GET",
        re.compile(rf"/api/(?:datasets|models)/{REPO}/tree/{REVISION}(?:/(?P<path>.*))?"),
        "tree",
    ),
    ("POST", re.compile(rf"/api/datasets/{REPO}/paths-info/{REVISION}"), "paths_info"),
    ("GET", re.compile(rf"/api/datasets/{REPO}/refs"), "refs"),
    ("GET", re.compile(rf"/api/datasets/{REPO}/auth-check"), "auth_check"),
    ("GET", re.compile(rf"(?:/datasets)?/{REPO}/resolve/{REVISION}/(?P<path>.+)"), "resolve"),
    ("GET", re.compile(rf"/cdn/{REPO}/{REVISION}/(?P<path>.+)"), "cdn"),
]


@dataclass(frozen=True)
class Request:
    """A logged request."""

    method: str
    path: str
    host: str
    authorization: str
    range: tuple[int, int] | None
    """First and last requested byte."""


@dataclass
class Fault:
    """A fault of requests whose path and query match."""

    kind: Kind
    path: re.Pattern[str]
    method: str = "GET"
    times: float = 1
    spared: int = 0
    """Matching requests that succeed before the first fault."""
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"error": "planted"}'
    """The body of another status."""
    after: int = 0
    """Bytes of the body that are sent before a reset, cut, stall or trickle, or before the bit."""
    min_size: int = 0
    """Only bodies of at least this many bytes."""


class LocalHub:
    """The server, its settings and its log."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.gated: dict[str, set[str]] = {}
        """The tokens with access to each gated repository."""
        self.tokens: set[str] = set()
        """All valid tokens."""
        self.page = PAGE
        self._lock = threading.Lock()
        self._closing = threading.Event()

    def __enter__(self) -> LocalHub:
        self._server = _Server(("127.0.0.1", 0), self)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.cdn = f"http://localhost:{self._server.server_port}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def begin(self, root: Path) -> None:
        """Serve another folder, without faults and with an empty log."""
        self.root = root
        self.page = PAGE
        self.gated = {}
        self.tokens = set()
        self.clear()

    def clear(self) -> None:
        """Clear the log and the faults; stalled requests continue."""
        self._closing.set()
        self._closing = threading.Event()
        self.log.clear()
        self.faults.clear()

    def add(self, repository: str, files: dict[str, bytes | str], revision: str = "") -> Path:
        """Write files into a repository."""
        folder = self.root / (repository + (f"@{revision}" if revision else ""))
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    def plant(self, kind: Kind, path: str, **details: Any) -> None:
        """Inject a fault into the next matching requests (`times=float("inf")`: all of them)."""
        self.faults.append(Fault(kind, re.compile(path), **details))

    def ranges(self, path: str) -> list[tuple[int, int]]:
        """The requested byte ranges of the files whose path matches."""
        return [
            r.range
            for r in list(self.log)
            if r.range and r.path.startswith("/cdn/") and re.search(path, r.path)
        ]

    def find(self, repository: str, revision: str | None) -> _Commit | None:
        """A commit by branch, tag or id."""
        return next(
            (c for c in self.commits(repository) if revision in (None, c.revision, c.sha)), None
        )

    def commits(self, repository: str) -> list[_Commit]:
        """The branches and tags of a repository, `main` first."""
        folder = self.root / repository
        others = sorted(folder.parent.glob(f"{folder.name}@*")) if folder.parent.is_dir() else []
        return [_Commit(path) for path in [folder, *others] if path.is_dir()]

    def take_fault(self, method: str, target: str, size: int, *kinds: Kind) -> Fault | None:
        """The first matching fault of these kinds, used once."""
        with self._lock:
            for fault in self.faults:
                fits = fault.kind in kinds and fault.method == method and size >= fault.min_size
                if fits and fault.times >= 1 and fault.path.search(target):
                    if fault.spared:
                        fault.spared -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None

    def stall(self, seconds: float = 60) -> bool:
        """Keep a client waiting; returns whether the test has ended."""
        return self._closing.wait(seconds)


class _Commit:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.revision = folder.name.partition("@")[2] or "main"
        self.paths = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )

    @property
    def sha(self) -> str:
        return hashlib.sha1(
            json.dumps([(path, self.entry(path)["oid"]) for path in self.paths]).encode()
        ).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """A file as the API describes it."""
        return {
            "path": path,
            **_describe(self.folder / path, (self.folder / path).stat().st_mtime_ns),
        }

    def tree(self, folder: str, recursive: bool) -> list[dict[str, Any]] | None:
        """Files and folders below a folder; None when there is no such folder."""
        prefix = f"{folder}/" if folder else ""
        below = [path.removeprefix(prefix) for path in self.paths if path.startswith(prefix)]
        if not below:
            return None
        parents = {parent for path in below for parent in _parents(path)}
        names = (
            sorted({*below, *parents})
            if recursive
            else sorted({path.split("/")[0] for path in below})
        )
        return [
            {"type": "directory", "path": prefix + name, "size": 0, "oid": _git_blob(name.encode())}
            if name in parents
            else self.entry(prefix + name)
            for name in names
        ]


@lru_cache(maxsize=4096)
def _describe(path: Path, changed: int) -> dict[str, Any]:
    content = path.read_bytes()
    if not path.name.endswith(LFS_SUFFIXES):
        return {"type": "file", "size": len(content), "oid": _git_blob(content)}
    oid = hashlib.sha256(content).hexdigest()
    version = "version https://git-lfs.github.com/spec/v1"
    pointer = f"{version}\noid sha256:{oid}\nsize {len(content)}\n".encode()
    lfs = {"oid": oid, "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "size": len(content), "oid": _git_blob(pointer), "lfs": lfs}


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], hub: LocalHub) -> None:
        super().__init__(address, _Handler)
        self.hub = hub

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Print no log."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    @property
    def hub(self) -> LocalHub:
        return self.server.hub

    @property
    def token(self) -> str:
        kind, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return token if kind == "Bearer" else ""

    def _answer(self, method: str) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        # huggingface_hub posts a form: `paths=a&paths=b&expand=False`.
        self.form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.range = (int(wanted[1]), int(wanted[2])) if wanted else None
        path = unquote(url.path)
        host = self.headers.get("Host", "")
        self.hub.log.append(
            Request(self.command, path, host, self.headers.get("Authorization") or "", self.range)
        )
        for verb, pattern, name in ROUTES:
            if verb == method and (match := pattern.fullmatch(path)):
                getattr(self, f"_{name}")(**match.groupdict())
                return
        self._refuse(404, "NotFound", "Sorry, we can't find the page you are looking for.")

    # Requests

    def _whoami(self) -> None:
        if self.token in self.hub.tokens:
            self._send(200, {"type": "user", "name": "reader"})
        else:
            self._refuse(401, "", "Invalid credentials in Authorization header")

    def _info(self, repo: str, revision: str | None) -> None:
        if commit := self._commit(repo, revision):
            siblings = [{"rfilename": path} for path in commit.paths]
            gated = "auto" if repo in self.hub.gated else False
            facts = {
                "id": repo,
                "private": False,
                "gated": gated,
                "disabled": False,
                "tags": [],
                "downloads": 0,
            }
            self._send(200, facts | {"sha": commit.sha, "siblings": siblings})

    def _tree(self, repo: str, revision: str, path: str | None) -> None:
        if not (commit := self._commit(repo, revision)):
            return
        entries = commit.tree(
            (path or "").strip("/"), self.query.get("recursive", "").lower() in ("true", "1")
        )
        if entries is None and path:
            self._refuse(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
            return
        start = int(self.query.get("cursor", 0))
        stop = start + self.hub.page
        following = urlencode({**self.query, "cursor": stop})
        link = f'<{self.hub.url}{urlsplit(self.path).path}?{following}>; rel="next"'
        self._send(
            200, (entries or [])[start:stop], {"Link": link} if stop < len(entries or []) else {}
        )

    def _paths_info(self, repo: str, revision: str) -> None:
        if commit := self._commit(repo, revision):
            known = set(commit.paths)
            found = []
            for path in self.form["paths"]:
                if path in known:
                    found.append(commit.entry(path))
                elif commit.tree(path.strip("/"), False):
                    found.append(
                        {
                            "type": "directory",
                            "path": path,
                            "size": 0,
                            "oid": _git_blob(path.encode()),
                        }
                    )
            self._send(200, found)

    def _refs(self, repo: str) -> None:
        if self._commit(repo, None):
            commits = self.hub.commits(repo)
            names = [
                {"name": c.revision, "ref": f"refs/heads/{c.revision}", "targetCommit": c.sha}
                for c in commits
            ]
            self._send(200, {"branches": names, "tags": [], "converts": [], "pullRequests": []})

    def _auth_check(self, repo: str) -> None:
        if self._commit(repo, None) and self._may_read(repo):
            self._send(200, b"OK")

    def _resolve(self, repo: str, revision: str, path: str) -> None:
        if not (commit := self._commit(repo, revision)) or not self._may_read(repo):
            return
        facts = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.paths:
            self._refuse(404, "EntryNotFound", "Entry not found", facts)
            return
        entry = commit.entry(path)
        if "lfs" not in entry:
            self._send_file(commit.folder / path, entry["oid"], facts)
            return
        facts |= {"X-Linked-Size": str(entry["size"]), "X-Linked-ETag": f'"{entry["lfs"]["oid"]}"'}
        facts["Location"] = f"{self.hub.cdn}/cdn/{repo}/{commit.sha}/{quote(path)}?Signature=S"
        self._send(302, b"", facts)

    def _cdn(self, repo: str, revision: str, path: str) -> None:
        if commit := self.hub.find(repo, revision):
            self._send_file(
                commit.folder / path, commit.entry(path)["lfs"]["oid"], {"Accept-Ranges": "bytes"}
            )

    def _commit(self, repo: str, revision: str | None) -> _Commit | None:
        if self.token and self.token not in self.hub.tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        if not self.hub.commits(repo):
            # The same response as for a private repository without access.
            self._refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        if (commit := self.hub.find(repo, revision)) is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _may_read(self, repo: str) -> bool:
        if repo not in self.hub.gated or self.token in self.hub.gated[repo]:
            return True
        if self.token:
            message = (
                f"Access to dataset {repo} is restricted and you are not in the authorized list."
            )
            self._refuse(
                403,
                "GatedRepo",
                f"{message} Visit https://huggingface.co/datasets/{repo} to ask for access.",
            )
        else:
            message = f"Access to dataset {repo} is restricted."
            self._refuse(
                401,
                "GatedRepo",
                f"{message} You must have access to it and be authenticated to access it.",
            )
        return False

    # Responses

    def _refuse(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        reasons = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, {"error": message}, reasons | (headers or {}))

    def _send_file(self, path: Path, etag: str, headers: dict[str, str]) -> None:
        headers = {**headers, "ETag": f'"{etag}"'}
        size = path.stat().st_size
        if self.range is None or self.hub.take_fault(self.command, self.path, size, "no-range"):
            self._send(200, path.read_bytes(), headers)
            return
        first = self.range[0]
        last = min(self.range[1], size - 1)
        if first >= size:
            self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        if first and self.hub.take_fault(self.command, self.path, last - first + 1, "early"):
            first -= EARLY_BYTES
            last -= EARLY_BYTES
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        with path.open("rb") as file:
            file.seek(first)
            self._send(206, file.read(last - first + 1), headers)

    def _send(
        self,
        status: int,
        body: bytes | Sequence[Any] | dict[str, Any],
        headers: dict[str, str] | None = None,
    ):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        fault = self.hub.take_fault(self.command, self.path, len(content), *BODY_FAULTS)
        if fault and fault.kind == "status":
            status = fault.status
            content = fault.body
            headers = fault.headers
            fault = None
        if fault and fault.kind == "flip":
            flipped = bytes([content[fault.after] ^ 1])
            content = content[: fault.after] + flipped + content[fault.after + 1 :]
            fault = None
        if fault and not fault.after:
            self._break(fault)
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(OSError):
                self.wfile.write(content[: fault.after] if fault else content)
                self.wfile.flush()
        if fault and fault.kind == "trickle":
            self._trickle(content[fault.after :])
        elif fault:
            self._break(fault)

    def _trickle(self, content: bytes) -> None:
        with suppress(OSError):
            for start in range(0, len(content), TRICKLE_BYTES):
                self.wfile.write(content[start : start + TRICKLE_BYTES])
                if self.hub.stall(1):
                    return

    def _break(self, fault: Fault) -> None:
        if fault.kind == "stall":
            self.hub.stall()
        if fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
