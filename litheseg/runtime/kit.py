"""Timing an export where it will run: the networks that it holds, alone, as a benchmark kit times them.

A kit (`litheseg.budget.target`) is for machines without litheseg; this is for those with the base install. Both write
the same measurements, from which `litheseg fit --measured` chooses on the workstation.

Usage:
    >>> content = measure_export("exports/street", "measurements.json", threads=(1, 4))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litheseg.bundle.exported import Artefact, Export, load_export
from litheseg.errors import LithesegError
from litheseg.runtime.standalone import RESULT_FILE, Unusable, measure_kit, write_measurements

__all__ = ["measure_export"]

_FORMATS = ("onnx", "openvino")


def measure_export(
    export: Export | str | Path,
    output: str | Path = RESULT_FILE,
    *,
    threads: Sequence[int] | None = None,
    runtimes: Sequence[str] | None = None,
    repeats: int = 90,
    fps: float | None = None,
) -> dict[str, Any]:
    """Time the networks of an export, alone, in turns, and write and show the measurements.

    Args:
        export: a loaded one, or its path.
        output: the file to write.
        threads: numbers of CPU threads; None for 1 and all.
        runtimes: "onnxruntime", "openvino" or both; None for those that are installed.
        repeats: timed passes of each.
        fps: images a second, as of a camera; None for no pause.

    Returns:
        What was written; milliseconds are of the network alone.

    Raises:
        LithesegError: nothing that could be timed here.
    """
    export = export if isinstance(export, Export) else load_export(export)
    networks = [_entry(export, artefact) for artefact in export.artefacts if artefact.format in _FORMATS]
    kit = {"model": export.provenance.get("model", ""), "name": export.path.name, "networks": networks}
    try:
        content = measure_kit(kit, export.folder, threads=threads, runtimes=runtimes, repeats=repeats, fps=fps)
    except Unusable as error:
        raise LithesegError(f"{export.path}: {error}") from error
    write_measurements(Path(output), content)
    return content


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
