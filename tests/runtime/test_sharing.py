"""One budget for several cameras: the ladder of widths, and a simulated machine that has to hold a target."""

from __future__ import annotations

import itertools
from itertools import pairwise

import numpy as np
import pytest

from litheseg.errors import LithesegError, WidthError
from litheseg.runtime.controller import Controller
from litheseg.runtime.sharing import SharedController, allocations

WIDTHS = (1.0, 0.5, 0.25)


def test_cameras_alike_are_never_more_than_a_step_apart() -> None:
    ladder = allocations(WIDTHS, (1, 1, 1))
    assert ladder[0] == (0.25,) * 3 and ladder[-1] == (1.0,) * 3 and len(ladder) == 7
    steps = sorted(WIDTHS)
    for narrow, wide in pairwise(ladder):
        assert sum(a != b for a, b in zip(narrow, wide, strict=True)) == 1, "one camera by one step"
        assert sum(wide) > sum(narrow)
    for rung in ladder:
        at = [steps.index(width) for width in rung]
        assert max(at) - min(at) <= 1


def test_a_rung_is_the_fairest_of_its_total() -> None:
    # Max-min: no other allocation of at most the same total gives its narrowest camera more.
    for rung in allocations(WIDTHS, (1, 1, 1)):
        others = itertools.product(WIDTHS, repeat=3)
        assert max(min(other) for other in others if sum(other) <= sum(rung)) == min(rung)


def test_priorities_are_ratios_of_widths() -> None:
    assert allocations(WIDTHS, (2, 1)) == [(0.25, 0.25), (0.5, 0.25), (1.0, 0.25), (1.0, 0.5), (1.0, 1.0)]
    assert allocations(WIDTHS, (1, 2)) == [rung[::-1] for rung in allocations(WIDTHS, (2, 1))]
    assert allocations((0.5,), (1, 3)) == [(0.5, 0.5)]


def simulate(shared: SharedController, budget_rounds: int, load: float = 1.0, cameras: int = 3) -> list[float]:
    """A machine on which a frame takes 40 ms at width 1 and in proportion at others; times of rounds."""
    random, rounds = np.random.default_rng(0), []
    for _ in range(budget_rounds):
        took = {camera: load * 40 * shared.widths[camera] * random.uniform(0.95, 1.05) for camera in range(cameras)}
        shared.observe(took)
        rounds.append(sum(took.values()))
    return rounds


@pytest.mark.parametrize(
    ("target", "expected"), [(200, (1, 1, 1)), (100, (1, 0.5, 0.5)), (70, (0.5, 0.5, 0.5)), (48, (0.5, 0.25, 0.25))]
)
def test_all_together_stay_inside_and_use_what_there_is(target: float, expected: tuple[float, ...]) -> None:
    shared = SharedController(WIDTHS, 3, target_ms=target)
    rounds = simulate(shared, 1500)
    assert shared.widths == expected
    assert np.mean(np.array(rounds[200:]) > target) < 0.05 and not shared.overloaded


def test_overload_is_said_and_relief_is_used() -> None:
    shared = SharedController(WIDTHS, 3, target_ms=100)
    simulate(shared, 300, load=8)
    assert shared.widths == (0.25,) * 3 and shared.overloaded
    simulate(shared, 1500, load=0.5)
    assert shared.widths == (1.0,) * 3


def test_what_a_camera_had_goes_to_the_others_when_it_ends() -> None:
    shared = SharedController(WIDTHS, 3, target_ms=100)
    simulate(shared, 500)
    before = shared.widths
    shared.end(0)
    assert shared.widths[1:] == before[1:], "nobody loses anything"
    simulate(shared, 1000)
    assert shared.widths[1:] == (1.0, 1.0) and len(shared.decisions) >= 2
    shared.end(1)
    shared.end(2)  # the last one stays
    assert shared.widths[2] == 1.0


def test_a_silent_camera_keeps_its_share() -> None:
    shared = SharedController((1.0, 0.5), 2, target_ms=50)
    for _ in range(300):
        shared.observe({0: 20 * shared.widths[0], 1: 20 * shared.widths[1]})
    for _ in range(300):
        shared.observe({0: 20.0})
        assert shared.round_ms == 40
    assert shared.widths == (1.0, 1.0)


def test_one_camera_is_a_controller() -> None:
    shared, alone = SharedController(WIDTHS, 1, target_fps=40, start=0.5), Controller(WIDTHS, target_fps=40, start=0.5)
    random = np.random.default_rng(1)
    for _ in range(600):
        took = 60 * alone.width * random.uniform(0.9, 1.1)
        assert shared.observe({0: took}) == (alone.observe(took),)
    assert shared.decisions == tuple(alone.decisions) and shared.target_ms == 25


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cameras": 2, "priorities": (1,)}, LithesegError, "1 priorities for 2 cameras"),
        ({"cameras": 2, "priorities": (1, 0)}, LithesegError, "above 0"),
        ({"cameras": 2, "start": 0.1}, WidthError, "the narrowest is 0.25"),
        ({"cameras": 0}, LithesegError, "for each camera"),
    ],
)
def test_what_is_refused(arguments: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        SharedController(WIDTHS, target_ms=10, **arguments)  # type: ignore[arg-type]
    with pytest.raises(WidthError, match="no widths"):
        SharedController((), 1, target_ms=10)
