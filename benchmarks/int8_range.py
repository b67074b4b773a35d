"""What becomes of int8 weights of full range on a processor that adds products in 16 bits.

One network is quantized three times, with weights of the full range of int8, of half of it in the first layer, and of
half of it everywhere, with biases as they were. Each is scored as its runtime runs it here, and once more with exact
arithmetic: ONNX Runtime without any rewriting computes QuantizeLinear and DequantizeLinear as they stand, in floating
point, which is what processors with VNNI give in int8. No layer is kept in floating point.

    python benchmarks/int8_range.py MODEL --data data/camvid --output benchmarks/results/int8_range.json
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
from int8 import origin
from reports import write_report
from rich.console import Console
from rich.table import Table

from litheseg.bundle.exported import Artefact, Export
from litheseg.deploy.export import export_bundle
from litheseg.deploy.parity import Certificate, certify_all, pytorch_reference
from litheseg.deploy.quantize import calibration_samples, networks
from litheseg.deploy.quantize.onnx_network import OnnxNetwork
from litheseg.deploy.quantize.openvino_network import OpenVinoNetwork
from litheseg.deploy.quantize.report import class_changes
from litheseg.deploy.samples import CalibrationImages
from litheseg.models.bundle import load_bundle
from litheseg.runtime.engines import Engine, open_engine

RANGES = {"full": "disable", "half in the first layer": "first_layer_only", "half": "enable"}


def main() -> None:
    """Parse, measure, print a table, write JSON."""
    options = parse()
    rows = [row for width in options.widths for row in rows_of(options, width)]
    report = {"rows": rows} | origin(load_bundle(options.model), options)
    show(rows)
    write_report(options.output, report)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a model file")
    parser.add_argument("--data", help="the folder of its data")
    parser.add_argument("--widths", type=float, nargs="+", default=[1.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where to write JSON")
    return parser.parse_args()


def rows_of(options: argparse.Namespace, width: float) -> Iterator[dict[str, Any]]:
    """One row a range and way of running."""
    bundle = load_bundle(options.model)
    calibration, check = calibration_samples(bundle, options.data)
    reference, names = pytorch_reference(bundle, width), bundle.header.classes.names
    with tempfile.TemporaryDirectory() as folder:
        formats = ("onnx", "openvino")
        export = export_bundle(bundle, Path(folder) / "fp32", formats=formats, widths=(width,), check=False)
        for span, fix in RANGES.items():
            made = dict(engines(export, calibration, fix, options.threads))
            found = certify_all(made, reference, check, names, size=export.artefacts[0].size)
            for way, certificate in found.items():
                yield row(width, span, way, certificate)


def engines(export: Export, calibration: Any, fix: str, threads: int) -> Iterator[tuple[str, Engine]]:
    """(how it runs, it) for a range of weights."""
    for artefact in export.artefacts:
        read = {"onnx": OnnxNetwork, "openvino": OpenVinoNetwork}[artefact.format].read
        images = CalibrationImages(calibration, artefact.size)
        with patch.object(networks, "_WEIGHTS", fix):
            network = read(export.file(artefact), artefact.layout).quantized(images, corrected=False)
        [file, *_] = network.write(export.folder / f"int8{network.suffix}")
        runtime = "onnxruntime" if artefact.format == "onnx" else "openvino"
        int8 = replace(artefact, precision="int8", path=file.name, files={})
        yield runtime, open_engine(alone(export, int8), runtime=runtime, precision="int8", threads=threads)
        if artefact.format == "onnx":
            yield "exact arithmetic", Exact(file)


def alone(export: Export, artefact: Artefact) -> Export:
    return replace(export, artefacts=(artefact,))


class Exact:
    """ONNX Runtime without rewriting: every step in floating point, as it stands in the file."""

    runtime, precision, output, size = "onnxruntime", "int8", "logits", None

    def __init__(self, file: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Logits of an image."""
        logits: np.ndarray = self._session.run(None, {"image": np.ascontiguousarray(image)[None]})[0][0]
        return logits


def row(width: float, span: str, way: str, found: Certificate) -> dict[str, Any]:
    changes = {name: change for name, change in class_changes(found).items() if not np.isnan(change)}
    worst = min(changes, key=lambda name: changes[name])
    return {
        "width": width,
        "range": span,
        "run_by": way,
        "miou": found.miou,
        "reference_miou": found.reference_miou,
        "agreement": found.agreement,
        "worst_class": worst,
        "worst_class_change": changes[worst],
        "class_changes": changes,
    }


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("width", "range of weights", "run by", "mIoU fp32", "int8", "worst class", "pixels as fp32 (%)")
    for entry in rows:
        table.add_row(
            f"{entry['width']:g}",
            entry["range"],
            entry["run_by"],
            f"{100 * entry['reference_miou']:.2f}",
            f"{100 * entry['miou']:.2f}",
            f"{entry['worst_class']} {entry['worst_class_change']:+.1f}",
            f"{100 * entry['agreement']:.2f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
