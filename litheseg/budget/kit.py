"""Benchmark kits: time networks on a machine without litheseg, and read the measurements.

A kit is a folder of networks, as ONNX or other files, with a script (`litheseg.runtime.kit`, copied as measure.py, and
`litheseg.runtime.in_RUNTIME` beside it) that needs Python, NumPy and a runtime. It times the networks alone: reading
and resizing depend on the target, and upsampling in NumPy says nothing about the compiled kernel. Batch-norm statistics
do not change time, so widths between the trained ones need no calibration. Kit and measurements carry the digest of
their model: those of another one are refused. With them go a few images and the labels that PyTorch gives them: a
network that labels them otherwise on the target is not timed there.

Usage:
    >>> write_kit("model.safetensors", "kit", widths=[0.5], sizes=[(180, 240)])
    >>> measurements = read_measurements(Path("measurements.json"), model_digest(bundle))
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from litheseg import machine
from litheseg.budget.candidates import Candidate, Limits, Variant, default_sizes
from litheseg.bundle.targets import TARGETS
from litheseg.cost.widths import with_widths
from litheseg.deploy.export import export_bundle
from litheseg.deploy.parity import pytorch_reference
from litheseg.errors import LithesegError
from litheseg.files import atomic_path, file_digest, write_text
from litheseg.locks import folder_lock
from litheseg.models.bundle import Bundle, load_bundle, model_digest
from litheseg.progress import track
from litheseg.runtime import kit as script
from litheseg.runtime.latency import Latency, Scope, street_frames

__all__ = ["SCRIPT", "Measurements", "kit_networks", "read_measurements", "write_kit"]

SCRIPT = "measure.py"
_BETWEEN = 2  # widths added between two trained ones


@dataclass(frozen=True)
class Measurements:
    """The measurements of a benchmark kit.

    Attributes:
        path: the file.
        host: facts of the machine.
        samples: timings of the network alone, by candidate.
        fps: frame rate at which images came; None where one followed the other at once.
    """

    path: Path
    host: Mapping[str, Any]
    samples: Mapping[Candidate, Latency]
    fps: float | None = None

    def limits(self, asked: Limits) -> Limits:
        """Limits at the frame rate of these timings.

        Raises:
            LithesegError: another one is asked for, or a budget longer than from one image to the next.
        """
        if asked.fps not in (None, self.fps):
            how = f"at {self.fps:g} images a second" if self.fps else "one image after the other"
            raise LithesegError(
                f"{self.path} holds timings {how}, not at {asked.fps:g}; run `python {SCRIPT} --fps {asked.fps:g}` on "
                "the target, or leave out --fps"
            )
        return replace(asked, fps=self.fps)


def kit_networks(
    bundle: Bundle, widths: Sequence[float] | None, sizes: Sequence[tuple[int, int]]
) -> tuple[Variant, ...]:
    """What a kit holds: the widths given, or the bundle's with two in between each pair, at every size, in fp32."""
    if not widths:
        trained = sorted(bundle.header.available_widths, reverse=True)
        steps = [(wide, (wide - narrow) / (_BETWEEN + 1)) for wide, narrow in itertools.pairwise(trained)]
        between = [round(wide - step * part, 4) for wide, step in steps for part in range(1, _BETWEEN + 1)]
        widths = sorted({*trained, *between}, reverse=True)
    return tuple(Variant(width, size, "fp32") for size in sizes for width in widths)


