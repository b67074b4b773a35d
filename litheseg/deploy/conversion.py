"""One network on its way into files of any format.

A converter is a module of this room, named by `litheseg.bundle.targets.Target.converter`, with

- `write(conversion, path, text)`: writes the network to `path`, and beside it with the endings that the target names,
  with `text`, the export's description, inside ("" for none); raises ModelError for what the format cannot hold,
- `LIBRARIES`: the packages whose versions an export keeps,
- `USAGE`: for the README, how to import what runs the file, and to make ``result`` of ``image`` with it,
- and, where the runtime does not run on every system, `stand_in(path, artefact, images)`: an engine that computes the
  same by other means, to check the file all the same.

Usage:
    >>> write_network("onnx", Conversion(deployed(bundle, 0.5), (360, 480)), Path("street.onnx"))
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from litheseg.bundle.targets import target_of
from litheseg.deploy.network import Deployed
from litheseg.deploy.onnx import onnx_model
from litheseg.deploy.torch_export import export_program
from litheseg.progress import work

__all__ = ["Conversion", "converter", "quiet", "write_network"]


@dataclass(frozen=True)
class Conversion:
    """What converters begin with; what several of them need is made once.

    Attributes:
        network: in evaluation mode.
        size: height and width of its input in pixels; None for any.
        remarks: what a converter has to say of the network in its format, by format; it goes into the certificate.
    """

    network: Deployed
    size: tuple[int, int] | None
    remarks: dict[str, str] = field(default_factory=dict)

    @cached_property
    def program(self) -> ExportedProgram:
        """Its graph; errors as of `export_program`."""
        with work("tracing"):
            return export_program(self.network, self.size)

    @cached_property
    def onnx(self) -> Any:
        """Its `onnx.ModelProto`; errors as of `onnx_model`."""
        program = self.program
        with work("converting to ONNX"):
            return onnx_model(program, self.network.output)


def converter(format: str) -> Any:
    """The module that writes a format, a key of `litheseg.bundle.targets.FORMATS`."""
    return importlib.import_module(f"litheseg.deploy.{target_of(format).converter or format}")


def write_network(format: str, conversion: Conversion, path: Path, text: str = "") -> tuple[str, ...]:
    """Write a network; returns the names of its files, of which `path` is the main one.

    Raises:
        MissingExtraError: a package is not installed.
        ModelError: what the format cannot hold, or a network that cannot be traced.
        OSError: a file cannot be written.
    """
    converter(format).write(conversion, path, text)
    if path.is_dir():
        return tuple(
            f"{path.name}/{file.relative_to(path).as_posix()}" for file in sorted(path.rglob("*")) if file.is_file()
        )
    return path.name, *(path.with_suffix(suffix).name for suffix in target_of(format).beside)


@contextmanager
def quiet() -> Iterator[None]:
    """A converter without the remarks of its libraries, none of which a user can do anything about."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
