"""A fit that succeeded: the promise, the frontier around it, and the files that are written.

Usage:
    >>> result = fit("model.safetensors", budget=20.0, output="deployed", data="data/camvid")
    >>> result.deployed, result.promise["milliseconds"]
    (PosixPath('deployed/export'), 14.2)
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litheseg.budget.candidates import Limits, Variant
from litheseg.budget.dense_layers import DensePlan
from litheseg.budget.found import Found, Point, keeps_class_limit
from litheseg.budget.measure import Exports
from litheseg.bundle.verdicts import hardly_found, outdone, outdone_words
from litheseg.files import write_text
from litheseg.models.bundle import BundleHeader, save_bundle
from litheseg.report.card import show_worst
from litheseg.report.plots import FrontierPoint, frontier
from litheseg.tables import Table, percent

__all__ = ["FIT_FILE", "FitResult", "pareto"]

FIT_FILE = "fit.json"
_VERSION = 1
_MOST_ROWS = 12


@dataclass(frozen=True)
class FitResult:
    """A fit that succeeded.

    Attributes:
        found: the choice and everything else.
        limits: what had to hold.
        scored: where accuracies are from.
        image: height and width of the images that were timed; None where only the network was.
        host: facts of the machine that was timed.
        folder: where it is written.
        facts: further ones, for JSON: digest of the model, its file, the command.
        header: of the model.
    """

    found: Found
    limits: Limits
    scored: str
    image: tuple[int, int] | None
    host: Mapping[str, Any]
    folder: Path
    facts: Mapping[str, Any]
    header: BundleHeader

    def __repr__(self) -> str:
        return f"{self.sentence()}\ndeploy: {self.deployed}"

    @property
    def deployed(self) -> Path:
        """What to deploy: the folder of an export, or the model file where PyTorch was chosen."""
        return self.folder / ("model.safetensors" if self.found.chosen.candidate.runtime == "torch" else "export")

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
            "worst_class": None if chosen.worst is None else chosen.worst[0],
            "worst_iou": None if chosen.worst is None else chosen.worst[1],
        }

    def sentence(self) -> str:
        """The promise in words."""
        promise, name = self.promise, f"p{self.limits.percentile:g}"
        bound = f", with 95 % confidence below {promise['upper_bound_ms']:.2f}" if promise["upper_bound_ms"] else ""
        scope = f"{promise['scope']} at {promise['fps']:g} images a second" if promise["fps"] else promise["scope"]
        worst = f" (worst class: {show_worst(self.found.chosen.worst)} %)" if self.found.chosen.worst else ""
        threads = f"{promise['threads']} thread{'s' * (promise['threads'] > 1)}"
        return (
            f"width {promise['width']:g} at {_by(promise['size'])}, {promise['precision']} in {promise['runtime']}, "
            f"{threads}: mIoU {percent(promise['miou'])} %{worst}, {scope}, {name} {promise['milliseconds']:.2f} ms"
            f"{bound} ({promise['repeats']} images timed)"
        )

    def table(self) -> Table:
        """The measured frontier around the choice: what is faster or more accurate than all others."""
        name = f"p{self.limits.percentile:g} ms"
        head = (
            *("", "width", "input", "precision", "runtime", "threads", "mIoU (%)", "worst class (%)"),
            *("p50 ms", name, "repeats", "MACs"),
        )
        points = pareto(self._worth_showing(), self.limits.percentile)
        names = [point.candidate for point in points]
        chosen = self.found.chosen.candidate
        middle = names.index(chosen) if chosen in names else len(points) // 2
        first = max(0, min(middle - _MOST_ROWS // 2, len(points) - _MOST_ROWS))
        return Table(head, tuple(self._row(point) for point in points[first : first + _MOST_ROWS]))

    def draw(self, path: Path) -> None:
        """The frontier as a figure, one line per input size and precision, the budget as a dashed line.

        Raises:
            LithesegError: the file cannot be written.
        """
        frontier(
            path,
            self._curves(),
            cost_label=f"{self.found.chosen.times.scope}, p{self.limits.percentile:g} in milliseconds",
            score_label="mIoU (%)",
            title=f"chosen: {self.found.chosen.candidate.name}",
            limit=(self.limits.available, f"budget {self.limits.available:g} ms"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        percentile = self.limits.percentile
        return {
            "litheseg": "fit",
            "version": _VERSION,
            **self.facts,
            "deploy": self.deployed.name,
            "limits": self.limits.to_dict(),
            "promise": self.promise,
            "sentence": self.sentence(),
            "image": self.image,
            "scored": self.scored,
            "host": dict(self.host),
            "verified": [point.to_dict(percentile) for point in self.found.verified],
            "points": [point.to_dict(percentile) for point in self.found.points],
            "notes": list(self.found.notes),
            "warnings": self.warnings,
        }

    def write(self, exports: Exports, plan: DensePlan | None) -> None:
        """Write what to deploy, frontier.png, plan.json of a model with grouped convolutions, and last fit.json.

        Args:
            exports: of the model.
            plan: which layers stay dense.

        Raises:
            LithesegError: the folder cannot be written to, or the export disagrees with PyTorch.
        """
        chosen = self.found.chosen.candidate
        bundle = exports.planned(chosen, exports.calibrated(chosen.network.width))
        if chosen.runtime == "torch":
            save_bundle(self.deployed, bundle.model(), bundle.header)
        else:
            exports.write(bundle, chosen, self.deployed, check=True)
        if plan is not None:
            plan.save(self.folder / "plan.json")
        self.draw(self.folder / "frontier.png")
        write_text(self.folder / FIT_FILE, json.dumps(self.to_dict(), indent=1) + "\n")

    def _latest(self) -> list[Point]:
        """All points; those that were verified with their fresh timings."""
        fresh = {point.candidate: point for point in self.found.verified}
        return [fresh.get(point.candidate, point) for point in self.found.points]

    def _worth_showing(self) -> list[Point]:
        """Without the widths that a narrower trained one outdoes at the same size and precision."""
        worse = {network for network, _ in self._outdone()}
        return [point for point in self._latest() if point.candidate.network not in worse]

    def _outdone(self) -> list[tuple[Variant, str]]:
        """Networks of widths that were not trained and score below a narrower trained one; and a sentence of each."""
        families: dict[Any, dict[float, float | None]] = defaultdict(dict)
        for point in self.found.points:
            width, size, precision = point.candidate.network
            families[size, precision][width] = point.miou
        result = []
        for (size, precision), scores in families.items():
            found = outdone(scores, self.header.widths)
            words = (f"{_by(size)} {precision}: {line}" for line in outdone_words(found, scores))
            result += [(Variant(width, size, precision), line) for width, line in zip(found, words, strict=True)]
        return result

    @property
    def warnings(self) -> list[str]:
        """What a user must not overlook: classes that the choice hardly finds, and widths that are outdone."""
        names, (worst, iou) = self.header.classes.names, self.found.chosen.worst or ("", None)
        width = self.found.chosen.candidate.network.width
        scores = {width: [iou if name == worst else None for name in names]}
        hardly = hardly_found(names, scores, self.header.provenance)
        return [f"{line}; --min-class-iou refuses such" for line in hardly] + [line for _, line in self._outdone()]

    def _row(self, point: Point) -> tuple[str, ...]:
        network, percentile = point.candidate.network, self.limits.percentile
        chosen = point.candidate == self.found.chosen.candidate
        over = point.times.percentile(percentile) > self.limits.available
        blind = not keeps_class_limit(self.limits, point.worst)
        return (
            "chosen" if chosen else "too slow" if over else "misses a class" if blind else "",
            f"{network.width:g}",
            _by(network.size),
            network.precision,
            point.candidate.runtime,
            str(point.candidate.threads),
            percent(point.miou),
            show_worst(point.worst),
            f"{point.times.percentile(50):.2f}",
            f"{point.times.percentile(percentile):.2f}",
            str(len(point.times)),
            f"{point.costs['macs'] / 1e9:.2f} G" if "macs" in point.costs else "–",
        )

    def _curves(self) -> dict[str, list[FrontierPoint]]:
        """Each network in the fastest of its runtimes, by input size and precision."""
        percentile, fastest = self.limits.percentile, dict[Variant, Point]()
        for point in sorted(self._worth_showing(), key=lambda point: point.times.percentile(percentile)):
            if point.miou is not None:
                fastest.setdefault(point.candidate.network, point)
        curves: dict[str, list[FrontierPoint]] = defaultdict(list)
        for network, point in sorted(fastest.items(), key=lambda item: item[0].size, reverse=True):
            label = f"{network.width:g}x, chosen" if network == self.found.chosen.candidate.network else ""
            took = point.times.percentile(percentile)
            shown = FrontierPoint(network.width, took, point.miou or 0.0, label, point.worst)
            curves[f"{_by(network.size)} {network.precision}"].append(shown)
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
