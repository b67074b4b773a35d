"""The network as it is deployed: raw pixels in, logits or labels out, nothing left that only training needs.

Heads, elastic layers and re-parameterised blocks are gone after `litheseg.nn.extract`; here dropout goes as well, and
batch norms are folded into the convolutions before them. A batch norm that follows no convolution, or one whose output
something else reads too, becomes a multiplication and an addition. Running the network once shows which layer reads
which output. Every format is written from this network.

Usage:
    >>> network = deployed(bundle, width=0.5)
    >>> logits = network(pixels)  # uint8 1 x H x W x 3 -> float32 1 x K x h x w
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from litheseg.masks.image_format import ImageFormat
from litheseg.models.base import SegmentationModel, resize
from litheseg.models.bundle import Bundle
from litheseg.nn.layers import BatchNormThen
from litheseg.nn.watching import Watch, image_channels

__all__ = ["Deployed", "deployed", "fold_batch_norms"]

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_EXAMPLE = (64, 64)  # pixels; the network is run on it once


class Deployed(nn.Module):
    """A plain network behind its normalisation.

    Args:
        network: image 1 x C x H x W, normalised -> logits; a `SegmentationModel` gives them at its own stride.
        images: what it takes.
        layout: of the input: "NHWC" or "NCHW".
        output: "logits", or "labels": the largest of the bilinearly upsampled logits at every pixel.
    """

    def __init__(
        self,
        network: nn.Module,
        images: ImageFormat,
        *,
        layout: str = "NHWC",
        output: str = "logits",
    ) -> None:
        super().__init__()
        self.network, self.images, self.layout, self.output = network, images, layout, output
        both = (images.mean, images.std)
        centre, spread = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in both)
        self.gain = nn.Buffer((1 / (images.scale * spread)).float())
        self.offset = nn.Buffer((-centre / spread).float())

    def forward(self, image: Tensor) -> Tensor:
        """The raw image, 1 x H x W x C (or 1 x C x H x W) -> float32 1 x K x h x w, or uint8 1 x H x W."""
        ready = self.normalised(self.planes(image))
        own = isinstance(self.network, SegmentationModel)
        logits = (self.network.outputs(ready)["logits"] if own else self.network(ready)).float()  # type: ignore[operator]
        if self.output == "logits":
            return logits
        return resize(logits, ready.shape[-2:]).argmax(1).to(torch.uint8)

    def planes(self, image: Tensor) -> Tensor:
        """The raw image as float32 1 x C x H x W."""
        return (image.permute(0, 3, 1, 2) if self.layout == "NHWC" else image).float()

    def normalised(self, planes: Tensor) -> Tensor:
        """The raw image, float32 1 x C x H x W, as the network takes it."""
        return planes * self.gain + self.offset

    def example(self, size: tuple[int, int]) -> Tensor:
        """A raw image of this height and width, black."""
        channels = self.images.channels
        shape = (1, *size, channels) if self.layout == "NHWC" else (1, channels, *size)
        return torch.zeros(shape, dtype=getattr(torch, self.images.dtype))


def deployed(bundle: Bundle, width: float, *, layout: str = "NHWC", output: str = "logits") -> Deployed:
    """One width of a bundle as it is deployed: in evaluation mode, without gradients, on the CPU.

    Raises:
        WidthError: a width that the bundle does not have.
        BundleError: as `Bundle.model`.
    """
    network = bundle.plain(width)
    for name, module in list(network.named_modules()):
        if isinstance(module, _DROPOUTS):
            network.set_submodule(name, nn.Identity())
    fold_batch_norms(network)
    made = Deployed(network, bundle.header.images, layout=layout, output=output)
    return made.eval().requires_grad_(False)


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> dict[str, Tensor]:
    """Leave no batch norm in a plain network, in place; its function stays, to float rounding.

    Args:
        network: in evaluation mode; image N x C x H x W -> logits.

    Returns:
        The factors by which the output channels of convolutions were multiplied, float32, by the names of the layers.
    """
    watch = _Readers(network).on(torch.zeros(1, image_channels(network), *_EXAMPLE))
    names = {module: name for name, module in network.named_modules()}
    factors: dict[str, Tensor] = {}
    for norm, name in list(names.items()):
        if type(norm) not in (nn.BatchNorm2d, BatchNormThen) or norm.running_mean is None:  # type: ignore[union-attr]
            continue
        scale, shift = _affine(norm)  # type: ignore[arg-type]
        source = watch.sole_source(norm)
        if source is None:
            kept: nn.Module = _ScaleShift(scale, shift)
        else:
            kept = nn.Identity()
            factors[names[source]] = _scale_outputs(source, scale, shift)
        then = getattr(norm, "then", None)
        network.set_submodule(name, kept if then is None else nn.Sequential(kept, then) if source is None else then)
    return factors


class _ScaleShift(nn.Module):
    """What a batch norm in evaluation mode amounts to."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Buffer(vector.float().view(-1, 1, 1)) for vector in (scale, shift))

    def forward(self, x: Tensor) -> Tensor:
        """N x C x H x W -> the same shape."""
        return x * self.scale + self.shift


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel, float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    scale = scale if norm.weight is None else norm.weight.double() * scale
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else norm.bias.double() + shift


