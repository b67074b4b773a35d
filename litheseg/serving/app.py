"""The ASGI application: routes, the page, middleware and the OpenAPI document.

The middleware refuses foreign host names, counts answers and sets security headers. When a client is refused while it
still sends, some of its bytes are read and discarded first: otherwise the connection would be reset and the refusal
lost. An unexpected error is logged with a number and becomes a 500 with only that number.

The page is a few static files of the package; its content security policy lets it load only these and connect only to
its own server. There is no interactive documentation page: the usual ones load scripts from elsewhere.

Usage:
    >>> app = create_app(Service(Predictor("model.safetensors"), ServerSettings(), name="model"))
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from functools import lru_cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litheseg import __version__
from litheseg.serving import routes
from litheseg.serving.hosts import Hosts
from litheseg.serving.metrics import Metrics
from litheseg.serving.problems import PROBLEM_TYPE, Problem
from litheseg.serving.schemas import ProblemDetails
from litheseg.serving.service import Abandoned, Service

__all__ = ["create_app"]

_log = logging.getLogger(__name__)

_DESCRIPTION = """Label every pixel of an image.

Send the image as the field `image` of a multipart form; options go into the query. Without `width` and `budget_ms`
the server takes the widest network that its load allows. Refusals are problem details (RFC 9457) whose `type` names
the code."""

_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 64 << 20  # seconds and bytes that a refused client's upload is still read

_PAGE_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _PAGE_POLICY,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}

_page = APIRouter(include_in_schema=False)


def create_app(service: Service, host: str = "127.0.0.1") -> FastAPI:
    """The application of one service; `service.prepare()` makes it ready.

    Args:
        service: the model and its limits.
        host: the address that it will be reached at, as for `running.Server`; other names are refused (see `hosts`).

    Raises:
        LithesegError: a name in `service.settings.allow_hosts` that is none.
    """
    app = FastAPI(title="litheseg", version=__version__, description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.service = service
    locked = [Depends(routes.check_key)] if service.settings.api_key else []
    app.include_router(routes.api, dependencies=locked)
    app.include_router(routes.metrics, dependencies=locked)
    app.include_router(routes.health)
    app.include_router(_page)
    app.add_exception_handler(Problem, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_parameters)
    app.add_exception_handler(HTTPException, _refuse_path)
    app.add_middleware(_Middleware, metrics=service.metrics, hosts=Hosts(host, service.settings.allow_hosts))
    app.openapi = lambda: _openapi(app, service)  # type: ignore[method-assign]
    return app


@_page.get("/")
async def _index() -> Response:
    return await _page_file("index.html")


@_page.get("/page/{name}")
async def _page_file(name: str) -> Response:
    content = _page_files().get(name)
    if content is None:
        raise Problem("not-found", f"the page has no file '{name[:80]}'")
    return Response(content, media_type=_PAGE_TYPES[name.rpartition(".")[2]], headers=_PAGE_HEADERS)


@lru_cache(maxsize=1)
def _page_files() -> dict[str, bytes]:
    folder = files("litheseg.serving") / "page"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _PAGE_TYPES}


def _problem_response(problem: Problem) -> JSONResponse:
    headers = {"Cache-Control": "no-store", **problem.headers}
    return JSONResponse(problem.content, problem.status, headers, PROBLEM_TYPE)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    request.app.state.service.metrics.refused.labels(error.code).inc()
    return _problem_response(error)


async def _refuse_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Of what stands in the location only the first two count: where, and the parameter's name.
    messages = {".".join(map(str, entry["loc"][:2])): entry["msg"] for entry in reversed(error.errors())}
    errors = [{"where": where, "message": message} for where, message in messages.items()]
    detail = "; ".join(f"{where}: {message}" for where, message in messages.items())
    return await _refuse(request, Problem("invalid-parameter", detail, errors=errors))


async def _refuse_path(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}; /openapi.json lists what there is"
    codes = {404: "not-found", 405: "method-not-allowed", 415: "not-a-form"}
    code = codes.get(error.status_code, "malformed-upload" if error.status_code < 500 else "internal-error")
    return await _refuse(request, Problem(code, detail, headers=error.headers))


def _openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    """What FastAPI makes of the routes, with the schema of refusals and the widths that this model has."""
    if app.openapi_schema:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schema = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
    document["components"]["schemas"] |= schema.pop("$defs", {}) | {"ProblemDetails": schema}
    operations = (operation for path in document["paths"].values() for operation in path.values())
    for parameter in (entry for operation in operations for entry in operation.get("parameters", ())):
        if parameter["name"] == "width":
            parameter["schema"] = {"type": "number", "enum": list(service.predictor.widths)}
    app.openapi_schema = document
    return document


class _Middleware:
    """Surrounds every request; pure ASGI, so that bodies stream through it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: Hosts) -> None:
        self.app, self.metrics, self.hosts = app, metrics, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange, headers = _Exchange(scope, receive, send), Headers(scope=scope)
        try:
            self.hosts.check(scope["method"], host=headers.get("host"), origin=headers.get("origin"))
            await self.app(scope, exchange.receive, exchange.send)
        except Problem as problem:  # the application answers its own
            self.metrics.refused.labels(problem.code).inc()
            await _problem_response(problem)(scope, exchange.receive, exchange.send)
        except (Abandoned, ClientDisconnect):
            self.metrics.abandoned.inc()
        except Exception:
            number = uuid.uuid4().hex[:12]
            _log.exception("request %s (%s %s) failed", number, scope["method"], _path(scope))
            if not exchange.status:
                detail = f"the server's log says more under number {number}; the same request may work again"
                await _problem_response(Problem("internal-error", detail))(scope, exchange.receive, exchange.send)
        if exchange.status:
            self.metrics.requests.labels(_path(scope), str(exchange.status)).inc()


def _path(scope: Scope) -> str:
    """The route's path; one name for all that fit no route."""
    return str(getattr(scope.get("route"), "path", "other"))


class _Exchange:
    """One request's messages, in both directions.

    What a refused client still sends is read for a while. If there is more, the client is answered and the connection
    closed, since the start of the next request on it is unknown.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        headers = Headers(scope=scope)
        self._has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._asked_first = "expect" in headers  # "100-continue": the client sends nothing before it gets 100
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
        if self.status != 408:
            await self._linger()
        if self._has_body and not self._complete:
            self._cut_off = True
            headers["Connection"] = "close"

    def _still_sending(self) -> bool:
        return self._has_body and not self._complete and (self._begun or not self._asked_first)

    async def _linger(self) -> None:
        """Read and throw away what the client still sends, within limits."""
        received = 0
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while self._still_sending() and received < _LINGER_BYTES:
                    received += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return
