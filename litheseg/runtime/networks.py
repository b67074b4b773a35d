"""The networks of a model, one per width, opened when they are first asked for and then kept: what a `Predictor` runs.

It is thread-safe. Where an engine is faster with several images together (on a GPU), threads share passes: the thread
that gets the engine computes for all that wait for it with images of the same size. No thread waits for others to join:
a single image goes through at once.

Usage:
    >>> networks = export_networks(load_export("exports/street"), width=None, runtime=None)
    >>> logits = networks.engine(0.5)(image)
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from litheseg.bundle.exported import Export
from litheseg.bundle.header import BundleHeader
from litheseg.runtime.engines import Engine, open_engine

__all__ = ["Networks", "SharedEngine", "export_networks"]


class Networks:
    """Engines by width.

    Args:
        header: of the bundle, or of the one that the export was made from.
        widths: to choose from, widest first.
        check_width: returns a valid width, or raises a `WidthError` that names those available.
        make: an engine of a width; what is no width is a `WidthError` as well.
        width: the one that is opened at once, so that errors of the runtime are raised now; None for the widest.

    Attributes:
        runtime: one of `litheseg.bundle.targets.RUNTIMES`.
        size: height and width of the images that the networks take, in pixels; None for any.
    """

    def __init__(
        self,
        header: BundleHeader,
        widths: tuple[float, ...],
        check_width: Callable[[float], float],
        make: Callable[[float], Engine],
        width: float | None,
    ) -> None:
        self.header, self.widths, self.check_width = header, widths, check_width
        self._make, self._made, self._lock = make, dict[float, Engine](), threading.Lock()
        engine = self.engine(widths[0] if width is None else width)
        self.runtime, self.size = engine.runtime, engine.size

    def engine(self, width: float) -> Engine:
        """The engine of a width, made once even if two threads ask for it; a lookup waits for nothing."""
        made = self._made.get(width)
        if made is None:
            with self._lock:
                made = self._made.get(width) or self._make(width)
                self._made[width] = made
        return made


def export_networks(
    export: Export,
    width: float | None,
    runtime: str | None,
    *,
    precision: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> Networks:
    """Networks of an export.

    Args:
        export: a loaded one.
        width: the first to be used; None for the widest.
        runtime: None for one that is installed and takes the export's files.
        precision: None for float32 if the export has it.
        device: "cpu", or "cuda" where the runtime has it.
        threads: of the CPU; None for the runtime's own choice.

    Raises:
        WidthError: the export does not have the width.
        MissingExtraError: a runtime that is not installed.
        LithesegError: the export has no such network, or this machine cannot run it.
    """
    stored = {artefact.precision for artefact in export.artefacts}
    chosen = precision or ("fp32" if "fp32" in stored else "int8")

    def opened(width: float | None) -> Engine:
        return open_engine(export, width=width, runtime=runtime, precision=chosen, threads=threads, device=device)

    first = opened(width)  # a runtime of the first network's is the runtime of all
    runtime, ready = first.runtime, [first]
    fitting = {
        artefact.width
        for artefact in export.artefacts
        if first.runtime in artefact.runtimes and artefact.precision == ("int8" if chosen == "int8" else "fp32")
    }
    widths = tuple(sorted(fitting, reverse=True))
    return Networks(
        export.header,
        widths,
        lambda width: export.find(width, first.runtime, chosen).width,
        lambda width: ready.pop() if ready else opened(width),  # the first one is open already
        width,
    )


@dataclass(eq=False)
class _Waiting:
    image: np.ndarray
    output: Any = None


class SharedEngine(Engine):
    """An engine whose passes callers in several threads share.

    Args:
        engine: whose `together` says how many images go into one pass at most.
    """

    def __init__(self, engine: Engine) -> None:
        self.runtime, self.precision, self.output = engine.runtime, engine.precision, engine.output
        self.size, self.together = engine.size, engine.together
        self.images, self.layout = engine.images, engine.layout
        self._engine, self._lock, self._waiting = engine, threading.Lock(), deque[_Waiting]()

    def run(self, image: np.ndarray) -> Any:
        """See `Engine.run`."""
        request = _Waiting(image)
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

    def _compute(self, request: _Waiting) -> None:
        """One pass for this request and waiting ones of its size. Where it fails, the others try again themselves."""
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
