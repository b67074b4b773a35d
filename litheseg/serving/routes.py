"""The paths of the server: segmentation in four forms, the model, and what operators ask for.

They read parameters, hand images to the `Service` and make responses of its answers; options stand in the query, the
image is the only field of the form.

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
from litheseg.bundle.verdicts import recorded_iou, worst_class
from litheseg.errors import WidthError
from litheseg.masks.colours import is_background
from litheseg.masks.pictures import OverlayStyle
from litheseg.serving import encodings
from litheseg.serving.encodings import OVERLAY_TYPES, Encode
from litheseg.serving.images import FIELD, read_upload
from litheseg.serving.metrics import METRICS_TYPE
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
from litheseg.serving.service import Service
from litheseg.serving.widths import WidthRequest

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
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FIELD],
                "properties": {FIELD: {"type": "string", "format": "binary", "description": "JPEG, PNG, WebP, ..."}},
                "additionalProperties": False,
            },
            "encoding": {FIELD: {"contentType": "image/png, image/jpeg, image/webp"}},
        }
    },
}

Width = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(gt=0, le=600_000, allow_inf_nan=False)]


async def _service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Services = Annotated[Service, Depends(_service_of)]


async def _width_request(
    service: Services,
    width: Annotated[
        Width | SkipJsonSchema[None], Query(description="One of the model's; default: what the load allows.")
    ] = None,
    budget_ms: Annotated[
        Milliseconds | SkipJsonSchema[None],
        Query(description="The widest that should answer within this time, waiting included; not with width."),
    ] = None,
) -> WidthRequest:
    where, message = "query.budget_ms", "give width or budget_ms, not both"
    if width is None or budget_ms is None:
        try:
            return WidthRequest(None if width is None else service.predictor.check_width(width), budget_ms)
        except WidthError as error:
            where, message = "query.width", str(error)
    raise Problem("invalid-parameter", message, errors=[{"where": where, "message": message}])


WidthRequests = Annotated[WidthRequest, Depends(_width_request)]


async def check_key(
    service: Services, given: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
) -> None:
    """Refuse requests without the server's key."""
    expected, sent = service.settings.api_key or "", given.credentials if given else ""
    # The comparison takes as long wherever the first difference is.
    if not hmac.compare_digest(sent.encode(), expected.encode()):
        detail = "send the header 'Authorization: Bearer KEY' with the server's key"
        raise Problem("unauthorised", detail, headers={"WWW-Authenticate": "Bearer"})


