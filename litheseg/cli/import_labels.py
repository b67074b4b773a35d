"""`litheseg import-labels`: read corrected labels back as a data set."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from litheseg.cli.options import json_option
from litheseg.cli.printing import print_json
from litheseg.labelling import import_labels

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("export", metavar="EXPORT", help="of CVAT (Segmentation mask 1.1) or Label Studio (JSON)")
    parser.add_argument("--output", required=True, metavar="DIR", help="the data set's folder")
    parser.add_argument("--images", metavar="DIR", help="the images that were annotated [those in the export]")
    parser.add_argument("--classes", metavar="FILE", help="a classes.yaml or a model [the labels of a CVAT export]")
    parser.add_argument("--unlabelled-as", metavar="NAME", help="the class of pixels that nobody drew [ignored]")
    parser.add_argument("--force", action="store_true", help="replace images and masks that exist")
    json_option(parser)
    parser.epilog = """examples:
  litheseg import-labels job_12.zip --images photos/ --classes labelled/classes.yaml --output corrected/
  litheseg import-labels project-1.json --images photos/ --classes model.safetensors --output corrected/ \\
      --unlabelled-as background

Several exports may go into one folder, if no image is in two of them. Then: litheseg doctor corrected/
"""


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    options = {name: getattr(args, name) for name in ("images", "classes", "unlabelled_as", "force")}
    result = import_labels(args.export, args.output, **options)
    if args.json:
        return print_json({**asdict(result), "folder": str(result.folder)})
    left = f"; {len(result.left_out)} left out, nobody drew on them" if result.left_out else ""
    print(f"{result.folder}: {result.images} images with masks of {len(result.classes)} classes{left}")
