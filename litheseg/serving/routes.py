"""The paths of the server: segmentation in four forms, the model, and what operators ask for.

They read parameters, hand images to the `Service` and dress its answers; options stand in the query, the image is the
only field of the form. The page's files are in `site`. It knows nothing of queues and widths.

Usage:
    >>> app.include_router(api)
"""

from __future__ import annotations

import hmac
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from litheseg import __version__
from litheseg.serving import encodings
from litheseg.serving.encodings import OVERLAY_TYPES, Encode
from litheseg.serving.metrics import METRICS_TYPE
from litheseg.serving.pace import Ask
from litheseg.serving.problems import PROBLEMS, Problem, documented
from litheseg.serving.schemas import (
    Health,
    ImageSize,
    LimitsInfo,
    ModelClass,
    ModelInfo,
    ModelWidth,
    Polygons,
    RunLengths,
    Status,
)
from litheseg.serving.service import EncodedMask, Service
from litheseg.serving.uploads import FORM, read_upload

__all__ = ["api", "check_key", "health", "metrics"]

api = APIRouter(prefix="/v1")
health = APIRouter(tags=["operation"])
metrics = APIRouter(tags=["operation"])

_SEGMENT = [code for code in PROBLEMS if code not in ("not-found", "method-not-allowed", "mask-too-detailed")]
_READ = ["unknown-host", "unauthorised", "internal-error"]
_HEADERS = {
    "Litheseg-Width": {"description": "Width that the network ran at.", "schema": {"type": "number"}},
    "Litheseg-Milliseconds": {"description": "Decoding, network and encoding.", "schema": {"type": "number"}},
    "Litheseg-Queue-Milliseconds": {"description": "Waiting before that.", "schema": {"type": "number"}},
    "Server-Timing": {"description": "The same, part by part.", "schema": {"type": "string"}},
}


Width = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, le=600_000, allow_inf_nan=False)]


async def service_of(request: Request) -> Service:
    """The service that the application was made for."""
    service: Service = request.app.state.service
    return service


async def ask_of(
    service: Annotated[Service, Depends(service_of)],
    width: Annotated[
        Width | SkipJsonSchema[None], Query(description="One of the model's; default: what the load allows.")
    ] = None,
    budget_ms: Annotated[
        Milliseconds | SkipJsonSchema[None],
        Query(description="The widest that should answer within this time, waiting included; not with width."),
    ] = None,
) -> Ask:
    """The width that a request names, or its budget."""
    return service.check(Ask(width, budget_ms))


async def check_key(
    service: Annotated[Service, Depends(service_of)],
    given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> None:
    """Refuse who does not send the key."""
    expected, sent = service.settings.api_key or "", given.credentials if given else ""
    # The comparison takes as long wherever the first difference is.
    if not hmac.compare_digest(sent.encode(), expected.encode()):
        detail = "send the header 'Authorization: Bearer KEY' with the server's key"
        raise Problem("unauthorised", detail, headers={"WWW-Authenticate": "Bearer"})


Services = Annotated[Service, Depends(service_of)]
Asks = Annotated[Ask, Depends(ask_of)]


def _segmenting(name: str, content: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What the four segmenting operations have in common."""
    codes = _SEGMENT + (["mask-too-detailed"] if name == "polygons" else [])
    success = {"description": "The mask.", "headers": _HEADERS, "content": content}
    return {
        "path": f"/segment/{name}",
        "tags": ["segment"],
        "openapi_extra": {"requestBody": FORM},
        "responses": {200: success | options, **documented(codes)},
        "response_class": Response,
    }


def _binary(*types: str) -> dict[str, Any]:
    return {kind: {"schema": {"type": "string", "format": "binary"}} for kind in types}


@api.post(summary="Mask as a palette PNG", **_segmenting("mask", _binary("image/png")))
async def segment_mask(request: Request, ask: Asks) -> Response:
    """Pixel values are class indices, the palette holds their colours; the size is the (upright) image's."""
    return await _answer(request, ask, encodings.mask_png, "image/png")


@api.post(summary="Image under class colours", **_segmenting("overlay", _binary(*OVERLAY_TYPES.values())))
async def segment_overlay(
    request: Request,
    ask: Asks,
    format: Annotated[Literal["png", "jpeg", "webp"], Query(description="Of the answer.")] = "png",
    alpha: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False, description="Weight of the colours.")] = 0.5,
) -> Response:
    """The image with its classes painted over it."""
    encode = partial(encodings.overlay_picture, format=format, alpha=alpha)
    return await _answer(request, ask, encode, OVERLAY_TYPES[format])


@api.post(summary="Polygons", **_segmenting("polygons", {}, model=Polygons))
async def segment_polygons(
    request: Request,
    ask: Asks,
    tolerance: Annotated[
        float, Query(ge=0, le=100, allow_inf_nan=False, description="Pixels by which outlines are simplified.")
    ] = 1.0,
    min_area: Annotated[int, Query(ge=1, le=1 << 31, description="Smaller parts and holes are left out.")] = 16,
) -> Response:
    """The parts of each class, with holes, along pixel edges."""
    encode = partial(encodings.polygons_json, tolerance=tolerance, min_area=min_area)
    return await _answer(request, ask, encode, "application/json")


