"""Logits of every kind, and the plain way to labels: interpolate everything in float64, then argmax."""

from __future__ import annotations

import importlib
import random
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from litheseg.masks import upsampling, upsampling_arrays

__all__ = ["WAYS", "assert_right", "logits_of_every_kind", "plain", "use"]

WAYS = ("compiled", "arrays")
EPS = torch.finfo(torch.float32).eps


def use(way: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let one of `WAYS` do the work in this test; it is returned."""
    if way == "arrays":
        kernel = upsampling_arrays.fill_labels
    else:
        try:
            kernel = importlib.import_module("litheseg.masks._upsampling").fill_labels
        except ImportError:
            if shutil.which("cc") or shutil.which("gcc"):
                pytest.fail("the C extension was not built, though there is a compiler: `pip install -e .` again")
            pytest.skip("no compiler")
    monkeypatch.setattr(upsampling, "_kernel", lambda: kernel)
    return kernel


def plain(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=False)


def assert_right(labels: Tensor | np.ndarray, logits: Tensor | np.ndarray, size: tuple[int, int]) -> None:
    """Equal wherever the promise holds: 8 rounding steps of the largest magnitude."""
    labels, logits = torch.as_tensor(labels), torch.as_tensor(logits)
    full = plain(logits, size)
    assert labels.dtype == torch.uint8 and labels.shape == (len(logits), *size)
    wrong = labels != full.argmax(1)
    if logits.shape[1] > 1:
        first, second = full.topk(2, dim=1).values.unbind(1)
        # Of the whole image and not of the pixel's samples: looser only where magnitudes differ within an image.
        wrong &= first - second > 8 * EPS * logits.abs().max()
    assert not wrong.any()


def logits_of_every_kind(count: int) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Random logits, each with a size."""
    for seed in range(count):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        classes, samples = draw.choice([1, 2, 3, 5, 11, 19, 30]), (draw.randint(1, 12), draw.randint(1, 12))
        logits = torch.randn(draw.randint(1, 3), classes, *samples)
        # Constant images, patches of one class, magnitudes near both ends of float32.
        kind = seed % 5
        if kind == 0:
            logits = logits[:, :, :1, :1].expand_as(logits).clone()
        elif kind == 1:
            logits[:, draw.randrange(classes), : samples[0] // 2] += 10
        logits = logits * (1, 1, 1e-30, 1e37, 1)[kind]
        yield logits, (draw.randint(1, 40), draw.randint(1, 40))
