"""Polygons filled again, for the tests of outlines."""

from __future__ import annotations

import numpy as np

from litheseg.masks import polygons
from litheseg.masks.polygons import fill


def filled(parts: list[polygons.Polygon], height: int, width: int) -> np.ndarray:
    """Pixels of the parts, which must not overlap."""
    total = np.zeros((height, width), np.int64)
    for part in parts:
        total += fill(part.exterior.tolist(), height, width)
        for hole in part.holes:
            total -= fill(hole.tolist(), height, width)
    assert set(np.unique(total)) <= {0, 1}
    return total.astype(bool)
