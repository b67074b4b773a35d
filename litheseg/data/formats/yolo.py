"""YOLO polygons: `data.yaml` beside `images/` and `labels/` (https://docs.ultralytics.com/datasets/segment).

`data.yaml` names the images of each split (a folder, a list file, or several of them, below `path`) and the classes.
The labels of `.../images/NAME.jpg` lie in `.../labels/NAME.txt`: for each shape a line `class x1 y1 x2 y2 ...`, as
fractions of width and height. An image without that file holds no object. The format has no order: of two shapes that
overlap the smaller one counts.

Usage:
    >>> detect(Path("data/leaves"))
    'data.yaml'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from litheseg.data.formats.collection import Collection, ImportOptions, Tally
from litheseg.data.formats.files import below, image_id, label_files
from litheseg.data.formats.regions import corners, reaches_out
from litheseg.data.formats.shapes import Drawn, NamedShape, outlined, shapes_collection
from litheseg.data.sources.base import IMAGE_SUFFIXES, find_images
from litheseg.errors import DataError, listed
from litheseg.progress import track

__all__ = ["detect", "read"]

_SPLITS = ("train", "val", "test")


def detect(source: Path) -> str:
    """A YAML file that names classes and images."""
    return next((below(source, path) for path, _ in _descriptions(source)), "")


def read(source: Path, options: ImportOptions) -> Collection:
    """The polygons of all splits.

    Raises:
        DataError: two descriptions, lines that are no polygons, classes that are not listed, or images that are absent.
    """
    found = [entry for entry in _descriptions(source, options.labels)]
    if len(found) > 1:
        raise DataError(
            f"{listed([path for path, _ in found])} describe data sets; give the one that is meant instead of the "
            "folder, or its name with --labels"
        )
    path, content = found[0]
    names, tally, missing = _names(path, content), Tally(), list[str]()
    images = {
        (split, image): _label_file(image)
        for split in _SPLITS
        for entry in _entries(content, split)
        for image in _images(path, content, entry, missing)
    }
    files = zip(images, track(list(images.values()), "reading labels"), strict=True)
    drawn = [
        Drawn(
            image_id(_under_images(image), split),
            split,
            image,
            labels if labels.exists() else image,
            _shapes(labels, names, tally),
        )
        for (split, image), labels in files
    ]
    return shapes_collection(drawn, dict.fromkeys(names), options.overlap or "smaller", tally, missing)


def _descriptions(source: Path, pattern: str = "") -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for path in [*label_files(source, ".yaml", pattern), *label_files(source, ".yml", pattern)]:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(content, dict) and "names" in content and any(split in content for split in _SPLITS):
            yield path, content


def _names(path: Path, content: Mapping[str, Any]) -> list[str]:
    names = content["names"]
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: 'names' must list the classes, or number them from 0")
    return [str(name) for name in names]


def _entries(content: Mapping[str, Any], split: str) -> Sequence[str]:
    """What the description says of a split: folders and lists."""
    given = content.get(split) or (content.get("valid") if split == "val" else None) or ()
    return [given] if isinstance(given, str) else [str(entry) for entry in given]


def _images(path: Path, content: Mapping[str, Any], entry: str, missing: list[str]) -> Iterator[Path]:
    """The image files of a folder or a list, which lies below `path`, or beside the description."""
    bases = [path.parent / str(content.get("path") or ""), path.parent]
    spellings = [entry, entry.removeprefix("../")]  # some tools write "../train/images" and mean "train/images"
    place = next((found for base in bases for name in spellings if (found := base / name).exists()), None)
    if place is None:
        missing.append(f"{entry} (of {path.name})")
    elif place.is_dir():
        yield from find_images(place, recursive=True).values()
    else:
        for line in filter(None, map(str.strip, place.read_text(encoding="utf-8").splitlines())):
            own = next((found for base in (place.parent, *bases) if (found := base / line).is_file()), None)
            if own is None:
                missing.append(f"{line} (of {place.name})")
            elif own.suffix.lower() in IMAGE_SUFFIXES:
                yield own


def _label_file(image: Path) -> Path:
    """In `labels/` instead of the last `images/`, or else beside the image."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _under_images(image: Path) -> str:
    parts = image.parts
    return "/".join(parts[len(parts) - parts[::-1].index("images") :]) if "images" in parts[:-1] else image.name


def _shapes(path: Path, names: Sequence[str], tally: Tally) -> list[NamedShape]:
    """The polygons of an image."""
    if not path.exists():
        return []
    shapes: list[NamedShape] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        fields, where = line.split(), f"{path}, line {number}"
        if not fields:
            continue
        if len(fields) == 5:
            tally.add("boxes left out", where)
            continue
        try:
            label = int(fields[0])
            ring = corners([float(field) for field in fields[1:]])
        except (ValueError, DataError) as error:
            raise DataError(f"{where}: no 'class x1 y1 x2 y2 x3 y3 ...' ({error}); correct it") from error
        if not 0 <= label < len(names):
            raise DataError(
                f"{where}: class {label}, but data.yaml names {len(names)}; add the name or correct the line"
            )
        if reaches_out([ring], (1, 1)):
            raise DataError(f"{where}: corners in pixels; they must be fractions of width and height")
        if (region := outlined([ring], where, tally, fractions=True)) is not None:
            shapes.append((names[label], region))
    return shapes
