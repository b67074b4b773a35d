"""A server in a thread, and a process that runs one until it is stopped by a signal.

On SIGTERM or Ctrl-C new requests are refused with 503, those that were taken are finished, then connections are
closed. A second signal does not wait. Connections that idle are kept longer than clients keep them, so that the client
is the one to close: were it the server, a request on its way would meet a closed connection.

Usage:
    >>> with Server(create_app(service), port=0) as server:
    ...     print(server.url)
"""

from __future__ import annotations

import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType, TracebackType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from litheseg.errors import LithesegError
from litheseg.serving.app import create_app
from litheseg.serving.service import Service

__all__ = ["Server", "run_until_stopped"]

_BACKLOG = 512
_START_SECONDS = 30.0
_KEEP_ALIVE = 75  # seconds; httpx keeps idle connections for 5, aiohttp for 15, proxies for 60


class _Connection(H11Protocol):
    """Does not close for idleness while a request lies in the socket, arrived since the loop last looked."""

    def timeout_keep_alive_handler(self) -> None:
        """See `uvicorn`; what has arrived is read next, and the connection lives on."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.transport.get_extra_info("socket"), selectors.EVENT_READ)
            arrived = selector.select(0)
        if not arrived:
            super().timeout_keep_alive_handler()


class Server:
    """An application on a socket, served by a thread while the context lasts.

    Args:
        app: any ASGI application.
        host: address to listen on.
        port: 0 for a free one.
        grace: seconds that open connections get at the end.

    Raises:
        LithesegError: the address cannot be listened on.
    """

    def __init__(self, app: ASGIApp, host: str = "127.0.0.1", port: int = 0, grace: float = 10.0) -> None:
        try:
            resolved = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = resolved[0]
            self._socket = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        except OSError as error:
            reason = error.strerror or error
            raise LithesegError(f"cannot listen on {host}:{port} ({reason}); choose another --port") from error
        self.host, self.port = host, int(self._socket.getsockname()[1])
        config = uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            loop="asyncio",
            timeout_keep_alive=_KEEP_ALIVE,
            backlog=_BACKLOG,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, round(grace)),
        )
        self._server = uvicorn.Server(config)
        run = partial(self._server.run, [self._socket])
        self._thread = threading.Thread(target=run, name="litheseg-http", daemon=True)

    @property
    def url(self) -> str:
        """Where it answers; a server on all addresses answers on this machine's own too."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def __enter__(self) -> Server:
        """Start, and return when it answers."""
        self._thread.start()
        end = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                raise LithesegError(f"the server on {self.url} did not start; its log says why")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the socket, let answers out, end the thread."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def run_until_stopped(service: Service, host: str, port: int, *, grace: float, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        service: made ready here.
        host: address to listen on.
        port: likewise.
        grace: seconds that requests which were taken get to finish.
        announce: called with the URL when requests are taken.

    Raises:
        LithesegError: the address cannot be listened on, or the model cannot be run.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with Server(create_app(service, host), host, port, grace) as server:
            service.prepare()
            announce(server.url)
            stop.wait()
            service.workers.stop()
            service.workers.join(grace)
    finally:
        service.workers.close()
        for number, handler in before.items():
            signal.signal(number, handler)
