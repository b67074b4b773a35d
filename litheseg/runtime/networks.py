"""The networks of a model, one per width, opened when they are first asked for and then kept: what a `Predictor` runs.

Several threads may ask at once. It does not know images, nor what becomes of the logits.

Usage:
    >>> networks = export_networks(load_export("exports/street"), width=None, runtime=None)
    >>> logits = networks.engine(0.5)(image)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from litheseg.bundle.exported import Export
from litheseg.bundle.header import BundleHeader
from litheseg.runtime.engines import Engine, open_engine

__all__ = ["Networks", "export_networks", "is_export"]


class Networks:
    """Engines by width.

    Args:
        header: of the bundle, or of the one that the export was made from.
        widths: to choose from, widest first.
        check_width: gives a width back, or raises a `WidthError` that names those that there are.
        make: an engine of a width.
        first: the width that is made at once, so that what is wrong with the runtime is said now.

    Attributes:
        runtime: one of `litheseg.bundle.exported.RUNTIMES`.
        size: height and width of the images that the networks take, in pixels; None for any.
    """

    def __init__(
        self,
        header: BundleHeader,
        widths: tuple[float, ...],
        check_width: Callable[[float], float],
        make: Callable[[float], Engine],
        first: float,
    ) -> None:
        self.header, self.widths, self.check_width = header, widths, check_width
        self._make, self._made, self._lock = make, dict[float, Engine](), threading.Lock()
        engine = self.engine(first)
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
    precision = precision or ("fp32" if "fp32" in stored else "int8")
    how: dict[str, Any] = {"precision": precision, "threads": threads, "device": device}
    engine = open_engine(export, width=width, runtime=runtime, **how)
    fitting = [
        artefact.width
        for artefact in export.artefacts
        if engine.runtime in artefact.runtimes and artefact.precision == ("int8" if precision == "int8" else "fp32")
    ]
    widths = tuple(sorted(set(fitting), reverse=True))
    first = widths[0] if width is None else width
    ready = {first: engine}  # the first one is open already

    def make(width: float) -> Engine:
        return ready.pop(width, None) or open_engine(export, width=width, runtime=engine.runtime, **how)

    check = partial(_checked_width, export, engine.runtime, precision)
    return Networks(export.header, widths, check, make, first)


def is_export(path: Path) -> bool:
    """Whether a path is that of an export rather than of a model file."""
    return path.is_dir() or path.suffix.lower() in (".json", ".onnx", ".pt2", ".xml")


def _checked_width(export: Export, runtime: str, precision: str, width: float) -> float:
    return export.find(width, runtime, precision).width
