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
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from litheseg.data.formats.label_studio import image_name, painted_region, read_tasks, regions_of
from litheseg.errors import DataError
from litheseg.labelling.tools import Chosen, CorrectedExport, class_index, write_once
from litheseg.masks.classes import IGNORE_INDEX, Classes
from litheseg.masks.run_lengths import encode_brush

__all__ = ["LabelStudioExport", "write_label_studio"]

_KEY = "litheseg_id"  # under a task's data; Label Studio returns it unchanged
_SERVED = "/data/local-files/?d="
_BRUSH = "brushlabels"


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
        for place, task in enumerate(read_tasks(path), 1):
            key = task["data"].get(_KEY)
            if not isinstance(key, str) or not key:
                key = PurePosixPath(image_name(task, f"{path}: task {place}")).with_suffix("").as_posix()
            results = regions_of(task)
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
            mask, label = painted_region(region, size, where)
            result[mask] = class_index(label, classes, where)
        return result
