"""`litheseg import-weights`: make a model file of weights from elsewhere."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from litheseg.cli.options import parse_floats, parse_mapping, parse_size
from litheseg.cli.printing import print_table
from litheseg.deploy.import_weights import (
    KNOWN_CLASSES,
    NORMALISATIONS,
    import_weights,
    read_classes,
    read_normalisation,
)
from litheseg.report.card import width_rows, width_table

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("weights", metavar="WEIGHTS", help="a state dict: .pth, .pt, ... or .safetensors")
    parser.add_argument("--model", required=True, metavar="NAME", help="the architecture, see `litheseg models`")
    parser.add_argument("--args", type=parse_mapping, default={}, metavar="YAML", help="its arguments [{}]")
    parser.add_argument("--classes", required=True, metavar="C", help=f"{', '.join(KNOWN_CLASSES)}, a file, or names")
    parser.add_argument("--extra-class", action="append", default=[], metavar="NAME", help="an output behind these")
    parser.add_argument("--normalisation", choices=tuple(NORMALISATIONS), help="what the weights expect of images")
    parser.add_argument("--mean", type=parse_floats, metavar="R,G,B", help="instead: of images in [0, 1]")
    parser.add_argument("--std", type=parse_floats, metavar="R,G,B", help="likewise")
    parser.add_argument(
        "--size", type=parse_size, default=(512, 1024), metavar="HxW", help="images are resized to [512x1024]"
    )
    parser.add_argument("--source-note", default="", metavar="TEXT", help="where the weights come from, to be kept")
    parser.add_argument("--licence", default="", metavar="TEXT", help="of the weights, to be kept")
    parser.add_argument("--output", required=True, metavar="FILE", help="the bundle, .safetensors")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    parser.epilog = """Tensors are matched by order, shape and kind, names do not matter. Nothing in the file is run.

examples:
  litheseg import-weights erfnet_pretrained.pth --model erfnet --classes cityscapes --extra-class void \\
      --normalisation none --output erfnet.safetensors
  litheseg import-weights light.pth --model "erfnet-d*" --classes names.yaml --normalisation imagenet \\
      --size 360x480 --output light.safetensors                (the quotes keep the shell from reading the *)
  litheseg import-weights mine.pth --model erfnet --classes road,car,sky --mean .5,.5,.5 --std .25,.25,.25 \\
      --source-note "trained by A. Person, 2019" --licence CC-BY-4.0 --output mine.safetensors

What weights expect of images stands in no file: ERFNet's published ones take RGB in [0, 1] (--normalisation none) at
512x1024, and have a 20th output for what is not labelled (--extra-class void).
"""


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    mean, std = read_normalisation(args.normalisation, args.mean, args.std)
    options = {name: getattr(args, name) for name in ("model", "args", "size", "source_note", "licence", "force")}
    classes = read_classes(args.classes, args.extra_class)
    bundle = import_weights(args.weights, args.output, classes=classes, mean=mean, std=std, **options)
    print(f"{bundle.path}: {args.model}, {len(classes)} classes ({classes.names[0]} ... {classes.names[-1]})")
    print_table(width_table(width_rows(bundle.header)))
