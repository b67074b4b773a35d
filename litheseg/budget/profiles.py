"""The price list of a model in real runtimes: what every width costs, counted on paper and timed end to end.

Rows are widths in runtimes and precisions. All of them take turns, so that they can be compared; milliseconds are those
of an image of the camera's size to its mask (see `timing`), stage by stage. What is counted is the plain network of the
width, as in `litheseg.cost.profile`.

It does not know accuracy, nor what a layer costs in time.

Usage:
    >>> rows, left_out = profile_runtimes(load_bundle("model.safetensors"), runtimes=("torch", "openvino"), threads=2)
    >>> rich.print(render(rows))
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from litheseg.budget.candidates import with_widths
from litheseg.bundle.exported import Export
from litheseg.cost.profile import Profile, input_size, profile
from litheseg.deploy.engines import Engine, bundle_engine, open_engine, torch_engine
from litheseg.errors import LithesegError
from litheseg.models.bundle import Bundle
from litheseg.runtime.samples import Samples
from litheseg.runtime.timing import STAGES, Pipeline, measure_stages, street_frames

__all__ = ["RuntimeProfile", "Way", "profile_runtimes", "render"]

_PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, order=True)
class Way:
    """How a width is run."""

    width: float
    runtime: str
    precision: str


@dataclass(frozen=True)
class RuntimeProfile:
    """One width in one runtime.

    Attributes:
        way: which.
        cost: what was counted; None for an export, which holds no network to count.
        stages: timings of `timing.STAGES` and "total".
    """

    way: Way
    cost: Profile | None
    stages: Mapping[str, Samples]

    def to_dict(self) -> dict[str, Any]:
        """Flat, for JSON; `p50_ms`, `p95_ms` and `mean_ms` are end to end, and each stage has its own."""
        cost = self.cost
        counted = {"params": cost.params, "macs": cost.macs, "peak_bytes": cost.peak_bytes} if cost else {}
        total = _told(self.stages["total"])
        stages = {name: _told(self.stages[name]) for name in STAGES}
        return {**vars(self.way), **counted, **total, "repeats": len(self.stages["total"]), "stages": stages}


def profile_runtimes(
    model: Bundle | Export,
    widths: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
    *,
    image: tuple[int, int] | None = None,
    runtimes: Sequence[str] = ("torch",),
    precisions: Sequence[str] = ("fp32",),
    threads: int | None = None,
    device: str = "cpu",
    repeats: int = 60,
    warmup: int = 3,
    fps: float | None = None,
    tolerant: bool = False,
) -> tuple[list[RuntimeProfile], list[str]]:
    """Count and time every width in every runtime and precision.

    Args:
        model: a bundle, or an export (then what it holds).
        widths: which ones, any in a bundle's trained range; None for all that are available.
        size: height and width of the network's input; None for the model's own.
        image: height and width of the images; None for `size`.
        runtimes: some of `litheseg.bundle.exported.RUNTIMES`.
        precisions: some of `litheseg.bundle.exported.PRECISIONS`.
        threads: of the CPU; None for each runtime's own choice.
        device: where PyTorch runs.
        repeats: timed images of each.
        warmup: untimed ones of each.
        fps: images a second, as from a camera; None for one after the other.
        tolerant: leave out what cannot run here, instead of raising.

    Returns:
        One row for each, the widest first; and why others were left out, in words.

    Raises:
        WidthError: a width that the model cannot have.
        MissingExtraError: a runtime that is not installed.
        LithesegError: what cannot be run here, or numbers out of range.
    """
    if threads is not None and threads < 1:
        raise LithesegError(f"threads is {threads}; give 1 or more")
    size = input_size(model, size) if isinstance(model, Bundle) else size or model.header.size
    model, chosen = _with(model, widths)
    ways = [Way(*parts) for parts in itertools.product(chosen, runtimes, precisions)]
    engines, left_out = _engines(model, ways, size, threads, device, tolerant)
    pipelines = {way: Pipeline(engine, size, threads) for way, engine in engines.items()}
    times = measure_stages(pipelines, street_frames(image or size), repeats=repeats, warmup=warmup, fps=fps)
    counted = profile(model, chosen, size, latency=False) if isinstance(model, Bundle) else []
    costs = {row.width: row for row in counted}
    return [RuntimeProfile(way, costs.get(way.width), stages) for way, stages in times.items()], left_out


def render(rows: Sequence[RuntimeProfile], title: str | None = None) -> Table:
    """A table, one row a width, runtime and precision; stages are medians."""
    table = Table(title=title)
    heads = ("width", "runtime", "", "params", "MACs", "peak memory", *STAGES, "p50 ms", "p95 ms", "p99 ms")
    for head in heads:
        table.add_column(head, justify="left" if head in ("runtime", "") else "right", no_wrap=True)
    for row in rows:
        cost, total = row.cost, row.stages["total"]
        counted = (
            (f"{cost.params / 1e6:.3f} M", f"{cost.macs / 1e9:.3f} G", f"{cost.peak_bytes / 2**20:.1f} MiB")
            if cost
            else ("–", "–", "–")
        )
        stages = (f"{row.stages[name].percentile(50):.2f}" for name in STAGES)
        percentiles = (f"{total.percentile(percentile):.2f}" for percentile in _PERCENTILES)
        way = row.way
        table.add_row(f"{way.width:g}", way.runtime, way.precision, *counted, *stages, *percentiles)
    return table


def _with(model: Bundle | Export, widths: Sequence[float] | None) -> tuple[Bundle | Export, tuple[float, ...]]:
    """The model with these widths, and the widths, the widest first."""
    if isinstance(model, Bundle):
        chosen = model.header.available_widths if widths is None else tuple(dict.fromkeys(widths))
        return with_widths(model, chosen), tuple(sorted(chosen, reverse=True))
    return model, tuple(sorted(widths or model.widths, reverse=True))


def _engines(
    model: Bundle | Export,
    ways: Sequence[Way],
    size: tuple[int, int],
    threads: int | None,
    device: str,
    tolerant: bool,
) -> tuple[dict[Way, Engine], list[str]]:
    engines: dict[Way, Engine] = {}
    reasons: dict[str, None] = {}
    for way in ways:
        try:
            engines[way] = _engine(model, way, size, threads, device)
        except LithesegError as error:
            if not tolerant:
                raise
            reasons[f"{way.runtime} {way.precision}: {error}"] = None
    if not engines:
        raise LithesegError("; ".join(reasons))
    return engines, list(reasons)


def _engine(model: Bundle | Export, way: Way, size: tuple[int, int], threads: int | None, device: str) -> Engine:
    if isinstance(model, Export):
        return open_engine(
            model, width=way.width, runtime=way.runtime, precision=way.precision, threads=threads, device=device
        )
    if device != "cpu" and way.runtime == "torch":
        header = model.header
        options: dict[str, Any] = {"device": device, "threads": threads, "precision": way.precision}
        return torch_engine(model.plain(way.width), header.mean, header.std, **options)
    return bundle_engine(model, way.width, way.runtime, precision=way.precision, size=size, threads=threads)


def _told(samples: Samples) -> dict[str, float]:
    shown = {f"p{percentile}_ms": round(samples.percentile(percentile), 4) for percentile in _PERCENTILES}
    return {**shown, "mean_ms": round(sum(samples.ms) / len(samples), 4)}
