"""What grouped convolutions save: a network beside itself with dense ones, counted and timed in the same run.

The dense twin has the same layers, but every grouped convolution, depthwise ones included, has one group, and channel
shuffles, which only groups need, are left out. Its weights are random: it has a cost and no accuracy. Grouped and dense
networks of all widths take turns, so a busy machine slows both alike.

It does not know how the network came to be grouped, nor what grouping costs in accuracy.

Usage:
    >>> pairs = compare_dense(load_bundle("grouped.safetensors"), size=(360, 480), threads=1)
    >>> pairs[0].ratio["macs"], pairs[0].ratio["p50_ms"]  # so many times fewer and faster
    (4.0, 1.3)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import nn

from litheseg.cost.counting import Layer, layer_table
from litheseg.cost.widths import WidthCost, input_size, plain_models
from litheseg.errors import LithesegError, ModelError
from litheseg.models.bundle import Bundle
from litheseg.models.inference import evaluating, threads_limited
from litheseg.nn.grouping import ChannelShuffle
from litheseg.runtime.latency import Latency, Scope
from litheseg.runtime.standalone import interleave

__all__ = ["LayerPair", "Pair", "Side", "compare_dense", "dense_twin", "layer_pairs", "render_pairs"]

_QUANTITIES: dict[str, tuple[str, Callable[[float], str]]] = {
    "params": ("params", lambda value: f"{value / 1e6:.3f} M"),
    "macs": ("MACs", lambda value: f"{value / 1e9:.3f} G"),
    "peak_bytes": ("peak memory", lambda value: f"{value / 2**20:.1f} MiB"),
    "p50_ms": ("p50 ms (network)", lambda value: f"{value:.2f}"),
    "p95_ms": ("p95 ms (network)", lambda value: f"{value:.2f}"),
}


@dataclass(frozen=True)
class Side:
    """One network: what was counted, and, where it was timed, the latency of the network alone."""

    cost: WidthCost
    latency: Latency | None = None

    def to_dict(self) -> dict[str, float]:
        """Flat: the fields of `WidthCost`, and `p50_ms` and `p95_ms` of the network."""
        times = {} if self.latency is None else {f"p{name}_ms": self.latency.percentile(name) for name in (50, 95)}
        return {**asdict(self.cost), **times}


@dataclass(frozen=True)
class Pair:
    """One width as it is and with its grouped convolutions dense."""

    dense: Side
    grouped: Side

    @property
    def ratio(self) -> dict[str, float]:
        """Dense over grouped, by name of what was counted or timed: above 1 is saved."""
        dense, grouped = self.dense.to_dict(), self.grouped.to_dict()
        return {name: dense[name] / grouped[name] for name in _QUANTITIES if dense.get(name) and grouped.get(name)}

    def to_dict(self) -> dict[str, Any]:
        """The grouped side, as if it stood alone, `dense` and `ratio`; milliseconds are the network's."""
        return {**self.grouped.to_dict(), "dense": self.dense.to_dict(), "ratio": self.ratio, "scope": Scope.NETWORK}


@dataclass(frozen=True)
class LayerPair:
    """One layer, grouped as it is, and what it has when dense."""

    grouped: Layer
    dense_params: int
    dense_macs: int

    def to_dict(self) -> dict[str, Any]:
        """The fields of the grouped `Layer`, as if it stood alone, and `dense`: its parameters and MACs."""
        return {**asdict(self.grouped), "dense": {"params": self.dense_params, "macs": self.dense_macs}}


