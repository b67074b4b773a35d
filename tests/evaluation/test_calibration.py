"""Calibration and ranking, beside numbers worked out by hand and by loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from litheseg.errors import LithesegError
from litheseg.evaluation import Confidence


def of(confidence: list[float], right: list[int]) -> Confidence:
    return Confidence.of(np.array(confidence, np.float32), np.array(right, bool))


def pixels(count: int = 500) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    confidence = random.permutation(1 - 2.0 ** -np.linspace(0.5, 20, count))  # one in each rank
    return confidence, random.random(count) < confidence


def test_calibration_by_hand() -> None:
    # 2 pixels of 0.9, one right: 0.4 too sure. 2 of 0.6, both right: 0.4 too modest. Each is half of the pixels.
    found = of([0.9, 0.9, 0.6, 0.6], [1, 0, 1, 1])
    assert found.ece == pytest.approx(0.4) and found.overconfidence == pytest.approx(0, abs=1e-7)
    assert found.error == 0.25 and found.total == 4
    assert found.reliability == [pytest.approx((0.6, 1.0, 0.5)), pytest.approx((0.9, 0.5, 0.5))]


def test_whoever_is_right_as_often_as_it_says_is_calibrated() -> None:
    assert of([0.75] * 4, [1, 1, 0, 1]).ece == pytest.approx(0, abs=1e-7)
    assert of([1.0] * 4, [0, 0, 0, 0]).ece == 1


def test_ranking_by_a_loop() -> None:
    confidence, right = pixels()
    wrong = ~right[np.argsort(-confidence)]
    risks = [wrong[: taken + 1].mean() for taken in range(len(wrong))]
    found = Confidence.of(confidence, right)
    assert found.aurc == pytest.approx(np.mean(risks), rel=1e-9)
    perfect = np.sort(wrong)
    assert found.best_aurc == pytest.approx(np.mean(np.cumsum(perfect) / np.arange(1, len(wrong) + 1)), rel=1e-9)
    assert found.risk(0.5) == pytest.approx(wrong[:250].mean()) and found.risk(1) == pytest.approx(wrong.mean())
    assert found.caught(0.1) == pytest.approx(wrong[-50:].sum() / wrong.sum())


def test_a_map_that_knows_nothing_finds_as_many_errors_as_chance() -> None:
    found = of([0.7] * 10, [1, 0] * 5)
    assert found.aurc == pytest.approx(0.5) and found.caught(0.1) == pytest.approx(0.1)
    assert found.risk(0.3) == pytest.approx(0.5)


def test_counts_of_parts_add_up() -> None:
    confidence, right = pixels()
    parts = sum((Confidence.of(confidence[at::3], right[at::3]) for at in range(3)), Confidence.none())
    whole = Confidence.of(confidence, right)
    assert parts.ece == pytest.approx(whole.ece) and parts.aurc == pytest.approx(whole.aurc)
    assert parts.to_dict()["risk"] == whole.to_dict()["risk"]


def test_of_no_pixels_nothing_is_known() -> None:
    found = Confidence.none()
    assert all(map(math.isnan, (found.ece, found.aurc, found.error, found.risk(1), found.caught(0.1))))
    assert found.to_dict()["ece"] is None and found.reliability == []
    assert math.isnan(of([0.9], [1]).caught(0.1)), "nothing is wrong"


def test_what_is_no_confidence() -> None:
    with pytest.raises(LithesegError, match="probabilities"):
        of([1.5], [1])
    with pytest.raises(LithesegError, match="one for each"):
        of([0.5], [1, 0])
