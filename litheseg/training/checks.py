"""What a recipe's values must fulfil, told before anything takes time.

Types are checked where a recipe is read; what only data or a model can tell (class counts, image sizes) is checked
there.

Usage:
    >>> check_recipe(recipe)
"""

from __future__ import annotations

import math
from operator import attrgetter

from litheseg.bundle.header import check_width
from litheseg.errors import RecipeError
from litheseg.training.config import Recipe, TeacherConfig, WidthConfig

__all__ = ["check_recipe"]

_POSITIVE = math.ulp(0.0)  # the smallest number above 0
_BELOW_ONE = math.nextafter(1.0, 0.0)
_RANGES: dict[str, tuple[float, float]] = {
    "data.batch_size": (1, math.inf),
    "data.workers": (0, math.inf),
    "widths.samples": (0, math.inf),
    "widths.divisor": (1, math.inf),
    "model.efficient.groups": (0, math.inf),
    "grouping.start": (0, _BELOW_ONE),
    "grouping.length": (0, _BELOW_ONE),
    "grouping.hold": (0, _BELOW_ONE),
    "grouping.steps": (1, math.inf),
    "grouping.refresh": (0, math.inf),
    "grouping.off_block_decay": (0, _BELOW_ONE),
    "data.unreadable": (0, 1),
    "data.steps": (0, math.inf),
    "teacher.decay": (0, _BELOW_ONE),
    "mgd.threshold": (0, _BELOW_ONE),
    "mgd.grid": (2, math.inf),
    "mgd.warmup": (0, 1),
    "mgd.teacher_epochs": (0, math.inf),
    **{
        f"mgd.{tutor}.{weight}": (0, math.inf)
        for tutor in ("deep", "wide")
        for weight in ("pixel_labelled", "pixel_unlabelled", "image", "region", "boundary")
    },
    "loss.ohem_threshold": (_POSITIVE, 1),
    "loss.class_weight_offset": (math.nextafter(1.0, 2.0), math.inf),
    "loss.dice": (0, math.inf),
    "loss.lovasz": (0, math.inf),
    "loss.aux": (0, math.inf),
    "loss.boundary_band": (0, math.inf),
    "loss.boundary_head": (0, math.inf),
    "loss.boundary_radius": (0, math.inf),
    "loss.kl": (0, math.inf),
    "loss.temperature": (_POSITIVE, math.inf),
    "loss.channel_wise": (0, math.inf),
    "loss.channel_wise_temperature": (_POSITIVE, math.inf),
    "loss.pairwise": (0, math.inf),
    "loss.intra_class": (0, math.inf),
    "loss.pseudo": (0, math.inf),
    "loss.perturbed": (0, math.inf),
    "loss.confidence": (0, _BELOW_ONE),
    "loss.warmup": (0, 1),
    "optimizer.lr": (_POSITIVE, math.inf),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.momentum": (0, _BELOW_ONE),
    "optimizer.power": (_POSITIVE, math.inf),
    "optimizer.warmup": (0, _BELOW_ONE),
    "optimizer.clip": (0, math.inf),
    "trainer.epochs": (1, math.inf),
    "trainer.seed": (0, 2**32 - 1),
    "trainer.nodes": (1, math.inf),
    "trainer.ema": (0, _BELOW_ONE),
    "trainer.early_stop": (0, math.inf),
    "trainer.val_every": (1, math.inf),
    "trainer.threads": (0, math.inf),
}


def check_recipe(recipe: Recipe) -> None:
    """Check ranges, and that choices fit together.

    Raises:
        RecipeError: a value does not; the message names it and its range.
        WidthError: a width outside (0, 1].
    """
    for name, (low, high) in _RANGES.items():
        value = attrgetter(name)(recipe)
        if not low <= value <= high:
            raise RecipeError(f"--{name} {value} is out of range; give {_range(low, high)}")
    _check_widths(recipe.widths)
    _check_teacher(recipe.teacher, recipe.widths)
    _check_grouping(recipe)
    _check_lessons(recipe)
    _check_mgd(recipe)
    _check_unlabelled(recipe)


def _range(low: float, high: float) -> str:
    above = "above 0" if low == _POSITIVE else f"above {low:g}" if low % 1 else f"at least {low:g}"
    if high == math.inf:
        return above
    return f"{above} and {'below 1' if high == _BELOW_ONE else f'at most {high:g}'}"


def _check_widths(config: WidthConfig) -> None:
    if not config.values:
        raise RecipeError("widths.values is empty; [1] is the full network")
    low, high = (end(check_width(width) for width in config.values) for end in (min, max))
    for width in config.calibrate:
        if not low <= check_width(width) <= high:
            raise RecipeError(
                f"widths.calibrate has {width:g}, but only widths within those trained, {low:g} to {high:g}, can be "
                "calibrated; add a narrower or wider one to widths.values"
            )


