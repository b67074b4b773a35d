"""Mean and standard deviation of a data set's images, by which a network sees them.

RGB of 8 bits keeps ImageNet's, which pretrained encoders know. Of all other images they are measured, channel by
channel, on training images at their own size.

Usage:
    >>> measured_format(open_source("auto", "data/fields")).mean
    (0.021, 0.034, 0.041, 0.052, 0.19)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from litheseg.data.sources.base import Source
from litheseg.masks.image_format import ImageFormat
from litheseg.progress import track

__all__ = ["measured_format"]

_MOST = 200  # images; of more, that many are measured, evenly spread


def measured_format(source: Source) -> ImageFormat:
    """The format of a data set's images, with their mean and standard deviation.

    A channel that has one value everywhere gets the standard deviation 1.

    Raises:
        DataError: images that differ in their form, or that cannot be read.
    """
    images = source.images
    if images.is_rgb8:
        return images
    samples = source.samples("train" if "train" in source.splits() else source.splits()[0])
    chosen = samples[:: max(1, -(-len(samples) // _MOST))]
    count, totals, squares = 0, np.zeros(images.channels), np.zeros(images.channels)
    for sample in track(chosen, "measuring mean and standard deviation"):
        values = source.read_image(sample).reshape(-1, images.channels).astype(np.float64) / images.scale
        # Summed as means: floats may be large, and their squares larger.
        mean, spread, pixels = values.mean(0), values.var(0), len(values)
        gap, joint = mean - totals, count + pixels
        squares += spread * pixels + gap**2 * count * pixels / joint
        totals, count = totals + gap * pixels / joint, joint
    spread = np.sqrt(squares / count)
    usable = np.where(spread > 1e-6 * np.maximum(np.abs(totals), 1e-30), spread, 1.0)
    return replace(images, mean=tuple(totals.tolist()), std=tuple(usable.tolist()))
