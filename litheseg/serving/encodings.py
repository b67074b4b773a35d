"""A mask in the forms that clients ask for: palette PNG, overlay, polygons, COCO run lengths.

Each function takes (image, mask, classes), uint8 H W 3 and uint8 H W, and gives bytes that are ready to send. The shape
of the JSON is declared in `schemas`.

Usage:
    >>> body = mask_png(image, mask, classes)
    >>> body = polygons_json(image, mask, classes, tolerance=1, min_area=16)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from litheseg.errors import DataError
from litheseg.masks.classes import Classes
from litheseg.masks.pictures import OverlayStyle, encode_mask, overlay
from litheseg.masks.polygons import simplify, trace
from litheseg.masks.run_lengths import class_runs, coco_string
from litheseg.serving.problems import Problem

__all__ = ["OVERLAY_TYPES", "Encode", "mask_png", "overlay_picture", "polygons_json", "rle_json"]

OVERLAY_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

Encode = Callable[[np.ndarray, np.ndarray, Classes], bytes]

_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "png": {"compress_level": 3},
    "jpeg": {"quality": 88},
    "webp": {"quality": 85, "method": 2},
}
_LONGEST = {"jpeg": 65_500, "webp": 16_383}  # pixels a side that the formats can hold


def mask_png(image: np.ndarray, mask: np.ndarray, classes: Classes) -> bytes:
    """An 8-bit palette PNG: its pixels are class indices, its palette their colours."""
    return encode_mask(mask, classes)


def overlay_picture(
    image: np.ndarray, mask: np.ndarray, classes: Classes, *, format: str, style: OverlayStyle
) -> bytes:
    """The image under the colours of its classes, without a legend; formats as in `OVERLAY_TYPES`.

    Raises:
        Problem: "invalid-parameter" for a side that the format cannot hold.
    """
    longest = max(mask.shape)
    if longest > _LONGEST.get(format, longest):
        detail = f"{format} holds no side of {longest} pixels; ask for format=png"
        raise Problem("invalid-parameter", detail, errors=[{"where": "query.format", "message": detail}])
    buffer = BytesIO()
    Image.fromarray(overlay(image, mask, classes, style)).save(buffer, format, **_OPTIONS[format])
    return buffer.getvalue()


def polygons_json(image: np.ndarray, mask: np.ndarray, classes: Classes, *, tolerance: float, min_area: int) -> bytes:
    """`schemas.Polygons`: the parts of every class.

    Outlines may be simplified by `tolerance` pixels, and parts and holes of fewer than `min_area` pixels are left out.

    Raises:
        Problem: "mask-too-detailed".
    """

    def segment(k: int) -> dict[str, Any]:
        polygons = [
            {
                "area": part.area,
                "exterior": simplify(part.exterior, tolerance).tolist(),
                "holes": [simplify(hole, tolerance).tolist() for hole in part.holes],
            }
            for part in parts[k]
        ]
        return {"area": int((mask == k).sum()), "polygons": polygons}

    try:
        parts = {int(k): trace(mask == k, min_area) for k in np.unique(mask)}
    except DataError as error:
        raise Problem("mask-too-detailed", f"{error}: raise min_area, or use /v1/segment/rle") from error
    return _json(mask, classes, {k: segment(k) for k in parts})


def rle_json(image: np.ndarray, mask: np.ndarray, classes: Classes, *, compressed: bool) -> bytes:
    """`schemas.RunLengths`: one COCO segmentation a class, with counts as COCO's string or as a list of numbers."""

    def segment(k: int, runs: np.ndarray) -> dict[str, Any]:
        inside = mask == k
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        box = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1  # x, y, width, height
        counts = coco_string(runs, mask.shape) if compressed else runs.tolist()
        return {
            "area": int(runs[1::2].sum()),
            "bbox": [int(value) for value in box],
            "iscrowd": 0,
            "segmentation": {"size": list(mask.shape), "counts": counts},
        }

    return _json(mask, classes, {k: segment(k, runs) for k, runs in class_runs(mask).items()})


def _json(mask: np.ndarray, classes: Classes, segments: Mapping[int, Mapping[str, Any]]) -> bytes:
    named = [{"category_id": k, "category": classes.names[k], **segment} for k, segment in segments.items()]
    content = {"image": {"height": mask.shape[0], "width": mask.shape[1]}, "segments": named}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
