"""What takes time says so: the same facts as a bar on a terminal and as lines in a file."""

from __future__ import annotations

import io
import os
import re
import sys
import time

import pytest

from litheseg import progress


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_FIRST", 0.05)
    monkeypatch.setattr(progress, "_EVERY", 0.3)


class Clock:
    """In place of the module `time`: it stands still unless it is moved."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def run(clock: Clock, items: int = 8, seconds: float = 0.1) -> None:
    with progress.stage(2, 7, "training", after=60.0), progress.work("steps", items, still=True) as steps:
        for index in range(items):
            clock.now += seconds
            steps.advance(1, f"loss {index}")


def test_a_file_has_a_line_now_and_then_and_one_at_the_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown():
        run(clock)
    out, err = capsys.readouterr()
    first, *between, last, end = err.splitlines()
    assert out == ""
    assert first == "stage 2 of 7: training"
    assert end == "stage 2 of 7: training, done in 0:01"
    assert last == "  steps 8/8, loss 7, done in 0:01"
    assert 2 <= len(between) <= 4
    assert re.fullmatch(r"  steps \d/8, loss \d, 0:0[01] left, 1:0[01] with all stages", between[-1])


def test_a_terminal_has_the_same_facts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress.shown():
        run(clock)
    text = terminal.getvalue()
    for fact in ("stage 2 of 7: training", "loss ", "left, 1:0", "with all stages", "steps 8/8, loss 7, done in 0:01"):
        assert fact in text
    assert "━" in text


def test_nothing_is_shown_unless_asked_for(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 2)
    progress.say("nothing")
    assert capsys.readouterr().err == ""


def test_short_work_has_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown():
        assert list(progress.track("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_one_long_item_is_announced_before_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown():
        for _ in progress.track([1], "quantizing"):
            err = ""
            for _ in range(100):  # until it says so, ten seconds at most
                time.sleep(0.1)
                if err := capsys.readouterr().err:
                    break
            assert err == "quantizing 0/1\n"


def test_what_fails_says_where(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), progress.shown(), progress.work("steps", 5) as steps:
        clock.now += 0.1
        steps.advance()
        raise KeyboardInterrupt
    assert capsys.readouterr().err.splitlines()[-1] == "steps 1/5, stopped after 0:00"


def test_time_left_counts_only_what_took_time() -> None:
    with progress.work("images", 100) as images:
        images.begun -= 10.0  # seconds ago
        images.show(60, 100, free=50)
        assert images.left == pytest.approx(40.0, rel=0.01)
        images.advance(10)
        assert images.left == pytest.approx(15.0, rel=0.01)


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.shown():
        progress.say("\x1b[31mphoto.png")
    assert capsys.readouterr().err == "\\x1b[31mphoto.png\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_silent() -> None:
    with progress.shown():
        child = os.fork()
        if not child:
            list(progress.track([1], "in the child"))
            os._exit(7 if progress._display is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (200, "3:20"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert progress.duration(seconds) == text
