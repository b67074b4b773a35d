"""From a bundle to a folder of networks that run elsewhere, each proven equal to PyTorch on real images.

    exports/street/
        export.json             what is here: see `litheseg.bundle.exported`
        onnx-fp32-w1.onnx       one network per format and width
        openvino-fp32-w1.xml    (and .bin)
        torch-fp32-w1.pt2
        certificate.json        how far each is from PyTorch: see `litheseg.deploy.parity`
        README.md               how to run the networks

The folder appears whole or not at all; a network that disagrees with PyTorch keeps it from appearing. int8 networks are
made by the argument `further` (`litheseg.deploy.quantize`).

Usage:
    >>> export = export_bundle(load_bundle("model.safetensors"), "exports/street", formats=("onnx", "openvino"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from litheseg import __version__
from litheseg.bundle.exported import (
    EXPORT_FILE,
    LAYOUTS,
    OUTPUTS,
    Artefact,
    Export,
    check_choice,
    description,
    file_digest,
    load_export,
)
from litheseg.bundle.targets import FORMATS, target_of
from litheseg.data.sources.base import Source
from litheseg.deploy.conversion import Conversion, converter, write_network
from litheseg.deploy.network import deployed
from litheseg.deploy.onnx import save_onnx
from litheseg.deploy.parity import THRESHOLD, Certificate, certify, pytorch_reference
from litheseg.deploy.readme import export_readme
from litheseg.deploy.samples import Samples, open_samples
from litheseg.deploy.shared import share_weights
from litheseg.deploy.web import WEB, WebPage
from litheseg.errors import Interrupted, LithesegError, ModelError
from litheseg.files import atomic_folder, write_text
from litheseg.locks import folder_lock
from litheseg.machine import package_version
from litheseg.masks.upsampling import upsample_labels
from litheseg.models.bundle import Bundle, model_digest
from litheseg.progress import track
from litheseg.runtime.engines import Engine, available_runtimes, open_engine
from litheseg.values import Widths

__all__ = ["CERTIFICATE_FILE", "CHECK_IMAGES", "WEIGHTS_FILE", "Further", "export_bundle"]

CERTIFICATE_FILE = "certificate.json"
WEIGHTS_FILE = "onnx-fp32-weights.bin"
"""Where ONNX files that share weights have them."""
CHECK_IMAGES = 200
"""So many images at most are compared; evenly spread where there are more."""

Further = Callable[[Export], Iterable[tuple[Artefact, Certificate, Mapping[str, Any]]]]
"""Writes further networks, such as int8 ones, into the folder of an export; yields each with its certificate and how it
was made, for `CERTIFICATE_FILE`, among it a ``"summary"`` in words."""

_ODD_SIZES = ((64, 64), (65, 97), (130, 51), (256, 320))  # pixels, to try a network of any size on
_TOLERANCE = 1e-3  # of the largest logit, there


def export_bundle(
    bundle: Bundle,
    output: str | Path,
    *,
    formats: Sequence[str] = ("onnx",),
    widths: Widths | None = None,
    size: tuple[int, int] | Literal["training"] | None = "training",
    layout: str = "NHWC",
    output_kind: str = "logits",
    shared: bool = False,
    check: bool = True,
    data: str | Path | Source | None = None,
    source: str = "auto",
    split: str = "val",
    threshold: float = THRESHOLD,
    onnxruntime_web: str | Path | None = None,
    further: Further | None = None,
    force: bool = False,
) -> Export:
    """Export a bundle.

    Args:
        bundle: a loaded one.
        output: the folder.
        formats: keys of `FORMATS`, or `litheseg.deploy.web.WEB`: ONNX, with a page that runs it in the browser.
        widths: those to export; None for all that the bundle has.
        size: height and width of the networks' input; "training": the size that the bundle resizes images to, any if
            it does not; None for any.
        layout: of the input: "NHWC" or "NCHW".
        output_kind: "logits" at the network's own stride, or "labels" at the input's size.
        shared: store the weights that several widths have in common once, beside the ONNX files, which then do not
            work alone.
        check: compare every network with PyTorch on images; without, nothing but sizes is checked.
        data: the images: the folder of a data set, an open one, or a folder of images; None for what the bundle was
            trained on.
        source: kind of data, "auto" to detect it.
        split: of the data set.
        threshold: least share of pixels, in [0, 1], that must agree.
        onnxruntime_web: of the page: the folder of ONNX Runtime Web's files; None to look for them, or fetch them.
        further: makes more networks of those written; what fails leaves what was written before as it is.
        force: replace an export that is there.

    Returns:
        The export as written.

    Raises:
        DataError: no images to check on.
        MissingExtraError: a format's package is not installed.
        ModelError: an operator that a format lacks, or a network that cannot take any size.
        WidthError: a width that the bundle does not have.
        FolderInUseError: another process exports to the folder.
        Interrupted: Ctrl-C while `further` was at work.
        LithesegError: the folder is there, or cannot be written; a network disagrees with PyTorch.
    """
    for name, values, choices in (
        ("format", formats, (*FORMATS, WEB)),
        ("layout", [layout], LAYOUTS),
        ("output", [output_kind], OUTPUTS),
    ):
        for value in values:
            check_choice(name, value, choices)
    if not formats:
        raise LithesegError(f"no format is given; choose from {', '.join((*FORMATS, WEB))}")
    if WEB in formats and (layout, output_kind) != ("NHWC", "logits"):
        raise LithesegError("the page takes logits of NHWC, and labels them itself; leave out --labels and --layout")
    page = WebPage.prepare(bundle.header, onnxruntime_web) if WEB in formats else None
    formats = tuple(dict.fromkeys("onnx" if name == WEB else name for name in formats))
    if shared and ("onnx" not in formats or further is not None):
        raise LithesegError("only fp32 networks in ONNX share weights; export the others to a folder of their own")
    if not 0 <= threshold <= 1:
        raise LithesegError(f"threshold {threshold:g} is no share of pixels; give a number in [0, 1], such as 0.999")
    target, resized = Path(output).expanduser(), bundle.header.size if bundle.header.resizes else None
    size = resized if size == "training" else size
    job = _Job(bundle, formats, size, size or resized, layout, output_kind)
    with folder_lock(target, beside=True):
        _check_target(target, force)
        chosen = [bundle.check_width(width) for width in dict.fromkeys(widths or bundle.header.available_widths)]
        samples = open_samples(bundle, data, source=source, split=split).thinned(CHECK_IMAGES) if check else None
        with atomic_folder(target) as folder:
            artefacts = [found for width in track(chosen, "exporting widths") for found in job.write(folder, width)]
            if shared:
                artefacts = job.share(folder, artefacts)
            export = Export(folder, bundle.header, tuple(artefacts), job.provenance())
            certificates: dict[str, Certificate] = {}
            for width in chosen:
                written = replace(export, artefacts=tuple(a for a in export.artefacts if a.width == width))
                if size is None:
                    job.try_sizes(written)
                if samples is not None:
                    found = job.compare(written, samples)
                    _check_agreement(found, threshold)
                    certificates |= found
            if page is not None:
                page.write(folder)
            _finish(export, certificates, {}, threshold, job.remarks)
        if further is not None:
            _add(replace(export, path=target), further, certificates, threshold, job.remarks)
    return load_export(target)


@dataclass(frozen=True)
class _Job:
    """What is wanted of every width."""

    bundle: Bundle
    formats: tuple[str, ...]
    size: tuple[int, int] | None  # of the networks' input; None for any
    seen: tuple[int, int] | None  # what images are resized to for them; None for nothing
    layout: str
    output: str
    remarks: dict[str, str] = field(default_factory=dict)  # of converters, by the path of the network

    def provenance(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"litheseg": __version__, "model": model_digest(self.bundle)}
        libraries = ("torch", *(library for name in self.formats for library in converter(name).LIBRARIES))
        facts |= {library: package_version(library) for library in dict.fromkeys(libraries)}
        path = self.bundle.path
        if path is not None and path.is_file():
            facts |= {"bundle": path.name, "bundle_sha256": file_digest(path)}
        return facts

    def write(self, folder: Path, width: float) -> Iterator[Artefact]:
        """All formats of a width."""
        conversion = Conversion(deployed(self.bundle, width, layout=self.layout, output=self.output), self.size)
        for name in self.formats:
            path = f"{name}-fp32-w{width:g}{target_of(name).suffix}"
            artefact = Artefact(name, width, "fp32", self.size, self.layout, self.output, path)
            files = write_network(name, conversion, folder / path, self._account(artefact))
            if name in conversion.remarks:
                self.remarks[path] = conversion.remarks[name]
            yield replace(artefact, files={file: file_digest(folder / file) for file in files})

    def share(self, folder: Path, artefacts: Sequence[Artefact]) -> list[Artefact]:
        """The artefacts, those in ONNX with their weights in one file."""
        import onnx

        models = {found.width: onnx.load(str(folder / found.path)) for found in artefacts if found.format == "onnx"}
        share_weights(models, self.bundle, folder / WEIGHTS_FILE)
        result = []
        for artefact in artefacts:
            if artefact.format == "onnx":
                save_onnx(models[artefact.width], folder / artefact.path, self._account(replace(artefact, files={})))
                onnx.checker.check_model(str(folder / artefact.path), full_check=True)
                files = {path: file_digest(folder / path) for path in (artefact.path, WEIGHTS_FILE)}
                artefact = replace(artefact, files=files)
            result.append(artefact)
        return result

    def try_sizes(self, written: Export) -> None:
        """Run networks of any size on sizes that have nothing in common.

        Raises:
            ModelError: one gives something else than PyTorch.
        """
        reference = pytorch_reference(self.bundle, written.artefacts[0].width)
        random = np.random.default_rng(0)
        for size in _ODD_SIZES:
            image = self.bundle.header.images.noise(size, random)
            expected = reference(image)
            for artefact in written.artefacts:
                engine = _natural_engine(written, artefact)
                problem = None if engine is None else _problem(engine, image, expected)
                if problem:
                    raise ModelError(
                        f"{artefact}: on an image of {size[0]}x{size[1]}, {problem}; so it cannot take any size: give "
                        "one (--size HxW)"
                    )

    def compare(self, written: Export, samples: Samples) -> dict[str, Certificate]:
        """Certificates of one width, by path."""
        width, engines = written.artefacts[0].width, dict[str, Engine]()
        for artefact in written.artefacts:
            engine = _natural_engine(written, artefact)
            if engine is None:
                raise LithesegError(
                    f"nothing installed here runs {artefact.path}, so it cannot be checked; install its runtime "
                    "(pip install 'litheseg[export]'), or write it unchecked with --no-check (check=False)"
                )
            engines[artefact.path] = engine
        return certify(
            engines,
            pytorch_reference(self.bundle, width),
            samples,
            self.bundle.header.classes.names,
            size=self.seen,
            origin=samples.origin,
            label=f"comparing width {width:g} with PyTorch, images",
        )

    def _account(self, artefact: Artefact) -> str:
        return description(self.bundle.header, [artefact], self.provenance())


def _check_target(target: Path, force: bool) -> None:
    """What may be replaced is an export, and only if that is wanted."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / EXPORT_FILE).is_file():
        raise LithesegError(f"{target} exists and is no export, so it is not replaced; choose another output")
    if not force:
        raise LithesegError(f"{target} holds an export; replace it with --force (force=True), or choose another output")


