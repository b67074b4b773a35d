"""Make any plain CNN or vision transformer elastic.

`slim` traces how channels flow through a network, then replaces every layer whose channels may shrink by its elastic
layer. The network's own Python code stays as it is; the image and the class logits keep their size. A
layer that cannot shrink exactly is an error that names it.

Papers: Yu et al., "Slimmable Neural Networks", ICLR 2019; Yu & Huang, "Universally Slimmable Networks", ICCV 2019
(statistics measured after training, for any width).

Usage:
    >>> model = slim(timm.create_model("resnet18"), widths=(1.0, 0.5, 0.25))
    >>> set_width(model, 0.25)
    >>> model(image)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, TypeVar

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from litheseg.errors import ModelError, WidthError, first_line
from litheseg.nn.attention import Heads, SlimHeads, adopt_attention
from litheseg.nn.bare import narrow_parameters
from litheseg.nn.grouping import ChannelShuffle
from litheseg.nn.layers import (
    BatchNormThen,
    SlimConv2d,
    SlimConvTranspose2d,
    SlimGroupNorm,
    SlimLayerNorm,
    SlimLinear,
    SwitchableBatchNorm2d,
)
from litheseg.nn.segments import Segment
from litheseg.nn.sides import Sides, Trace
from litheseg.nn.slicing import set_group_rules
from litheseg.nn.surgery import copied, replace_layer
from litheseg.nn.tracing import run_example, trace_channels
from litheseg.nn.watching import Watch, image_channels
from litheseg.nn.width import ChannelPart, Channels, WidthDial
from litheseg.progress import track
from litheseg.values import check_width

__all__ = ["add_width", "available_widths", "get_width", "recalibrate", "set_width", "slim"]

Network = TypeVar("Network", bound=nn.Module)

# Convolutions and linear layers, which have channels of their own on both sides.
_ELASTIC: dict[type[nn.Module], Any] = {
    nn.Conv2d: SlimConv2d,
    nn.ConvTranspose2d: SlimConvTranspose2d,
    nn.Linear: SlimLinear,
}


def slim(
    module: Network,
    widths: Sequence[float],
    *,
    divisor: int = 8,
    example: Tensor | None = None,
    call: Callable[[nn.Module, Tensor], Iterable[Tensor]] | None = None,
) -> Network:
    """Make `module` elastic, in place, and return it.

    Args:
        module: a plain network; its weights are kept, and plain state dicts still load afterwards.
        widths: those that get batch-norm statistics of their own, each in (0, 1]. For width 1 alone nothing has to
            shrink: any network will do, attention included.
        divisor: channels are rounded to multiples of it, so that kernels stay efficient.
        example: an image to trace with, N x C x H x W with N >= 2; 2 x C x 64 x 64 by default.
        call: how to run the module; returns the tensors that keep their channels. By default those of
            `module.outputs(image)` (a `SegmentationModel`: all but ``features``), or `module(image)`.

    Raises:
        ModelError: a layer cannot shrink; the message names it.
        WidthError: a width outside (0, 1].
    """
    if hasattr(module, "width_dial"):
        raise ModelError("the model is elastic already; extract a plain one first")
    dial = WidthDial(tuple(widths), divisor)
    if dial.widths == (1.0,):
        return _install_norms(module, dial)
    run = call or run_example
    with torch.random.fork_rng(devices=[]):  # dropout and the example must not shift the caller's random state
        image = torch.rand(2, image_channels(module), 64, 64) if example is None else example.detach().cpu()
        probe = adopt_attention(copied(module).cpu().train())
        trace = trace_channels(probe, lambda m: run(m, image))
        set_group_rules(trace, dial.widths[-1])
        _verify(_install(copied(module).cpu().train(), trace, copy.copy(dial)), lambda m: run(m, image))
    return _install(module, trace, dial)


def set_width(module: nn.Module, width: float) -> None:
    """Turn the model's dial.

    Raises:
        WidthError: the width is not available, or the model is plain and `width` is not 1.
    """
    dial = _dial(module)
    if dial is not None:
        dial.turn(width)
    elif width != 1.0:
        check_width(width)
        raise WidthError(f"width {width:g} asked of a plain model; make it elastic with `slim(model, widths)`")


def get_width(module: nn.Module) -> float:
    """The current width; 1 for a plain model."""
    dial = _dial(module)
    return 1.0 if dial is None else dial.width


def available_widths(module: nn.Module) -> tuple[float, ...]:
    """The widths that `set_width` accepts, widest first."""
    dial = _dial(module)
    return (1.0,) if dial is None else dial.available


def add_width(module: nn.Module, width: float) -> None:
    """Make a width between the trained ones available, with interpolated batch norms; `recalibrate` measures them.

    Raises:
        WidthError: outside the trained range, or the model is plain.
    """
    dial, width = _dial(module), check_width(width)
    if dial is None or not dial.widths[-1] <= width <= dial.widths[0]:
        trained = "1 only (a plain model)" if dial is None else f"{dial.widths[-1]:g} to {dial.widths[0]:g}"
        raise WidthError(f"width {width:g} is outside what was trained: {trained}; train with a wider range of widths")
    if width not in dial.available:
        for layer in _switchable_norms(module):
            layer.add_width(width)
        dial.add(width)


@torch.no_grad()
def recalibrate(module: nn.Module, batches: Iterable[Tensor], widths: Sequence[float]) -> None:
    """Measure batch-norm statistics for the given widths, making any width between the trained ones usable.

    The statistics become the plain average over the batches (Universally Slimmable Networks, Sec. 3.2). Dropout stays
    off; weights, mode and width are left as they were.

    Args:
        module: an elastic model.
        batches: normalised images N x 3 x H x W; gone through once per width.
        widths: each within the trained range; the scales and shifts of a new one are interpolated.

    Raises:
        WidthError: as in `add_width`.
        ModelError: no batches.
    """
    if not widths:
        return
    batches = list(batches)
    if not batches:
        raise ModelError("recalibration needs at least one batch of images")
    device = next(module.parameters()).device
    width_before, training_before = get_width(module), module.training
    for width in widths:
        add_width(module, width)
        set_width(module, width)
        _measure_statistics(module, [batch.to(device) for batch in batches])
    set_width(module, width_before)
    module.train(training_before)


def _measure_statistics(module: nn.Module, batches: list[Tensor]) -> None:
    """Replace the batch-norm statistics of the current width."""
    norms = [layer.current for layer in _switchable_norms(module)]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for batch in track(batches, f"batch norm of width {get_width(module):g}"):
        module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def _dial(module: nn.Module) -> WidthDial | None:
    return getattr(module, "width_dial", None)


def _switchable_norms(module: nn.Module) -> list[SwitchableBatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, SwitchableBatchNorm2d)]


def _install_norms(module: Network, dial: WidthDial) -> Network:
    """Give a network of width 1 alone its dial, in place: only its batch norms become elastic layers."""
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            channels = Channels((ChannelPart(layer.num_features, elastic=False),))
            replace_layer(module, name, _switchable_norm(layer, channels, dial))
    module.width_dial = dial  # type: ignore[assignment]
    return module


def _install(module: Network, trace: Trace, dial: WidthDial) -> Network:
    """Replace, in place, every traced layer that depends on the width; returns the module."""
    adopt_attention(module)
    for name, sides in trace.items():
        layer = _elastic_layer(module.get_submodule(name), sides, dial)
        if layer is not None:
            replace_layer(module, name, layer)
    for owner in {owner for owner, _ in trace.bare}:
        rules = {
            name: (bare.dim, channels)
            for (other, name), bare in trace.bare.items()
            if other == owner and (channels := _channels(bare.segments, dial)).elastic
        }
        if rules:
            narrow_parameters(module.get_submodule(owner), dial, rules)
    module.width_dial = dial  # type: ignore[assignment]
    return module


def _elastic_layer(layer: nn.Module, sides: Sides, dial: WidthDial) -> nn.Module | None:
    """The elastic layer for a plain one; None where nothing about it changes with the width."""
    inputs, outputs = _channels(sides.inputs, dial), _channels(sides.outputs, dial)
    if isinstance(layer, nn.BatchNorm2d):  # even at fixed channels its statistics depend on the width
        return _switchable_norm(layer, inputs, dial)
    if isinstance(layer, ChannelShuffle) or not (inputs.elastic or outputs.elastic):
        return None
    for plain, elastic in _ELASTIC.items():
        if isinstance(layer, plain):
            made: nn.Module = elastic(layer, dial, inputs=inputs, outputs=outputs)
            return made
    if isinstance(layer, Heads):
        return SlimHeads(layer, dial, outputs=outputs)
    if isinstance(layer, nn.GroupNorm):
        return SlimGroupNorm(layer, dial, channels=inputs)
    assert isinstance(layer, nn.LayerNorm)
    return SlimLayerNorm(layer, dial, channels=inputs, channels_first=sides.channels_first)


def _channels(segments: list[Segment], dial: WidthDial) -> Channels:
    """Segments as channel rules; neighbours that never shrink become one part."""
    parts: list[ChannelPart] = []
    for fixed, run in groupby(segments, key=lambda piece: piece.fixed):
        if fixed:
            parts.append(ChannelPart(sum(piece.size for piece in run), elastic=False))
        else:
            parts += [
                ChannelPart(piece.size, piece.unit, piece.blocks, divisor=dial.divisor, step=piece.step)
                for piece in run
            ]
    return Channels(tuple(parts))


def _switchable_norm(layer: nn.BatchNorm2d, channels: Channels, dial: WidthDial) -> SwitchableBatchNorm2d:
    then = layer.then if isinstance(layer, BatchNormThen) else None
    if isinstance(layer, BatchNormAct2d):
        then = nn.Sequential(layer.drop, layer.act)
    return SwitchableBatchNorm2d(layer, dial, channels=channels, then=then)


@torch.no_grad()
def _verify(module: nn.Module, call: Callable[[nn.Module], Iterable[Tensor]]) -> None:
    """Run every width of a throw-away copy: what the trace cannot see (a size written into the code) shows here."""
    for width in available_widths(module):
        set_width(module, width)
        watch = Watch(module)
        try:
            watch.run(lambda: list(call(module)))
        except (IndexError, RuntimeError, ValueError) as error:
            where, message = watch.where or "(the model itself)", first_line(error)
            raise ModelError(
                f"layer '{where}' cannot be slimmed to width {width:g}: {message}. "
                "A size is written into its code; derive it from the tensor's shape"
            ) from error
