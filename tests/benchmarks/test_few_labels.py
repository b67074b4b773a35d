"""The few-labels pages: gains, targets, what is missing, and the pictures, from invented rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import records
from pages import few_labels
from pages.studies import read_table

TABLE = read_table("mgd")
LABELS = {row["id"]: row["label"].format(by="CPS") for row in TABLE["rows"]}
DISTILLERS = ("kd", "cwd", "pairwise", "intra-class")


def record(
    row: str, miou: float | dict[str, float], share: str = "1/16", seed: int = 0, network: str = "resnet18"
) -> dict[str, Any]:
    scores = miou if isinstance(miou, dict) else {"1": miou}
    metrics = {
        width: {"miou": score / 100, "boundary_iou": score / 200, "macs": int(1e9 * float(width))}
        for width, score in scores.items()
    }
    return {
        "key": f"camvid-{network}-{share}-{row}-seed{seed}",
        "protocol": "camvid",
        "model": "deeplabv3plus",
        "id": row,
        "label": LABELS[row],
        "seed": seed,
        "network": network,
        "labelled": share,
        "steps": 4200,
        "metrics": metrics,
        "command": f"litheseg train --trainer.seed={seed}",
        "commit": "0123456789abcdef",
        "hardware": "2 x CPU",
        "versions": {"torch": "2.11.0"},
        "minutes": 12.0,
        "date": "2030-01-01",
    }


def study(*rows: dict[str, Any], student: str = "resnet18") -> few_labels.Student:
    return few_labels.Student("camvid", student, rows, table=TABLE)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results, with none yet."""
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    return tmp_path


def finish(*rows: dict[str, Any]) -> None:
    for entry in rows:
        records.append(records.results("mgd"), {"table": "mgd", **entry})


def page() -> str:
    return "\n\n".join(map(str, few_labels.few_labels_sections()))


def drawn(folder: Path) -> list[str]:
    """Names of the pictures, which are drawn into a folder."""
    plots = {name: draw for part in few_labels.few_labels_sections() for name, (_, draw) in part.plots.items()}
    for name, draw in plots.items():
        draw(folder / f"{name}.png")
        assert (folder / f"{name}.png").stat().st_size > 1000
    return list(plots)


def test_methods_and_shares_with_gains_over_labels_alone() -> None:
    text = few_labels.method_table(
        study(record("mgd", 42.0), record("labelled-only", 30.0), record("labelled-only", 50.0, "all"))
    )
    assert text.splitlines() == [
        "|  | 1/16 (23) | all (367) | steps | minutes | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| labels alone | 30.00 | 50.00 | 4200 | 12 | 0 |",
        "| MGD | 42.00 (+12.00) | – | 4200 | 12 | 0 |",
    ]


def test_several_seeds_show_a_deviation_and_compare_what_both_have() -> None:
    rows = [record("labelled-only", 30.0), record("mgd", 40.0), record("mgd", 44.0, seed=1)]
    assert "| MGD | 42.00 ± 2.83 (+10.00) | 4200 | 12 | 0, 1 |" in few_labels.method_table(study(*rows))


@pytest.mark.parametrize(
    ("student", "mgd", "state"),
    [
        ("resnet18", 41.5, "met"),
        ("resnet18", 41.4, "missed"),
        ("mobilenetv2", 34.6, "met"),
        ("mobilenetv2", 34.5, "missed"),
    ],
)
def test_the_gain_of_the_paper(student: str, mgd: float, state: str) -> None:
    rows = [record("labelled-only", 30.0, network=student), record("mgd", mgd, network=student)]
    [target] = few_labels.gain_target(study(*rows, student=student))
    text = str(target)
    assert f"mIoU over labels alone: **{state}** (MGD {mgd - 30:+.2f})" in text


def test_a_student_that_the_paper_has_not_needs_no_gain() -> None:
    assert few_labels.gain_target(study(student="ddrnet")) == []
    assert "**open** (MGD not run yet)" in str(few_labels.gain_target(study())[0])


@pytest.mark.parametrize(("best", "state"), [(39.0, "met"), (40.0, "missed"), (41.0, "missed")])
def test_mgd_against_other_distillers(best: float, state: str) -> None:
    rows = [record("mgd", 40.0), record("cps", best), *(record(name, 38.0) for name in DISTILLERS)]
    assert f"**{state}** (over KD +2.00, over CWD +2.00" in str(few_labels.rival_target(study(*rows)))
    assert ("**missed**" if state == "missed" else "**open**") in str(few_labels.rival_target(study(*rows[:2])))


