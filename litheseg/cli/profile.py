"""Count a model at every width, and time it end to end in real runtimes.

Everything that is listed takes turns. "End to end" is what an image of the camera takes to its mask of the same size:
prepare (resize), network, labels (upsampling); p95: 19 of 20 images take less. An export is timed without PyTorch.

Examples:
  litheseg profile runs/camvid/model.safetensors --runtime all --threads 1
  litheseg profile model.safetensors --widths 1,.6,.25 --size 180x240 --image 720x960 --runtime openvino
  litheseg profile model.safetensors --runtime all --fps 15                 (as for a camera of 15 images a second)
  litheseg profile exports/street --runtime onnxruntime --precision int8    (an export; see `litheseg export`)
  litheseg profile model.safetensors --layers --json
  litheseg profile grouped.safetensors --dense --layers              (what do its grouped convolutions save?)
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from litheseg.bundle.exported import is_export, load_export
from litheseg.bundle.targets import PRECISIONS, RUNTIMES
from litheseg.cli.parsing import command
from litheseg.cli.printing import print_json, print_table
from litheseg.errors import LithesegError
from litheseg.lazy import workstation
from litheseg.runtime import profiling
from litheseg.values import Size, Written

__all__ = ["profile"]


@command(profiling.profile, without=("runtimes", "precisions", "channels_last", "warmup"))
def profile(
    model: Path,
    *,
    runtime: Annotated[str, Written(str, choices=(*RUNTIMES, "all"))] | None = None,
    precision: Annotated[str, Written(str, choices=(*PRECISIONS, "all"))] = "fp32",
    layers: bool = False,
    dense: bool = False,
    json: bool = False,
    **options: Any,
) -> None:
    """Print the counts and times.

    Args:
        model: a model file, or an export: its folder or one of its networks.
        runtime: what runs it; all: what is installed; by default torch, or what fits the export.
        precision: of the network.
        layers: also the layers of the widest width, counted.
        dense: the network alone, in PyTorch, beside itself with dense convolutions.
        json: print JSON.
        **options: of `litheseg.runtime.profiling.profile`.
    """
    opened = _open(model, dense, layers)
    size = options.get("size") or opened.header.size
    if dense:
        if (runtime or "torch", precision, {"image", "fps"} & {*options}) != ("torch", "fp32", set()):
            raise LithesegError(
                "--dense times the network alone in PyTorch, one pass after the other; leave out --runtime, "
                "--precision, --image and --fps"
            )
        return _beside_dense(model, opened, size, layers, json, options)
    left_out: list[str] = []
    rows = profiling.profile(
        opened,
        runtimes="all" if runtime == "all" else runtime and (runtime,),
        precisions="all" if precision == "all" else (precision,),
        left_out=left_out.append if "all" in (runtime, precision) else None,
        **options,
    )
    counted = workstation("cost", "counting layers").layer_table(opened.plain(1.0), size) if layers else ()
    image = options.get("image") or size
    if json:
        facts = {"bundle": str(model), "size": size, "image": image}
        facts |= {name: options.get(name) for name in ("threads", "fps")}
        content = {**facts, "widths": [row.to_dict() for row in rows], "left_out": left_out}
        return print_json(content | ({"layers": [asdict(layer) for layer in counted]} if layers else {}))
    print_table(profiling.profile_table(rows), _title(model, size, image, options))
    for reason in left_out:
        print(f"left out: {reason}")
    if layers:
        print_table(workstation("report.terminal", "showing layers").layers_table(counted), "layers at width 1")


def _open(model: Path, dense: bool, layers: bool) -> Any:
    path = model.expanduser()
    if not is_export(path):
        return workstation("models.bundle", f"reading {path}").load_bundle(path)
    if dense or layers:
        raise LithesegError(f"--{'dense' if dense else 'layers'} needs the model file: {model} is an export")
    return load_export(path)


def _beside_dense(model: Path, bundle: Any, size: Size, layers: bool, json: bool, options: dict[str, Any]) -> None:
    cost = workstation("cost", "counting layers")
    measuring = {name: options[name] for name in ("device", "threads", "repeats") if name in options}
    pairs = cost.compare_dense(bundle, options.get("widths"), size, **measuring)
    beside = cost.layer_pairs(bundle.plain(1.0), size) if layers else ()
    if json:
        content = {"bundle": str(model), "size": size, "widths": [pair.to_dict() for pair in pairs]}
        return print_json(content | ({"layers": [pair.to_dict() for pair in beside]} if layers else {}))
    title = f"{model} at {size[0]}x{size[1]}, batch 1, {options.get('device', 'cpu')}"
    tables = workstation("report.terminal", "showing layers")
    print_table(tables.dense_table(pairs), title)
    if layers:
        print_table(tables.layer_pairs_table(beside), "layers at width 1")


def _title(model: Path, size: Size, image: Size, options: dict[str, Any]) -> str:
    resized = "" if image == size else f", resized to {size[0]}x{size[1]}"
    place = "" if options.get("device", "cpu") == "cpu" else f", {options['device']}"
    rate = f", {options['fps']:g} a second" if options.get("fps") else ""
    return f"{model}: images of {image[0]}x{image[1]}{rate}{resized}{place}; milliseconds, stages p50"
