"""Masks that do not flicker: probabilities averaged over time, and what that costs.

Each frame's probabilities, at the network's own stride, are averaged with those of the frames before: an exponential
moving average of which `weight` is the past. A pixel that another class takes for one frame keeps its label; a lasting
change shows some frames late (`lag_frames`), and so do moving things at their edges. No frame waits for a later one.

What it costs is measured on the clip itself: milliseconds per frame, and how much labels flicker with it and without.
A flicker is a pixel that changes its class for one frame and then has the former one again, which motion hardly does;
changes of any kind are counted beside it. Both are counted at the network's stride, of the same frames.

Usage:
    >>> smoother = MaskSmoother(0.6)
    >>> mask = smoother.label(predictor.pipeline(0.5), frame)
    >>> smoother.cost
    SmoothingCost(weight=0.6, lag_frames=1, ms=0.21, flicker=(0.012, 0.002), changed=(0.041, 0.024))
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from litheseg.errors import DataError
from litheseg.masks.upsampling import upsample_labels
from litheseg.runtime.pipeline import Pipeline

__all__ = ["MaskSmoother", "SmoothingCost", "lag_frames"]

_LEAST = np.finfo(np.float32).tiny
_KEPT = 10_000  # frames whose times are kept


@dataclass(frozen=True)
class SmoothingCost:
    """What smoothing costs and what it gives.

    Attributes:
        weight: of the frames before, in (0, 1).
        lag_frames: by which a sudden, sure and lasting change shows late.
        ms: milliseconds that it adds to a frame, the median.
        flicker: share of the pixels per frame that have another class for this frame only: before and after.
        changed: share of the pixels per frame whose class is not that of the frame before: before and after.
    """

    weight: float
    lag_frames: int
    ms: float
    flicker: tuple[float, float]
    changed: tuple[float, float]


def lag_frames(weight: float) -> int:
    """Frames by which a sudden change between two sure labels shows late.

    Args:
        weight: of the frames before, in (0, 1).
    """
    return math.floor(round(math.log(0.5) / math.log(weight), 9))


class MaskSmoother:
    """Labels the frames of one video, each in the light of those before.

    Args:
        weight: of the frames before, in (0, 1): 0.6 hides what lasts one frame.

    Raises:
        DataError: a weight outside (0, 1).
    """

    def __init__(self, weight: float) -> None:
        if not 0 < weight < 1:
            raise DataError(f"smoothing with a weight of {weight:g}; give more than 0 and less than 1, such as 0.6")
        self._weight, self._mean = weight, np.empty(0, np.float32)
        self._before, self._after = _Flicker(), _Flicker()
        self._times: deque[float] = deque(maxlen=_KEPT)

    def label(self, pipeline: Pipeline, image: np.ndarray) -> np.ndarray:
        """The labels of the next frame, uint8 H x W; one of another size, or other classes, begins anew.

        Args:
            pipeline: of any width of the same model.
            image: H x W x C as the network takes it.

        Raises:
            DataError: the network gives labels, which cannot be averaged.
            LithesegError: the runtime cannot run it.
        """
        if pipeline.engine.output != "logits":
            raise DataError("smoothing averages probabilities, and this export gives labels only; export its logits")
        logits = pipeline.engine.array(pipeline.engine.run(pipeline.prepare(image)))
        started = time.perf_counter()
        values = self._averaged(logits)
        self._times.append(1e3 * (time.perf_counter() - started))
        return upsample_labels(values, (image.shape[0], image.shape[1]), threads=pipeline.threads)

    @property
    def cost(self) -> SmoothingCost:
        """So far; before the first frame all is 0."""
        flickers = (self._before, self._after)
        return SmoothingCost(
            self._weight,
            lag_frames(self._weight),
            median(self._times) if self._times else 0.0,
            (flickers[0].flickered, flickers[1].flickered),
            (flickers[0].changed, flickers[1].changed),
        )

    def _averaged(self, logits: np.ndarray) -> np.ndarray:
        """Logarithms of mean probabilities, float32 K h w; where nothing changes, labels are those of `logits`."""
        fresh = np.exp(logits - logits.max(0), dtype=np.float32)
        fresh /= fresh.sum(0)
        if self._mean.shape != fresh.shape:
            self._mean = fresh
            self._before.recent.clear()
            self._after.recent.clear()
        else:
            self._mean = self._weight * self._mean + (1 - self._weight) * fresh
        self._before.add(logits.argmax(0).astype(np.uint8))
        self._after.add(self._mean.argmax(0).astype(np.uint8))
        return np.log(np.maximum(self._mean, _LEAST))


@dataclass
class _Flicker:
    """Counts how labels change from frame to frame."""

    pairs: int = 0  # pixels that were compared with the frame before
    triples: int = 0  # with the two before
    changes: int = 0
    flickers: int = 0
    recent: deque[np.ndarray] = field(default_factory=lambda: deque(maxlen=2))

    def add(self, labels: np.ndarray) -> None:
        """The next frame, of the same size."""
        if self.recent:
            differs = labels != self.recent[-1]
            self.pairs += labels.size
            self.changes += int(np.count_nonzero(differs))
            if len(self.recent) == 2:
                self.triples += labels.size
                self.flickers += int(np.count_nonzero(differs & (labels == self.recent[0])))
        self.recent.append(labels)

    @property
    def changed(self) -> float:
        return self.changes / max(self.pairs, 1)

    @property
    def flickered(self) -> float:
        return self.flickers / max(self.triples, 1)
