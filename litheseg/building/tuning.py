"""A search over fields of a recipe: short runs, each in a folder of its own, of which the poor ones end early.

Optuna proposes values (tree-structured Parzen estimators; Bergstra et al., NeurIPS 2011) and ends a run whose score is
below the median of those before it at the same epoch. The study lies in an SQLite file beside the runs: a search that
was killed goes on where it was, within a run too, and proposes what it would have proposed unbroken.

    study.db         all trials
    trials/000/      the runs, without their checkpoints once they are over
    best.yaml        the best recipe so far

Usage:
    >>> result = tune("slimseg", "--data.root=camvid", search=["optimizer.lr=1e-4:1e-2:log", "data.batch_size=4,8"])
    >>> result.best
    PosixPath('runs/tuned/best.yaml')
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from litheseg.building.finding import processes
from litheseg.errors import (
    FolderInUseError,
    Interrupted,
    LithesegError,
    MissingExtraError,
    RecipeError,
    TrainingError,
    WidthError,
    listed,
)
from litheseg.files import make_folder, write_text
from litheseg.locks import folder_lock
from litheseg.progress import say, stage
from litheseg.tables import Table
from litheseg.training.build import build_data
from litheseg.training.recipe import Recipe, load_recipe, recipe_to_dict
from litheseg.training.run import train

__all__ = ["SearchedField", "TuneResult", "TunedTrial", "parse_search", "tune"]

_UNPRUNED = 4  # trials that a median is taken of at least
_FAILURES = 3  # without a success: more of them would fail for the same reason


@dataclass(frozen=True)
class SearchedField:
    """A field of a recipe and the values that it may have.

    Attributes:
        field: such as optimizer.lr.
        choices: as text; empty for a range.
        low: end of a range, included.
        high: likewise.
        log: whether the logarithm is searched evenly.
    """

    field: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """Values that a recipe must take."""
        return self.choices or (str(self.low), str(self.high))

    def suggest(self, trial: Any) -> str:
        """The value of an Optuna trial, as text."""
        if self.choices:
            return str(trial.suggest_categorical(self.field, self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return str(trial.suggest_int(self.field, self.low, self.high, log=self.log))
        return str(trial.suggest_float(self.field, self.low, self.high, log=self.log))


def parse_search(text: str) -> SearchedField:
    """What a field is searched over: ``optimizer.lr=1e-4:1e-2:log``, ``trainer.epochs=5:20``, ``data.batch_size=4,8``.

    Raises:
        RecipeError: it is written in another way.
    """
    field, equals, values = text.removeprefix("--").partition("=")
    bounds = values.removesuffix(":log").split(":")
    choices = tuple(part.strip() for part in re.split(r",(?![^\[{]*[\]}])", values))  # commas within brackets stay
    if equals and field and len(bounds) == 2 and "{" not in values:
        try:
            low, high = (int(part) if re.fullmatch(r"[+-]?\d+", part) else float(part) for part in bounds)
        except ValueError:
            low = high = 0
        log = values.endswith(":log")
        if low < high and not (log and low <= 0):
            return SearchedField(field, (), low, high, log)
    elif equals and field and len(choices) > 1 and all(choices):
        return SearchedField(field, choices)
    raise RecipeError(
        f"'{text}' cannot be searched; give LOW:HIGH or LOW:HIGH:log (above 0), or values with commas, as in "
        "optimizer.lr=1e-4:1e-2:log or data.batch_size=4,8,16"
    )


@dataclass(frozen=True)
class TunedTrial:
    """One run of a search.

    Attributes:
        folder: of the run.
        values: by field, as text.
        state: complete, pruned or fail.
        score: mIoU; of a pruned run the last one, None if there is none.
    """

    folder: Path
    values: dict[str, str]
    state: str
    score: float | None


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Attributes:
        best: the recipe with the highest score.
        trials: in their order.
        width: whose mIoU on val is the score.
    """

    best: Path
    trials: tuple[TunedTrial, ...]
    width: float

    @property
    def table(self) -> Table:
        """The trials, the best first, then the pruned and failed ones."""
        order = ("complete", "pruned", "fail")
        ranked = sorted(self.trials, key=lambda trial: (order.index(trial.state), -(trial.score or 0.0)))
        fields = tuple(self.trials[0].values) if self.trials else ()
        rows = [
            (
                trial.folder.name,
                *(_short(value) for value in trial.values.values()),
                "" if trial.score is None else f"{100 * trial.score:.1f}",
                "" if trial.state == "complete" else {"pruned": "ended early", "fail": "failed"}[trial.state],
            )
            for trial in ranked
        ]
        return Table(("trial", *fields, f"mIoU@{self.width:g} (%)", ""), tuple(rows))


