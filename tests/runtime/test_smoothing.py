"""Masks averaged over time: what they hide, what comes late, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from litheseg.errors import DataError
from litheseg.runtime.engines import Engine
from litheseg.runtime.pipeline import Pipeline
from litheseg.runtime.video.smoothing import MaskSmoother, lag_frames


class Echo(Engine):
    """Logits that stand in the image: class 0 where it is dark, class 1 where it is light."""

    runtime, precision, output, size = "fake", "fp32", "logits", None

    def run(self, image: np.ndarray) -> np.ndarray:
        light = image[..., 0].astype(np.float32) / 16 - 8
        return np.stack([-light, light])


PIPE = Pipeline(Echo())


def images(values: list[int], size: tuple[int, int] = (4, 6)) -> list[np.ndarray]:
    return [np.full((*size, 3), value, np.uint8) for value in values]


def shown(values: list[int], weight: float) -> list[int]:
    smoother = MaskSmoother(weight)
    return [int(smoother.label(PIPE, image)[0, 0]) for image in images(values)]


def test_a_class_of_one_frame_is_hidden_and_counted() -> None:
    smoother = MaskSmoother(0.6)
    values = [0, 0, 0, 255, 0, 0, 0, 0]
    assert [int(smoother.label(PIPE, image)[0, 0]) for image in images(values)] == [0] * 8
    # 6 frames have two before them; in one of these, all pixels are back at what they were.
    assert smoother.cost.flicker == (1 / 6, 0) and smoother.cost.changed == (2 / 7, 0)
    assert smoother.cost.ms > 0


@pytest.mark.parametrize("weight", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_a_lasting_change_comes_as_late_as_it_says(weight: float) -> None:
    labels = shown([0] * 10 + [255] * 10, weight)
    assert labels.index(1) - 10 == lag_frames(weight)
    assert labels == sorted(labels)


def test_it_is_the_average_of_probabilities_and_nothing_changes_where_nothing_moves() -> None:
    random, smoother = np.random.default_rng(0), MaskSmoother(0.7)
    frames = [random.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(5)]
    mean = None
    for frame in frames:
        fresh = torch.from_numpy(Echo().run(frame)).softmax(0)
        mean = fresh if mean is None else 0.7 * mean + 0.3 * fresh
        assert np.array_equal(smoother.label(PIPE, frame), mean.argmax(0).numpy())
    still = MaskSmoother(0.9)
    assert all(np.array_equal(still.label(PIPE, frames[0]), PIPE(frames[0])) for _ in range(4))
    assert still.cost.flicker == still.cost.changed == (0, 0)


def test_labels_between_samples_are_those_of_the_logits_at_rest() -> None:
    class Coarse(Echo):
        def run(self, image: np.ndarray) -> np.ndarray:
            return np.random.default_rng(3).normal(0, 4, (5, 6, 8)).astype(np.float32)

    pipe, image = Pipeline(Coarse()), images([0], (48, 64))[0]
    smoother = MaskSmoother(0.5)
    assert all(np.array_equal(smoother.label(pipe, image), pipe(image)) for _ in range(3))


def test_frames_of_another_size_begin_anew() -> None:
    smoother = MaskSmoother(0.9)
    smoother.label(PIPE, images([0])[0])
    assert smoother.label(PIPE, images([255], (5, 5))[0]).tolist() == [[1] * 5] * 5
    assert smoother.cost.changed == (0, 0)


def test_what_cannot_be_smoothed() -> None:
    for weight in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(DataError, match="more than 0 and less than 1"):
            MaskSmoother(weight)

    class Labels(Echo):
        output = "labels"

    with pytest.raises(DataError, match="labels only"):
        MaskSmoother(0.5).label(Pipeline(Labels()), images([0])[0])
    assert MaskSmoother(0.5).cost.ms == 0
