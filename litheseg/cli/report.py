"""Compare models on one page.

Example:
  litheseg report runs/a/model.safetensors runs/b/model.safetensors --data data/camvid --output compare.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litheseg.cli.parsing import command as takes_options_of
from litheseg.report.run_report import write_report

__all__ = ["report"]


@takes_options_of(write_report)
def report(models: Sequence[Path], *, command: str = "", **options: Any) -> None:
    """Print where the page is.

    Args:
        models: model files, best of the same classes.
        command: the shell command, for the page.
        **options: of `write_report`.
    """
    print(write_report(models, command=command, **options))
