"""The JSON that the server sends, as Pydantic models: the OpenAPI document is made from them.

Usage:
    >>> RunLengths.model_validate_json(body).segments[0].category
    'road'
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

__all__ = [
    "CocoSegment",
    "CocoSegmentation",
    "Health",
    "ImageSize",
    "LimitsInfo",
    "ModelClass",
    "ModelInfo",
    "ModelWidth",
    "ParameterError",
    "PolygonModel",
    "PolygonSegment",
    "Polygons",
    "ProblemDetails",
    "RunLengths",
    "Status",
]

Point = Annotated[list[int], Field(min_length=2, max_length=2, description="x, y in pixels, on pixel corners")]
Ring = Annotated[list[Point], Field(min_length=3, description="the last point joins the first")]


class ImageSize(BaseModel):
    """Size of the (upright) image, in pixels."""

    height: int
    width: int


class PolygonModel(BaseModel):
    """One connected part of a class."""

    area: int = Field(description="pixels, before simplification")
    exterior: Ring
    holes: list[Ring]


class PolygonSegment(BaseModel):
    """All parts of a class."""

    category_id: int = Field(description="class index, as in the mask")
    category: str
    area: int = Field(description="pixels of the class, small parts included")
    polygons: list[PolygonModel]


class Polygons(BaseModel):
    """A mask as polygons."""

    image: ImageSize
    segments: list[PolygonSegment]


class CocoSegmentation(BaseModel):
    """COCO run lengths: columns first, zeros first."""

    size: Annotated[list[int], Field(min_length=2, max_length=2, description="height, width")]
    counts: str | list[int] = Field(description="COCO's string, or the lengths themselves")


class CocoSegment(BaseModel):
    """A class, as in a COCO annotation."""

    category_id: int = Field(description="class index, as in the mask")
    category: str
    area: int
    bbox: Annotated[list[int], Field(min_length=4, max_length=4, description="x, y, width, height")]
    iscrowd: int
    segmentation: CocoSegmentation


class RunLengths(BaseModel):
    """A mask as COCO run lengths."""

    image: ImageSize
    segments: list[CocoSegment]


class ModelClass(BaseModel):
    """What a value in the mask means."""

    index: int
    name: str
    color: str = Field(description="#rrggbb")
    background: bool = Field(description="by its name; overlays leave it clear")


class ModelWidth(BaseModel):
    """What a width costs, and what it is worth."""

    width: float
    p50_ms: float | None = Field(description="work without waiting, over the latest requests on this machine")
    p95_ms: float | None
    measured: int = Field(description="requests behind these numbers")
    clients: int | None = Field(
        description="at once, each with one image after the other, that get 95 of 100 answers within target_ms; "
        "measured before the first request, with images of the size 'sample'"
    )
    images_per_second: float | None = Field(description="that so many clients get labelled together")
    miou: float | None = Field(description="on the model's own evaluation data, in [0, 1]")
    worst_class: str | None = Field(description="the class with the lowest IoU there")
    worst_iou: float | None = Field(description="its IoU, in [0, 1]")


class LimitsInfo(BaseModel):
    """What is taken."""

    max_upload: int = Field(description="bytes")
    max_pixels: int
    timeout: float = Field(description="seconds")
    queue: int = Field(description="requests that may wait")


class ModelInfo(BaseModel):
    """The model behind this server."""

    name: str
    version: str = Field(description="of litheseg")
    runtime: str = Field(description="torch, onnxruntime or openvino")
    classes: list[ModelClass]
    widths: list[ModelWidth] = Field(description="widest first")
    sample: ImageSize = Field(description="of the images that were measured before the first request")
    input: ImageSize | None = Field(description="what images are resized to for the network; null: not at all")
    fixed_width: float | None = Field(description="of requests that name none; null: chosen by load")
    target_ms: float = Field(description="what 95 of 100 answers are to stay below where the width is chosen by load")
    limits: LimitsInfo
    example: bool = Field(description="whether /v1/example draws a street that fits the classes")


class Status(BaseModel):
    """How busy the server is."""

    ready: bool
    width: float = Field(description="what a request gets now that names none")
    waiting: int
    running: int


class Health(BaseModel):
    """Alive, or ready."""

    status: str


class ParameterError(BaseModel):
    """One parameter that is wrong."""

    where: str
    message: str


class ProblemDetails(BaseModel):
    """A refusal (RFC 9457)."""

    type: str = Field(description="urn:litheseg:CODE, one of those listed with each status")
    title: str
    status: int
    detail: str = Field(description="what was wrong with this request, and the remedy")
    errors: list[ParameterError] = Field(default_factory=list)
