"""Which images to correct first: uncertain ones that are unlike each other.

Uncertainty alone picks twenty frames of the one scene that a network finds hard. Here an image's expected gain is its
uncertainty times its distance to the nearest image that is chosen already, and images are taken greedily. With equal
uncertainty this is the greedy k-center choice of Sener and Savarese, "Active learning for convolutional neural
networks: a core-set approach", ICLR 2018, algorithm 1 (distances between features of the network); with equal distances
it is uncertainty sampling (Lewis and Gale, SIGIR 1994). BADGE (Ash et al., ICLR 2020) has the same two aims, but draws
at random and needs a gradient per image; this is deterministic, and takes n x chosen distances.

Usage:
    >>> ranking = rank(np.array([0.9, 0.9, 0.4]), np.array([[1, 0], [1, 0], [0, 1]]), count=2)
    >>> ranking.order, ranking.chosen  # the second is a copy of the first
    ((0, 2, 1), 2)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from litheseg.errors import DataError

__all__ = ["Ranking", "rank"]


@dataclass(frozen=True)
class Ranking:
    """All images, best first.

    Attributes:
        order: indices of the images: the chosen ones as they were taken, then the rest by what they would still gain.
        gain: of the image at each place, in [0, 1]: when it was taken, or beside all chosen ones; never rises.
        chosen: how many of the first places are chosen.
    """

    order: tuple[int, ...]
    gain: tuple[float, ...]
    chosen: int


def rank(uncertainty: np.ndarray, descriptors: np.ndarray, count: int) -> Ranking:
    """Choose `count` images, and rank the rest behind them.

    Distance is half the Euclidean distance of descriptors of length one, in [0, 1]; while nothing is chosen, it is 1.
    Of equal gains the image farther from the chosen ones is taken, then the one that comes first.

    Args:
        uncertainty: n values in [0, 1].
        descriptors: n x C; scaled to length one here.
        count: how many to choose; all if there are fewer.

    Raises:
        DataError: a negative count.
    """
    if count < 0:
        raise DataError(f"cannot choose {count} images; give 0 or more")
    directions = _directions(descriptors)
    distance = np.ones(len(uncertainty))
    free = np.ones(len(uncertainty), bool)
    order: list[int] = []
    gains: list[float] = []
    for _ in range(min(count, len(uncertainty))):
        best = int(np.lexsort((-distance, -uncertainty * distance, ~free))[0])
        order.append(best)
        gains.append(float(uncertainty[best] * distance[best]))
        free[best] = False
        distance = np.minimum(distance, np.linalg.norm(directions - directions[best], axis=1) / 2)
    chosen = len(order)
    gain = uncertainty * distance
    rest = [int(index) for index in np.lexsort((-distance, -gain)) if free[index]]
    return Ranking((*order, *rest), (*gains, *(float(gain[index]) for index in rest)), chosen)


def _directions(descriptors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one in float64; a row of zeros stays."""
    values = np.asarray(descriptors, np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.divide(values, length, out=np.zeros_like(values), where=length > 0)
