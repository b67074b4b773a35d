"""Profile every width of a model: count parameters, MACs and memory, and time it end to end in each runtime.

Rows are widths in runtimes and precisions. All of them take turns, so that they can be compared; milliseconds are those
of an image of the camera's size to its mask, stage by stage (`latency`). What is counted is the plain network of a
width; an export holds none, and is only timed.

Usage:
    >>> rows = profile("exports/street", runtimes=("onnxruntime", "openvino"), threads=2)
    >>> rows[0].latency[Scope.NETWORK].percentile(50), rows[0].latency[Scope.END_TO_END].percentile(50)
    (3.1, 4.4)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from litheseg.bundle.exported import Export, is_export, load_export
from litheseg.bundle.targets import PRECISIONS, RUNTIMES
from litheseg.errors import LithesegError
from litheseg.lazy import workstation
from litheseg.runtime.engines import Engine, open_engine
from litheseg.runtime.latency import Latency, Scope, Stages, measure, street_frames
from litheseg.runtime.pipeline import STAGES, Pipeline
from litheseg.tables import Table
from litheseg.values import Size, Widths

__all__ = ["Profile", "Profiled", "profile", "profile_table"]

_PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Profile:
    """One width in one runtime.

    Attributes:
        width: fraction of channels.
        runtime: that ran it.
        precision: in which.
        latency: milliseconds by scope: of each stage and end to end.
        params: parameters of the plain model of this width; None for an export, which holds nothing to count.
        macs: multiply-accumulates of its convolutions and linear layers, likewise.
        peak_bytes: peak activation memory in float32 (definition: `litheseg.cost.counting`), likewise.
    """

    width: float
    runtime: str
    precision: str
    latency: Stages
    params: int | None = None
    macs: int | None = None
    peak_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: a latency stands under the name of its scope."""
        counted = {name: getattr(self, name) for name in ("params", "macs", "peak_bytes")}
        names = {"width": self.width, "runtime": self.runtime, "precision": self.precision}
        times = {str(scope).replace(" ", "_"): _summary(self.latency[scope]) for scope in reversed(Scope)}
        known = {name: value for name, value in counted.items() if value is not None}
        return {**names, **known, "repeats": len(self.latency[Scope.END_TO_END]), **times}


def profile_table(rows: Sequence[Profile]) -> Table:
    """One row each; times are milliseconds, those of stages medians. What was not counted has no column."""
    counted: dict[str, list[str]] = {
        "params": [_scaled(row.params, 1e6, " M") for row in rows],
        "MACs": [_scaled(row.macs, 1e9, " G") for row in rows],
        "peak memory": [_scaled(row.peak_bytes, 2**20, " MiB", 1) for row in rows],
    }
    columns = {"width": [f"{row.width:g}" for row in rows]}
    columns |= {"runtime": [row.runtime for row in rows], "precision": [row.precision for row in rows]}
    columns |= {name: cells for name, cells in counted.items() if any(cells)}
    columns |= {name: [f"{row.latency[Scope(name)].percentile(50):.2f}" for row in rows] for name in STAGES}
    for percentile in _PERCENTILES:
        name = f"{Scope.END_TO_END} p{percentile}"
        columns[name] = [f"{row.latency[Scope.END_TO_END].percentile(percentile):.2f}" for row in rows]
    return Table(tuple(columns), tuple(zip(*columns.values(), strict=True)))


@dataclass(frozen=True)
class Profiled:
    """A model that can be profiled.

    Attributes:
        widths: to time, the widest first.
        size: height and width of the network's input.
        open: (width, runtime, precision) -> an engine.
        counted: by width: fields of `Profile` that are counted.
    """

    widths: tuple[float, ...]
    size: Size
    open: Callable[[float, str, str], Engine]
    counted: Mapping[float, Mapping[str, int]]


