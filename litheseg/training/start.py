"""Beginning a training with the weights of a trained model, at other widths or for other classes if need be.

All weights are taken over but those of the layer that tells the classes apart, where there are more or fewer of them,
and of heads that only training has. The first layer of a network of RGB is adapted to images of other channels as in
`litheseg.models.encoders`. A width that the trained model lacks begins with batch norms between those of its
neighbours, or with the first channels of its narrowest.

Usage:
    >>> start_from(network, load_bundle("zoo:camvid-lite0"))
"""

from __future__ import annotations

import torch
from timm.models import adapt_input_conv

from litheseg.errors import ModelError
from litheseg.models import SegmentationModel
from litheseg.models.bundle import Bundle
from litheseg.nn import available_widths
from litheseg.nn.layers import SwitchableBatchNorm2d

__all__ = ["start_from"]


@torch.no_grad()
def start_from(network: SegmentationModel, bundle: Bundle) -> None:
    """Give an elastic network the weights of a bundle of the same architecture, in place.

    Args:
        network: elastic, with any number of classes.
        bundle: the trained model.

    Raises:
        ModelError: it is another network, or the network has a wider width than it.
    """
    label, trained = bundle.path or "the model", bundle.model()
    widths = available_widths(network)
    if widths[0] > available_widths(trained)[0]:
        raise ModelError(f"{label} has no width {widths[0]:g} or wider to start from; train narrower ones by --widths")
    layers = dict(trained.named_modules())
    for name, norm in network.named_modules():
        if isinstance(norm, SwitchableBatchNorm2d) and isinstance(layers.get(name), SwitchableBatchNorm2d):
            for width in widths:
                _start_norm(norm, layers[name], width, f"{label} is another network: '{name}'")
    source, classes = trained.state_dict(), (trained.num_classes, network.num_classes)
    channels = (3, network.in_channels) if trained.in_channels == 3 != network.in_channels else ()
    heads = tuple(f"{head}." for head in getattr(network, "training_only", ()))
    for name, value in network.state_dict().items():
        if ".norms." in name or name.startswith(heads):
            continue
        given = source.get(name)
        if given is not None and given.ndim == 4 and (given.shape[1], value.shape[1]) == channels:
            given = adapt_input_conv(network.in_channels, given)
        if given is not None and given.shape == value.shape:
            value.copy_(given)
        elif given is None or not _differ_by_classes(given.shape, value.shape, classes):
            shape = "no such weight" if given is None else f"the shape {tuple(given.shape)}"
            raise ModelError(
                f"{label} is another network: '{name}' has the shape {tuple(value.shape)} here, and {shape} there; "
                "leave out --model options, or start from another model"
            )


def _start_norm(norm: SwitchableBatchNorm2d, trained: torch.nn.Module, width: float, label: str) -> None:
    assert isinstance(trained, SwitchableBatchNorm2d)
    if width not in trained.dial.available:
        trained.add_width(width)
    given, own = trained.norm_of(width).state_dict(), norm.norm_of(width).state_dict()
    if any(given[name].shape != value.shape for name, value in own.items()):
        raise ModelError(f"{label} has other channels at width {width:g}; leave out --model options")
    norm.norm_of(width).load_state_dict(given)


def _differ_by_classes(given: torch.Size, wanted: torch.Size, classes: tuple[int, int]) -> bool:
    pairs = zip(given, wanted, strict=True) if len(given) == len(wanted) else [(0, 1)]
    return all(pair in ((pair[0], pair[0]), classes) for pair in pairs)
