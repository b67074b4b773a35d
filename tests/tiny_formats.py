"""Helpers of the tests of formats: pictures, and what an import makes of a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from litheseg.data import import_dataset
from litheseg.data.sources.folder import FolderSource

SIZE = (20, 30)


def photo(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def picture(path: Path, values: np.ndarray) -> Path:
    """A picture of these values, in 8 or 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint16 if values.max() > 255 else np.uint8)).save(path)
    return path


def imported(source: Path, target: Path, **options) -> tuple[tuple[str, ...], dict[str, np.ndarray], tuple[str, ...]]:
    """Class names, masks by "split/id" as training reads them, and the notes."""
    result = import_dataset(source, target, **options)
    opened = FolderSource(target, val_fraction=0)
    assert opened.classes.names == result.classes
    found = {}
    for split in opened.splits():
        assert len(opened.samples(split)) == result.splits[split]
        for sample in opened.samples(split):
            assert opened.read_image(sample).shape[:2] == opened.read_mask(sample).shape
            found[f"{split}/{sample.id}"] = opened.read_mask(sample)
    return result.classes, found, result.notes
