"""The targets: each runtime, the network files that are its own, and the package that runs them.

A target is declared here once; everything that lists runtimes, formats or endings of files asks this table. What it
needs besides is found by name: `litheseg.deploy` converts (`Target.converter`), `litheseg.runtime.in_RUNTIME` runs. See
docs/architecture.md.

Usage:
    >>> TARGETS["openvino"].suffix, FORMATS["onnx"]
    ('.xml', ('onnxruntime', 'openvino'))
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from litheseg.errors import LithesegError
from litheseg.values import Written, parse_names

__all__ = [
    "FORMATS",
    "PACKAGES",
    "PRECISIONS",
    "RUNTIMES",
    "STORED_PRECISIONS",
    "TARGETS",
    "Formats",
    "PrecisionName",
    "RuntimeName",
    "Target",
    "parse_formats",
    "target_of",
]


@dataclass(frozen=True)
class Target:
    """A runtime with its files.

    Attributes:
        runtime: its name, as in ``--runtime``; `litheseg.runtime.in_RUNTIME` opens its networks.
        format: of the files that are made for it, as in ``--format``.
        suffix: ending of their main file.
        package: that runs them, as pip knows it.
        extra: of litheseg, which brings the package; None for the base install.
        precisions: in which it runs networks.
        beside: endings of the files that lie beside the main one.
        reads: formats of other targets that it takes as well.
        module: what the package is imported as; "" for its own name.
        oldest: version of the package that will do; "" for any.
        converter: module of `litheseg.deploy` that writes the files; "" for the name of the format.
        system: `platform.system` of the only one that it runs on, where its package can be installed on others, too.
        quick: whether it is written in seconds, so that `fit` tries it unasked.
    """

    runtime: str
    format: str
    suffix: str
    package: str
    extra: str | None
    precisions: tuple[str, ...] = ("fp32",)
    beside: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    module: str = ""
    oldest: str = ""
    converter: str = ""
    system: str = ""
    quick: bool = True

    @property
    def imported(self) -> str:
        """What the package is imported as."""
        return self.module or self.package

    @property
    def runs_here(self) -> bool:
        """Whether this system is one that it runs on; its package may be missing all the same."""
        return self.system in ("", platform.system())


_ALL = (
    Target("torch", "torch", ".pt2", "torch", "train", ("fp32", "bf16", "fp16"), converter="torch_export"),
    Target("onnxruntime", "onnx", ".onnx", "onnxruntime", None, ("fp32", "int8")),
    Target("openvino", "openvino", ".xml", "openvino", "openvino", ("fp32", "bf16", "int8"), (".bin",), ("onnx",)),
    Target("ncnn", "ncnn", ".param", "ncnn", "ncnn", ("fp32", "fp16"), (".bin",), oldest="1.0.20250916", quick=False),
    Target("executorch", "executorch", ".pte", "executorch", "executorch", ("fp32", "int8"), oldest="1.5", quick=False),
    Target("coreml", "coreml", ".mlpackage", "coremltools", "coreml", oldest="9.0", system="Darwin"),
    Target(
        *("litert", "litert", ".tflite", "ai-edge-litert", "litert", ("fp32", "int8")),
        module="ai_edge_litert",
        oldest="1.4",
        quick=False,
    ),
)
TARGETS = {target.runtime: target for target in _ALL}
"""All of them, by runtime."""
RUNTIMES = tuple(TARGETS)
PACKAGES = tuple(target.package for target in _ALL)
FORMATS: dict[str, tuple[str, ...]] = {
    name: tuple(target.runtime for target in _ALL if name in (target.format, *target.reads))
    for name in sorted(target.format for target in _ALL)
}
"""Kinds of network files, and the runtimes that take them."""
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
STORED_PRECISIONS = ("fp32", "int8")  # bf16 and fp16 networks are stored as fp32
RuntimeName = Annotated[str, Written(str, choices=RUNTIMES)]
PrecisionName = Annotated[str, Written(str, choices=PRECISIONS)]


def parse_formats(text: str, further: Sequence[str] = ()) -> tuple[str, ...]:
    """Formats with commas between them: ``onnx,openvino``.

    Args:
        text: what is written.
        further: names besides those of `FORMATS`.

    Raises:
        LithesegError: another name.
    """
    for name in parse_names(text):
        if name not in (*FORMATS, *further):
            raise LithesegError(f"'{name}' is no format; choose from {', '.join((*FORMATS, *further))}")
    return parse_names(text)


Formats = Annotated[Sequence[str], Written(parse_formats, "F,F", ",".join)]


def target_of(format: str) -> Target:
    """The target that a format, a key of `FORMATS`, is made for."""
    return next(target for target in _ALL if target.format == format)