def tune(
    recipe: str,
    *overrides: str,
    search: Sequence[str],
    trials: int = 20,
    width: float | None = None,
    output: str | Path = "runs/tuned",
    init: str | None = None,
) -> TuneResult:
    """Search over fields of a recipe by training; the same call goes on with a search that was stopped.

    Args:
        recipe: name or .yaml file.
        *overrides: fields that all runs share, such as ``--trainer.epochs=10``.
        search: fields with ranges or choices, see `parse_search`.
        trials: runs in all, those of earlier calls included.
        width: whose mIoU on val counts; by default the widest.
        output: folder of the search.
        init: a trained model to start each run from.

    Raises:
        MissingExtraError: Optuna is not installed.
        Interrupted: Ctrl-C; the same call goes on.
        LithesegError: a field, width or folder that cannot be used, or every run failed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingExtraError("optuna", "tune", "a search over recipes") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    spaces = [parse_search(text) for text in search]
    if not spaces:
        raise RecipeError("nothing to search; give --search FIELD=LOW:HIGH or --search FIELD=A,B,C")
    base = load_recipe(recipe, list(overrides), init=init)
    for space in spaces:
        for value in space.ends:  # a value out of range is named now
            load_recipe(recipe, [*overrides, f"--{space.field}={value}"], init=init)
    build_data(base)  # so is data that cannot be found
    score = max(base.widths) if width is None else width
    if score not in base.widths:
        raise WidthError(f"width {score:g} is not trained; choose from {listed(base.widths)}")
    if processes(base) > 1:
        raise RecipeError("each run of a search is one process; give --trainer.devices 1")
    folder = Path(output)
    make_folder(folder)
    with folder_lock(folder):
        study = optuna.create_study(
            storage=f"sqlite:///{folder / 'study.db'}",
            study_name="litheseg",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED),
            load_if_exists=True,
        )
        _check_settings(study, folder, base, search, score)
        while (trial := _next(study, trials, base.trainer.seed)) is not None:
            values = {space.field: space.suggest(trial) for space in spaces}
            options = [*overrides, *(f"--{name}={value}" for name, value in values.items())]
            shown = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
            with stage(trial.number + 1, trials, f"trial with {shown}"):
                _run(study, trial, load_recipe(recipe, options, init=init), score, folder)
        return _result(study, folder, spaces, score)


def _check_settings(study: Any, folder: Path, base: Recipe, search: Sequence[str], width: float) -> None:
    """Note what is searched, or refuse to go on with a search of something else."""
    now = json.loads(json.dumps({**recipe_to_dict(base), "search": sorted(search), "width": width}))
    before = study.user_attrs.setdefault("settings", now)
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        raise TrainingError(
            f"{folder} was begun with another {listed(changed)}; go on with the same command, or choose another "
            "--output"
        )
    study.set_user_attr("settings", now)


def _next(study: Any, trials: int, seed: int) -> Any:
    """The trial that was killed, or another one; None when there are enough."""
    from optuna.samplers import TPESampler
    from optuna.trial import Trial, TrialState

    killed = study.get_trials(states=(TrialState.RUNNING,))
    if killed:
        study.sampler = TPESampler(seed=seed + killed[0].number)
        return Trial(study, killed[0]._trial_id)
    done = len(study.get_trials())
    if done >= trials:
        return None
    study.sampler = TPESampler(seed=seed + done)  # by its number: the same whether the search was stopped or not
    return study.ask()


def _run(study: Any, trial: Any, recipe: Recipe, width: float, folder: Path) -> None:
    """Train, and tell the study."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    place = _place(folder, trial.number)
    try:
        result = train(recipe, place, resume=True, callbacks=[_Pruning(trial, width)])
        study.tell(trial, float(result.scores[width].miou))
    except TrialPruned:
        say("ended early: below the median of the runs before it")
        study.tell(trial, state=TrialState.PRUNED)
    except Interrupted as stop:
        interrupted = Interrupted(f"{str(stop).split('; ')[0]}; the same command goes on")
        interrupted.exit_status = stop.exit_status
        raise interrupted from stop
    except LithesegError as error:
        if isinstance(error, FolderInUseError) or isinstance(error.__cause__, OSError):
            raise  # it is not for the values that are tried
        say(f"failed: {error}")
        study.tell(trial, state=TrialState.FAIL)
        states = [entry.state for entry in study.get_trials(deepcopy=False)]
        if TrialState.COMPLETE not in states and states.count(TrialState.FAIL) >= _FAILURES:
            raise TrainingError(f"{_FAILURES} runs failed and none succeeded, the last because: {error}") from error
    shutil.rmtree(place / "checkpoints", ignore_errors=True)


class _Pruning(Callback):
    """Reports validations, and ends a run that is below the median."""

    def __init__(self, trial: Any, width: float) -> None:
        self._trial, self._width = trial, width
        self._reported = set(trial.study.get_trials()[trial.number].intermediate_values)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report, once for each epoch; ask."""
        from optuna import TrialPruned

        if trainer.current_epoch not in self._reported:
            self._trial.report(float(pl_module.scores[self._width].miou), trainer.current_epoch)  # type: ignore[index,union-attr]
        if self._trial.should_prune():
            raise TrialPruned


def _result(study: Any, folder: Path, spaces: Sequence[SearchedField], width: float) -> TuneResult:
    found = [
        TunedTrial(
            _place(folder, entry.number),
            {space.field: str(entry.params[space.field]) for space in spaces},
            entry.state.name.lower(),
            entry.value if entry.value is not None else entry.intermediate_values.get(entry.last_step),
        )
        for entry in study.get_trials()
    ]
    complete = [trial for trial in found if trial.state == "complete"]
    if not complete:
        raise TrainingError(f"no run of {folder} came to its end; give more --trials, or other values to search")
    best = max(complete, key=lambda trial: trial.score or 0.0)
    write_text(folder / "best.yaml", (best.folder / "recipe.yaml").read_text(encoding="utf-8"))
    return TuneResult(folder / "best.yaml", tuple(found), width)


def _place(folder: Path, number: int) -> Path:
    return folder / "trials" / f"{number:03d}"


def _short(value: str) -> str:
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value
