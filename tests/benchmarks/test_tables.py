from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import records
import tables
from pages import slimmable
from pages.studies import Study
from pages.writer import Section, Target

REPOSITORY = Path(__file__).parents[2]


def record(label: str, row: str, scores: dict[str, float], seed: int = 0, minutes: float = 10.0) -> dict[str, Any]:
    metrics = {
        width: {
            "miou": score / 100,
            "boundary_iou": score / 200,
            "band_miou": score / 400,
            "params": int(1e6 * float(width)),
            "macs": int(2e9 * float(width)),
        }
        for width, score in scores.items()
    }
    return {
        "key": f"camvid-half-ddrnet-{row}-seed{seed}",
        "protocol": "camvid-half",
        "model": "ddrnet",
        "id": row,
        "label": label,
        "seed": seed,
        "metrics": metrics,
        "command": f"litheseg train --trainer.seed={seed}",
        "commit": "0123456789abcdef",
        "hardware": "2 x CPU",
        "versions": {"torch": "2.11.0"},
        "minutes": minutes,
        "date": "2030-01-01",
    }


def independent(scores: dict[str, float], seed: int = 0) -> list[dict[str, Any]]:
    return [
        record("(a) independent", f"a-independent-{width}", {width: score}, seed) for width, score in scores.items()
    ]


def band(scores: dict[str, float], seed: int = 0) -> dict[str, Any]:
    return record("(e) + boundary band", "e-next-wider-band", scores, seed, minutes=25)


BASE = {"1": 60.0, "0.75": 58.0, "0.5": 55.0, "0.25": 50.0}


def shifted(*gains: float) -> dict[str, float]:
    return {width: score + gain for (width, score), gain in zip(BASE.items(), gains, strict=True)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pages, with no results yet."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    (tmp_path / "docs").mkdir()
    shutil.copytree(REPOSITORY / "docs/results", tmp_path / "docs/results")
    shutil.copy(REPOSITORY / "docs/results.md", tmp_path / "docs/results.md")
    shutil.copy(REPOSITORY / "README.md", tmp_path / "README.md")
    return tmp_path


def finish(root: Path, *rows: dict[str, Any]) -> None:
    with records.results("slimseg").open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in rows)


def study(protocol: str = "camvid-half") -> Study:
    return next(s for s in slimmable.slimmable_studies() if (s.protocol, s.network) == (protocol, "ddrnet"))


def targets(protocol: str = "camvid-half") -> list[str]:
    return list(map(str, slimmable.targets(study(protocol))))


def test_joins_single_width_runs_and_shows_gains(root: Path) -> None:
    finish(root, *independent(BASE), band(shifted(1, 2, 1, 2)))
    text = slimmable.metric_table(study())
    assert "| separate networks | 60.00 | 58.00 | 55.00 | 50.00 | 55.75 | 40 | 0 |" in text
    gained = "61.00 (+1.00) | 60.00 (+2.00) | 56.00 (+1.00) | 52.00 (+2.00) | 57.25 (+1.50)"
    assert f"| next wider teaches, boundary band | {gained} | 25 | 0 |" in text
    assert "| labels only | – | – | – | – | – | – | not run yet |" in text


def test_several_seeds_show_a_deviation_and_compare_what_both_have(root: Path) -> None:
    finish(root, *independent(BASE), band(shifted(1, 1, 1, 1)), band(shifted(3, 3, 3, 3), seed=1))
    text = slimmable.metric_table(study())
    assert "62.00 ± 1.41 (+1.00)" in text
    [row] = [line for line in text.splitlines() if line.startswith("| next wider teaches, boundary band |")]
    assert row.endswith("| 25 | 0, 1 |")


def test_an_unfinished_form_says_what_is_missing(root: Path) -> None:
    finish(root, *independent({"0.25": 50.0}))
    text = slimmable.metric_table(study())
    assert "| separate networks | – | – | – | 50.00 | – | – | 1 of 4 runs |" in text
    assert "**open** (rows are missing)" in targets()[0]


@pytest.mark.parametrize(
    ("gains", "word"),
    [
        ((1, 1, 1, 1), "met"),
        ((0, 0, 2, 2), "met"),
        ((0.5, 0.5, 0.5, 0.5), "missed"),  # nowhere below, too little on average
        ((-0.1, 2, 2, 2), "missed"),  # enough on average, below at one width
    ],
)
def test_targets(root: Path, gains: tuple[float, ...], word: str) -> None:
    finish(root, *independent(BASE), band(shifted(*gains)))
    first, second = targets()
    assert f"**{word}**" in first and f"width 1 {gains[0]:+.2f}" in first
    assert "**open**" in second


