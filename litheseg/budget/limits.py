"""What a model may cost: milliseconds at a percentile, and limits that can be told without a clock.

It reads what people write ("20ms", "15fps", "50MB", "1G") and knows nothing of models.

Usage:
    >>> Limits(parse_budget("50fps"), percentile=95, macs=parse_quantity("1G", "MACs")).milliseconds
    20.0
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from litheseg.errors import LithesegError
from litheseg.runtime.latency import check_percentile

__all__ = ["Limits", "parse_budget", "parse_bytes", "parse_quantity"]

_ROUNDING = 1e-6  # of a rate that was a budget: 15fps
_NUMBER = r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*"
_TIMES = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_SCALES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Limits:
    """What has to hold.

    Attributes:
        milliseconds: of one image, at `percentile`; > 0.
        percentile: in [50, 99.9].
        reserve: milliseconds of the budget that are kept for what is not measured (a camera, a bus); >= 0.
        memory: bytes of activations alive at once (`litheseg.cost`), and weights; None for any.
        model_size: bytes of the weights as stored; None for any.
        macs: multiply-accumulates; None for any.
        params: parameters; None for any.
        min_miou: below which a model is of no use, in [0, 1]; None for any.
        fps: images a second that come, at which the milliseconds have to hold; None where one follows the other at
            once.

    Raises:
        LithesegError: a number out of range.
    """

    milliseconds: float
    percentile: float = 95.0
    reserve: float = 0.0
    memory: float | None = None
    model_size: float | None = None
    macs: float | None = None
    params: float | None = None
    min_miou: float | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        check_percentile(self.percentile)
        if not 0 <= self.reserve < self.milliseconds:
            raise LithesegError(
                f"a budget of {self.milliseconds:g} ms with {self.reserve:g} ms kept in reserve leaves nothing; "
                "give a budget above 0 and a smaller --reserve"
            )
        if self.min_miou is not None and not 0 <= self.min_miou <= 1:
            raise LithesegError(f"--min-miou {self.min_miou:g} is outside [0, 1]; write e.g. 0.6 for 60 %")
        if self.fps is not None and not 0 < self.fps * self.milliseconds <= 1000 + _ROUNDING:
            raise LithesegError(
                f"--fps {self.fps:g} does not go with a budget of {self.milliseconds:g} ms, in which "
                f"{1000 / self.milliseconds:.3g} images a second are labelled; give that rate or a lower one"
            )

    @property
    def available(self) -> float:
        """Milliseconds for what is measured."""
        return self.milliseconds - self.reserve

    @property
    def period(self) -> float:
        """Milliseconds from one image to the next; 0 where one follows the other at once."""
        return 1000 / self.fps if self.fps else 0.0

    def broken_on_paper(self, costs: Mapping[str, float]) -> tuple[str, ...]:
        """Which limits these costs break: names among memory, model_size, macs, params.

        Args:
            costs: by the same names.
        """
        limits = {name: getattr(self, name) for name in ("memory", "model_size", "macs", "params")}
        return tuple(name for name, limit in limits.items() if limit is not None and costs[name] > limit)

    def to_dict(self) -> dict[str, Any]:
        """What was set."""
        return {name: value for name, value in vars(self).items() if value not in (None, 0)}


def parse_budget(text: str) -> float:
    """Milliseconds of ``20ms``, ``0.05s`` or ``15fps``.

    Raises:
        LithesegError: no unit, an unknown one, or no number above 0.
    """
    found = re.fullmatch(_NUMBER + r"([a-zµ]*)", text.strip().lower())
    value, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if found and value > 0 and (unit in _TIMES or unit == "fps"):
        return 1e3 / value if unit == "fps" else value * _TIMES[unit]
    problem = "has no unit" if found and not unit else "is no time"
    raise LithesegError(f"budget '{text}' {problem}; write a time such as 20ms or a rate such as 15fps")


def parse_bytes(text: str) -> float:
    """Bytes of ``50MB`` (10^6) or ``50MiB`` (2^20).

    Raises:
        LithesegError: no unit, an unknown one, or no number above 0.
    """
    return _parse(text, _BYTES, "a size in bytes such as 50MB or 800KiB")


def parse_quantity(text: str, what: str) -> float:
    """A number such as ``1G``, ``500M`` or ``2e9``.

    Raises:
        LithesegError: something else.
    """
    return _parse(text, _SCALES, f"a number of {what} such as 1G or 500M")


def _parse(text: str, units: Mapping[str, float], wanted: str) -> float:
    found = re.fullmatch(_NUMBER + r"([a-z]*)", text.strip().lower())
    if not found or found[2] not in units or float(found[1]) <= 0:
        raise LithesegError(f"'{text}' is not understood; write {wanted}")
    return float(found[1]) * units[found[2]]
