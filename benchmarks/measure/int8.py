"""What int8 gains and costs: accuracy by class, size and time of every width's int8 network beside its fp32 network.

They are made and checked as `litheseg export --precision int8` does, with its default tolerances. Then all networks of
a width are timed, in turns, round after round, so that load from other programs falls on all alike; what is compared
are medians of the same rounds, and the fastest round, which load can only make slower. What int8 gains depends on the
processor: `instructions` in the report says whether it has any made for it (VNNI, AMX).

    python benchmarks/measure int8 MODEL --data data/camvid --output benchmarks/results/int8.jsonl
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from records import save

from litheseg.bundle.exported import Artefact, Export
from litheseg.deploy.export import export_bundle
from litheseg.deploy.quantize import QuantizationReport, Quantizer, Tolerance, calibration_samples
from litheseg.errors import LithesegError
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.runtime.engines import Engine, open_engine
from measure.common import arguments, in_turns, show

FORMATS = ("onnx", "openvino")
LIBRARIES = ("nncf", "numpy", "onnx", "onnxruntime", "openvino", "torch")
INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8")


def main() -> None:
    """Parse, measure, print a table, write records."""
    options = parse()
    bundle = load_bundle(options.model)
    clock = "wall-clock time of one network, raw image in, logits out"
    header = bundle.header
    model = {"architecture": header.architecture, "size": header.size, "classes": header.classes.names}
    facts = {"model": model | {"seed": header.provenance.get("seed")}, "clock": clock, "instructions": instructions()}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for width in options.widths or bundle.header.available_widths:
            rows += rows_of(bundle, width, Path(folder), options)
            # after each width: it takes minutes
            save(options, {"rows": rows, "tolerance": vars(Tolerance())}, *LIBRARIES, **facts)
    show(rows, "int8 beside fp32")


def parse() -> argparse.Namespace:
    parser = arguments(__doc__, rounds=100, threads=1)
    parser.add_argument("model", help="a model file")
    parser.add_argument("--data", help="the folder of its data")
    parser.add_argument("--widths", type=float, nargs="+")
    return parser.parse_args()


def rows_of(bundle: Bundle, width: float, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a format."""
    calibration, check = calibration_samples(bundle, options.data)
    quantizer = Quantizer(bundle, calibration, check, threads=options.threads)
    formats = dict.fromkeys(FORMATS)
    export = export_bundle(bundle, folder / f"{width:g}", formats=tuple(formats), widths=(width,), check=False)
    made = {original.format: attempt(quantizer, export, original) for original in export.artefacts}
    engines = dict(engines_of(export, made, options.threads))
    size = export.artefacts[0].size or bundle.header.size
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    steps = {name: (lambda engine=engine: engine(image)) for name, engine in engines.items()}
    times = {
        name: {"median_ms": median(values), "fastest_ms": min(values)}
        for name, values in in_turns(steps, options.rounds).items()
    }
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


def instructions() -> list[str]:
    """Which of those that matter to int8 the processor has; empty where it is not known."""
    file = Path("/proc/cpuinfo")
    flags = (
        next((line for line in file.read_text().splitlines() if line.startswith("flags")), "") if file.exists() else ""
    )
    return [name for name in INSTRUCTIONS if name in flags.split()]
