"""The rows of a training step: the student's input, and the teacher's outputs aligned with it.

A student runs once per width on all rows of a step: labelled images first, then the CutMixed views of unlabelled
images, then whatever else objectives ask for: the mixed views while each of two passes on the channels of the encoder's
features that the other drops; the unlabelled images as they are, while channels are dropped at random. Each group of
rows is a *stream* with a mask of its own. A teacher sees the images before they were mixed, and its outputs are mixed
by the same boxes, so that the pixels correspond.

Papers: MGD (Qin et al., ECCV 2022) for streams of labelled and mixed images; UniMatch (Yang et al., CVPR 2023) for two
mixed views, and (Sec. 3.2) for channel dropout of 50 % between encoder and decoder; UniMatch V2 (Yang et al., TPAMI
2025) for complementary dropout.

Usage:
    >>> step = Step.of(batch, (LABELLED, UNLABELLED))
    >>> outputs = model.outputs(step.image)
    >>> labelled = step.part(outputs, LABELLED)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litheseg.data.loading.views import cut_mix
from litheseg.errors import ModelError
from litheseg.masks.classes import IGNORE_INDEX
from litheseg.models import SegmentationModel

__all__ = [
    "COMPLEMENTARY",
    "DROPPING",
    "LABELLED",
    "MIXED",
    "PERTURBED",
    "UNLABELLED",
    "FeatureDropout",
    "LazyOutputs",
    "Outputs",
    "Step",
]

LABELLED, UNLABELLED = "labelled", "unlabelled"
COMPLEMENTARY, PERTURBED = "complementary", "perturbed"
DROPPING = frozenset({COMPLEMENTARY, PERTURBED})  # the streams in which features are dropped
MIXED = "mixed"  # a teacher's outputs on the mixed images themselves; the student's stream is UNLABELLED

Outputs = dict[str, Tensor]

_DROPPED = 0.5  # of the channels


class LazyOutputs(Outputs):
    """Tensors by name, each computed when it is first read: full-size logits cost as much as a small network.

    Args:
        later: name -> what computes it.
    """

    def __init__(self, later: Mapping[str, Callable[[], Tensor]]) -> None:
        super().__init__()
        self._later = later

    def __missing__(self, name: str) -> Tensor:
        value = self[name] = self._later[name]()
        return value

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._later

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class Step:
    """One step's images and where each stream lies in them.

    Attributes:
        labelled: images N x 3 x H x W.
        weak: unlabelled images before mixing, M x 3 x H x W; None without unlabelled data.
        mixed: their mixed views one after the other, (V * n) x 3 x H x W; n is M, but for a partner's image at the end.
        cut: bool V x n x H x W, true where a view shows the partner.
        partner: int64 n, the row of `weak` that is mixed into each.
        masks: by stream: the labels, or 0 inside and 255 outside the image where there are none.
    """

    labelled: Tensor
    weak: Tensor | None
    mixed: Tensor | None
    cut: Tensor | None
    partner: Tensor | None
    masks: Mapping[str, Tensor]

    @classmethod
    def of(cls, batch: Mapping[str, Tensor], streams: Collection[str] = (LABELLED, UNLABELLED)) -> Step:
        """The step of a batch of `litheseg.data.SegmentationData`.

        Args:
            batch: "image" and "mask"; with unlabelled data also "weak", "inside", "mixed", "cut" and "partner".
            streams: those that objectives learn from, as far as the batch has them; the labelled one is always there.
        """
        masks = {LABELLED: batch["mask"]}
        if "weak" not in batch:
            return cls(batch["image"], None, None, None, None, masks)
        cut, partner = batch["cut"], batch["partner"]
        inside = torch.cat([cut_mix(batch["inside"], view, partner) for view in cut])
        for stream in (UNLABELLED, COMPLEMENTARY):
            if stream in streams:
                masks[stream] = _unknown(inside)
        if PERTURBED in streams:
            masks[PERTURBED] = _unknown(batch["inside"][: len(partner)])
        return cls(batch["image"], batch["weak"], batch["mixed"].flatten(0, 1), cut, partner, masks)

    @property
    def size(self) -> torch.Size:
        """(H, W) of the masks."""
        return self.masks[LABELLED].shape[-2:]

    @cached_property
    def image(self) -> Tensor:
        """The student's input, all rows, R x 3 x H x W."""
        if self.mixed is None or self.weak is None:
            return self.labelled
        weak = self.weak[: len(self.partner)] if self.partner is not None else self.weak
        rows = {LABELLED: self.labelled, UNLABELLED: self.mixed, COMPLEMENTARY: self.mixed, PERTURBED: weak}
        return torch.cat([rows[stream] for stream in self.masks])

    def rows(self, stream: str) -> slice:
        """Where a stream lies in `image`."""
        start = 0
        for name, mask in self.masks.items():
            if name == stream:
                break
            start += len(mask)
        return slice(start, start + len(self.masks[stream]))

    def part(self, outputs: Outputs, stream: str) -> Outputs:
        """The rows of a stream out of what the student computed for all rows."""
        if len(self.masks) == 1:
            return outputs
        rows = self.rows(stream)
        return {name: value[rows] for name, value in outputs.items()}

    def mix(self, values: Tensor) -> Tensor:
        """Outputs on `weak`, M x ... x H x W, mixed as the views are: (V * n) x ... x H x W."""
        assert self.cut is not None and self.partner is not None, "there are unlabelled images"
        return torch.cat([cut_mix(values, view, self.partner) for view in self.cut])


def _unknown(inside: Tensor) -> Tensor:
    return torch.where(inside, 0, IGNORE_INDEX)


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
                "dropped between encoder and decoder; leave out objectives on perturbed or complementary images, or "
                "use another model"
            )
        self._rows: Mapping[str, slice] = {}
        self._whole: Tensor | None = None
        for name in model.encoder_ends:
            model.get_submodule(name).register_forward_hook(self._drop)

    @contextmanager
    def on(self, rows: Mapping[str, slice]) -> Iterator[None]:
        """Drop features of these rows of the batch, by stream: PERTURBED, or COMPLEMENTARY, of two views."""
        self._rows = rows
        if COMPLEMENTARY in rows:
            pairs = (rows[COMPLEMENTARY].stop - rows[COMPLEMENTARY].start) // 2
            self._whole = torch.randperm(pairs)[: pairs // 2]
        try:
            yield
        finally:
            self._rows = {}

    def _drop(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not self._rows:
            return output
        return [self._dropped(value) for value in output] if isinstance(output, list) else self._dropped(output)

    def _dropped(self, features: Tensor) -> Tensor:
        kept = features.new_ones(*features.shape[:2], 1, 1)
        if rows := self._rows.get(PERTURBED):
            kept[rows] = F.dropout(kept[rows], _DROPPED, training=True)
        if rows := self._rows.get(COMPLEMENTARY):
            kept[rows] = self._halves(kept[rows])
        return features * kept

    def _halves(self, kept: Tensor) -> Tensor:
        """2 for a random half of the channels of each first view, 0 for the others, and the reverse for the second.

        Half of the pairs keep all channels, the same ones at every end of the encoder, as in the paper's code.
        """
        assert self._whole is not None
        first = 2 * torch.randint_like(kept[: len(kept) // 2], 2)
        first[self._whole.to(kept.device)] = 1
        return torch.cat([first, 2 - first])
