"""What surrounds every request: foreign names refused, counting, security headers, refusals that arrive, errors inside.

Pure ASGI, so that bodies stream through it. Anything that nobody foresaw is logged with a number and becomes a JSON 500
with that number and nothing else; the service goes on. A client that is refused while it still sends gets some of its
bytes read and thrown away first: else the connection would be reset and the refusal lost. If there are more, it is
answered, and the connection is closed, since nobody can say where on it the next request begins. It knows no route.

Usage:
    >>> app.add_middleware(Gate, metrics=metrics, hosts=Hosts("127.0.0.1"))
"""

from __future__ import annotations

import asyncio
import logging
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litheseg.serving.hosts import Hosts
from litheseg.serving.metrics import Metrics
from litheseg.serving.problems import PROBLEM_TYPE, Problem
from litheseg.serving.service import Abandoned

__all__ = ["Gate", "problem_response"]

_log = logging.getLogger(__name__)

_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 64 << 20


def problem_response(problem: Problem) -> JSONResponse:
    """The refusal as a response."""
    headers = {"Cache-Control": "no-store", **problem.headers}
    return JSONResponse(problem.content(), problem.kind.status, headers, PROBLEM_TYPE)


class Gate:
    """The outermost middleware.

    Args:
        app: what it surrounds.
        metrics: where requests are counted.
        hosts: the names that are answered to.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: Hosts) -> None:
        self.app, self.metrics, self.hosts = app, metrics, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange, headers = _Exchange(scope, receive, send), Headers(scope=scope)
        try:
            self.hosts.check(scope["method"], host=headers.get("host"), origin=headers.get("origin"))
            await self.app(scope, exchange.receive, exchange.send)
        except Problem as problem:  # the application answers its own
            self.metrics.refused(problem.code)
            await problem_response(problem)(scope, exchange.receive, exchange.send)
        except (Abandoned, ClientDisconnect):
            self.metrics.abandoned()
        except Exception:
            await self._unforeseen(scope, exchange)
        if exchange.status:
            self.metrics.request(_path(scope), exchange.status)

    async def _unforeseen(self, scope: Scope, exchange: _Exchange) -> None:
        number = uuid.uuid4().hex[:12]
        _log.exception("request %s (%s %s) failed", number, scope["method"], _path(scope))
        if not exchange.status:
            detail = f"the server's log says more under number {number}; the same request may work again"
            await problem_response(Problem("internal-error", detail))(scope, exchange.receive, exchange.send)


class _Exchange:
    """One request's messages, in both directions."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._headers = Headers(scope=scope)
        self._begun = self._complete = self._cut_off = False
        self.status = 0  # until the response starts

    async def receive(self) -> Message:
        message = await self._receive()
        self._begun = True
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._cut_off and not message.get("more_body", False):
            # All of the answer is out before the connection ends; what still arrives then does not reset it.
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _start(self, message: Message) -> None:
        self.status, headers = message["status"], MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        if self.status != 408 and self._still_sending():
            await self._linger()
        if not self._complete and self._has_body():
            self._cut_off = True
            headers["Connection"] = "close"

    def _has_body(self) -> bool:
        return self._headers.get("content-length", "0") != "0" or "transfer-encoding" in self._headers

    def _still_sending(self) -> bool:
        # Who asked before sending ("Expect: 100-continue") and was not told to go on has sent nothing.
        asked = "expect" in self._headers and not self._begun
        return self._has_body() and not self._complete and not asked

    async def _linger(self) -> None:
        received = 0
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._still_sending() and received < _LINGER_BYTES:
                    received += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


def _path(scope: Scope) -> str:
    """The route's path; one name for all that fit no route."""
    return str(getattr(scope.get("route"), "path", "other"))
