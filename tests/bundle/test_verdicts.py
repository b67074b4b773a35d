"""The worst class beside the mean, with the likely reason, and widths that are not worth their time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from litheseg.bundle.header import BundleHeader
from litheseg.bundle.verdicts import hardly_found, outdone, recorded_iou, verdicts, worst_class
from litheseg.masks.classes import Classes

NAMES = ("road", "pole", "bird")
FACTS = {"class_shares": [0.9, 0.002, 0.098], "class_images": [100, 60, 0], "train_images": 100}


def header(**fields: object) -> BundleHeader:
    given: dict[str, object] = {"widths": (1.0, 0.25), "calibrated_widths": (0.6,), **fields}
    return BundleHeader({"name": "tiny", "args": {}}, Classes.from_names(NAMES), **given)  # type: ignore[arg-type]


def test_the_worst_class_is_one_that_the_labels_hold() -> None:
    assert worst_class(NAMES, (0.9, 0.2, math.nan)) == ("pole", 0.2)
    assert worst_class(NAMES, (0.9, None, 0.0)) == ("bird", 0.0)
    assert worst_class(NAMES, (None, None, math.nan)) is None


@pytest.mark.parametrize(
    ("iou", "facts", "words"),
    [
        ((0.9, 0.031, 0.6), FACTS, "pole is hardly found: IoU 3.1 % at width 1. It is rare: 60 of 100 training images"),
        ((0.9, 0.6, 0.0), FACTS, "bird is hardly found: IoU 0.0 % at width 1. No training image holds it"),
        (
            (0.01, 0.6, 0.6),
            FACTS,
            "It is not rare (100 of 100 training images and 90 % of their labelled pixels have it)",
        ),
        ((0.9, 0.01, 0.6), FACTS | {"train_images": 20, "class_images": [20, 18, 9]}, "There are few images to learn"),
        ((0.9, 0.01, 0.6), {}, "is not known: `litheseg doctor DATA` counts"),
    ],
)
def test_a_class_that_is_hardly_found_has_a_reason(
    iou: tuple[float, ...], facts: dict[str, object], words: str
) -> None:
    [sentence] = hardly_found(NAMES, {1.0: iou}, facts)
    assert words in sentence


def test_a_network_that_has_not_learned_is_told_once() -> None:
    narrow, pole = hardly_found(NAMES, {1.0: (0.3, 0.01, 0.3), 0.5: (0.0, 0.0, 0.2)}, FACTS)
    assert narrow.startswith("2 of 3 classes are hardly found at width 0.5 (road, pole): it has hardly learned yet")
    assert pole.startswith("pole is hardly found: IoU 1.0 % at width 1. It is rare")


def test_of_many_widths_the_ends_are_named() -> None:
    [sentence] = hardly_found(NAMES, {1.0: (0.9, 0.04, 1), 0.5: (0.9, 0.02, 1), 0.25: (0.9, 0.01, 1)}, FACTS)
    assert "IoU 4.0 % at width 1, 1.0 % at width 0.25. It is rare: 60 of 100" in sentence


def test_five_percent_is_enough() -> None:
    assert hardly_found(NAMES, {1.0: (0.9, 0.05, math.nan), 0.5: (0.9, 0.2, None)}, FACTS) == []


def test_a_width_in_between_must_beat_the_narrower_trained_ones() -> None:
    assert outdone({1.0: 0.5, 0.6: 0.361, 0.25: 0.402}, trained=(1.0, 0.25)) == {0.6: 0.25}
    assert outdone({1.0: 0.5, 0.6: 0.41, 0.25: 0.402}, trained=(1.0, 0.25)) == {}
    assert outdone({1.0: 0.3, 0.25: 0.402}, trained=(1.0, 0.25)) == {}, "what was trained is as it is"


def test_a_model_file_speaks_for_itself() -> None:
    scores = {1.0: (0.5, (0.9, 0.3, 0.3)), 0.6: (0.361, (0.7, 0.02, 0.3)), 0.25: (0.402, (0.7, 0.2, 0.3))}
    metrics = {f"{width:g}": {"miou": miou, "iou": list(iou)} for width, (miou, iou) in scores.items()}
    found = header(metrics=metrics, provenance=FACTS)
    pole, width = verdicts(found)
    assert pole.startswith("pole is hardly found: IoU 2.0 % at width 0.6. It is rare: 60 of 100")
    assert width.startswith("width 0.6 was not trained and scores 36.1 %, below the 40.2 % of the narrower width 0.25")
    assert list(recorded_iou(found)) == [1.0, 0.6, 0.25]
    assert verdicts(replace(found, metrics={})) == []


def test_scores_from_a_stranger_may_be_anything() -> None:
    metrics = {"1": {"miou": 0.4, "iou": [0.1]}, "0.25": {"iou": ["a", "b", "c"]}, "0.6": {"iou": None}}
    assert recorded_iou(header(metrics=metrics)) == {}
