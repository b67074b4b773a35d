from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_budget import CLASSES, untrained

from litheseg.models.bundle import Bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return untrained(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data with four images for training and two to score, 48x64."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (root / "classes.yaml").write_text("classes:\n" + "".join(f"  - name: {name}\n" for name in CLASSES.names))
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            mask = np.kron(random.integers(0, 5, (6, 8)), np.ones((8, 8))).astype(np.uint8)
            Image.fromarray(mask).save(root / "masks" / split / f"{index}.png")
            image = np.stack([50 * mask, 0 * mask, 255 - 50 * mask], -1) + random.integers(0, 5, (48, 64, 3))
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{index}.png")
    return root
