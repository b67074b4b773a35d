"""A teacher without a bigger network: a copy of the student that sees the labels beside the image.

Knowing which pixels belong together, a network of the student's own size names them better, and the student learns from
what it says. The labels are a fourth input channel, noised so that they cannot be copied: each image shows each of its
classes by a number drawn at random, so the channel tells regions apart and the image must tell what they are. Of two
draws for the same image the network is to make the same. Here it learns in the student's own steps.

Paper: Qiu et al., "Make a Strong Teacher with Label Assistance" (ECCV 2024, arXiv 2407.13254); what its text leaves
open is as in its code.

Usage:
    >>> teacher = LabelAssisted(model, width=1.0)
    >>> teacher.begin(Step.of(batch))
    >>> outputs = teacher.output(0.5, "labelled")
    >>> teacher.loss(Step.of(batch)).backward()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeFloat
from torch import Tensor, nn

from litheseg.errors import ModelError
from litheseg.losses.distillation import channel_wise_distillation
from litheseg.losses.supervised import cross_entropy
from litheseg.models import SegmentationModel
from litheseg.nn import available_widths, extract
from litheseg.training.streams import LABELLED, Outputs, Step
from litheseg.training.teacher import NetworkTeacher, Setting, Teacher, TeacherConfig, at_size

__all__ = ["LabelAssisted", "LabelAssistedConfig"]


@dataclass(frozen=True)
class LabelAssistedConfig(TeacherConfig, kind="label-assisted"):
    """The network itself, with the noised labels as a further input, trained in the same steps (LAD).

    Attributes:
        noise: standard deviation of what is added to each pixel of the label channel, whose numbers have one of 1.
        consistency: weight of the difference between what it makes of two draws of the same labels.
    """

    needs_labels = True
    noise: NonNegativeFloat = 0.03
    consistency: NonNegativeFloat = 5.0

    def build(self, setting: Setting) -> Teacher:
        """See `TeacherConfig`.

        Raises:
            ModelError: the student has no convolution that could read the labels.
        """
        width = max(available_widths(setting.student))
        return LabelAssisted(setting.student, width, noise=self.noise, consistency=self.consistency)


class LabelAssisted(NetworkTeacher):
    """A plain copy of the student at one width, with its weights at the beginning, which learns by `loss`.

    Args:
        student: its first convolution reads the image.
        width: of the copy.
        noise: see `LabelAssistedConfig`.
        consistency: likewise.

    Raises:
        ModelError: the student has no convolution that reads three channels.
    """

    def __init__(
        self, student: SegmentationModel, width: float, *, noise: float = 0.03, consistency: float = 5.0
    ) -> None:
        super().__init__((LABELLED,))
        network = extract(student, width)
        assert isinstance(network, SegmentationModel)
        self.model = network
        self._noise, self._consistency = noise, consistency
        self._shown: Tensor | None = None  # the label channel of the pass that runs, N x 1 x H x W
        _widen_first_convolution(network).register_forward_pre_hook(self._show)

    def loss(self, step: Step) -> Tensor:
        """Cross entropy of two passes with different draws, and how far they are apart (channel-wise)."""
        mask, count = step.masks[LABELLED], len(step.labelled)
        self.model.train()
        numbers = torch.randn(2 * count, self.model.num_classes + 1, device=mask.device)
        outputs = self._run(step.labelled.repeat(2, 1, 1, 1), mask.repeat(2, 1, 1), numbers)
        first, second = at_size({"logits": outputs["logits"]}, step.size)["logits"].split(count)
        found = cross_entropy(first, mask) + cross_entropy(second, mask)
        for ours, theirs in ((first, second), (second, first)):
            found = found + self._consistency * channel_wise_distillation(ours, theirs, mask=mask)
        return found

    def begin(self, step: Step) -> None:
        """Run the network with the numbers that it teaches with: the same for each image, evenly spread."""
        self._mask = step.masks[LABELLED]
        super().begin(step)

    def _outputs(self, image: Tensor) -> Outputs:
        numbers = torch.linspace(-1, 1, self.model.num_classes + 1, device=image.device)
        self.model.eval()
        return self._run(image, self._mask, numbers.expand(len(image), -1))

    def _run(self, image: Tensor, mask: Tensor, numbers: Tensor) -> Outputs:
        """The outputs on images N3HW with labels NHW, shown by N x (K + 1) numbers; the last is of ignored pixels."""
        index = mask.clamp(max=numbers.shape[1] - 1).long()
        shown = numbers.gather(1, index.flatten(1)).view_as(mask)[:, None]
        self._shown = shown + self._noise * torch.randn_like(shown)
        try:
            return self.model.outputs(image)
        finally:
            self._shown = None

    def _show(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        """The input of the first convolution, with the label channel."""
        (image,) = inputs
        assert self._shown is not None, "the network runs with labels only"
        shown = F.interpolate(self._shown, image.shape[-2:], mode="nearest-exact").to(image.dtype)
        return (torch.cat([image, shown], 1),)


def _widen_first_convolution(network: nn.Module) -> nn.Conv2d:
    """Give the first convolution that reads an image a fourth input, in place, with weights of the others' size."""
    found = (layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    conv = next((layer for layer in found if layer.in_channels == 3 and layer.groups == 1), None)
    if conv is None:
        raise ModelError(
            f"{type(network).__name__} has no convolution that reads an image's three channels, so none could read the "
            "labels beside them; use another teacher than label-assisted, or another model"
        )
    weight = conv.weight.detach()
    further = torch.randn_like(weight[:, :1]) * weight.std()
    conv.weight = nn.Parameter(torch.cat([weight, further], 1))
    conv.in_channels = 4
    return conv
