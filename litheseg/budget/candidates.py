"""The candidates of a fit, the limits of a budget, and costs that are counted rather than timed.

A candidate is a network (width, input size, precision) and how it is run (runtime, number of threads).

Usage:
    >>> Limits(20.0, percentile=95, reserve=4.0, macs=1e9).available
    16.0
    >>> choices = Choices(widths=(1.0, 0.5), runtimes=("openvino",), threads=(1,))
    >>> choices.candidates((1.0,), (360, 480))[0].name
    'w1-360x480-fp32 openvino 1t'
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from litheseg.bundle.targets import TARGETS
from litheseg.cost.counting import count
from litheseg.cost.widths import plain_models
from litheseg.errors import LithesegError
from litheseg.machine import cores
from litheseg.models.bundle import Bundle
from litheseg.runtime.engines import available_runtimes
from litheseg.runtime.latency import check_percentile

__all__ = [
    "Candidate",
    "Choices",
    "Limits",
    "Variant",
    "default_sizes",
    "paper_costs",
    "scaled",
]

_SIZE_STEP = 8  # pixels; networks reduce by 8 at least, and runtimes like multiples of it
_ROUNDING = 1e-6  # of a budget given as a rate: 15fps


class Variant(NamedTuple):
    """A deployable network of a model: all that accuracy depends on."""

    width: float
    size: tuple[int, int]
    precision: str

    @property
    def name(self) -> str:
        """Short, for files and tables."""
        return f"w{self.width:g}-{self.size[0]}x{self.size[1]}-{self.precision}"


@dataclass(frozen=True, order=True)
class Candidate:
    """A network and how it is run: all that time depends on.

    Attributes:
        network: width, input size and precision.
        runtime: one of `litheseg.bundle.targets.RUNTIMES`.
        threads: of the CPU.
    """

    network: Variant
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
        network = Variant(float(content["width"]), (int(height), int(width)), str(content.get("precision", "fp32")))
        return cls(network, str(content["runtime"]), int(content["threads"]))


@dataclass(frozen=True)
class Choices:
    """What a fit may choose among; None means the defaults of `litheseg.budget.fit.fit`."""

    widths: Sequence[float] | None = None
    sizes: Sequence[tuple[int, int]] | None = None
    runtimes: Sequence[str] | None = None
    precisions: Sequence[str] | None = None
    threads: Sequence[int] | None = None

    def candidates(self, widths: Sequence[float], size: tuple[int, int]) -> tuple[Candidate, ...]:
        """All combinations; int8 only if it is the only precision, since making it takes minutes.

        Args:
            widths: of the model.
            size: that it was trained at.
        """
        wanted = self.precisions or ("fp32",)
        combinations = itertools.product(
            self.widths or widths,
            self.sizes or default_sizes(size),
            tuple(precision for precision in wanted if precision != "int8") or wanted,
            self.runtimes or [name for name in available_runtimes() if TARGETS[name].quick],
            self.threads or _default_threads(),
        )
        return tuple(
            Candidate(Variant(width, size, precision), runtime, threads)
            for width, size, precision, runtime, threads in combinations
        )

    def allow(self, candidate: Candidate) -> bool:
        """Whether a candidate is among them."""
        pairs = (
            *zip((self.widths, self.sizes, self.precisions), candidate.network, strict=True),
            (self.runtimes, candidate.runtime),
            (self.threads, candidate.threads),
        )
        return all(allowed is None or value in allowed for allowed, value in pairs)


@dataclass(frozen=True)
class Limits:
    """Limits on the choice, as in `litheseg.budget.fit.fit`; times in milliseconds, sizes in bytes.

    Raises:
        LithesegError: a number out of range.
    """

    milliseconds: float
    percentile: float = 95.0
    reserve: float = 0.0
    memory: float | None = None
    model_size: float | None = None
    macs: float | None = None
    min_miou: float | None = None
    min_class_iou: float | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        check_percentile(self.percentile)
        if not 0 <= self.reserve < self.milliseconds:
            raise LithesegError(
                f"a budget of {self.milliseconds:g} ms with {self.reserve:g} ms kept in reserve leaves nothing; "
                "give a budget above 0 and a smaller --reserve"
            )
        for option, share in (("--min-miou", self.min_miou), ("--min-class-iou", self.min_class_iou)):
            if share is not None and not 0 <= share <= 1:
                raise LithesegError(f"{option} {share:g} is outside [0, 1]; write e.g. 0.6 for 60 %")
        if self.fps is not None and not 0 < self.fps * self.milliseconds <= 1000 + _ROUNDING:
            raise LithesegError(
                f"--fps {self.fps:g} does not go with a budget of {self.milliseconds:g} ms, in which "
                f"{1000 / self.milliseconds:.3g} images a second are labelled; give that rate or a lower one"
            )

    @property
    def available(self) -> float:
        """The budget less the reserve."""
        return self.milliseconds - self.reserve

    @property
    def period(self) -> float:
        """Milliseconds from one image to the next; 0 without a frame rate."""
        return 1000 / self.fps if self.fps else 0.0

    def broken_on_paper(self, costs: Mapping[str, float]) -> tuple[str, ...]:
        """Which of the limits memory, model_size and macs these costs break.

        Args:
            costs: by the same names.
        """
        limits = {name: getattr(self, name) for name in ("memory", "model_size", "macs")}
        return tuple(name for name, limit in limits.items() if limit is not None and costs[name] > limit)

    def to_dict(self) -> dict[str, Any]:
        """The limits that are set, for JSON."""
        return {name: value for name, value in vars(self).items() if value not in (None, 0)}


def default_sizes(size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """The size that the model was trained at, three quarters and half of it, in whole multiples of 8 pixels."""
    return tuple(dict.fromkeys([size, *(scaled(size, share) for share in (0.75, 0.5))]))


def scaled(size: tuple[int, int], share: float) -> tuple[int, int]:
    """A share of a height and a width, in whole multiples of 8 pixels."""
    height, width = (max(_SIZE_STEP, round(pixels * share / _SIZE_STEP) * _SIZE_STEP) for pixels in size)
    return height, width


def _default_threads() -> tuple[int, ...]:
    return tuple(dict.fromkeys((cores(), max(1, cores() // 2), 1)))


def paper_costs(model: Bundle | nn.Module, networks: Iterable[Variant]) -> dict[Variant, dict[str, float]]:
    """Per network: params, macs, and bytes as `model_size` (of the stored weights) and `memory` (and activations).

    Memory is that of a runtime that frees eagerly and fuses nothing, see `litheseg.cost.counting`. Activations and
    weights of bf16 and fp16 take half, of int8 a quarter of float32's.

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
        cost, share = counted[network[:2]], {"fp32": 1.0, "bf16": 0.5, "fp16": 0.5, "int8": 0.25}[network.precision]
        stored = cost.params * (1 if network.precision == "int8" else 4)  # halves run the files of fp32
        active = cost.peak_activation_bytes * share + cost.params * 4 * share
        result[network] = {"params": cost.params, "macs": cost.macs, "model_size": stored, "memory": active}
    return result