@api.post(summary="COCO run lengths", **_segmenting("rle", {}, model=RunLengths))
async def segment_rle(
    request: Request,
    ask: Asks,
    compressed: Annotated[bool, Query(description="Counts as COCO's string; otherwise as a list.")] = True,
) -> Response:
    """One segmentation a class, as COCO's tools read it."""
    return await _answer(request, ask, partial(encodings.rle_json, compressed=compressed), "application/json")


@api.get("/model", tags=["model"], summary="The model", responses=documented(_READ))
async def model(service: Services) -> ModelInfo:
    """Classes and colours, widths and what each takes on this machine, and what is allowed."""
    header, settings = service.predictor.header, service.settings
    colors = ("#" + bytes(color).hex() for color in header.classes.colors)
    named = zip(header.classes.names, colors, strict=True)
    size, (height, wide) = service.predictor.size, service.sample_size
    return ModelInfo(
        name=service.name,
        version=__version__,
        runtime=service.predictor.runtime,
        classes=[ModelClass(index=k, name=name, color=color) for k, (name, color) in enumerate(named)],
        widths=[_width(service, width) for width in service.predictor.widths],
        sample=ImageSize(height=height, width=wide),
        input=ImageSize(height=size[0], width=size[1]) if size else None,
        fixed_width=service.pace.fixed,
        target_ms=settings.target_ms,
        limits=LimitsInfo(
            max_upload=settings.max_upload,
            max_pixels=settings.max_pixels,
            timeout=settings.timeout,
            queue=settings.queue,
        ),
        example=service.has_example,
    )


@api.get("/status", tags=["model"], summary="The load", responses=documented(_READ))
async def status(service: Services) -> Status:
    """How busy the server is, and the width that it gives now."""
    workers = service.workers
    return Status(ready=service.ready, width=service.pace.width, waiting=workers.waiting, running=workers.running)


@api.get(
    "/example",
    tags=["model"],
    summary="A drawn street",
    response_class=Response,
    responses={
        200: {"description": "A street scene.", "content": _binary("image/png")},
        **documented([*_READ, "not-found", "invalid-parameter", "busy", "stopping"]),
    },
)
async def example(
    service: Services, seed: Annotated[int, Query(ge=0, le=(1 << 31) - 1, description="Which one.")] = 0
) -> Response:
    """A procedural street to try the model on; for models of street scenes only."""
    return Response(await service.example(seed), media_type="image/png", headers={"Cache-Control": "no-store"})


@health.get("/healthz", summary="Alive?", responses=documented(["unknown-host"]))
async def healthz() -> Health:
    """Answers as long as the process does."""
    return Health(status="alive")


@health.get("/readyz", summary="Ready?", responses=documented(["unknown-host", "starting", "stopping"]))
async def readyz(service: Services) -> Health:
    """Whether requests are taken: not while the model is loaded, and not during shutdown."""
    service.check_open()
    return Health(status="ready")


@metrics.get(
    "/metrics",
    summary="For Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented(["unknown-host", "unauthorised"]),
    },
)
async def prometheus(service: Services) -> Response:
    """Requests by status, latency by width, queue and width."""
    return Response(service.metrics.text(), media_type=METRICS_TYPE)


async def _answer(request: Request, ask: Ask, encode: Encode, media_type: str) -> Response:
    service: Service = request.app.state.service
    settings = service.settings
    with service.receiving():
        data = await read_upload(request, max_bytes=settings.max_upload, seconds=settings.upload_timeout)
    outcome = await service.segment(data, ask, encode, gone=partial(_gone, request))
    return Response(outcome.body, media_type=media_type, headers=_timing(outcome))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timing(outcome: EncodedMask) -> dict[str, str]:
    parts = ("queue", "decode", "predict", "encode")
    return {
        "Cache-Control": "no-store",
        "Litheseg-Width": f"{outcome.width:g}",
        "Litheseg-Milliseconds": f"{outcome.work_ms:.2f}",
        "Litheseg-Queue-Milliseconds": f"{outcome.queue_ms:.2f}",
        "Server-Timing": ", ".join(f"{part};dur={getattr(outcome, part + '_ms'):.2f}" for part in parts),
    }


def _width(service: Service, width: float) -> ModelWidth:
    timing, holds = service.pace.timing(width), service.capacity(width)
    scores = service.predictor.header.metrics.get(f"{width:g}", {})
    return ModelWidth(
        width=width,
        p50_ms=timing.p50 if timing else None,
        p95_ms=timing.p95 if timing else None,
        measured=timing.count if timing else 0,
        clients=holds.clients if holds else None,
        images_per_second=holds.per_second if holds else None,
        miou=scores.get("miou") if isinstance(scores, dict) else None,
    )
