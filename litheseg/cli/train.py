"""Train a network that runs at several widths.

the options that matter most, by example:
  --recipe slimseg              what is trained: a recipe's name (see `litheseg recipes`) or a .yaml file
  --data.root data/camvid       the folder of the data
  --data.source streets         instead: procedural scenes, no files
  --data.size "[360,480]"       height and width that images are resized to
  --data.batch_size 8           images of a step
  --trainer.epochs 40           how long
  --widths "[1,.5]"             the widths that it shall run at, as fractions of the channels
  --optimizer.lr 5e-4           the learning rate
  --find-batch-size --find-lr   measure them instead
  --init zoo:camvid-lite0       start from a trained model: the network is its, the classes are those of the data
  --output runs/camvid          the run's folder
  --resume                      go on after Ctrl-C, a crash or a reboot

Examples:
  litheseg train --recipe slimseg --data.root data/camvid --data.size "[360,480]" --output runs/camvid
  litheseg train --recipe slimseg --data.source streets --trainer.epochs 20     (procedural scenes, no files)
  litheseg train --recipe mine.yaml --optimizer.lr=5e-4 --widths "[1,.5]"

A recipe is a YAML file; each of its fields can be changed by an option (--a.b=value or --a.b value).
`litheseg recipes NAME` prints one, and `litheseg train --help-all` explains every field.
"""

from __future__ import annotations

from pathlib import Path

from litheseg.cli.printing import print_next, print_table, print_warnings
from litheseg.errors import LithesegError, TrainingError
from litheseg.progress import work

__all__ = ["train"]


def help_all() -> str:
    """Every field of a recipe, with its default in brackets."""
    from litheseg.training.recipe import Recipe
    from litheseg.training.recipe_help import recipe_help

    return f"recipe fields, and in brackets the value where a recipe says nothing:\n{recipe_help(Recipe())}"


def train(
    *overrides: str,
    recipe: str = "slimseg",
    init: str | None = None,
    output: Path | None = None,
    find_batch_size: bool = False,
    find_lr: bool = False,
    resume: bool = False,
    command: str = "",
) -> None:
    """Print the scores of each width, and what to do with the model.

    Args:
        *overrides: recipe fields.
        recipe: name (see `litheseg recipes`) or .yaml file.
        init: a trained model to start from: its file, zoo:NAME or hf:OWNER/NAME; by default fresh weights.
        output: the run's folder; by default runs/RECIPE.
        find_batch_size: measure for data.batch_size: it doubles from 2 while the double fits into memory and an epoch
            keeps 4 steps, and above 8 only while images train 10 % faster. The recipe in the run's folder has the
            result, so that a resumed run has the same.
        find_lr: measure for optimizer.lr: it rises from 1e-6 over 100 steps of a network that is thrown away, until
            the loss explodes; where the loss falls most steeply is the peak rate. The folder has the curve, lr.png.
        resume: go on from the folder's last checkpoint.
        command: the shell command, for the report.
    """
    with work("loading libraries"):  # PyTorch and Lightning take their time, which --help need not wait for
        from litheseg.building import finding
        from litheseg.bundle.verdicts import verdicts
        from litheseg.models.bundle import load_bundle
        from litheseg.report.card import width_rows, width_table
        from litheseg.report.run_report import report_run
        from litheseg.training import run
        from litheseg.training.ranks import is_first_process
        from litheseg.training.recipe import load_recipe

    loaded = load_recipe(recipe, list(overrides), init=init)
    folder = output or Path("runs") / loaded.name
    loaded = finding.with_found(loaded, folder, batch_size=find_batch_size, lr=find_lr)
    result = run.train(loaded, folder, resume=resume)
    if not is_first_process():
        return
    try:
        with work("writing the report"):
            report = report_run(result.folder, command=command)
    except LithesegError as error:
        raise TrainingError(
            f"{error}. The model is whole, {result.bundle}; the same command with --resume writes the report"
        ) from error
    header = load_bundle(result.bundle).header
    print_table(width_table(width_rows(header)))
    print_warnings(verdicts(header))
    print_next(result.bundle, report, tuple(result.scores))