def _scale_outputs(layer: nn.Module, scale: Tensor, shift: Tensor) -> Tensor:
    """Fold a batch norm into the convolution before it; returns the factors."""
    assert isinstance(layer, _CONVOLUTIONS)
    bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    factors, groups = scale.float(), layer.groups
    # The weight is a float32 product of float32: a runtime that multiplies by the factors itself gets the same.
    if isinstance(layer, nn.ConvTranspose2d):
        blocks = layer.weight.unflatten(0, (groups, -1)) * factors.view(groups, 1, -1, 1, 1)
        weight = blocks.flatten(0, 1)
    else:
        weight = layer.weight * factors.view(-1, 1, 1, 1)
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias.float())
    return factors


class _Readers(Watch):
    """Runs a network once and records which layers read the outputs of its convolutions."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self._network = network
        self._inside: nn.Module | None = None  # a batch norm
        self._sources: dict[int, nn.Module] = {}  # tensor -> the convolution that made it
        self._read: dict[nn.Module, int] = {}  # batch norm -> the tensor that it reads
        self._runs: Counter[nn.Module] = Counter()
        self._others: Counter[int] = Counter()  # tensor -> reads outside of batch norms
        self._norms: Counter[int] = Counter()  # tensor -> batch norms that read it
        self._alive: list[Tensor] = []  # ids are only unique among the living

    def on(self, image: Tensor) -> _Readers:
        own = isinstance(self._network, SegmentationModel)
        call: Any = self._network.outputs if own else self._network
        self._count(self.run(lambda: call(image)))  # what is returned is read by somebody
        return self

    def sole_source(self, norm: nn.Module) -> nn.Module | None:
        """The convolution whose output only this batch norm reads; None where there is none."""
        tensor = self._read.get(norm)
        source = None if tensor is None else self._sources.get(tensor)
        once = source is not None and self._runs[source] == self._runs[norm] == 1
        return source if once and self._others[tensor] == 0 and self._norms[tensor] == 1 else None  # type: ignore[index]

    def entered(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, nn.BatchNorm2d):
            self._inside = module
            self._runs[module] += 1
            self._read[module] = id(inputs[0])
            self._norms[id(inputs[0])] += 1

    def left(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.BatchNorm2d):
            self._inside = None
        elif isinstance(module, _CONVOLUTIONS):
            self._runs[module] += 1
            self._sources[id(output)] = module

    def saw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if self._inside is None:
            self._count((args, kwargs))
        self._alive += [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    def _count(self, values: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
        self._alive += tensors
        self._others.update(map(id, tensors))
