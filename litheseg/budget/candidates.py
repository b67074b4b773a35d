"""The points that a fit chooses among: a width at an input size, run in one way.

It knows how they are named, listed and counted, not how they are run or timed.

Usage:
    >>> list(grid((1.0, 0.5), ((360, 480),), runtimes=("openvino",), precisions=("fp32",), threads=(1, 2)))[0].name
    'w1-360x480-fp32 openvino 1t'
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from litheseg.cost.counting import count
from litheseg.cost.widths import plain_models
from litheseg.models.bundle import Bundle

__all__ = ["Candidate", "Network", "default_sizes", "grid", "paper_costs"]

_SIZE_STEP = 8  # pixels; networks reduce by 8 at least, and runtimes like multiples of it


class Network(NamedTuple):
    """What accuracy depends on."""

    width: float
    size: tuple[int, int]
    precision: str

    @property
    def name(self) -> str:
        """Short, for files and tables."""
        return f"w{self.width:g}-{self.size[0]}x{self.size[1]}-{self.precision}"


@dataclass(frozen=True, order=True)
class Candidate:
    """What time depends on: a network, and how it is run.

    Attributes:
        network: width, input size, precision.
        runtime: one of `litheseg.bundle.exported.RUNTIMES`.
        threads: of the CPU.
    """

    network: Network
    runtime: str
    threads: int

    @property
    def name(self) -> str:
        """Short and unique."""
        return f"{self.network.name} {self.runtime} {self.threads}t"

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON."""
        return {**self.network._asdict(), "runtime": self.runtime, "threads": self.threads}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Candidate:
        """What `to_dict` gave."""
        height, width = content["size"]
        network = Network(float(content["width"]), (int(height), int(width)), str(content["precision"]))
        return cls(network, str(content["runtime"]), int(content["threads"]))


def grid(
    widths: Iterable[float],
    sizes: Sequence[tuple[int, int]],
    *,
    runtimes: Sequence[str],
    precisions: Sequence[str],
    threads: Sequence[int],
) -> Iterator[Candidate]:
    """All combinations."""
    for width, size, precision, runtime, count_ in itertools.product(widths, sizes, precisions, runtimes, threads):
        yield Candidate(Network(width, size, precision), runtime, count_)


def default_sizes(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The size that the model was trained at, three quarters and half of it, in whole multiples of 8 pixels."""
    smaller = (
        tuple(max(_SIZE_STEP, round(side * share / _SIZE_STEP) * _SIZE_STEP) for side in size) for share in (0.75, 0.5)
    )
    return tuple(dict.fromkeys([size, *((height, width) for height, width in smaller)]))


def paper_costs(model: Bundle | nn.Module, networks: Iterable[Network]) -> dict[Network, dict[str, float]]:
    """Per network: params, macs, and bytes as `model_size` (of the stored weights) and `memory` (and activations).

    Memory is that of a runtime that frees eagerly and fuses nothing, see `litheseg.cost.counting`. Activations and
    weights of bf16 take half, of int8 a quarter of float32's.

    Args:
        model: a bundle, or the elastic model of one.
        networks: which.

    Raises:
        WidthError: a width outside the trained range.
    """
    networks = tuple(networks)
    plain = plain_models(model, {network.width for network in networks}) if networks else {}
    counted = {pair: count(plain[pair[0]], pair[1]) for pair in {network[:2] for network in networks}}
    result = {}
    for network in networks:
        cost, share = counted[network[:2]], {"fp32": 1.0, "bf16": 0.5, "int8": 0.25}[network.precision]
        stored = cost.params * (1 if network.precision == "int8" else 4)  # bf16 is a way of running fp32 files
        active = cost.peak_activation_bytes * share + cost.params * 4 * share
        result[network] = {"params": cost.params, "macs": cost.macs, "model_size": stored, "memory": active}
    return result
