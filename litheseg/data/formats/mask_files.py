"""Labels that lie in mask files: read by a scheme, which is drafted from their values where nobody wrote one.

Usage:
    >>> scheme, notes = scheme_of_masks(Path("data/leaves"), [Path("masks/a.png")], max_pixels=10**8)
    >>> labels = labelled_by(scheme, Path("masks/a.png"), max_pixels=10**8)
    >>> labels((480, 640)).dtype
    dtype('uint8')
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from litheseg.data.formats.class_lists import find_class_list
from litheseg.data.formats.drafting import count_values
from litheseg.data.formats.files import StoredFile, opened
from litheseg.masks.classes import LabelScheme
from litheseg.masks.reading import encode, read_image, read_raw_mask
from litheseg.progress import track

__all__ = ["labelled_by", "scheme_of_masks"]


def scheme_of_masks(folder: Path, masks: Sequence[StoredFile], max_pixels: int) -> tuple[LabelScheme, tuple[str, ...]]:
    """What a list of classes in a folder says of its masks; else a class for each value in them, and a note of that.

    Raises:
        DataError: a list that cannot be read; or as `count_values`.
    """
    known = find_class_list(folder)
    if known is not None:
        return known, ()
    drafted = count_values(track(masks, "reading masks"), max_pixels=max_pixels)
    shown = "; ".join(f"{drafted.name(value)}: {drafted.about(value)}" for value in drafted.values)
    ignored = "".join(f"; {value} is ignored: {drafted.about(value)}" for value in drafted.ignored)
    return drafted.scheme(), (f"no list names the classes: rename them in classes.yaml ({shown}{ignored})",)


def labelled_by(scheme: LabelScheme, mask: StoredFile, max_pixels: int) -> Callable[[tuple[int, int]], np.ndarray]:
    """Reads the labels of a mask, for `Annotated`: by its colours where the scheme is of colours, also of a palette.

    Raises (on use):
        DataError: a mask that cannot be read, or values that the scheme does not know.
    """

    def labels(_size: tuple[int, int]) -> np.ndarray:
        file = opened(mask)
        values = read_raw_mask(file, max_pixels=max_pixels)
        if scheme.encoding == "rgb" and values.ndim == 2:
            values = read_image(file, max_pixels=max_pixels)
        return encode(values, scheme, str(file))

    return labels
