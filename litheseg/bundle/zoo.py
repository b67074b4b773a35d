"""The zoo: trained models by name, found in the checkout, in the cache, or at the release's address.

An index says of each model what it is, how it scores, where it comes from, and the SHA-256 of its files: a model file
and, for the box, exports. `zoo:NAME` is the model file (where PyTorch is not installed, its first export), and
`zoo:NAME/EXPORT` an export. A checkout has `zoo/index.json` and the files; elsewhere both are fetched from an address
and kept in the cache. Every file is compared with the index whenever it is opened. An index that was fetched is asked
for again only when it lacks a name, and by `list_zoo`.

Usage:
    >>> zoo_path("camvid-lite0")
    PosixPath('zoo/camvid-lite0.safetensors')
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from litheseg.downloads import download, read_address
from litheseg.errors import BundleError, DownloadError, FolderInUseError, did_you_mean
from litheseg.files import cache_folder, file_digest, write_text
from litheseg.locks import folder_lock

__all__ = [
    "ADDRESS_VARIABLE",
    "INDEX_FILE",
    "ZooFile",
    "ZooModel",
    "checkout_folder",
    "index_text",
    "list_zoo",
    "read_index",
    "whereabouts",
    "zoo_model",
    "zoo_path",
]

INDEX_FILE = "index.json"
ADDRESS_VARIABLE = "LITHESEG_ZOO"
"""Environment variable: the address of the folder that holds the index and the files, or its path."""
RELEASE = ""
"""The address of this release's zoo; empty before the first release."""

_VERSION = 1  # of the index
_MAX_INDEX = 1 << 22  # bytes
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ZooFile:
    """A file of the zoo.

    Attributes:
        path: relative to the index.
        sha256: of its content.
        bytes: its size.

    Raises:
        BundleError: a value that is none.
    """

    path: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        parts = str(self.path).split("/")
        if not isinstance(self.path, str) or not all(re.fullmatch(r"[\w-][\w.-]*", part) for part in parts):
            raise BundleError(f"'{self.path}' is no path inside the zoo")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise BundleError(f"'{self.sha256}' is no SHA-256")
        if type(self.bytes) is not int or self.bytes < 1:
            raise BundleError(f"'{self.bytes}' is no number of bytes")


