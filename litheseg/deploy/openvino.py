"""A network as OpenVINO's own files: an .xml of the graph and a .bin of the weights, in 32 bits.

It is converted from ONNX, so that there is one path from PyTorch to every runtime. `openvino.convert_model` would do
the same in one call, but sends telemetry.

Usage:
    >>> save_openvino(Path("street.onnx"), Path("street.xml"), text)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from litheseg.bundle.description import KEY
from litheseg.deploy.onnx import save_onnx
from litheseg.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from litheseg.deploy.conversion import Conversion

__all__ = ["LIBRARIES", "USAGE", "require_openvino", "save_openvino", "write"]

LIBRARIES = ("onnx", "onnxscript", "openvino")
USAGE = ("import openvino", 'result = openvino.Core().compile_model("{path}", "CPU")(image)[0]')


def write(conversion: Conversion, path: Path, text: str) -> None:
    """See `litheseg.deploy.conversion`."""
    plain = path.with_name(f"{path.stem}.scratch.onnx")
    save_onnx(conversion.onnx, plain)
    try:
        save_openvino(plain, path, text)
    finally:
        plain.unlink()


def require_openvino(purpose: str) -> Any:
    """The package.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "export", purpose) from error
    return openvino


def save_openvino(source: Path, path: Path, text: str) -> None:
    """Convert an ONNX file, with `text` inside; the weights go to `path` with the ending .bin.

    Args:
        source: the ONNX file; what it says of itself would be kept too.
        path: the .xml file.
        text: the export's description.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        ModelError: an operator that it lacks.
        OSError: a file cannot be written.
    """
    openvino = require_openvino("export to OpenVINO")
    try:
        from openvino._offline_transformations import apply_moc_transformations

        model = openvino.Core().read_model(source)
        apply_moc_transformations(model, cf=False)  # folds what only described shapes
    except Exception as error:  # its errors have no class in common
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise ModelError(f"OpenVINO cannot hold this network ({reason}); export to onnx or torch instead") from error
    model.set_rt_info(text, KEY)
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(f"OpenVINO cannot write {path.name}: {error}") from error
