"""A server of files on this machine that cuts, lies and refuses on request."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BODY = bytes(range(256)) * 4096


class FileServer(ThreadingHTTPServer):
    """Serves `files` by path, and `body` under every other; `cuts`: the bytes after which the next connections end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes | None] = {}
        self.body, self.etag, self.ranges = BODY, '"v1"', True
        self.cuts: list[int] = []
        self.codes: list[int] = []
        self.asked: list[Any] = []
        self.paths: list[str] = []
        self.root = f"http://127.0.0.1:{self.server_port}"
        self.url = f"{self.root}/data.bin"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server = self.server
        server.asked.append(self.headers.get("Range"))
        server.paths.append(self.path)
        body = server.files.get(self.path, server.body)
        if server.codes or body is None:
            self.send_error(server.codes.pop(0) if server.codes else 404)
            return
        start, match = 0, re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if match and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
            start = int(match[1])
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        rest = body[start:]
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: server.cuts.pop(0)] if server.cuts else rest)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def file_server() -> Iterator[FileServer]:
    """Runs in a thread."""
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