WIDE = {"1": 40.0, "0.75": 38.0, "0.5": 36.0, "0.25": 30.0}


def shifted(by: float) -> dict[str, float]:
    return {width: score + by for width, score in WIDE.items()}


def alone(row: str, scores: dict[str, float]) -> list[dict[str, Any]]:
    return [record(row if width == "1" else f"{row}-{width}", {width: score}) for width, score in scores.items()]


@pytest.mark.parametrize(
    ("mgd", "base", "state"),
    [(-1, -2, "met"), (1, -9, "met"), (1, -8, "met"), (1, -7.9, "missed"), (1, None, "open"), (None, -3, "open")],
)
def test_lithe_against_mgd_and_labels_at_every_width(mgd: float | None, base: float | None, state: str) -> None:
    rows = [record("lithe", WIDE)]
    rows += alone("mgd", shifted(mgd)) if mgd is not None else []
    rows += alone("labelled-only", shifted(base)) if base is not None else []
    assert f"over labels alone: **{state}** (width 1: over " in str(few_labels.width_target(study(*rows)))


def test_one_network_beside_one_per_width() -> None:
    rows = [record("lithe", WIDE), record("slimseg", shifted(-3)), *alone("labelled-only", shifted(-4))]
    text = few_labels.width_table(study(*rows), "1/16")
    assert "| lithe: mIoU | 40.00 (+4.00) | 38.00 (+4.00) | 36.00 (+4.00) | 30.00 (+4.00) |" in text
    assert "| lithe: boundary IoU | 20.00 (+2.00) |" in text
    assert "| lithe over SlimSeg: mIoU | +3.00 | +3.00 | +3.00 | +3.00 |" in text and "lithe over MGD" not in text
    assert few_labels.width_table(study(*rows[2:]), "1/16") == ""


def test_what_each_part_adds() -> None:
    names = ("labelled-only", "pixel-labelled", "pixel-unlabelled", "image", "mgd")
    rows = [record(name, 30.0 + 2 * index) for index, name in enumerate(names)]
    text = few_labels.part_table(study(*rows), "1/16")
    assert "| labels alone | 30.00 | – |" in text
    assert "| + image level | 36.00 (+6.00) | +2.00 |" in text
    assert "| + region level (MGD) | 38.00 (+8.00) | +2.00 |" in text
    assert "| + image level | – | – |" in few_labels.part_table(study(*rows[:2]), "1/16")
    assert few_labels.part_table(study(rows[0], rows[4]), "1/16") == ""
    assert "| + image level |" not in few_labels.method_table(study(*rows))


def test_either_teacher_alone_is_a_method() -> None:
    text = few_labels.method_table(study(record("mgd-deep-only", 35.0), record("mgd", 37.0)))
    assert "| MGD, deep teacher only | 35.00 |" in text and "| MGD | 37.00 |" in text


def test_missing_rows_are_named() -> None:
    rows = [record(name, 30.0) for name in LABELS if name not in ("kd", "image")]
    text = few_labels.missing(study(*rows, record("labelled-only", 30.0, "all")))
    assert "- 1/16: `kd`, `image`" in text and "- 1/8: none of its rows has been run" in text
    assert "- all: `slimseg`, `labelled-only-0.75`" in text and "`mgd`" not in text


def test_without_results_the_page_says_so() -> None:
    text = page()
    assert "## Students without a finished row" in text and "- `resnet18`, protocol `camvid`" in text


def test_pages_with_teachers_and_pictures(root: Path) -> None:
    rows = [record("labelled-only", 30.0), record("mgd", 42.0), record("lithe", WIDE)]
    finish(*rows, record("teacher-deep", 48.0, network="resnet"), record("mgd", 20.0), record("mgd", 41.0))
    text = page()
    assert "| deep teacher (CPS) | 48.00 (+18.00) |" in text  # of the pair that the student shares
    assert "| MGD | 41.00 (+11.00) |" in text  # the key's last line
    assert "## Student `resnet18`, protocol `camvid`" in text and "- `mobilenetv2`, protocol `camvid`" in text
    assert "at least +11.5 mIoU over labels alone at 1/16 (23) labels: **missed** (MGD +11.00)" in text
    assert drawn(root) == ["mgd-camvid-resnet18", "mgd-camvid-resnet18-widths"]
    assert all(f"../images/{name}.png" in text for name in drawn(root)) and "mIoU of every method" in text


