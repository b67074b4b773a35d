"""Search over fields of a recipe by many short runs (Optuna), for those who want to search.

Each run trains in a folder of its own; one whose validations are below the median of those before it ends early. The
score is the mIoU on val of one width. The same command goes on after Ctrl-C, a crash or a reboot, and with more
--trials. The best of many on val is flattered there: score its recipe on images that chose nothing.

--search FIELD=LOW:HIGH (whole numbers or not), FIELD=LOW:HIGH:log, or FIELD=A,B,C; give it for each field. All other
options are those of `litheseg train`.

Examples:
  litheseg tune --search optimizer.lr=1e-4:1e-2:log --data.root data/mine --trainer.epochs 10
  litheseg tune --recipe mine.yaml --search objectives.kl.weight=0.3:10:log --trials 30 --width 0.25 --output runs/kl
  litheseg train --recipe runs/tuned/best.yaml --trainer.epochs 100 --output runs/best
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from litheseg.cli.printing import print_json, print_table
from litheseg.progress import work

__all__ = ["tune"]


def tune(
    *overrides: str,
    recipe: str = "slimseg",
    search: Sequence[str] = (),
    trials: int = 20,
    width: float | None = None,
    init: str | None = None,
    output: Path = Path("runs/tuned"),
    json: bool = False,
) -> None:
    """Print the trials, and where the best recipe is.

    Args:
        *overrides: recipe fields that all runs share.
        recipe: name (see `litheseg recipes`) or .yaml file.
        search: a field with a range or choices; may be given several times.
        trials: runs in all, those of a search that goes on included.
        width: whose mIoU on val counts; by default the widest.
        init: a trained model to start each run from: its file, zoo:NAME or hf:OWNER/NAME.
        output: folder of the search: best.yaml, and all runs.
        json: print JSON.
    """
    with work("loading libraries"):  # PyTorch and Lightning take their time, which --help need not wait for
        from litheseg.building import tuning

    found = tuning.tune(recipe, *overrides, search=search, trials=trials, width=width, output=output, init=init)
    if json:
        entries = [{**vars(trial), "folder": str(trial.folder)} for trial in found.trials]
        print_json({"best": str(found.best), "width": found.width, "trials": entries})
        return
    print_table(found.table)
    print(f"best  {found.best}\n\nnext:\n  litheseg train --recipe {found.best} --output {output / 'best'}")
