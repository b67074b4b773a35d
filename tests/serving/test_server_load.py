"""What a server says it can hold, against clients that are played through; and what it prints of it."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

import numpy as np
import pytest
from tiny_server import FakePredictor, client_of, service

from litheseg.serving import announce
from litheseg.serving import workers as workers_module
from litheseg.serving.schemas import ModelInfo
from litheseg.serving.workers import LoadTimes, SustainedLoad, Workers, measure_load, sustained_load


def played(clients: int, workers: int, work: Callable[[], float], answers: int = 4000) -> tuple[float, float]:
    """95th percentile of what clients meet who ask again at once, and answers a second; first come, first served."""
    free, asking = [0.0] * workers, [(0.0, k) for k in range(clients)]
    took, now = [], 0.0
    for _ in range(answers):
        asked, client = heapq.heappop(asking)
        now = max(asked, heapq.heappop(free)) + work()
        heapq.heappush(free, now)
        heapq.heappush(asking, (now, client))
        took.append(now - asked)
    return float(np.percentile(took[clients:], 95)), 1e3 * answers / now


@pytest.fixture
def no_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is added for it."""
    monkeypatch.setattr(workers_module, "_HTTP_FACTOR", 1.0)


@pytest.mark.usefixtures("no_http")
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("ms", [9.0, 30.0, 70.0, 99.0])
def test_where_every_image_takes_the_same_the_number_of_clients_is_exact(workers: int, ms: float) -> None:
    held = sustained_load(LoadTimes((ms,) * 5, (ms,) * 5), workers=workers, queue=100, target_ms=100)
    late, rate = played(held.clients, workers, lambda: ms)
    assert late <= 100 and held.per_second == pytest.approx(rate, rel=0.02)
    assert played(held.clients + 1, workers, lambda: ms)[0] > 100


@pytest.mark.usefixtures("no_http")
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_where_times_vary_the_target_is_held(workers: int, seed: int) -> None:
    rng = np.random.default_rng(seed)

    def work() -> float:
        return float(20 * rng.lognormal(0, 0.3))

    sample = tuple(work() for _ in range(500))
    held = sustained_load(LoadTimes(sample, sample), workers=workers, queue=100, target_ms=200)
    late, rate = played(held.clients, workers, work)
    assert late <= 200 and held.clients >= 4 * workers
    assert held.per_second == pytest.approx(rate, rel=0.1)


def test_http_takes_from_the_same_cores() -> None:
    """Three workers' images and an event loop that needs a quarter of a core for each, on three cores."""
    held = sustained_load(LoadTimes((20.0,) * 5, (20.0,) * 5), workers=3, queue=100, target_ms=200)
    late, rate = played(held.clients, 3, lambda: 20.0 + 5.0)
    assert late <= 200 and held.per_second == pytest.approx(rate, rel=0.02)


@pytest.mark.usefixtures("no_http")
def test_fewer_clients_than_workers_where_all_at_once_are_too_slow() -> None:
    measured = LoadTimes(alone=(100.0,) * 5, busy=(220.0,) * 5)
    targets = (90, 100, 150, 200, 219, 220)
    held = {target: sustained_load(measured, workers=4, queue=8, target_ms=target) for target in targets}
    assert {target: entry.clients for target, entry in held.items()} == {90: 0, 100: 1, 150: 2, 200: 3, 219: 3, 220: 4}
    assert held[90] == SustainedLoad(0, 0.0, enough_ms=100) and held[100].per_second == pytest.approx(10)
    assert held[100].enough_ms == held[220].enough_ms == 220
    assert held[150].per_second == pytest.approx(2 / 0.140) and held[220].per_second == pytest.approx(4 / 0.220)


def test_more_clients_than_the_queue_holds_would_be_refused() -> None:
    assert sustained_load(LoadTimes((1.0,), (1.0,)), workers=2, queue=3, target_ms=1000).clients == 5


def test_measuring_keeps_all_workers_busy_at_every_width() -> None:
    workers, most, now = Workers(workers=3, queue=1), dict[float, int](), dict[float, int]()

    def work(width: float) -> None:
        now[width] = now.get(width, 0) + 1
        most[width] = max(most.get(width, 0), now[width])
        time.sleep(0.02 * width)
        now[width] -= 1

    measured = measure_load(work, (1.0, 0.5), workers)
    assert most == {1.0: 3, 0.5: 3}
    for width, times in measured.items():
        assert len(times.busy) == 3 * len(times.alone) >= 6
        assert min(times.alone + times.busy) >= 20 * width
    assert (workers.running, workers.waiting) == (0, 0)
    workers.close()


def test_the_model_says_what_its_widths_hold() -> None:
    with client_of(
        service(FakePredictor({1.0: 0.3, 0.5: 0.1, 0.25: 0.0}), workers=1, queue=4, target_ms=200)
    ) as client:
        info = ModelInfo.model_validate_json(client.get("/v1/model").content)
    assert [entry.clients for entry in info.widths] == [0, 1, 5]
    assert info.widths[0].images_per_second == 0 and 5 < (info.widths[1].images_per_second or 0) <= 8
    assert (info.sample.height, info.sample.width) == (24, 40)


def test_what_cannot_be_held_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(seconds: float, **settings: float) -> tuple[str, str]:
        made = service(FakePredictor(dict.fromkeys((1.0, 0.5, 0.25), seconds)), **settings)
        made.workers.close()
        announce(made, "http://here")
        return capsys.readouterr()

    out, error = printed(0.05, workers=2, target_ms=300, queue=2)
    assert "clients  1: 4, 0.5: 4, 0.25: 4 at once within 300 ms\n" in out and not error
    out, error = printed(0.05, workers=2, target_ms=20)
    assert "clients  1: 0, 0.5: 0, 0.25: 0 at once within 20 ms\n" in out
    assert error.startswith("warning: the target of 20 ms cannot be held: even width 0.25 takes ")
    assert "--target-ms " in error and "--workers" not in error
    assert not printed(0.05, workers=2, width=0.5)[1], "a fixed width promises no time"


def test_a_target_that_only_fewer_workers_can_hold(capsys: pytest.CaptureFixture[str]) -> None:
    made = service(workers=2, target_ms=50)
    made._load_times = dict.fromkeys((1.0, 0.5, 0.25), LoadTimes(alone=(30.0,) * 5, busy=(80.0,) * 5))
    made.workers.close()
    announce(made, "http://here")
    error = capsys.readouterr().err
    assert "even width 0.25 takes 100 ms with 2 images at once; give --workers 1, --target-ms 100 or more" in error
