"""Score a model on corrupted images, and say what its confidence is worth.

Fifteen corruptions that cameras meet (noise, blur, weather, light, compression), each in five strengths, at every width
and precision; calibration error; and how many of the errors the confidence map finds. Exports are measured as they run
on the box, so int8 stands beside float. It takes minutes: 76 pictures of each image. Fewer --images, or --corruptions
and --strengths, take less.

Examples:
  litheseg robustness runs/camvid/model.safetensors --output robustness.html
  litheseg robustness runs/camvid/model.safetensors exports/camvid --data data/camvid --images 50
  litheseg robustness exports/camvid --precisions int8 --corruptions fog,rain --strengths 3 --json
  litheseg robustness model.safetensors --corruptions "" --images 0      (confidence alone, on all images)
  litheseg robustness model.safetensors --save model.safetensors         (for its model card)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from litheseg.bundle.exported import is_export
from litheseg.bundle.names import distinct_names
from litheseg.cli.parsing import command as takes_options_of
from litheseg.cli.printing import print_json, print_table, show
from litheseg.errors import LithesegError
from litheseg.evaluation.robustness import header_robustness, measure_robustness
from litheseg.models.bundle import load_bundle, save_bundle
from litheseg.report.robustness import write_robustness
from litheseg.report.robustness_tables import card_rows, corruption_table, robustness_table

__all__ = ["robustness"]


@takes_options_of(measure_robustness, without=("models",))
def robustness(
    models: Sequence[str],
    *,
    output: Path | None = None,
    save: Path | None = None,
    json: bool = False,
    command: str = "",
    **options: Any,
) -> None:
    """Print the scores.

    Args:
        models: model files and exports of the same classes, such as a float model file and its int8 export.
        output: an HTML page with figures.
        save: file for the first model, a model file, with what was measured, which its card then says.
        json: print JSON.
        command: the shell command, for the page.
        **options: of `measure_robustness`.
    """
    if save is not None and is_export(models[0]):
        raise LithesegError(f"--save writes a model file, and {models[0]} is an export; name the model file first")
    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise LithesegError(f"{output}: the page is HTML; give a name that ends in .html")
    card = measure_robustness(dict(zip(distinct_names(models), models, strict=True)), **options)
    if save is not None:
        bundle = load_bundle(models[0])
        metrics = header_robustness(bundle.header.metrics, card)
        save_bundle(save, bundle.model(), replace(bundle.header, metrics=metrics))
    if output is not None:
        write_robustness(output, card, command=command)
    if json:
        return print_json(card.to_dict())
    rows = card_rows(card)
    print_table(robustness_table(rows), str(card))
    if card.corruptions:
        print_table(corruption_table(rows))
    for path in (output, save):
        if path is not None:
            show(str(path))