def _natural_engine(export: Export, artefact: Artefact) -> Engine | None:
    """An engine for it in the first of its runtimes that is installed, or a stand-in; None if there is none."""
    runtime = next((name for name in artefact.runtimes if name in available_runtimes()), None)
    if runtime is None:
        stand_in = getattr(converter(artefact.format), "stand_in", lambda *_: None)
        return stand_in(export.file(artefact), artefact, export.header.images)
    return open_engine(replace(export, artefacts=(artefact,)), runtime=runtime, precision=artefact.precision)


def _problem(engine: Engine, image: np.ndarray, expected: np.ndarray) -> str | None:
    """How labels (h w) or logits (K h w) differ from the expected logits by more than rounding; None if they do not."""
    try:
        result = engine(image)
    except LithesegError as error:
        return str(error)
    if result.ndim == 2:
        labels = upsample_labels(expected, (image.shape[0], image.shape[1]))
        same = result.shape == labels.shape and float((result == labels).mean()) > 1 - _TOLERANCE
    else:
        near = _TOLERANCE * float(np.abs(expected).max())
        same = result.shape == expected.shape and bool((np.abs(result - expected) <= near).all())
    return None if same else "it differs from PyTorch"


def _check_agreement(certificates: Mapping[str, Certificate], threshold: float) -> None:
    for path, found in certificates.items():
        if found.agreement < threshold:
            raise LithesegError(
                f"{path} labels {found.differing:,} of {found.pixels:,} pixels unlike PyTorch, more than "
                f"{100 * (1 - threshold):g} % of them (worst image: {found.worst_image}, "
                f"{100 * (1 - found.worst_agreement):.3g} %); nothing is written. Try another format, or --threshold"
            )


