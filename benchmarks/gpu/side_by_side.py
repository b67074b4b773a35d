"""Several processes at a time, most wanted first, until a time limit: each has a log, and none outlives the limit.

What fails once is tried again at the end; what would not be finished in time is not begun. It knows no rows and no GPU.

Usage:
    >>> outcomes = SideBySide(jobs, slots=8, seconds=520, logs=Path("runs/gpu/logs")).run()
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpu.jobs import Job

__all__ = ["Outcome", "SideBySide", "tail"]

_TRIES = 2
_HOPELESS = 3  # failures before the first success after which nothing more is begun
_POLL = 0.2  # seconds
_LAST_EPOCH = re.compile(r"epoch (\d+)/(\d+) ")
_MEMORY = "memory"  # in the last lines of what failed for the lack of it
_SLACK = 0.95  # of the time that a job of the same kind took


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        state: done, failed, stopped (by the time limit), waiting (for a row that is not there), not begun.
        seconds: of all its tries.
        log: what it printed.
    """

    job: Job
    state: str
    seconds: float
    log: Path


@dataclass
class _Run:
    job: Job
    process: subprocess.Popen[bytes]
    begun: float
    log: Path
    output: IO[bytes]


class SideBySide:
    """See the module.

    Args:
        jobs: most wanted first.
        slots: processes at a time.
        seconds: after which all have ended.
        logs: a folder; a job's log is NAME.log.
        grace: seconds, within the limit, for jobs to save and end, and for those whose last epoch is over to be scored.
        environment: of the processes; None for this one's.
        finished: called with each job that is done, and now and then with None.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        slots: int,
        seconds: float,
        logs: Path,
        grace: float = 20.0,
        environment: Mapping[str, str] | None = None,
        finished: Callable[[Job | None], None] = lambda job: None,
    ) -> None:
        self._queue, self._slots = list(jobs), slots
        self._end, self._grace = time.monotonic() + seconds, min(grace, seconds / 2)
        self._logs, self._environment, self._finished = logs, environment, finished
        self._running: list[_Run] = []
        self._outcomes: dict[str, Outcome] = {}
        self._durations: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        self._failures = 0
        self._asked = False

    def stop(self) -> None:
        """Begin nothing more, and end what runs as at the limit."""
        self._asked = True

    def run(self) -> list[Outcome]:
        """Do what can be done; the outcomes in the order of the jobs."""
        order = [job.name for job in self._queue]
        self._logs.mkdir(parents=True, exist_ok=True)
        beat = time.monotonic()
        while not self._over():
            self._reap()
            self._begin()
            if not self._running:
                break
            if time.monotonic() - beat > 10:
                self._finished(None)
                beat = time.monotonic()
            time.sleep(_POLL)
        self._end_all()
        for job in (job for job in self._queue if job.name not in self._outcomes):
            self._note(job, "not begun" if all(path.exists() for path in job.needs) else "waiting")
        return sorted(self._outcomes.values(), key=lambda outcome: order.index(outcome.job.name))

    # --- beginning -----------------------------------------------------------------------------------------------

    def _over(self) -> bool:
        return self._asked or time.monotonic() > self._end - self._grace

    def _begin(self) -> None:
        hopeless = self._failures >= _HOPELESS and not self._durations
        while len(self._running) < self._slots and not hopeless:
            job = next((job for job in self._queue if self._may_begin(job)), None)
            if job is None:
                return
            self._queue.remove(job)
            self._start(job)

    def _may_begin(self, job: Job) -> bool:
        if any(run.job.alone for run in self._running) or (job.alone and self._running):
            return False
        left = self._end - self._grace - time.monotonic()
        return left > _SLACK * self._durations.get(job.kind, 0.0) and all(path.exists() for path in job.needs)

    def _start(self, job: Job) -> None:
        output = (log := self._log(job)).open("ab")
        process = subprocess.Popen(
            job.words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if self._environment is None else dict(self._environment),
            process_group=0,  # Ctrl-C here is not Ctrl-C there, but a session that is ended ends them, too
        )
        self._running.append(_Run(job, process, time.monotonic(), log, output))

    # --- ending --------------------------------------------------------------------------------------------------

    def _reap(self, *, stopping: bool = False) -> None:
        for run in [run for run in self._running if run.process.poll() is not None]:
            self._running.remove(run)
            run.output.close()
            seconds = time.monotonic() - run.begun
            done = run.process.returncode == 0
            self._note(run.job, "done" if done else "stopped" if stopping else "failed", seconds)
            if done:
                self._durations[run.job.kind] = max(seconds, self._durations.get(run.job.kind, 0.0))
                self._finished(run.job)
            elif not stopping:
                self._failed(run)

    def _failed(self, run: _Run) -> None:
        """Try it once more at the end; beside fewer others, where memory was short."""
        self._failures += 1
        self._tries[run.job.name] = self._tries.get(run.job.name, 0) + 1
        if _MEMORY in tail(run.log) and self._running:
            self._slots = max(1, self._slots - 1)
        if self._tries[run.job.name] < _TRIES:
            self._queue.append(run.job)

    def _note(self, job: Job, state: str, seconds: float = 0.0) -> None:
        before = self._outcomes.get(job.name)
        self._outcomes[job.name] = Outcome(job, state, seconds + (before.seconds if before else 0.0), self._log(job))

    def _log(self, job: Job) -> Path:
        return self._logs / f"{re.sub(r'[^A-Za-z0-9._-]', '_', job.name)}.log"

    def _end_all(self) -> None:
        """Interrupt what is in the middle, wait for what is being scored, and end by force what is left."""
        self._queue = [job for job in self._queue if job.name not in self._outcomes]
        hard = min(self._end, time.monotonic() + self._grace)
        for run in self._running:
            if not _scoring(run.log):
                _send(run, signal.SIGINT)
        self._wait(hard - 0.3 * self._grace)
        for what, until in ((signal.SIGTERM, hard - 0.1 * self._grace), (signal.SIGKILL, hard + 5)):
            for run in self._running:
                _send(run, what)
            self._wait(until)

    def _wait(self, until: float) -> None:
        while self._running and time.monotonic() < until:
            self._reap(stopping=True)
            time.sleep(_POLL / 2)


def tail(log: Path, characters: int = 2000) -> str:
    """The end of a log."""
    try:
        return log.read_bytes()[-characters:].decode(errors="replace")
    except OSError:
        return ""


def _scoring(log: Path) -> bool:
    """Whether the last epoch is over: what is left takes seconds."""
    epochs = _LAST_EPOCH.findall(tail(log))
    return bool(epochs) and epochs[-1][0] == epochs[-1][1]


def _send(run: _Run, what: signal.Signals) -> None:
    try:
        os.killpg(run.process.pid, what)
    except ProcessLookupError:
        pass
