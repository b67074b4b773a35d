from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_budget import CLASSES

from litheseg.models import build_model
from litheseg.models.bundle import Bundle, BundleHeader, save_bundle
from litheseg.nn import slim


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """An untrained elastic model of widths 1 and 0.5 for images of 32x48, on disk, with scores that are made up."""
    torch.manual_seed(0)
    arguments = {"base": 8, "aux_head": False, "boundary_head": False}
    model = slim(build_model("ddrnet", 5, **arguments), (1.0, 0.5))
    metrics = {"1": {"miou": 0.7}, "0.5": {"miou": 0.6}}
    header = BundleHeader(
        {"name": "ddrnet", "args": arguments}, CLASSES, widths=(1.0, 0.5), size=(32, 48), metrics=metrics
    )
    return save_bundle(tmp_path_factory.mktemp("model") / "model.safetensors", model.eval(), header)


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
