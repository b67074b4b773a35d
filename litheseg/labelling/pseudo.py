"""Label a folder of images with a model, with confidences, and rank the images by the value of a correction.

Files in the output folder:

* ``masks/ID.png``: palette PNG of train ids, 255 where the network is less sure than the threshold;
* ``confidence/ID.png``: 8-bit grey, 255 times the probability of the label, before any threshold;
* ``images/``: links to the images, and ``classes.yaml``: together with the masks a `folder` data set;
* ``scores/ID.json``: what ranking needs, so that a stopped run can resume;
* ``ranking.csv``: every image, best first (see `ranking`);
* the chosen images for an annotation tool (see `cvat`, `label_studio`).

Pseudo-labels as in Lee, "Pseudo-label", ICML Workshops 2013; the threshold as in FixMatch (Sohn et al., NeurIPS 2020).

Usage:
    >>> result = pseudo_label("model.safetensors", "photos/", "labelled/", choose=20, export="cvat")
    >>> result.export
    PosixPath('labelled/cvat.zip')
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch

from litheseg.data.sources.base import existing_folder, find_images
from litheseg.errors import DataError, did_you_mean
from litheseg.files import atomic_path
from litheseg.labelling.cvat import write_cvat
from litheseg.labelling.label_studio import write_label_studio
from litheseg.labelling.ranking import Ranking, certainty, rank
from litheseg.labelling.tools import Chosen, link_image, write_once
from litheseg.locks import folder_lock
from litheseg.masks.classes import IGNORE_INDEX, class_file_text
from litheseg.masks.opening import MAX_PIXELS
from litheseg.masks.pictures import encode_png, write_mask
from litheseg.masks.reading import read_image
from litheseg.models.bundle import Bundle
from litheseg.progress import track
from litheseg.runtime.predictor import Predictor
from litheseg.values import Quantity, Width

__all__ = ["EXPORTS", "PseudoLabels", "pseudo_label"]

EXPORTS = ("cvat", "label-studio", "none")
"""The annotation tools that chosen images are exported for."""

_COLUMNS = ("rank", "image", "chosen", "gain", "entropy", "margin", "confidence", "below", "classes")
_FIGURES = ("entropy", "margin", "confidence", "below")
_SETTINGS = "pseudo-label.json"


@dataclass(frozen=True)
class PseudoLabels:
    """Result of a run.

    Attributes:
        images: found in the folder.
        written: masks and confidence maps written.
        skipped: those that existed and were kept.
        failed: (image, reason) of the images that could not be labelled.
        chosen: ids of the chosen images, best first.
        ranking: the ranking's file.
        export: what the annotation tool imports; None if nothing was exported.
    """

    images: int
    written: int
    skipped: int
    failed: tuple[tuple[str, str], ...]
    chosen: tuple[str, ...]
    ranking: Path
    export: Path | None


def pseudo_label(
    model: Bundle | Predictor | str | Path,
    folder: str | Path,
    output: str | Path,
    *,
    width: Width | None = None,
    threshold: float = 0.0,
    choose: int = 20,
    export: Literal["cvat", "label-studio", "none"] = "none",
    force: bool = False,
    device: str = "cpu",
    max_pixels: Quantity = MAX_PIXELS,
) -> PseudoLabels:
    """Label all images of a folder, rank them, and export the best for correction.

    An image that cannot be labelled is reported in the result and the others go on. Existing results are kept: the same
    call resumes a stopped run.

    Args:
        model: a bundle, its path, or a predictor (then `device` is its own).
        folder: images, searched recursively; an id is the path below it without its ending.
        output: the folder for the results; made if missing.
        width: one of the model's; None for the widest.
        threshold: pixels whose label is less probable than this are 255 in the mask, in [0, 1].
        choose: how many images to choose.
        export: what the chosen images are written for.
        force: label anew and replace results that exist.
        device: cpu, cuda, cuda:1, ...
        max_pixels: width times height, by the file's header, above which an image fails.

    Raises:
        DataError: no images, a value out of range, results of another model or of other settings in the
            output folder, a ranking or an export there that would change, or no image that could be labelled.
        WidthError: the bundle does not have the width.
        FolderInUseError: another process labels into the output folder.
        LithesegError: a result cannot be written.
    """
    if export not in EXPORTS:
        raise DataError(f"unknown export '{export}'.{did_you_mean(export, EXPORTS)}")
    if not 0 <= threshold <= 1:
        raise DataError(f"threshold {threshold} is outside [0, 1]; 0 keeps every label")
    if max_pixels < 1:
        raise DataError(f"max_pixels is {max_pixels}; give 1 or more")
    if choose < 0:
        raise DataError(f"cannot choose {choose} images; give 0 or more")
    predictor = model if isinstance(model, Predictor) else Predictor(model, device=device)
    width = predictor.width if width is None else predictor.check_width(width)
    run = _Run(predictor, Path(output).expanduser(), width, threshold, force, max_pixels)
    images, twice = _find(existing_folder(folder), run.output)
    run.failed += [(str(path), f"{path} has the stem of {first.name}; keep one of them") for path, first in twice]
    with folder_lock(run.output):
        run.begin()
        for key, image in track(images.items(), "labelling images"):
            run.label(key, image)
        if not run.scores:
            raise DataError(f"none of the {len(images)} images could be labelled; the first: {run.failed[0][1]}")
        ranking, listed = run.rank(choose)
        keys = list(run.scores)
        chosen = tuple(Chosen(keys[i], images[keys[i]], run.mask(keys[i])) for i in ranking.order[: ranking.chosen])
        exported = run.export(export, chosen)
    ids = tuple(item.key for item in chosen)
    return PseudoLabels(len(images), run.written, run.skipped, tuple(run.failed), ids, listed, exported)


@dataclass
class _Run:
    """The output folder while it fills."""

    predictor: Predictor
    output: Path
    width: float
    threshold: float
    force: bool
    max_pixels: int
    written: int = 0
    skipped: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def bundle(self) -> Bundle:
        return cast(Bundle, self.predictor.bundle)

    def mask(self, key: str) -> Path:
        return self.output / "masks" / f"{key}.png"

    def confidence(self, key: str) -> Path:
        return self.output / "confidence" / f"{key}.png"

    def begin(self) -> None:
        """Write the folder's settings, and refuse to mix two models' labels."""
        settings = {"model": _digest(self.bundle), "width": self.width, "threshold": self.threshold}
        path = self.output / _SETTINGS
        if path.exists() and not self.force and _read_json(path) != settings:
            raise DataError(
                f"{self.output} holds labels of another model, width or threshold ({path.name}); choose another output "
                "folder, or label everything anew with --force"
            )
        with write_once(path, self.force) as draft:
            draft.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        with write_once(self.output / "classes.yaml", self.force) as draft:
            draft.write_text(class_file_text(self.predictor.classes, name=self.output.resolve().name), encoding="utf-8")

    def label(self, key: str, image: Path) -> None:
        """Label one image unless that is done; errors are kept for the report."""
        score, results = self.output / "scores" / f"{key}.json", (self.mask(key), self.confidence(key))
        due = [path for path in results if self.force or not path.exists()]
        try:
            key.encode()  # the ranking and the annotation tools need UTF-8
            known = None if due or self.force or not score.exists() else _read_json(score)
            if known is None:
                known = self._label(image, key, due, score)
        except UnicodeEncodeError:
            reason = f"{image}: its name is no UTF-8, as annotation tools need it; rename the file"
            self.failed.append((str(image), reason))
            return
        except DataError as error:
            self.failed.append((str(image), str(error)))
            return
        # A PyTorch error (memory, an image too small for the network) concerns this image as well.
        except (RuntimeError, MemoryError) as error:
            self.failed.append((str(image), f"{image}: {error or type(error).__name__}"))
            return
        self.scores[key] = known
        self.written, self.skipped = self.written + len(due), self.skipped + len(results) - len(due)

    def _label(self, image: Path, key: str, due: Sequence[Path], score: Path) -> dict[str, Any]:
        pixels = read_image(image, self.predictor.header.images, max_pixels=self.max_pixels)
        outputs = self.predictor.outputs_rgb(pixels, width=self.width)
        sure = certainty(outputs["logits"], outputs["features"], (pixels.shape[0], pixels.shape[1]))
        unsure = sure.confidence < self.threshold
        labels = np.where(unsure, np.uint8(IGNORE_INDEX), sure.labels)
        names = self.predictor.classes.names
        known = {
            "entropy": sure.entropy,
            "margin": sure.margin,
            "confidence": float(sure.confidence.mean(dtype=np.float64)),
            "below": float(unsure.mean()),
            "classes": [names[label] for label in np.unique(labels).tolist() if label != IGNORE_INDEX],
            "features": [round(float(value), 6) for value in sure.features],
        }
        if self.mask(key) in due:
            write_mask(self.mask(key), labels, self.predictor.classes)
        if self.confidence(key) in due:
            with atomic_path(self.confidence(key)) as draft:
                draft.write_bytes(encode_png(np.rint(sure.confidence * 255).astype(np.uint8)))
        link = self.output / "images" / f"{key}{image.suffix}"
        if self.force or not link.exists():
            link_image(image, link)
        # Last: an image that has its scores is done.
        with atomic_path(score) as draft:
            draft.write_text(json.dumps(known), encoding="utf-8")
        return known

    def rank(self, choose: int) -> tuple[Ranking, Path]:
        """Rank what was labelled, and write the list."""
        rows = list(self.scores.values())
        uncertainty = np.array([row["entropy"] for row in rows])
        ranking = rank(uncertainty, np.array([row["features"] for row in rows]), choose)
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_COLUMNS)
        keys = list(self.scores)
        for place, (index, gain) in enumerate(zip(ranking.order, ranking.gain, strict=True), 1):
            figures = [f"{value:.6f}" for value in (gain, *(rows[index][name] for name in _FIGURES))]
            taken = "yes" if place <= ranking.chosen else "no"
            table.writerow([place, keys[index], taken, *figures, ";".join(rows[index]["classes"])])
        path = self.output / "ranking.csv"
        with write_once(path, self.force) as draft:
            draft.write_text(text.getvalue(), encoding="utf-8", newline="")
        return ranking, path

    def export(self, kind: str, chosen: Sequence[Chosen]) -> Path | None:
        classes = self.predictor.classes
        if kind == "cvat" and chosen:
            return write_cvat(chosen, classes, self.output / "cvat.zip", force=self.force)
        if kind == "label-studio" and chosen:
            origin = self.bundle.path
            version = f"{origin.name if origin else 'litheseg'} at width {self.width:g}"
            return write_label_studio(chosen, classes, self.output / "label-studio", version=version, force=self.force)
        return None


def _find(folder: Path, output: Path) -> tuple[dict[str, Path], list[tuple[Path, Path]]]:
    """Images by id, without those of an output folder that lies among them; and those whose id another one has."""
    results, base = output.resolve(), folder.resolve()
    if output.exists() and not output.is_dir():
        raise DataError(f"output {output} is a file; give a folder")
    if base.is_relative_to(results):
        raise DataError(f"the images in {folder} lie in the output folder {output}; choose another output folder")
    twice: list[tuple[Path, Path]] = []
    found = find_images(folder, recursive=True, again=twice)
    # Not resolved: the results hold links to the very images.
    images = {key: path for key, path in found.items() if not (base / path.relative_to(folder)).is_relative_to(results)}
    if not images:
        raise DataError(f"no images in {folder}; give a folder that holds some (.png, .jpg, .tif, ...)")
    kept = set(images.values())
    return images, [pair for pair in twice if pair[1] in kept]


def _digest(bundle: Bundle) -> str:
    """SHA-256 of everything that decides the predictions."""
    result = hashlib.sha256(bundle.header.to_json().encode())
    for name, value in sorted(bundle.state_dict.items()):
        result.update(name.encode())
        result.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return result.hexdigest()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it") from error
