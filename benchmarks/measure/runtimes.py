"""A network in every runtime and precision at hand, for programs that time networks side by side.

A network that cannot become int8, or whose int8 a runtime cannot run, goes without it: the reason is kept.

Usage:
    >>> deployed = Deployed(bundle, 0.5, (360, 480), folder)
    >>> deployed.export(*calibration_samples(bundle, "data/camvid", count=32))
    >>> engines = deployed.engines(threads=1)  # {("openvino", "int8"): ..., ...}
    >>> deployed.refused  # {("onnxruntime", "int8"): "..."}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from litheseg.bundle.exported import Artefact, Export, is_export, load_export
from litheseg.data.loading.transforms import normalise
from litheseg.deploy.export import export_bundle
from litheseg.deploy.parity import Certificate
from litheseg.deploy.quantize import Quantizer, Tolerance
from litheseg.deploy.samples import Samples
from litheseg.deploy.torch_engine import bundle_engine
from litheseg.errors import LithesegError
from litheseg.files import write_text
from litheseg.masks.classes import CAMVID_CLASSES
from litheseg.models import build_model
from litheseg.models.bundle import Bundle, BundleHeader
from litheseg.nn import slim
from litheseg.runtime.engines import Engine, open_engine

__all__ = ["CHOICES", "EXPORTED", "Choice", "Deployed", "untrained"]

Choice = tuple[str, str]
"""A runtime and a precision."""

EXPORTED: tuple[Choice, ...] = (
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("onnxruntime", "int8"),
    ("openvino", "int8"),
)
CHOICES: tuple[Choice, ...] = (("torch", "fp32"), *EXPORTED)

_FORMATS = ("onnx", "openvino")
_ANY = Tolerance(miou=100, class_iou=None, agreement=0)  # int8 throughout: what it costs is measured beside the time


@dataclass
class Deployed:
    """One width of a model, as files for the runtimes.

    Attributes:
        bundle: the model.
        width: the width.
        size: height and width of the network's input.
        folder: of the files.
        output_kind: "logits" at the network's stride, or "labels" taken inside the graph.
        refused: why a choice is missing.
    """

    bundle: Bundle
    width: float
    size: tuple[int, int]
    folder: Path
    output_kind: str = "logits"
    refused: dict[Choice, str] = field(default_factory=dict)

    def export(self, calibration: Samples, check: Samples) -> None:
        """Write the files, fp32 and int8, which is calibrated on some images and tried on others; what is there stays.

        Raises:
            LithesegError: not even fp32 can be exported.
        """
        reasons = self.folder.with_name(f"{self.folder.name}.refused.json")
        if is_export(self.folder) and reasons.exists():
            self.refused = {_choice(name): reason for name, reason in json.loads(reasons.read_text()).items()}
            return
        quantizer = Quantizer(self.bundle, calibration, check, tolerance=_ANY)

        def int8_networks(export: Export) -> Iterator[tuple[Artefact, Certificate, Mapping[str, Any]]]:
            for original in export.artefacts:
                try:
                    artefact, report = quantizer.quantize(export, original)
                    yield artefact, report.result.certificate, report.essence()
                except LithesegError as error:
                    self.refused |= {(runtime, "int8"): str(error) for runtime in original.runtimes}

        export_bundle(
            self.bundle,
            self.folder,
            formats=_FORMATS,
            widths=(self.width,),
            size=self.size,
            output_kind=self.output_kind,
            check=False,
            further=int8_networks,
            force=True,
        )
        write_text(reasons, json.dumps(self.reasons))

    @property
    def reasons(self) -> dict[str, str]:
        """`refused`, for JSON."""
        return {" ".join(choice): reason for choice, reason in self.refused.items()}

    def engines(self, threads: int, choices: Iterable[Choice] = EXPORTED) -> dict[Choice, Engine]:
        """Of those choices that are not refused; what cannot be opened is refused from then on."""
        opened: dict[Choice, Engine] = {}
        for runtime, precision in choices:
            if (runtime, precision) in self.refused:
                continue
            try:
                opened[runtime, precision] = self.engine(runtime, precision, threads)
            except LithesegError as error:
                self.refused[runtime, precision] = str(error)
        return opened

    def engine(self, runtime: str, precision: str, threads: int) -> Engine:
        """As `litheseg.runtime.engines.open_engine`; PyTorch runs the model itself."""
        if runtime == "torch":
            return bundle_engine(self.bundle, self.width, "torch", threads=threads)
        return open_engine(load_export(self.folder), runtime=runtime, precision=precision, threads=threads)


def _choice(text: str) -> Choice:
    runtime, precision = text.split()
    return runtime, precision


def untrained(
    name: str,
    arguments: Mapping[str, Any],
    widths: Sequence[float],
    size: tuple[int, int],
    frames: Sequence[np.ndarray],
) -> Bundle:
    """A model with random weights, good for its time only.

    Batch norms measure the frames, so that numbers in the network have the size of a trained one's.

    Args:
        name: of the architecture.
        arguments: its own.
        widths: that it runs at.
        size: height and width of its input.
        frames: two images or more, uint8 H x W x 3.

    Raises:
        LithesegError: the network cannot be elastic.
    """
    torch.manual_seed(0)
    network = build_model(name, len(CAMVID_CLASSES), aux_head=False, **arguments)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all images seen
    with torch.no_grad():
        network.train()(normalise(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)))
    header = BundleHeader({"name": name, "args": dict(arguments)}, CAMVID_CLASSES, widths=tuple(widths), size=size)
    return Bundle(header, slim(network.eval(), widths).state_dict())
