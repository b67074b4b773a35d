"""What a mean over classes and widths must not hide: the worst class, classes that are hardly found, widths outdone.

A class with an IoU below `HARDLY` is said loudly, with the likely reason: how many training pixels and images have it
is in the header of a model file (`provenance`). A width between the trained ones that scores below a narrower trained
one costs more and gives less: it is not to be recommended.

Usage:
    >>> worst_class(("road", "pole"), (0.9, 0.02))
    ('pole', 0.02)
    >>> outdone({1.0: 0.5, 0.6: 0.36, 0.25: 0.40}, trained=(1.0, 0.25))
    {0.6: 0.25}
    >>> verdicts(load_bundle("model.safetensors").header)
    ['pole is hardly found: ...']
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from litheseg.bundle.header import BundleHeader
from litheseg.errors import listed

__all__ = ["HARDLY", "hardly_found", "outdone", "outdone_words", "recorded_iou", "verdicts", "worst_class"]

HARDLY = 0.05
"""A class with a lower IoU is hardly found."""
_RARE_SHARE = 0.005  # of the training pixels
_RARE_IMAGES = 20
_FEW_IMAGES = 30

ClassScores = Sequence[float | None]
"""IoU of each class, in [0, 1]; NaN or None for one that the labels do not hold."""


def worst_class(names: Sequence[str], iou: ClassScores) -> tuple[str, float] | None:
    """Name and IoU of the class with the lowest one; None where the labels hold no class.

    Args:
        names: of the classes.
        iou: of each.
    """
    known = [(value, name) for name, value in zip(names, iou, strict=True) if value is not None and value == value]
    return min(known)[::-1] if known else None


def recorded_iou(header: BundleHeader) -> dict[float, ClassScores]:
    """IoU of each class by width, the widest first, as a model file has it; without what is no such list."""
    found = {}
    for width, entry in header.metrics.items():
        iou = entry.get("iou") if isinstance(entry, Mapping) else None
        if isinstance(iou, Sequence) and len(iou) == header.num_classes and all(map(_is_score, iou)):
            found[float(width)] = iou
    return dict(sorted(found.items(), reverse=True))


def _is_score(value: Any) -> bool:
    return value is None or isinstance(value, (int, float))


def hardly_found(names: Sequence[str], iou: Mapping[float, ClassScores], facts: Mapping[str, Any]) -> list[str]:
    """A sentence about each class with an IoU below `HARDLY` at some width, and why that may be.

    Args:
        names: of the classes.
        iou: by width.
        facts: "class_shares" of the training pixels, "class_images" that hold each class, and "train_images"; what is
            missing is not known.
    """
    sentences, learned = [], {}
    for width, scores in iou.items():
        low = [name for name, value in zip(names, scores, strict=True) if value is not None and value < HARDLY]
        if len(low) <= len(names) / 2:
            learned[width] = scores
            continue
        sentences.append(
            f"{len(low)} of {len(names)} classes are hardly found at width {width:g} ({listed(low)}): it has hardly "
            "learned yet. Train for longer, and see that images and masks belong together (`litheseg doctor DATA`)"
        )
    for index, name in enumerate(names):
        if values := _low(index, learned):
            sentences.append(f"{name} is hardly found: IoU {_at_widths(values)}. {_reason(index, facts)}")
    return sentences


def _low(index: int, iou: Mapping[float, ClassScores]) -> dict[float, float]:
    """IoU of a class by width, where it is below `HARDLY`."""
    known = {width: value for width, scores in iou.items() if (value := scores[index]) is not None}
    return {width: value for width, value in known.items() if value < HARDLY}


def _at_widths(values: Mapping[float, float]) -> str:
    ends = list(dict.fromkeys((next(iter(values)), list(values)[-1])))
    return ", ".join(f"{100 * values[width]:.1f} % at width {width:g}" for width in ends)


def _reason(index: int, facts: Mapping[str, Any]) -> str:
    shares, images, total = (facts.get(name) for name in ("class_shares", "class_images", "train_images"))
    if not shares or not images or not total:
        return "How often it is labelled in training is not known: `litheseg doctor DATA` counts its pixels and images"
    share, count = float(shares[index]), int(images[index])
    if count == 0:
        return "No training image holds it: label some that do, or leave the class out"
    having = f"{count} of {total} training images and {100 * share:.2g} % of their labelled pixels have it"
    if total < _FEW_IMAGES:
        return f"There are few images to learn from: {having}. Label more, or train for longer"
    if count < _RARE_IMAGES or share < _RARE_SHARE:
        return f"It is rare: {having}. Label more images with it; if its objects are small, train at a larger size"
    return (
        f"It is not rare ({having}): look at its labels and the size of its objects (`litheseg doctor DATA`), train "
        "for longer or at a larger size"
    )


def outdone(scores: Mapping[float, float | None], trained: Collection[float]) -> dict[float, float]:
    """Widths that were not trained and score below a narrower trained one; with the best of those.

    Args:
        scores: mIoU by width; None or NaN where it is not known.
        trained: the widths that were trained.
    """
    known = {width: value for width, value in scores.items() if value is not None and value == value}
    found = {}
    for width in known.keys() - set(trained):
        better = [other for other in trained if other < width and known.get(other, -1.0) > known[width]]
        if better:
            found[width] = max(better, key=lambda other: known[other])
    return dict(sorted(found.items(), reverse=True))


def outdone_words(found: Mapping[float, float], scores: Mapping[float, float | None]) -> list[str]:
    """A sentence about each width that `outdone` found.

    Args:
        found: by `outdone`.
        scores: the same.
    """
    return [
        f"width {width:g} was not trained and scores {_percent(scores[width])}, below the {_percent(scores[other])} of "
        f"the narrower width {other:g}: use that one, or train width {width:g}"
        for width, other in found.items()
    ]


def verdicts(header: BundleHeader) -> list[str]:
    """What must be said of a model file's own scores: classes that are hardly found, and widths that are outdone."""
    miou = {float(width): entry.get("miou") for width, entry in header.metrics.items() if isinstance(entry, Mapping)}
    return [
        *hardly_found(header.classes.names, recorded_iou(header), header.provenance),
        *outdone_words(outdone(miou, header.widths), miou),
    ]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
