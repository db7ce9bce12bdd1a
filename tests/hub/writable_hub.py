"""A hub on this machine that takes uploads: repositories, LFS objects and commits, as far as huggingface_hub asks."""

from __future__ import annotations

import base64
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote, urlparse

from tests.small_hub import COMMIT, Hub, serving


@dataclass
class State:
    """What the server holds, what was asked, and how it shall fail.

    Attributes:
        repositories: files by repository.
        objects: LFS objects by digest.
        asked: each request that writes, in order, such as "PUT object".
        private: repositories that were made private.
        status: answered to commits in place of what they ask, if it is not 0.
        dropped: how many more uploads lose their connection.
        role: of the token of "me", who is in "our-lab".
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    private: set[str] = field(default_factory=set)
    status: int = 0
    dropped: int = 0
    role: str = "write"


class WritableHub(Hub):
    """The reading hub, and the requests of an upload."""

    def __init__(self, state: State, *arguments: Any) -> None:
        self.state = state
        super().__init__(state.repositories, [], *arguments)

    def do_GET(self) -> None:
        """Say whose the token is, and answer what a download asks."""
        if self.path != "/api/whoami-v2":
            super().do_GET()
            return
        token = {"displayName": "t", "role": self.state.role}
        self._reply(
            {"type": "user", "name": "me", "orgs": [{"name": "our-lab"}], "auth": {"accessToken": token}},
            200 if self.state.role else 401,
        )

    def do_POST(self) -> None:
        """Answer what an upload asks."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts[-1] == "validate-yaml":
            self._reply({"errors": [], "warnings": []})
        elif "preupload" in parts:
            files = json.loads(body)["files"]
            self._reply(
                {
                    "files": [
                        {"path": each["path"], "uploadMode": _mode(each["path"]), "shouldIgnore": False}
                        for each in files
                    ]
                }
            )
        elif parts[-2:] == ["objects", "batch"]:
            self._reply({"transfer": "basic", "objects": [self._object(each) for each in json.loads(body)["objects"]]})
        elif "commit" in parts:
            self._commit("/".join(parts[2:4]), body)
        else:
            self._reply({}, 404)

    def do_PUT(self) -> None:
        """Take one LFS object, or lose the connection in the middle of it."""
        size = int(self.headers["Content-Length"])
        if self.state.dropped:
            self.state.dropped -= 1
            self.rfile.read(size // 2)
            self.close_connection = True
            self.connection.close()
            return
        self.state.objects[self.path.rpartition("/")[2]] = self.rfile.read(size)
        self.state.asked.append("object")
        self._reply({})

    def _create(self, asked: dict[str, Any]) -> None:
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        self.state.asked.append(f"create {name}")
        known = name in self.repositories
        self.state.repositories.setdefault(name, {".gitattributes": b""})
        if not known and (asked.get("private") or asked.get("visibility") == "private"):
            self.state.private.add(name)
        url = f"http://{self.headers['Host']}/{name}"
        self._reply({"url": url, "name": name, "id": name}, 409 if known else 200)

    def _object(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in self.state.objects:
            found["actions"] = {"upload": {"href": f"http://{self.headers['Host']}/objects/{asked['oid']}"}}
        return found

    def _commit(self, name: str, body: bytes) -> None:
        if self.state.status:
            self._reply({"error": "as the test wanted"}, self.state.status)
            return
        files, said = self.state.repositories[name], []
        for line in body.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            said += [value["path"]] if "path" in value else []
        self.state.asked.append(f"commit {' '.join(sorted(said))}")
        url = f"http://{self.headers['Host']}/{name}/commit/{COMMIT}"
        self._reply({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def _reply(self, value: Any, status: int = 200) -> None:
        self.send_response(status)
        data = json.dumps(value).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".gguf")) else "regular"


def serve(state: State) -> AbstractContextManager[str]:
    """Serve and change `state`, at the address that is yielded."""
    return serving(partial(WritableHub, state))
