"""The application: routes, refusals as problem details, and an OpenAPI document that says all of it.

There is no interactive documentation page: the usual ones load scripts from elsewhere. It knows no sockets: see
`running`.

Usage:
    >>> app = create_app(Service(Predictor("model.safetensors"), ServerSettings(), name="model"))
"""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from litheseg import __version__
from litheseg.serving import routes
from litheseg.serving.gate import Gate, problem_response
from litheseg.serving.hosts import Hosts
from litheseg.serving.problems import Problem, problem_for_status
from litheseg.serving.schemas import ProblemDetails
from litheseg.serving.service import Service
from litheseg.serving.site import site

__all__ = ["create_app"]

_DESCRIPTION = """Label every pixel of an image.

Send the image as the field `image` of a multipart form; options go into the query. Without `width` and `budget_ms`
the server takes the widest network that its load allows. Refusals are problem details (RFC 9457) whose `type` names
the code."""


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
    app.include_router(site)
    app.add_exception_handler(Problem, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_parameters)
    app.add_exception_handler(HTTPException, _refuse_path)
    app.add_middleware(Gate, metrics=service.metrics, hosts=Hosts(host, service.settings.allow_hosts))
    app.openapi = lambda: _openapi(app, service)  # type: ignore[method-assign]
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    request.app.state.service.metrics.refused(error.code)
    return problem_response(error)


async def _refuse_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Of what stands in the location only the first two count: where, and the parameter's name.
    messages = {".".join(map(str, entry["loc"][:2])): entry["msg"] for entry in reversed(error.errors())}
    errors = [{"where": where, "message": message} for where, message in messages.items()]
    detail = "; ".join(f"{where}: {message}" for where, message in messages.items())
    return await _refuse(request, Problem("invalid-parameter", detail, errors=errors))


async def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}; /openapi.json lists what there is"
    return await _refuse(request, problem_for_status(error.status_code, detail, error.headers))


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
