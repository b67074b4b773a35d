"""`litheseg measure`: write a kit that times a model on a machine without litheseg."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from litheseg.budget.candidates import default_sizes
from litheseg.budget.target import SCRIPT, kit_networks, write_kit
from litheseg.cli.options import bundle_argument, parse_sizes, widths_option
from litheseg.cli.printing import say
from litheseg.models.bundle import load_bundle

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    bundle_argument(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the kit goes")
    widths_option(parser, "those to export; any in the trained range [all of the model, and two between each pair]")
    parser.add_argument(
        "--sizes", type=parse_sizes, metavar="HxW,HxW", help="the network's inputs [training size, 3/4 and 1/2 of it]"
    )
    parser.add_argument("--force", action="store_true", help="replace a kit that is there")
    parser.epilog = """Copy the folder to the target. The script in it needs Python, NumPy, and onnxruntime or openvino:

  python kit/measure.py --threads 1,4          (there; --help says more)
  litheseg fit model.safetensors --measured measurements.json --budget 20ms --output deployed      (here again)

It times networks alone, from a uint8 image of the network's size to logits: keep room for the rest with
`litheseg fit --reserve`.

examples:
  litheseg measure runs/camvid/model.safetensors --output kit
  litheseg measure model.safetensors --widths 1,.5,.25 --sizes 180x240,136x184 --output kit
"""


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    bundle = load_bundle(args.bundle)
    networks = kit_networks(bundle, args.widths, args.sizes or default_sizes(bundle.header.size))
    folder = write_kit(bundle, args.output, networks, force=args.force, progress=say)
    number = "1 network" if len(networks) == 1 else f"{len(networks)} networks"
    print(f"{number} and {SCRIPT} written to {folder}\n\nnext, on the target:")
    print(f"  python {folder.name}/{SCRIPT}\nthen here:")
    print(f"  litheseg fit {args.bundle} --measured measurements.json --budget 20ms --output deployed")
