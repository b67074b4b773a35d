"""Find what is wrong with a data set.

exit status: 0 training can go on, 1 it cannot.

Examples:
  litheseg doctor data/camvid
  litheseg doctor data/mine --source folder --crop 512x512 --json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from litheseg.cli.parsing import command
from litheseg.cli.printing import console
from litheseg.data.doctor import diagnose_path

__all__ = ["doctor"]


@command(diagnose_path, without=("splits", "progress"))
def doctor(data: Path | None = None, /, *, json: bool = False, **options: Any) -> int:
    """Print the diagnosis.

    Args:
        data: the folder of the data; none for --source streets.
        json: print JSON.
        **options: of `diagnose_path`.
    """
    report = diagnose_path(data, progress=sys.stderr.isatty(), **options)
    if json:
        print(report.to_json())
    else:
        console().print(report.render())
    return 0 if report.ok else 1
