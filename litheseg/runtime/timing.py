"""How long an image takes through a runtime, end to end and stage by stage: the clock of `profile`, `fit` and `int8`.

End to end is what a user waits for: a uint8 image of the camera's size in, a uint8 mask of that size out. What is timed
is the pipeline that is used, see `pipeline`. Pipelines take turns, see `standalone.interleave`; within its turn, one
passes image after image at once, or at a camera's frame rate.

The image should look like what will come: of noise, every pixel would be a border, and labels would take many times as
long. It knows neither budgets nor accuracy; what is counted rather than timed is in `litheseg.cost`.

Usage:
    >>> pipelines = {"narrow": Pipeline(open_engine("exports/street", width=0.25), size=(360, 480))}
    >>> measure(pipelines, [image], repeats=90)["narrow"][Scope.END_TO_END].percentile(95)
    11.4
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from litheseg.errors import LithesegError
from litheseg.runtime.latency import Latency, Scope
from litheseg.runtime.pipeline import STAGES, Pipeline
from litheseg.runtime.standalone import interleave
from litheseg.streets import render_street

__all__ = ["Stages", "measure", "street_frames"]

K = TypeVar("K", bound=Hashable)

Stages = Mapping[Scope, Latency]
"""Latencies of one pipeline: of each stage, and of all together as `Scope.END_TO_END`."""


def measure(
    pipelines: Mapping[K, Pipeline],
    images: Sequence[np.ndarray],
    *,
    repeats: int = 60,
    warmup: int = 3,
    fps: float | None = None,
) -> dict[K, Stages]:
    """Time pipelines side by side.

    Args:
        pipelines: by name.
        images: uint8 H x W x 3; each pipeline takes them in turn.
        repeats: timed images of each pipeline, >= 1.
        warmup: untimed images of each, before.
        fps: images a second, as from a camera; None for one after the other.

    Returns:
        By name: milliseconds of every `Scope`.

    Raises:
        LithesegError: numbers out of range.
        DataError: an image that an engine does not take.
    """
    if repeats < 1 or warmup < 0:
        raise LithesegError(f"timing needs repeats >= 1 and warmup >= 0, not {repeats} and {warmup}")
    if fps is not None and not fps > 0:
        raise LithesegError(f"fps is {fps:g}; give images a second, such as 15")
    calls = {name: _over(pipeline, images) for name, pipeline in pipelines.items()}
    times = interleave(calls, repeats, warmup=warmup, fps=fps, timed=lambda call: call())
    return {name: _by_scope(rows) for name, rows in times.items()}


def street_frames(size: tuple[int, int], count: int = 4) -> list[np.ndarray]:
    """Rendered street scenes, uint8 H x W x 3: stand-ins where there are no images of the camera."""
    return [np.ascontiguousarray(render_street(np.random.default_rng(seed), size)[0]) for seed in range(count)]


def _over(pipeline: Pipeline, images: Sequence[np.ndarray]) -> Callable[[], tuple[float, ...]]:
    """Each call takes the next image."""
    following = itertools.cycle(images)
    return lambda: pipeline.stages(next(following))


def _by_scope(rows: Sequence[tuple[float, ...]]) -> Stages:
    columns = dict(zip(map(Scope, STAGES), zip(*rows, strict=True), strict=True)) | {
        Scope.END_TO_END: tuple(map(sum, rows))
    }
    return {scope: Latency(scope, list(times)) for scope, times in columns.items()}
