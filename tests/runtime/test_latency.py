from __future__ import annotations

import math

import numpy as np
import pytest

from litheseg.errors import LithesegError
from litheseg.runtime.latency import Latency, Scope, check_percentile, needed_repeats

TOTAL = Scope.END_TO_END


def test_percentiles_are_numpys() -> None:
    times = np.random.default_rng(0).lognormal(size=101)
    for percentile in (50, 90, 95, 99.5):
        assert Latency(TOTAL, list(times)).percentile(percentile) == pytest.approx(np.percentile(times, percentile))
    assert Latency(TOTAL).percentile(95) == math.inf


def test_how_many_repeats_a_percentile_takes() -> None:
    """With n = 59 the slowest bounds the 95th percentile with 95 % confidence: 1 - 0.95 ** 59 = 0.9515."""
    assert needed_repeats(95) == 59 and 1 - 0.95**59 >= 0.95 > 1 - 0.95**58
    assert needed_repeats(99) == 299 and needed_repeats(50) == 20


def test_the_upper_bound_covers_the_true_percentile_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    truth = -math.log(0.05)  # of the exponential distribution
    trials = [Latency(TOTAL, list(random.exponential(size=150))).upper_bound(95) for _ in range(2000)]
    covered = sum(bound is not None and bound >= truth for bound in trials) / len(trials)
    assert 0.945 <= covered <= 0.985
    assert Latency(TOTAL, [1.0] * 58).upper_bound(95) is None
    assert Latency(TOTAL, [1.0] * 59).upper_bound(95) == 1.0
    assert Latency(TOTAL).upper_bound(95) is None


def test_clearly_above() -> None:
    assert Latency(TOTAL, [12.0] * 6).clearly_above(10, 95)
    assert not Latency(TOTAL, [12.0] * 2 + [8.0] * 4).clearly_above(10, 95)
    assert not Latency(TOTAL, [8.0] * 100).clearly_above(10, 95)
    assert not Latency(TOTAL, [12.0] * 6 + [8.0] * 94).clearly_above(10, 95), "6 % of slow passes may be chance"
    assert Latency(TOTAL, [12.0] * 20 + [8.0] * 80).clearly_above(10, 95)
    assert not Latency(TOTAL).clearly_above(10, 95)


def test_a_dict_says_what_is_not_known() -> None:
    content = Latency(TOTAL, [1.0, 2.0]).to_dict(90)
    assert content["repeats"] == 2 and content["upper_bound_ms"] is None and "p90_ms" in content


@pytest.mark.parametrize("percentile", [0, 49, 100, 101, math.nan])
def test_percentiles_that_cannot_be_told(percentile: float) -> None:
    with pytest.raises(LithesegError, match="percentile"):
        check_percentile(percentile)
