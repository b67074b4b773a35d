"""`litheseg measure`: time an export where it will run, or write a kit that times a model without litheseg."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from litheseg.bundle.exported import RUNTIMES, is_export
from litheseg.cli.options import bundle_argument, fps_option, parse_counts, parse_sizes, widths_option
from litheseg.cli.printing import say
from litheseg.errors import LithesegError
from litheseg.runtime.kit import RESULT_FILE, measure_export

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    bundle_argument(parser)
    parser.add_argument("--output", type=Path, metavar="PATH", help=f"of an export's times [{RESULT_FILE}], or the kit")
    here = parser.add_argument_group("an export, timed here")
    here.add_argument("--threads", type=parse_counts, metavar="N,N", help="CPU threads to try [1 and all]")
    here.add_argument(
        "--runtime", choices=[name for name in RUNTIMES if name != "torch"], help="[those that are installed]"
    )
    here.add_argument("--repeats", type=int, default=90, metavar="N", help="timed passes of each network [90]")
    fps_option(here)  # type: ignore[arg-type]
    kit = parser.add_argument_group("a model file, made a kit of")
    meaning = "those to export; any in the trained range [all of the model, and two between each pair]"
    widths_option(kit, meaning)  # type: ignore[arg-type]
    kit.add_argument(
        "--sizes", type=parse_sizes, metavar="HxW,HxW", help="the network's inputs [training size, 3/4 and 1/2 of it]"
    )
    kit.add_argument("--force", action="store_true", help="replace a kit that is there")
    parser.epilog = """On a box with litheseg, give an export: its networks are timed there, without PyTorch. For a box
without litheseg, give the model file on the workstation, and copy the folder that is written to the box. The script in
it needs Python, NumPy, and onnxruntime or openvino:

  python kit/measure.py --threads 1,4          (there; --help says more)
  litheseg fit model.safetensors --measured measurements.json --budget 20ms --output deployed      (here again)

Both time networks alone, from a uint8 image of the network's size to logits: keep room for the rest with
`litheseg fit --reserve`.

examples:
  litheseg measure exports/street --threads 1,4
  litheseg measure runs/camvid/model.safetensors --output kit
  litheseg measure model.safetensors --widths 1,.5,.25 --sizes 180x240,136x184 --output kit
"""


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    path = Path(args.bundle).expanduser()
    if not is_export(path):
        return _write_kit(args)
    if args.widths or args.sizes:
        raise LithesegError(f"--widths and --sizes choose what a kit exports; {path} is an export, and timed as it is")
    runtimes = args.runtime and (args.runtime,)
    output = args.output or Path(RESULT_FILE)
    measure_export(path, output, threads=args.threads, runtimes=runtimes, repeats=args.repeats, fps=args.fps)


def _write_kit(args: Namespace) -> None:
    from litheseg.budget.kit import SCRIPT, write_kit

    if args.output is None:
        raise LithesegError("a kit is a folder: name it with --output")
    count = write_kit(args.bundle, args.output, widths=args.widths, sizes=args.sizes, force=args.force, progress=say)
    number = "1 network" if count == 1 else f"{count} networks"
    print(f"{number} and {SCRIPT} written to {args.output}\n\nnext, on the target:")
    print(f"  python {args.output.name}/{SCRIPT}\nthen here:")
    print(f"  litheseg fit {args.bundle} --measured measurements.json --budget 20ms --output deployed")
