"""A small server on this machine that answers as the hub does, for tests of hub ids."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

Repositories = Mapping[str, Mapping[str, bytes]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that a snapshot needs."""

    def __init__(self, repositories: Repositories, asked: list[str], *arguments: Any) -> None:
        self.repositories, self.asked = repositories, asked
        super().__init__(*arguments)  # answers at once

    def do_GET(self) -> None:
        """Answer one request."""
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if api else parts[:2])
        files = self.repositories.get(repository)
        if repository == "gated/model":
            self.answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
        elif repository == "down/model":
            self.answer(501, b"")
        elif files is None:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif api and parts[4:5] == ["revision"] and parts[5] not in ("main", COMMIT):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif api and parts[4:5] == ["tree"]:
            tree = [{"type": "file", "path": path, "size": len(data), "oid": "0" * 40} for path, data in files.items()]
            self.answer(200, json.dumps(tree).encode())
        elif api:
            info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files]}
            self.answer(200, json.dumps(info).encode())
        elif (data := files.get("/".join(parts[4:]))) is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            if self.command == "GET":
                self.asked.append("/".join((repository, *parts[4:])))
            self.answer(200, data, {"ETag": f'"{len(data)}-{parts[-1]}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a response; without its body to HEAD."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def serve(repositories: Repositories, asked: list[str] | None = None) -> AbstractContextManager[str]:
    """Serve files by repository and name, at the address that is yielded; those fetched go to `asked`."""
    return serving(partial(Hub, repositories, [] if asked is None else asked))


@contextmanager
def serving(handler: Callable[..., Hub]) -> Iterator[str]:
    """Answer by `handler` at the address that is yielded."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(endpoint: str, home: Path) -> dict[str, str]:
    """For another process: huggingface_hub reads its address once, when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
