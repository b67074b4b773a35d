"""`litheseg export`: write a model's widths as networks for other runtimes, each compared with PyTorch."""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from litheseg.bundle.exported import FORMATS, Export
from litheseg.cli.options import bundle_argument, data_options, json_option, parse_size, widths_option
from litheseg.cli.printing import print_json, print_table
from litheseg.deploy.export import CERTIFICATE_FILE, CHECK_IMAGES, export_bundle
from litheseg.deploy.parity import THRESHOLD
from litheseg.deploy.quantize import CALIBRATION_IMAGES, Quantizer, Tolerance, calibration_samples
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.tables import Table

__all__ = ["add", "run"]


def add(parser: ArgumentParser) -> None:
    """Declare the options."""
    bundle_argument(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder of the export")
    parser.add_argument(
        "--format",
        type=_formats,
        default=("onnx",),
        metavar="F,F",
        help=f"{', '.join(FORMATS)}, several with commas [onnx]",
    )
    widths_option(parser, "those to export, one network each [all of the bundle]")
    parser.add_argument(
        "--size",
        type=_size,
        default="training",
        metavar="HxW",
        help="of the input; dynamic: any; training: what the model resizes images to, any if it does not [training]",
    )
    parser.add_argument("--layout", choices=("nhwc", "nchw"), default="nhwc", help="of the input, uint8 RGB [nhwc]")
    parser.add_argument(
        "--labels", action="store_true", help="give labels at the input's size; slower than logits, but ready to use"
    )
    parser.add_argument("--share", action="store_true", help="ONNX: store what the widths have in common once")
    check = parser.add_argument_group("comparison with PyTorch")
    data_options(check)  # type: ignore[arg-type]
    check.add_argument("--split", default="val", help="which images [val]")
    check.add_argument(
        "--threshold",
        type=float,
        default=THRESHOLD,
        metavar="T",
        help=f"least share of pixels that must agree, 0..1 [{THRESHOLD:g}]",
    )
    check.add_argument("--no-check", dest="check", action="store_false", help="compare nothing")
    _add_int8(parser)
    parser.add_argument("--force", action="store_true", help="replace an export that is there")
    json_option(parser)
    parser.epilog = """examples:
  litheseg export runs/camvid/model.safetensors --output exports/camvid
  litheseg export model.safetensors --output exports/street --format onnx,openvino --widths 1,.5 --data data/camvid
  litheseg export model.safetensors --output exports/any --size dynamic --data photos/     (a folder of images will do)
  litheseg export model.safetensors --output exports/simple --labels --layout nchw
  litheseg export model.safetensors --output exports/dial --share                (all widths, with one file of weights)
  litheseg export model.safetensors --output exports/small --format onnx,openvino --precision int8 --data data/camvid

The input is the raw picture: normalisation is inside, and so are classes, colours and provenance. The logits come at
the network's own stride, since upsampling them is most of a small network's time; --labels does it inside all the same.
Every network is run on real images beside PyTorch, and nothing is written where more than a few pixels differ; what was
found is in DIR/certificate.json. An int8 network is calibrated on training images and compared class by class; what
int8 breaks stays in floating point, and where that does not help, nothing is written: see DIR/*.quantization.json.
"""


def _add_int8(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("int8")
    group.add_argument(
        "--precision", choices=("fp32", "int8"), default="fp32", help="int8: write an int8 network beside each [fp32]"
    )
    group.add_argument("--calibration", metavar="DIR", help="images to calibrate on [the data's training split]")
    group.add_argument(
        "--calibration-images",
        type=int,
        default=CALIBRATION_IMAGES,
        metavar="N",
        help=f"how many at most [{CALIBRATION_IMAGES}]",
    )
    defaults = Tolerance()
    group.add_argument(
        "--tolerance", type=float, default=defaults.miou, metavar="P", help=f"points mIoU may fall [{defaults.miou:g}]"
    )
    group.add_argument(
        "--class-tolerance",
        type=float,
        default=defaults.class_iou,
        metavar="P",
        help=f"points a class may fall [{defaults.class_iou:g}]",
    )
    group.add_argument(
        "--agreement",
        type=float,
        default=defaults.agreement,
        metavar="A",
        help=f"where nothing is labelled: least share of pixels that agree, 0..1 [{defaults.agreement:g}]",
    )


def run(args: Namespace) -> None:
    """Do it and print what came of it."""
    bundle = load_bundle(args.bundle)
    with Console(stderr=True).status("") as status:
        export = export_bundle(
            bundle,
            args.output,
            formats=args.format,
            widths=args.widths,
            size=None if args.size == "dynamic" else args.size,
            layout=args.layout.upper(),
            output_kind="labels" if args.labels else "logits",
            shared=args.share,
            check=args.check,
            data=args.data,
            source=args.source,
            split=args.split,
            threshold=args.threshold,
            further=_quantizer(bundle, args, status.update) if args.precision == "int8" else None,
            progress=status.update,
            force=args.force,
        )
    found = _found(export)
    certificates = found["certificates"]
    if args.json:
        networks = [artefact.to_dict() for artefact in export.artefacts]
        return print_json({"export": str(export.path), "networks": networks, **found})
    print_table(_table(export, certificates), str(export.path))
    if certificates:
        first = next(iter(certificates.values()))
        print(f"compared with PyTorch on {first['images']} images ({first['origin']})")
    else:
        print("not compared with PyTorch; leave out --no-check to do so")
    for twin in found.get("int8", {}).values():
        print(f"\n{twin['summary']}")
    print(f"\nnext:\n  litheseg predict {export.path} PHOTOS --output labelled")


def _quantizer(bundle: Bundle, args: Namespace, progress: Callable[[str], None]) -> Quantizer:
    calibration, check = calibration_samples(
        bundle,
        args.data,
        source=args.source,
        folder=args.calibration,
        split=args.split,
        count=args.calibration_images,
    )
    tolerance = Tolerance(miou=args.tolerance, class_iou=args.class_tolerance, agreement=args.agreement)
    wanted = args.calibration_images
    return Quantizer(bundle, calibration, check.thinned(CHECK_IMAGES), tolerance, wanted, progress=progress)


def _found(export: Export) -> dict[str, Any]:
    """``certificates`` and, where there are int8 networks, ``int8``: each by the path of the network."""
    file = export.folder / CERTIFICATE_FILE
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"certificates": {}} | {name: content[name] for name in ("certificates", "int8") if name in content}


def _table(export: Export, certificates: Mapping[str, Mapping[str, Any]]) -> Table:
    head = ("file", "input", "MB", "pixels that differ", "mIoU (%)", "in PyTorch (%)", "worst image, alike (%)")
    rows = []
    for artefact in export.artefacts:
        size = "any size" if artefact.size is None else f"{artefact.size[0]}x{artefact.size[1]}"
        megabytes = f"{export.own_bytes(artefact) / 1e6:.2f}"
        rows.append((artefact.path, size, megabytes, *_comparison(certificates.get(artefact.path))))
    rows += [(path, "", f"{size / 1e6:.2f}", *[""] * 4) for path, size in export.shared_files.items()]
    return Table(head, tuple(rows))


def _comparison(found: Mapping[str, Any] | None) -> tuple[str, ...]:
    if found is None or "differing" not in found:
        return ("–",) * 4
    scores = ("–" if found[name] is None else f"{100 * found[name]:.2f}" for name in ("miou", "reference_miou"))
    return (
        f"{found['differing']:,} of {found['pixels']:,}",
        *scores,
        f"{found['worst_image']} {100 * found['worst_agreement']:.3f}",
    )


def _formats(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in FORMATS:
            raise ArgumentTypeError(f"'{name}' is no format; choose from {', '.join(FORMATS)}")
    return names


def _size(text: str) -> tuple[int, int] | str:
    return text if text in ("dynamic", "training") else parse_size(text)
