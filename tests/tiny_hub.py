"""The few routes of the Hugging Face hub that its client uses to push and to pull, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_right"


class TinyHub(ThreadingHTTPServer):
    """Repositories by name: each a list of commits, each the files by path. A private one wants `TOKEN`.

    With `large`, model files are uploaded apart from the commit (Git LFS), and fetched by way of another address.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Routes)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.store = f"http://localhost:{self.server_port}"  # another host, as the hub's storage is
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.cut = 0  # bytes at the end that answers lack
        self.large = False
        self.objects: dict[str, bytes] = {}  # by SHA-256
        self.paths: list[str] = []


class _Routes(BaseHTTPRequestHandler):
    server: TinyHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        listed = re.match(r"/api/datasets/([\w.-]+/[\w.-]+)/(revision/main|tree/)", self.path)
        if listed and (commits := self.server.repositories.get(listed[1])):
            if listed[2] == "tree/":
                files = commits[-1].items()
                tree = [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files]
                return self.say(tree)
            return self.say({"id": listed[1], "sha": commit_of(listed[1], len(commits) - 1), "siblings": []})
        if self.path.startswith("/objects/"):
            content = self.server.objects[self.path.rpartition("/")[2]]
            return self.answer(200, {"ETag": '"of the store"'}, content)
        found = re.fullmatch(r"/(?:datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", self.path)
        if found is None:
            return self.answer(404)
        name, revision, path = found.groups()
        if self.refused() or (name in self.server.private and not self.token()):
            return self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        commits = self.server.repositories.get(name)
        if commits is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        names = {commit_of(name, index): index for index in range(len(commits))} | {"main": len(commits) - 1}
        if revision not in names:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        commit = {"X-Repo-Commit": commit_of(name, names[revision])}
        content = commits[names[revision]].get(path)
        if content is None:
            return self.answer(404, {**commit, "X-Error-Code": "EntryNotFound"})
        digest = hashlib.sha256(content).hexdigest()
        if digest in self.server.objects:
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            return self.answer(302, {**commit, **linked, "Location": f"{self.server.store}/objects/{digest}"})
        self.answer(200, {**commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content)

    def do_PUT(self) -> None:
        self.server.paths.append(self.path)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.objects[self.path.rpartition("/")[2]] = content
        self.answer(200)

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunks()
        if self.path == "/api/validate-yaml":
            return self.say({"errors": [], "warnings": []})
        if not self.token():
            return self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            said = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
            if name in self.server.repositories:
                return self.say({**said, "error": "You already created this model repo"}, 409)
            self.server.repositories[name] = [{}]
            if "private" in (asked.get("visibility"), *(key for key in asked if asked[key] is True)):
                self.server.private.add(name)
            return self.say(said)
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self.say(
                {"transfer": "basic", "objects": [self.place(item) for item in json.loads(body)["objects"]]}
            )
        if self.path == "/verify":
            asked = json.loads(body)
            content = self.server.objects.get(asked["oid"], b"")
            whole = hashlib.sha256(content).hexdigest() == asked["oid"] and len(content) == asked["size"]
            return self.say({}, 200 if whole else 422)
        found = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit)/main", self.path)
        if found is None:
            return self.answer(404)
        commits = self.server.repositories[found[1]]
        if found[2] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {
                path: "lfs" if self.server.large and path.endswith(".safetensors") else "regular" for path in paths
            }
            files = [{"path": path, "uploadMode": mode} for path, mode in modes.items()]
            return self.say({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        lines = [json.loads(line) for line in body.splitlines()]
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        added |= {
            line["value"]["path"]: self.server.objects[line["value"]["oid"]]
            for line in lines
            if line["key"] == "lfsFile"
        }
        commits.append({**commits[-1], **added})
        oid = commit_of(found[1], len(commits) - 1)
        self.say({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{found[1]}/commit/{oid}"})

    def place(self, item: dict[str, Any]) -> dict[str, Any]:
        """Where a large file goes; nowhere if it is there."""
        if item["oid"] in self.server.objects:
            return item
        upload, verify = f"{self.server.url}/objects/{item['oid']}", f"{self.server.url}/verify"
        return {**item, "actions": {"upload": {"href": upload}, "verify": {"href": verify}}}

    def token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def refused(self) -> bool:
        return self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}")

    def chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def say(self, content: Any, status: int = 200) -> None:
        self.answer(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self, status: int, headers: dict[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) - self.server.cut] if "/resolve/" in self.path else content)

    def log_message(self, *arguments: Any) -> None:
        pass


def commit_of(name: str, index: int) -> str:
    """The hash of a commit."""
    return hashlib.sha1(f"{name} {index}".encode()).hexdigest()


@contextmanager
def tiny_hub() -> Iterator[TinyHub]:
    """Runs in a thread."""
    server = TinyHub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
