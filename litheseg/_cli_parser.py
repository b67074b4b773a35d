"""The options of every command, with examples: what `litheseg --help` and `litheseg COMMAND --help` print.

It only declares; `litheseg.cli` calls.

Usage:
    >>> build_parser().parse_known_args(["profile", "model.safetensors", "--widths", "1,.5"])
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import Any, NoReturn

import yaml

from litheseg import __version__
from litheseg.data import SOURCES
from litheseg.deploy.import_weights import KNOWN_CLASSES, NORMALISATIONS
from litheseg.errors import WidthError
from litheseg.labelling import EXPORTS
from litheseg.nn import check_width
from litheseg.training.config import Recipe
from litheseg.training.recipe_help import recipe_help

__all__ = ["COMMANDS", "build_parser"]

_MAIN = """examples:
  litheseg demo                                     see all of it in a few minutes, offline
  litheseg doctor data/mine                         is my data fit for training?
  litheseg train --recipe slimseg --data.root data/mine --output runs/mine
  litheseg evaluate runs/mine/model.safetensors
  litheseg predict runs/mine/model.safetensors photos/ --output labelled/ --width 0.5
  litheseg COMMAND --help                           options and examples of a command
"""
_TRAIN = """examples:
  litheseg train --recipe slimseg --data.root data/camvid --data.size "[360,480]" --output runs/camvid
  litheseg train --recipe slimseg --data.source streets --trainer.epochs 20     (procedural scenes, no files)
  litheseg train --recipe mine.yaml --optimizer.lr=5e-4 --widths.values "[1,.5]"
  litheseg train ... --resume                       go on after Ctrl-C, a crash or a reboot

A recipe is a YAML file with the fields below; each can be changed by an option (--a.b=value or --a.b value).
`litheseg recipes NAME` prints one. In brackets: the value where a recipe says nothing.

