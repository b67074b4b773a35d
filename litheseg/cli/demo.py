"""Train, measure and report a small model in a few minutes, offline.

It takes every recipe field too, such as --trainer.epochs 5 (see `litheseg recipes demo`).
"""

from __future__ import annotations

from pathlib import Path

from litheseg.cli.printing import print_next, print_table
from litheseg.demo import run_demo
from litheseg.models.bundle import load_bundle
from litheseg.report.card import width_table

__all__ = ["demo"]


def demo(*overrides: str, output: Path = Path("runs/demo"), force: bool = False) -> None:
    """Print the scores of each width.

    Args:
        *overrides: recipe fields.
        output: the run's folder.
        force: begin anew instead of reusing a finished run.
    """
    result = run_demo(output, overrides, force=force)
    if result.reused:
        print(f"{output} holds a finished demo: nothing was trained (--force begins anew)")
    print_table(width_table(result.rows))
    print_next(result.bundle, result.report, load_bundle(result.bundle).header.available_widths)
