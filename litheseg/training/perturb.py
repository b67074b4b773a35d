"""Dropping whole channels of the encoder's features, for some rows of a batch only.

A network that must label an image alike with half of its features gone learns not to lean on few of them. It does not
know losses or teachers; the network names the modules where its encoder ends (`SegmentationModel.encoder_ends`).

Paper: UniMatch (Yang et al., CVPR 2023), Sec. 3.2: channel dropout of 50 % between encoder and decoder.

Usage:
    >>> dropout = FeatureDropout(model)
    >>> with dropout.on(slice(8, 16)):
    ...     outputs = model.outputs(image)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.models import SegmentationModel

__all__ = ["FeatureDropout"]

_SHARE = 0.5


class FeatureDropout:
    """Hooks on the ends of a model's encoder; without effect outside `on`.

    Args:
        model: names its `encoder_ends`.

    Raises:
        ModelError: it names none.
    """

    def __init__(self, model: SegmentationModel) -> None:
        if not model.encoder_ends:
            raise ModelError(
                f"{type(model).__name__} does not say where its encoder ends (encoder_ends), so no features can be "
                "dropped between encoder and decoder; set --loss.perturbed 0, or use another model"
            )
        self._rows: slice | None = None
        for name in model.encoder_ends:
            model.get_submodule(name).register_forward_hook(self._drop)

    @contextmanager
    def on(self, rows: slice) -> Iterator[None]:
        """Drop features of these rows of the batch."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = None

    def _drop(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if self._rows is None:
            return output
        return [self._dropped(value) for value in output] if isinstance(output, list) else self._dropped(output)

    def _dropped(self, features: Tensor) -> Tensor:
        assert self._rows is not None
        kept = features.new_ones(*features.shape[:2], 1, 1)
        kept[self._rows] = F.dropout(kept[self._rows], _SHARE, training=True)
        return features * kept
