"""Lets callers in several threads share the passes of an engine that is faster with several images at once (a GPU's).

Whoever gets the engine computes for all who wait for it with images of the same size. Nobody waits for company: alone,
an image goes through at once. It does not know threads' owners, nor images of other kinds than arrays.

Usage:
    >>> engine = Shared(engine)
    >>> output = engine.run(image)  # from any thread
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from litheseg.runtime.engines import Engine

__all__ = ["Shared"]


@dataclass(eq=False)
class _Request:
    image: np.ndarray
    output: Any = None


class Shared(Engine):
    """An engine behind which callers gather.

    Args:
        engine: whose `together` says how many images go into one pass at most.
    """

    def __init__(self, engine: Engine) -> None:
        self.runtime, self.precision, self.output = engine.runtime, engine.precision, engine.output
        self.size, self.together = engine.size, engine.together
        self._engine, self._lock, self._waiting = engine, threading.Lock(), deque[_Request]()

    def run(self, image: np.ndarray) -> Any:
        """See `Engine.run`."""
        request = _Request(image)
        self._waiting.append(request)
        with self._lock:
            if request.output is None:
                self._compute(request)
        return request.output

    def run_batch(self, images: Sequence[np.ndarray]) -> list[Any]:
        """See `Engine.run_batch`."""
        return self._engine.run_batch(images)

    def array(self, output: Any) -> np.ndarray:
        """See `Engine.array`."""
        return self._engine.array(output)

    def labels(self, output: Any, size: tuple[int, int], threads: int | None = None) -> np.ndarray:
        """See `Engine.labels`."""
        return self._engine.labels(output, size, threads)

    def wait(self) -> None:
        """See `Engine.wait`."""
        self._engine.wait()

    def _compute(self, request: _Request) -> None:
        """One pass for this request and others like it. Where it fails, the others try again when their turn comes."""
        with suppress(ValueError):  # one whose pass failed has left the queue already
            self._waiting.remove(request)
        alike = [other for other in tuple(self._waiting) if other.image.shape == request.image.shape]
        group = [request, *alike[: self.together - 1]]
        for other in group[1:]:
            self._waiting.remove(other)
        try:
            outputs = self._engine.run_batch([entry.image for entry in group])
        except Exception:
            if len(group) == 1:
                raise
            outputs = self._engine.run_batch([request.image])  # too many at once, or another's fault
        for entry, output in zip(group, outputs, strict=False):
            entry.output = output
