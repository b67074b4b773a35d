"""A labelled data set in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from litheseg.data.sources.base import Sample, Source
from litheseg.masks.classes import Classes


class Pictures(Source):
    """Images and masks that are given."""

    name, licence, citation = "pictures", "none", "none"

    def __init__(self, classes: Classes, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self.classes, self._pairs = classes, pairs

    def splits(self) -> tuple[str, ...]:
        return ("val",)

    def samples(self, split: str) -> tuple[Sample, ...]:
        return tuple(Sample(str(index), None, None, split) for index in range(len(self._pairs)))

    def read_image(self, sample: Sample) -> np.ndarray:
        return self._pairs[int(sample.id)][0]

    def read_mask(self, sample: Sample) -> np.ndarray:
        return self._pairs[int(sample.id)][1]

    def raw_mask(self, sample: Sample) -> np.ndarray:
        return self.read_mask(sample)
