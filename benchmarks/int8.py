"""What int8 gains and costs: accuracy by class, size and time of every width's int8 network beside its fp32 network.

They are made and checked as `litheseg export --precision int8` does, with its default tolerances. Then all networks of
a width are timed, in turns, round after round, so that load from other programs falls on all alike; what is compared
are medians of the same rounds, and the fastest round, which load can only make slower. What int8 gains depends on the
processor: `instructions` in the report says whether it has any made for it (VNNI, AMX).

    python benchmarks/int8.py MODEL --data data/camvid --output benchmarks/results/int8.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from reports import provenance, write_report
from rich.console import Console
from rich.table import Table
from upsampling import measure

from litheseg.bundle.exported import Artefact, Export
from litheseg.deploy.export import export_bundle
from litheseg.deploy.quantize import QuantizationReport, Quantizer, Tolerance, calibration_samples
from litheseg.errors import LithesegError
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.runtime.engines import Engine, open_engine

FORMATS = ("onnx", "openvino")
LIBRARIES = ("nncf", "numpy", "onnx", "onnxruntime", "openvino", "torch")
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")


def main() -> None:
    """Parse, measure, print a table, write JSON."""
    options = parse()
    bundle = load_bundle(options.model)
    clock = "wall-clock time of one network, raw image in, logits out"
    report: dict[str, Any] = {"rows": [], "tolerance": vars(Tolerance())} | origin(bundle, options, clock=clock)
    with tempfile.TemporaryDirectory() as folder:
        for width in options.widths or bundle.header.available_widths:
            report["rows"] += rows_of(bundle, width, Path(folder), options)
            write_report(options.output, report)  # after each width: it takes minutes
    show(report["rows"])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a model file")
    parser.add_argument("--data", help="the folder of its data")
    parser.add_argument("--widths", type=float, nargs="+")
    parser.add_argument("--rounds", type=int, default=100, help="timed rounds, after one for warming up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where to write JSON")
    return parser.parse_args()


def rows_of(bundle: Bundle, width: float, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a format."""
    calibration, check = calibration_samples(bundle, options.data)
    quantizer = Quantizer(bundle, calibration, check, threads=options.threads, progress=print)
    formats = dict.fromkeys(FORMATS)
    export = export_bundle(bundle, folder / f"{width:g}", formats=tuple(formats), widths=(width,), check=False)
    made = {original.format: attempt(quantizer, export, original) for original in export.artefacts}
    engines = dict(engines_of(export, made, options.threads))
    times = timings(engines, export.artefacts[0].size or bundle.header.size, options.rounds)
    for form, outcome in made.items():
        yield row(width, form, outcome, times)


Outcome = tuple[Artefact, QuantizationReport] | str


def attempt(quantizer: Quantizer, export: Export, original: Artefact) -> Outcome:
    """An int8 network and how it came about, or why there is none."""
    try:
        artefact, report = quantizer.quantize(export, original)
    except LithesegError as error:
        return str(error)
    print(report.summary())
    return artefact, report


def engines_of(export: Export, made: Mapping[str, Outcome], threads: int) -> Iterator[tuple[str, Engine]]:
    for original in export.artefacts:
        outcome = made[original.format]
        for artefact in (original, *(() if isinstance(outcome, str) else (outcome[0],))):
            alone = Export(export.path, export.header, (artefact,), export.provenance)
            for runtime in artefact.runtimes:
                engine = open_engine(alone, runtime=runtime, precision=artefact.precision, threads=threads)
                yield f"{artefact.format} {artefact.precision} in {runtime}", engine


def timings(engines: Mapping[str, Engine], size: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Median and least milliseconds of each."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    steps = {name: (lambda engine=engine: engine(image)) for name, engine in engines.items()}
    return {
        name: {"median_ms": median(times), "fastest_ms": min(times)} for name, times in measure(steps, rounds).items()
    }


def row(width: float, form: str, outcome: Outcome, times: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    result: dict[str, Any] = {"width": width, "format": form}
    runtimes = {name.split(" in ")[1] for name in times if name.startswith(f"{form} ")}
    if isinstance(outcome, str):
        return result | {"refused": outcome}
    essence = outcome[1].essence()
    del essence["milliseconds"], essence["fp32_milliseconds"], essence["speedup"]  # those below have more rounds
    for runtime in sorted(runtimes):
        fp32, int8 = (times[f"{form} {precision} in {runtime}"] for precision in ("fp32", "int8"))
        result[runtime] = {
            "fp32": dict(fp32),
            "int8": dict(int8),
            "speedup": fp32["median_ms"] / int8["median_ms"],
            "fastest_speedup": fp32["fastest_ms"] / int8["fastest_ms"],
        }
    trials = [trial.to_dict() for trial in outcome[1].trials]
    return result | essence | {"layers": len(outcome[1].ranking) or None, "trials": trials}


def show(rows: list[dict[str, Any]]) -> None:
    head = ("width", "file", "mIoU fp32", "int8", "worst class", "kept", "MB fp32", "int8", "ms fp32", "int8", "gain")
    table = Table(*head)
    for entry in rows:
        if "refused" in entry:
            table.add_row(f"{entry['width']:g}", entry["format"], entry["refused"])
            continue
        own = entry["onnxruntime" if entry["format"] == "onnx" else "openvino"]
        table.add_row(
            f"{entry['width']:g}",
            entry["format"],
            f"{100 * entry['reference_miou']:.2f}",
            f"{100 * entry['miou']:.2f}",
            f"{entry['worst_class']} {entry['worst_class_change']:+.1f}",
            str(len(entry["kept"])),
            f"{entry['fp32_bytes'] / 1e6:.2f}",
            f"{entry['size_bytes'] / 1e6:.2f}",
            f"{own['fp32']['fastest_ms']:.2f}",
            f"{own['int8']['fastest_ms']:.2f}",
            f"{own['fastest_speedup']:.2f}",
        )
    Console(width=150).print(table)


def origin(bundle: Bundle, options: argparse.Namespace, **facts: Any) -> dict[str, Any]:
    """`provenance`, with the model and what the processor has for int8."""
    model = {
        "architecture": bundle.header.architecture,
        "size": bundle.header.size,
        "classes": bundle.header.classes.names,
        "seed": bundle.header.provenance.get("seed"),
    }
    return provenance(options, *LIBRARIES, model=model, instructions=instructions(), **facts)


def instructions() -> list[str]:
    """Which of those that matter to int8 the processor has; empty where nobody tells."""
    file = Path("/proc/cpuinfo")
    flags = (
        next((line for line in file.read_text().splitlines() if line.startswith("flags")), "") if file.exists() else ""
    )
    return [name for name in INSTRUCTIONS if name in flags.split()]


if __name__ == "__main__":
    main()
