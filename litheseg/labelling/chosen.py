"""An image that is to be corrected, with the labels that it has so far.

It does not know annotation tools.

Usage:
    >>> Chosen("deep/b", Path("photos/deep/b.jpg"), Path("labelled/masks/deep/b.png")).labels(classes)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from litheseg.masks.classes import Classes, LabelScheme
from litheseg.masks.reading import read_mask

__all__ = ["Chosen"]


@dataclass(frozen=True)
class Chosen:
    """An image and its mask.

    Attributes:
        key: its id: the path below the images' folder without its ending.
        image: the file.
        mask: an index PNG of train ids, 255 where nothing is known.
    """

    key: str
    image: Path
    mask: Path

    def labels(self, classes: Classes) -> np.ndarray:
        """uint8 H x W: the mask at the size of the upright image.

        Raises:
            DataError: a file that cannot be read, sizes that differ, or labels that are no classes.
        """
        return read_mask(self.mask, LabelScheme.build(classes), self.image)