def _segmenting(name: str, content: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What the four segmenting operations have in common."""
    codes = _SEGMENT + (["mask-too-detailed"] if name == "polygons" else [])
    success = {"description": "The mask.", "headers": _HEADERS, "content": content}
    return {
        "path": f"/segment/{name}",
        "tags": ["segment"],
        "openapi_extra": {"requestBody": _FORM},
        "responses": {200: success | options, **documented(codes)},
        "response_class": Response,
    }


def _binary(*types: str) -> dict[str, Any]:
    return {kind: {"schema": {"type": "string", "format": "binary"}} for kind in types}


@api.post(summary="Mask as a palette PNG", **_segmenting("mask", _binary("image/png")))
async def segment_mask(request: Request, width: WidthRequests) -> Response:
    """Pixel values are class indices, the palette holds their colours; the size is the (upright) image's."""
    return await _segment(request, width, encodings.mask_png, "image/png")


@api.post(summary="Image under class colours", **_segmenting("overlay", _binary(*OVERLAY_TYPES.values())))
async def segment_overlay(
    request: Request,
    width: WidthRequests,
    format: Annotated[Literal["png", "jpeg", "webp"], Query(description="Of the answer.")] = "png",
    alpha: Annotated[float, Query(ge=0, le=1, allow_inf_nan=False, description="Weight of the colours.")] = 0.5,
) -> Response:
    """The image with its classes painted over it; a background (by its name) stays clear."""
    encode = partial(encodings.overlay_picture, format=format, style=OverlayStyle(alpha, legend=False))
    return await _segment(request, width, encode, OVERLAY_TYPES[format])


@api.post(summary="Polygons", **_segmenting("polygons", {}, model=Polygons))
async def segment_polygons(
    request: Request,
    width: WidthRequests,
    tolerance: Annotated[
        float, Query(ge=0, le=100, allow_inf_nan=False, description="Pixels by which outlines are simplified.")
    ] = 1.0,
    min_area: Annotated[int, Query(ge=1, le=1 << 31, description="Smaller parts and holes are left out.")] = 16,
) -> Response:
    """The parts of each class, with holes, along pixel edges."""
    encode = partial(encodings.polygons_json, tolerance=tolerance, min_area=min_area)
    return await _segment(request, width, encode, "application/json")


@api.post(summary="COCO run lengths", **_segmenting("rle", {}, model=RunLengths))
async def segment_rle(
    request: Request,
    width: WidthRequests,
    compressed: Annotated[bool, Query(description="Counts as COCO's string; otherwise as a list.")] = True,
) -> Response:
    """One segmentation a class, as COCO's tools read it."""
    return await _segment(request, width, partial(encodings.rle_json, compressed=compressed), "application/json")


async def _segment(request: Request, width: WidthRequest, encode: Encode, media_type: str) -> Response:
    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    service: Service = request.app.state.service
    limits = service.settings
    with service.receiving():
        data = await read_upload(request, max_bytes=limits.max_upload, seconds=limits.upload_timeout)
    answer = await service.segment(data, width, encode, disconnected)
    parts = ("queue", "decode", "predict", "encode")
    headers = {
        "Cache-Control": "no-store",
        "Litheseg-Width": f"{answer.width:g}",
        "Litheseg-Milliseconds": f"{answer.work_ms:.2f}",
        "Litheseg-Queue-Milliseconds": f"{answer.queue_ms:.2f}",
        "Server-Timing": ", ".join(f"{part};dur={getattr(answer, part + '_ms'):.2f}" for part in parts),
    }
    return Response(answer.body, media_type=media_type, headers=headers)


@api.get("/model", tags=["model"], summary="The model", responses=documented(_READ))
async def model(service: Services) -> ModelInfo:
    """Classes and colours, widths and what each takes on this machine, and what is allowed."""
    predictor, limits, sample = service.predictor, service.settings, service.sample_size
    classes = predictor.classes
    named = enumerate(zip(classes.names, classes.colors, strict=True))
    return ModelInfo(
        name=service.name,
        version=__version__,
        runtime=predictor.runtime,
        classes=[
            ModelClass(index=k, name=name, color="#" + bytes(color).hex(), background=is_background(name))
            for k, (name, color) in named
        ],
        widths=[_model_width(service, width) for width in predictor.widths],
        sample=ImageSize(height=sample[0], width=sample[1]),
        input=ImageSize(height=predictor.size[0], width=predictor.size[1]) if predictor.size else None,
        fixed_width=service.chooser.fixed,
        target_ms=limits.target_ms,
        limits=LimitsInfo(
            max_upload=limits.max_upload, max_pixels=limits.max_pixels, timeout=limits.timeout, queue=limits.queue
        ),
        example=service.has_example,
    )


def _model_width(service: Service, width: float) -> ModelWidth:
    timing, load = service.chooser.timing(width), service.sustained(width)
    header = service.predictor.header
    scores = header.metrics.get(f"{width:g}", {})
    iou = recorded_iou(header).get(width)
    worst = worst_class(header.classes.names, iou) if iou else None
    return ModelWidth(
        width=width,
        p50_ms=timing.p50 if timing else None,
        p95_ms=timing.p95 if timing else None,
        measured=timing.count if timing else 0,
        clients=load.clients if load else None,
        images_per_second=load.per_second if load else None,
        miou=scores.get("miou") if isinstance(scores, dict) else None,
        worst_class=worst[0] if worst else None,
        worst_iou=worst[1] if worst else None,
    )


@api.get("/status", tags=["model"], summary="The load", responses=documented(_READ))
async def status(service: Services) -> Status:
    """How busy the server is, and the width that it gives now."""
    workers = service.workers
    return Status(ready=service.ready, width=service.chooser.width, waiting=workers.waiting, running=workers.running)


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
    workers = service.workers
    text = service.metrics.text(waiting=workers.waiting, running=workers.running, width=service.chooser.width)
    return Response(text, media_type=METRICS_TYPE)
