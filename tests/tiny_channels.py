"""A data set of images that are no photographs: what is to be learned shows in the last channel only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

SIZE = (32, 48)
CLASSES = ["ground", "field"]


def scene(number: int, channels: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """An image whose last channel alone says where the field is, and its mask."""
    random = np.random.default_rng(number)
    mask = np.zeros(SIZE, np.uint8)
    top, left = random.integers(0, SIZE[0] // 2), random.integers(0, SIZE[1] // 2)
    mask[top : top + 16, left : left + 24] = 1
    values = random.uniform(0.1, 0.3, (*SIZE, channels))
    values[..., -1] = 0.1 + 0.5 * mask + random.normal(0, 0.02, SIZE)
    scale = {"uint8": 255, "uint16": 4095, "float32": 40}[dtype]
    offset = -10 if dtype == "float32" else 0
    return (values.clip(0, 1) * scale + offset).astype(dtype), mask


def write(path: Path, image: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, image)
    else:
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")


def folder(root: Path, channels: int, dtype: str, suffix: str, count: int = 12) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        image, mask = scene(number, channels, dtype)
        write(root / "images" / f"{number:02}{suffix}", image)
        Image.fromarray(mask).save(root / "masks" / f"{number:02}.png")
    names = [f"{number:02}\n" for number in range(count)]
    (root / "train.txt").write_text("".join(names[: count * 3 // 4]))
    (root / "val.txt").write_text("".join(names[count * 3 // 4 :]))
    (root / "classes.yaml").write_text(f"classes: {CLASSES}\n")
    return root
