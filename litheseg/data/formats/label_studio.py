"""Label Studio's export "JSON": a list of tasks, each with the regions that were drawn on an image.

Brush regions are run lengths (`masks.run_lengths`), polygons are filled. Of several annotations of a task the one
marked as ground truth counts, else the last one; skipped ones never do. Later regions lie over earlier ones. Tasks
without regions are left out. Classes are in the order of their names: the export does not list them.

Usage:
    >>> detect(Path("data/project-1.json"))
    'project-1.json'
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from litheseg.data.formats.collection import Collection, ImportOptions, Tally
from litheseg.data.formats.files import (
    ImageFiles,
    base_folder,
    below,
    image_id,
    label_files,
    largest,
    read_json,
    sniff,
    split_in,
)
from litheseg.data.formats.regions import Region, Window
from litheseg.data.formats.shapes import Drawn, shapes_collection
from litheseg.errors import DataError
from litheseg.masks.polygons import fill
from litheseg.masks.run_lengths import decode_brush
from litheseg.progress import track

__all__ = ["detect", "image_name", "painted_region", "read", "read_tasks", "regions_of"]

_BRUSH, _POLYGON = "brushlabels", "polygonlabels"
_AGAIN = "export the project as 'JSON'"


def detect(source: Path) -> str:
    """The first file that looks like an export."""
    return next((below(source, path) for path in _files(source)), "")


def read(source: Path, options: ImportOptions) -> Collection:
    """All tasks.

    Raises:
        DataError: files that are damaged, or regions that make no mask.
    """
    images, tally, missing = ImageFiles(options.images or base_folder(source)), Tally(), list[str]()
    drawn, names = list[Drawn](), set[str]()
    for path in track(_files(source, options.labels), "reading labels"):
        for place, task in enumerate(read_tasks(path), 1):
            name = image_name(task, f"{path}: task {place}")
            image, regions = images.find(name, path), regions_of(task)
            if not regions:
                tally.add("images that nobody drew on left out", name)
            elif image is None:
                missing.append(f"{name} (of {path.name})")
            else:
                split = split_in(name) or split_in(path.name) or "train"
                shapes = [_shape(region, f"{path}: image '{name}'") for region in regions]
                names |= {label for label, _ in shapes}
                drawn.append(Drawn(image_id(image.name, split), split, image, path, shapes))
    return shapes_collection(drawn, dict.fromkeys(sorted(names)), options.overlap or "later", tally, missing)


def _files(source: Path, pattern: str = "") -> list[Path]:
    files = ((path, sniff(path)) for path in largest(label_files(source, ".json", pattern)))
    return [
        path
        for path, text in files
        if text.lstrip("\ufeff \r\n\t").startswith("[") and '"data"' in text and '"annotations"' in text
    ]


def _shape(region: Mapping[str, Any], where: str) -> tuple[str, Region]:
    """A region's label, and where it is."""
    where = f"{where}, region '{region.get('id', '?')}'"
    stated = (region.get("original_height"), region.get("original_width"))
    if not all(isinstance(edge, int) and edge > 0 for edge in stated):
        raise DataError(f"{where}: without the size of its image; {_AGAIN} again")
    mask, label = painted_region(region, (int(stated[0] or 0), int(stated[1] or 0)), where)
    # Packed, since all regions of an export are in memory at once.
    packed, shape = np.packbits(mask), mask.shape

    def draw(size: tuple[int, int]) -> Window:
        if size != shape:
            raise DataError(f"{where}: drawn on {shape[0]}x{shape[1]} (HxW), but the image is {size[0]}x{size[1]}")
        return 0, 0, np.unpackbits(packed, count=shape[0] * shape[1]).reshape(shape).astype(bool)

    return label, Region(float(mask.sum()), draw)


def image_name(task: Mapping[str, Any], where: str) -> str:
    """The path of a task's image, from its address.

    Raises:
        DataError: it names none.
    """
    data = task["data"]
    addresses = [data.get("image"), *data.values()]
    address = next((value for value in addresses if isinstance(value, str) and value.strip()), None)
    if address is None:
        raise DataError(f"{where} names no image; {_AGAIN} again")
    parts = urlsplit(address)
    local = parse_qs(parts.query).get("d")
    return (local[0] if local else unquote(parts.path)).lstrip("/")


def read_tasks(path: Path) -> list[Mapping[str, Any]]:
    """The tasks of an export.

    Raises:
        DataError: no such file, or one of another format.
    """
    tasks = read_json(path)
    shaped = isinstance(tasks, list) and all(
        isinstance(task, dict)
        and isinstance(task.get("data"), dict)
        and isinstance(task.get("annotations", task.get("predictions")), list)
        for task in tasks
    )
    if not shaped or not tasks:
        raise DataError(f"{path} is no list of tasks with annotations; {_AGAIN} (not JSON-MIN, COCO, ...)")
    found: list[Mapping[str, Any]] = tasks
    return found


def regions_of(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The regions of the annotation that counts; empty if there is none."""
    valid = [
        entry
        for entry in task.get("annotations", [])
        if isinstance(entry, dict) and not entry.get("was_cancelled") and isinstance(entry.get("result"), list)
    ]
    if not valid:
        return []
    # Sorting is stable: the last one marked as ground truth, else the last one.
    best = sorted(valid, key=lambda entry: bool(entry.get("ground_truth")))[-1]
    # Choices, texts and ratings belong to the image as a whole and draw nothing.
    return [region for region in best["result"] if isinstance(region, dict) and _draws(region)]


def _draws(region: Mapping[str, Any]) -> bool:
    kind = str(region.get("type", ""))
    return kind.endswith("labels") or kind in ("brush", "polygon", "rectangle", "ellipse", "keypoint")


def painted_region(region: Mapping[str, Any], size: tuple[int, int], where: str) -> tuple[np.ndarray, str]:
    """Where a region is (bool H x W), and its label.

    Raises:
        DataError: another size, a shape that makes no mask, or damaged data; names `where`.
    """
    try:
        return _painted(region, size)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"{where}: no region as Label Studio writes them ({error!r}); {_AGAIN} again") from error


def _painted(region: Mapping[str, Any], size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """Where the region is (bool H x W), and its label."""
    kind, value = region["type"], region["value"]
    height, width = size
    stated = (region.get("original_height", height), region.get("original_width", width))
    if stated != size:
        raise DataError(f"drawn on {stated[0]}x{stated[1]} (HxW), but the image is {height}x{width}; give that image")
    if region.get("image_rotation", 0):
        raise DataError("drawn on a rotated image; turn the image back in Label Studio and draw it again")
    if kind not in (_BRUSH, _POLYGON):
        raise DataError(f"a shape of type '{kind}' makes no mask; draw with the tags BrushLabels or PolygonLabels")
    if len(value[kind]) != 1:
        raise DataError(f"{len(value[kind])} labels instead of one; choose one class")
    if kind == _BRUSH:
        return decode_brush(value["rle"], height, width), str(value[kind][0])
    corners = [(float(x) * width / 100, float(y) * height / 100) for x, y in value["points"]]
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise DataError("a polygon of fewer than three points; remove it or draw it again")
    return fill(corners, height, width), str(value[kind][0])
