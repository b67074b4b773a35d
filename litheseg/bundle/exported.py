"""The description of an export: which networks it holds, at which width and for which runtime.

An export is a folder with `export.json` beside the networks, or one network file alone: each carries the same text
inside (`description`), so that it can be copied elsewhere and still be read. The text repeats the bundle's header:
classes, colours, widths, normalisation, provenance.

Usage:
    >>> export = load_export("exports/street")
    >>> export.find(width=0.5, runtime="openvino").path
    'openvino-fp32-w0.5.xml'
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from litheseg.bundle.description import KEY, read_description
from litheseg.bundle.header import BundleHeader, checked_size
from litheseg.bundle.names import model_path
from litheseg.bundle.targets import FORMATS, PRECISIONS, RUNTIMES, STORED_PRECISIONS, TARGETS
from litheseg.errors import BundleError, LithesegError, WidthError, did_you_mean
from litheseg.files import file_digest
from litheseg.masks.classes import Classes

__all__ = [
    "EXPORT_FILE",
    "EXPORT_VERSION",
    "LAYOUTS",
    "OUTPUTS",
    "Artefact",
    "Export",
    "check_choice",
    "description",
    "is_export",
    "load_export",
]

EXPORT_VERSION = 1
"""Of what exports say of themselves; this litheseg reads this version only."""
EXPORT_FILE = "export.json"
OUTPUTS = ("logits", "labels")
LAYOUTS = ("NHWC", "NCHW")
_AGAIN = "copy it again, or export the model anew"


@dataclass(frozen=True)
class Artefact:
    """One network at one width, in one file or in one with weights beside it.

    Attributes:
        format: a key of `FORMATS`.
        width: the width that it was cut to.
        precision: one of `STORED_PRECISIONS`.
        size: height and width of its input in pixels; None for any.
        layout: of the input, the raw image: "NHWC" (1 H W C) or "NCHW" (1 C H W).
        output: "logits": float32 1 K h w at the network's own stride; "labels": uint8 1 H W at the input's size.
        path: the main file, relative to the export's folder.
        files: SHA-256 of each of its files, by path; a lone network file does not know its own.

    Raises:
        BundleError: a value that is none of these.
    """

    format: str
    width: float
    precision: str
    size: tuple[int, int] | None
    layout: str
    output: str
    path: str
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {"format": FORMATS, "precision": STORED_PRECISIONS, "layout": LAYOUTS, "output": OUTPUTS}
        for name, choices in known.items():
            if getattr(self, name) not in tuple(choices):
                raise BundleError(f"'{name}' is {getattr(self, name)!r}, which is none of {', '.join(choices)}")
        if isinstance(self.width, bool) or not isinstance(self.width, (int, float)) or not 0 < self.width <= 1:
            raise BundleError(f"'width' is {self.width!r}, which is not in (0, 1]")
        if self.size is not None:
            object.__setattr__(self, "size", checked_size(self.size))
        if not isinstance(self.files, Mapping) or not all(isinstance(value, str) for value in self.files.values()):
            raise BundleError("'files' must map paths to checksums")
        for path in (self.path, *self.files):
            if not isinstance(path, str) or not path or PurePosixPath(path).is_absolute() or ".." in path.split("/"):
                raise BundleError(f"'{path}' is no path inside the export's folder")

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes that take it."""
        return FORMATS[self.format]

    def __str__(self) -> str:
        return f"{self.format} {self.precision} at width {self.width:g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"files": dict(self.files)}

    @classmethod
    def from_dict(cls, content: Any) -> Artefact:
        """What `to_dict` gave.

        Raises:
            BundleError: something else.
        """
        names = {entry.name for entry in fields(cls)}
        if not isinstance(content, dict) or content.keys() != names:
            raise BundleError(f"an artefact must have exactly {', '.join(sorted(names))}")
        return cls(**content)


