"""Time an export where it will run, or write a kit that times a model on a machine without litheseg.

On a box with litheseg, give an export: its networks are timed there, without PyTorch. For a box without litheseg, give
the model file on the workstation, and copy the folder that is written to the box. The script in it needs Python, NumPy,
and a runtime that takes the kit's formats (ONNX: onnxruntime or openvino):

  python kit/measure.py --threads 1,4          (there; --help says more)
  litheseg fit model.safetensors --measured measurements.json --budget 20ms --output deployed      (here again)

Both time networks alone, from a uint8 image of the network's size to logits: keep room for the rest with
`litheseg fit --reserve`.

Examples:
  litheseg measure exports/street --threads 1,4
  litheseg measure runs/camvid/model.safetensors --output kit
  litheseg measure model.safetensors --widths 1,.5,.25 --sizes 180x240,136x184 --output kit
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from litheseg.bundle.exported import is_export
from litheseg.bundle.targets import RUNTIMES, Formats
from litheseg.cli.parsing import command
from litheseg.errors import LithesegError
from litheseg.lazy import workstation
from litheseg.runtime.kit import RESULT_FILE, measure_export
from litheseg.values import Counts, Sizes, Widths, Written

__all__ = ["measure"]

_RUNTIMES = tuple(name for name in RUNTIMES if name != "torch")


@command(measure_export, without=("export", "runtimes"))
def measure(
    model: Path,
    *,
    output: Path | None = None,
    threads: Counts | None = None,
    runtime: Annotated[str, Written(str, choices=_RUNTIMES)] | None = None,
    widths: Widths | None = None,
    sizes: Sizes | None = None,
    format: Formats = ("onnx",),
    force: bool = False,
    **options: Any,
) -> None:
    """Print the times, or what to do with the kit.

    Args:
        model: an export, timed here; or a model file, for a kit.
        output: file of an export's times, by default measurements.json; or the kit's folder.
        threads: of an export: numbers of CPU threads; by default 1 and all.
        runtime: of an export: what runs it; by default those that are installed.
        widths: of a kit: any in the trained range; by default all of the model, and two between each pair.
        sizes: of a kit: the networks' inputs; by default the training size, 3/4 and 1/2 of it.
        format: of a kit: onnx, or other formats of `litheseg export`; several with commas.
        force: replace a kit that is there.
        **options: of `measure_export`.
    """
    path = model.expanduser()
    if is_export(path):
        if widths or sizes:
            raise LithesegError(f"--widths and --sizes choose what a kit exports; {path} is timed as it is")
        measure_export(path, output or RESULT_FILE, threads=threads, runtimes=runtime and (runtime,), **options)
        return
    if output is None:
        raise LithesegError("a kit is a folder: name it with --output")
    kits = workstation("budget.kit", "writing a kit")
    count = kits.write_kit(model, output, widths=widths, sizes=sizes, formats=format, force=force)
    number = "1 network" if count == 1 else f"{count} networks"
    print(f"{number} and {kits.SCRIPT} written to {output}\n\nnext, on the target:")
    print(f"  python {output.name}/{kits.SCRIPT}\nthen here:")
    print(f"  litheseg fit {model} --measured measurements.json --budget 20ms --output deployed")
