"""Demonstrate litheseg in a few minutes, offline: train one network on procedural streets, run it at five widths.

It does what `litheseg train`, `profile` and `report` do, one after the other; the choices are in `recipes/demo.yaml`.

Usage:
    >>> result = run_demo("runs/demo")
    >>> [(row.width, row.miou) for row in result.rows]
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from litheseg.errors import TrainingError
from litheseg.locks import folder_lock
from litheseg.models.bundle import load_bundle
from litheseg.report.card import WidthRow, width_rows
from litheseg.runtime.profiling import profile
from litheseg.training.recipe import load_recipe

__all__ = ["DemoResult", "run_demo"]


@dataclass(frozen=True)
class DemoResult:
    """What the demo leaves behind.

    Attributes:
        bundle: the model file.
        report: the HTML page.
        rows: accuracy and measured cost, the widest first.
        reused: whether a finished demo was found, so that nothing was trained.
    """

    bundle: Path
    report: Path
    rows: tuple[WidthRow, ...]
    reused: bool


def run_demo(
    output: str | Path = "runs/demo", overrides: Sequence[str] = (), *, force: bool = False, threads: int | None = None
) -> DemoResult:
    """Train (or go on, or only measure again where the training is done) and report.

    Args:
        output: folder of the run.
        overrides: changes of the recipe, as on the command line.
        force: begin anew, removing the folder of an earlier demo.
        threads: CPU threads while measuring milliseconds; by default PyTorch's own choice.

    Raises:
        TrainingError: the folder is not one of a demo.
        LithesegError: what `litheseg.training.train` raises.
    """
    from litheseg.report.run_report import report_run  # Lightning takes its time, which --help need not wait for
    from litheseg.training.run import train

    folder = Path(output)
    bundle = folder / "model.safetensors"
    if force and folder.exists():
        if not (folder / "recipe.yaml").exists():
            raise TrainingError(f"{folder} is not the folder of a run and is left alone; choose another --output")
        with folder_lock(folder):
            shutil.rmtree(folder)
    reused = bundle.exists()
    if not reused:
        train(load_recipe("demo", list(overrides)), folder, resume=True)
    loaded = load_bundle(bundle)
    costs = profile(loaded, threads=threads)
    report = report_run(folder, costs=costs, command="litheseg demo", title="litheseg demo")
    return DemoResult(bundle, report, width_rows(loaded.header, costs), reused)
