"""What tests of budgets share; the network is in `MODELS` from here on, under a name of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_export import build_tiny, randomise

from litheseg.masks.classes import Classes
from litheseg.models import MODELS
from litheseg.models.bundle import Bundle, BundleHeader, save_bundle
from litheseg.nn import slim

CLASSES = Classes(tuple("abcde"), tuple((50 * i, 0, 255 - 50 * i) for i in range(5)))

MODELS["tiny-untrained"] = build_tiny


def untrained(path: Path) -> Bundle:
    """An untrained elastic model of widths 1 and 0.5 for images of 32x48, on disk, with scores that are made up."""
    torch.manual_seed(0)
    model = randomise(slim(build_tiny(len(CLASSES)), (1.0, 0.5), divisor=2))
    fields = {"widths": (1.0, 0.5), "size": (32, 48), "metrics": {"1": {"miou": 0.7}, "0.5": {"miou": 0.6}}}
    header = BundleHeader({"name": "tiny-untrained", "args": {}}, CLASSES, divisor=2, **fields)  # type: ignore[arg-type]
    return save_bundle(path, model, header)  # type: ignore[arg-type]
