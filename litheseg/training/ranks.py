"""The processes of a distributed run on one machine: starting them, and one clear message when one of them dies.

The first process runs its own command again for each further device. Lightning would do so too, but where a process
dies it kills all others without saying why, unless the connection breaks first, with a traceback. Where somebody else
starts the processes (torchrun, SLURM), nothing is started here. It does not know what is trained.

Usage:
    >>> with one_voice(lambda: "resume with the same command and --resume"):
    ...     start_ranks(trainer)
    ...     trainer.fit(task)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from litheseg.errors import RankError

__all__ = ["is_first_process", "one_voice", "start_ranks"]

_PARENT = "LITHESEG_FIRST_PROCESS"  # pid of the process that started this one
_LOOK = 0.5  # seconds between two looks at the others
_SILENCE = 3.0  # seconds that others than the first wait with their errors: the first may have the same, and ends them
_DYING = 5.0  # seconds that a process takes to die after its connection broke
_STUCK = 10.0  # seconds after which a process that waits for a dead one is ended; more than the two before
_BROKEN = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")

_processes: dict[int, subprocess.Popen[bytes]] = {}  # by rank; those that this process started
_running: list[Callable[[], str]] = []  # how to go on, of the runs that this process is in, outermost first


def is_first_process() -> bool:
    """Whether this is the process that writes files and messages; known before there is a Trainer."""
    node = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))
    return getattr(rank_zero_only, "rank", 0) == 0 and node == 0


def start_ranks(trainer: L.Trainer) -> None:
    """Start a process for each further device of this machine, if a strategy needs them and no launcher starts them.

    Args:
        trainer: that is going to fit; of a DDP strategy, or on one device.
    """
    cluster = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_devices < 2 or cluster is None or cluster.creates_processes_externally:
        return
    node, script = cluster.node_rank(), sys.modules["__main__"].__spec__
    command = [os.path.abspath(sys.argv[0])] if script is None else ["-m", script.name]
    # What Lightning documents for processes that a launcher starts.
    os.environ |= {
        "MASTER_ADDR": cluster.main_address,
        "MASTER_PORT": str(cluster.main_port),
        "NODE_RANK": str(node),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(trainer.world_size),
    }
    with _deaf_to_ctrl_c():
        for local in range(1, trainer.num_devices):
            environment = {**os.environ, "LOCAL_RANK": str(local), _PARENT: str(os.getpid())}
            process = subprocess.Popen([sys.executable, *command, *sys.argv[1:]], env=environment)
            _processes[node * trainer.num_devices + local] = process
    threading.Thread(target=_watch_others, daemon=True).start()


@contextmanager
def one_voice(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """While processes run together: the death of one is a `RankError`, and of an error of all of them the first speaks.

    Args:
        how_to_go_on: gives its part of the message; called when needed.

    Raises:
        RankError: another process died.
    """
    _running.append(how_to_go_on)
    if _PARENT in os.environ and len(_running) == 1:
        threading.Thread(target=_watch_first, args=(int(os.environ[_PARENT]),), daemon=True).start()
    try:
        yield
    except BaseException as error:
        broken = isinstance(error, RuntimeError) and _is_broken(error)
        if _PARENT in os.environ:
            time.sleep(_SILENCE)
        lost = _lost(_DYING if broken else 0.0)
        _end_others()
        if broken and (lost or torch.distributed.is_initialized()):
            text = lost or "another process of this run has ended, and its own message says why"
            raise RankError(f"{text}; {how_to_go_on()}") from error
        raise
    finally:
        _running.pop()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started now ignore Ctrl-C, which reaches all of a terminal: the first one stops the others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _is_broken(error: RuntimeError) -> bool:
    return isinstance(error, torch.distributed.DistError) or any(word in str(error) for word in _BROKEN)


def _lost(patience: float) -> str:
    """What became of the first process of ours that did not end well; "" if all are well for so many seconds."""
    deadline = time.monotonic() + patience
    while True:
        for rank, process in _processes.items():
            if process.poll():
                return f"the process of rank {rank} (pid {process.pid}) {_fate(process.returncode)}"
        if time.monotonic() >= deadline:
            return ""
        time.sleep(0.05)


def _fate(status: int) -> str:
    if status > 0:
        return f"ended with status {status}, for the reason that it gave"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    memory = ", as the system does where memory runs out (then lower --data.batch_size)" if name == "SIGKILL" else ""
    return f"was killed by {name}{memory}"


def _end_others() -> None:
    for process in _processes.values():
        if process.poll() is None:
            process.kill()


def _watch_others() -> None:
    """Of the first process: end the run where it waits for a dead process and would do so for ever."""
    while not (lost := _lost(_LOOK)):
        pass
    time.sleep(_STUCK)
    if _running:
        _end_others()
        _end(lost)


def _watch_first(parent: int) -> None:
    """Of the others: do not outlive the first process."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    time.sleep(_LOOK)  # a run that is over leaves `_running` meanwhile
    if _running:
        _end(f"the first process of the run (pid {parent}) was killed" if os.environ["LOCAL_RANK"] == "1" else "")


def _end(reason: str) -> None:
    """Leave at once: the main thread may be anywhere, and files are written whole or not at all."""
    if reason:
        print(f"error: {reason}; {_running[0]()}", file=sys.stderr, flush=True)
    os._exit(RankError.exit_status)
