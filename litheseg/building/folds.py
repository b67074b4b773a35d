"""Cross-validation within a build: of few images, each is scored once, by a network that did not see it.

nnU-Net's idea (Isensee et al., Nature Methods 2021): k short trainings beside the one that is delivered, each with
another k-th of the images held out. A fold that is trained leaves its counts in a file, and is not trained again.

Usage:
    >>> plan_folds(fingerprint, None, steps=4000, widths=1)
    FoldPlan(count=3, steps=500, because='each of the 24 images is scored once')
    >>> cross_validate(recipe, 3, Path("deployed/folds"))
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from litheseg.building.fingerprint import Fingerprint
from litheseg.building.validation import FEW, FOLDS
from litheseg.errors import LithesegError
from litheseg.evaluation.metrics import iou_per_class, mean_iou
from litheseg.files import write_text
from litheseg.models.bundle import load_bundle, save_bundle
from litheseg.progress import say
from litheseg.training.build import build_data
from litheseg.training.recipe import Recipe
from litheseg.training.run import train

__all__ = ["FoldPlan", "cross_validate", "note_scores", "plan_folds"]

_LEAST, _MOST = 400, 20_000  # steps of a fold: fewer do not show what the data allows
_PART = 8  # of all steps, at least one part of so many is a fold's
_FEWEST = 20  # steps, where somebody asks for folds


@dataclass(frozen=True)
class FoldPlan:
    """How much of the time goes to cross-validation.

    Attributes:
        count: of folds; 0 for none.
        steps: of each.
        because: why.
    """

    count: int
    steps: int
    because: str


def plan_folds(facts: Fingerprint, asked: int | None, *, steps: int, widths: int, teachers: bool = False) -> FoldPlan:
    """Whether there are folds: of few images, and where the time allows it.

    Args:
        facts: about the data.
        asked: for so many folds, 0 or 1 for none; None leaves it to the rules.
        steps: of training for which there is time in all.
        widths: that are trained.
        teachers: whether the recipe trains teachers first, which each fold would need of its own.

    Raises:
        LithesegError: more folds than images or than there is time for, or fewer than none.
    """
    if asked is not None:
        return _asked(facts, asked, steps)
    if not facts.holds_out:
        return FoldPlan(0, 0, "the data has a val split of its own; --folds 3 cross-validates")
    if facts.labelled >= FEW:
        return FoldPlan(0, 0, f"{facts.labelled} images: val says enough; --folds 3 cross-validates")
    if teachers:
        return FoldPlan(0, 0, "each fold would need teachers of its own; --folds 3 cross-validates")
    each = min(max(_LEAST, steps // _PART), _MOST)
    left = steps - FOLDS * each
    if facts.labelled < 2 * FOLDS or left < max(steps / 2, widths * _LEAST):
        few = f"{steps} steps are too few for {FOLDS} folds of {_LEAST} and the network; give more --minutes"
        reason = few if facts.labelled >= 2 * FOLDS else f"{facts.labelled} images are too few"
        return FoldPlan(0, 0, f"{reason}, or --folds {FOLDS}")
    return FoldPlan(FOLDS, each, f"{facts.labelled} images are few: each is scored once; --folds 0 for none")


def _asked(facts: Fingerprint, count: int, steps: int) -> FoldPlan:
    images = facts.labelled
    if count < 0 or count > images:
        raise LithesegError(f"--folds {count}: there are {images} images; choose 0 for none, or 2 to {images}")
    if count < 2:
        return FoldPlan(0, 0, "as asked for")
    each = min(max(min(_LEAST, steps // 2 // count), steps // _PART * FOLDS // count), _MOST)
    if each < _FEWEST:
        raise LithesegError(
            f"--folds {count}: the minutes leave {each} training steps for each fold; give more --minutes, or --folds 0"
        )
    return FoldPlan(count, each, "as asked for")


def cross_validate(recipe: Recipe, count: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Train and score all folds, and say by width what came out, as `bundle.cross_validation` reads it.

    Args:
        recipe: of a fold, without saying which.
        count: of folds.
        folder: where folds are trained; counts of those that are done stay there.

    Raises:
        Interrupted: Ctrl-C; the same call goes on.
        LithesegError: what training refuses.
    """
    done = [_fold(recipe, number, count, folder) for number in range(1, count + 1)]
    return {
        width: {
            "images": sum(fold["images"] for fold in done),
            "folds": _plain(mean_iou(counts) for counts in by_fold),
            "miou": mean_iou(sum(by_fold)),
            "iou": _plain(iou_per_class(sum(by_fold))),
        }
        for width in done[0]["confusion"]
        for by_fold in [np.array([fold["confusion"][width] for fold in done])]
    }


def _plain(values: Iterable[float]) -> list[float | None]:
    return [None if math.isnan(value) else float(value) for value in values]


def _fold(recipe: Recipe, number: int, count: int, folder: Path) -> dict[str, Any]:
    """Counts of one fold: pixels by label and prediction, by width."""
    file, run = folder / f"fold{number}.json", folder / f"fold{number}"
    if not file.exists():
        say(f"fold {number} of {count}")
        # A fold may hold all images of a class: that it is not found then is part of the score.
        data = replace(recipe.data, fold=f"{number}/{count}", absent_classes=True)
        trainer = replace(recipe.trainer, val_every=recipe.trainer.epochs, keep="last", loggers=("csv",))
        own = replace(recipe, data=data, trainer=trainer)
        images = len(build_data(own).source.samples("val"))
        scores = train(own, run, resume=True).scores
        confusion = {f"{width:g}": found.confusion.tolist() for width, found in scores.items()}
        write_text(file, json.dumps({"images": images, "confusion": confusion}) + "\n")
    shutil.rmtree(run, ignore_errors=True)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def note_scores(model: Path, scores: dict[str, dict[str, Any]]) -> None:
    """Write cross-validated scores into a model file, beside its own."""
    bundle = load_bundle(model)
    metrics = {
        width: {**entry, "cross_validated": scores[width]} if width in scores else entry
        for width, entry in bundle.header.metrics.items()
    }
    if metrics != bundle.header.metrics:
        save_bundle(model, bundle.model(), replace(bundle.header, metrics=metrics))
