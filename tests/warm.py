"""Processes that begin with PyTorch imported, for tests that kill, signal or join some: importing it takes seconds.

One process imports what training needs, computes nothing, and forks. What it forks becomes the script, the module or
the code that a new interpreter would run; what that starts in turn begins as quickly.

Usage:
    >>> done = warm.run([tiny_training.__file__, folder], env=tiny_training.environment(), timeout=300)
"""

from __future__ import annotations

import atexit
import gc
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import traceback
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

_STARTING = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_MOST = 1 << 20  # bytes of a message

_spares: list[tuple[int, socket.socket]] = []
"""Of a forked process: the child that is to become what it starts."""


def run(words: list[Any], *, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *words])`, with what it prints as text."""
    process = start(words, **options)
    try:
        printed, error = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(words, process.returncode, printed, error)


def start(words: list[Any], **options: Any) -> subprocess.Popen[str]:
    """As `subprocess.Popen([sys.executable, *words])`, with what it prints as text."""
    command = [sys.executable, *map(str, words)]
    return _Forked(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


class _Told(subprocess.Popen):  # type: ignore[type-arg]
    """A process that is there before it is told what to run; of other programs than Python, a usual one."""

    def _execute_child(self, *args: Any) -> None:  # type: ignore[override]
        given = _STARTING.bind(self, *args).arguments
        if given["args"][0] != sys.executable:
            super()._execute_child(*args)  # type: ignore[misc]
            return
        program = {
            "words": given["args"][1:],
            "folder": str(given["cwd"] or os.getcwd()),
            "environment": dict(os.environ if given["env"] is None else given["env"]),
        }
        ends = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        self.pid = self._tell(program, [own if end == -1 else end for own, end in enumerate(ends)])
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in _PIPES))  # type: ignore[attr-defined]

    def _tell(self, program: dict[str, Any], ends: list[int]) -> int:
        child, place = _spares.pop()
        socket.send_fds(place, [json.dumps(program).encode()], ends)
        return child


class _Forked(_Told):
    """A child of the process that forks, which is asked how it ended."""

    def _tell(self, program: dict[str, Any], ends: list[int]) -> int:
        return int(_ask(program, ends)[0])

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        with self._waitpid_lock:  # type: ignore[attr-defined]
            if self.returncode is None:
                pid, status = self._try_wait(os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        pid, status = _ask(self.pid)
        while not pid and not wait_flags:
            time.sleep(0.01)
            pid, status = _ask(self.pid)
        return pid, status


def _ask(question: Any, ends: list[int] | None = None) -> Any:
    place = _forking()
    socket.send_fds(place, [json.dumps(question).encode()], ends or [])
    return json.loads(place.recv(_MOST))


@cache
def _forking() -> socket.socket:
    """The socket of the process that forks; it ends when this one does."""
    here = Path(__file__)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, here.parents[:2]))}
    subprocess.Popen([sys.executable, here, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=environment)
    theirs.close()
    return ours


# --- in the process that forks, and those that it forks --------------------------------------------------------------


def _serve(place: socket.socket) -> None:
    """Answer process ids with how they ended, and programs with the process that runs them."""
    while True:
        message, ends, *_ = socket.recv_fds(place, _MOST, 3)
        if not message:
            sys.exit()
        question = json.loads(message)
        if isinstance(question, int):
            answer = os.waitpid(question, os.WNOHANG)
        else:
            answer = (os.fork(), 0)
            if not answer[0]:
                place.close()
                _become(question, ends)
            for end in ends:
                os.close(end)
        place.send(json.dumps(answer).encode())


def _become(program: dict[str, Any], ends: list[int]) -> NoReturn:
    """Run it, as a new interpreter would, and end: without taking apart all that was imported, which takes a second."""
    status: Any = 0
    try:
        _prepare(program, ends)
        _run(program["words"])
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    if not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _prepare(program: dict[str, Any], ends: list[int]) -> None:
    """Take on its folder, environment and pipes, and have a spare child for what it starts."""
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    for own, end in enumerate(ends):
        os.dup2(end, own)
        os.close(end)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if not child:
        ours.close()
        message, ends, *_ = socket.recv_fds(theirs, _MOST, 3)
        theirs.close()
        if not message:
            os._exit(0)
        _become(json.loads(message), ends)
    theirs.close()
    _spares[:] = [(child, ours)]
    subprocess.Popen = _Told  # type: ignore[misc]
    os.chdir(program["folder"])
    os.environ.clear()
    os.environ |= program["environment"]
    rank_zero_only.rank = _get_rank() or 0


def _run(words: list[str]) -> None:
    """The code after -c, the module after -m, or the script."""
    kind = words[0]
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place not in sys.path]
    sys.path[:0] = [str(Path(kind).parent) if kind[0] != "-" else "", *places]
    if kind == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    gc.disable()
    import tiny_training  # noqa: F401 (and with it what takes long)

    gc.freeze()  # children share its memory for as long as nobody writes there
    gc.enable()
    _serve(socket.socket(fileno=int(sys.argv[1])))
