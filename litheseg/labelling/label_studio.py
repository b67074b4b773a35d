"""Label Studio: tasks with brush pre-annotations to import, and its JSON export to read back.

Written are ``tasks.json`` (an image and a "prediction" each, a brush region per class), ``config.xml`` (the project's
labelling interface: a brush and a polygon tool for every class) and ``images/``. Label Studio serves the images itself
when its document root is the folder (``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``); see its pages "Import pre-annotated
data", "Local storage" and "Label Studio task format". Brush regions are run lengths (`masks.run_lengths`): masks come
back exactly; polygons are filled (`masks.polygons`).

Of several annotations of a task the one marked as ground truth counts, else the last one; skipped ones never do. Later
regions lie over earlier ones.

Usage:
    >>> write_label_studio(chosen, classes, "labelled/label-studio", version="model.safetensors at width 0.5")
    >>> with LabelStudioExport(Path("project-1.json")) as export:
    ...     labels = export.labels(export.keys[0], classes, (360, 480))
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from litheseg.errors import DataError
from litheseg.labelling.tools import Chosen, CorrectedExport, class_index, write_once
from litheseg.masks.classes import IGNORE_INDEX, Classes
from litheseg.masks.polygons import fill
from litheseg.masks.run_lengths import decode_brush, encode_brush

__all__ = ["LabelStudioExport", "write_label_studio"]

_KEY = "litheseg_id"  # under a task's data; Label Studio returns it unchanged
_SERVED = "/data/local-files/?d="
_BRUSH, _POLYGON = "brushlabels", "polygonlabels"
_AGAIN = "export the project as 'JSON'"


def write_label_studio(
    chosen: Sequence[Chosen], classes: Classes, folder: str | Path, *, version: str, force: bool = False
) -> Path:
    """Write what a Label Studio project needs.

    Args:
        chosen: images and masks.
        classes: names and colours.
        folder: where ``tasks.json``, ``config.xml`` and ``images/`` go.
        version: of the model, shown beside its predictions.
        force: replace what exists.

    Returns:
        The path of ``tasks.json``.

    Raises:
        DataError: an image or mask that cannot be read, or a file that would change.
        LithesegError: it cannot be written.
    """
    folder = Path(folder)
    tasks = []
    for item in chosen:
        name = f"images/{item.key}{item.image.suffix}"
        with write_once(folder / name, force) as draft:
            shutil.copyfile(item.image, draft)
        prediction = {"model_version": version, "result": _regions(item.labels(classes), classes)}
        tasks.append({"data": {"image": _SERVED + quote(name), _KEY: item.key}, "predictions": [prediction]})
    with write_once(folder / "config.xml", force) as draft:
        draft.write_text(_config(classes), encoding="utf-8")
    with write_once(folder / "tasks.json", force) as draft:
        draft.write_text(json.dumps(tasks), encoding="utf-8")
    return folder / "tasks.json"


def _config(classes: Classes) -> str:
    labels = [
        f'    <Label value={quoteattr(name)} background="#{red:02x}{green:02x}{blue:02x}"/>'
        for name, (red, green, blue) in zip(classes.names, classes.colors, strict=True)
    ]
    groups = [
        line
        for tag, name in (("BrushLabels", "brush"), ("PolygonLabels", "polygon"))
        for line in (f'  <{tag} name="{name}" toName="image">', *labels, f"  </{tag}>")
    ]
    image = '  <Image name="image" value="$image" zoom="true" zoomControl="true"/>'
    return "\n".join(["<View>", image, *groups, "</View>", ""])


def _regions(labels: np.ndarray, classes: Classes) -> list[dict[str, Any]]:
    """One brush region for each class that an image holds."""
    height, width = labels.shape
    return [
        {
            "id": f"class-{index}",
            "type": _BRUSH,
            "from_name": "brush",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encode_brush(labels == index), _BRUSH: [classes.names[index]]},
        }
        for index in np.unique(labels).tolist()
        if index != IGNORE_INDEX
    ]


class LabelStudioExport(CorrectedExport):
    """A project's export as "JSON".

    Args:
        path: the file.

    Raises:
        DataError: no such file, or one of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.colors = {}
        self._results: dict[str, list[Mapping[str, Any]]] = {}
        left_out = []
        for place, task in enumerate(_tasks(path), 1):
            key = self._key(task, place)
            results = _regions_of(task)
            if key in self._results or key in left_out:
                raise DataError(f"{path}: task {place}: the image '{key}' occurs twice; remove one of its tasks")
            if results:
                self._results[key] = results
            else:
                left_out.append(key)
        self.keys = tuple(sorted(self._results))
        self.left_out = tuple(sorted(left_out))

    @staticmethod
    def detects(path: Path) -> bool:
        """Whether the file looks like one."""
        return path.suffix.lower() == ".json"

    def image(self, key: str) -> tuple[str, bytes] | None:
        """See `CorrectedExport.image`; Label Studio's JSON holds none."""
        return None

    def labels(self, key: str, classes: Classes, size: tuple[int, int]) -> np.ndarray:
        """See `CorrectedExport.labels`."""
        result = np.full(size, IGNORE_INDEX, np.uint8)
        for region in self._results[key]:
            where = f"{self.path}: image '{key}', region '{region.get('id', '?')}'"
            try:
                mask, label = _painted(region, size)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise DataError(
                    f"{where}: no region as Label Studio writes them ({error!r}); {_AGAIN} again"
                ) from error
            result[mask] = class_index(label, classes, where)
        return result

    def _key(self, task: Mapping[str, Any], place: int) -> str:
        """The image's path without ending, from our own entry or its URL."""
        data = task["data"]
        key = data.get(_KEY)
        if isinstance(key, str) and key:
            return key
        addresses = [data.get("image"), *data.values()]
        address = next((value for value in addresses if isinstance(value, str) and value.strip()), None)
        if address is None:
            raise DataError(f"{self.path}: task {place} names no image; {_AGAIN} again")
        parts = urlsplit(address)
        local = parse_qs(parts.query).get("d")
        return PurePosixPath((local[0] if local else unquote(parts.path)).lstrip("/")).with_suffix("").as_posix()


def _tasks(path: Path) -> list[Mapping[str, Any]]:
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; give the file that Label Studio exported") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged or no JSON ({error}); {_AGAIN} again") from error
    shaped = isinstance(tasks, list) and all(
        isinstance(task, dict)
        and isinstance(task.get("data"), dict)
        and isinstance(task.get("annotations", task.get("predictions")), list)
        for task in tasks
    )
    if not shaped or not tasks:
        raise DataError(f"{path} is no list of tasks with annotations; {_AGAIN} (not JSON-MIN, COCO, ...)")
    return tasks


def _regions_of(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
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
