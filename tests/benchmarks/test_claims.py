"""The page of claims: what is compared with what, and when a claim counts as shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import records
from pages import claims
from pages.folds import Difference
from scipy import stats


@pytest.mark.parametrize(
    ("mean", "half", "least", "expected"),
    [
        (3.0, 1.0, 0.0, "shown"),
        (3.0, 1.0, 2.0, "shown"),
        (3.0, 1.0, 2.5, "open"),
        (3.0, 1.0, 4.5, "refuted"),
        (0.5, 1.0, 0.0, "open"),
        (-1.5, 1.0, 0.0, "refuted"),
        (30.0, None, 0.0, "open"),
    ],
)
def test_a_claim_is_shown_or_refuted_by_its_whole_interval(
    mean: float, half: float | None, least: float, expected: str
) -> None:
    assert claims.verdict(Difference(mean, half, 3), least) == expected


def grouped(model: str, label: str, seed: int, miou: float) -> dict[str, Any]:
    key = f"camvid-half-{model}-{label}-seed{seed}"
    facts = {"protocol": "camvid-half", "model": model, "id": label, "label": label, "seed": seed, "key": key}
    return {**facts, "metrics": {"1": {"miou": miou}}, "hardware": "a box", "command": "train"}


def test_differences_are_paired_by_seed_and_may_be_of_two_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light, dense = [0.40, 0.44, 0.39], [0.42, 0.43, 0.43]
    rows = [grouped("erfnet-d*", "gradual (cosine)", seed, score) for seed, score in enumerate(light)]
    rows += [grouped("erfnet", "dense", seed, score) for seed, score in enumerate(dense)]
    (tmp_path / "grouping.jsonl").write_text("".join(json.dumps({"table": "grouping", **row}) + "\n" for row in rows))
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    claim = {"table": "grouping", "model": "erfnet-d*", "label": "gradual (cosine)", "over_model": "erfnet"}
    (answer,) = claims.answers_to({**claim, "over": "dense", "least": -4.0})
    differences = [100 * (own - other) for own, other in zip(light, dense, strict=True)]
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert answer.found.pairs == 3
    assert answer.found.mean - answer.found.half == pytest.approx(interval.low)  # type: ignore[operator]
    assert answer.found.mean + answer.found.half == pytest.approx(interval.high)  # type: ignore[operator]
    assert answer.verdict == ("shown" if interval.low >= -4 else "open")
