from __future__ import annotations

import pytest

from litheseg.budget.candidates import Limits
from litheseg.errors import LithesegError
from litheseg.values import parse_duration


def test_limits_on_paper() -> None:
    limits = Limits(20, macs=1e9, model_size=1e6)
    costs = {"macs": 2e9, "model_size": 5e5, "memory": 1e12}
    assert limits.broken_on_paper(costs) == ("macs",)
    assert limits.to_dict() == {"milliseconds": 20, "percentile": 95.0, "macs": 1e9, "model_size": 1e6}


def test_a_reserve_leaves_less() -> None:
    assert Limits(20, reserve=4).available == 16
    for reserve in (20, 25, -1):
        with pytest.raises(LithesegError, match="reserve"):
            Limits(20, reserve=reserve)


def test_images_may_come_no_faster_than_the_budget_labels_them() -> None:
    assert Limits(20).period == 0 and Limits(20, fps=15).period == pytest.approx(66.67, abs=0.01)
    for fps in (15, 30, 17.3):
        assert Limits(parse_duration(f"{fps}fps"), fps=fps).fps == fps
    for fps in (51, 1000, 0, -3, float("nan")):
        with pytest.raises(LithesegError, match=r"--fps \S+ does not go with a budget of 20 ms, in which 50 images"):
            Limits(20, fps=fps)


@pytest.mark.parametrize("wrong", [{"percentile": 100}, {"percentile": 0.95}, {"min_miou": 60}, {"min_class_iou": 5}])
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(LithesegError):
        Limits(20, **wrong)
