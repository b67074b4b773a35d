r"""Read corrected labels back as a data set.

Several exports may go into one folder, if no image is in two of them. Then: litheseg doctor corrected/

Examples:
  litheseg import-labels job_12.zip --images photos/ --classes labelled/classes.yaml --output corrected/
  litheseg import-labels project-1.json --images photos/ --classes model.safetensors --output corrected/ \
      --unlabelled-as background
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from litheseg import labelling
from litheseg.cli.parsing import command
from litheseg.cli.printing import print_json

__all__ = ["import_labels"]


@command(labelling.import_labels)
def import_labels(export: Path, *, output: Path, json: bool = False, **options: Any) -> None:
    """Print how many images there are.

    Args:
        export: of CVAT (Segmentation mask 1.1) or Label Studio (JSON).
        output: the data set's folder.
        json: print JSON.
        **options: of `litheseg.labelling.import_labels`.
    """
    result = labelling.import_labels(export, output, **options)
    if json:
        return print_json({**asdict(result), "folder": str(result.folder)})
    left = f"; {len(result.left_out)} left out, nobody drew on them" if result.left_out else ""
    print(f"{result.folder}: {result.images} images with masks of {len(result.classes)} classes{left}")
