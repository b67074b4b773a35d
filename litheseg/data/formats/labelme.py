"""LabelMe: a JSON file beside each image (https://github.com/wkentaro/labelme).

Polygons, rectangles, circles and masks are painted in their order, as LabelMe's own converters do; lines and points
make no mask. The label `__ignore__` is ignored, `_background_` is background. Classes are in the order of `labels.txt`
if it is there, else of their names. An image that is not there is taken from the JSON file, where it is kept in it.

Usage:
    >>> detect(Path("data/leaves"))
    '60 files such as a.json'
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from litheseg.data.formats.collection import Collection, ImportOptions, Tally
from litheseg.data.formats.files import (
    ImageFiles,
    base_folder,
    below,
    image_id,
    label_files,
    read_json,
    sniff,
    split_in,
)
from litheseg.data.formats.regions import bitmap_region, ellipse, rectangle
from litheseg.data.formats.shapes import Drawn, NamedShape, outlined, shapes_collection
from litheseg.errors import DataError
from litheseg.progress import track
from litheseg.runtime.storage import NamedBytes

__all__ = ["detect", "read"]

_IGNORE = "__ignore__"
_LOOKED_AT = 50  # files
_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, IndexError, binascii.Error, OSError)


def detect(source: Path) -> str:
    """How many files there are."""
    files = label_files(source, ".json")
    first = next((path for path in files[:_LOOKED_AT] if _is_labelme(path)), None)
    return f"{len(files)} files such as {first.name}" if first else ""


def read(source: Path, options: ImportOptions) -> Collection:
    """All files.

    Raises:
        DataError: files that are damaged, or hold no shape that makes a mask.
    """
    images, tally, missing = ImageFiles(options.images or base_folder(source)), Tally(), list[str]()
    drawn = list[Drawn]()
    for path in track(label_files(source, ".json", options.labels), "reading labels"):
        if not _is_labelme(path):
            tally.add("other .json files left out", path)
            continue
        content = read_json(path)
        try:
            size = (int(content["imageHeight"]), int(content["imageWidth"]))
            shapes = [shape for entry in content["shapes"] if (shape := _shape(entry, size, path, tally)) is not None]
        except (DataError, *_DAMAGED) as error:
            raise DataError(f"{path}: no file as LabelMe writes them ({error}); save it there again") from error
        name, split = str(content.get("imagePath") or path.stem), split_in(below(source, path)) or "train"
        image: Any = images.find(name, path, split)
        if image is None and content.get("imageData"):
            image = partial(_embedded, path)
        if image is None:
            missing.append(f"{name} (of {path.name})")
        else:
            drawn.append(Drawn(image_id(below(source, path), split), split, image, path, shapes, size))
    taken = {entry.image for entry in drawn}
    lone = [path for path in images.all() if path not in taken]
    if lone:
        tally.add("images without a .json file left out", lone[0], len(lone))
    names = {name for entry in drawn for name, _ in entry.shapes if name is not None}
    return shapes_collection(drawn, dict.fromkeys(_in_order(source, names)), options.overlap or "later", tally, missing)


def _is_labelme(path: Path) -> bool:
    text = sniff(path)
    return all(f'"{key}"' in text for key in ("shapes", "imagePath", "imageHeight"))


def _in_order(source: Path, used: set[str]) -> list[str]:
    """Classes in the order of `labels.txt`, or else of their names."""
    path = base_folder(source) / "labels.txt"
    lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    order = [name for line in lines if (name := line.strip()) in used]
    return list(dict.fromkeys([*order, *sorted(used)]))


def _embedded(path: Path) -> NamedBytes:
    """The image that a file holds."""
    try:
        return NamedBytes(base64.b64decode(read_json(path)["imageData"]), str(path))
    except _DAMAGED as error:
        raise DataError(f"{path}: the image in it is damaged ({error!r}); save it in LabelMe again") from error


def _shape(entry: Mapping[str, Any], size: tuple[int, int], path: Path, tally: Tally) -> NamedShape | None:
    kind, label = entry.get("shape_type") or "polygon", None if entry["label"] == _IGNORE else str(entry["label"])
    points = [(float(x), float(y)) for x, y in entry["points"]]
    if kind == "mask":
        with Image.open(io.BytesIO(base64.b64decode(entry["mask"]))) as picture:
            inside = np.asarray(picture.convert("L")) > 0
        return label, bitmap_region(inside, top=int(points[0][1]), left=int(points[0][0]))
    if kind == "rectangle":
        points = rectangle(*points[0], *points[1])
    elif kind == "circle":
        radius = math.dist(points[0], points[1])
        points = ellipse(*points[0], radius, radius)
    elif kind != "polygon":
        tally.add("lines and points left out", path)
        return None
    region = outlined([points], path, tally, size)
    return None if region is None else (label, region)
