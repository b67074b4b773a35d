"""What tests of budgets share."""

from __future__ import annotations

from pathlib import Path

import torch

from litheseg.masks.classes import Classes
from litheseg.models import build_model
from litheseg.models.bundle import Bundle, BundleHeader, save_bundle
from litheseg.nn import slim

CLASSES = Classes(tuple("abcde"), tuple((50 * i, 0, 255 - 50 * i) for i in range(5)))


def untrained(path: Path) -> Bundle:
    """An untrained elastic model of widths 1 and 0.5 for images of 32x48, on disk, with scores that are made up."""
    torch.manual_seed(0)
    arguments = {"base": 8, "aux_head": False, "boundary_head": False}
    model = slim(build_model("ddrnet", 5, **arguments), (1.0, 0.5))
    metrics = {"1": {"miou": 0.7}, "0.5": {"miou": 0.6}}
    header = BundleHeader(
        {"name": "ddrnet", "args": arguments}, CLASSES, widths=(1.0, 0.5), size=(32, 48), metrics=metrics
    )
    return save_bundle(path, model.eval(), header)
