"""A Hugging Face hub of one's own: the answers that the real client asks for, from files in memory, on a local port."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE_FILES = (".safetensors", ".bin", ".npz", ".pt")  # kept in git LFS by the hub: stated with their sha256


@dataclass
class Repository:
    files: dict[str, bytes]
    commit: str = "c" * 40
    status: int = 200
    error_code: str | None = None
    token: str | None = None  # asked for when set
    stated_sha256: dict[str, str] = field(default_factory=dict)  # a hub that states other hashes than its files have
    cut: str | None = None  # name of a file whose transfer always breaks off half-way
    hold: threading.Event | None = None  # transfers of large files wait for it
    delay_s: float = 0.0  # before every answer


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


class Hub:
    """What is served, and what was asked for."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: Counter[str] = Counter()
        self.tokens: list[str | None] = []
        self.url = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.hub.requests[f"{self.command} {path}"] += 1
        parts = path.split("/")
        name = "/".join(parts[2:4] if parts[:2] == ["api", "models"] else parts[:2])
        repository = self.hub.repositories.get(name)
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        self.hub.tokens.append(sent)
        if repository is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
        time.sleep(repository.delay_s)
        if repository.status != 200 or (repository.token and sent != repository.token):
            status = repository.status if repository.status != 200 else 401
            headers = {"X-Error-Code": repository.error_code} if repository.error_code else {}
            return self._send(status, b"{}", headers, body=body)
        if parts[:2] == ["api", "models"]:
            return self._send(200, json.dumps(self._info(name, repository)).encode(), {}, body=body)
        return self._file(repository, "/".join(parts[4:]), body=body)

    def _info(self, name: str, repository: Repository) -> dict:
        siblings = []
        for file, data in repository.files.items():
            sibling = {"rfilename": file, "size": len(data), "blobId": blob_id(data)}
            if file.endswith(LARGE_FILES):
                stated = repository.stated_sha256.get(file, sha256(data))
                sibling["lfs"] = {"sha256": stated, "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        return {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "tags": []}

    def _file(self, repository: Repository, file: str, *, body: bool) -> None:
        if file not in repository.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
        data = repository.files[file]
        large = file.endswith(LARGE_FILES)
        etag = sha256(data) if large else blob_id(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": repository.commit}
        if body and large and repository.hold is not None:
            repository.hold.wait(30)
        if body and repository.cut == file:
            self.send_response(200)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return None
        return self._send(200, data, headers, body=body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
