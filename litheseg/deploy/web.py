"""A page that segments in the browser, written beside the networks of an export: ``litheseg export --format web``.

The folder is an export like others, of ONNX networks; beside them lie a page, the one that `litheseg serve` shows with
`deploy/page` in the place of the server, and the files of ONNX Runtime Web. Any static host will do, and no other host
is asked. `deploy/page/upsampling.js` and `resizing.js` are litheseg's labels and its resize in JavaScript.

ONNX Runtime Web (npm package ``onnxruntime-web``, MIT) is taken from a folder that the user names, an installed copy
in ``node_modules`` here or above, or the npm registry: one version, checked by its SHA-256, kept in the cache.

Usage:
    >>> page = WebPage.prepare(header, runtime=None)  # before minutes are spent on the networks
    >>> page.write(folder)  # of the export
"""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from litheseg import __version__
from litheseg.bundle.header import BundleHeader
from litheseg.bundle.verdicts import recorded_iou, worst_class
from litheseg.downloads import download
from litheseg.errors import DownloadError, LithesegError
from litheseg.files import atomic_folder, cache_folder
from litheseg.masks.colours import is_background

__all__ = ["RUNTIME_FILES", "RUNTIME_VERSION", "WEB", "WebPage", "find_runtime"]

WEB = "web"
"""What the command calls this: ONNX networks with the page beside them."""
RUNTIME_VERSION = "1.30.0"
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")

_TARBALL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{RUNTIME_VERSION}.tgz"
# Of the file whose SHA-512 is the registry's "integrity".
_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
_OLDEST = (1, 19)  # the first with these files
_OWN_MODULES = ("api.js", "isolation.js", "mask_png.js", "resizing.js", "upsampling.js", "worker.js")
_SERVER_MODULES = ("app.js", "chart.js", "divider.js", "legend.js", "mark.svg", "notice.js", "picture.js", "style.css")
# What the page may do: load what lies beside it, and compile WebAssembly. `frame-ancestors` only a host can say.
_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; style-src 'self'; "
    "img-src 'self' blob:; media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class WebPage:
    """The page of an export.

    Attributes:
        header: of the model.
        runtime: folder with ONNX Runtime Web's files.
    """

    header: BundleHeader
    runtime: Path

    @classmethod
    def prepare(cls, header: BundleHeader, runtime: str | Path | None) -> WebPage:
        """Find what the page needs.

        Raises:
            DataError: a network that takes something else than RGB of 8 bits.
            LithesegError: the runtime's files are not to be had; says where they may come from.
        """
        header.images.require_rgb8("a browser")
        return cls(header, find_runtime(runtime))

    def write(self, folder: Path) -> None:
        """Put the page into the folder of an export.

        Raises:
            OSError: a file cannot be written.
        """
        page, runtime = folder / "page", folder / "ort"
        page.mkdir()
        runtime.mkdir()
        for room, names in (("serving", _SERVER_MODULES), ("deploy", _OWN_MODULES)):
            for name in names:
                (page / name).write_bytes((files("litheseg") / room / "page" / name).read_bytes())
        for name in RUNTIME_FILES:
            shutil.copyfile(self.runtime / name, runtime / name)
        (page / "model.json").write_text(json.dumps(_about(self.header), indent=2) + "\n", encoding="utf-8")
        # Of a service worker only what lies in its own folder or below passes through it.
        (page / "isolation.js").rename(folder / "isolation.js")
        (folder / "index.html").write_text(_index(), encoding="utf-8")


def find_runtime(folder: str | Path | None = None, *, fetch: bool = True) -> Path:
    """The folder with ONNX Runtime Web's files.

    Args:
        folder: where they are, an installed package or its ``dist``; None to look for a copy here, then in the cache.
        fetch: download them where there are none.

    Raises:
        LithesegError: a folder without them or with too old ones, or none is at hand; says where they may come from.
    """
    if folder is not None:
        return _checked(Path(folder).expanduser())
    here = Path.cwd()
    for parent in (here, *here.parents):
        installed = parent / "node_modules" / "onnxruntime-web"
        if installed.is_dir():
            return _checked(installed)
    kept = cache_folder("onnxruntime-web") / RUNTIME_VERSION
    if not kept.is_dir():
        if not fetch:
            raise LithesegError(f"ONNX Runtime Web is not at hand; {_REMEDIES}")
        _fetch(kept)
    return _checked(kept)


_REMEDIES = (
    f"give its folder (--onnxruntime-web DIR), install it here (npm install onnxruntime-web@{RUNTIME_VERSION}), or "
    "export where the npm registry can be reached"
)


def _checked(folder: Path) -> Path:
    dist = folder / "dist" if (folder / "dist").is_dir() else folder
    for package in (dist.parent / "package.json", dist / "package.json"):
        if package.is_file():
            about = json.loads(package.read_text(encoding="utf-8"))
            version = str(about.get("version"))
            if about.get("name") == "onnxruntime-web" and _numbers(version) < _OLDEST:
                raise LithesegError(f"{folder} holds ONNX Runtime Web {version}, which is too old; {_REMEDIES}")
    missing = [name for name in RUNTIME_FILES if not (dist / name).is_file()]
    if missing:
        raise LithesegError(f"{dist} has no {', '.join(missing)} of ONNX Runtime Web; {_REMEDIES}")
    return dist


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def _fetch(kept: Path) -> None:
    """Download the package, and keep the few files of it that are needed."""
    tarball = kept.with_name(f"onnxruntime-web-{RUNTIME_VERSION}.tgz")
    try:
        download(_TARBALL, tarball, sha256=_SHA256)
    except DownloadError as error:
        raise LithesegError(f"ONNX Runtime Web cannot be fetched ({error}); {_REMEDIES}") from error
    with atomic_folder(kept) as folder, tarfile.open(tarball) as archive:
        for name in (*(f"dist/{name}" for name in RUNTIME_FILES), "package.json"):
            content = archive.extractfile(f"package/{name}")
            assert content is not None
            (folder / Path(name).name).write_bytes(content.read())
    tarball.unlink()


def _index() -> str:
    """The server's page, told that there is no server."""
    text = (files("litheseg") / "serving" / "page" / "index.html").read_text(encoding="utf-8")
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    for old, new in (
        ('<html lang="en">', '<html lang="en" class="local">'),
        ('<meta charset="utf-8">', f'<meta charset="utf-8">\n{policy}'),
    ):
        assert text.count(old) == 1, f"the page has no {old}"
        text = text.replace(old, new)
    return text


def _about(header: BundleHeader) -> dict[str, Any]:
    """What the page says of the model: what a server answers to /v1/model, without its load."""
    classes = header.classes
    named = enumerate(zip(classes.names, classes.colors, strict=True))
    return {
        "name": header.architecture["name"],
        "version": __version__,
        "runtime": "in this browser",
        "local": True,
        "example": False,
        "size": list(header.size) if header.resizes else None,
        "classes": [
            {"index": k, "name": name, "color": "#" + bytes(color).hex(), "background": is_background(name)}
            for k, (name, color) in named
        ],
        "scores": {f"{width:g}": _scores(header, width) for width in header.available_widths},
    }


def _scores(header: BundleHeader, width: float) -> dict[str, Any]:
    iou, scores = recorded_iou(header).get(width), header.metrics.get(f"{width:g}", {})
    worst = worst_class(header.classes.names, iou) if iou else None
    return {
        "miou": scores.get("miou") if isinstance(scores, dict) else None,
        "worst_class": worst[0] if worst else None,
        "worst_iou": worst[1] if worst else None,
    }
