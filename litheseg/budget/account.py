"""What came of a fit, for people and for programs: a table, a figure, and JSON that holds everything that was seen.

It decides nothing: `search` and `measured` do.

Usage:
    >>> account = Account(found, limits, ...)
    >>> rich.print(account.table())
    >>> account.draw(folder / "frontier.png")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from litheseg.budget.limits import Limits
from litheseg.budget.search import Found, Point
from litheseg.report.plots import FrontierPoint, frontier

__all__ = ["FIT_VERSION", "Account", "pareto"]

FIT_VERSION = 1
_MOST_ROWS = 12


@dataclass(frozen=True)
class Account:
    """A fit that succeeded.

    Attributes:
        found: the choice and everything else.
        limits: what had to hold.
        scored: where accuracies are from.
        image: height and width of the images that were timed; None where only the network was.
        host: facts of the machine that was timed.
        facts: further ones, for JSON: bundle, command, digest.
    """

    found: Found
    limits: Limits
    scored: str
    image: tuple[int, int] | None
    host: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def promise(self) -> dict[str, Any]:
        """What is promised of the choice."""
        chosen, percentile = self.found.chosen, self.limits.percentile
        times = chosen.times.to_dict(percentile)
        return {
            **chosen.candidate.to_dict(),
            "scope": times["scope"],
            "percentile": percentile,
            "fps": self.limits.fps,
            "milliseconds": times[f"p{percentile:g}_ms"],
            "upper_bound_ms": times["upper_bound_ms"],
            "p50_ms": times["p50_ms"],
            "repeats": times["repeats"],
            "miou": chosen.miou,
        }

    def sentence(self) -> str:
        """The promise in words."""
        told, name = self.promise, f"p{self.limits.percentile:g}"
        bound = f", with 95 % confidence below {told['upper_bound_ms']:.2f}" if told["upper_bound_ms"] else ""
        scope = f"{told['scope']} at {told['fps']:g} images a second" if told["fps"] else told["scope"]
        return (
            f"width {told['width']:g} at {_by(told['size'])}, {told['precision']} in {told['runtime']}, "
            f"{told['threads']} thread{'s' * (told['threads'] > 1)}: mIoU {_percent(told['miou'])} %, {scope}, "
            f"{name} {told['milliseconds']:.2f} ms{bound} ({told['repeats']} images timed)"
        )

    def table(self) -> Table:
        """The frontier that was seen: what is faster or more accurate than all others, and the choice."""
        name = f"p{self.limits.percentile:g} ms"
        table = Table(box=box.SIMPLE_HEAD, title=f"the frontier ({self.scored})", title_justify="left")
        for head in (
            "",
            "width",
            "input",
            "precision",
            "runtime",
            "threads",
            "mIoU (%)",
            "p50 ms",
            name,
            "repeats",
            "MACs",
        ):
            table.add_column(head, justify="left" if head in ("", "precision", "runtime") else "right", no_wrap=True)
        points = pareto(self._latest(), self.limits.percentile)
        shown = points if len(points) <= _MOST_ROWS else self._around(points)
        for point in shown:
            table.add_row(*self._row(point))
        return table

    def draw(self, path: Path) -> None:
        """The frontier as a figure, one line per input size and precision, the budget as a dashed line.

        Raises:
            LithesegError: the file cannot be written.
        """
        name = f"p{self.limits.percentile:g}"
        frontier(
            path,
            self._curves(),
            cost_label=f"{self.found.chosen.times.scope}, {name} in milliseconds",
            score_label="mIoU (%)",
            title=f"chosen: {self.found.chosen.candidate.name}",
            limit=(self.limits.available, f"budget {self.limits.available:g} ms"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        percentile = self.limits.percentile
        return {
            "litheseg": "fit",
            "version": FIT_VERSION,
            **self.facts,
            "limits": self.limits.to_dict(),
            "promise": self.promise,
            "image": self.image,
            "scored": self.scored,
            "host": dict(self.host),
            "verified": [point.to_dict(percentile) for point in self.found.verified],
            "points": [point.to_dict(percentile) for point in self.found.points],
            "notes": list(self.found.notes),
        }

    def _latest(self) -> list[Point]:
        """All points; those that were verified with their fresh timings."""
        fresh = {point.candidate: point for point in self.found.verified}
        return [fresh.get(point.candidate, point) for point in self.found.points]

    def _around(self, points: Sequence[Point]) -> list[Point]:
        """The rows nearest to the choice."""
        names = [point.candidate for point in points]
        middle = names.index(self.found.chosen.candidate) if self.found.chosen.candidate in names else len(points) // 2
        first = min(max(0, middle - _MOST_ROWS // 2), len(points) - _MOST_ROWS)
        return list(points[first : first + _MOST_ROWS])

    def _row(self, point: Point) -> tuple[str, ...]:
        network, percentile = point.candidate.network, self.limits.percentile
        chosen = point.candidate == self.found.chosen.candidate
        over = point.times.percentile(percentile) > self.limits.available
        return (
            "chosen" if chosen else "too slow" if over else "",
            f"{network.width:g}",
            _by(network.size),
            network.precision,
            point.candidate.runtime,
            str(point.candidate.threads),
            _percent(point.miou),
            f"{point.times.percentile(50):.2f}",
            f"{point.times.percentile(percentile):.2f}",
            str(len(point.times)),
            f"{point.costs['macs'] / 1e9:.2f} G" if "macs" in point.costs else "–",
        )

    def _curves(self) -> dict[str, list[FrontierPoint]]:
        fastest: dict[Any, Point] = {}
        for point in sorted(self._latest(), key=lambda point: point.times.percentile(self.limits.percentile)):
            if point.miou is not None:
                fastest.setdefault(point.candidate.network, point)
        curves: dict[str, list[FrontierPoint]] = {}
        for network, point in sorted(fastest.items(), key=lambda item: item[0].size, reverse=True):
            cost = point.times.percentile(self.limits.percentile)
            name = f"{_by(network.size)} {network.precision}"
            label = f"{network.width:g}x, chosen" if network == self.found.chosen.candidate.network else ""
            curves.setdefault(name, []).append(FrontierPoint(network.width, cost, point.miou or 0.0, label))
        return curves


def pareto(points: Sequence[Point], percentile: float) -> list[Point]:
    """Points than which nothing is both faster and as accurate, the fastest first."""
    result: list[Point] = []
    for point in sorted(points, key=lambda p: (p.times.percentile(percentile), -(p.miou or 0))):
        if point.miou is not None and (not result or point.miou > (result[-1].miou or 0)):
            result.append(point)
    return result


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
