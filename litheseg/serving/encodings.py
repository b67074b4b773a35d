"""A mask in the forms that clients ask for: palette PNG, overlay, polygons, COCO run lengths.

Each takes (image, mask, classes) and gives bytes that are ready to send, made in the worker that made the mask; the
shape of the JSON is declared in `schemas`. It knows no HTTP.

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
from litheseg.masks.polygons import Polygon, simplify, trace
from litheseg.masks.run_lengths import class_runs, coco_string
from litheseg.runtime.files import overlay
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
    picture = Image.fromarray(mask)
    picture.putpalette(classes.palette().ravel().tolist())
    return _saved(picture, "png", bits=8)


def overlay_picture(image: np.ndarray, mask: np.ndarray, classes: Classes, *, format: str, alpha: float) -> bytes:
    """The image under the colours of its classes.

    Args:
        image: uint8 H W 3.
        mask: uint8 H W.
        classes: their colours.
        format: a key of `OVERLAY_TYPES`.
        alpha: weight of the colours, in [0, 1].

    Raises:
        Problem: "invalid-parameter" for a side that the format cannot hold.
    """
    longest = max(mask.shape)
    if longest > _LONGEST.get(format, longest):
        detail = f"{format} holds no side of {longest} pixels; ask for format=png"
        raise Problem("invalid-parameter", detail, errors=[{"where": "query.format", "message": detail}])
    return _saved(Image.fromarray(overlay(image, mask, classes, alpha)), format)


def polygons_json(image: np.ndarray, mask: np.ndarray, classes: Classes, *, tolerance: float, min_area: int) -> bytes:
    """`schemas.Polygons`: the parts of every class.

    Args:
        image: uint8 H W 3.
        mask: uint8 H W.
        classes: their names.
        tolerance: pixels by which an outline may be simplified; 0 for exact ones.
        min_area: parts and holes of fewer pixels are left out.

    Raises:
        Problem: "mask-too-detailed".
    """
    try:
        parts = {int(k): trace(mask == k, min_area) for k in np.unique(mask)}
    except DataError as error:
        raise Problem("mask-too-detailed", f"{error}: raise min_area, or use /v1/segment/rle") from error
    segments = [
        _category(k, classes)
        | {"area": int((mask == k).sum()), "polygons": [_polygon(part, tolerance) for part in polygons]}
        for k, polygons in parts.items()
    ]
    return _json(mask, segments)


def rle_json(image: np.ndarray, mask: np.ndarray, classes: Classes, *, compressed: bool) -> bytes:
    """`schemas.RunLengths`: one COCO segmentation a class.

    Args:
        image: uint8 H W 3.
        mask: uint8 H W.
        classes: their names.
        compressed: counts as COCO's string instead of a list of numbers.
    """
    segments = []
    for k, runs in class_runs(mask).items():
        counts = coco_string(runs, (mask.shape[0], mask.shape[1])) if compressed else runs.tolist()
        entry = {"area": int(runs[1::2].sum()), "bbox": _box(mask == k), "iscrowd": 0}
        segmentation = {"size": list(mask.shape), "counts": counts}
        segments.append(_category(k, classes) | entry | {"segmentation": segmentation})
    return _json(mask, segments)


def _category(index: int, classes: Classes) -> dict[str, Any]:
    return {"category_id": index, "category": classes.names[index]}


def _polygon(part: Polygon, tolerance: float) -> dict[str, Any]:
    return {
        "area": part.area,
        "exterior": simplify(part.exterior, tolerance).tolist(),
        "holes": [simplify(hole, tolerance).tolist() for hole in part.holes],
    }


def _box(inside: np.ndarray) -> list[int]:
    """x, y, width, height around the true pixels (at least one)."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return [int(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]


def _json(mask: np.ndarray, segments: list[dict[str, Any]]) -> bytes:
    content = {"image": {"height": mask.shape[0], "width": mask.shape[1]}, "segments": segments}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


def _saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format, **_OPTIONS[format], **options)
    return buffer.getvalue()
