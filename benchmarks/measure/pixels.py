"""What our own pixel kernels gain: labels from low-resolution logits, and resizing of images.

- upsampling: labels computed lazily, against interpolating everything and then taking the largest, as it is usually
  written (`F.interpolate` and `argmax`) and in its faster forms, of which the quickest counts as "best". Logits are
  those of procedural streets: each class's share of a block of pixels, sharpened, with noise; the share of cells that
  hold a border is in the records. Pure noise, where no cell is uniform, is the worst case.
- resizing: torchvision, Pillow, the C extension and NumPy, one thread each, in processor time; each one's ratio to
  torchvision is taken within a round, and in how many values it differs. Torchvision and Pillow are given what they
  like best: a view of H W 3 as 3 H W, and a finished `Image`.

All take turns, round after round; medians are compared.

    python benchmarks/measure pixels upsampling --output benchmarks/results/upsampling.jsonl
    python benchmarks/measure pixels resizing --rounds 21 --threads 1 --output benchmarks/results/resizing.jsonl
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from records import save
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from litheseg.masks import resizing
from litheseg.masks.resizing import resize_image
from litheseg.models import upsampling
from litheseg.models.upsampling import label_maps, upsample_labels
from litheseg.streets import render_street
from measure.common import arguments, in_turns, show

TARGETS = {"upsampling": 20.0, "resizing": 2.0}  # times faster than argmax; times torchvision's, for C
PLAIN = ("argmax", "argmax, channels_last", "max", "max, channels_last")
CASES = {  # size, stride, classes
    "street": ((360, 480), 8, 11),
    "street, stride 4": ((360, 480), 4, 11),
    "large street": ((1024, 2048), 8, 19),
    "noise": ((360, 480), 8, 11),
}
RESIZED = [
    ((720, 960), (360, 480)),
    ((1080, 1920), (512, 1024)),
    ((3000, 4000), (360, 480)),
    ((360, 480), (180, 240)),
]


def main() -> None:
    """Parse, measure, print a table, write records."""
    options = parse()
    torch.set_num_threads(1 if options.what == "resizing" else options.threads)
    rows = {"upsampling": upsampling_rows, "resizing": resizing_rows}[options.what](options)
    show(rows, f"milliseconds (target {TARGETS[options.what]})")
    clock = "processor time of the thread" if options.what == "resizing" else "wall-clock time"
    report = {"target": TARGETS[options.what], "rows": rows}
    save(options, report, "torch", "torchvision", "pillow", "numpy", clock=clock)


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, rounds=15, threads=2, seed=0)
    parser.add_argument("what", choices=list(TARGETS))
    return parser.parse_args()


# --- labels from logits ----------------------------------------------------------------------------------------------


def upsampling_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per case: medians of all forms, and what the lazy one gains."""
    rows = []
    for case, (size, stride, classes) in CASES.items():
        logits = noise_logits(size, stride, classes) if case == "noise" else street_logits(size, stride, classes)
        times = in_turns(forms(logits, size), options.rounds)
        medians = {form: median(values) for form, values in times.items()}
        expected = plain(logits, size).argmax(1)
        rows.append(
            {
                "case": case,
                "size": size,
                "stride": stride,
                "classes": classes,
                "border_cells": border_cells(logits),
                "differing_pixels": int((upsample_labels(logits, size) != expected).sum()),
                "milliseconds": medians,
                "fastest_milliseconds": {form: min(values) for form, values in times.items()},
                "gain": medians["argmax"] / medians["lazy"],
                "gain_over_best": min(medians[form] for form in PLAIN) / medians["lazy"],
            }
        )
    return rows


def street_logits(size: tuple[int, int], stride: int, classes: int, seed: int = 0) -> Tensor:
    """1 x K x h x w of a street scene."""
    _, mask = render_street(np.random.default_rng(seed), size)
    labels = torch.from_numpy(mask.astype(np.int64)) % classes
    shares = F.avg_pool2d(F.one_hot(labels, classes).movedim(-1, 0)[None].float(), stride)
    return 8 * shares + 0.3 * torch.randn(shares.shape, generator=torch.Generator().manual_seed(seed))


def noise_logits(size: tuple[int, int], stride: int, classes: int, seed: int = 0) -> Tensor:
    shape = (1, classes, size[0] // stride, size[1] // stride)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def border_cells(logits: Tensor) -> float:
    """Share of the cells between four samples that have more than one winner."""
    winners = logits.argmax(1)
    corners = torch.stack([winners[:, :-1, :-1], winners[:, :-1, 1:], winners[:, 1:, :-1], winners[:, 1:, 1:]])
    return float((corners != corners[0]).any(0).float().mean())


def forms(logits: Tensor, size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    last = logits.contiguous(memory_format=torch.channels_last)

    def by_torch() -> Tensor:
        with patch.object(upsampling, "_IN_NUMPY", ()):
            return upsample_labels(logits, size)

    return {
        "argmax": lambda: plain(logits, size).argmax(1),
        "argmax, channels_last": lambda: plain(last, size).argmax(1),
        "max": lambda: plain(logits, size).max(1).indices,
        "max, channels_last": lambda: plain(last, size).max(1).indices,
        "lazy": lambda: upsample_labels(logits, size),
        "lazy, channels_last": lambda: upsample_labels(last, size),
        "lazy, one thread": lambda: upsample_labels(logits, size, threads=1),
        "lazy, PyTorch": by_torch,
        "lazy with borders": lambda: label_maps(logits, size, borders=True),
        "lazy with confidence": lambda: label_maps(logits, size, confidence="uint8"),
        "softmax and max": lambda: plain(logits, size).softmax(1).max(1),
    }


# --- resizing --------------------------------------------------------------------------------------------------------


def resizing_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per pair of sizes: medians, ratios to torchvision, and how far pixels are from its.

    Raises:
        SystemExit: the C extension was not built.
    """
    if resizing._kernel() is resizing._resize:
        raise SystemExit("The C extension was not built: pip install -e . where there is a compiler")
    rows = []
    for old, new in RESIZED:
        image, _ = render_street(np.random.default_rng(options.seed), old)
        steps = resizers(image, new)
        expected = steps["torchvision"]().astype(np.int16)
        gaps = {name: np.abs(run().astype(np.int16) - expected) for name, run in steps.items()}
        times = in_turns(steps, options.rounds, time.thread_time)
        ratios = {
            name: median(own / other for own, other in zip(values, times["torchvision"], strict=True))
            for name, values in times.items()
        }
        rows.append(
            {
                "from": old,
                "to": new,
                "milliseconds": {name: median(values) for name, values in times.items()},
                "fastest_milliseconds": {name: min(values) for name, values in times.items()},
                "ratio_to_torchvision": ratios,
                "differing_values": {name: float((gap > 0).mean()) for name, gap in gaps.items()},
                "largest_difference": {name: int(gap.max()) for name, gap in gaps.items()},
            }
        )
    return rows


def resizers(image: np.ndarray, new: tuple[int, int]) -> dict[str, Callable[[], np.ndarray]]:
    """Each gives uint8 h w 3."""
    pixels, picture = torch.from_numpy(image).permute(2, 0, 1), Image.fromarray(image)

    def by_numpy() -> np.ndarray:
        with patch.object(resizing, "_kernel", lambda: resizing._resize):
            return resize_image(image, new)

    return {
        "torchvision": lambda: tv.resize(pixels, list(new), antialias=True).permute(1, 2, 0).numpy(),
        "Pillow": lambda: np.asarray(picture.resize(new[::-1], Image.Resampling.BILINEAR)),
        "C": lambda: resize_image(image, new),
        "NumPy": by_numpy,
    }
