"""What a search found, or why nothing is within the limits.

Usage:
    >>> raise refusal(limits, points)
    BudgetError: nothing has a p95 within 5.00 ms; the nearest is w0.25-180x240-fp32 torch 1t: p95 7.12 ms, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from litheseg.budget.candidates import Candidate, Limits, Variant
from litheseg.errors import LithesegError
from litheseg.runtime.latency import Latency
from litheseg.tables import short_number

__all__ = ["BudgetError", "Found", "Point", "keeps_class_limit", "refusal", "too_big"]


class BudgetError(LithesegError):
    """Nothing fits; the message names the nearest candidate."""


@dataclass(frozen=True)
class Point:
    """A candidate and its measurements.

    Attributes:
        candidate: which.
        times: its timings.
        miou: in [0, 1]; None where it was not measured, because its timings ruled it out.
        costs: params, macs, model_size and memory.
        worst: name and IoU of the worst class; None where that is not known.
    """

    candidate: Candidate
    times: Latency
    miou: float | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    worst: tuple[str, float] | None = None

    def to_dict(self, percentile: float) -> dict[str, Any]:
        """Flat, for JSON."""
        name, iou = self.worst or (None, None)
        known = {**self.candidate.to_dict(), "miou": self.miou, "worst_class": name, "worst_iou": iou, **self.costs}
        return {**known, **self.times.to_dict(percentile)}


@dataclass(frozen=True)
class Found:
    """The choice and the candidates it was made from.

    Attributes:
        chosen: with its fresh timings only.
        verified: it and its rivals, with their fresh timings.
        points: everything that was timed, the most accurate first.
        notes: what a user should know.
    """

    chosen: Point
    verified: tuple[Point, ...]
    points: tuple[Point, ...]
    notes: tuple[str, ...]


def keeps_class_limit(limits: Limits, worst: tuple[str, float] | None) -> bool:
    """Whether a worst class is good enough; one that is not known is only where nothing is asked."""
    if limits.min_class_iou is None:
        return True
    return worst is not None and worst[1] >= limits.min_class_iou


def refusal(limits: Limits, points: Sequence[Point]) -> BudgetError:
    """The error when nothing timed keeps the limits."""
    name = f"p{limits.percentile:g}"
    wanted = f"a {name} within {limits.available:.2f} ms"
    accurate = [point for point in points if keeps_class_limit(limits, point.worst)]
    if limits.min_class_iou is not None:
        wanted += f" and an IoU of {100 * limits.min_class_iou:.1f} % in every class"
        if not accurate:
            return _class_refusal(limits, points, wanted)
    if limits.min_miou is not None:
        wanted += f" and an mIoU of {100 * limits.min_miou:.1f} %"
        accurate = [point for point in accurate if (point.miou or 0) >= limits.min_miou]
    if not accurate:
        best = max(points, key=lambda point: point.miou or 0)
        return BudgetError(
            f"nothing has {wanted}: the most accurate is {best.candidate.name} with "
            f"{100 * (best.miou or 0):.1f} %; lower --min-miou, or train a more accurate model"
        )
    nearest = min(accurate, key=lambda point: point.times.percentile(limits.percentile))
    took = nearest.times.percentile(limits.percentile)
    accuracy = "" if nearest.miou is None else f", mIoU {100 * nearest.miou:.1f} %"
    enough = 1.05 * (took + limits.reserve)  # with some room
    return BudgetError(
        f"nothing has {wanted}; the nearest is {nearest.candidate.name}: {name} {took:.2f} ms{accuracy} "
        f"(--budget {enough:.3g}ms would do, or smaller --sizes)"
    )


def _class_refusal(limits: Limits, points: Sequence[Point], wanted: str) -> BudgetError:
    """The error when the worst class is too bad everywhere; names the best there is, within the budget if any is."""
    known = [point for point in points if point.worst is not None]
    if not known:
        return BudgetError(f"nothing has {wanted}: the IoU of classes is not known; name labelled data with --data")
    within = [point for point in known if point.times.percentile(limits.percentile) <= limits.available]
    best = max(within or known, key=lambda point: (point.worst or ("", 0.0))[1])
    name, iou = best.worst or ("", 0.0)
    return BudgetError(
        f"nothing has {wanted}: the best is {best.candidate.name}, whose worst class, {name}, has {100 * iou:.1f} % "
        f"(mIoU {100 * (best.miou or 0):.1f} %); lower --min-class-iou, raise --budget, or train with more images of it"
    )


def too_big(limits: Limits, costs: Mapping[Variant, Mapping[str, float]]) -> BudgetError:
    """The error when no network keeps the counted limits."""

    def excess(network: Variant) -> float:
        return max(costs[network][name] / getattr(limits, name) for name in limits.broken_on_paper(costs[network]))

    nearest = min(costs, key=excess)
    broken = limits.broken_on_paper(costs[nearest])
    has = ", ".join(f"{name.replace('_', '-')} {short_number(costs[nearest][name])}" for name in broken)
    asked = ", ".join(f"{name.replace('_', '-')} {short_number(getattr(limits, name))}" for name in broken)
    return BudgetError(
        f"no width and size keeps within {asked}; the nearest is {nearest.name} with {has}: raise the limit"
    )
