"""`litheseg fit`: from a model file and a budget to the most accurate deployable network within it, proven by timing.

The steps of `fit`: candidates and limits (`candidates`), running, timing and scoring them (`measure`), choosing the
best (`choose`), and writing the result.

Usage:
    >>> result = fit("model.safetensors", budget=20.0, output="deployed", data="data/camvid")
    >>> result.deployed, result.promise["milliseconds"]
    (PosixPath('deployed/export'), 14.2)
"""

from __future__ import annotations

import importlib.util
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from litheseg.budget.candidates import (
    Choices,
    Limits,
    Variant,
    paper_costs,
)
from litheseg.budget.choose import Found, Point, Search, choose_measured, keeps_class_limit
from litheseg.budget.dense_layers import DensePlan, timed_layers
from litheseg.budget.kit import read_measurements
from litheseg.budget.measure import Accuracy, Bench, Exports, Store, store_folder
from litheseg.bundle.exported import check_choice
from litheseg.bundle.targets import PRECISIONS, RUNTIMES
from litheseg.bundle.verdicts import hardly_found, outdone, outdone_words
from litheseg.errors import DataError, LithesegError
from litheseg.evaluation.bundle import open_bundle_data
from litheseg.files import write_text
from litheseg.locks import folder_lock
from litheseg.models.bundle import Bundle, BundleHeader, load_bundle, model_digest, save_bundle
from litheseg.nn import extract
from litheseg.progress import say, work
from litheseg.report.card import show_worst
from litheseg.report.plots import FrontierPoint, frontier
from litheseg.runtime.latency import street_frames
from litheseg.tables import Table
from litheseg.values import Bytes, Counts, Duration, Names, Quantity, Size, Sizes, Widths

if TYPE_CHECKING:
    from litheseg.data.datamodule import SegmentationData

__all__ = ["FIT_FILE", "FitResult", "fit", "pareto"]

FIT_FILE = "fit.json"
_VERSION = 1
_FRAMES = 4  # images that are timed
_MOST_ROWS = 12


def fit(
    model: str | Path,
    *,
    budget: Duration,
    output: str | Path,
    percentile: float = 95.0,
    reserve: Duration = 0.0,
    fps: float | None = None,
    memory: Bytes | None = None,
    model_size: Bytes | None = None,
    macs: Quantity | None = None,
    min_miou: float | None = None,
    min_class_iou: float | None = None,
    widths: Widths | None = None,
    sizes: Sizes | None = None,
    runtime: Names | None = None,
    precision: Names | None = None,
    threads: Counts | None = None,
    data: str | Path | None = None,
    source: str = "auto",
    split: str = "val",
    image: Size | None = None,
    measured: Path | None = None,
    plan: Path | None = None,
    fresh: bool = False,
    cache: Path | None = None,
    force: bool = False,
    command: str = "",
) -> FitResult:
    """Find the most accurate deployable network of a model within a budget, and write it.

    Args:
        model: an elastic model file.
        budget: milliseconds of one image, end to end; written 20ms or, as a rate, 15fps.
        output: folder of the export, fit.json and frontier.png.
        percentile: of the times, that must be within the budget, in [50, 99.9].
        reserve: milliseconds of the budget kept for what is not timed; written 3ms.
        fps: frame rate at which images come; by default one follows the other at once.
        memory: most bytes of weights and of activations alive at once; written 50MB.
        model_size: most bytes of the weights as stored; written 2MB.
        macs: most multiply-accumulates of an image; written 1G.
        min_miou: refuse less, in [0, 1].
        min_class_iou: choose nothing whose worst class has a lower IoU, in [0, 1].
        widths: to choose among; by default those of the model, and between them where that may pay.
        sizes: heights and widths of the network's input; by default the training size, 3/4 and 1/2 of it.
        runtime: to choose among, or all; by default those that are installed.
        precision: to choose among, or all; by default fp32, and int8 where it can be made.
        threads: numbers of CPU threads; by default all cores, half of them and one.
        data: folder of labelled images that measure accuracy; by default what the model was trained on.
        source: kind of data, auto to detect it.
        split: which images measure accuracy.
        image: height and width of the camera's images; by default those of the data.
        measured: timings of another machine, which `litheseg measure` made; by default this machine is timed.
        plan: file that says which grouped layers stay dense; by default they are timed.
        fresh: forget the timings of earlier fits.
        cache: folder of what is kept between fits; by default ~/.cache/litheseg/budget.
        force: replace a fit that is there.
        command: the shell command, for fit.json.

    Returns:
        What was found, and the folder or file to deploy.

    Raises:
        BudgetError: nothing is within the limits; names the nearest network.
        LithesegError: an argument, a file or data that cannot be used.
    """
    output = Path(output)
    if measured and plan:
        raise LithesegError("--plan does not go with --measured: a kit's networks were timed without one")
    if (output / FIT_FILE).exists() and not force:
        raise LithesegError(f"{output} holds a fit already; give another --output, or --force to replace it")
    limits = Limits(
        budget,
        percentile=percentile,
        reserve=reserve,
        memory=memory,
        model_size=model_size,
        macs=macs,
        min_miou=min_miou,
        min_class_iou=min_class_iou,
        fps=fps,
    )
    runtimes, precisions = _known(runtime, RUNTIMES, "runtime"), _known(precision, PRECISIONS, "precision")
    choices = Choices(widths, sizes, runtimes, precisions, threads)
    bundle = load_bundle(model)
    # Two fits of one model would also disturb each other's timings.
    with folder_lock(output), folder_lock(store_folder(bundle, cache)):
        store = Store.of(bundle, cache, fresh=fresh)
        dense = None if measured else _dense_plan(bundle, plan, store)
        labelled = _labelled(bundle, data, source, split)
        exports = Exports(bundle, store.exports, plan=dense, data=labelled, split=split)
        accuracy = Accuracy(exports, store)
        costs = partial(paper_costs, bundle.model())
        facts = {"model": model_digest(bundle), "bundle": str(model), "command": command}
        if measured is not None:
            timings = read_measurements(measured, facts["model"])
            limits = timings.limits(limits)
            allowed = [candidate for candidate in timings.samples if choices.allow(candidate)]
            found = choose_measured(timings, limits, accuracy, costs, allowed)
            camera, host = None, timings.host
            facts["measured"] = str(measured)
        else:
            frames = _frames(bundle, labelled, split, image)
            camera, host = (frames[0].shape[0], frames[0].shape[1]), store.host
            bench = Bench(exports.engine, frames, store, fps=fps, plan=plan)
            int8 = _wants_int8(choices) and exports.calibrates
            say(f"budget   {limits.available:g} ms for p{percentile:g} of images of {_by(frames[0].shape)}")
            say(f"machine  {host['cpu']}, {host['cores']} cores")
            say(f"scored   {accuracy.origin}")
            search = Search(limits, bench, accuracy, costs, refine=widths is None, int8=int8)
            size = bundle.header.size if bundle.header.resizes else camera
            found = search.run(choices.candidates(bundle.header.available_widths, size))
        result = FitResult(found, limits, accuracy.origin, camera, host, output, facts, bundle.header)
        with work("writing the choice"):
            result.write(exports, dense)
    return result