def test_teachers_of_a_shorter_protocol_stand_beside_their_students() -> None:
    student = record("mgd", 42.0, network="ddrnet") | {"key": "student", "protocol": "camvid-half-few-long"}
    teacher = record("teacher-wide", 48.0, network="ddrnet") | {"key": "teacher", "protocol": "camvid-half-few"}
    finish(student, teacher)
    section = page().partition("## Student `ddrnet`, protocol `camvid-half-few-long`")[2]
    assert "| wide teacher (CPS) | 48.00 |" in section.partition("\n## ")[0]
    assert "`ddrnet`, protocol `camvid-half-few`\n" in page(), "nothing was run there"


def test_several_shares_are_drawn_against_the_number_of_labels(root: Path) -> None:
    rows = [record("labelled-only", 30.0 + n, share) for n, share in enumerate(("1/16", "1/8", "all"))]
    points = few_labels.by_share(study(*rows))["labels alone"]
    assert [(point.cost, point.score) for point in points] == [(23, 0.30), (46, 0.31), (367, 0.32)]
    finish(*rows, record("mgd", 35.0))
    assert "mIoU against the number of labelled images" in page()
    assert drawn(root) == ["mgd-camvid-resnet18"]


def test_methods_at_one_share_are_drawn_beside_those_at_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found in a picture: labels alone at two shares, and no trace of MGD, which had one."""
    shown: list[str] = []
    monkeypatch.setattr(few_labels, "curve_plot", lambda curves, *_: shown.extend(curves))
    few_labels.pictures(
        study(*(record("labelled-only", 30.0, share) for share in ("1/16", "all")), record("mgd", 35.0))
    )
    assert shown == ["labels alone", "MGD"]


def test_pictures_compare_only_what_has_the_same_seeds() -> None:
    """Found in a picture: a mean of four seeds beside methods that had one of them."""
    baseline = [record("labelled-only", score, seed=seed) for seed, score in enumerate((28.0, 36.0, 32.0))]
    rows = study(*baseline, record("cps", 31.0), record("mgd", {"1": 30.0, "0.5": 29.0}))
    paired = few_labels.by_method(rows, "1/16")
    assert list(paired) == ["labels alone", "MGD", "CPS"]
    for scores, score in zip(paired.values(), (28, 30, 31), strict=True):
        assert list(scores.values()) == pytest.approx([score])
    assert [point.score for point in few_labels.by_width(rows, "1/16")["labels alone"]] == [pytest.approx(0.28)]
    assert few_labels.by_method(study(*baseline[1:], record("cps", 31.0)), "1/16") == {}


def test_scores_on_the_unlabelled_images_stand_beside_those_on_val(root: Path) -> None:
    finish(record("labelled-only", 28.5), record("mgd", 29.75), record("teacher-deep", 36.0, network="resnet"))
    finish(record("lithe", {"1": 32.0, "0.5": 30.0}), record("cps", 31.0))  # CPS is not diagnosed
    key = "camvid-{}-1/16-{}-seed0".format
    scores = {"deep": 0.34, "student": 0.365, key("resnet18", "labelled-only"): 0.353}
    scores |= {f"{key('resnet18', 'lithe')}@0.5": 0.36}
    report = {
        "run": key("resnet18", "mgd"),
        "labels": {name: {"miou": miou} for name, miou in scores.items()},
        "options": {"deep": "runs/deep-seed0/model.safetensors", "wide": "runs/wide-seed0/model.safetensors"},
    }
    origin = {"table": "mgd_diagnosis", "options": report.pop("options")}
    lines = [json.dumps({**origin, "key": key, "metrics": value}) + "\n" for key, value in report.items()]
    (root / "mgd_diagnosis.jsonl").write_text("".join(lines))
    text = page()
    [table] = [block for block in text.split("\n\n") if block.startswith("|  | unlabelled images | val |")]
    assert table.splitlines()[2:] == [
        "| MGD | 36.50 | 29.75 |",
        "| lithe, width 0.5 | 36.00 | 30.00 |",
        "| labels alone | 35.30 | 28.50 |",
    ]
