"""What grouped convolutions save: a network beside the same one with dense convolutions, counted and timed together.

In the dense copy every grouped convolution, depthwise ones included, has one group, and channel shuffles, which only
groups need, are left out. Its weights are random: it has a cost and no accuracy. Grouped and dense networks of all
widths are timed in turns, so that a busy machine slows both alike.

Usage:
    >>> pairs = compare_dense(load_bundle("grouped.safetensors"), size=(360, 480), threads=1)
    >>> pairs[0].ratio["macs"], pairs[0].ratio["p50_ms"]  # so many times fewer and faster
    (4.0, 1.3)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from litheseg.cost.counting import LayerCost, layer_table
from litheseg.cost.widths import WidthCost, input_size, plain_models
from litheseg.errors import LithesegError, ModelError
from litheseg.machine import interleave
from litheseg.models.bundle import Bundle
from litheseg.models.inference import evaluating, threads_limited
from litheseg.nn.grouping import ChannelShuffle
from litheseg.nn.watching import image_channels
from litheseg.progress import work
from litheseg.runtime.latency import Latency, Scope

__all__ = ["LayerPair", "Pair", "compare_dense", "dense_copy", "layer_pairs"]


@dataclass(frozen=True)
class Pair:
    """One width as it is and with its grouped convolutions dense.

    Attributes:
        dense: the fields of `WidthCost`, and, if timed, `p50_ms` and `p95_ms` of the network alone.
        grouped: likewise.
    """

    dense: Mapping[str, float]
    grouped: Mapping[str, float]

    @property
    def ratio(self) -> dict[str, float]:
        """Dense over grouped, by name of what was counted or timed: above 1 is saved."""
        names = [name for name in self.grouped if name != "width"]
        return {name: self.dense[name] / self.grouped[name] for name in names if self.grouped[name]}

    def to_dict(self) -> dict[str, Any]:
        """The fields of the grouped side, `dense` and `ratio`; milliseconds are the network's."""
        return {**self.grouped, "dense": dict(self.dense), "ratio": self.ratio, "scope": Scope.NETWORK}


@dataclass(frozen=True)
class LayerPair:
    """One layer as it is and as the dense copy has it."""

    grouped: LayerCost
    dense: LayerCost

    def to_dict(self) -> dict[str, Any]:
        """The fields of the grouped layer, and `dense`: parameters and MACs."""
        return {**asdict(self.grouped), "dense": {"params": self.dense.params, "macs": self.dense.macs}}


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
    networks = [(width, side) for width, network in grouped.items() for side in (dense_copy(network), network)]
    sides: list[dict[str, float]] = [asdict(WidthCost.of(*network, size)) for network in networks]
    if latency:
        times = _timed([network for _, network in networks], size, repeats, device, threads)
        for side, latencies in zip(sides, times, strict=True):
            side |= {f"p{percentile}_ms": latencies.percentile(percentile) for percentile in (50, 95)}
    return [Pair(*pair) for pair in zip(sides[::2], sides[1::2], strict=True)]


def dense_copy(module: nn.Module) -> nn.Module:
    """A copy without channel shuffles whose grouped `nn.Conv2d`s are dense, with random weights."""
    dense = copy.deepcopy(module)
    random = torch.Generator().manual_seed(0)  # of its own: measuring must not disturb that of a training run
    for layer in _grouped_layers(dense):
        inputs = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        shape = (layer.out_channels, layer.in_channels, *layer.kernel_size)
        weight = torch.randn(shape, generator=random) / inputs**0.5  # neither vanishing nor huge: kernels may slow down
        layer.weight = nn.Parameter(weight.to(layer.weight), layer.weight.requires_grad)
        layer.groups = 1
    for name, child in list(dense.named_modules()):
        if isinstance(child, ChannelShuffle):
            dense.set_submodule(name, nn.Identity())
    return dense


def layer_pairs(module: nn.Module, size: tuple[int, int]) -> tuple[LayerPair, ...]:
    """The rows of `layer_table` for a plain network at an image size, each beside that of the dense copy."""
    dense = {layer.name: layer for layer in layer_table(dense_copy(module), size)}
    return tuple(LayerPair(row, dense[row.name]) for row in layer_table(module, size))


def _grouped_layers(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]


def _timed(
    networks: list[nn.Module], size: tuple[int, int], repeats: int, device: str, threads: int | None
) -> list[Latency]:
    """Latencies of the networks alone, timed in turns."""
    if repeats < 1 or (threads is not None and threads < 1):
        raise LithesegError(f"timing needs repeats >= 1 and threads >= 1, not {repeats} and {threads}")
    image = torch.randn(1, image_channels(networks[0]), *size, generator=torch.Generator().manual_seed(0)).to(device)

    def one_pass(network: nn.Module) -> Callable[[], None]:
        def run() -> None:
            network(image)
            if image.device.type == "cuda":
                torch.cuda.synchronize(image.device)

        return run

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(threads_limited(threads))
        placed = [stack.enter_context(evaluating(network.to(device))) for network in networks]
        turns = stack.enter_context(work(f"timing {len(placed)} networks, {repeats} passes each", still=True))
        calls = {index: one_pass(network) for index, network in enumerate(placed)}
        times: dict[int, list[float]] = interleave(calls, repeats, turned=turns.show)
    return [Latency(Scope.NETWORK, times[index]) for index in range(len(networks))]
