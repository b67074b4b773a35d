"""CVAT for images 1.1: one XML file for all images (https://docs.cvat.ai, "CVAT for images").

Polygons, masks, boxes and ellipses are filled, as in CVAT's own masks; lines and points are left out. A mask is run
lengths within its box, row by row beginning with pixels outside. Shapes of a higher `z_order` cover others, and of one
order later ones do. Images on which nobody drew are left out. The zip of "Segmentation mask" is in `voc`.

Usage:
    >>> detect(Path("data/annotations.xml"))
    'annotations.xml'
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from litheseg.data.formats.collection import Collection, ImportOptions, Tally
from litheseg.data.formats.files import ImageFiles, base_folder, below, image_id, label_files, sniff, split_in
from litheseg.data.formats.regions import Region, bitmap_region, ellipse, rectangle, turned
from litheseg.data.formats.shapes import Drawn, outlined, shapes_collection
from litheseg.errors import DataError
from litheseg.masks.classes import Color
from litheseg.progress import track

__all__ = ["detect", "read"]

_SHAPES = ("polygon", "mask", "box", "ellipse")
_DAMAGED = (KeyError, TypeError, ValueError, IndexError)


def detect(source: Path) -> str:
    """The first file of this format."""
    return next((below(source, path) for path in _files(source)), "")


def read(source: Path, options: ImportOptions) -> Collection:
    """All files.

    Raises:
        DataError: files that are damaged, or hold no shape that makes a mask.
    """
    images, tally, missing = ImageFiles(options.images or base_folder(source)), Tally(), list[str]()
    colors: dict[str, Color | None] = {}
    drawn = list[Drawn]()
    for path in track(_files(source, options.labels), "reading labels"):
        root = _root(path)
        for label in root.iterfind("./meta//labels/label"):
            colors.setdefault(str(label.findtext("name")), _color(label.findtext("color") or ""))
        for entry in root.iterfind("image"):
            try:
                size = (int(entry.attrib["height"]), int(entry.attrib["width"]))
                shapes = _shapes(entry, size, path, tally)
            except (DataError, *_DAMAGED) as error:
                where = f"{path}: image '{entry.get('name')}'"
                raise DataError(f"{where}: no image as CVAT writes them ({error}); export it again") from error
            name = entry.attrib["name"]
            split = split_in(entry.get("subset") or "") or split_in(name) or split_in(path.name) or "train"
            found = images.find(name, path, split)
            colors |= {label: None for label, _ in shapes if label not in colors}
            if not shapes:
                tally.add("images that nobody drew on left out", name)
            elif found is None:
                missing.append(f"{name} (of {path.name})")
            else:
                drawn.append(Drawn(image_id(name, split), split, found, path, shapes, size))
    return shapes_collection(drawn, colors, options.overlap or "later", tally, missing)


def _files(source: Path, pattern: str = "") -> list[Path]:
    files = ((path, sniff(path)) for path in label_files(source, ".xml", pattern))
    return [path for path, text in files if "<annotations>" in text and "<image " in text]


def _root(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{path} is damaged or no XML ({error}); export it again") from error


def _color(text: str) -> Color | None:
    digits = text.removeprefix("#")
    try:
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        return None
    return red, green, blue


def _shapes(entry: ElementTree.Element, size: tuple[int, int], path: Path, tally: Tally) -> list[tuple[str, Region]]:
    """The shapes of an image, lowest first."""
    shapes = [shape for shape in entry if shape.tag in _SHAPES]
    others = [shape for shape in entry if shape.tag not in (*_SHAPES, "tag")]
    if others:
        tally.add("lines and points left out", path, len(others))
    found, where = [], f"{path}: {entry.get('name')}"
    for shape in sorted(shapes, key=lambda shape: int(shape.get("z_order") or 0)):
        region = _mask(shape) if shape.tag == "mask" else outlined([_outline(shape)], where, tally, size)
        if region is not None:
            found.append((shape.attrib["label"], region))
    return found


def _outline(shape: ElementTree.Element) -> list[tuple[float, float]]:
    value = shape.attrib
    if shape.tag == "polygon":
        pairs = [point.split(",") for point in value["points"].split(";")]
        return [(float(x), float(y)) for x, y in pairs]
    if shape.tag == "box":
        ring = rectangle(*(float(value[key]) for key in ("xtl", "ytl", "xbr", "ybr")))
    else:
        ring = ellipse(*(float(value[key]) for key in ("cx", "cy", "rx", "ry")))
    return turned(ring, float(value.get("rotation") or 0))


def _mask(shape: ElementTree.Element) -> Region:
    """Run lengths within a box, row by row, beginning with pixels outside."""
    height, width, top, left = (int(float(shape.attrib[key])) for key in ("height", "width", "top", "left"))
    runs = np.array([int(part) for part in shape.attrib["rle"].split(",")], np.int64)
    if runs.min() < 0 or runs.sum() != height * width:
        raise DataError(f"a mask of {runs.sum()} pixels in a box of {height}x{width} (HxW)")
    return bitmap_region(np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width), top, left)
