"""From a folder of labelled images and a budget to a deployed network, in one command.

It looks at the data, plans (input size, widths, steps: what the minutes allow; plan.yaml has every value with its
reason), trains, chooses by measuring on this machine, exports, proves that the export is the same network and as fast
as promised, and reports. Nothing has to be chosen, and any field of a recipe can be: `litheseg train --help-all`.

The same command goes on after Ctrl-C, a crash or a reboot. --finish ends training early and deploys what there is.

Examples:
  litheseg build data/mine --budget 20ms --minutes 60 --output deployed
  litheseg build data/mine --budget 15fps --unlabelled photos/ --min-class-iou 0.2 --output deployed
  litheseg build data/mine --budget 20ms --target measurements.json --output deployed     (chosen anew, for another box)
  litheseg build data/mine --data.size "[360,480]" --widths "[1,.5]" --output deployed    (not left to the plan)
"""

from __future__ import annotations

from pathlib import Path

from litheseg.cli.printing import print_table, print_warnings
from litheseg.values import Duration

__all__ = ["build"]


def build(
    data: Path,
    /,
    *overrides: str,
    budget: Duration | None = None,
    minutes: float = 60.0,
    output: Path = Path("deployed"),
    unlabelled: Path | None = None,
    classes: Path | None = None,
    min_class_iou: float | None = None,
    target: Path | None = None,
    folds: int | None = None,
    finish: bool = False,
    json: bool = False,
    command: str = "",
) -> None:
    """Print the scores by width, what was chosen, and what is promised of it.

    Args:
        data: folder of labelled images.
        *overrides: recipe fields that are not left to the plan.
        budget: milliseconds of one image, end to end, on this machine; written 20ms or, as a rate, 15fps; by default
            the most accurate network is taken.
        minutes: that everything takes together, about.
        output: folder of all that is made; the same one goes on with a build that was stopped.
        unlabelled: folder of images without labels, to learn from as well.
        classes: class file that says what mask values mean; by default the one in the data's folder.
        min_class_iou: refuse networks whose worst class has a lower IoU, in [0, 1].
        target: timings of another machine, which a kit of the trained network measured there (`litheseg measure`): the
            budget is then for that machine.
        folds: of a cross-validation, which scores each image once by a network that did not see it; 0 or 1 for none; by
            default 3 with fewer than 50 labelled images, if the minutes allow it.
        finish: train only one epoch more, in which the learning rate falls to 0, and deploy what there is then.
        json: print JSON.
        command: the shell command, for the report.
    """
    # PyTorch and Lightning take their time, which --help need not wait for.
    from litheseg.building import stages
    from litheseg.bundle.cross_validation import MEANING
    from litheseg.bundle.verdicts import verdicts
    from litheseg.models.bundle import load_bundle
    from litheseg.report.card import width_rows, width_table

    result = stages.build(
        data,
        *overrides,
        budget=budget,
        minutes=minutes,
        output=output,
        unlabelled=unlabelled,
        classes=classes,
        min_class_iou=min_class_iou,
        target=target,
        folds=folds,
        finish=finish,
        command=command,
    )
    if json:
        print((output / "build.json").read_text(encoding="utf-8"), end="")
        return
    header = load_bundle(result.bundle).header
    print_table(width_table(width_rows(header)), "scores on val")
    print_warnings(verdicts(header))
    print(f"\nchosen  {result.sentence}")
    if checked := result.cross_validated.get(result.promise["width"]):
        print(f"expect  {checked}\n        {MEANING}")
    print(f"deploy  {result.deployed}\nreport  {output / 'report.html'}\nplan    {output / 'plan.yaml'}")
    print(f"try it  litheseg predict {result.deployed} PHOTO --output masks")
