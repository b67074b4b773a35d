from __future__ import annotations

import pytest

from litheseg.budget.candidates import Limits, parse_budget, parse_bytes, parse_quantity
from litheseg.errors import LithesegError


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("20ms", 20), (" 20 ms", 20), ("0.02s", 20), ("50fps", 20), ("15 FPS", 1000 / 15), (".5ms", 0.5), ("800us", 0.8)],
)
def test_budgets(text: str, milliseconds: float) -> None:
    assert parse_budget(text) == pytest.approx(milliseconds)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("20", "has no unit"),
        ("abc ms", "is no time"),
        ("", "is no time"),
        ("0ms", "is no time"),
        ("-5ms", "is no time"),
        ("20 parsecs", "is no time"),
        ("ms", "is no time"),
        ("nanms", "is no time"),
        ("20ms20", "is no time"),
    ],
)
def test_nonsense_budgets(text: str, problem: str) -> None:
    with pytest.raises(LithesegError, match=f"budget '{text}' {problem}; write a time such as 20ms or a rate"):
        parse_budget(text)


def test_quantities() -> None:
    assert parse_bytes("50MB") == 50e6 and parse_bytes("2 MiB") == 2 * 2**20 and parse_bytes("900b") == 900
    assert parse_quantity("1G", "MACs") == 1e9 and parse_quantity("2.5e8", "MACs") == 2.5e8
    for text in ("50", "50M", "many", "0MB"):
        with pytest.raises(LithesegError, match="50MB"):
            parse_bytes(text)
    with pytest.raises(LithesegError, match="number of MACs"):
        parse_quantity("1GB", "MACs")


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
        assert Limits(parse_budget(f"{fps}fps"), fps=fps).fps == fps
    for fps in (51, 1000, 0, -3, float("nan")):
        with pytest.raises(LithesegError, match=r"--fps \S+ does not go with a budget of 20 ms, in which 50 images"):
            Limits(20, fps=fps)


@pytest.mark.parametrize("wrong", [{"percentile": 100}, {"percentile": 0.95}, {"min_miou": 60}])
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(LithesegError):
        Limits(20, **wrong)
