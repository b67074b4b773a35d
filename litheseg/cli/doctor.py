"""Find what is wrong with a data set.

exit status: 0 training can go on, 1 it cannot.

Examples:
  litheseg doctor data/camvid
  litheseg doctor data/mine --source folder --crop 512x512 --json
  litheseg doctor data/mine --write-classes      # a first classes.yaml from the values in the masks
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litheseg.cli.parsing import command
from litheseg.cli.printing import console
from litheseg.data.doctor.diagnosis import diagnose_path
from litheseg.data.formats.drafting import draft_classes
from litheseg.errors import DataError
from litheseg.masks.opening import MAX_PIXELS
from litheseg.progress import say

__all__ = ["doctor"]


@command(diagnose_path, without=("splits",))
def doctor(data: Path | None = None, /, *, json: bool = False, write_classes: bool = False, **options: Any) -> int:
    """Print the diagnosis.

    Args:
        data: the folder of the data; none for --source streets.
        json: print JSON.
        write_classes: first write a classes.yaml with a class for each value in the masks, to be given names.
        **options: of `diagnose_path`.
    """
    if write_classes:
        if data is None:
            raise DataError("--write-classes needs the folder of the masks; name it")
        path = draft_classes(data, max_pixels=options.get("max_pixels", MAX_PIXELS))
        say(f"wrote {path}: open it and give the classes their names")
    report = diagnose_path(data, **options)
    if json:
        print(report.to_json())
    else:
        console().print(report.render())
    return 0 if report.ok else 1
