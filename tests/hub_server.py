"""A hub on the loopback interface: the endpoints that `huggingface_hub.snapshot_download` uses, nothing more."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/(revision|tree)/(.+))?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass(frozen=True)
class Request:
    """What was asked for; `range` is the Range header of a continued download."""

    method: str
    path: str
    range: str | None


@dataclass
class HubRepository:
    """Files by path, with the commit that is derived from them; `broken` files end in HTTP 500 after the header."""

    files: Mapping[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    broken: set[str] = field(default_factory=set)

    @property
    def commit(self) -> str:
        parts = b"".join(name.encode() + content for name, content in sorted(self.files.items()))
        return hashlib.sha1(parts).hexdigest()


@dataclass
class HubServer:
    """Repositories by "models/owner/name" or "datasets/owner/name"; every request is noted in `requests`."""

    url: str = ""
    repositories: dict[str, HubRepository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def add_model(self, hub_id: str, files: Mapping[str, bytes]) -> HubRepository:
        return self.repositories.setdefault(f"models/{hub_id}", HubRepository(files))

    def add_dataset(self, hub_id: str, files: Mapping[str, bytes]) -> HubRepository:
        return self.repositories.setdefault(f"datasets/{hub_id}", HubRepository(files))

    def downloads(self) -> list[str]:
        """Names of the files whose content was asked for, in alphabetical order, repetitions included."""
        matches = [_FILE.fullmatch(urlsplit(request.path).path) for request in self.requests if request.method == "GET"]
        return sorted(unquote(match[4]) for match in matches if match)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet per answer: two would wait 40 ms for the delayed acknowledgement of the first

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _answer(self) -> None:
        self.server.hub.requests.append(Request(self.command, self.path, self.headers.get("Range")))
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            self._send(200, b"hub")
        elif match := _API.fullmatch(path):
            self._answer_api(*match.groups())
        elif match := _FILE.fullmatch(path):
            self._answer_file(f"{match[1] or 'models/'}{match[2]}", match[3], match[4])
        else:
            self._refuse(404, "RepoNotFound")

    def _repository(self, key: str, revision: str) -> HubRepository | None:
        repository = self.server.hub.repositories.get(key)
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif revision not in (*repository.revisions, repository.commit):
            self._refuse(404, "RevisionNotFound")
        else:
            return repository
        return None

    def _answer_api(self, kind: str, hub_id: str, what: str | None, revision: str | None) -> None:
        repository = self._repository(f"{kind}/{hub_id}", revision or "main")
        if repository is None:
            return
        if what == "tree":
            listing = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                | ({"lfs": _lfs(content)} if name.endswith((".safetensors", ".parquet")) else {})
                for name, content in repository.files.items()
            ]
            self._send(200, json.dumps(listing).encode())
        else:
            self._send(200, json.dumps({"id": hub_id, "sha": repository.commit, "siblings": []}).encode())

    def _answer_file(self, key: str, revision: str, name: str) -> None:
        repository = self._repository(key, revision)
        if repository is None:
            return
        if repository.gated:
            self._refuse(403, "GatedRepo")
        elif name not in repository.files:
            self._refuse(404, "EntryNotFound")
        elif name in repository.broken and self.command == "GET":
            self._refuse(500, "Broken")
        else:
            content = repository.files[name]
            digest = hashlib.sha256 if name.endswith((".safetensors", ".parquet")) else hashlib.sha1
            headers = {"ETag": f'"{digest(content).hexdigest()}"', "X-Repo-Commit": repository.commit}
            start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206 if start else 200, content[start:], headers)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubServer


def _lfs(content: bytes) -> dict[str, object]:
    return {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}


@contextmanager
def serving() -> Iterator[HubServer]:
    """A running, empty hub."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.hub = HubServer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub that peftkit and huggingface_hub take for the real one, with an empty hub cache."""
    import huggingface_hub
    from huggingface_hub import constants, utils

    with serving() as hub:
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()  # the client reads the proxy settings when it is made
        utils.disable_progress_bars()
        yield hub
        utils.enable_progress_bars()
        huggingface_hub.close_session()