def profile(
    model: Any,
    widths: Widths | None = None,
    size: Size | None = None,
    *,
    image: Size | None = None,
    runtimes: Sequence[str] | Literal["all"] | None = None,
    precisions: Sequence[str] | Literal["all"] = ("fp32",),
    threads: int | None = None,
    device: str = "cpu",
    channels_last: bool = False,
    repeats: int = 60,
    warmup: int = 3,
    fps: float | None = None,
    left_out: Callable[[str], object] | None = None,
) -> list[Profile]:
    """Count and time every width in every runtime and precision.

    Args:
        model: an export or a model file, its path, or a `torch.nn.Module` (elastic, or plain: then its width is 1).
        widths: which ones, any in a model file's trained range; None for all that are available.
        size: height and width of the network's input; None for the model's own, 512x1024 of a module.
        image: height and width of the images; None for `size`.
        runtimes: some of `litheseg.bundle.targets.RUNTIMES`; "all" for those that may run the model; None for PyTorch,
            or, of an export, one that takes it.
        precisions: some of `litheseg.bundle.targets.PRECISIONS`, or "all".
        threads: of the CPU; None for each runtime's own choice.
        device: where PyTorch runs.
        channels_last: run PyTorch in this memory format.
        repeats: timed images of each.
        warmup: untimed images of each.
        fps: images a second, as from a camera; None for one after the other.
        left_out: called, for what cannot run here and is left out, with the reason; None to raise instead.

    Returns:
        One row for each, the widest first.

    Raises:
        WidthError: a width that the model cannot have.
        MissingExtraError: a runtime that is not installed, or PyTorch, where it is needed.
        LithesegError: what cannot be run here, or numbers out of range.
    """
    if threads is not None and threads < 1:
        raise LithesegError(f"threads is {threads}; give 1 or more")
    if isinstance(model, (str, Path)) and is_export(model):
        model = load_export(model)
    if isinstance(model, Export):
        subject, known = _export(model, widths, size, threads, device), model.runtimes
    else:
        subject, known = (
            workstation("deploy.profiled", "profiling a model file").profiled(
                model, widths, size, threads=threads, device=device, channels_last=channels_last
            ),
            RUNTIMES,
        )
    rows = itertools.product(
        subject.widths,
        known if runtimes == "all" else runtimes or ("",),
        PRECISIONS if precisions == "all" else precisions,
    )
    engines = _opened(subject, rows, left_out)
    pipelines = {row: Pipeline(engine, subject.size, threads) for row, engine in engines.items()}
    frames = street_frames(image or subject.size, images=next(iter(engines.values())).images)
    times = measure(pipelines, frames, repeats=repeats, warmup=warmup, fps=fps)
    return [
        Profile(width, engines[width, runtime, precision].runtime, precision, stages, **subject.counted.get(width, {}))
        for (width, runtime, precision), stages in times.items()
    ]


def _export(
    export: Export, widths: Sequence[float] | None, size: Size | None, threads: int | None, device: str
) -> Profiled:
    def opened(width: float, runtime: str, precision: str) -> Engine:
        return open_engine(
            export, width=width, runtime=runtime or None, precision=precision, threads=threads, device=device
        )

    fixed = {artefact.size for artefact in export.artefacts} - {None}
    own = next(iter(fixed)) if len(fixed) == 1 else None
    return Profiled(tuple(sorted(widths or export.widths, reverse=True)), size or own or export.header.size, opened, {})


def _opened(
    subject: Profiled, rows: Iterable[tuple[float, str, str]], left_out: Callable[[str], object] | None
) -> dict[tuple[float, str, str], Engine]:
    """The engine of each width, runtime and precision; those that cannot run here are reported to `left_out`."""
    engines: dict[tuple[float, str, str], Engine] = {}
    reasons: dict[str, None] = {}
    for row in rows:
        try:
            engines[row] = subject.open(*row)
        except LithesegError as error:
            if left_out is None:
                raise
            reasons[f"{row[1]} {row[2]}: {error}"] = None
    if not engines:
        raise LithesegError("; ".join(reasons))
    for reason in reasons:
        left_out(reason)  # type: ignore[misc]
    return engines


def _summary(latency: Latency) -> dict[str, float]:
    shown = {f"p{percentile}_ms": round(latency.percentile(percentile), 4) for percentile in _PERCENTILES}
    return {**shown, "mean_ms": round(sum(latency.ms) / len(latency), 4)}


def _scaled(value: float | None, unit: float, name: str, digits: int = 3) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}{name}"
