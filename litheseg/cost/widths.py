"""What every width of an elastic model costs on paper.

Each width is extracted first: what is counted is the plain network that is deployed, not the elastic one with its
slices. Time is not measured here (see `litheseg.runtime.profiling`).

Usage:
    >>> [cost.macs for cost in width_costs(load_bundle("model.safetensors"), size=(512, 1024))]
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from litheseg.cost.counting import count
from litheseg.errors import LithesegError
from litheseg.models.bundle import Bundle
from litheseg.nn import add_width, available_widths, extract

__all__ = ["WidthCost", "input_size", "plain_models", "width_costs", "with_widths"]

_DEFAULT_SIZE = (512, 1024)


@dataclass(frozen=True)
class WidthCost:
    """The cost of one width at one input size and batch 1.

    Attributes:
        width: fraction of channels.
        params: parameters of the plain model of this width.
        macs: multiply-accumulates of its convolutions and linear layers.
        peak_bytes: peak activation memory in float32 (definition: `litheseg.cost.counting`).
    """

    width: float
    params: int
    macs: int
    peak_bytes: int

    @classmethod
    def of(cls, width: float, network: nn.Module, size: tuple[int, int]) -> WidthCost:
        """Count a plain network."""
        cost = count(network, size)
        return cls(width, cost.params, cost.macs, cost.peak_activation_bytes)


def width_costs(
    model: Bundle | nn.Module, widths: Iterable[float] | None = None, size: tuple[int, int] | None = None
) -> list[WidthCost]:
    """Count a model at several widths, widest first.

    Args:
        model: a bundle, an elastic module, or a plain one (then the only width is 1). It is left as it was.
        widths: which ones, any in the trained range; None for all that are available.
        size: height and width of the input; None for the bundle's own, 512x1024 for a module.

    Raises:
        WidthError: a width outside the trained range.
        LithesegError: a size that is not positive.
    """
    size = input_size(model, size)
    return [WidthCost.of(width, network, size) for width, network in plain_models(model, widths).items()]


def input_size(model: Bundle | nn.Module, size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width to measure at: those given, else a bundle's own, else 512x1024.

    Raises:
        LithesegError: not positive.
    """
    if size is None:
        size = model.header.size if isinstance(model, Bundle) else _DEFAULT_SIZE
    if min(size) < 1:
        raise LithesegError(f"size {size} is not positive; give height and width in pixels, such as (512, 1024)")
    return size


def plain_models(model: Bundle | nn.Module, widths: Iterable[float] | None) -> dict[float, nn.Module]:
    """Plain copies by width, widest first; the caller's model is left as it was.

    Raises:
        WidthError: a width outside the trained range.
    """
    if isinstance(model, Bundle):
        model = model.model()
    chosen = available_widths(model) if widths is None else set(widths)
    if missing := set(chosen) - set(available_widths(model)):
        model = copy.deepcopy(model)
        for width in missing:  # costs do not depend on batch-norm statistics: any width between trained ones will do
            add_width(model, width)
    return {width: extract(model, width) for width in sorted(chosen, reverse=True)}


def with_widths(bundle: Bundle, widths: Iterable[float]) -> Bundle:
    """The bundle with further widths whose batch-norm statistics are interpolated: good for timing, not for labels.

    Raises:
        WidthError: a width outside the trained range.
    """
    missing = sorted(set(widths) - set(bundle.header.available_widths), reverse=True)
    if not missing:
        return bundle
    model = bundle.model()
    for width in missing:
        add_width(model, width)
    calibrated = (*bundle.header.calibrated_widths, *missing)
    return Bundle(replace(bundle.header, calibrated_widths=calibrated), model.state_dict(), bundle.path)
