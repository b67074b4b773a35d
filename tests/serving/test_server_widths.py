"""Which width a request gets, and the queue before it."""

from __future__ import annotations

import threading
import time

import pytest
from tiny_server import FakePredictor, service

from litheseg.errors import LithesegError, WidthError
from litheseg.serving.problems import Problem
from litheseg.serving.settings import ServerSettings, read_api_key
from litheseg.serving.widths import WidthChooser, WidthRequest
from litheseg.serving.workers import Workers

WIDTHS = (1.0, 0.5, 0.25)
COSTS = {1.0: 60.0, 0.5: 30.0, 0.25: 10.0}


def measured(**options: float) -> WidthChooser:
    chooser = WidthChooser(WIDTHS, **{"target_ms": 100.0, **options})
    chooser.start_from({width: [cost] * 5 for width, cost in COSTS.items()})
    return chooser


def choose(chooser: WidthChooser, waited: float = 0.0, *, crowded: bool = False, **request: float) -> float:
    return chooser.choose(WidthRequest(**request), waited_ms=waited, crowded=crowded)


def test_a_request_gets_the_width_that_it_names() -> None:
    chooser = measured()
    assert [choose(chooser, 1e6, crowded=True, width=width) for width in WIDTHS] == list(WIDTHS)


def test_a_budget_gets_the_widest_that_fits_after_waiting() -> None:
    chooser = measured()
    assert [choose(chooser, budget_ms=ms) for ms in (60, 59, 30, 29, 5)] == [1.0, 0.5, 0.5, 0.25, 0.25]
    assert [choose(chooser, waited, budget_ms=70) for waited in (10, 11, 41)] == [1.0, 0.5, 0.25]


def test_a_load_on_one_width_is_expected_of_all() -> None:
    chooser = measured()
    for _ in range(64):
        chooser.observe(WidthRequest(width=0.5), 0.5, waited_ms=0, work_ms=60)  # twice its cost
    assert choose(chooser, budget_ms=100) == 0.5
    assert choose(chooser, budget_ms=120) == 1.0


def test_who_waited_long_gets_what_fits_into_the_target() -> None:
    chooser = measured()
    assert [choose(chooser, waited) for waited in (0, 40, 41, 71, 500)] == [1.0, 1.0, 0.5, 0.25, 0.25]


def test_the_controller_narrows_what_names_nothing() -> None:
    chooser = measured()
    for _ in range(40):
        chooser.observe(WidthRequest(), choose(chooser), waited_ms=80, work_ms=60)
    assert chooser.width < 1.0
    assert choose(chooser) == chooser.width
    assert choose(chooser, budget_ms=1000) == 1.0, "a budget is the client's own"


def test_a_queue_that_forces_narrow_widths_moves_the_controller() -> None:
    chooser = measured()
    for _ in range(40):  # in time, but only because the width that was due would not have been
        assert choose(chooser, 85) == 0.25
        chooser.observe(WidthRequest(), 0.25, waited_ms=85, work_ms=10)
    assert chooser.width < 1.0


def test_requests_that_name_a_width_do_not_move_it() -> None:
    chooser = measured()
    for _ in range(100):
        chooser.observe(WidthRequest(width=1.0), 1.0, waited_ms=500, work_ms=60)
    assert chooser.width == 1.0


def test_a_crowded_queue_runs_at_the_narrowest() -> None:
    chooser = measured()
    assert choose(chooser, crowded=True) == 0.25
    assert choose(chooser, crowded=True, budget_ms=1e6) == 0.25


def test_a_fixed_width_stays() -> None:
    chooser = measured(fixed=0.5)
    for _ in range(100):
        chooser.observe(WidthRequest(), 0.5, waited_ms=500, work_ms=60)
    assert (choose(chooser, 500, crowded=True), chooser.width) == (0.5, 0.5)
    assert choose(chooser, budget_ms=5) == 0.25


def test_timings_are_of_the_latest_requests() -> None:
    chooser = measured()
    for _ in range(300):
        chooser.observe(WidthRequest(width=0.25), 0.25, waited_ms=0, work_ms=20)
    timing = chooser.timing(0.25)
    assert timing is not None and (timing.p50, timing.p95, timing.count) == (20, 20, 256)
    assert WidthChooser(WIDTHS, target_ms=1).timing(1.0) is None


def test_the_queue_takes_so_many_and_no_more() -> None:
    workers, go = Workers(workers=1, queue=4), threading.Event()

    def work(waited_ms: float, crowded: bool) -> bool:
        go.wait(10)
        return crowded

    taken = [workers.submit(work) for _ in range(5)]
    with pytest.raises(Problem, match="4 requests wait") as caught:
        workers.submit(work)
    assert (caught.value.code, caught.value.headers) == ("busy", {"Retry-After": "1"})
    assert taken[-1].cancel()
    taken[-1] = workers.submit(work)  # who left makes room
    while not workers.running:
        time.sleep(0.001)
    assert (workers.waiting, workers.running) == (4, 1)
    go.set()
    # The first begins while the queue fills; behind the second three wait, which is more than half.
    assert [future.result(5) for future in taken][1:] == [True, True, False, False]
    assert workers.join(5) and workers.waiting == workers.running == 0
    workers.close()


def test_work_that_fails_leaves_its_place() -> None:
    workers = Workers(workers=2, queue=1)

    def fail(waited_ms: float, crowded: bool) -> None:
        raise OSError("No schooser left on device")

    for _ in range(10):
        with pytest.raises(OSError, match="No schooser"):
            workers.submit(fail).result(5)
    assert workers.join(5)
    workers.close()


def test_stopping_finishes_what_was_taken() -> None:
    workers = Workers(workers=1, queue=4)
    taken = [workers.submit(lambda *_: time.sleep(0.02)) for _ in range(3)]
    workers.stop()
    with pytest.raises(Problem) as caught:
        workers.submit(lambda *_: None)
    assert caught.value.code == "stopping"
    assert workers.join(5) and all(future.done() for future in taken)
    workers.close()


@pytest.mark.parametrize("values", [{"queue": 0}, {"workers": 0}, {"max_upload": 0}, {"target_ms": float("nan")}])
def test_limits_out_of_range(values: dict[str, float]) -> None:
    with pytest.raises(LithesegError, match="--"):
        ServerSettings(**values)  # type: ignore[arg-type]


def test_keys(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LITHESEG_API_KEY", raising=False)
    assert read_api_key(None) is None
    (tmp_path / "key").write_text("0123456789abcdef\n")
    assert read_api_key(tmp_path / "key") == "0123456789abcdef"
    monkeypatch.setenv("LITHESEG_API_KEY", "fedcba9876543210")
    assert read_api_key(None) == "fedcba9876543210"
    for content in ("", "  \n", "two words of a key", "schlüssel-schlüssel"):
        (tmp_path / "key").write_text(content)
        with pytest.raises(LithesegError, match="openssl rand"):
            read_api_key(tmp_path / "key")
    with pytest.raises(LithesegError, match="nowhere"):
        read_api_key(tmp_path / "nowhere")
    with pytest.raises(LithesegError, match="16 or more"):
        ServerSettings(api_key="short")
    assert "0123" not in repr(ServerSettings(api_key="0123456789abcdef"))


def test_a_fixed_width_that_the_model_has_not() -> None:
    with pytest.raises(WidthError, match=r"available: 1, 0\.5, 0\.25"):
        service(FakePredictor(), width=0.3)