def write_kit(
    model: Bundle | str | Path,
    output: str | Path,
    *,
    widths: Sequence[float] | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    formats: Sequence[str] = ("onnx",),
    force: bool = False,
) -> int:
    """Write a benchmark kit: networks, and a script that times them where litheseg is not.

    Args:
        model: a model file, or its path.
        output: the kit's folder; made if it is not there.
        widths: to export, any in the trained range; None for those of the model, and two between each pair.
        sizes: heights and widths of the networks' inputs; None for the training size, 3/4 and 1/2 of it.
        formats: of the networks, keys of `litheseg.bundle.targets.FORMATS`: ONNX is for onnxruntime and openvino.
        force: replace a kit that is there.

    Returns:
        The number of networks in it.

    Raises:
        LithesegError: the folder holds something, another process is writing it, or it cannot be written to.
        WidthError: a width outside the trained range.
        MissingExtraError: what exports need is not installed.
    """
    bundle, folder = model if isinstance(model, Bundle) else load_bundle(model), Path(output).expanduser()
    networks = kit_networks(bundle, widths, sizes or default_sizes(bundle.header.size))
    with folder_lock(folder, beside=True):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
            raise LithesegError(f"{folder} is there already; give another folder, or --force to replace what it holds")
        bundle = with_widths(bundle, {network.width for network in networks})
        entries = [
            entry for network in track(networks, "exporting") for entry in _exported(bundle, network, folder, formats)
        ]
        runtimes = list(dict.fromkeys(name for entry in entries for name in entry["runtimes"]))
        name = str(bundle.path.name) if bundle.path else bundle.header.architecture["name"]
        content = {"litheseg": "kit", "schema": script.SCHEMA, "model": model_digest(bundle), "name": name}
        packages = {name: [TARGETS[name].imported, TARGETS[name].package] for name in runtimes}
        content |= {"packages": packages, "networks": entries, "checks": _write_checks(bundle, networks, folder)}
        write_text(folder / script.KIT_FILE, json.dumps(content, indent=1) + "\n")
        home, openers = Path(str(script.__file__)), [f"in_{name}.py" for name in runtimes]
        sources = {SCRIPT: home, "machine.py": Path(str(machine.__file__))}
        for file, source in {**sources, **{name: home.with_name(name) for name in openers}}.items():
            with atomic_path(folder / file) as temporary:
                shutil.copyfile(source, temporary)
    return len(networks)


def _write_checks(bundle: Bundle, networks: Sequence[Variant], folder: Path) -> dict[str, str]:
    """Write images of each size, with PyTorch's labels of each width; returns SHA-256 of the files, by path."""
    digests = {}
    for size in dict.fromkeys(network.size for network in networks):
        images = street_frames(size, images=bundle.header.images)
        widths = [network.width for network in networks if network.size == size]
        labels = {}
        for width in track(widths, f"labelling {size[0]}x{size[1]} in PyTorch"):
            reference = pytorch_reference(bundle, width)
            labels[f"w{width:g}"] = np.stack([reference(image).argmax(0) for image in images]).astype(np.uint8)
        path = script.check_path(size)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / path) as temporary, temporary.open("wb") as file:
            np.savez(file, images=np.stack(images), **labels)  # type: ignore[arg-type]
        digests[path] = file_digest(folder / path)
    return digests


def read_measurements(path: Path, model: str) -> Measurements:
    """Read what measure.py wrote.

    Args:
        path: measurements.json.
        model: digest of the model that they must be of.

    Raises:
        LithesegError: the file cannot be read, is something else, or holds those of another model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["litheseg"], content["schema"]) != ("measurements", script.SCHEMA):
            raise ValueError(f"it is '{content['litheseg']}' of schema {content['schema']}")
        samples = {Candidate.from_dict(row): _samples(row["ms"]) for row in content["rows"]}
        fps = None if content["fps"] is None else float(content["fps"])
        found = Measurements(path, content["host"], samples, fps)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise LithesegError(f"{path} holds no measurements ({error}); give the JSON that {SCRIPT} wrote") from error
    if content["model"] != model:
        raise LithesegError(
            f"{path} holds measurements of another model ({content.get('name') or 'unnamed'}); write a kit of this "
            "one with `litheseg measure` and run it on the target"
        )
    if not samples:
        raise LithesegError(f"{path} holds no timings at all; run {SCRIPT} again on the target")
    return found


def _samples(values: Sequence[Any]) -> Latency:
    times = [float(value) for value in values]
    if not times or not all(math.isfinite(value) and value > 0 for value in times):
        raise ValueError("a timing that is not above 0")
    return Latency(Scope.NETWORK, times)


def _exported(bundle: Bundle, network: Variant, folder: Path, formats: Sequence[str]) -> list[dict[str, Any]]:
    """Export one network into the kit; returns its entries, one for each format."""
    sub = folder / "networks" / network.name
    options: dict[str, Any] = {"formats": formats, "widths": (network.width,), "size": network.size}
    export = export_bundle(bundle, sub, check=False, force=True, **options)
    prefix = f"{sub.relative_to(folder).as_posix()}/"
    return [script.network_entry(export, artefact, prefix) for artefact in export.artefacts]
