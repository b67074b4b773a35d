"""Score a model on labelled images.

Examples:
  litheseg evaluate runs/camvid/model.safetensors
  litheseg evaluate model.safetensors --data data/camvid --widths 1,.6,.25 --save model-6.safetensors
  litheseg evaluate model.safetensors --mode sliding --window 360x480 --flip --scales .75,1,1.25
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litheseg.bundle.verdicts import hardly_found, outdone, outdone_words
from litheseg.cli.parsing import command
from litheseg.cli.printing import print_json, print_table, print_warnings
from litheseg.evaluation.bundle import evaluate_bundle
from litheseg.models.bundle import load_bundle
from litheseg.report.terminal import class_table, scores_table

__all__ = ["evaluate"]


@command(evaluate_bundle)
def evaluate(model: Path, *, save: Path | None = None, json: bool = False, **options: Any) -> None:
    """Print the scores of each width and class.

    Args:
        model: a model file, such as runs/NAME/model.safetensors.
        json: print JSON.
        save: file for the model with the calibrated widths and the scores.
        **options: of `evaluate_bundle`.
    """
    bundle = load_bundle(model)
    result = evaluate_bundle(bundle, save=save, **options)
    if json:
        scores = {f"{width:g}": score.to_dict() for width, score in result.scores.items()}
        facts = {"bundle": str(model), "data": result.data, "split": result.split, "calibrated": result.calibrated}
        return print_json({**facts, "scores": scores})
    if result.calibrated:
        widths = ", ".join(f"{width:g}" for width in result.calibrated)
        kept = f"kept in {save}" if save else "not kept; --save FILE keeps it"
        print(f"width {widths}: batch-norm statistics measured on training images ({kept})")
    names, trained = bundle.header.classes.names, bundle.header.widths
    print_table(scores_table(result.scores, names), f"{model} on {result.data} {result.split}")
    print_table(class_table(result.scores, names))
    miou = {width: scores.miou for width, scores in result.scores.items()}
    iou = {width: scores.iou for width, scores in result.scores.items()}
    print_warnings(hardly_found(names, iou, bundle.header.provenance) + outdone_words(outdone(miou, trained), miou))