def test_accuracy_target_of_the_full_protocol(root: Path) -> None:
    rows = [entry | {"protocol": "camvid", "key": entry["key"] + "-full"} for entry in independent({"1": 68.4})]
    finish(root, *rows)
    assert "at least 68 mIoU at width 1: **met** (68.40 by separate networks)" in targets("camvid")


def test_costs_and_curves(root: Path) -> None:
    finish(root, *independent(BASE), band(shifted(1, 1, 1, 1)))
    text = slimmable.cost_table(study())
    assert "| parameters, M | 1.000 | 0.750 | 0.500 | 0.250 |" in text
    assert "| MACs at the training size, G | 2.000 | 1.500 | 1.000 | 0.500 |" in text
    curves = slimmable._curves(study())
    assert list(curves) == ["separate networks", "next wider teaches, boundary band"]
    first = curves["separate networks"][0]
    assert (first.width, first.cost, first.score) == (1.0, 2_000_000_000, 0.6)


def test_a_key_counts_once_with_its_last_line(root: Path) -> None:
    finish(root, *independent({"1": 10.0}), *independent({"1": 20.0}))
    assert study().scores("(a) independent", "1") == {("", 0): 20.0}


def test_a_score_that_is_no_number_is_left_out(root: Path) -> None:
    entry = band(BASE)
    entry["metrics"]["0.5"]["miou"] = None
    finish(root, entry)
    assert study().scores("(e) + boundary band", "0.5") == {}


def test_pages_are_written_and_checked(root: Path) -> None:
    finish(root, *independent(BASE), band(shifted(1, 1, 1, 1)))
    assert tables.check(tables.build(root))
    tables.write(tables.build(root))
    assert tables.check(tables.build(root)) == []
    page, summary = ((root / f"docs/{name}.md").read_text() for name in ("results/slimmable-widths", "results"))
    for part in ("commit 0123456789ab", "2 x CPU", "torch 2.11.0", "`litheseg train --trainer.seed=0`", "Not run yet"):
        assert part in page
    assert "56.75 (+1.00)" in page and "52.66" not in page and "../images/slimseg-camvid-half-ddrnet.png" in page
    assert page.startswith("# Is one network") and page.endswith(
        (REPOSITORY / "docs/results/slimmable-widths.md").read_text()[-200:]
    )
    place = "results/slimmable-widths.md#one-network-beside-four-ddrnet-protocol-camvid-half"
    assert f"**met**: [One network beside four: `ddrnet`, protocol `camvid-half`]({place})" in summary
    assert "1 met, 0 missed, " in summary and "not measured yet" in (root / "README.md").read_text()
    assert (root / "docs/images/slimseg-camvid-half-ddrnet.png").stat().st_size > 1000
    finish(root, band(shifted(2, 2, 2, 2), seed=1))
    assert any("±" in line for line in tables.check(tables.build(root)))


def test_nothing_run_yet(root: Path) -> None:
    tables.write(tables.build(root))
    assert "No table has been run yet" in (root / "docs/results.md").read_text()
    assert "Not run yet" in (root / "docs/results/slimmable-widths.md").read_text()


def test_a_page_without_markers_is_refused(root: Path) -> None:
    (root / "README.md").write_text("# Top\n")
    with pytest.raises(SystemExit, match="lacks the markers"):
        tables.build(root)


def test_each_target_once_with_every_section_that_has_it() -> None:
    half = Section("Accuracy: `net`, protocol `half`", (), [Target("groups", True, "+0.30"), Target("MGD", None)])
    whole = Section("Accuracy: `net`, protocol `whole`", (), [Target("groups", False, "-3.00"), Target("MGD", None)])
    step = Section("A step", ["| a | b |"], [Target("at most 1.05", True)])
    text = tables.overview({"a": [half, whole, Section("Nothing", ["Here."])], "b": [step]})
    counts, _, head, _, groups, mgd, cost = text.splitlines()
    assert "2 met, 1 missed, 2 open" in counts and head == "| target | state |"
    near, far = (
        f"[Accuracy: `net`, protocol `{name}`](results/a.md#accuracy-net-protocol-{name})" for name in ("half", "whole")
    )
    assert groups == f"| groups | **met**: {near}<br>**missed**: {far} |"
    assert mgd == f"| MGD | **open**: {near}<br>**open**: {far} |"
    assert cost == "| at most 1.05 | **met**: [A step](results/b.md#a-step) |"
    assert tables.overview({"a": [Section("Nothing")]}) == ""


def test_the_committed_pages_are_up_to_date() -> None:
    assert tables.check(tables.build(REPOSITORY)) == [], "run `python benchmarks/tables.py`"
