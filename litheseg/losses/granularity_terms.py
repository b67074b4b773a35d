"""Loss terms that compare a student with its teacher at image and region level, by pairs, and within classes.

Thin: the losses are those of `granularity` and `relations`, and `terms` says what a term is. All compare what both
networks make of the *same* image. Of a CutMixed image the teacher's "logits" and "features" may be those of the
unmixed images, mixed afterwards; its lesson then holds "mixed_logits" and "mixed_features", computed from the mixed
image itself, and those are compared.

Papers: see the functions that each term calls.

Usage:
    >>> terms = [ImageLevelTerm(scale=0.002), RegionLevelTerm(grid=7, scale=100)]
    >>> loss = sum(term(StepContext(outputs, teacher, mask)) for term in terms)
"""

from __future__ import annotations

from torch import Tensor

from litheseg.losses.granularity import image_level, region_level
from litheseg.losses.relations import intra_class_variation, pairwise_similarity
from litheseg.losses.terms import StepContext, Term
from litheseg.masks.classes import IGNORE_INDEX

__all__ = ["ImageLevelTerm", "IntraClassTerm", "PairwiseTerm", "RegionLevelTerm"]


class ImageLevelTerm(Term):
    """`image_level` of the logits over the pixels that the mask does not ignore.

    The weight is twice the paper's, see `litheseg.losses.granularity`.
    """

    needs_teacher = True

    def _loss(self, context: StepContext) -> Tensor:
        return image_level(context.output("logits"), _taught_on_the_same_image(context, "logits"), _inside(context))


class RegionLevelTerm(Term):
    """`region_level` of the features within what the mask does not ignore; the paper scales it by 100 or 50."""

    needs_teacher = True

    def __init__(self, grid: int = 7, *, scale: float = 1.0) -> None:
        super().__init__(scale=scale)
        self.grid = grid

    def _loss(self, context: StepContext) -> Tensor:
        taught = _taught_on_the_same_image(context, "features")
        return region_level(context.output("features"), taught, self.grid, _inside(context))


class PairwiseTerm(Term):
    """`pairwise_similarity` of the features within what the mask does not ignore."""

    needs_teacher = True

    def __init__(self, nodes: int = 2, pooling: str = "max", *, scale: float = 1.0) -> None:
        super().__init__(scale=scale)
        self.nodes, self.pooling = nodes, pooling

    def _loss(self, context: StepContext) -> Tensor:
        taught = _taught_on_the_same_image(context, "features")
        student = context.output("features")
        return pairwise_similarity(student, taught, self.nodes, _inside(context), pooling=self.pooling)


class IntraClassTerm(Term):
    """`intra_class_variation` of the features over the mask's classes; the released code scales it by 200."""

    needs_teacher = True

    def _loss(self, context: StepContext) -> Tensor:
        taught = _taught_on_the_same_image(context, "features")
        num_classes = context.output("logits").shape[1]
        return intra_class_variation(context.output("features"), taught, context.mask, num_classes)


def _taught_on_the_same_image(context: StepContext, name: str) -> Tensor:
    """What the teacher computed from the mixed image, or its tensor `name` where the lesson holds no such thing."""
    mixed = f"mixed_{name}"
    return context.taught(mixed if mixed in (context.teacher or {}) else name)


def _inside(context: StepContext) -> Tensor:
    return context.mask != IGNORE_INDEX
