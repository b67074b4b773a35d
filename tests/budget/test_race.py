"""The race against brute force: candidates whose true percentiles are known, timed with noise."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from litheseg.budget.choose import FIRST_REPEATS, Race
from litheseg.runtime.latency import Latency, Scope, needed_repeats


class Plant:
    """Candidates 0..n-1 with log-normal latencies that have a tail, and an accuracy each.

    The true 95th percentile is that of the distribution, by formula.
    """

    def __init__(self, seed: int, count: int = 40, noise: float = 0.05, tail: float = 0.0) -> None:
        self.random = np.random.default_rng(seed)
        self.medians = self.random.uniform(2, 40, count)
        self.noise, self.tail = noise, tail
        # Slower ones tend to be more accurate, but not always; some are equally accurate.
        self.scores = np.round(0.3 + 0.01 * self.medians + self.random.normal(0, 0.03, count), 2)
        self.asked: list[int] = []
        self.calls: list[tuple[tuple[int, ...], int]] = []

    def p95(self, candidate: int) -> float:
        return float(self.medians[candidate] * np.exp(1.6449 * self.noise))

    def measure(self, candidates: Sequence[int], repeats: int) -> Mapping[int, list[float]]:
        self.calls.append((tuple(candidates), repeats))
        noise = self.random.normal(0, self.noise, (len(candidates), repeats))
        return {c: list(self.medians[c] * np.exp(row)) for c, row in zip(candidates, noise, strict=True)}

    def accuracy(self, candidate: int) -> float:
        self.asked.append(candidate)
        return float(self.scores[candidate])

    @property
    def repeats(self) -> int:
        return sum(len(candidates) * repeats for candidates, repeats in self.calls)


def optimum(plant: Plant, budget: float, slack: float) -> float:
    """The best accuracy among those whose true percentile is below the budget by a margin."""
    return max((plant.scores[c] for c in range(len(plant.scores)) if plant.p95(c) <= budget * slack), default=-1.0)


def test_without_noise_the_choice_is_the_optimum() -> None:
    for seed, budget in itertools.product(range(25), (1.0, 5.0, 17.0, 50.0)):
        plant = Plant(seed, noise=0.0)
        chosen = Race(plant.measure, plant.accuracy, budget).run(range(40))
        fitting = [c for c in range(40) if plant.medians[c] <= budget]
        if not fitting:
            assert chosen is None
        else:
            best = max(plant.scores[c] for c in fitting)
            equals = [c for c in fitting if plant.scores[c] == best]
            assert chosen == min(equals, key=lambda c: plant.medians[c])


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.3])
def test_noise_never_costs_the_optimum(noise: float) -> None:
    """What is chosen is as accurate as the best that fits clearly, and nothing that clearly does not fit."""
    for seed in range(60):
        plant = Plant(seed, noise=noise)
        race = Race(plant.measure, plant.accuracy, budget=18.0)
        chosen = race.run(range(40))
        # The estimate of a percentile from 60 samples is uncertain by about two thirds of the noise at most.
        least = optimum(plant, 18.0, float(np.exp(-noise * 0.9)))
        assert chosen is None or race.estimate(chosen) <= 18.0
        assert least == -1.0 or (chosen is not None and plant.scores[chosen] >= least)
        assert chosen is None or plant.p95(chosen) <= 18.0 * np.exp(noise * 0.9)


def test_nothing_that_fits_is_ever_ruled_out() -> None:
    lost = total = 0
    for seed in range(80):
        plant = Plant(seed, noise=0.2)
        race = Race(plant.measure, plant.accuracy, budget=18.0)
        race.run(range(40))
        fitting = [c for c in race.samples if plant.p95(c) <= 18.0]
        lost += sum(not race.possible(c) for c in fitting)
        total += len(fitting)
    assert total > 800 and lost <= total * 0.002


def test_repeats_go_where_the_answer_is() -> None:
    plant = Plant(3, count=200, noise=0.05)
    race = Race(plant.measure, plant.accuracy, budget=18.0)
    assert race.run(range(200)) is not None
    assert plant.repeats < 200 * needed_repeats(95) / 4
    assert all(len(race.samples[c]) >= FIRST_REPEATS for c in range(200))
    assert [repeats for _, repeats in plant.calls][:3] == [6, 6, 12], "the repeats double"


def test_accuracy_is_asked_once_and_only_of_those_that_may_fit() -> None:
    plant = Plant(5, noise=0.01)
    race = Race(plant.measure, plant.accuracy, budget=18.0)
    race.run(range(40))
    assert len(plant.asked) == len(set(plant.asked))
    assert all(plant.medians[c] < 18.5 for c in plant.asked)


def test_those_below_come_back_when_the_ones_above_fail() -> None:
    """A candidate that looks safe at first, and is not, does not take the next best with it."""
    tails = {0: [5.0] * 10 + [30.0], 1: [6.0]}
    turns = {c: itertools.cycle(times) for c, times in tails.items()}

    def measure(candidates: Sequence[int], repeats: int) -> Mapping[int, list[float]]:
        return {c: [next(turns[c]) for _ in range(repeats)] for c in candidates}

    race = Race(measure, lambda c: (0.9, 0.5)[c], budget=10.0)
    assert race.run([0, 1]) == 1


def test_further_candidates_may_join() -> None:
    plant = Plant(7, noise=0.02)
    race = Race(plant.measure, plant.accuracy, budget=18.0)
    race.run(range(20))
    both = race.run(range(20, 40))
    assert (
        both is not None
        and plant.scores[both] == plant.scores[Race(plant.measure, plant.accuracy, 18.0).run(range(40))]
    )


def test_earlier_timings_count() -> None:
    known = {c: Latency(Scope.END_TO_END, [float(5 + c)] * 60) for c in range(5)}
    plant = Plant(0)
    race = Race(plant.measure, lambda c: c / 10, budget=8.0, recall=known.__getitem__)
    assert race.run(range(5)) == 3
    assert plant.calls == []
