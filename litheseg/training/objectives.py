"""From a recipe's weights to the objectives that a task sums; a weight of 0 leaves a term out.

It decides which term goes with which rows and whose lesson. It builds neither models nor teachers; `asked` says what
each teacher must be able to answer.

Usage:
    >>> objectives = build_objectives(recipe, class_weights, aux=True)
    >>> asked(objectives, "deep")
    Asked(streams=frozenset({'labelled', 'unlabelled'}), mixed=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from litheseg.losses.granularity_terms import ImageLevelTerm, IntraClassTerm, PairwiseTerm, RegionLevelTerm
from litheseg.losses.pseudo import PseudoLabelTerm
from litheseg.losses.terms import (
    AuxTerm,
    BoundaryBandTerm,
    BoundaryHeadTerm,
    ChannelWiseTerm,
    CrossEntropyTerm,
    DiceTerm,
    KLTerm,
    LovaszTerm,
    OhemTerm,
    Term,
)
from litheseg.training.config import LossConfig, MgdConfig, Recipe, TutorConfig
from litheseg.training.streams import LABELLED, PERTURBED, UNLABELLED
from litheseg.training.task import Objective

__all__ = ["TEACHER", "Asked", "asked", "build_objectives", "build_terms"]

TEACHER = "teacher"  # the name of the recipe's own teacher; MGD's are "deep" and "wide"
_OF_WHOLE_IMAGES = (ImageLevelTerm, IntraClassTerm, PairwiseTerm, RegionLevelTerm)


@dataclass(frozen=True)
class Asked:
    """What is asked of a teacher.

    Attributes:
        streams: those it must give lessons for.
        mixed: whether a term compares what it makes of the mixed images themselves.
    """

    streams: frozenset[str]
    mixed: bool


def asked(objectives: Mapping[str, Objective], teacher: str) -> Asked:
    """What these objectives ask of the teacher of this name."""
    mine = [objective for objective in objectives.values() if objective.teacher == teacher]
    terms = [getattr(objective.term, "inner", objective.term) for objective in mine if objective.stream == UNLABELLED]
    mixed = any(isinstance(term, _OF_WHOLE_IMAGES) for term in terms)
    return Asked(frozenset(objective.stream for objective in mine), mixed)


def build_objectives(recipe: Recipe, weight: Tensor | None, *, aux: bool) -> dict[str, Objective]:
    """All objectives of a run, by the names that logs show.

    Args:
        recipe: its sections loss, teacher, mgd and data count.
        weight: class weights [K], or None.
        aux: whether the model has a deep-supervision head.
    """
    loss = recipe.loss
    terms = build_terms(loss, weight, aux=aux)
    objectives = {name: Objective(term, optional=not loss.hard_labels) for name, term in terms.items()}
    if recipe.teacher.kind != "none":
        objectives |= _of_teacher(loss, weight, unlabelled=recipe.data.unlabelled is not None)
    for name, tutor in recipe.mgd.tutors.items():
        objectives |= _of_tutor(name, tutor, recipe.mgd, loss, weight)
    return {name: objective for name, objective in objectives.items() if objective.term.scale != 0}


def build_terms(config: LossConfig, weight: Tensor | None, *, aux: bool) -> dict[str, Term]:
    """The terms on labels."""
    ohem = config.main == "ohem"
    radius = config.boundary_radius
    return {
        "main": OhemTerm(weight, threshold=config.ohem_threshold) if ohem else CrossEntropyTerm(weight),
        "aux": AuxTerm(weight, scale=config.aux if aux else 0.0),
        "dice": DiceTerm(scale=config.dice),
        "lovasz": LovaszTerm(scale=config.lovasz),
        "boundary_band": BoundaryBandTerm(weight, radius=radius, scale=config.boundary_band),
        "boundary_head": BoundaryHeadTerm(radius=radius, scale=config.boundary_head),
    }


def _of_teacher(config: LossConfig, weight: Tensor | None, *, unlabelled: bool) -> dict[str, Objective]:
    """What is learned from the recipe's own teacher: on labelled images and, where there are any, unlabelled ones."""

    def lesson(term: Term, stream: str) -> Objective:
        return Objective(term, stream, TEACHER, warmup=config.warmup)

    intra = IntraClassTerm(scale=config.intra_class)
    terms: dict[str, Term] = {
        "kl": KLTerm(temperature=config.temperature, scale=config.kl),
        "channel_wise": ChannelWiseTerm(temperature=config.channel_wise_temperature, scale=config.channel_wise),
        "pairwise": PairwiseTerm(scale=config.pairwise),
    }
    objectives = {name: lesson(term, LABELLED) for name, term in {**terms, "intra_class": intra}.items()}
    if not unlabelled:
        return objectives
    unseen = {**terms, "intra_class": PseudoLabelTerm(IntraClassTerm(), scale=config.intra_class)}
    objectives |= {f"{name}_unlabelled": lesson(term, UNLABELLED) for name, term in unseen.items()}
    entropy = CrossEntropyTerm(weight)
    band = BoundaryBandTerm(weight, radius=config.boundary_radius)
    sure = config.confidence
    # The band goes with labels: where pseudo-labels are learned from, so is their border.
    banded = config.boundary_band if config.pseudo else 0.0
    return objectives | {
        "pseudo": lesson(PseudoLabelTerm(entropy, sure, scale=config.pseudo), UNLABELLED),
        "pseudo_band": lesson(PseudoLabelTerm(band, sure, scale=banded), UNLABELLED),
        "perturbed": lesson(PseudoLabelTerm(entropy, sure, scale=config.perturbed), PERTURBED),
    }


def _of_tutor(
    name: str, tutor: TutorConfig, mgd: MgdConfig, loss: LossConfig, weight: Tensor | None
) -> dict[str, Objective]:
    """What is learned from one of MGD's two teachers."""

    def pixel(scale: float) -> Term:
        if mgd.labels == "soft":
            return KLTerm(scale=scale)
        return PseudoLabelTerm(CrossEntropyTerm(weight), mgd.threshold, scale=scale)

    band = BoundaryBandTerm(weight, radius=loss.boundary_radius)
    terms = {
        "pixel": (pixel(tutor.pixel_labelled), LABELLED),
        "pixel_unlabelled": (pixel(tutor.pixel_unlabelled), UNLABELLED),
        "image": (ImageLevelTerm(scale=tutor.image), UNLABELLED),
        "region": (RegionLevelTerm(grid=mgd.grid, scale=tutor.region), UNLABELLED),
        "boundary": (PseudoLabelTerm(band, mgd.threshold, scale=tutor.boundary), UNLABELLED),
    }
    return {
        f"{name}_{what}": Objective(term, stream, name, warmup=mgd.warmup) for what, (term, stream) in terms.items()
    }