def _known(names: Sequence[str] | None, known: Sequence[str], what: str) -> Sequence[str] | None:
    """The names, of which each must be known; all of them for "all"."""
    if names is not None and list(names) == ["all"]:
        return known
    for name in names or ():
        check_choice(what, name, known)
    return names


def _dense_plan(bundle: Bundle, file: Path | None, store: Store) -> DensePlan | None:
    """The plan of a model with grouped convolutions: the one given, that of earlier fits, or an empty one."""
    if not timed_layers(extract(bundle.model(), bundle.header.available_widths[0])):
        return None
    digest = model_digest(bundle)
    if file is not None:
        return DensePlan.load(file, digest)
    try:
        return DensePlan.load(store.plan_file, digest, file=store.plan_file)
    except LithesegError:  # none yet
        return DensePlan(digest, file=store.plan_file)


def _labelled(bundle: Bundle, data: str | Path | None, source: str, split: str) -> SegmentationData | None:
    """Labelled images; None where no folder is named and the model's own data is not here.

    Raises:
        DataError: data that was named and cannot be used.
    """
    try:
        opened = open_bundle_data(bundle, data, source=source, split=split)
        opened.source.samples(split)
    except DataError:
        if data is not None or source != "auto":
            raise
        return None
    return opened


def _frames(
    bundle: Bundle, labelled: SegmentationData | None, split: str, image: tuple[int, int] | None
) -> list[np.ndarray]:
    """Images of the camera's size: some of those that are scored; or rendered streets."""
    if labelled is None or image is not None:
        return street_frames(image or bundle.header.size, images=bundle.header.images)
    samples = labelled.source.samples(split)
    images = [labelled.source.read_image(sample) for sample in samples[:: max(1, len(samples) // _FRAMES)][:_FRAMES]]
    return [frame for frame in images if frame.shape == images[0].shape]


def _wants_int8(choices: Choices) -> bool:
    wanted = choices.precisions is None or "int8" in choices.precisions
    return wanted and importlib.util.find_spec("nncf") is not None


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
            f"{threads}: mIoU {_percent(promise['miou'])} %{worst}, {scope}, {name} {promise['milliseconds']:.2f} ms"
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
            _percent(point.miou),
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


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"
