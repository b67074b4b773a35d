"""Several images in one pass of an engine that likes that, and the same masks as one by one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from torch import nn

from litheseg.deploy.torch_engine import ModuleEngine
from litheseg.errors import LithesegError
from litheseg.masks.image_format import ImageFormat
from litheseg.runtime.engines import Engine
from litheseg.runtime.latency import street_frames
from litheseg.runtime.networks import SharedEngine
from litheseg.runtime.pipeline import Pipeline


class Gpu(Engine):
    """Takes up to four images together, and says how many came; the first pass waits until it may go on."""

    runtime, precision, output, size, together = "fake", "fp32", "labels", None, 4

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def run(self, image: np.ndarray) -> np.ndarray:
        return self.run_batch([image])[0]

    def run_batch(self, images: Sequence[np.ndarray]) -> list[Any]:
        assert len({image.shape for image in images}) == 1
        self.passes.append(len(images))
        self.begun.set()
        assert self.go_on.wait(30)
        if any(image.max() == 255 for image in images):
            raise LithesegError("out of memory")
        return [image[:, :, 0] for image in images]


def image(value: int, size: tuple[int, int] = (4, 6)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def test_those_who_wait_go_through_together() -> None:
    engine = Gpu()
    shared = SharedEngine(engine)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(shared.run, image(0))
        assert engine.begun.wait(30)
        others = [pool.submit(shared.run, image(value)) for value in range(1, 6)]
        odd = pool.submit(shared.run, image(9, (2, 2)))
        while len(shared._waiting) < 6:
            pass
        engine.go_on.set()
        assert [int(future.result(30).max()) for future in (first, *others, odd)] == [0, 1, 2, 3, 4, 5, 9]
    assert engine.passes[0] == 1 and max(engine.passes) == 4 and sum(engine.passes) == 7


def test_an_image_that_fails_fails_alone() -> None:
    engine = Gpu()
    shared = SharedEngine(engine)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(shared.run, image(0))
        assert engine.begun.wait(30)
        good, bad, also = (pool.submit(shared.run, image(value)) for value in (1, 255, 2))
        while len(shared._waiting) < 3:
            pass
        engine.go_on.set()
        assert [int(future.result(30).max()) for future in (first, good, also)] == [0, 1, 2]
        with pytest.raises(LithesegError, match="out of memory"):
            bad.result(30)


def test_a_batch_is_cut_by_size_and_by_what_the_engine_takes() -> None:
    engine = Gpu()
    engine.go_on.set()
    images = [image(value) for value in range(6)] + [image(7, (3, 3))] + [image(8)]
    masks = Pipeline(engine).batch(images)
    assert engine.passes == [4, 2, 1, 1]
    assert [(mask.shape, int(mask.max())) for mask in masks] == [(i.shape[:2], int(i.max())) for i in images]
    assert Pipeline(engine).batch([]) == []


def test_pytorch_gives_the_masks_of_one_by_one() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 3, 2, 1))
    engine = ModuleEngine(module, ImageFormat(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)))
    engine.together = 3  # as on a GPU
    frames = street_frames((24, 32), 4)
    alone = [Pipeline(engine, (16, 24))(frame) for frame in frames]
    for pipeline in (Pipeline(engine, (16, 24)), Pipeline(SharedEngine(engine), (16, 24))):
        masks = pipeline.batch(frames)
        assert all(np.mean(mask != other) < 0.002 for mask, other in zip(masks, alone, strict=True))
