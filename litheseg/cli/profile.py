"""`litheseg profile`: count a model at every width, and time it end to end in real runtimes."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from litheseg.bundle.exported import PRECISIONS, RUNTIMES, Export, is_export, load_export
from litheseg.cli.options import bundle_argument, device_option, fps_option, json_option, parse_size, widths_option
from litheseg.cli.printing import print_json, print_table
from litheseg.errors import LithesegError
from litheseg.lazy import workstation
from litheseg.runtime.profiling import Profile, profile, profile_table

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    bundle_argument(parser)
    widths_option(parser, "those to measure; any in the trained range [all of the model]")
    parser.add_argument("--size", type=parse_size, metavar="HxW", help="the network's input [what it was trained at]")
    parser.add_argument("--image", type=parse_size, metavar="HxW", help="of the camera's images [as --size]")
    parser.add_argument(
        "--runtime",
        choices=(*RUNTIMES, "all"),
        help="what runs it; all: what is installed [torch, or what fits the export]",
    )
    parser.add_argument("--precision", choices=(*PRECISIONS, "all"), default="fp32", help="[fp32]")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads [as many as the runtime takes]")
    parser.add_argument("--repeats", type=int, default=60, metavar="N", help="timed images of each [60]")
    fps_option(parser)
    parser.add_argument("--layers", action="store_true", help="also the layers of the widest width, counted")
    parser.add_argument(
        "--dense", action="store_true", help="the network alone, in PyTorch, beside itself with dense convolutions"
    )
    device_option(parser)
    json_option(parser)
    parser.epilog = """Everything that is listed takes turns. "End to end" is what an image of the camera takes to
its mask of the same size: prepare (resize), network, labels (upsampling); p95: 19 of 20 images take less. An export
is timed without PyTorch.

examples:
  litheseg profile runs/camvid/model.safetensors --runtime all --threads 1
  litheseg profile model.safetensors --widths 1,.6,.25 --size 180x240 --image 720x960 --runtime openvino
  litheseg profile model.safetensors --runtime all --fps 15                 (as for a camera of 15 images a second)
  litheseg profile exports/street --runtime onnxruntime --precision int8    (an export; see `litheseg export`)
  litheseg profile model.safetensors --layers --json
  litheseg profile grouped.safetensors --dense --layers              (what do its grouped convolutions save?)
"""


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    model = _opened(args.bundle)
    _check(model, args)
    if args.dense:
        return _run_dense(model, args)
    left_out: list[str] = []
    rows = profile(
        model,
        args.widths,
        args.size,
        image=args.image,
        runtimes="all" if args.runtime == "all" else args.runtime and (args.runtime,),
        precisions="all" if args.precision == "all" else (args.precision,),
        threads=args.threads,
        device=args.device,
        repeats=args.repeats,
        fps=args.fps,
        left_out=left_out.append if "all" in (args.runtime, args.precision) else None,
    )
    size = args.size or model.header.size
    layers = _cost().layer_table(model.plain(1.0), size) if args.layers else ()
    if args.json:
        return print_json(_content(args, size, rows, left_out, layers))
    print_table(profile_table(rows), _title(args, size))
    for reason in left_out:
        print(f"left out: {reason}")
    if args.layers:
        print_table(_tables().layers_table(layers), "layers at width 1")


def _run_dense(bundle: Any, args: Namespace) -> None:
    size = args.size or bundle.header.size
    measuring = {name: getattr(args, name) for name in ("device", "threads", "repeats")}
    pairs = _cost().compare_dense(bundle, args.widths, size, **measuring)
    beside = _cost().layer_pairs(bundle.plain(1.0), size) if args.layers else ()
    if args.json:
        content = {"bundle": args.bundle, "size": size, "widths": [pair.to_dict() for pair in pairs]}
        return print_json({**content, "layers": [pair.to_dict() for pair in beside]} if args.layers else content)
    title = f"{args.bundle} at {size[0]}x{size[1]}, batch 1, {args.device}"
    print_table(_tables().dense_table(pairs), title)
    if args.layers:
        print_table(_tables().layer_pairs_table(beside), "layers at width 1")


def _content(
    args: Namespace, size: tuple[int, int], rows: list[Profile], left_out: list[str], layers: Any
) -> dict[str, Any]:
    facts = {"bundle": args.bundle, "size": size, "image": args.image or size}
    facts |= {"threads": args.threads, "fps": args.fps}
    content = {**facts, "widths": [row.to_dict() for row in rows], "left_out": left_out}
    return {**content, "layers": [asdict(layer) for layer in layers]} if args.layers else content


def _opened(path: str) -> Any:
    """A model file, or an export: a folder, or one network file of it."""
    place = Path(path).expanduser()
    return (
        load_export(place) if is_export(place) else workstation("models.bundle", f"reading {path}").load_bundle(place)
    )


def _cost() -> Any:
    return workstation("cost", "counting layers")


def _tables() -> Any:
    return workstation("report.terminal", "counting layers")


def _check(model: Any, args: Namespace) -> None:
    for option in ("dense", "layers"):
        if getattr(args, option) and isinstance(model, Export):
            raise LithesegError(f"--{option} needs the model file: {args.bundle} is an export")
    if args.dense and (args.runtime or "torch", args.precision, args.image, args.fps) != ("torch", "fp32", None, None):
        raise LithesegError(
            "--dense times the network alone in PyTorch, one pass after the other; leave out --runtime, --precision, "
            "--image and --fps"
        )


def _title(args: Namespace, size: tuple[int, int]) -> str:
    image = args.image or size
    resized = "" if image == size else f", resized to {size[0]}x{size[1]}"
    place = "" if args.device == "cpu" else f", {args.device}"
    pace = f", {args.fps:g} a second" if args.fps else ""
    return f"{args.bundle}: images of {image[0]}x{image[1]}{pace}{resized}{place}; milliseconds, stages p50"
