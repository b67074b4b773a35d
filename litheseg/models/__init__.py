"""The architectures, by name.

Usage:
    >>> model = build_model("ddrnet", num_classes=11, boundary_head=True)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litheseg.errors import ModelError, did_you_mean
from litheseg.models.base import SegmentationModel
from litheseg.models.ddrnet import DDRNet
from litheseg.models.deeplabv3plus import deeplabv3plus
from litheseg.models.erfnet import (
    erfnet,
    erfnet_d,
    erfnet_d_star,
    erfnet_dg2_star,
    erfnet_dg4_star,
    erfnet_dg8_star,
)
from litheseg.models.segmenter import segmenter
from litheseg.nn.efficient import Efficient, make_efficient

__all__ = ["MODELS", "SegmentationModel", "build_model"]

MODELS: dict[str, Callable[..., SegmentationModel]] = {
    "ddrnet": DDRNet,
    "deeplabv3plus": deeplabv3plus,
    "erfnet": erfnet,
    "erfnet-d": erfnet_d,
    "erfnet-d*": erfnet_d_star,
    "erfnet-dg2*": erfnet_dg2_star,
    "erfnet-dg4*": erfnet_dg4_star,
    "erfnet-dg8*": erfnet_dg8_star,
    "segmenter": segmenter,
}


def build_model(
    name: str, num_classes: int, *, efficient: Efficient | None = None, **arguments: Any
) -> SegmentationModel:
    """Build a registered architecture with fresh weights.

    Args:
        name: a key of `MODELS`.
        num_classes: K.
        efficient: cheaper convolutions to lay over it.
        **arguments: the architecture's own.

    Raises:
        ModelError: `name` is not registered, an argument is not one of the architecture's, or no layer can be made
            efficient as asked.
    """
    if name not in MODELS:
        raise ModelError(f"unknown model '{name}'.{did_you_mean(name, MODELS)}")
    try:
        model = MODELS[name](num_classes, **arguments)
    except TypeError as error:
        raise ModelError(f"model '{name}': {error}; see `litheseg models {name}`") from error
    return model if efficient is None else make_efficient(model, efficient)
