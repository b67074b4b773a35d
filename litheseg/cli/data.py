"""Fetch, import, make, describe and split data sets.

Examples:
  litheseg data import data/coco data/mine              (COCO, YOLO, LabelMe, CVAT, ...: recognised)
  litheseg data fetch camvid data/camvid
  litheseg data make streets data/streets --train 300 --val 60
  litheseg data info data/camvid
  litheseg data split data/camvid --ratio 1/8 --output few.txt      (then: train --data.labelled few.txt)
"""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from litheseg.cli.parsing import command
from litheseg.cli.printing import print_json, show
from litheseg.data import choose_labelled, describe, import_dataset
from litheseg.data.sources import download, streets

__all__ = ["fetch", "import_", "info", "make", "split"]


@command(download.fetch, without=("root",))
def fetch(name: str, folder: Path, **options: Any) -> None:
    """Download a public data set.

    Args:
        name: camvid; the other sets ask for a registration or have no canonical archive.
        folder: the folder to make; what it holds already is kept.
        **options: of `litheseg.data.fetch`.
    """
    show(str(download.fetch(name, folder, **options)))


@command(import_dataset)
def import_(source: Path, folder: Path, *, json: bool = False, **options: Any) -> None:
    """Write labels of another format as a folder of images and masks.

    Args:
        source: the folder of the data set, a label file, an archive of one, or hf:OWNER/NAME on the Hugging Face hub.
        folder: the folder to make; it must not exist, or be empty.
        json: print JSON.
        **options: of `litheseg.data.import_dataset`.
    """
    result = import_dataset(source, folder, **options)
    if json:
        return print_json({**asdict(result), "folder": str(result.folder)})
    counts = ", ".join(f"{split} {count}" for split, count in result.splits.items())
    show(f"{result.folder}: {counts}; {len(result.classes)} classes: {', '.join(result.classes)}")
    for note in result.notes:
        show(f"  {note}")
    show(f"next: litheseg doctor {shlex.quote(str(result.folder))}")


@command(streets.make_streets)
def make(name: Literal["streets"], folder: Path, *, train: int = 300, val: int = 60, **options: Any) -> None:
    """Write procedural scenes as files.

    Args:
        name: streets.
        folder: the folder to make; it must not exist, or be empty.
        train: number of training scenes.
        val: number of validation scenes.
        **options: of `make_streets`.
    """
    streets.make_streets(folder, train=train, val=val, **options)
    show(f"{folder}: {train} training and {val} validation scenes")


@command(describe)
def info(data: Path | None = None, /, *, json: bool = False, **options: Any) -> None:
    """Show splits, classes and licence.

    Args:
        data: the folder of the data; none for --source streets.
        json: print JSON.
        **options: of `litheseg.data.describe`.
    """
    facts = describe(data, **options)
    if json:
        return print_json(facts)
    counts = ", ".join(f"{split} {count}" for split, count in facts["splits"].items())
    for name, value in {**facts, "splits": counts, "classes": ", ".join(facts["classes"])}.items():
        show(f"{name + ':':<10}{value or '-'}")


@command(choose_labelled)
def split(data: Path | None = None, /, *, output: Path, **options: Any) -> None:
    """Choose which images count as labelled.

    Args:
        data: the folder of the data; none for --source streets.
        output: the list file, one id a line.
        **options: of `litheseg.data.choose_labelled`.
    """
    chosen = choose_labelled(data, output=output, **options)
    labelled, total = len(chosen.labelled), len(chosen.labelled) + len(chosen.unlabelled)
    show(f"{output}: {labelled} of {total} training images; use it as --data.labelled")