@dataclass(frozen=True)
class Export:
    """An export on disk.

    Attributes:
        path: its folder, or the one network file.
        header: the header of the bundle that it was made from.
        artefacts: the networks that it holds.
        provenance: versions of litheseg and of the libraries that wrote it, and the bundle's file.
    """

    path: Path
    header: BundleHeader
    artefacts: tuple[Artefact, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Export in {self.path}: {', '.join(map(str, self.artefacts))}"

    @property
    def classes(self) -> Classes:
        """Names and colours of the labels."""
        return self.header.classes

    @property
    def widths(self) -> tuple[float, ...]:
        """The widths to choose from, widest first."""
        return tuple(sorted({artefact.width for artefact in self.artefacts}, reverse=True))

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The runtimes that take some of its networks."""
        return tuple(dict.fromkeys(name for artefact in self.artefacts for name in artefact.runtimes))

    @property
    def folder(self) -> Path:
        """Where the paths of the artefacts begin."""
        return self.path if _is_folder(self.path) else self.path.parent

    def file(self, artefact: Artefact) -> Path:
        """The main file of an artefact."""
        return self.folder / artefact.path

    def own_bytes(self, artefact: Artefact) -> int:
        """Size of the files that only this artefact needs."""
        return sum((self.folder / path).stat().st_size for path in artefact.files if path not in self.shared_files)

    @property
    def shared_files(self) -> dict[str, int]:
        """Files that several artefacts need, with their sizes in bytes."""
        uses = Counter(path for artefact in self.artefacts for path in artefact.files)
        return {path: (self.folder / path).stat().st_size for path, count in uses.items() if count > 1}

    def find(self, width: float | None = None, runtime: str | None = None, precision: str | None = None) -> Artefact:
        """Find an artefact; None takes the first available: the widest, fp32 before int8, in the order written.

        Args:
            width: one of `widths`.
            runtime: one of `RUNTIMES`.
            precision: one of `PRECISIONS`; bf16 and fp16 run an fp32 artefact.

        Raises:
            WidthError: there is no such width.
            LithesegError: there is nothing that fits; names what there is.
        """
        check_choice("runtime", runtime, RUNTIMES)
        check_choice("precision", precision, PRECISIONS)
        if width is not None and width not in self.widths:
            known = ", ".join(f"{known:g}" for known in self.widths)
            raise WidthError(f"{self.path} has no width {width:g}, but {known}; export that width as well")
        stored = "fp32" if precision in ("bf16", "fp16") else precision
        fitting = [
            artefact
            for artefact in self.artefacts
            if (width is None or artefact.width == width)
            and (runtime is None or runtime in artefact.runtimes)
            and (stored is None or artefact.precision == stored)
        ]
        if not fitting:
            raise LithesegError(self._nothing_fits(width, runtime, precision))
        # A format made for the runtime goes before one that it merely reads: OpenVINO's own before ONNX.
        return min(fitting, key=lambda found: (-found.width, found.precision != "fp32", len(found.runtimes)))

    def _nothing_fits(self, width: float | None, runtime: str | None, precision: str | None) -> str:
        wanted = (precision, "network", runtime and f"for {runtime}", width and f"at width {width:g}")
        what, there = " ".join(part for part in wanted if part), ", ".join(map(str, self.artefacts))
        return f"{self.path} has no {what}, but {there}; export that as well"


def check_choice(name: str, value: str | None, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices; None is fine.

    Raises:
        LithesegError: it is; names the choices.
    """
    if value is not None and value not in tuple(choices):
        raise LithesegError(f"unknown {name} '{value}'.{did_you_mean(value, choices)}")


def is_export(path: str | Path) -> bool:
    """Whether a model (see `litheseg.bundle.names`) is an export rather than a model file."""
    path = model_path(path)
    return path.is_dir() or path.suffix.lower() in (".json", *(target.suffix for target in TARGETS.values()))


def load_export(path: str | Path) -> Export:
    """Read what an export holds, and check that its files are the ones that were written, and what it says they are.

    Args:
        path: a folder with `export.json`, or one network file of an export (.onnx, .xml, ...); or a name
            (`litheseg.bundle.names`).

    Raises:
        BundleError: nothing there, no export, an export of another version, a file that is missing or changed, or a
            network that gives another account of itself.
    """
    path = model_path(path)
    file = path / EXPORT_FILE if _is_folder(path) else path
    if not file.exists():
        problem = f"has no {EXPORT_FILE}" if path.is_dir() else "does not exist"
        raise BundleError(f"{path} {problem}; give a folder written by `litheseg export`, or a network file from it")
    text = _read_text(file) if file.name == EXPORT_FILE else read_description(file)
    export = _parse(path.parent if path.name == EXPORT_FILE else path, file, text)
    if file.name != EXPORT_FILE:  # whatever it is called now
        return Export(path, export.header, (replace(export.artefacts[0], path=file.name),), export.provenance)
    _check_files(export)
    for artefact in export.artefacts:
        _check_account(export, artefact)
    return export


def _is_folder(path: Path) -> bool:
    """Whether it is the folder of an export: some networks are folders themselves."""
    return path.is_dir() and path.suffix.lower() not in [target.suffix for target in TARGETS.values()]


def description(header: BundleHeader, artefacts: Iterable[Artefact], provenance: Mapping[str, Any]) -> str:
    """The account of an export, as JSON text."""
    content = {
        KEY: "export",
        "export_version": EXPORT_VERSION,
        "provenance": dict(provenance),
        "header": json.loads(header.to_json()),
        "artefacts": [artefact.to_dict() for artefact in artefacts],
    }
    return json.dumps(content, sort_keys=True, allow_nan=False)


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {file} ({error}); {_AGAIN}") from error


def _parse(path: Path, file: Path, text: str) -> Export:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{file} is damaged: it is no JSON ({error}); {_AGAIN}") from error
    if not isinstance(content, dict) or content.get(KEY) != "export":
        raise BundleError(f"{file} is no export of litheseg; give a folder written by `litheseg export`")
    version = content.get("export_version")
    if version != EXPORT_VERSION:
        remedy = "pip install --upgrade litheseg" if _is_newer(version) else "export the model anew"
        raise BundleError(f"{file} is an export of version {version!r}, this litheseg reads {EXPORT_VERSION}; {remedy}")
    try:
        header = BundleHeader.from_json(json.dumps(content["header"]))
        artefacts = tuple(Artefact.from_dict(entry) for entry in content["artefacts"])
        provenance = dict(content["provenance"])
    except (BundleError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{file} is damaged ({error}); {_AGAIN}") from error
    if not artefacts:
        raise BundleError(f"{file} names no network; export the model anew")
    return Export(path, header, artefacts, provenance)


def _is_newer(version: Any) -> bool:
    return isinstance(version, (int, float)) and math.isfinite(version) and version > EXPORT_VERSION


def _check_files(export: Export) -> None:
    """Every file is there and unchanged; a file that artefacts share is read once."""
    expected = {path: digest for artefact in export.artefacts for path, digest in artefact.files.items()}
    for path, digest in expected.items():
        file = export.folder / path
        try:
            actual = file_digest(file)
        except OSError as error:
            raise BundleError(f"{file} of the export cannot be read ({error.strerror or error}); {_AGAIN}") from error
        if actual != digest:
            raise BundleError(f"{file} is not the file that was exported: its checksum differs; {_AGAIN}")


def _check_account(export: Export, artefact: Artefact) -> None:
    """Compare export.json with the text inside each network: files may have been swapped."""
    file = export.file(artefact)
    account = _parse(file, file, read_description(file))
    inside = replace(account.artefacts[0], path=artefact.path, files=artefact.files)
    if inside != artefact:
        pairs = [(key, own, getattr(artefact, key)) for key, own in vars(inside).items()]
        differing = ", ".join(f"{key} {own}, not {stated}" for key, own, stated in pairs if own != stated)
        raise BundleError(f"{file} is not what {EXPORT_FILE} says: it has {differing}; {_AGAIN}")
    if account.header != export.header:
        raise BundleError(f"{file} comes from another model than {EXPORT_FILE} says: their headers differ; {_AGAIN}")
