"""Scoring a model: images in, logits by one pass or many, label maps scored at the labels' own resolution.

`predict_logits` is test-time prediction: the whole image or sliding windows, flipped and at several scales.
`evaluate` runs it over batches at every width, reading images once. Batches are as `litheseg.data` yields them:
{"image": N 3 h w normalised, "mask": N H W}, each at its own size.

Papers: sliding windows and averaged softmax over flips and scales as in PSPNet (Zhao et al., CVPR 2017, section 5.1)
and DeepLab (Chen et al., TPAMI 2018).

Usage:
    >>> scores = evaluate(model, data.val_dataloader(), widths=(0.25, 0.5, 1.0))
    >>> scores[0.5].miou
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from litheseg.errors import DataError, LithesegError, ModelError, did_you_mean
from litheseg.evaluation.metrics import Scores, SegmentationMetrics
from litheseg.models.base import resize
from litheseg.models.inference import evaluating
from litheseg.nn import get_width, set_width
from litheseg.progress import track

__all__ = ["evaluate", "predict_logits"]

_MODES = ("sliding", "whole")


def predict_logits(
    model: nn.Module,
    image: Tensor,
    *,
    mode: str = "whole",
    window: tuple[int, int] | None = None,
    stride: float = 2 / 3,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> Tensor:
    """Logits of a batch of images; the caller sets gradients and training mode.

    Overlapping windows are averaged as logits. Several views (flipped, scaled) are averaged as probabilities, and the
    result is their logarithm, which has the same softmax and argmax.

    Args:
        model: image N 3 h w -> logits N K h w.
        image: N 3 H W, float, normalised.
        mode: "whole" or "sliding".
        window: height and width of the sliding window, pixels; cut to the image where that is smaller.
        stride: step between windows as a fraction of the window, in (0, 1]; the last window always ends at the edge.
        flip: average with the mirrored image.
        scales: factors by which the image is resized, each above 0.

    Returns:
        N K H W, float32 where anything is averaged.

    Raises:
        LithesegError: an unknown mode, sliding without a window, or a stride or scale outside its range.
    """
    _check_views(mode, window, stride, scales)

    def run(view: Tensor) -> Tensor:
        return _sliding(model, view, window, stride) if mode == "sliding" and window else model(view)

    if not flip and tuple(scales) == (1.0,):
        return run(image)
    total = torch.zeros((), device=image.device)
    for scale in scales:
        scaled = _rescale(image, scale)
        views = [run(scaled)] + ([run(scaled.flip(-1)).flip(-1)] if flip else [])
        for logits in views:
            total = total + resize(logits.float(), image.shape[-2:]).softmax(1)
    # A class that no view gives any probability stays the least likely, but finite.
    return (total / (len(scales) * (2 if flip else 1))).clamp_min(torch.finfo(torch.float32).tiny).log()


def evaluate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    widths: Sequence[float] = (1.0,),
    num_classes: int | None = None,
    device: str | torch.device | None = None,
    band_radius: int = 3,
    **views: Any,
) -> dict[float, Scores]:
    """Score a model at each width.

    Logits are upsampled to each mask's own size before argmax. Afterwards the model is as it was: on its device, at its
    width, in training mode or not. In a distributed run the scores are of all processes' batches together, exactly;
    hand each process different images (a sampler that pads with repeats counts those twice).

    Args:
        model: a network; widths other than 1.0 need an elastic one (`litheseg.nn.slim`).
        batches: "image" N 3 h w (float, normalised) and "mask" N H W (integers 0..K-1, or 255).
        widths: those to score.
        num_classes: K; None for `model.num_classes`.
        device: where to run; None for where the model is.
        band_radius: pixels, see `SegmentationMetrics`.
        **views: `mode`, `window`, `stride`, `flip`, `scales` of `predict_logits`.

    Returns:
        Scores by width, in the order of `widths`.

    Raises:
        DataError: no batches, or labels outside the classes.
        ModelError: logits with another number of classes.
        WidthError: a width that the model does not have.
        LithesegError: what `predict_logits` raises.
    """
    classes = getattr(model, "num_classes", None) if num_classes is None else num_classes
    if not isinstance(classes, int):
        raise ModelError(f"{type(model).__name__} does not say how many classes it distinguishes; pass num_classes")
    home, before = _device(model), get_width(model)
    place = home if device is None else torch.device(device)
    metrics = {width: SegmentationMetrics(classes, band_radius=band_radius).to(place) for width in widths}
    counted = 0
    try:
        with evaluating(model.to(place)), torch.no_grad():
            for batch in track(batches, f"scoring {len(metrics)} width{'s' * (len(metrics) > 1)}, batches"):
                image, mask = batch["image"].to(place), batch["mask"].to(place)
                for width, metric in metrics.items():
                    set_width(model, width)
                    metric.update(_labels(predict_logits(model, image, **views), mask, classes), mask)
                counted += len(mask)
    finally:
        set_width(model, before)
        model.to(home)
    if not counted:
        raise DataError("nothing to evaluate: there are no batches; check the split's name and the batch size")
    return {width: metric.compute() for width, metric in metrics.items()}


def _labels(logits: Tensor, mask: Tensor, num_classes: int) -> Tensor:
    if logits.shape[1] != num_classes:
        raise ModelError(
            f"the model gives {logits.shape[1]} classes, the evaluation expects {num_classes}; "
            "evaluate on data with the classes that the model was trained on"
        )
    if len(logits) != len(mask) or mask.ndim != 3:
        raise DataError(f"{len(logits)} images do not fit a mask of shape {tuple(mask.shape)}; give masks as N H W")
    return resize(logits.float(), mask.shape[-2:]).max(1).indices  # argmax, but fast on a CPU


def _sliding(model: nn.Module, image: Tensor, window: tuple[int, int], stride: float) -> Tensor:
    height, width = (min(side, limit) for side, limit in zip(window, image.shape[-2:], strict=True))
    total: Tensor | None = None
    passes = torch.zeros(image.shape[-2:], device=image.device)
    for top in _starts(image.shape[-2], height, stride):
        for left in _starts(image.shape[-1], width, stride):
            rows, columns = slice(top, top + height), slice(left, left + width)
            logits = model(image[..., rows, columns]).float()
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *image.shape[-2:])
            total[..., rows, columns] += logits
            passes[rows, columns] += 1
    assert total is not None, "a window fits at least once"
    return total / passes


def _starts(length: int, window: int, stride: float) -> list[int]:
    """Where windows begin along one axis: every step, and once more so that the last one ends at the edge."""
    step = max(1, round(window * stride))
    return [*range(0, length - window, step), length - window]


def _rescale(image: Tensor, scale: float) -> Tensor:
    if scale == 1.0:
        return image
    size = tuple(max(1, round(side * scale)) for side in image.shape[-2:])
    return nn.functional.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=scale < 1.0)


def _check_views(mode: str, window: tuple[int, int] | None, stride: float, scales: Sequence[float]) -> None:
    if mode not in _MODES:
        raise LithesegError(f"evaluation mode '{mode}' does not exist.{did_you_mean(mode, _MODES)}")
    if mode == "sliding" and (window is None or min(window) < 1):
        raise LithesegError(f"sliding evaluation needs a window of 1 or more pixels, e.g. (512, 1024), not {window}")
    if not 0 < stride <= 1:
        raise LithesegError(f"a stride of {stride} leaves gaps or never moves; use a fraction of the window in (0, 1]")
    if not scales or min(scales) <= 0:
        raise LithesegError(f"scales {tuple(scales)} are not possible; give one or more factors above 0")


def _device(model: nn.Module) -> torch.device:
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
