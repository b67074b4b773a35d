"""Runs ExecuTorch's programs (.pte) on the CPU: in XNNPACK, and in ExecuTorch's own kernels what XNNPACK lacks.

ExecuTorch's Python runtime is linked to PyTorch, so it needs that package, too; an app on a device needs neither.

A benchmark kit holds this file beside its script, so it needs Python 3.9 or newer, NumPy and the runtime, no litheseg.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

__all__ = ["open_network"]

_LOCK = threading.Lock()  # the programs of a process share threads and memory


def open_network(
    path: str, *, precision: str = "fp32", threads: int | None = None, device: str = "cpu"
) -> Callable[[np.ndarray], np.ndarray]:
    """A program, which threads may share, in turns; see `litheseg.runtime.engines.open_engine`."""
    if device != "cpu":
        raise NotImplementedError(f"ExecuTorch runs on the CPU here, not on '{device}'; choose cpu, or --runtime torch")
    with _LOCK:
        program = _Program(Path(path).read_bytes(), threads)
        program.load()
    return program


class _Program:
    """A program that is loaded anew where the number of threads has changed since.

    A process has one pool of threads, and loaded programs keep its address: with ExecuTorch 1.5.1, one that is run
    after the pool was replaced ends the process. So all of them are let go before. Loading takes milliseconds; where
    networks are timed in turns, it falls into the passes that are not timed.
    """

    loaded: ClassVar[weakref.WeakSet[_Program]] = weakref.WeakSet()

    def __init__(self, content: bytes, threads: int | None) -> None:
        self._content, self._threads = content, threads
        self._method: Any = None

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        import torch

        with _LOCK:
            if self._method is None:
                self.load()
            return np.asarray(self._method.execute([torch.from_numpy(batch)])[0].numpy())

    def load(self) -> None:
        """Make it ready to run, and, where the number of threads is another one, all other programs not."""
        with _silence():
            own = _own_threads()
            if (wanted := self._threads or own) != _bindings()._threadpool_get_thread_count():
                for program in self.loaded:
                    program._method = None
                _bindings()._unsafe_reset_threadpool(wanted)
            self._method = _runtime().load_program(self._content).load_method("forward")
        self.loaded.add(self)


@cache
def _own_threads() -> int:
    """As many as ExecuTorch takes by itself, before it is told another number."""
    return int(_bindings()._threadpool_get_thread_count())


@contextmanager
def _silence() -> Iterator[None]:
    """Without what ExecuTorch writes to standard error of libraries, processors and threads, past Python."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@cache
def _runtime() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its interface is called experimental
        from executorch.runtime import Runtime

    return Runtime.get()


@cache
def _bindings() -> Any:
    _runtime()
    from executorch.extension.pybindings import portable_lib

    return portable_lib
