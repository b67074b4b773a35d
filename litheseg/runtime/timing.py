"""How long an image takes through a runtime, end to end and stage by stage.

End to end is what a user waits for: a uint8 image of the camera's size in, a uint8 mask of that size out. Between them
lie three stages: the image is resized as the network wants it (prepare), the network runs (network), and its logits
become labels at the image's size (labels: lazy upsampling). Candidates take turns, see `standalone.interleave`; within
its turn, one passes image after image at once, or at the pace of a camera.

The image should look like what will come: of noise, every pixel would be a border, and labels would take many times as
long. It knows neither budgets nor accuracy; what is counted rather than timed is in `litheseg.cost`.

Usage:
    >>> pipelines = {"narrow": Pipeline(open_engine("exports/street", width=0.25), size=(360, 480))}
    >>> measure_stages(pipelines, [image], repeats=90)["narrow"]["total"].percentile(95)
    11.4
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from litheseg.cost.latency import threads_limited
from litheseg.data.transforms import resize_image, resize_mask
from litheseg.deploy.engines import Engine
from litheseg.errors import LithesegError
from litheseg.models.upsampling import upsample_labels, warm_up
from litheseg.runtime.samples import Samples
from litheseg.runtime.standalone import interleave
from litheseg.streets import render_street

__all__ = ["STAGES", "Pipeline", "measure_stages", "measure_total", "street_frames"]

STAGES = ("prepare", "network", "labels")

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Pipeline:
    """From an image to its mask.

    Attributes:
        engine: the network.
        size: height and width that images are resized to; None leaves them as they are.
        threads: of the CPU, for what the engine does not do; None for PyTorch's own number.
    """

    engine: Engine
    size: tuple[int, int] | None = None
    threads: int | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 H x W x 3, RGB -> uint8 H x W, class indices."""
        with threads_limited(self.threads):
            return self.label(self.engine(self.prepare(image)), (image.shape[0], image.shape[1]))

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The image as the network takes it: uint8 h x w x 3."""
        if self.size is None or image.shape[:2] == self.size:
            return image
        pixels = torch.from_numpy(image if image.flags.writeable else image.copy()).permute(2, 0, 1)
        return np.ascontiguousarray(resize_image(pixels, self.size).permute(1, 2, 0).numpy())

    def label(self, output: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """uint8 labels at `size` (H, W) of what the network gave."""
        if self.engine.output == "labels":
            return resize_mask(torch.from_numpy(output), size).numpy()
        return upsample_labels(output, size, threads=self.threads)

    def stages(self, image: np.ndarray, clock: Callable[[], int] = time.perf_counter_ns) -> tuple[float, ...]:
        """Milliseconds of each of `STAGES` for one image."""
        with threads_limited(self.threads):
            times = [clock()]
            ready = self.prepare(image)
            times.append(clock())
            output = self.engine(ready)
            times.append(clock())
            self.label(output, (image.shape[0], image.shape[1]))
            times.append(clock())
        return tuple((after - before) / 1e6 for before, after in itertools.pairwise(times))


def measure_stages(
    pipelines: Mapping[K, Pipeline],
    images: Sequence[np.ndarray],
    *,
    repeats: int = 60,
    warmup: int = 3,
    fps: float | None = None,
) -> dict[K, dict[str, Samples]]:
    """Time pipelines side by side, stage by stage.

    Args:
        pipelines: by name.
        images: uint8 H x W x 3; each pipeline takes them in turn.
        repeats: timed images of each pipeline, >= 1.
        warmup: untimed ones of each, before.
        fps: images a second, as from a camera; None for one after the other.

    Returns:
        By name: milliseconds of each of `STAGES`, and of all together as ``"total"``.

    Raises:
        LithesegError: numbers out of range.
        DataError: an image that an engine does not take.
    """
    _check(repeats, warmup, fps)
    warm_up()
    calls = {name: _over(pipeline.stages, images) for name, pipeline in pipelines.items()}
    times = interleave(calls, repeats, warmup=warmup, fps=fps, timed=lambda call: call())
    return {name: _by_stage(rows) for name, rows in times.items()}


def measure_total(
    pipelines: Mapping[K, Pipeline],
    images: Sequence[np.ndarray],
    *,
    repeats: int,
    warmup: int = 3,
    fps: float | None = None,
) -> dict[K, list[float]]:
    """Milliseconds end to end, of pipelines side by side; arguments and errors as of `measure_stages`."""
    _check(repeats, warmup, fps)
    warm_up()
    calls = {name: _over(pipeline, images) for name, pipeline in pipelines.items()}
    return interleave(calls, repeats, warmup=warmup, fps=fps)


def street_frames(size: tuple[int, int], count: int = 4) -> list[np.ndarray]:
    """Rendered street scenes, uint8 H x W x 3: stand-ins where there are no images of the camera."""
    return [np.ascontiguousarray(render_street(np.random.default_rng(seed), size)[0]) for seed in range(count)]


def _check(repeats: int, warmup: int, fps: float | None) -> None:
    if repeats < 1 or warmup < 0:
        raise LithesegError(f"timing needs repeats >= 1 and warmup >= 0, not {repeats} and {warmup}")
    if fps is not None and not fps > 0:
        raise LithesegError(f"fps is {fps:g}; give images a second, such as 15")


def _over(call: Callable[[np.ndarray], Any], images: Sequence[np.ndarray]) -> Callable[[], Any]:
    """Each call takes the next image."""
    following = itertools.cycle(images)
    return lambda: call(next(following))


def _by_stage(rows: Sequence[tuple[float, ...]]) -> dict[str, Samples]:
    stages = {name: Samples([row[index] for row in rows]) for index, name in enumerate(STAGES)}
    return {**stages, "total": Samples([sum(row) for row in rows])}
