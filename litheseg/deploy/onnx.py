"""A network as an ONNX file, written by PyTorch's graph exporter.

Input ``image`` is the raw picture, output ``logits`` or ``labels``; the file includes normalisation and the export's
description (`metadata_props`).

Usage:
    >>> save_onnx(onnx_model(export_program(network, None), "logits"), Path("street.onnx"), text)
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from litheseg.bundle.description import KEY
from litheseg.errors import MissingExtraError, ModelError, first_line, innermost

if TYPE_CHECKING:
    from litheseg.deploy.conversion import Conversion

__all__ = ["INPUT", "LIBRARIES", "USAGE", "onnx_model", "save_onnx", "write"]

LIBRARIES = ("onnx", "onnxscript")
USAGE = (
    "import onnxruntime",
    '[result] = onnxruntime.InferenceSession("{path}").run(None, {{"image": image}})',
)

INPUT = "image"
_EXTENTS = ("height", "width")


def onnx_model(program: ExportedProgram, output: str) -> Any:
    """The `onnx.ModelProto` of a graph.

    Args:
        program: from `litheseg.deploy.torch_export.export_program`.
        output: what its output is called: "logits" or "labels".

    Raises:
        MissingExtraError: the packages `onnx` or `onnxscript` are not installed.
        ModelError: an operator that ONNX lacks.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (what PyTorch's exporter is made of)
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export", "export to ONNX") from error
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            warnings.simplefilter("ignore")
            made = torch.onnx.export(program, dynamo=True, input_names=[INPUT], output_names=[output], verbose=False)
    except Exception as error:  # an unknown operator comes wrapped in several layers
        reason = first_line(innermost(error))
        raise ModelError(f"ONNX cannot hold this network ({reason}); export to torch instead") from error
    assert made is not None
    model = made.model_proto
    _tidy(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def write(conversion: Conversion, path: Path, text: str) -> None:
    """See `litheseg.deploy.conversion`."""
    save_onnx(conversion.onnx, path, text)


def save_onnx(model: Any, path: Path, text: str = "") -> None:
    """Write a model with its weights into one file, with `text` inside; what it held of this kind is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    del model.metadata_props[:]
    if text:
        model.metadata_props.add(key=KEY, value=text)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _tidy(model: Any) -> None:
    """Drop what only the exporter needed (stack traces with this machine's paths), and name the open sizes."""
    graph = model.graph
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del graph.value_info[:], graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
    open_sizes = [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim if dim.dim_param]
    names = dict(zip(open_sizes, _EXTENTS, strict=False))
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\b\w+\b", lambda match: names.get(match[0], match[0]), dim.dim_param)
