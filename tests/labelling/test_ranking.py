from __future__ import annotations

import math

import numpy as np
import pytest

from litheseg.errors import DataError
from litheseg.labelling.ranking import rank


def _greedy(uncertainty: np.ndarray, descriptors: np.ndarray, count: int) -> list[int]:
    """Every gain anew from its definition, by loops over plain numbers."""
    units = [[float(value) / math.dist(row, [0] * len(row)) for value in row] for row in descriptors]
    chosen: list[int] = []
    while len(chosen) < count:
        gains = {}
        for index in range(len(units)):
            if index not in chosen:
                near = min((math.dist(units[index], units[other]) / 2 for other in chosen), default=1.0)
                gains[index] = float(uncertainty[index]) * near
        chosen.append(max(gains, key=lambda index: gains[index]))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_greedy_is_that_of_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    uncertainty, descriptors = generator.random(40), generator.random((40, 6))
    ranking = rank(uncertainty, descriptors, 40)
    assert list(ranking.order) == _greedy(uncertainty, descriptors, 40)
    assert rank(uncertainty, descriptors, 7).order[:7] == ranking.order[:7]
    assert all(first >= second for first, second in zip(ranking.gain, ranking.gain[1:], strict=False))


def test_a_duplicate_is_not_chosen_before_a_distinct_image() -> None:
    descriptors = np.array([[1, 0], [2, 0], [0, 1], [1, 0.1]])  # the second differs from the first in length only
    ranking = rank(np.array([0.9, 0.9, 0.1, 0.2]), descriptors, 4)
    assert ranking.order == (0, 2, 3, 1)
    assert ranking.gain[-1] == 0


def test_equal_distances_leave_uncertainty_sampling() -> None:
    uncertainty = np.array([0.3, 0.9, 0.1, 0.5])
    assert rank(uncertainty, np.eye(4), 4).order == (1, 3, 0, 2)


def test_equal_uncertainty_leaves_the_farthest_point() -> None:
    angles = np.radians([0, 10, 20, 90, 45])
    descriptors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert rank(np.full(5, 0.5), descriptors, 3).order[:3] == (0, 3, 4)


def test_ties_go_to_the_farther_and_then_to_the_first() -> None:
    assert rank(np.zeros(3), np.array([[1, 0], [1, 0], [0, 1]]), 3).order == (0, 2, 1)
    assert rank(np.full(3, 0.5), np.eye(3), 3).order == (0, 1, 2)


def test_the_rest_follows_by_what_it_would_still_gain() -> None:
    ranking = rank(np.array([1.0, 0.5, 0.8, 0.1]), np.array([[1, 0], [1, 0.1], [0, 1], [1, 1]]), 1)
    assert ranking.chosen == 1
    # Beside image 0: 0.5 x sin(2.86 deg) = 0.025, 0.8 x sin(45 deg) = 0.566, 0.1 x sin(22.5 deg) = 0.038.
    assert ranking.order == (0, 2, 3, 1)
    assert ranking.gain == pytest.approx((1, 0.5657, 0.0383, 0.0249), abs=1e-4)


def test_none_all_and_fewer_than_none() -> None:
    assert rank(np.array([0.1, 0.2]), np.eye(2), 0) == rank(np.array([0.1, 0.2]), np.eye(2), 0)
    assert rank(np.array([0.1, 0.2]), np.eye(2), 0).order == (1, 0)
    assert rank(np.array([0.1, 0.2]), np.eye(2), 9).chosen == 2
    assert rank(np.array([0.4]), np.zeros((1, 3)), 1).gain == (0.4,)
    with pytest.raises(DataError, match="-1"):
        rank(np.array([0.1]), np.eye(1), -1)
