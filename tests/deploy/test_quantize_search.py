"""The parts of int8 that decide: how many layers are kept, how sensitive one is, what may be lost. Without NNCF."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from litheseg.deploy.parity import Certificate
from litheseg.deploy.quantize.quantizer import fewest_kept, output_error
from litheseg.deploy.quantize.report import Tolerance
from litheseg.errors import LithesegError


@pytest.mark.parametrize("needed", range(1, 21))
def test_the_fewest_layers_are_found(needed: int) -> None:
    asked: list[int] = []

    def holds(kept: Sequence[int]) -> bool:
        assert list(kept) == list(range(len(kept))), "a beginning of the ranking"
        asked.append(len(kept))
        return len(kept) >= needed

    assert fewest_kept(range(40), holds, limit=20) == needed
    assert needed in asked
    assert len(asked) == len(set(asked)) <= 2 * math.ceil(math.log2(needed) + 1)


def test_the_limit_is_tried_before_giving_up() -> None:
    asked: list[int] = []
    assert fewest_kept(range(40), lambda kept: bool(asked.append(len(kept))), limit=20) is None
    assert asked == [1, 2, 4, 8, 16, 20]


@pytest.mark.parametrize("limit", [0, 1, 2, 3])
def test_with_hardly_any_layers(limit: int) -> None:
    asked = [0]
    assert fewest_kept(range(3), lambda kept: bool(asked.append(len(kept))), limit=limit) is None
    assert max(asked) == limit


def test_output_error_is_the_divergence_of_probabilities() -> None:
    random = np.random.default_rng(0)
    truth, guess = (random.normal(size=(5, 6, 7)).astype(np.float32) for _ in range(2))
    truth[0] += 100  # one class everywhere: the mean over classes is the mean over pixels
    expected = torch.nn.functional.kl_div(
        torch.from_numpy(guess).double().log_softmax(0),
        torch.from_numpy(truth).double().log_softmax(0),
        log_target=True,
        reduction="none",
    )
    assert output_error([(truth, guess)]) == pytest.approx(float(expected.sum(0).mean()))
    assert output_error([(truth, truth)]) == pytest.approx(0, abs=1e-12)
    assert output_error([(truth, truth + 7)]) == pytest.approx(0, abs=1e-6)  # what all classes share says nothing


def test_output_error_counts_small_classes_in_full() -> None:
    truth = np.zeros((4, 25), np.uint8)
    truth[0, 0] = 1
    wrong = np.zeros_like(truth)
    assert output_error([(truth, wrong)]) == pytest.approx((0 + 1) / 2)
    assert output_error([(truth, wrong), (truth, truth)]) == pytest.approx(1 / 4)


def test_output_error_of_what_is_not_finite() -> None:
    logits = np.zeros((2, 3, 3), np.float32)
    for bad in (np.nan, np.inf):
        broken = logits.copy()
        broken[0, 1, 1] = bad
        assert output_error([(logits, broken)]) == math.inf


def _certificate(
    own: Sequence[float | None] | None, reference: Sequence[float | None] | None, same: int
) -> Certificate:
    def mean(values: Sequence[float | None] | None) -> float | None:
        return None if values is None else float(np.mean([value for value in values if value is not None]))

    return Certificate(
        runtime="onnxruntime",
        images=3,
        origin="somewhere",
        pixels=1000,
        differing=1000 - same,
        worst_image="a",
        worst_agreement=0.5,
        largest_difference=1.0,
        largest_logit=9.0,
        classes=("road", "sky", "pole"),
        miou=mean(own),
        reference_miou=mean(reference),
        iou=None if own is None else tuple(own),
        reference_iou=None if reference is None else tuple(reference),
    )


SHARES = (0.6, 0.3995, 0.0005)


def test_mean_and_classes_have_limits_of_their_own() -> None:
    tolerance = Tolerance(miou=0.5, class_iou=2)
    assert tolerance.violations(_certificate((0.8, 0.6, 0.4), (0.8, 0.6, 0.4), 990), SHARES) == ()
    # The mean may even rise while a class goes.
    [lost] = tolerance.violations(_certificate((0.9, 0.55, 0.4), (0.8, 0.6, 0.4), 990), SHARES)
    assert str(lost) == "sky fell by 5.0 points (at most 2)" and lost.excess == pytest.approx(3)
    both = tolerance.violations(_certificate((0.79, 0.57, 0.4), (0.8, 0.6, 0.4), 990), SHARES)
    assert [str(entry) for entry in both] == [
        "mIoU fell by 1.33 points (at most 0.5)",
        "sky fell by 3.0 points (at most 2)",
    ]


def test_classes_with_hardly_a_pixel_count_in_the_mean_only() -> None:
    fell = _certificate((0.81, 0.61, 0.38), (0.8, 0.6, 0.41), 990)
    assert Tolerance(miou=0.5, class_iou=2).violations(fell, SHARES) == ()
    assert len(Tolerance(miou=0.5, class_iou=2, class_share=0).violations(fell, SHARES)) == 1
    assert Tolerance(class_iou=None, class_share=0).violations(fell, SHARES) == ()


def test_classes_without_labels_are_passed_over() -> None:
    certificate = _certificate((0.8, None, 0.4), (0.8, None, 0.4), 990)
    assert "sky" not in certificate.changes
    assert Tolerance().violations(certificate, (0.6, 0.0, 0.4)) == ()


def test_without_labels_agreement_decides() -> None:
    assert Tolerance(agreement=0.95).violations(_certificate(None, None, 950), (0, 0, 0)) == ()
    [fault] = Tolerance(agreement=0.95).violations(_certificate(None, None, 940), (0, 0, 0))
    assert "only 94.00% of the pixels" in str(fault) and fault.excess == pytest.approx(1)


@pytest.mark.parametrize("wrong", [{"miou": -1}, {"class_iou": 101}, {"agreement": 1.5}, {"miou": math.nan}])
def test_tolerances_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(LithesegError, match=next(iter(wrong))):
        Tolerance(**wrong)
