"""From shapes, as tools that draw objects store them, to a collection.

Usage:
    >>> leaf = Drawn("a", "train", Path("a.jpg"), Path("a.json"), [polygon_region(0, [[(1, 1), (9, 1), (5, 8)]])])
    >>> shapes_collection([leaf], {"leaf": None}, "later", Tally()).classes.names
    ('leaf',)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from litheseg.data.formats.collection import Annotated, Collection, Tally
from litheseg.data.formats.regions import Overlap, Region, paint
from litheseg.errors import DataError, listed
from litheseg.masks.classes import IGNORE_INDEX, Classes, Color
from litheseg.runtime.storage import NamedBytes

__all__ = ["Drawn", "shapes_collection"]


@dataclass(frozen=True)
class Drawn:
    """An image and its shapes.

    Attributes:
        id: as of `Annotated`.
        split: likewise.
        image: likewise.
        where: the labels' file.
        regions: their labels are places in the list of names.
        size: (H, W) that they were drawn at; None for that of the image.
    """

    id: str
    split: str
    image: Path | Callable[[], NamedBytes]
    where: Path
    regions: Sequence[Region]
    size: tuple[int, int] | None = None


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
    used = sorted({region.label for image in drawn for region in image.regions} - {IGNORE_INDEX})
    if not used and not missing:
        left_out = f" ({'; '.join(tally.notes())})" if tally.counts else ""
        raise DataError(f"the labels hold no shape that makes a mask{left_out}; draw or export polygons or masks")
    unused = [name for index, name in enumerate(names) if index not in used]
    if unused:
        tally.add(f"classes without a shape left out ({listed(unused)})", drawn[0].where if drawn else "?", len(unused))
    rank = {index: place for place, index in enumerate(used)} | {IGNORE_INDEX: IGNORE_INDEX}
    kept = [(name, color) for index, (name, color) in enumerate(names.items()) if index in rank]
    own = Classes.from_names([name for name, _ in kept])
    colors = tuple(color or spare for (_, color), spare in zip(kept, own.colors, strict=True))
    items = []
    for image in drawn:
        regions = [replace(region, label=rank[region.label]) for region in image.regions]
        labels = partial(_painted, regions, image.size, overlap)
        items.append(Annotated(image.id, image.split, image.image, labels, image.where))
    return Collection(Classes(own.names, colors), tuple(items), False, tuple(missing), tally.notes())


def _painted(
    regions: Sequence[Region], stated: tuple[int, int] | None, overlap: Overlap, size: tuple[int, int]
) -> np.ndarray:
    return paint(regions, stated or size, overlap)
