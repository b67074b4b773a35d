"""`litheseg build`: from a folder and a budget to a deployed network, in stages that never lose work.

Each stage leaves a file; a stage whose file is there is not repeated. So the same command goes on after Ctrl-C, a
crash or a reboot, within a stage too: training from its last epoch, choosing from the timings and exports so far.

    plan.yaml           what was decided and why (`litheseg.building.plan`)
    fingerprint.json    what it was decided from
    training/           the run, with model.safetensors
    folds/              what came out of a cross-validation, where there is one
    fit.json, export/   what to deploy, and what is promised of it
    report.html         what it came to
    build.json          the same for programs; the last file that is written

Usage:
    >>> result = build("data/mine", budget=20.0, minutes=60, output="deployed")
    >>> result.predict("street.jpg")
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from litheseg.budget.fit import fit
from litheseg.budget.fit_result import FIT_FILE
from litheseg.building.fingerprint import Fingerprint, take_fingerprint
from litheseg.building.folds import cross_validate, note_scores
from litheseg.building.plan import Plan, make_plan, read_plan
from litheseg.building.result import BUILD_FILE, BuildResult, read_result
from litheseg.building.trials import latencies, step_seconds
from litheseg.building.wishes import Wishes, one_word_each
from litheseg.bundle.cross_validation import MEANING, cross_validated
from litheseg.data import open_source
from litheseg.data.doctor.diagnosis import diagnose
from litheseg.data.sources.base import FileSource, Source
from litheseg.data.sources.unlabelled import find_unlabelled
from litheseg.errors import Interrupted, LithesegError, listed
from litheseg.files import names_full_disk, write_text
from litheseg.locks import folder_lock
from litheseg.models.bundle import load_bundle
from litheseg.progress import say, stage
from litheseg.report.card import Section
from litheseg.report.html import ReportFigure, write_page
from litheseg.report.run_report import run_page
from litheseg.training.horizon import epochs_to_finish
from litheseg.training.recipe import Recipe, check_recipe, load_recipe
from litheseg.training.run import train
from litheseg.values import Duration

__all__ = ["build"]

_NO_BUDGET = 60_000.0  # milliseconds
_PLAN, _FINGERPRINT, _WISHES = "plan.yaml", "fingerprint.json", "wishes.json"
_OF_DIVISION = ("leak", "near-leak", "shared-sequence")  # findings of the doctor
_CHANGEABLE = ("budget", "minutes", "target", "min_class_iou", "folds")


def build(
    data: str | Path,
    *overrides: str,
    budget: Duration | None = None,
    minutes: float = 60.0,
    output: str | Path = "deployed",
    unlabelled: str | Path | None = None,
    classes: str | Path | None = None,
    min_class_iou: float | None = None,
    target: str | Path | None = None,
    folds: int | None = None,
    finish: bool = False,
    command: str = "",
) -> BuildResult:
    """Make a network from labelled images that runs within a budget, and write it with all that it came from.

    Args:
        data: folder of labelled images.
        *overrides: fields of the recipe that are not left to the plan, such as ``--data.size=[360,480]``.
        budget: milliseconds of one image, end to end, on this machine; by default the most accurate network is taken.
        minutes: that everything takes together, about.
        output: folder of all that is made; the same one goes on with a build that was stopped.
        unlabelled: folder of images without labels, to learn from as well.
        classes: class file that says what mask values mean; by default the one in `data`.
        min_class_iou: refuse networks whose worst class has a lower IoU, in [0, 1].
        target: timings of another machine, which a kit of the trained network measured there (`litheseg measure`): the
            budget is then for that machine.
        folds: of a cross-validation, which scores each image once by a network that did not see it; 0 or 1 for none; by
            default 3 with fewer than 50 labelled images, if the minutes allow it.
        finish: train only one epoch more, in which the learning rate falls to 0, and deploy what there is then.
        command: the shell command, for the report.

    Returns:
        The network, its scores and what is promised of it.

    Raises:
        BudgetError: no network is that fast.
        Interrupted: Ctrl-C; the same command goes on.
        LithesegError: data that cannot be trained on, or what training, export or fit refuses.
    """
    photos, meanings = (None if path is None else str(path) for path in (unlabelled, classes))
    box = None if target is None else str(target)
    wishes = Wishes(str(data), budget, minutes, photos, meanings, one_word_each(overrides), box, min_class_iou, folds)
    folder = Path(output)
    check_recipe(wishes.asked)  # before anything takes time
    if target is not None and not (folder / "training" / "model.safetensors").exists():
        raise LithesegError(
            f"{target}: timings are of a trained network: build first without --target, then `litheseg measure "
            f"{folder / 'training' / 'model.safetensors'} --output kit`, and run the kit on the target"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder, beside=True):
        job = _Stages(folder, wishes, command)
        try:
            job.check_wishes()
            return job.run(finish=finish)
        except Interrupted as stop:
            message = (
                f"{str(stop).split('; ')[0]}; the same command goes on, and with --finish it deploys what there is"
            )
            raise Interrupted(message) from stop
        except (LithesegError, OSError) as error:
            if not names_full_disk(error):
                raise
            raise LithesegError(
                f"the disk is full: {str(error).split('; ')[0]}; what is done is kept in {folder}: free some space, "
                "and the same command goes on"
            ) from error


@dataclass
class _Stages:
    """One build: what is asked for, and where it is kept."""

    folder: Path
    wishes: Wishes
    command: str

    def __post_init__(self) -> None:
        self.begun = time.monotonic()

    def check_wishes(self) -> None:
        """Refuse to go on with a build of other wishes, naming what differs; note those of a new one."""
        file, now = self.folder / _WISHES, json.loads(json.dumps(asdict(self.wishes)))
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if {path.name for path in self.folder.iterdir() if not path.name.startswith(".")} - {_WISHES}:
                raise LithesegError(f"{self.folder} holds something else; choose another --output") from None
            before = now
        if not (self.folder / _FINGERPRINT).exists():
            before = now  # nothing was made of them yet
        folds = now["folds"]
        differ = [
            f"{name} was {before.get(name)} and is {value}"
            for name, value in now.items()
            if name not in _CHANGEABLE and before.get(name) != value
        ]
        if differ:
            raise LithesegError(
                f"{self.folder} was begun with other wishes: {listed(differ)}; give those, or choose another --output"
            )
        if before.get("folds") != folds and (self.folder / _PLAN).exists():
            self._plan_anew(folds)
        if before != now:
            for made in (BUILD_FILE, FIT_FILE):
                (self.folder / made).unlink(missing_ok=True)
        write_text(file, json.dumps(now, indent=2) + "\n")

    def _plan_anew(self, folds: int | None) -> None:
        """Make room for other folds, or for none."""
        if not (self.folder / "training").exists():
            (self.folder / _PLAN).unlink()
        elif folds is None or folds > 1:
            raise LithesegError(
                f"{self.folder}: training has begun, without time for other folds; choose another --output, or --folds "
                "0 for no cross-validation"
            )

    def run(self, *, finish: bool) -> BuildResult:
        """All stages that are not done."""
        with suppress(LithesegError):
            return read_result(self.folder)
        stages: list[tuple[str, Callable[[], Any]]] = [
            ("looking at the data", self._look),
            ("plan", self._plan),
            ("training", partial(self._train, finish)),
            ("cross-validation", partial(self._cross_validate, finish)),
            ("choosing, exporting and proving", self._fit),
            ("report", self._report),
        ]
        for number, (name, work) in enumerate(stages, 1):
            with stage(number, len(stages), name):
                work()
        return read_result(self.folder)

    # --- the stages --------------------------------------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """The labelled images."""
        more: dict[str, Any] = {"classes": self.wishes.classes} if self.wishes.classes else {}
        return open_source("auto", self.wishes.data, **more)

    def _look(self) -> None:
        """What is wrong with the data, and what it is like."""
        if (self.folder / _FINGERPRINT).exists():
            return
        source = self.source
        report = diagnose(source)
        if not report.ok:
            found = "; ".join(item.message for item in report.findings if item.severity == "error")
            raise LithesegError(
                f"{self.wishes.data} cannot be trained on: {found}; `litheseg doctor {self.wishes.data}` says more"
            )
        divides = isinstance(source, FileSource) and source.holds_out  # the plan decides how, and keeps these together
        for item in report.findings:
            if item.severity == "warning" and not (divides and item.code in _OF_DIVISION):
                say(f"warning: {item.message}")
        more = 0
        if self.wishes.unlabelled:
            more = len(find_unlabelled(self.wishes.unlabelled, source, None).samples)
        facts = take_fingerprint(source, unlabelled=more)
        write_text(self.folder / _FINGERPRINT, json.dumps(facts.to_dict(), indent=2) + "\n")

    def _plan(self) -> None:
        """Decide."""
        file = self.folder / _PLAN
        if not file.exists():
            facts = Fingerprint.from_dict(json.loads((self.folder / _FINGERPRINT).read_text(encoding="utf-8")))
            plan = make_plan(facts, self.wishes, self._step_seconds, self._latencies, minutes=self._minutes_left())
            write_text(file, plan.text())
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                say(line)

    def _step_seconds(self, options: list[str]) -> dict[int, float]:
        return step_seconds(load_recipe("slimseg", options), self.wishes.width_sets)

    def _latencies(self, options: list[str], size: tuple[int, int]) -> dict[float, float]:
        trials, widths = self.folder / "trials", self.wishes.width_sets[0]
        ends = tuple(dict.fromkeys((max(widths), min(widths))))
        found = latencies(load_recipe("slimseg", options), self.source, widths=ends, size=size, folder=trials)
        shutil.rmtree(trials, ignore_errors=True)
        return found

    @property
    def _made_plan(self) -> Plan:
        file = self.folder / _PLAN
        try:
            return read_plan(file.read_text(encoding="utf-8"))
        except LithesegError as error:
            raise LithesegError(f"{file}: {error}") from error

    def _recipe(self, *more: str) -> Recipe:
        """The planned one, with further options."""
        plan = self._made_plan
        options = plan.overrides if plan.wished == self.wishes.minutes else plan.within(self.wishes.minutes)
        try:
            return load_recipe(plan.recipe, [*options, *self.wishes.overrides, *more])
        except LithesegError as error:
            raise LithesegError(f"{self.folder / _PLAN}: {error}") from error

    def _train(self, finish: bool) -> None:
        """Train, within the minutes."""
        folder, more = self.folder / "training", list[str]()
        if (folder / "model.safetensors").exists():
            return
        if finish:
            more = [f"--trainer.epochs={epochs_to_finish(folder) or 1}", "--trainer.minutes=0"]
        train(self._recipe(*more), folder, resume=True)

    def _cross_validate(self, finish: bool) -> None:
        """Score each image by a network that did not see it, where that is planned."""
        count, options = self._made_plan.folds
        if self.wishes.folds in (0, 1) or not count:
            say("none is planned")
            return
        if finish:
            say("left out, to finish early")
            return
        if "trainer.epochs" in self.wishes.fixed:
            options = [option for option in options if not option.startswith("--trainer.epochs=")]
        scores = cross_validate(self._recipe(*options), count, self.folder / "folds")
        note_scores(self.folder / "training" / "model.safetensors", scores)

    def _fit(self) -> None:
        """Choose the most accurate network within the budget, export it, prove that it is the same and that fast."""
        if (self.folder / FIT_FILE).exists():
            return
        model = self.folder / "training" / "model.safetensors"
        budget = self.wishes.budget or _NO_BUDGET
        where = None if self.wishes.target is None else Path(self.wishes.target)
        options: dict[str, Any] = {"min_class_iou": self.wishes.min_class_iou, "measured": where}
        if self.wishes.budget is None:  # smaller images would be faster, and nobody asks for that
            options["sizes"] = [load_bundle(model).header.size]
        fit(model, budget=budget, output=self.folder, command=self.command, force=True, **options)

    def _report(self) -> None:
        """Write what it came to."""
        header = load_bundle(self.folder / "training" / "model.safetensors").header
        found = json.loads((self.folder / FIT_FILE).read_text(encoding="utf-8"))
        plan = self._made_plan
        page = run_page(self.folder / "training", command=self.command, title=Path(self.wishes.data).name)
        measured = ReportFigure(self.folder / "frontier.png", "What was measured here.", heading="Accuracy and time")
        how = Section("How it was trained", (plan.table(),))
        checked = cross_validated(header).get(found["promise"]["width"])
        lead = found["sentence"] if checked is None else f"{found['sentence']}; {checked}. {MEANING}"
        page = replace(page, lead=lead, figures=(measured, *page.figures), card=(how, *page.card))
        write_page(self.folder / "report.html", page)
        content = {
            "litheseg": "build",
            "wishes": asdict(self.wishes),
            "scores": header.metrics,
            "cross_validated": None if checked is None else str(checked),
            **{name: found[name] for name in ("deploy", "promise", "sentence")},
            "command": self.command,
        }
        write_text(self.folder / BUILD_FILE, json.dumps(content, indent=2) + "\n")

    def _minutes_left(self) -> float:
        return self.wishes.minutes - (time.monotonic() - self.begun) / 60
