"""Write networks for ONNX Runtime, OpenVINO, torch.export and other runtimes, each compared with PyTorch.

The input is the raw picture: normalisation is inside, and so are classes, colours and provenance. The logits come at
the network's own stride, since upsampling them is most of a small network's time; --labels does it inside all the same.
Every network is run on real images beside PyTorch, and nothing is written where more than a few pixels differ; what was
found is in DIR/certificate.json. An int8 network is calibrated on training images and compared class by class; what
int8 breaks stays in floating point, and where that does not help, fp32 is all there is: see DIR/*.quantization.json.

Examples:
  litheseg export runs/camvid/model.safetensors --output exports/camvid
  litheseg export model.safetensors --output exports/street --format onnx,openvino --widths 1,.5 --data data/camvid
  litheseg export model.safetensors --output exports/any --size dynamic --data photos/     (a folder of images will do)
  litheseg export model.safetensors --output exports/simple --labels --layout nchw
  litheseg export model.safetensors --output exports/dial --share                (all widths, with one file of weights)
  litheseg export model.safetensors --output exports/phone --format ncnn,executorch                 (docs/targets/)
  litheseg export model.safetensors --output exports/page --format web               (a page that needs no server)
  litheseg export model.safetensors --output exports/small --format onnx,openvino --precision int8 --data data/camvid
"""

from __future__ import annotations

import json as files
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from litheseg.bundle.exported import Export
from litheseg.bundle.targets import parse_formats
from litheseg.bundle.verdicts import worst_class
from litheseg.cli.parsing import command
from litheseg.cli.printing import print_json, print_table
from litheseg.deploy.export import CERTIFICATE_FILE, CHECK_IMAGES, export_bundle
from litheseg.deploy.quantize import CALIBRATION_IMAGES, Quantizer, Tolerance, calibration_samples
from litheseg.deploy.web import WEB
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.report.card import show_worst
from litheseg.tables import Table, percent
from litheseg.values import Written, parse_size

__all__ = ["export"]


def _parse_size(text: str) -> tuple[int, int] | str | None:
    return {"dynamic": None, "training": text}[text] if text in ("dynamic", "training") else parse_size(text)


@command(export_bundle, without=("formats", "size", "output_kind", "shared"))
def export(
    model: Path,
    *,
    output: Path,
    format: Annotated[Sequence[str], Written(partial(parse_formats, further=(WEB,)), "F,F", ",".join)] = ("onnx",),
    size: Annotated[Any, Written(_parse_size, "HxW")] = "training",
    layout: Literal["nhwc", "nchw"] = "nhwc",
    labels: bool = False,
    share: bool = False,
    precision: Literal["fp32", "int8"] = "fp32",
    calibration: Path | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    tolerance: float = Tolerance.miou,
    class_tolerance: float | None = Tolerance.class_iou,
    agreement: float = Tolerance.agreement,
    json: bool = False,
    **options: Any,
) -> None:
    """Print the networks, how they compare, and what comes next.

    Args:
        model: a model file, such as runs/NAME/model.safetensors.
        output: the folder of the export.
        format: onnx, openvino, ncnn, torch, litert, executorch, coreml, web (ONNX and a page); with commas.
        size: of the input; dynamic: any; training: what the model resizes images to, any if it does not.
        layout: of the input, uint8 RGB.
        labels: give labels at the input's size; slower than logits, but ready to use.
        share: of ONNX: store what the widths have in common once.
        check: compare nothing with PyTorch.
        precision: int8 writes an int8 network beside each.
        calibration: images to calibrate int8 on; by default the data's training split.
        calibration_images: how many of them at most.
        tolerance: points that mIoU may fall in int8.
        class_tolerance: points that a class may fall in int8.
        agreement: where nothing is labelled, the least share of pixels that agree in int8, 0..1.
        json: print JSON.
        **options: of `export_bundle`.
    """
    bundle = load_bundle(model)
    if precision == "int8":
        judge = Tolerance(miou=tolerance, class_iou=class_tolerance, agreement=agreement)
        options["further"] = _quantizer(bundle, calibration, calibration_images, judge, format, options)
    written = export_bundle(
        bundle,
        output,
        formats=format,
        size=size,
        layout=layout.upper(),
        output_kind="labels" if labels else "logits",
        shared=share,
        **options,
    )
    found = _found(written)
    certificates = found["certificates"]
    if json:
        networks = [artefact.to_dict() for artefact in written.artefacts]
        return print_json({"export": str(written.path), "networks": networks, **found})
    print_table(_table(written, certificates), str(written.path))
    if certificates:
        first = next(iter(certificates.values()))
        print(f"compared with PyTorch on {first['images']} images ({first['origin']})")
    else:
        print("not compared with PyTorch; leave out --no-check to do so")
    for network in found.get("int8", {}).values():
        print(f"\n{network['summary']}")
    print(f"\nnext:\n  litheseg predict {written.path} PHOTOS --output labelled")
    if WEB in format:
        print(f"  python3 -m http.server --directory {written.path}    (and open http://localhost:8000)")


def _quantizer(
    bundle: Bundle,
    folder: Path | None,
    count: int,
    tolerance: Tolerance,
    formats: Sequence[str],
    options: Mapping[str, Any],
) -> Quantizer:
    data = {name: options[name] for name in ("source", "split") if name in options}
    calibration, check = calibration_samples(bundle, options.get("data"), folder=folder, count=count, **data)
    return Quantizer(bundle, calibration, check.thinned(CHECK_IMAGES), tolerance, count, formats=formats)


def _found(export: Export) -> dict[str, Any]:
    """``certificates`` and, where there are int8 networks, ``int8``: each by the path of the network."""
    file = export.folder / CERTIFICATE_FILE
    content: dict[str, Any] = files.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"certificates": {}} | {name: content[name] for name in ("certificates", "int8") if name in content}


def _table(export: Export, certificates: Mapping[str, Mapping[str, Any]]) -> Table:
    head = (
        *("file", "input", "MB", "pixels that differ", "mIoU (%)", "in PyTorch (%)"),
        *("worst class (%)", "worst image, alike (%)"),
    )
    rows = []
    for artefact in export.artefacts:
        size = "any size" if artefact.size is None else f"{artefact.size[0]}x{artefact.size[1]}"
        megabytes = f"{export.own_bytes(artefact) / 1e6:.2f}"
        rows.append((artefact.path, size, megabytes, *_comparison(certificates.get(artefact.path))))
    rows += [(path, "", f"{size / 1e6:.2f}", *[""] * 5) for path, size in export.shared_files.items()]
    return Table(head, tuple(rows))


def _comparison(found: Mapping[str, Any] | None) -> tuple[str, ...]:
    if found is None or "differing" not in found:
        return ("–",) * 5
    scores = (percent(found[name], 2) for name in ("miou", "reference_miou"))
    pixels = f"{found['differing']:,} of {found['pixels']:,}"
    iou = found.get("iou")
    worst = show_worst(worst_class(found["classes"], iou)) if iou else "–"
    return pixels, *scores, worst, f"{found['worst_image']} {100 * found['worst_agreement']:.3f}"