def _add(
    export: Export,
    further: Further,
    certificates: Mapping[str, Certificate],
    threshold: float,
    remarks: Mapping[str, str],
) -> None:
    """Put on record what `further` makes, one network after the other.

    Raises:
        Interrupted: Ctrl-C; the message says what is there.
        LithesegError: one cannot be made; likewise.
    """
    int8: dict[str, Mapping[str, Any]] = {}
    try:
        for artefact, certificate, made in further(export):
            export = replace(export, artefacts=(*export.artefacts, artefact))
            certificates, int8[artefact.path] = {**certificates, artefact.path: certificate}, made
            _finish(export, certificates, int8, threshold, remarks)
    except (KeyboardInterrupt, LithesegError) as error:
        whole = f"{export.path} holds what is whole: {', '.join(artefact.path for artefact in export.artefacts)}"
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"stopped; {whole}") from error
        error.args = (f"{error}. {whole}",)
        raise


def _finish(
    export: Export,
    certificates: Mapping[str, Certificate],
    int8: Mapping[str, Mapping[str, Any]],
    threshold: float,
    remarks: Mapping[str, str],
) -> None:
    """Write the certificates, if there are any, the README, and last export.json."""
    account = json.loads(description(export.header, export.artefacts, export.provenance))
    texts = {}
    if certificates:
        found = {path: certificate.to_dict() for path, certificate in certificates.items()}
        content = {"threshold": threshold, "certificates": found, **({"int8": int8} if int8 else {})}
        content |= {"remarks": dict(remarks)} if remarks else {}
        texts[CERTIFICATE_FILE] = json.dumps(content, indent=2, allow_nan=False)
    texts["README.md"] = export_readme(export, certificates, [made["summary"] for made in int8.values()], remarks)
    texts[EXPORT_FILE] = json.dumps(account, indent=2)
    for name, text in texts.items():
        write_text(export.folder / name, text + "\n")