def _check_grouping(recipe: Recipe) -> None:
    config, trainer = recipe.grouping, recipe.trainer
    if config.shape == "none":
        return
    if config.end >= 1:
        raise RecipeError(
            f"the grouping schedule is longer than the run: {len(config.stages) + 1} stage(s) of {config.length:g} "
            f"after {config.start:g} of all steps, {config.hold:g} apart, end at {config.end:g}; leave some steps at "
            "alpha 0: shorten grouping.start, length or hold, or leave out stages, so that the sum is below 1"
        )
    if trainer.keep == "best" or trainer.early_stop:
        raise RecipeError(
            "trainer.keep best and trainer.early_stop do not go with gradual grouping: an epoch before alpha is 0 "
            "scores a network that is not the one to deploy; set --trainer.keep last and --trainer.early_stop 0"
        )
    if config.assignment == "magnitude" and (trainer.ema or recipe.teacher.kind == "ema"):
        raise RecipeError(
            "grouping.assignment magnitude relabels channels, which an average of earlier weights cannot follow; set "
            "--grouping.assignment contiguous, or --trainer.ema 0 and another teacher"
        )


def _check_teacher(config: TeacherConfig, widths: WidthConfig) -> None:
    if config.kind == "frozen" and config.bundle is None:
        raise RecipeError("teacher.kind is 'frozen' but teacher.bundle names no model; give the path of a bundle")
    if config.kind in ("ema", "self", "peer") and config.width not in widths.values:
        known = ", ".join(f"{width:g}" for width in widths.values)
        raise RecipeError(f"teacher.width {config.width:g} is not among the widths that are trained: {known}")


_EVERYWHERE = ("kl", "channel_wise", "pairwise", "intra_class")  # on labelled and, if there are any, unlabelled images
_UNLABELLED = ("pseudo", "perturbed")


def _check_lessons(recipe: Recipe) -> None:
    """A teacher and something to learn from it go together."""
    kind, loss = recipe.teacher.kind, recipe.loss
    learned = [name for name in (*_EVERYWHERE, *_UNLABELLED) if getattr(loss, name) > 0]
    if learned and kind == "none":
        raise RecipeError(f"loss.{learned[0]} needs a teacher; set --teacher.kind next-wider, say")
    if kind != "none" and not learned:
        raise RecipeError(
            f"teacher.kind is {kind}, but no term learns from it; set --loss.kl 1 or --loss.channel_wise 3 (with "
            "unlabelled images also --loss.pseudo 1), or --teacher.kind none"
        )
    if loss.perturbed and kind in ("next-wider", "widest"):
        raise RecipeError(f"loss.perturbed needs a teacher that sees whole features, not {kind}; set it to 0")
    if kind == "peer" and recipe.grouping.shape != "none":
        raise RecipeError(
            "two peers cannot turn into grouped networks together; train one of them afterwards: set "
            "--grouping.shape none, or another --teacher.kind"
        )


def _check_mgd(recipe: Recipe) -> None:
    mgd = recipe.mgd
    if mgd.labels == "soft" and mgd.threshold:
        raise RecipeError("mgd.threshold chooses among hard labels; set --mgd.labels hard or --mgd.threshold 0")
    if recipe.teacher.kind == "peer" and mgd.tutors:
        raise RecipeError("mgd's teachers do not go with --teacher.kind peer; train the peers alone (recipe cps)")


def _check_unlabelled(recipe: Recipe) -> None:
    """Unlabelled images and something to learn from them go together."""
    tutors = recipe.mgd.tutors
    weights = {f"loss.{name}": getattr(recipe.loss, name) for name in _UNLABELLED}
    for name, tutor in tutors.items():
        parts = ("pixel_unlabelled", "image", "region", "boundary")
        weights |= {f"mgd.{name}.{part}": getattr(tutor, part) for part in parts}
    needing = next((name for name, weight in weights.items() if weight), None)
    given = recipe.data.unlabelled is not None
    if needing and not given:
        raise RecipeError(
            f"{needing} learns from unlabelled images, and there are none; set --data.unlabelled to a folder of them, "
            "or to rest with --data.labelled 1/8, say"
        )
    everywhere = any(getattr(recipe.loss, name) > 0 for name in _EVERYWHERE)
    if given and not needing and not everywhere:
        raise RecipeError(
            "data.unlabelled gives images that no term learns from; set --loss.pseudo 1 with a teacher, use recipe mgd "
            "or unimatch, or leave --data.unlabelled out"
        )
