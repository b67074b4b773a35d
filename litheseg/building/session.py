"""Training and building from programs and notebooks: as the commands do it, shown meanwhile, with a result in hand.

Ctrl-C (in a notebook, the stop button) ends training with the epoch that has begun, its learning rate falling to 0, and
gives what there is; a second one stops at once, and the same call goes on later.

Usage:
    >>> run = litheseg.train("slimseg", data="data/mine", size=(360, 480), minutes=30)
    >>> print(run.scores)
    >>> litheseg.build("data/mine", budget="20ms", minutes=60, output="deployed").deployed
    PosixPath('deployed/export')
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from litheseg.building import stages
from litheseg.building.finding import with_found
from litheseg.building.result import BuildResult, TrainedNetwork
from litheseg.errors import Interrupted, LithesegError, RecipeError, listed
from litheseg.progress import say, shown
from litheseg.training import run
from litheseg.training.horizon import epochs_to_finish, is_over
from litheseg.training.recipe import Recipe, load_recipe
from litheseg.values import parse_duration

__all__ = ["build", "train"]

_OPTION = re.compile(r"(`[^`]*`|litheseg [a-z-]+ [^;)]*)|--([a-z][\w.-]*)")  # a shell command, or an option out of one


def train(
    recipe: Recipe | str = "slimseg",
    output: str | Path | None = None,
    *,
    data: str | Path | Mapping[str, Any] | None = None,
    size: tuple[int, int] | None = None,
    minutes: float | None = None,
    init: str | Path | None = None,
    find_batch_size: bool = False,
    find_lr: bool = False,
    resume: bool = False,
    **fields: Any,
) -> TrainedNetwork:
    """Train a network that runs at several widths.

    Args:
        recipe: name (see `litheseg recipes`), .yaml file, or a loaded one, which takes no further fields.
        output: the run's folder; by default runs/RECIPE.
        data: folder of labelled images; or fields of the recipe's section `data`.
        size: height and width that images are resized to.
        minutes: most minutes of training; by default as many as the epochs take.
        init: a trained model to start from: its file, zoo:NAME or hf:OWNER/NAME.
        find_batch_size: measure for data.batch_size first; `litheseg.building.finding` says by which rule.
        find_lr: measure for optimizer.lr first; likewise.
        resume: go on from the folder's last checkpoint; a run that has ended, also by Ctrl-C, is given back as it is.
        fields: of the recipe: ``widths=[1, 0.5]``, ``trainer={"epochs": 40}``, ``optimizer={"lr": 5e-4}``.

    Returns:
        The network: its scores, pictures, and what can be made of it.

    Raises:
        Interrupted: Ctrl-C before a whole epoch was trained.
        LithesegError: a field, data or folder that cannot be used.
    """
    loaded = recipe if isinstance(recipe, Recipe) else _recipe(recipe, data, size, minutes, init, fields)
    folder = Path(output) if output is not None else Path("runs") / loaded.name
    with shown(), _errors_for_programs():
        if resume and is_over(folder):
            loaded = _shortest(loaded, folder)
            say(f"{folder} ended with epoch {loaded.trainer.epochs}; to train further, start from its model (init)")
        loaded = with_found(loaded, folder, batch_size=find_batch_size, lr=find_lr)
        try:
            result = run.train(loaded, folder, resume=resume)
        except Interrupted:
            if not epochs_to_finish(folder):
                raise
            result = run.train(_shortest(loaded, folder), folder, resume=True)
    return TrainedNetwork(result.folder, result.bundle)


def build(
    data: str | Path | Mapping[str, Any],
    *,
    size: tuple[int, int] | None = None,
    budget: str | float | None = None,
    minutes: float = 60.0,
    output: str | Path = "deployed",
    unlabelled: str | Path | None = None,
    classes: str | Path | None = None,
    min_class_iou: float | None = None,
    folds: int | None = None,
    **fields: Any,
) -> BuildResult:
    """Make a network from labelled images that runs within a budget on this machine, ready to deploy.

    Args:
        data: folder of labelled images; or fields of the recipe's section `data`, among them "root", the folder.
        size: height and width that images are resized to; by default the plan's choice.
        budget: milliseconds of one image, end to end, or a text such as 20ms or 15fps; by default the most accurate
            network is taken.
        minutes: that everything takes together, about.
        output: folder of all that is made; the same one goes on with a build that was stopped.
        unlabelled: folder of images without labels, to learn from as well.
        classes: class file that says what mask values mean; by default the one in `data`.
        min_class_iou: refuse networks whose worst class has a lower IoU, in [0, 1].
        folds: of a cross-validation, which scores each image once by a network that did not see it; 0 or 1 for none; by
            default 3 with fewer than 50 labelled images, if the minutes allow it.
        fields: of the recipe, that are not left to the plan, as of `train`.

    Returns:
        The network, its scores and what is promised of it.

    Raises:
        BudgetError: no network is that fast.
        Interrupted: Ctrl-C before a whole epoch was trained.
        LithesegError: data that cannot be trained on, or what training, export or fit refuses.
    """
    wishes: dict[str, Any] = {
        "budget": parse_duration(budget) if isinstance(budget, str) else budget,
        "minutes": minutes,
        "output": output,
        "unlabelled": unlabelled,
        "classes": classes,
        "min_class_iou": min_class_iou,
        "folds": folds,
    }
    section = _section(data, size)
    if "root" not in section:
        raise RecipeError(f'data has no "root", the folder of labelled images, but {listed(list(section))}; add it')
    folder = section.pop("root")
    options = list(_options({**fields, "data": section}))
    with shown(), _errors_for_programs():
        try:
            return stages.build(folder, *options, **wishes)
        except Interrupted:
            if not epochs_to_finish(Path(output) / "training"):
                raise
            return stages.build(folder, *options, **wishes, finish=True)


@contextmanager
def _errors_for_programs() -> Iterator[None]:
    """Say in errors what to write in a program: "give --min-class-iou 0.2" becomes "give min_class_iou 0.2".

    Shell commands stay as they are.
    """
    try:
        yield
    except LithesegError as error:
        error.args = (_OPTION.sub(_as_argument, str(error)),)
        raise


def _as_argument(found: re.Match[str]) -> str:
    return found[1] or found[2].replace("-", "_")


def _section(data: str | Path | Mapping[str, Any] | None, size: tuple[int, int] | None) -> dict[str, Any]:
    """The recipe's section `data`."""
    section: dict[str, Any] = dict(data) if isinstance(data, Mapping) else {} if data is None else {"root": str(data)}
    return section if size is None else {**section, "size": list(size)}


def _shortest(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with as few epochs as the run in a folder may end after."""
    return replace(recipe, trainer=replace(recipe.trainer, epochs=epochs_to_finish(folder)))


def _recipe(
    name: str,
    data: str | Path | Mapping[str, Any] | None,
    size: tuple[int, int] | None,
    minutes: float | None,
    init: str | Path | None,
    fields: Mapping[str, Any],
) -> Recipe:
    trainer = dict(fields.get("trainer", {}))
    if minutes is not None:
        trainer["minutes"] = minutes
    values = {**fields, "data": _section(data, size), "trainer": trainer}
    return load_recipe(name, list(_options(values)), init=None if init is None else str(init))


def _options(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Fields as command-line options: {"trainer": {"epochs": 3}} -> ``--trainer.epochs=3``."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path != "data.options":
            yield from _options(value, f"{path}.")
        else:
            yield f"--{path}={value if isinstance(value, (str, Path)) else json.dumps(value)}"