def compare_dense(
    model: Bundle | nn.Module,
    widths: Iterable[float] | None = None,
    size: tuple[int, int] | None = None,
    *,
    latency: bool = True,
    repeats: int = 60,
    device: str = "cpu",
    threads: int | None = None,
) -> list[Pair]:
    """Count and time a model and itself with dense convolutions at several widths, widest first, all interleaved.

    Args:
        model: as of `width_costs`. It is left as it was.
        widths: which ones.
        size: height and width of the input.
        latency: False counts only.
        repeats: timed passes of each network, >= 1.
        device: where PyTorch runs.
        threads: of the CPU; None leaves PyTorch's as they are.

    Raises:
        ModelError: the model has no grouped convolution.
        WidthError: a width outside the trained range.
        LithesegError: a number out of range.
    """
    size = input_size(model, size)
    grouped = plain_models(model, widths)
    if not any(_grouped_layers(network) for network in grouped.values()):
        name = model.path if isinstance(model, Bundle) and model.path else "the model"
        raise ModelError(
            f"{name} has no grouped convolutions to compare with dense ones; erfnet-d* and erfnet-dg4* have some, and "
            "so has any model trained with --model.efficient.groups 4; or leave out --dense"
        )
    networks = [(width, side) for width, network in grouped.items() for side in (dense_twin(network), network)]
    times = _timed([network for _, network in networks], size, repeats, device, threads) if latency else {}
    sides = [Side(WidthCost.of(*network, size), times.get(index)) for index, network in enumerate(networks)]
    return [Pair(*pair) for pair in zip(sides[::2], sides[1::2], strict=True)]


def dense_twin(module: nn.Module) -> nn.Module:
    """A copy without channel shuffles whose grouped `nn.Conv2d`s are dense, with random weights."""
    twin = copy.deepcopy(module)
    random = torch.Generator().manual_seed(0)  # an own one: measuring must not disturb that of a training run
    for layer in _grouped_layers(twin):
        inputs = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        shape = (layer.out_channels, layer.in_channels, *layer.kernel_size)
        weight = torch.randn(shape, generator=random) / inputs**0.5  # neither vanishing nor huge: kernels may slow down
        layer.weight = nn.Parameter(weight.to(layer.weight), layer.weight.requires_grad)
        layer.groups = 1
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, ChannelShuffle):
                setattr(parent, name, nn.Identity())
    return twin


def layer_pairs(module: nn.Module, size: tuple[int, int]) -> tuple[LayerPair, ...]:
    """The rows of `layer_table`, each with the parameters and MACs that it has in the dense twin.

    Args:
        module: plain.
        size: height and width of the image in pixels.
    """
    dense = {layer.name: layer for layer in layer_table(dense_twin(module), size)}
    rows = layer_table(module, size)
    return tuple(LayerPair(row, dense[row.name].params, dense[row.name].macs) for row in rows)


def render_pairs(pairs: Sequence[Pair], title: str | None = None) -> Table:
    """A table with a block of rows per width: what is measured, dense, grouped, and dense over grouped."""
    table = Table(title=title)
    for name in ("width", "", "dense", "grouped", "dense / grouped"):
        table.add_column(name, justify="right" if name else "left")
    for pair in pairs:
        width = f"{pair.grouped.cost.width:g}"
        for name, (label, show) in _QUANTITIES.items():
            sides = (pair.dense.to_dict().get(name), pair.grouped.to_dict().get(name))
            cells = ["-" if value is None else show(value) for value in sides]
            ratio = f"{pair.ratio[name]:.2f}x" if name in pair.ratio else "-"
            table.add_row(width, label, *cells, ratio, end_section=name == list(_QUANTITIES)[-1])
            width = ""
    return table


def _grouped_layers(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]


def _timed(
    networks: Sequence[nn.Module], size: tuple[int, int], repeats: int, device: str, threads: int | None
) -> dict[int, Latency]:
    """Latencies of networks alone, by their place, all of them in turns."""
    if repeats < 1 or (threads is not None and threads < 1):
        raise LithesegError(f"timing needs repeats >= 1 and threads >= 1, not {repeats} and {threads}")
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(threads_limited(threads))
        placed = [stack.enter_context(evaluating(network.to(device))) for network in networks]
        calls = {index: partial(_pass, network, image) for index, network in enumerate(placed)}
        times: dict[int, list[float]] = interleave(calls, repeats)
    return {index: Latency(Scope.NETWORK, values) for index, values in times.items()}


def _pass(network: nn.Module, image: torch.Tensor) -> None:
    network(image)
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)
