"""From an image to its mask, the one path that everything takes: `predict`, `serve`, `video`, `fit`, `profile`.

Three stages: the image is resized for the network (prepare), the network runs (network), and its logits become labels
at the image's size (labels). Training resizes with the same function, and timing measures this same pipeline.

Usage:
    >>> pipeline = Pipeline(open_engine("exports/street", width=0.5), size=(360, 480))
    >>> mask = pipeline(image)  # uint8 H x W x 3, RGB -> uint8 H x W, class indices
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from litheseg.masks.resizing import resize_image
from litheseg.runtime.engines import Engine

__all__ = ["STAGES", "Pipeline"]

STAGES = ("prepare", "network", "labels")

Size = tuple[int, int]


@dataclass(frozen=True)
class Pipeline:
    """A network with what comes before and after it.

    Attributes:
        engine: the network.
        size: height and width that images are resized to; None leaves them as they are.
        threads: of the CPU, for labels; None for as many as there are cores.
    """

    engine: Engine
    size: Size | None = None
    threads: int | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """H x W x C as the network takes it -> uint8 H x W, class indices.

        Raises:
            DataError: an image that the engine does not take.
            LithesegError: the runtime cannot run it.
        """
        return self.label(self.engine.run(self.prepare(image)), image)

    def batch(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The masks of several images; those of one size after resizing share passes where the engine takes several."""
        masks: list[np.ndarray] = []
        for group in self._groups([self.prepare(image) for image in images]):
            outputs = self.engine.run_batch(group)
            masks += [self.label(output, images[len(masks) + index]) for index, output in enumerate(outputs)]
        return masks

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The image as the network takes it: h x w x C."""
        return image if self.size is None else resize_image(image, self.size)

    def label(self, output: Any, image: np.ndarray) -> np.ndarray:
        """uint8 labels at the image's size, of what the network gave."""
        return self.engine.labels(output, (image.shape[0], image.shape[1]), self.threads)

    def stages(self, image: np.ndarray, clock: Callable[[], int] = time.perf_counter_ns) -> tuple[float, ...]:
        """Milliseconds of each of `STAGES` for one image; their sum is what `__call__` takes."""
        times = [clock()]
        ready = self.prepare(image)
        times.append(clock())
        output = self.engine.run(ready)
        self.engine.wait()
        times.append(clock())
        self.label(output, image)
        times.append(clock())
        return tuple((after - before) / 1e6 for before, after in itertools.pairwise(times))

    def _groups(self, ready: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
        """Neighbours of one size, as many as the engine takes together."""
        for _, alike in itertools.groupby(ready, key=lambda image: image.shape):
            group = list(alike)
            yield from (
                group[start : start + self.engine.together] for start in range(0, len(group), self.engine.together)
            )
