"""Which images a plan holds out of the training images, where data has no val split of its own.

Images that are alike must not be on both sides, or scores measure memory: whole sequences are held out, whole groups of
near duplicates, or the end of a video. That names are numbers proves nothing: whether neighbours are alike is measured
(`litheseg.data.sources.portraits`). Where they are not, images are held out at random. Of few images fewer are held
out.

A class that only held-out images show is never learned, and one that none of them shows is not scored: among a few
seeds the first is taken that has each class on both sides and, of few images, among what each fold is trained on.

Usage:
    >>> hold_out(fingerprint)[0]
    {'hold_out': 'last', 'val_fraction': 0.15}
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litheseg.building.fingerprint import Fingerprint
from litheseg.data.sources.hold_out import Holding

__all__ = ["FEW", "FOLDS", "divided", "hold_out"]

FEW = 50
"""Labelled images, below which each one counts."""
FOLDS = 3
"""Parts that few images are cross-validated in."""
_SHARE, _SHARE_OF_FEW = 0.2, 0.15
_MOST_OF_ALL = 0.6  # of the images may be of one unit, where whole ones are held out
_LEAST_OF_FEW = 0.2  # of few images, at most, must the smallest sequence be
_SEEDS = 50  # that are tried


def hold_out(facts: Fingerprint) -> tuple[dict[str, Any], str]:
    """Options of the data, and why."""
    share = _SHARE_OF_FEW if facts.labelled < FEW else _SHARE
    how, reason = _how(facts)
    options: dict[str, Any] = {} if how == "random" else {"hold_out": how}
    if share != _SHARE:
        options["val_fraction"] = share
        reason += f"; of {facts.labelled} images {share:.0%}, so that as many as possible are trained on"
    seed = 0 if how == "last" else min(range(_SEEDS), key=lambda seed: _one_sided(facts, Holding(how, seed), share))
    if seed:
        options["seed"] = seed
        reason += "; the usual choice, seed 0, would leave classes on one side alone"
    return options, reason


def divided(facts: Fingerprint) -> Fingerprint:
    """The fingerprint with as many images to train on as there will be; it was taken with a fifth held out."""
    if not facts.holds_out or facts.labelled >= FEW:
        return facts
    val = max(1, round(_SHARE_OF_FEW * facts.labelled))
    return replace(facts, train=facts.labelled - val, val=val)


def _one_sided(facts: Fingerprint, holding: Holding, share: float) -> int:
    """How often a class that several images show is missing on a side, of what is held out and of folds."""
    ids, holding = list(facts.shown), replace(holding, groups=lambda: facts.groups)
    images = [{name for name in ids if index in facts.shown[name]} for index in range(len(facts.classes))]
    several = [found for found in images if len(found) > 1]
    if not several:
        return 0
    held = holding.part(ids, share)
    folds = holding.folds(ids, FOLDS) if FOLDS <= len(ids) < FEW else []
    untrained = sum(found <= part for found in several for part in (held, *folds))
    return untrained + sum(not found & held for found in several)


def _how(facts: Fingerprint) -> tuple[str, str]:
    sizes, images = facts.sequences.values(), sum(facts.sequences.values())
    small = facts.labelled >= FEW or min(sizes, default=0) <= _LEAST_OF_FEW * images
    if len(sizes) >= 3 and max(sizes) <= _MOST_OF_ALL * images and max(sizes) > 1 and small:
        return "sequences", f"frames of one of the {len(sizes)} sequences may be alike: whole ones are held out"
    groups = [len(group) for group in facts.groups]
    if groups and max(groups) <= _MOST_OF_ALL * facts.labelled:
        return "groups", f"{sum(groups)} images nearly equal another one: of a group all are held out, or none"
    alike = facts.clips or (facts.sequences if groups else ())
    if sum(facts.sequences.get(name, 0) for name in alike if facts.sequences.get(name, 0) > 1) >= images / 2:
        return "last", "neighbours by number are alike, as in a video, so the end of each sequence is held out"
    return "random", "neighbours by number are not alike, so images are held out at random"