recipe fields:
"""


class _Parser(ArgumentParser):
    """Complains in one line and says where help is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"formatter_class": RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> ArgumentParser:
    """The parser of all commands; `args.command` says which one was given."""
    parser = _Parser(prog="litheseg", description="One segmentation network, every budget.", epilog=_MAIN)
    parser.add_argument("--version", action="version", version=f"litheseg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, (summary, add) in COMMANDS.items():
        add(commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."))
    return parser


def _train(parser: ArgumentParser) -> None:
    parser.add_argument("--recipe", default="slimseg", help="name (see `litheseg recipes`) or .yaml file [slimseg]")
    parser.add_argument("--output", metavar="DIR", help="the run's folder [runs/RECIPE]")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's last checkpoint")
    parser.epilog = _TRAIN + recipe_help(Recipe())


def _evaluate(parser: ArgumentParser) -> None:
    _bundle(parser)
    _data_options(parser)
    parser.add_argument("--split", default="val", help="which images [val]")
    _widths(parser, "those to score; ones in between are calibrated on training images first [all of the bundle]")
    parser.add_argument("--save", metavar="FILE", help="write the bundle with the calibrated widths to this file")
    parser.add_argument("--mode", choices=("whole", "sliding"), default="whole", help="whole images or windows [whole]")
    parser.add_argument("--window", type=_size, metavar="HxW", help="of --mode sliding")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored image")
    parser.add_argument("--scales", type=_floats, default=(1.0,), metavar="S,S", help="average over these scales [1]")
    parser.add_argument("--band-radius", type=int, default=3, metavar="PX", help="of the boundary-band mIoU [3]")
    _device(parser)
    _json(parser)
    parser.epilog = """examples:
  litheseg evaluate runs/camvid/model.safetensors
  litheseg evaluate model.safetensors --data data/camvid --widths 1,.6,.25 --save model-6.safetensors
  litheseg evaluate model.safetensors --mode sliding --window 360x480 --flip --scales .75,1,1.25
"""


def _profile(parser: ArgumentParser) -> None:
    _bundle(parser)
    _widths(parser, "those to measure; any in the trained range [all of the bundle]")
    parser.add_argument("--size", type=_size, metavar="HxW", help="of the input [the size it was trained at]")
    parser.add_argument("--layers", action="store_true", help="also the layers of the first width")
    parser.add_argument("--dense", action="store_true", help="beside the same network, its grouped convolutions dense")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads [all]")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="timed passes per width [20]")
    _device(parser)
    _json(parser)
    parser.epilog = """examples:
  litheseg profile runs/camvid/model.safetensors --size 512x1024 --threads 1
  litheseg profile model.safetensors --widths 1,.5 --layers
  litheseg profile grouped.safetensors --dense --layers              (what do its grouped convolutions save?)
"""


def _predict(parser: ArgumentParser) -> None:
    _bundle(parser)
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="images and folders of images")
    parser.add_argument("--output", required=True, metavar="DIR", help="where NAME.png and NAME_overlay.png go")
    parser.add_argument("--width", type=_width, metavar="W", help="one of the bundle's [the widest]")
    parser.add_argument("--kind", choices=("mask", "overlay", "both"), default="mask", help="what to write [mask]")
    parser.add_argument("--force", action="store_true", help="replace results that exist")
    _device(parser)
    _json(parser)
    parser.epilog = """examples:
  litheseg predict model.safetensors street.jpg --output out/ --kind both
  litheseg predict model.safetensors photos/ --output out/ --width 0.25
"""


def _pseudo_label(parser: ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="MODEL", help="a model file, such as runs/NAME/model.safetensors")
    parser.add_argument("folder", metavar="DIR", help="the images, also in folders below it")
    parser.add_argument("--output", required=True, metavar="DIR", help="where masks, confidence and ranking go")
    parser.add_argument("--width", type=_width, metavar="W", help="one of the bundle's [the widest]")
    parser.add_argument("--threshold", type=float, default=0.0, metavar="T", help="ignore less sure pixels, 0..1 [0]")
    parser.add_argument("--choose", type=int, default=20, metavar="N", help="images to correct [20]")
    parser.add_argument("--export", choices=EXPORTS, default="none", help="what the chosen ones are written for [none]")
    parser.add_argument("--force", action="store_true", help="label anew, and replace results that exist")
    _device(parser)
    _json(parser)
    parser.epilog = """examples:
  litheseg pseudo-label model.safetensors photos/ --output labelled/ --choose 50 --export cvat
  litheseg pseudo-label model.safetensors photos/ --output labelled/ --threshold 0.9     (and nothing to correct)

The ranking is in labelled/ranking.csv, uncertain images that are unlike each other first. What exists is kept: a run
that was stopped goes on with the same command. The output is a data set too: --data.root labelled/.
"""


def _import_labels(parser: ArgumentParser) -> None:
    parser.add_argument("export", metavar="EXPORT", help="of CVAT (Segmentation mask 1.1) or Label Studio (JSON)")
    parser.add_argument("--output", required=True, metavar="DIR", help="the data set's folder")
    parser.add_argument("--images", metavar="DIR", help="the images that were annotated [those in the export]")
    parser.add_argument("--classes", metavar="FILE", help="a classes.yaml or a model [the labels of a CVAT export]")
    parser.add_argument("--unlabelled-as", metavar="NAME", help="the class of pixels that nobody drew [ignored]")
    parser.add_argument("--force", action="store_true", help="replace images and masks that exist")
    _json(parser)
    parser.epilog = """examples:
  litheseg import-labels job_12.zip --images photos/ --classes labelled/classes.yaml --output corrected/
  litheseg import-labels project-1.json --images photos/ --classes model.safetensors --output corrected/ \\
      --unlabelled-as background

Several exports may go into one folder, if no image is in two of them. Then: litheseg doctor corrected/
"""


def _doctor(parser: ArgumentParser) -> None:
    _data(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="look at N samples of each split only")
    parser.add_argument("--crop", type=_size, metavar="HxW", help="that training will use; smaller images are named")
    _json(parser)
    parser.epilog = """exit status: 0 training can go on, 1 it cannot.

examples:
  litheseg doctor data/camvid
  litheseg doctor data/mine --source folder --crop 512x512 --json
"""


def _data_command(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    fetch = actions.add_parser("fetch", help="download a public data set", description="Download a public data set.")
    fetch.add_argument("name", help="camvid")
    fetch.add_argument("folder", metavar="DIR")
    fetch.add_argument("--url", help="another archive (zip or tar)")
    fetch.add_argument("--sha256", help="the archive's checksum")
    make = actions.add_parser("make", help="write procedural scenes as files", description="Write scenes as files.")
    make.add_argument("name", choices=("streets",), help="streets")
    make.add_argument("folder", metavar="DIR")
    make.add_argument("--train", type=int, default=300, metavar="N", help="training scenes [300]")
    make.add_argument("--val", type=int, default=60, metavar="N", help="validation scenes [60]")
    make.add_argument("--size", type=_size, default=(180, 240), metavar="HxW", help="of the images [180x240]")
    make.add_argument("--seed", type=int, default=0, metavar="N", help="another one gives other scenes [0]")
    info = actions.add_parser("info", help="splits, classes and licence", description="What a data set holds.")
    _data(info)
    _json(info)
    split = actions.add_parser("split", help="choose which images count as labelled", description="Write a list file.")
    _data(split)
    split.add_argument("--ratio", metavar="R", help="labelled share, such as 1/8")
    split.add_argument("--count", type=int, metavar="N", help="number of labelled images")
    split.add_argument("--seed", type=int, default=0, metavar="N", help="another one chooses others [0]")
    split.add_argument("--output", required=True, metavar="FILE", help="the list file, one id a line")
    parser.epilog = """examples:
  litheseg data fetch camvid data/camvid
  litheseg data make streets data/streets --train 300 --val 60
  litheseg data info data/camvid
  litheseg data split data/camvid --ratio 1/8 --output few.txt      (then: train --data.labelled few.txt)
"""


def _import_weights(parser: ArgumentParser) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="a state dict: .pth, .pt, ... or .safetensors")
    parser.add_argument("--model", required=True, metavar="NAME", help="the architecture, see `litheseg models`")
    parser.add_argument("--args", type=_mapping, default={}, metavar="YAML", help="its arguments [{}]")
    parser.add_argument("--classes", required=True, metavar="C", help=f"{', '.join(KNOWN_CLASSES)}, a file, or names")
    parser.add_argument("--extra-class", action="append", default=[], metavar="NAME", help="an output behind these")
    parser.add_argument("--normalisation", choices=tuple(NORMALISATIONS), help="what the weights expect of images")
    parser.add_argument("--mean", type=_floats, metavar="R,G,B", help="instead: of images in [0, 1]")
    parser.add_argument("--std", type=_floats, metavar="R,G,B", help="likewise")
    parser.add_argument(
        "--size", type=_size, default=(512, 1024), metavar="HxW", help="images are resized to [512x1024]"
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


def _convert(parser: ArgumentParser) -> None:
    parser.add_argument("model", help="a gradual run's folder, or a dense model file to cut")
    parser.add_argument("--output", required=True, metavar="FILE", help="the grouped model file")
    parser.add_argument("--groups", type=int, help="of the cut: 2 or more, 0 for depthwise")
    parser.add_argument(
        "--where", default="all", help='which layers are cut: a role, a kernel, a pattern, as in "encoder,1x1" [all]'
    )
    parser.add_argument(
        "--assignment",
        choices=["contiguous", "magnitude"],
        default="magnitude",
        help="which channels share a group: as they come, or so that the largest weights stay [magnitude]",
    )
    _data_options(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    _json(parser)
    parser.epilog = """examples:
  litheseg convert runs/dg4 --output dg4.safetensors            a gradual run that was stopped after alpha reached 0
  litheseg convert dense.safetensors --groups 4 --where encoder,1x1 --data data/camvid --output cut.safetensors

A finished gradual run needs no conversion: its model.safetensors is grouped. Cutting a dense model costs accuracy,
which the table shows; `litheseg train --recipe gradual-grouping` avoids most of it.
"""


def _models(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="print the arguments of this one")
    _json(parser)


def _recipes(parser: ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="print this one")
    parser.epilog = "example:\n  litheseg recipes slimseg > mine.yaml\n"


def _report(parser: ArgumentParser) -> None:
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE", help="model files, best of the same classes")
    _data_options(parser)
    parser.add_argument("--split", default="val", help="which images [val]")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page [report.html]")
    parser.add_argument("--no-latency", dest="latency", action="store_false", help="do not measure milliseconds")
    parser.epilog = """example:
  litheseg report runs/a/model.safetensors runs/b/model.safetensors --data data/camvid --output compare.html
"""


def _demo(parser: ArgumentParser) -> None:
    parser.add_argument("--output", default="runs/demo", metavar="DIR", help="the run's folder [runs/demo]")
    parser.add_argument("--force", action="store_true", help="begin anew instead of reusing a finished run")
    parser.epilog = "It takes every recipe field too, such as --trainer.epochs 5 (see `litheseg recipes demo`).\n"


COMMANDS: dict[str, tuple[str, Callable[[ArgumentParser], None]]] = {
    "train": ("train a network that runs at several widths", _train),
    "evaluate": ("score a model on labelled images", _evaluate),
    "profile": ("count and time a model at every width", _profile),
    "predict": ("label images", _predict),
    "pseudo-label": ("label images, and choose which to correct by hand", _pseudo_label),
    "import-labels": ("read corrected labels back as a data set", _import_labels),
    "doctor": ("find what is wrong with a data set", _doctor),
    "data": ("fetch, make, describe and split data sets", _data_command),
    "convert": ("turn a dense or gradual model into a grouped one", _convert),
    "import-weights": ("make a model file of weights from elsewhere", _import_weights),
    "models": ("list the architectures", _models),
    "recipes": ("list the recipes", _recipes),
    "report": ("compare models on one page", _report),
    "demo": ("train, measure and report a small model in a few minutes, offline", _demo),
}


def _bundle(parser: ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a model file, such as runs/NAME/model.safetensors")


def _data(parser: ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", metavar="DATA", help="the folder of the data; none for --source streets")
    parser.add_argument("--source", choices=("auto", *SOURCES), default="auto", help="kind of data [auto]")


def _data_options(parser: ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="the folder of the data [what the model was trained on]")
    parser.add_argument("--source", choices=("auto", *SOURCES), default="auto", help="kind of data [auto]")


def _widths(parser: ArgumentParser, meaning: str) -> None:
    parser.add_argument("--widths", type=_width_list, metavar="W,W", help=meaning)


def _device(parser: ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... [cpu]")


def _json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.strip("[]()").split(","))
    except ValueError as error:
        raise ArgumentTypeError(f"'{text}' is no list of numbers; write e.g. 1,.5") from error


def _width_list(text: str) -> tuple[float, ...]:
    try:
        return tuple(check_width(value) for value in _floats(text))
    except WidthError as error:
        raise ArgumentTypeError(str(error)) from error


def _width(text: str) -> float:
    values = _width_list(text)
    if len(values) != 1:
        raise ArgumentTypeError(f"'{text}' is more than one width")
    return values[0]


def _mapping(text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError:
        content = None
    if not isinstance(content, dict):
        raise ArgumentTypeError(f"'{text}' is no mapping; write e.g. '{{up: bilinear}}'")
    return content


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().strip("[]()").replace(",", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ArgumentTypeError(f"'{text}' is no size; write height x width in pixels, such as 360x480")
    return int(parts[0]), int(parts[1])
