"""`litheseg fit`: from a model file and a budget to the most accurate deployable model within it, proven by timing.

This module puts the parts together: what there is to choose among (`candidates`), how it is made to run (`workbench`),
timed (`bench`), scored (`scores`), chosen and proven (`search`), or chosen from measurements of another machine
(`measured`); and it writes what came of it (`account`).

Usage:
    >>> job = Fit(load_bundle("model.safetensors"), Limits(parse_budget("20ms")), data="data/camvid")
    >>> account = job.run()
    >>> job.deliver(account, Path("deployed"))
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.budget.account import Account
from litheseg.budget.bench import Bench, Timer
from litheseg.budget.candidates import Candidate, Network, default_sizes, grid, paper_costs
from litheseg.budget.limits import Limits, parse_budget, parse_bytes, parse_quantity
from litheseg.budget.measured import choose_measured
from litheseg.budget.plan import Plan, load_plan
from litheseg.budget.scores import MeasuredScores, open_scores
from litheseg.budget.search import Search
from litheseg.budget.store import Store, store_folder
from litheseg.budget.target import read_measurements
from litheseg.budget.workbench import Workbench
from litheseg.bundle.exported import PRECISIONS, RUNTIMES, check_choice, file_digest
from litheseg.data import open_source
from litheseg.data.source import Source
from litheseg.deploy.export import CHECK_IMAGES
from litheseg.deploy.quantize import Quantizer, calibration_samples
from litheseg.errors import LithesegError
from litheseg.files import atomic_path
from litheseg.locks import folder_lock
from litheseg.machine import cores
from litheseg.models.bundle import Bundle, load_bundle, model_digest, save_bundle
from litheseg.nn import extract
from litheseg.nn.surgery import grouped_layers
from litheseg.runtime.engines import Engine, available_runtimes
from litheseg.runtime.latency import Latency, Scope, street_frames

__all__ = ["FIT_FILE", "Choices", "Fit", "default_threads", "fit"]

FIT_FILE, FIGURE_FILE, PLAN_FILE, MODEL_FILE = "fit.json", "frontier.png", "plan.json", "model.safetensors"

Progress = Callable[[str], None]


def fit(
    model: str | Path,
    *,
    budget: str,
    output: str | Path,
    percentile: float = 95.0,
    reserve: str | None = None,
    fps: float | None = None,
    memory: str | None = None,
    model_size: str | None = None,
    macs: str | None = None,
    min_miou: float | None = None,
    widths: tuple[float, ...] | None = None,
    sizes: tuple[tuple[int, int], ...] | None = None,
    runtime: tuple[str, ...] | None = None,
    precision: tuple[str, ...] | None = None,
    threads: tuple[int, ...] | None = None,
    data: str | Path | None = None,
    source: str = "auto",
    split: str = "val",
    image: tuple[int, int] | None = None,
    measured: Path | None = None,
    plan: Path | None = None,
    fresh: bool = False,
    cache: Path | None = None,
    force: bool = False,
    command: str = "",
    progress: Progress = lambda _: None,
) -> tuple[Account, Path]:
    """Find the most accurate deployable network of a model within a budget, and write it.

    Args:
        model: an elastic model file.
        budget: time of one image, end to end, such as 20ms, or a rate such as 15fps.
        output: folder of the export, fit.json and frontier.png.
        percentile: of the times, that must be within the budget, in [50, 99.9].
        reserve: time that is kept of the budget for what is not timed, such as 3ms.
        fps: images a second that come from a camera; by default one follows the other at once.
        memory: most bytes of weights and of activations alive at once, such as 50MB.
        model_size: most bytes of the weights as stored, such as 2MB.
        macs: most multiply-accumulates of an image, such as 1G.
        min_miou: refuse less, in [0, 1].
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
        progress: called with what is being done.

    Returns:
        What was found, and what to deploy: the folder of the export, or the model file.

    Raises:
        BudgetError: nothing is within the limits; names the nearest network.
        LithesegError: an argument, a file or data that cannot be used.
    """
    output = Path(output)
    if (output / FIT_FILE).exists() and not force:
        raise LithesegError(f"{output} holds a fit already; give another --output, or --force to replace it")
    limits = Limits(
        parse_budget(budget),
        percentile=percentile,
        reserve=parse_budget(reserve) if reserve else 0.0,
        memory=parse_bytes(memory) if memory else None,
        model_size=parse_bytes(model_size) if model_size else None,
        macs=parse_quantity(macs, "MACs") if macs else None,
        min_miou=min_miou,
        fps=fps,
    )
    choices = Choices(
        widths, sizes, _known(runtime, RUNTIMES, "runtime"), _known(precision, PRECISIONS, "precision"), threads
    )
    opened = data if data is None or source == "auto" else open_source(source, data)
    bundle = load_bundle(model)
    options: dict[str, Any] = {"split": split, "image": image, "plan": plan, "measured": measured, "fresh": fresh}
    # Two fits of one model would also disturb each other's timings.
    with folder_lock(output), folder_lock(store_folder(bundle, cache)):
        job = Fit(bundle, limits, choices, data=opened, cache=cache, progress=progress, **options)
        account = job.run()
        return account, job.deliver(account, output, command=command)


def _known(names: tuple[str, ...] | None, known: Sequence[str], what: str) -> tuple[str, ...] | None:
    """The names, of which each must be known; all of them for "all"."""
    if names == ("all",):
        return tuple(known)
    for name in names or ():
        check_choice(what, name, known)
    return names


@dataclass(frozen=True)
class Choices:
    """What a fit may choose among; None leaves it to litheseg.

    Attributes:
        widths: those to try; None for those of the bundle, and between them where that may pay.
        sizes: heights and widths of the network's input; None for the training size, 3/4 and 1/2 of it.
        runtimes: None for all that are installed.
        precisions: None for fp32, and int8 where it can be made.
        threads: numbers of CPU threads; None for all cores and one.
    """

    widths: tuple[float, ...] | None = None
    sizes: tuple[tuple[int, int], ...] | None = None
    runtimes: tuple[str, ...] | None = None
    precisions: tuple[str, ...] | None = None
    threads: tuple[int, ...] | None = None

    def allows(self, candidate: Candidate) -> bool:
        """Whether a candidate is among them."""
        network = candidate.network
        pairs = (
            (self.widths, network.width),
            (self.sizes, network.size),
            (self.precisions, network.precision),
            (self.runtimes, candidate.runtime),
            (self.threads, candidate.threads),
        )
        return all(allowed is None or value in allowed for allowed, value in pairs)


class Fit:
    """One fit.

    Args:
        bundle: a loaded one.
        limits: what has to hold.
        choices: what there is to choose among.
        data: labelled images to score and calibrate on: a folder or a source; None for what the bundle was trained on.
        split: that is scored.
        image: height and width of the camera's images; None for that of the data, or of the model's training.
        plan: a file of `litheseg.budget.plan`; None to measure one where the model has grouped convolutions.
        measured: what `litheseg measure` brought back from the target; None to time here.
        cache: folder of what is remembered between fits; None for the user's own.
        fresh: forget earlier timings.
        progress: told what is being done.

    Raises:
        DataError: data that cannot be used, or none and no scores in the bundle.
        LithesegError: a plan or measurements of another model.
    """

    def __init__(
        self,
        bundle: Bundle,
        limits: Limits,
        choices: Choices | None = None,
        *,
        data: str | Path | Source | None = None,
        split: str = "val",
        image: tuple[int, int] | None = None,
        plan: Path | None = None,
        measured: Path | None = None,
        cache: Path | None = None,
        fresh: bool = False,
        progress: Progress = lambda _: None,
    ) -> None:
        self.bundle, self.limits, self.choices, self.progress = bundle, limits, choices or Choices(), progress
        self._load, self._known = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0, 0
        self._model, self._digest, self._split = bundle.model(), model_digest(bundle), split
        self._measured = read_measurements(measured, self._digest) if measured else None
        if self._measured is not None:
            self.limits = self._measured.limits(limits)
        self.store = Store.of(bundle, cache, fresh=fresh)
        self._plan, self._plan_tag = self._opened_plan(plan)
        self.scores = open_scores(bundle, data, self.store, split=split, engine=self._engine, progress=progress)
        self.frames = self._frames(image)
        self.workbench = Workbench(
            bundle,
            self.store.exports,
            plan=self._plan,
            calibrated=self._calibrated,
            quantise=self._twins if self._has_int8 else None,
            progress=progress,
        )

    def run(self) -> Account:
        """Choose, and prove it where the timing is done here.

        Raises:
            BudgetError: nothing is within the limits; names the nearest point.
            LithesegError: nothing to choose among.
        """
        costs = partial(paper_costs, self._model)
        facts: dict[str, Any] = {"model": self._digest, "bundle": str(self.bundle.path or "")}
        if self._measured is not None:
            found = choose_measured(self._measured, self.limits, self.scores, costs, among=self.choices.allows)
            host, facts["measured"] = self._measured.host, str(self._measured.path)
            return Account(found, self.limits, self.scores.told, None, host, facts)
        bench = Bench(self.workbench.engine, self.frames, fps=self.limits.fps, progress=self.progress)
        timer = _Remembering(bench, self.store, self._key)
        search = Search(
            self.limits,
            timer,
            self.scores,
            costs,
            recall=self._recalled,
            refine=self.choices.widths is None,
            quantise=self._has_int8,
            progress=self.progress,
        )
        try:
            found = search.run(self._candidates())
        finally:
            if self._plan is not None:
                self._plan.save(self.store.plan_file)
        found = replace(found, notes=(*found.notes, *self._warnings()))
        return Account(found, self.limits, self.scores.told, self._image, self.store.host, facts)

    def deliver(self, account: Account, folder: Path, *, command: str = "") -> Path:
        """Write the choice and what led to it.

        Args:
            account: what `run` returned.
            folder: for ``export/`` (or, for PyTorch, ``model.safetensors``), fit.json, frontier.png and, where the
                model has grouped convolutions, plan.json.
            command: for fit.json.

        Returns:
            What to deploy: the export's folder, or the bundle's file.

        Raises:
            LithesegError: the folder cannot be written to.
        """
        chosen = account.found.chosen.candidate
        self.progress("writing")
        bundle = self.workbench.planned(chosen, self._calibrated(chosen.network.width))
        if chosen.runtime == "torch":
            result = save_bundle(folder / MODEL_FILE, bundle.model(), bundle.header).path
            assert result is not None
        else:
            data = self.scores.source if isinstance(self.scores, MeasuredScores) else None
            result = self.workbench.write(bundle, chosen, folder / "export", data=data).path
        if self._plan is not None:
            self._plan.save(folder / PLAN_FILE)
        account.draw(folder / FIGURE_FILE)
        content = replace(account, facts={**account.facts, "command": command, "deploy": result.name}).to_dict()
        with atomic_path(folder / FIT_FILE) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return result

    def _opened_plan(self, path: Path | None) -> tuple[Plan | None, str]:
        """The plan of a model with grouped convolutions, and what its timings are remembered by."""
        if self._measured is not None:
            if path is not None:
                raise LithesegError("--plan does not go with --measured: a kit's networks were timed without one")
            return None, ""
        if not grouped_layers(extract(self._model, self.bundle.header.available_widths[0])):
            return None, ""
        if path is not None:
            return load_plan(path, self._digest), file_digest(path)[:8]
        try:
            return load_plan(self.store.plan_file, self._digest), ""
        except LithesegError:  # none yet
            return Plan(self._digest), ""

    def _candidates(self) -> Sequence[Candidate]:
        choices, header = self.choices, self.bundle.header
        base = header.size if header.resizes else self._image
        return tuple(
            grid(
                choices.widths or header.available_widths,
                choices.sizes or default_sizes(base),
                runtimes=choices.runtimes or available_runtimes(),
                precisions=self._first_precisions(),
                threads=choices.threads or default_threads(),
            )
        )

    def _first_precisions(self) -> tuple[str, ...]:
        """Those of all candidates; int8 is tried later, of some, unless nothing else is wanted."""
        chosen = self.choices.precisions or ("fp32",)
        return tuple(precision for precision in chosen if precision != "int8") or chosen

    @property
    def _has_int8(self) -> bool:
        """Whether int8 is wanted, and images to calibrate on and a quantizer are there."""
        wanted = self.choices.precisions is None or "int8" in self.choices.precisions
        able = isinstance(self.scores, MeasuredScores) and "train" in self.scores.source.splits()
        return wanted and able and importlib.util.find_spec("nncf") is not None

    def _twins(self, bundle: Bundle) -> Quantizer:
        assert isinstance(self.scores, MeasuredScores)
        calibration, check = calibration_samples(bundle, self.scores.source, split=self._split)
        return Quantizer(bundle, calibration, check.thinned(CHECK_IMAGES), progress=self.progress)

    @property
    def _image(self) -> tuple[int, int]:
        height, width = self.frames[0].shape[:2]
        return (height, width)

    def _frames(self, image: tuple[int, int] | None) -> list[np.ndarray]:
        """Images as the camera gives them."""
        frames = self.scores.frames() if isinstance(self.scores, MeasuredScores) else []
        if frames and image is None:
            return frames
        return street_frames(image or self.bundle.header.size)

    def _engine(self, bundle: Bundle, network: Network) -> Engine:
        """For scoring: a network that is not fp32."""
        return self.workbench.engine_of(network, self.choices.runtimes or available_runtimes(), cores())

    def _calibrated(self, width: float) -> Bundle:
        return self.scores.with_width(width) if isinstance(self.scores, MeasuredScores) else self.bundle

    def _key(self, candidate: Candidate) -> str:
        pace = f" {self.limits.fps:g}fps" if self.limits.fps else ""
        return f"{candidate.name} {self._image[0]}x{self._image[1]}{pace} {self._plan_tag}".strip()

    def _recalled(self, candidate: Candidate) -> Latency:
        known = self.store.samples.get(self._key(candidate))
        self._known += known is not None
        return Latency(Scope.END_TO_END, list(known.ms) if known else [])

    def _warnings(self) -> Iterator[str]:
        """What may be wrong with the timings."""
        if self._known:
            yield f"{self._known} candidates have timings from an earlier fit; --fresh forgets them"
        if self._load > cores() / 2:
            yield (
                f"the machine was busy at the start (load average {self._load:.1f} on {cores()} cores): "
                "the promise is one for a machine as busy as that"
            )


class _Remembering:
    """A timer that keeps what it measures, at once: a fit that is stopped goes on where it was."""

    def __init__(self, timer: Timer, store: Store, key: Callable[[Candidate], str]) -> None:
        self._timer, self._store, self._key = timer, store, key

    def unusable(self, candidates: Iterable[Candidate]) -> dict[Candidate, str]:
        return self._timer.unusable(candidates)

    def measure(self, candidates: Sequence[Candidate], repeats: int) -> dict[Candidate, list[float]]:
        times = self._timer.measure(candidates, repeats)
        for candidate, values in times.items():
            self._store.samples.setdefault(self._key(candidate), Latency(Scope.END_TO_END)).add(values)
        self._store.save_samples()
        return times


def default_threads() -> tuple[int, ...]:
    """All cores, half of them, and one."""
    count = cores()
    return tuple(dict.fromkeys((count, max(1, count // 2), 1)))
