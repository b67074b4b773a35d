"""Text that network files carry inside: where each format keeps it, and how it is read without running anything.

It does not know what the text says (`litheseg.bundle.exported` does), nor how the files are written.

Usage:
    >>> text = read_description(Path("street.onnx"))
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

from litheseg.errors import BundleError, MissingExtraError

__all__ = ["ARCHIVE_ENTRY", "KEY", "read_description"]

KEY = "litheseg"
"""Under which the text is kept: in ONNX's metadata_props and OpenVINO's rt_info."""
ARCHIVE_ENTRY = "litheseg.json"
"""The extra file of a `torch.export` archive that holds it."""


def read_description(path: Path) -> str:
    """The text inside a network file.

    Args:
        path: an .onnx, .xml or .pt2 file.

    Raises:
        BundleError: another kind of file, a damaged one, or one that litheseg did not write.
        MissingExtraError: the format's library is not installed.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BundleError(f"{path} is no export: give a folder, or a file that ends in {', '.join(_READERS)}")
    try:
        text = reader(path)
    except (BundleError, MissingExtraError):
        raise
    except Exception as error:  # each library has errors of its own for a damaged file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BundleError(f"{path} cannot be read ({reason}); it is damaged, or no such file: copy it again") from error
    if text is None:
        raise BundleError(f"{path} was not exported by litheseg: it says nothing of classes; use `litheseg export`")
    return text


def _from_onnx(path: Path) -> str | None:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "onnx", f"reading {path}") from error
    model = onnx.load(str(path), load_external_data=False)
    beside = {entry.value for w in model.graph.initializer for entry in w.external_data if entry.key == "location"}
    for name in beside:
        _check_beside(path, name)
    return next((entry.value for entry in model.metadata_props if entry.key == KEY), None)


def _from_openvino(path: Path) -> str | None:
    try:
        import openvino
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", f"reading {path}") from error
    _check_beside(path, path.with_suffix(".bin").name)
    model = openvino.Core().read_model(str(path))
    return str(model.get_rt_info(KEY).astype(str)) if model.has_rt_info(KEY) else None


def _from_archive(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/extra/{ARCHIVE_ENTRY}")]
        return archive.read(names[0]).decode() if names else None


def _check_beside(path: Path, weights: str) -> None:
    if not (path.parent / weights).is_file():
        raise BundleError(f"{path} lacks its weights, {weights}; copy both files together")


_READERS: dict[str, Callable[[Path], str | None]] = {
    ".onnx": _from_onnx,
    ".pt2": _from_archive,
    ".xml": _from_openvino,
}
