"""The price list of an elastic model: what every width costs on paper and on this machine.

Each width is extracted first: what is counted and timed is the plain network that gets deployed, not the elastic one
with its slices. It does not know accuracy (see `litheseg.evaluation`), which width fits a latency budget, nor what
the same network would cost with dense convolutions (see `side_by_side`).

Usage:
    >>> profiles = profile(load_bundle("model.safetensors"), size=(512, 1024), threads=1)
    >>> rich.print(render(profiles))
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from litheseg.cost.counting import Cost, Layer, count, layer_table
from litheseg.cost.latency import Latency, measure_latency
from litheseg.errors import LithesegError
from litheseg.models.bundle import Bundle
from litheseg.nn import add_width, available_widths, extract

__all__ = [
    "Cost",
    "Layer",
    "Profile",
    "count",
    "input_size",
    "layer_table",
    "plain_models",
    "profile",
    "profile_networks",
    "render",
]

_DEFAULT_SIZE = (512, 1024)


@dataclass(frozen=True)
class Profile:
    """The cost of one width at one input size and batch 1.

    Attributes:
        width: fraction of channels.
        params: parameters of the plain model of this width.
        macs: multiply-accumulates of its convolutions and linear layers.
        peak_bytes: peak activation memory in float32 (definition: `litheseg.cost.counting`).
        p50_ms: median latency in milliseconds; None where it was not measured.
        p95_ms: 95th percentile, likewise.
        mean_ms: mean, likewise.
    """

    width: float
    params: int
    macs: int
    peak_bytes: int
    p50_ms: float | None = None
    p95_ms: float | None = None
    mean_ms: float | None = None


def profile(
    model: Bundle | nn.Module,
    widths: Iterable[float] | None = None,
    size: tuple[int, int] | None = None,
    *,
    latency: bool = True,
    repeats: int = 20,
    warmup: int = 3,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    channels_last: bool = False,
) -> list[Profile]:
    """Count and time a model at several widths, widest first.

    Args:
        model: a bundle, an elastic module, or a plain one (then the only width is 1). It is left as it was.
        widths: which ones, any in the trained range; None for all that are available.
        size: height and width of the input; None for the bundle's own, 512x1024 for a module.
        latency: False counts only.
        repeats: timed passes per width.
        warmup: untimed passes per width.
        device: where to measure.
        threads: intra-op CPU threads while measuring; None leaves them as they are.
        channels_last: measure in this memory format, which is often the faster one on CPU and tensor cores.

    Raises:
        WidthError: a width outside the trained range.
        LithesegError: a number out of range.
    """
    size = input_size(model, size)
    return profile_networks(
        list(plain_models(model, widths).items()),
        size,
        latency=latency,
        repeats=repeats,
        warmup=warmup,
        device=device,
        threads=threads,
        channels_last=channels_last,
    )


def profile_networks(
    networks: Sequence[tuple[float, nn.Module]],
    size: tuple[int, int],
    *,
    latency: bool = True,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
    **measuring: Any,
) -> list[Profile]:
    """Count and time plain networks in turn, in the order given; they are moved to `device` and its memory format.

    Args:
        networks: with the width that each is of.
        size: height and width of the input.
        latency: False counts only.
        device: where to measure.
        channels_last: measure in this memory format.
        **measuring: further arguments of `measure_latency`.
    """
    costs = [count(network, size) for _, network in networks]
    measured: dict[str, Latency] = {}
    if latency:
        placed = {str(index): _placed(network, device, channels_last) for index, (_, network) in enumerate(networks)}
        measured = measure_latency(placed, size, device=device, channels_last=channels_last, **measuring)
    rows = enumerate(zip(networks, costs, strict=True))
    return [_profile(width, cost, measured.get(str(index))) for index, ((width, _), cost) in rows]


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
    """Plain copies by width, widest first: what is done to them is not done to the caller's.

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


def render(profiles: Sequence[Profile], title: str | None = None) -> Table:
    """A table of profiles, one row a width; the relative columns refer to the first row."""
    table = Table(title=title)
    for name in ("width", "params", "MACs", "vs first", "peak memory", "p50 ms", "p95 ms"):
        table.add_column(name, justify="right")
    for row in profiles:
        table.add_row(
            f"{row.width:g}",
            f"{row.params / 1e6:.3f} M",
            f"{row.macs / 1e9:.3f} G",
            f"{row.macs / profiles[0].macs:.2f}x" if profiles[0].macs else "-",
            f"{row.peak_bytes / 2**20:.1f} MiB",
            *("-" if value is None else f"{value:.2f}" for value in (row.p50_ms, row.p95_ms)),
        )
    return table


def _placed(module: nn.Module, device: str | torch.device, channels_last: bool) -> nn.Module:
    module = module.to(device)
    return module.to(memory_format=torch.channels_last) if channels_last else module  # type: ignore[call-overload]


def _profile(width: float, cost: Cost, latency: Latency | None) -> Profile:
    return Profile(
        width=width,
        params=cost.params,
        macs=cost.macs,
        peak_bytes=cost.peak_activation_bytes,
        p50_ms=latency.p50 if latency else None,
        p95_ms=latency.p95 if latency else None,
        mean_ms=latency.mean if latency else None,
    )
