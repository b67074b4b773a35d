from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", REPOSITORY / f"benchmarks/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tables = load("tables")
IDS = {
    "(a) independent": ["a-independent-0.25", "a-independent-0.5", "a-independent-0.75", "a-independent-1"],
    "(b) slimmable": ["b-slimmable"],
    "(e) + boundary band": ["e-next-wider-band"],
}


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
def root(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    for name in ("slimseg.yaml", "protocols.yaml"):
        shutil.copy(REPOSITORY / "benchmarks" / name, tmp_path / "benchmarks" / name)
    (tmp_path / "README.md").write_text(f"# Top\n\n{tables.BEGIN}\nold\n{tables.END}\n\nrest\n")
    return tmp_path


def finish(root: Path, *records: dict[str, Any]) -> None:
    with (root / "benchmarks/results/slimseg.jsonl").open("a") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in records)


def study(root: Path) -> Any:
    return next(s for s in tables.read_studies(root) if (s.protocol, s.model) == ("camvid-half", "ddrnet"))


def test_joins_single_width_runs_and_shows_gains(root: Path) -> None:
    finish(root, *independent(BASE), band(shifted(1, 2, 1, 2)))
    text = tables.metric_table(study(root))
    assert "| (a) independent | 60.00 | 58.00 | 55.00 | 50.00 | 55.75 | 40 | 0 |" in text
    gained = "61.00 (+1.00) | 60.00 (+2.00) | 56.00 (+1.00) | 52.00 (+2.00) | 57.25 (+1.50)"
    assert f"| (e) + boundary band | {gained} | 25 | 0 |" in text
    assert "| (b) slimmable | – | – | – | – | – | – | not run yet |" in text


def test_several_seeds_show_a_deviation_and_compare_what_both_have(root: Path) -> None:
    finish(root, *independent(BASE), band(shifted(1, 1, 1, 1)), band(shifted(3, 3, 3, 3), seed=1))
    text = tables.metric_table(study(root))
    assert "62.00 ± 1.41 (+1.00)" in text
    [row] = [line for line in text.splitlines() if line.startswith("| (e) + boundary band |")]
    assert row.endswith("| 25 | 0, 1 |")


def test_an_unfinished_form_says_what_is_missing(root: Path) -> None:
    finish(root, *independent({"0.25": 50.0}))
    text = tables.metric_table(study(root))
    assert "| (a) independent | – | – | – | 50.00 | – | – | 1 of 4 runs |" in text
    assert "**open** (rows are missing)" in tables.verdicts(study(root))


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
    first, second = (line for line in tables.verdicts(study(root)).splitlines() if line.startswith("- (e)"))
    assert f"**{word}**" in first and f"width 1 {gains[0]:+.2f}" in first
    assert "**open**" in second


def test_accuracy_target_of_the_full_protocol(root: Path) -> None:
    rows = [entry | {"protocol": "camvid", "key": entry["key"] + "-full"} for entry in independent({"1": 68.4})]
    finish(root, *rows)
    camvid = next(s for s in tables.read_studies(root) if (s.protocol, s.model) == ("camvid", "ddrnet"))
    assert "at least 68 mIoU at width 1: **met** (68.40 by (a) independent)" in tables.verdicts(camvid)


def test_costs_and_curves(root: Path) -> None:
    finish(root, *independent(BASE), band(shifted(1, 1, 1, 1)))
    text = tables.cost_table(study(root))
    assert "| parameters, M | 1.000 | 0.750 | 0.500 | 0.250 |" in text
    assert "| MACs at the training size, G | 2.000 | 1.500 | 1.000 | 0.500 |" in text
    curves = tables.curves(study(root))
    assert list(curves) == ["(a) independent", "(e) + boundary band"]
    first = curves["(a) independent"][0]
    assert (first.width, first.cost, first.score) == (1.0, 2_000_000_000, 0.6)


def test_a_key_counts_once_with_its_last_line(root: Path) -> None:
    finish(root, *independent({"1": 10.0}), *independent({"1": 20.0}))
    assert study(root).scores("(a) independent", "1") == {0: 20.0}


def test_a_score_that_is_no_number_is_left_out(root: Path) -> None:
    entry = band(BASE)
    entry["metrics"]["0.5"]["miou"] = None
    finish(root, entry)
    assert study(root).scores("(e) + boundary band", "0.5") == {}


def test_pages_are_written_and_checked(root: Path) -> None:
    finish(root, *independent(BASE), band(shifted(1, 1, 1, 1)))
    assert tables.check(tables.build(root))
    tables.write(tables.build(root))
    assert tables.check(tables.build(root)) == []
    results, readme = (root / "docs/results.md").read_text(), (root / "README.md").read_text()
    for part in ("commit 0123456789ab", "2 x CPU", "torch 2.11.0", "`litheseg train --trainer.seed=0`", "Not run yet."):
        assert part in results
    assert readme.startswith("# Top") and readme.endswith("rest\n") and "old" not in readme and "57.25" not in readme
    assert "56.75 (+1.00)" in readme and "docs/images/slimseg-camvid-half-ddrnet.png" in readme
    assert (root / "docs/images/slimseg-camvid-half-ddrnet.png").stat().st_size > 1000
    finish(root, band(shifted(2, 2, 2, 2), seed=1))
    assert any("±" in line for line in tables.check(tables.build(root)))


def test_nothing_run_yet(root: Path) -> None:
    tables.write(tables.build(root))
    assert "No table has been run yet" in (root / "README.md").read_text()
    assert "Not run yet." in (root / "docs/results.md").read_text()


def test_cost_files_and_notes_are_included(root: Path) -> None:
    content = {"target": 0.1, "rows": [{"cache": "ram", "data_ms": 1.25, "fraction": 0.02}], "commit": "abc"}
    (root / "benchmarks/results/data_path.json").write_text(json.dumps(content))
    step = {"target": 1.15, "rows": [{"model": "ddrnet", "ratio": 1.25}]}
    (root / "benchmarks/results/step_cost.json").write_text(json.dumps(step))
    (root / "benchmarks/slimseg.md").write_text("## What was found\n\nSomething.\n")
    text = tables.build(root).texts[root / "docs/results.md"]
    assert "is at most 10.0%: **met**" in text and "| ram | 1.2 | 2.0% |" in text and "- commit: `abc`" in text
    assert "is at most 1.150: **missed**" in text and "| ddrnet | 1.250 |" in text
    assert "Something." in text


def test_a_readme_without_markers_is_refused(root: Path) -> None:
    (root / "README.md").write_text("# Top\n")
    with pytest.raises(SystemExit, match="lacks the markers"):
        tables.build(root)


def test_the_committed_pages_are_up_to_date() -> None:
    assert tables.check(tables.build(REPOSITORY)) == [], "run `python benchmarks/tables.py`"
