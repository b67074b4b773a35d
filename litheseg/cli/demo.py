"""See litheseg in a few minutes, offline: a trained network on photographs; then train, measure and report a small one.

It takes every recipe field too, such as --trainer.epochs 5 (see `litheseg recipes demo`).
"""

from __future__ import annotations

from pathlib import Path

from litheseg.cli.printing import print_next, print_table
from litheseg.data.sources.base import find_images
from litheseg.demo import ZOO_MODEL, demo_photographs, draw_photographs, run_demo
from litheseg.errors import DataError
from litheseg.models.bundle import load_bundle
from litheseg.report.card import width_table

__all__ = ["demo"]


def demo(
    *overrides: str, output: Path = Path("runs/demo"), photographs: Path | None = None, force: bool = False
) -> None:
    """Print the scores of each width.

    Args:
        *overrides: recipe fields.
        output: the run's folder; the picture of the photographs lies beside it.
        photographs: a folder of street photographs that the zoo's network labels first; by default those of the zoo.
        force: begin anew instead of reusing a finished run.
    """
    picture = output.with_name(f"{output.name}-photographs.png")
    shown = demo_photographs() if photographs is None else list(find_images(photographs).values())
    if photographs is not None and not shown:
        raise DataError(f"{photographs} holds no image; give a folder of photographs of streets")
    if shown and (force or photographs is not None or not picture.exists()):
        draw_photographs(picture, shown)
        print(f"{ZOO_MODEL}, a trained network, on photographs, at each of its widths: {picture}\n")
    result = run_demo(output, overrides, force=force)
    if result.reused:
        print(f"{output} holds a finished demo: nothing was trained (--force begins anew)")
    print_table(width_table(result.rows))
    print_next(result.bundle, result.report, load_bundle(result.bundle).header.available_widths)
