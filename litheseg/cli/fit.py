"""Find the most accurate model within a budget, by measuring, and export it.

Times are end to end, from an image of the camera to its mask of the same size, on this machine;
keep it quiet meanwhile. What is chosen is timed again, beside its rivals, before it is promised. One image follows the
other at once; where they come from a camera, cores rest in between and take longer: say at which rate, with --fps.

Examples:
  litheseg fit runs/camvid/model.safetensors --budget 20ms --output deployed
  litheseg fit model.safetensors --budget 15fps --percentile 99 --threads 1 --runtime openvino --output deployed
  litheseg fit model.safetensors --budget 30ms --fps 15 --output deployed               (a camera of 15 images a second)
  litheseg fit model.safetensors --budget 10ms --sizes 180x240,136x184 --model-size 2MB --min-miou 0.5 --output out
  litheseg fit model.safetensors --budget 20ms --measured measurements.json --reserve 4ms --output for-the-box
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litheseg.budget import fit as budget
from litheseg.cli.parsing import command as takes_options_of
from litheseg.cli.printing import print_table, print_warnings

__all__ = ["fit"]


@takes_options_of(budget.fit)
def fit(model: Path, *, output: Path, json: bool = False, command: str = "", **options: Any) -> None:
    """Print what was measured, and what to deploy.

    Args:
        model: an elastic model file, such as runs/NAME/model.safetensors.
        output: folder of the export, fit.json and frontier.png.
        json: print JSON.
        command: the shell command, for fit.json.
        **options: of `litheseg.budget.fit.fit`.
    """
    result = budget.fit(model, output=output, command=command, **options)
    if json:
        print((output / budget.FIT_FILE).read_text(encoding="utf-8"), end="")
        return
    print_table(result.table(), f"the frontier ({result.scored})")
    for note in result.found.notes:
        print(f"note: {note}")
    print_warnings(result.warnings)
    print(f"\nchosen  {result.sentence()}")
    print(f"deploy  {result.deployed}\nplot    {output / 'frontier.png'}\nall     {output / budget.FIT_FILE}")
