"""Processes side by side: order, slots, failures, time limits; no network is trained."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpu import side_by_side
from gpu.jobs import Job
from gpu.side_by_side import SideBySide

FOREVER = "import time; print('begun', flush=True); time.sleep(60)"
DEAF = f"import signal; [signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM)]; {FOREVER}"


def job(name: str, code: str = "", kind: str = "", needs: tuple[Path, ...] = ()) -> Job:
    return Job(name, (sys.executable, "-I", "-S", "-c", code), kind or name, needs)


@pytest.fixture(autouse=True, scope="module")
def _looks_often() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(side_by_side, "_POLL", 0.02)
        yield


TOGETHER: dict[str, Callable[[Path], None]] = {}


@pytest.fixture(scope="module")
def together(_looks_often: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    with ThreadPoolExecutor(len(TOGETHER)) as pool:
        yield {name: pool.submit(body, tmp_path_factory.mktemp("rows")) for name, body in TOGETHER.items()}


def while_others_wait(body: Callable[[Path], None]) -> Callable[[dict[str, Future[None]]], None]:
    """A test that does little but wait for a time limit, as others do meanwhile: all of them begin with the first."""
    TOGETHER[body.__name__] = body

    def test(together: dict[str, Future[None]]) -> None:
        together[body.__name__].result()

    return test


def states(jobs: list[Job], folder: Path, *, slots: int = 2, seconds: float = 60.0, **more: Any) -> dict[str, str]:
    outcomes = SideBySide(jobs, slots=slots, seconds=seconds, logs=folder / "logs", **more).run()
    return {outcome.job.name: outcome.state for outcome in outcomes}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_most_wanted_begins_first_and_each_has_a_log(tmp_path: Path) -> None:
    note = f"open({str(tmp_path / 'order')!r}, 'a').write"
    jobs = [job(name, f"{note}('{name}'); print('I am {name}')") for name in "abc"]
    finished: list[Job | None] = []
    assert states(jobs, tmp_path, slots=1, finished=finished.append) == dict.fromkeys("abc", "done")
    assert (tmp_path / "order").read_text() == "abc" and (tmp_path / "logs/b.log").read_text() == "I am b\n"
    assert [each.name for each in finished if each] == ["a", "b", "c"]


def test_never_more_at_a_time_than_there_are_slots(tmp_path: Path) -> None:
    code = (
        f"import os, time; here = {str(tmp_path)!r}; own = here + '/on-' + str(os.getpid()); open(own, 'w').close();"
        "time.sleep(0.2); print(sum(name.startswith('on-') for name in os.listdir(here))); os.remove(own)"
    )
    assert set(states([job(f"j{i}", code) for i in range(6)], tmp_path, slots=3).values()) == {"done"}
    seen = [int(log.read_text()) for log in (tmp_path / "logs").iterdir()]
    assert 2 <= max(seen) <= 3


def test_what_crashes_is_tried_again_at_the_end_and_does_not_stop_the_others(tmp_path: Path) -> None:
    crash = "import os; print('x', flush=True); os.kill(os.getpid(), 9)"
    flaky = (
        f"import os, sys; p = {str(tmp_path / 'once')!r}; seen = os.path.exists(p); open(p, 'w'); sys.exit(not seen)"
    )
    found = states([job("killed", crash), job("flaky", flaky), job("fine")], tmp_path)
    assert found == {"killed": "failed", "flaky": "done", "fine": "done"}
    assert (tmp_path / "logs/killed.log").read_text() == "x\nx\n"


def test_where_everything_fails_nothing_more_is_begun(tmp_path: Path) -> None:
    found = states([job(f"j{i}", "raise SystemExit(1)") for i in range(9)], tmp_path, slots=2)
    assert 3 <= sum(state == "failed" for state in found.values()) <= 4
    assert sum(state == "not begun" for state in found.values()) >= 5


@while_others_wait
def test_at_the_limit_all_have_ended_and_could_save(tmp_path: Path) -> None:
    saving = (
        f"import signal, sys; signal.signal(signal.SIGINT, lambda *_: (open({str(tmp_path / 'saved')!r}, 'w'),"
        f" sys.exit(1))); {FOREVER}"
    )
    jobs = [job("saving", saving), job("deaf", f"import os; print(os.getpid(), flush=True); {DEAF}"), job("later")]
    begun = time.monotonic()
    assert states(jobs, tmp_path, seconds=4, grace=2) == {"saving": "stopped", "deaf": "stopped", "later": "not begun"}
    assert time.monotonic() - begun < 30 and (tmp_path / "saved").exists()
    assert not alive(int((tmp_path / "logs/deaf.log").read_text().split()[0]))


@while_others_wait
def test_a_row_that_is_being_scored_is_left_alone_while_there_is_time(tmp_path: Path) -> None:
    code = "import time; print('epoch 19/20  x\\nepoch 20/20  x', flush=True); time.sleep(2.2)"
    early = "import time; print('epoch 2/20  x', flush=True); time.sleep(60)"
    found = states([job("scoring", code), job("early", early)], tmp_path, seconds=5, grace=4)
    assert found == {"scoring": "done", "early": "stopped"}


@while_others_wait
def test_what_would_not_be_finished_in_time_is_not_begun(tmp_path: Path) -> None:
    long = "import time; time.sleep(3)"
    jobs = [job("first", long, "long"), job("second", long, "long"), job("short")]
    found = states(jobs, tmp_path, slots=1, seconds=5, grace=0.5)
    assert found == {"first": "done", "second": "not begun", "short": "done"}


def test_a_row_waits_for_the_row_that_it_needs(tmp_path: Path) -> None:
    model = tmp_path / "model"
    make = f"import time; time.sleep(0.5); open({str(model)!r}, 'w')"
    jobs = [job("student", needs=(model,)), job("teacher", make), job("orphan", needs=(tmp_path / "no",))]
    assert states(jobs, tmp_path) == {"student": "done", "teacher": "done", "orphan": "waiting"}


@while_others_wait
def test_a_row_without_memory_is_tried_again_beside_fewer(tmp_path: Path) -> None:
    here = str(tmp_path / "busy")
    greedy = f"import os, sys, time; time.sleep(0.4); os.path.exists({here!r}) and sys.exit('out of memory')"
    busy = f"import os, time; open({here!r}, 'w'); time.sleep(1.5); os.remove({here!r})"
    assert states([job("busy", busy), job("greedy", greedy)], tmp_path) == {"busy": "done", "greedy": "done"}


def test_what_must_be_alone_waits_and_lets_nothing_begin_beside_it(tmp_path: Path) -> None:
    code = (
        f"import os, time; here = {str(tmp_path)!r}; own = here + '/on-' + str(os.getpid()); open(own, 'w').close();"
        "time.sleep(0.4); print(sum(name.startswith('on-') for name in os.listdir(here))); os.remove(own)"
    )
    alone = replace(job("alone", code), alone=True)
    assert set(states([job("a", code), alone, job("b", code), job("c", code)], tmp_path, slots=3).values()) == {"done"}
    assert (tmp_path / "logs/alone.log").read_text() == "1\n"


@while_others_wait
def test_it_can_be_stopped(tmp_path: Path) -> None:
    runner = SideBySide([job("a", FOREVER), job("b", FOREVER)], slots=1, seconds=60, logs=tmp_path, grace=2)
    threading.Timer(0.5, runner.stop).start()
    begun = time.monotonic()
    assert [outcome.state for outcome in runner.run()] == ["stopped", "not begun"]
    assert time.monotonic() - begun < 30


def test_interrupting_the_session_does_not_interrupt_the_rows_by_itself(tmp_path: Path) -> None:
    """They have a process group of their own: Ctrl-C reaches the session, which ends them as at the limit."""
    runner = SideBySide([job("a", "import os; print(os.getpgrp())")], slots=1, seconds=60, logs=tmp_path)
    runner.run()
    assert int((tmp_path / "a.log").read_text()) != os.getpgrp()
