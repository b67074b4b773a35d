"""Masks made visible: class colours over an image, and where a prediction is right or wrong.

Pure numpy, uint8 in and uint8 out; it knows nothing of models, files or figures. The colours of `ERROR_COLORS`
differ in lightness as well as in hue (Okabe and Ito's palette): they stay apart under colour blindness and in print.

Usage:
    >>> painted = overlay(image, mask, classes, alpha=0.6)
    >>> errors = error_map(image, prediction, target, band)
"""

from __future__ import annotations

import numpy as np

from litheseg.errors import DataError
from litheseg.masks.classes import Classes

__all__ = ["ERROR_COLORS", "error_map", "overlay"]

_IGNORE = 255

ERROR_COLORS: dict[str, tuple[int, int, int]] = {
    "right, at a boundary": (86, 180, 233),
    "wrong": (213, 94, 0),
    "wrong, at a boundary": (240, 228, 66),
    "ignored": (0, 0, 0),
}


def overlay(image: np.ndarray, mask: np.ndarray, classes: Classes, alpha: float = 0.6) -> np.ndarray:
    """The image with its classes painted over it; ignored pixels (255) keep the image.

    Args:
        image: uint8 H W 3, RGB.
        mask: integer H W, train ids or 255.
        classes: names and colours of the train ids.
        alpha: weight of the colour in [0, 1]; 1 hides the image.

    Returns:
        uint8 H W 3.

    Raises:
        DataError: shapes that do not fit, ids beyond the classes, or `alpha` outside [0, 1].
    """
    _check(image, mask=mask)
    if not 0 <= alpha <= 1:
        raise DataError(f"alpha is {alpha}; choose a number from 0 (image only) to 1 (colours only)")
    valid = mask != _IGNORE
    unknown = np.unique(mask[valid & ((mask < 0) | (mask >= len(classes.names)))])
    if unknown.size:
        raise DataError(
            f"the mask holds ids {unknown.tolist()}, but there are {len(classes.names)} classes; map them first"
        )
    colors = np.asarray(classes.colors, dtype=np.float32)[np.where(valid, mask, 0)]
    blended = image + alpha * (colors - image)
    return np.where(valid[..., None], np.rint(blended).astype(np.uint8), image)


def error_map(
    image: np.ndarray, prediction: np.ndarray, target: np.ndarray, band: np.ndarray | None = None
) -> np.ndarray:
    """Where a prediction is right (pale grey image), wrong (solid colour) or not judged (black).

    Args:
        image: uint8 H W 3, RGB.
        prediction: integer H W, train ids.
        target: integer H W, train ids; 255 is not judged.
        band: bool H W, true near label borders (`litheseg.losses.boundary.boundary_mask`); it sets errors of outline
            apart from errors of recognition. None: no distinction.

    Returns:
        uint8 H W 3; wrong and ignored pixels have exactly the colours of `ERROR_COLORS`.

    Raises:
        DataError: shapes that do not fit.
    """
    near = np.zeros(target.shape, dtype=bool) if band is None else np.asarray(band, dtype=bool)
    _check(image, prediction=prediction, target=target, band=near)
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    result = np.repeat((120 + 0.5 * grey)[..., None], 3, axis=2)
    right = prediction == target
    edge = right & near
    result[edge] = 0.4 * result[edge] + 0.6 * np.array(ERROR_COLORS["right, at a boundary"])
    result[~right] = ERROR_COLORS["wrong"]
    result[~right & near] = ERROR_COLORS["wrong, at a boundary"]
    result[target == _IGNORE] = ERROR_COLORS["ignored"]
    return np.rint(result).clip(0, 255).astype(np.uint8)


def _check(image: np.ndarray, **masks: np.ndarray) -> None:
    """Refuse anything but a uint8 H W 3 image with masks of its size."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(f"the image is {image.dtype} {image.shape}; give uint8 (height, width, 3) in RGB")
    for name, mask in masks.items():
        if mask.shape != image.shape[:2]:
            raise DataError(f"the {name} is {mask.shape}, the image {image.shape[:2]}; resize one of them first")
