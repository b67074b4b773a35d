"""From shapes, as tools that draw objects store them, to a collection.

Usage:
    >>> tally = Tally()
    >>> triangle = outlined([[(1, 1), (9, 1), (5, 8)]], "a.json", tally, (16, 16))
    >>> leaf = Drawn("a", "train", Path("a.jpg"), Path("a.json"), [("leaf", triangle)])
    >>> shapes_collection([leaf], {"leaf": None}, "later", tally).classes.names
    ('leaf',)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.data.formats.collection import Annotated, Collection, Tally
from litheseg.data.formats.files import StoredFile
from litheseg.data.formats.regions import Overlap, Region, corners, paint, polygon_region, reaches_out
from litheseg.errors import DataError, listed
from litheseg.masks.classes import IGNORE_INDEX, Classes, Color

__all__ = ["Drawn", "NamedShape", "outlined", "shapes_collection"]

NamedShape = tuple[str | None, Region]
"""The name of a class, None for what is to be ignored, and where it is."""


@dataclass(frozen=True)
class Drawn:
    """An image and its shapes.

    Attributes:
        id: as of `Annotated`.
        split: likewise.
        image: likewise.
        where: the labels' file.
        shapes: in the order of the file.
        size: (H, W) that they were drawn at; None for that of the image.
    """

    id: str
    split: str
    image: StoredFile
    where: Path
    shapes: Sequence[NamedShape]
    size: tuple[int, int] | None = None


def outlined(
    rings: Iterable[Any], where: object, tally: Tally, size: tuple[int, int] | None = None, *, fractions: bool = False
) -> Region | None:
    """A shape of polygons; those without an area are counted and left out, and so is what reaches beyond the image.

    Args:
        rings: of each polygon the corners, as `corners` takes them.
        where: for the tally.
        tally: counts.
        size: (H, W) of the image; None if it is not known.
        fractions: corners are in fractions of width and height.

    Returns:
        None if no polygon has an area.

    Raises:
        DataError: what are no corners.
    """
    found = [corners(ring) for ring in rings]
    kept = [ring for ring in found if ring]
    if len(kept) < len(found):
        tally.add("outlines without an area left out", where, len(found) - len(kept))
    if reaches_out(kept, (1, 1), margin=0.01) if fractions else size and reaches_out(kept, size):
        tally.add("shapes that reach beyond their image, cut off there", where)
    return polygon_region(kept, fractions=fractions) if kept else None


def shapes_collection(
    drawn: Sequence[Drawn],
    names: Mapping[str, Color | None],
    overlap: Overlap,
    tally: Tally,
    missing: Sequence[str] = (),
) -> Collection:
    """All images, with those classes that a shape has.

    Args:
        drawn: the images.
        names: of the classes, with colours where there are some; in the order that they are to have.
        overlap: which of two shapes counts.
        tally: what was left out.
        missing: files that are not there.

    Raises:
        DataError: there is no shape.
    """
    used = {name for image in drawn for name, _ in image.shapes} - {None}
    if not used and not missing:
        left_out = f" ({'; '.join(tally.notes())})" if tally.counts else ""
        raise DataError(f"the labels hold no shape that makes a mask{left_out}; draw or export polygons or masks")
    unused = [name for name in names if name not in used]
    if unused:
        tally.add(f"classes without a shape left out ({listed(unused)})", drawn[0].where if drawn else "?", len(unused))
    kept = {name: color for name, color in names.items() if name in used}
    own = Classes.from_names(kept)
    colors = tuple(color or spare for color, spare in zip(kept.values(), own.colors, strict=True))
    place: dict[str | None, int] = {name: index for index, name in enumerate(kept)}
    place[None] = IGNORE_INDEX
    items = []
    for image in drawn:
        regions = [(place[name], region) for name, region in image.shapes]
        labels = partial(_painted, regions, image.size, overlap)
        items.append(Annotated(image.id, image.split, image.image, labels, image.where))
    return Collection(Classes(own.names, colors), tuple(items), False, tuple(missing), tally.notes())


def _painted(
    regions: Sequence[tuple[int, Region]], stated: tuple[int, int] | None, overlap: Overlap, size: tuple[int, int]
) -> np.ndarray:
    return paint(regions, stated or size, overlap)
