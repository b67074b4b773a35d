"""A CamVid of a few tiny frames in the three sequences of the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SEQUENCES = ("0001TP", "0006R0", "0016E5")


def make_camvid(root: Path, *, frames: int = 4, size: tuple[int, int] = (24, 32)) -> Path:
    """Write `frames` frames of each sequence as train, and two of the last as val; returns `root`."""
    chance = np.random.default_rng(0)
    names = {"train": [(name, i) for name in SEQUENCES for i in range(frames)], "val": [("0016E5", 90), ("0016E5", 91)]}
    for split, entries in names.items():
        images, labels = root / split, root / f"{split}annot"
        images.mkdir(parents=True)
        labels.mkdir()
        for name, index in entries:
            stem = f"{name}_{index:05d}"
            mask = np.sort(chance.integers(0, 11, size, dtype=np.uint8))
            image = (20 * mask[..., None] + chance.integers(0, 20, (*size, 3))).astype(np.uint8)
            Image.fromarray(image).save(images / f"{stem}.jpg", quality=95)
            Image.fromarray(mask).save(labels / f"{stem}.png")
    return root
