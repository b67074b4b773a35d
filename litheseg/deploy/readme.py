"""The README of an export's folder: what lies there, how near it is to PyTorch, how to run it without litheseg.

It says what the export and its certificates hold, and measures nothing.

Usage:
    >>> text = export_readme(export, {"onnx-fp32-w1.onnx": certificate})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from litheseg.bundle.exported import LAYOUTS, Artefact, Export
from litheseg.bundle.verdicts import worst_class
from litheseg.deploy.conversion import converter
from litheseg.deploy.parity import Certificate
from litheseg.tables import escaped, fenced, markdown_table, percent

__all__ = ["export_readme"]

_PAGE = (
    "`index.html` runs these networks in the browser. Put the folder on any static host, or serve it here "
    "(`python3 -m http.server`) and open the address that is printed. `ort/` is ONNX Runtime Web, (c) Microsoft, MIT."
)


def export_readme(
    export: Export,
    certificates: Mapping[str, Certificate],
    int8: Sequence[str] = (),
    remarks: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Markdown.

    Args:
        export: of which all files are written.
        certificates: by the path of the network; empty if nothing was checked.
        int8: how each int8 network came about, in words.
        remarks: what there is to say of a network in its format, by its path.
    """
    header, classes = export.header, zip(export.classes.names, export.classes.colors, strict=True)
    rows = [(str(index), escaped(name), ", ".join(map(str, color))) for index, (name, color) in enumerate(classes)]
    facts = {**header.provenance, **export.provenance}
    origin = (f"{name}: {value}" for name, value in facts.items() if isinstance(value, (str, int, float)))
    return "\n\n".join(
        (
            f"# {escaped(header.architecture['name'])}, {len(header.classes)} classes, exported by litheseg",
            _what(export),
            "## Networks",
            markdown_table(("file", "width", "precision", "input", "MB", "runs in"), _network_rows(export)),
            "## Certificate",
            _certificate(export, certificates),
            *("\n".join(f"- `{path}`: {escaped(remark)}." for path, remark in remarks.items()),) * bool(remarks),
            "## Use",
            *((_PAGE,) if (export.folder / "index.html").is_file() else ()),
            _use(export),
            "## Classes",
            markdown_table(("index", "class", "colour (RGB)"), rows),
            "## Origin",
            "\n".join(f"- {escaped(fact)}" for fact in origin),
            *(("## int8", fenced("\n\n".join(int8))) if int8 else ()),
        )
    )


def _what(export: Export) -> str:
    first, images = export.artefacts[0], export.header.images
    sides = f"height x width x {images.channels}", f"{images.channels} x height x width"
    shape = f"1 x {sides[LAYOUTS.index(first.layout)]}{', RGB' * images.is_rgb8}"
    output = (
        "`logits`, float32 1 x classes x h x w at the network's own stride: upsample them bilinearly (pixel centres "
        "aligned) and take the largest"
        if first.output == "logits"
        else "`labels`, uint8 1 x height x width, class indices"
    )
    resized = export.header.resizes and first.size is None
    resize = " It was trained on images resized to {}x{}.".format(*export.header.size) if resized else ""
    weights = "".join(f" The files need `{path}` beside them." for path in export.shared_files)
    shape = f"Input: `image`, the raw picture, {images.dtype} {shape}; normalisation is inside.{resize}"
    return f"{shape} Output: {output}.{weights}"


def _network_rows(export: Export) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (
            f"`{artefact.path}`",
            f"{artefact.width:g}",
            artefact.precision,
            "any size" if artefact.size is None else f"{artefact.size[0]}x{artefact.size[1]}",
            f"{export.own_bytes(artefact) / 1e6:.2f}",
            ", ".join(artefact.runtimes),
        )
        for artefact in export.artefacts
    ]
    shared = [(f"`{path}`", "", "", "", f"{size / 1e6:.2f}", "") for path, size in export.shared_files.items()]
    return [*rows, *shared]


def _certificate(export: Export, certificates: Mapping[str, Certificate]) -> str:
    if not certificates:
        return "These networks were not compared with PyTorch."
    first = next(iter(certificates.values()))
    head = (
        *("file", "pixels that differ", "mIoU (%)", "mIoU in PyTorch (%)", "worst class", "class that moved most"),
        *("worst image", "logits differ by"),
    )
    rows = (_certificate_row(artefact, certificates) for artefact in export.artefacts if artefact.path in certificates)
    table = markdown_table(head, rows)
    return f"Against PyTorch in fp32, on {first.images} images ({escaped(first.origin)}):\n\n{table}"


def _certificate_row(artefact: Artefact, certificates: Mapping[str, Certificate]) -> tuple[str, ...]:
    found = certificates[artefact.path]
    difference, moved = found.largest_difference, found.worst_class
    worst = worst_class(found.classes, found.iou) if found.iou else None
    return (
        f"`{artefact.path}`",
        f"{found.differing:,} of {found.pixels:,}",
        percent(found.miou, 2),
        percent(found.reference_miou, 2),
        "–" if worst is None else f"{escaped(worst[0])} ({percent(worst[1], 2)})",
        "–" if moved is None else f"{escaped(moved[0])} ({100 * moved[1]:+.4f})",
        f"{escaped(found.worst_image)} ({100 * found.worst_agreement:.3f} % alike)",
        "–" if difference is None else f"{difference:.1e} of {found.largest_logit:.0f}",
    )


def _use(export: Export) -> str:
    artefact = next((found for found in export.artefacts if found.format == "onnx"), export.artefacts[0])
    height, width = artefact.size or export.header.size
    reading, read = (
        "from PIL import Image",
        f'np.array(Image.open("photo.jpg").convert("RGB").resize(({width}, {height})))',
    )
    if not (images := export.header.images).is_rgb8:
        reading = f"# {images.dtype}, {height} x {width} x {images.channels}"
        read = 'np.load("image.npy")'
    arranged = "[None]" if artefact.layout == "NHWC" else ".transpose(2, 0, 1)[None]"
    result = "result.argmax(1)  # at the stride of the logits" if artefact.output == "logits" else "result"
    imports, call = converter(artefact.format).USAGE
    code = f"""import numpy as np
{imports}
{reading}

image = {read}{arranged}
{call.format(path=artefact.path, stem=artefact.path.rpartition(".")[0])}
labels = {result}"""
    return fenced(code, "python")