@dataclass(frozen=True)
class ZooModel:
    """What the index says of a model.

    Attributes:
        name: behind ``zoo:``.
        what: a line that says what it is.
        file: the model file, in half precision.
        card: path of the model card, relative to the index.
        licence: of the model.
        data: what it was trained on, and the licence of that.
        encoder: where the encoder's first weights come from, and their licence.
        command: that made it.
        size: height and width of the images that it was trained at.
        widths: widest first.
        classes: names, in the order of the labels.
        scores: width as text -> ``{"miou": ..., "iou": [one per class]}``, fractions.
        exports: by name, the files of each; all lie in one folder.

    Raises:
        BundleError: a value that is none of these.
    """

    name: str
    what: str
    file: ZooFile
    card: str
    licence: str
    data: str
    encoder: str
    command: str
    size: tuple[int, int]
    widths: tuple[float, ...]
    classes: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Any]]
    exports: Mapping[str, tuple[ZooFile, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("name", "what", "card", "licence", "data", "encoder", "command"):
            if not isinstance(getattr(self, name), str):
                raise BundleError(f"'{name}' must be text")
        for name in (self.name, *self.exports):
            if not _NAME.fullmatch(name):
                raise BundleError(f"'{name}' is no name: it takes small letters, digits, '.', '-' and '_'")
        for width, entry in self.scores.items():
            ious = entry.get("iou")
            if not _is_share(entry.get("miou")) or not isinstance(ious, list) or len(ious) != len(self.classes):
                raise BundleError(f"the scores of width {width} must hold 'miou', and 'iou' of each class")
            if not all(value is None or _is_share(value) for value in ious):
                raise BundleError(f"the scores of width {width} must lie in [0, 1]")
        for name, files in self.exports.items():
            if len({PurePosixPath(file.path).parent for file in files}) != 1 or "/" not in files[0].path:
                raise BundleError(f"the files of export '{name}' must lie in one folder")

    def files(self, export: str) -> tuple[ZooFile, ...]:
        """The files of an export; of "", the model file alone.

        Raises:
            BundleError: it has no such export.
        """
        if not export:
            return (self.file,)
        if export not in self.exports:
            hint = did_you_mean(export, self.exports) if self.exports else " It has none."
            raise BundleError(f"zoo:{self.name} has no export '{export}'.{hint}")
        return self.exports[export]


def zoo_path(name: str) -> Path:
    """Where a model of the zoo lies on this machine; it is downloaded first if it must.

    Args:
        name: of a model, or MODEL/EXPORT.

    Returns:
        The model file, or the export's folder.

    Raises:
        BundleError: an unknown name, or a file that is not the one that the index lists.
        DownloadError: a file that is not here and cannot be had.
    """
    wanted, _, export = name.partition("/")
    model = zoo_model(wanted)
    export = export or _default_export(model)
    files = model.files(export)
    root = _held(model, files)
    if root is None:
        root = _cached(model, files)
        _download(model, files, root)
    for file in files:
        _check(root / file.path, file)
    path = root / files[0].path
    return path.parent if export else path


def _default_export(model: ZooModel) -> str:
    """The export that the model's name stands for where a model file could not be run; empty for the model file."""
    return "" if importlib.util.find_spec("torch") else next(iter(model.exports), "")


def list_zoo() -> tuple[list[ZooModel], str]:
    """All models: those of the checkout and those at the address, which is asked anew.

    Returns:
        The models by name, and why the address could not be asked; empty if it could, or if there is none.

    Raises:
        BundleError: a damaged index.
    """
    problem = ""
    try:
        remote = _fetched_index()
    except DownloadError as error:
        remote, problem = _cached_index(), str(error)
    found = {**remote, **_checkout_index()}
    return [found[name] for name in sorted(found)], problem


def whereabouts(model: ZooModel) -> str:
    """Where what its name alone stands for here is: "checkout", "cache", or "to download"."""
    root = _held(model, model.files(_default_export(model)))
    return "to download" if root is None else "checkout" if root == checkout_folder() else "cache"


def checkout_folder() -> Path | None:
    """The folder `zoo/` of the checkout that this package is in; None for one that was installed."""
    root = Path(__file__).parents[2]
    return root / "zoo" if (root / "pyproject.toml").is_file() and (root / "zoo").is_dir() else None


def read_index(text: str | bytes, where: object) -> dict[str, ZooModel]:
    """The models of an index by name.

    Args:
        text: its content.
        where: what it was read from, for messages.

    Raises:
        BundleError: it is no index, or of a newer litheseg.
    """
    try:
        content = json.loads(text)
        version = content["zoo"]
        if version != _VERSION:
            raise BundleError(f"it is of version {version!r}, this litheseg reads {_VERSION}: upgrade litheseg")
        return {name: _model(name, entry) for name, entry in content["models"].items()}
    except (BundleError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{where} is no index of a zoo ({reason}); get it again, or give another address") from error


def index_text(models: Mapping[str, ZooModel]) -> str:
    """What `read_index` reads, models sorted by name."""
    entries = {name: {**asdict(models[name]), "exports": _exports_text(models[name])} for name in sorted(models)}
    for entry in entries.values():
        del entry["name"]
    return json.dumps({"zoo": _VERSION, "models": entries}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _exports_text(model: ZooModel) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(file) for file in files] for name, files in model.exports.items()}


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _model(name: str, entry: dict[str, Any]) -> ZooModel:
    known = {item.name for item in fields(ZooModel)} - {"name"}
    entry = {key: value for key, value in entry.items() if key in known}  # a later version may say more
    entry["file"] = ZooFile(**entry["file"])
    exports = entry.get("exports", {}).items()
    entry["exports"] = {export: tuple(ZooFile(**file) for file in files) for export, files in exports}
    height, width = entry["size"]
    entry |= {"size": (int(height), int(width)), "classes": tuple(map(str, entry["classes"]))}
    entry["widths"] = tuple(float(width) for width in entry["widths"])
    entry["scores"] = {str(key): dict(values) for key, values in entry["scores"].items()}
    return ZooModel(name, **entry)


def zoo_model(name: str) -> ZooModel:
    """What the index says of a model: the checkout's, the one in the cache, or the one at the address.

    Raises:
        BundleError: an unknown name, or a damaged index.
    """
    known, problem = {**_cached_index(), **_checkout_index()}, ""
    if name not in known:
        try:
            known = {**_fetched_index(), **known}
        except DownloadError as error:
            problem = f" Its address could not be asked: {error}."
    if name in known:
        return known[name]
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listed = f"It has {', '.join(sorted(known))}" if known else f"It is empty here ({ADDRESS_VARIABLE} names another)"
    raise BundleError(f"the zoo has no model '{name}'.{hint} {listed}.{problem}")


def _checkout_index() -> dict[str, ZooModel]:
    folder = checkout_folder()
    return {} if folder is None else _read(folder / INDEX_FILE)


def _cached_index() -> dict[str, ZooModel]:
    """As it was when the address was asked last."""
    return _read(_index_file()) if _address() else {}


def _fetched_index() -> dict[str, ZooModel]:
    """The index at the address, which goes into the cache."""
    if not _address():
        return {}
    url = f"{_address()}/{INDEX_FILE}"
    content = read_address(url, limit=_MAX_INDEX)
    models = read_index(content, url)
    write_text(_index_file(), content.decode())
    return models


def _read(file: Path) -> dict[str, ZooModel]:
    return read_index(file.read_bytes(), file) if file.is_file() else {}


def _index_file() -> Path:
    return cache_folder("zoo") / hashlib.sha256(_address().encode()).hexdigest()[:12] / INDEX_FILE


def _address() -> str:
    """Without a slash at the end; empty for none."""
    given = os.environ.get(ADDRESS_VARIABLE) or RELEASE
    address = given if not given or "://" in given else Path(given).expanduser().absolute().as_uri()
    return address.rstrip("/")


def _held(model: ZooModel, files: tuple[ZooFile, ...]) -> Path | None:
    """The folder that holds all these files already: the checkout's, or one in the cache."""
    roots = (checkout_folder(), _cached(model, files))
    return next((root for root in roots if root and all((root / file.path).is_file() for file in files)), None)


def _cached(model: ZooModel, files: tuple[ZooFile, ...]) -> Path:
    """Their folder in the cache, another one for another content."""
    digest = hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest()
    return cache_folder("zoo") / f"{model.name}-{digest[:12]}"


def _download(model: ZooModel, files: tuple[ZooFile, ...], root: Path) -> None:
    address = _address()
    if not address:
        raise DownloadError(
            f"zoo:{model.name} is in the index, but {files[0].path} is not here, and no address is known: set "
            f"{ADDRESS_VARIABLE} to that of a zoo, or get the whole checkout"
        )
    while True:
        try:
            with folder_lock(root):
                for file in files:
                    if not (root / file.path).exists():
                        download(f"{address}/{quote(file.path)}", root / file.path, sha256=file.sha256)
                return
        except FolderInUseError:  # by another process that fetches the same
            time.sleep(0.2)


def _check(path: Path, file: ZooFile) -> None:
    try:
        actual = file_digest(path)
    except OSError as error:
        raise BundleError(f"{path} of the zoo cannot be read: {error.strerror or error}") from error
    if actual != file.sha256:
        folder = checkout_folder()
        own = folder is not None and path.is_relative_to(folder)
        remedy = f"`git checkout {path}` restores it" if own else "remove it, and it is fetched again"
        raise BundleError(f"{path} is not the file of the zoo: its SHA-256 is {actual}, not {file.sha256}; {remedy}")
