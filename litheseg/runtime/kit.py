"""Timing an export where it will run: the networks that it holds, alone, as a benchmark kit times them.

A kit (`litheseg.budget.target`) is for machines without litheseg; this is for those with the base install. Both write
the same measurements, from which `litheseg fit --measured` chooses on the workstation.

Usage:
    >>> content = measure_export(load_export("exports/street"), threads=(1, 4))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litheseg.bundle.exported import Artefact, Export
from litheseg.errors import LithesegError
from litheseg.runtime.standalone import Unusable, measure_kit

__all__ = ["measure_export"]

_FORMATS = ("onnx", "openvino")


def measure_export(
    export: Export,
    *,
    threads: Sequence[int] | None = None,
    runtimes: Sequence[str] | None = None,
    repeats: int = 90,
    fps: float | None = None,
) -> dict[str, Any]:
    """Time the networks of an export, alone, in turns.

    Args:
        export: a loaded one.
        threads: numbers of CPU threads; None for 1 and all.
        runtimes: "onnxruntime", "openvino" or both; None for those that are installed.
        repeats: timed passes of each.
        fps: images a second, as of a camera; None for no pause.

    Returns:
        The content of measurements.json; milliseconds are of the network alone.

    Raises:
        LithesegError: nothing that could be timed here.
    """
    networks = [_entry(export, artefact) for artefact in export.artefacts if artefact.format in _FORMATS]
    kit = {"model": export.provenance.get("model", ""), "name": export.path.name, "networks": networks}
    try:
        return measure_kit(kit, export.folder, threads=threads, runtimes=runtimes, repeats=repeats, fps=fps)
    except Unusable as error:
        raise LithesegError(f"{export.path}: {error}") from error


def _entry(export: Export, artefact: Artefact) -> dict[str, Any]:
    """A network as kit.json has it; one that takes any size is timed at the size that the model was trained at."""
    size = artefact.size or export.header.size
    name = f"w{artefact.width:g}-{size[0]}x{size[1]}-{artefact.precision}"
    # The format made for a runtime is what runs there: OpenVINO reads ONNX only where there is nothing else.
    own = "openvino" in {other.format for other in export.artefacts}
    runtimes = ["onnxruntime"] if artefact.format == "onnx" and own else list(artefact.runtimes)
    return {
        "id": name,
        "width": artefact.width,
        "size": list(size),
        "precision": artefact.precision,
        "layout": artefact.layout,
        "path": artefact.path,
        "files": dict(artefact.files),
        "runtimes": runtimes,
    }
