"""Files and folders through a predictor: mask and overlay images beside each other, one bad file no reason to stop.

Masks are 8-bit palette PNGs: the pixel values are class indices, the palette their colours. Folders are searched
recursively and mirrored below the output folder. It does not know models; it calls a `Predictor`.

Usage:
    >>> summary = predict("model.safetensors", ["photos/"], "labelled/", width=0.5, kind="both")
    >>> summary.written, summary.failed
    (12, (('photos/broken.jpg', 'photos/broken.jpg is not an image that can be read; replace or remove it'),))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from litheseg.data.classes import Classes
from litheseg.data.masks import read_image
from litheseg.deploy.bundle import Bundle
from litheseg.errors import DataError, did_you_mean
from litheseg.files import atomic_path
from litheseg.runtime.predictor import Predictor

__all__ = ["Kind", "Summary", "overlay", "predict", "write_mask"]

Kind = Literal["mask", "overlay", "both"]

_KINDS = {"mask": ("mask",), "overlay": ("overlay",), "both": ("mask", "overlay")}
_SUFFIX = {"mask": ".png", "overlay": "_overlay.png"}
_IMAGES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Summary:
    """What became of the inputs.

    Attributes:
        images: inputs found.
        written: files written.
        skipped: files that existed and were kept.
        failed: (input, reason) of the inputs that could not be labelled.
    """

    images: int
    written: int
    skipped: int
    failed: tuple[tuple[str, str], ...]


def predict(
    bundle: Bundle | Predictor | str | Path,
    inputs: str | Path | Iterable[str | Path],
    output: str | Path,
    *,
    width: float | None = None,
    kind: Kind = "mask",
    force: bool = False,
    device: str | torch.device = "cpu",
    size: tuple[int, int] | Literal["training"] | None = "training",
    alpha: float = 0.5,
    progress: Callable[[int, int, Path], None] | None = None,
) -> Summary:
    """Label images and folders of images into `output`, as `NAME.png` (mask) and `NAME_overlay.png`.

    An image that cannot be labelled is reported in the summary and the others go on. Inputs are never overwritten;
    other existing files only with `force`.

    Args:
        bundle: a bundle, its path, or a predictor (then `device` and `size` are its own).
        inputs: files and folders; files in folders count if their name ends like an image's and is not hidden.
        output: the folder for the results; made if missing.
        width: None for the widest, or the predictor's.
        kind: what to write.
        force: overwrite results that exist instead of skipping them.
        device: where to run.
        size: as in `Predictor`.
        alpha: weight of the class colour in overlays, in [0, 1].
        progress: called with (done, total, image) after each image.

    Raises:
        DataError: no images, an unknown `kind`, or an output that is a file or one of the input folders.
        WidthError: the bundle does not have the width.
        LithesegError: a result cannot be written.
    """
    if kind not in _KINDS:
        raise DataError(f"unknown kind '{kind}'.{did_you_mean(kind, _KINDS)}")
    if not 0 <= alpha <= 1:
        raise DataError(f"alpha {alpha} is outside [0, 1]; 0 shows the image, 1 the colours")
    predictor = bundle if isinstance(bundle, Predictor) else Predictor(bundle, device=device, size=size)
    width = predictor.width if width is None else predictor.bundle.check_width(width)
    images = _find([inputs] if isinstance(inputs, (str, Path)) else inputs, Path(output).expanduser())
    written = skipped = 0
    failed: list[tuple[str, str]] = []
    sources = {image.resolve() for image, _ in images}
    owner: dict[Path, Path] = {}
    for done, (image, stem) in enumerate(images, 1):
        try:
            targets = {part: stem.with_name(stem.name + _SUFFIX[part]) for part in _KINDS[kind]}
            _check_targets(image, targets.values(), sources, owner)
            due = {part: path for part, path in targets.items() if force or not path.exists()}
            results = _results(predictor, image, due, width, alpha) if due else {}
        # A PyTorch error (memory, an image too small for the network) concerns this image as well.
        except (DataError, RuntimeError, MemoryError) as error:
            failed.append((str(image), str(error) or type(error).__name__))
        else:
            for path, result in results.items():
                _write(path, result)
            written, skipped = written + len(due), skipped + len(targets) - len(due)
        if progress is not None:
            progress(done, len(images), image)
    return Summary(len(images), written, skipped, tuple(failed))


def write_mask(path: str | Path, mask: np.ndarray, classes: Classes) -> None:
    """Write uint8 H W labels as an 8-bit palette PNG, whole or not at all.

    Raises:
        LithesegError: the file cannot be written.
    """
    _write(Path(path), _palette_image(mask, classes))


def overlay(image: np.ndarray, mask: np.ndarray, classes: Classes, alpha: float = 0.5) -> np.ndarray:
    """The image (uint8 H W 3) under the colours of its labels (uint8 H W); labels without a class leave it as it is."""
    colors = classes.palette()[mask].astype(np.float32)
    mixed = np.rint(image + np.float32(alpha) * (colors - image)).astype(np.uint8)
    return np.where((mask < len(classes))[:, :, None], mixed, image)


def _results(
    predictor: Predictor, image: Path, due: dict[str, Path], width: float, alpha: float
) -> dict[Path, Image.Image]:
    pixels = read_image(image)
    mask = predictor.predict_rgb(pixels, width=width)
    results = {}
    for part, path in due.items():
        if part == "mask":
            results[path] = _palette_image(mask, predictor.classes)
        else:
            results[path] = Image.fromarray(overlay(pixels, mask, predictor.classes, alpha))
    return results


def _palette_image(mask: np.ndarray, classes: Classes) -> Image.Image:
    image = Image.fromarray(mask).convert("L")
    image.putpalette(classes.palette().ravel().tolist())
    return image


def _write(path: Path, image: Image.Image) -> None:
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def _find(inputs: Iterable[str | Path], output: Path) -> list[tuple[Path, Path]]:
    """(image, output path without ending) of every input, folders in sorted order."""
    if output.exists() and not output.is_dir():
        raise DataError(f"output {output} is a file; give a folder")
    found: dict[Path, Path] = {}
    for entry in (Path(entry).expanduser() for entry in inputs):
        if not entry.is_dir():
            found.setdefault(entry, output / entry.stem)
            continue
        if entry.resolve() == output.resolve():
            raise DataError(f"output {output} is an input folder; results would mix with the images: choose another")
        for path in _images_in(entry, output):
            found.setdefault(path, output / path.relative_to(entry).with_suffix(""))
    if not found:
        raise DataError("no images among the inputs; give image files, or folders that hold some")
    return list(found.items())


def _images_in(folder: Path, output: Path) -> list[Path]:
    """Image files below a folder, without hidden ones and without results of an earlier run."""
    results = output.resolve()
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in _IMAGES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.resolve().is_relative_to(results)
        and path.is_file()
    ]


def _check_targets(image: Path, targets: Iterable[Path], sources: set[Path], owner: dict[Path, Path]) -> None:
    """No result may replace an input, nor the result of another input."""
    for target in targets:
        if target.resolve() in sources:
            raise DataError(f"{target} is one of the inputs and is not overwritten; choose another output folder")
        first = owner.setdefault(target, image)
        if first != image:
            raise DataError(f"{target} already holds the result of {first}; rename one of them or label them apart")
