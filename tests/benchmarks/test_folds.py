"""Protocols with folds: one row per left-out sequence, each scored beside published val, and the tables of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import records
import run
import torch
import torch.nn.functional as F
from pages import folds as fold_pages
from pages.studies import Study
from PIL import Image
from rows import read_protocols
from scipy import stats
from tiny_camvid import SEQUENCES, make_camvid

from litheseg.data.loading.transforms import normalise
from litheseg.evaluation.bundle import evaluate_bundle
from litheseg.losses.supervised import CrossEntropy
from litheseg.masks.resizing import resize_image
from litheseg.models.bundle import load_bundle
from litheseg.training.recipe import load_recipe, recipe_to_dict

PARTS = ("1/5", "2/5", "3/5", "4/5", "5/5")
FOLDED = [name for name, protocol in read_protocols().items() if protocol.folds]


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", FOLDED)
def test_every_row_and_fold_is_a_valid_recipe(protocol: str) -> None:
    table = "mgd" if "few" in protocol else "slimseg"
    rows = run.read_rows(table, protocol, None, [0, 1])
    assert len({row.key for row in rows}) == len(rows) and not any("/" in row.key for row in rows)
    assert {row.fold for row in rows} == set(PARTS if protocol == "membrane" else SEQUENCES)
    field = "fold" if protocol == "membrane" else "leave_out"
    assert all(f"--data.{field}={row.fold}" in row.arguments("somewhere", Path("runs")) for row in rows)
    for row in rows[:: 1 if table == "slimseg" else 7][:10]:  # each takes a tenth of a second
        data = load_recipe(row.recipe, row.arguments("somewhere", Path("runs"))).data
        assert getattr(data, field) == row.fold and data.steps > 0


def test_the_ablation_changes_one_thing_at_a_time_and_then_all() -> None:
    rows = {row.id: row for row in run.read_rows("ablation", "camvid-seq", None, [0], folds=["0016E5"])}
    recipes = {name: load_recipe(row.recipe, row.arguments("d", Path("runs"))) for name, row in rows.items()}
    every = recipes.pop("all")
    ours = recipes.pop("ours")
    assert every.objectives["labels"].loss == ours.objectives["labels"].loss == CrossEntropy(class_weights="log")
    before, joined = recipe_to_dict(ours), recipe_to_dict(ours)
    for recipe in recipes.values():
        changed = {section: values for section, values in recipe_to_dict(recipe).items() if values != before[section]}
        assert len(changed) == 1
        for section, values in changed.items():
            joined[section] |= {name: value for name, value in values.items() if value != before[section][name]}
            joined[section] = {name: value for name, value in joined[section].items() if name in values}
    joined["data"]["augment"] = recipe_to_dict(every)["data"]["augment"]
    assert joined == recipe_to_dict(every) and every.data.augment.scale == (0.6, 1.9) and every.data.augment.hue == 0


def test_a_fold_is_finished_before_the_next_and_a_seed_before_the_next() -> None:
    rows = run.read_rows("slimseg", "camvid-seq", "ddrnet", [0, 1])
    order = list(dict.fromkeys((row.seed, row.fold) for row in rows))
    assert order == [(seed, fold) for seed in (0, 1) for fold in SEQUENCES]
    assert [row.fold for row in run.read_rows("slimseg", "camvid-seq", "ddrnet", [0], folds=["0006R0"])] == [
        "0006R0"
    ] * len({row.id for row in rows})


def test_a_row_learns_from_the_teachers_of_its_own_fold() -> None:
    rows = run.read_rows("mgd", "camvid-seq-few", "ddrnet", [0])
    for row in (row for row in rows if row.id == "mgd"):
        bundle = load_recipe(row.recipe, row.arguments("d", Path("runs"))).teachers["deep"].bundle
        assert bundle == f"runs/camvid-seq-few-ddrnet-1of16-teacher-deep-{row.fold}-seed0/model.safetensors"


def test_what_has_no_such_fold_is_refused() -> None:
    with pytest.raises(SystemExit, match="protocol camvid-seq has no fold 'x'; choose from 0001TP, 0006R0, 0016E5"):
        run.read_rows("slimseg", "camvid-seq", None, [0], folds=["x"])
    with pytest.raises(SystemExit, match="protocol camvid has no fold '0001TP'"):
        run.read_rows("slimseg", "camvid", None, [0], folds=["0001TP"])
    with pytest.raises(SystemExit, match="no protocol 'camvid-sq'"):
        run.read_rows("slimseg", "camvid-sq", None, [0])


def test_folds_take_equally_many_steps() -> None:
    protocols = read_protocols()
    for name in ("camvid-seq", "camvid-half-seq"):
        assert any(argument.startswith("--data.steps=") for argument in protocols[name].arguments)
    half, whole = (set(protocols[name].arguments) for name in ("camvid-half-seq", "camvid-half"))
    steps = {"--data.steps=90", "--trainer.epochs=20", "--trainer.val_every=20"}
    assert half - whole == {*steps, "--trainer.precision=32-true"}
    assert 90 * 20 == 40 * (367 // 8)


def test_a_row_is_trained_and_scored_on_both_vals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camvid, results = make_camvid(tmp_path / "camvid"), tmp_path / "rows.jsonl"
    words = ["run.py", "slimseg", "--protocol", "camvid-seq", "--data", str(camvid), "--work", str(tmp_path / "work")]
    words += [
        "--model",
        "ddrnet",
        "--results",
        str(results),
        "--folds",
        "0016E5",
        "--only",
        "a-independent-0.25",
        "--tiny",
    ]
    monkeypatch.setattr(sys, "argv", words)
    run.main()
    run.main()  # which finds it done
    [row] = [json.loads(line) for line in results.read_text().splitlines()]
    assert (row["table"], row["fold"], row["tiny"]) == ("slimseg", "0016E5", True)
    assert row["key"] == "camvid-seq-ddrnet-a-independent-0.25-0016E5-seed0" and str(camvid) not in json.dumps(row)
    bundle = load_bundle(tmp_path / "work" / row["key"] / "model.safetensors")
    assert bundle.header.recipe["data"]["leave_out"] == "0016E5"
    [(width, scores)] = row["metrics"].items()
    assert width == "0.25" and 0 <= scores["miou"] <= 1 and scores["train_ce"] > 0
    assert scores["published_val"] == pytest.approx(by_hand(bundle, camvid / "val"))
    # The bundle's own data is the left-out sequence, whatever the data set's val is.
    assert evaluate_bundle(bundle).scores[0.25].miou == pytest.approx(scores["miou"])


def test_a_row_of_the_membranes_has_a_part_of_the_images_as_fold_and_no_published_val(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, results, random = tmp_path / "membrane", tmp_path / "rows.jsonl", np.random.default_rng(0)
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True)
    for index in range(10):
        Image.fromarray(random.integers(0, 256, (64, 64), np.uint8)).save(data / f"images/{index}.png")
        Image.fromarray(np.where(random.random((64, 64)) < 0.5, 0, 255).astype(np.uint8)).save(
            data / f"masks/{index}.png"
        )
    words = ["run.py", "slimseg", "--protocol", "membrane", "--data", str(data), "--work", str(tmp_path / "work")]
    words += ["--model", "ddrnet", "--results", str(results), "--only", "a-independent-0.25", "--tiny"]
    monkeypatch.setattr(sys, "argv", [*words, "--folds", "2/5"])
    run.main()
    [row] = [json.loads(line) for line in results.read_text().splitlines()]
    assert row["key"] == "membrane-ddrnet-a-independent-0.25-2of5-seed0" and row["fold"] == "2/5"
    assert row["metrics"]["0.25"]["boundary_iou"] >= 0 and "published_val" not in row["metrics"]["0.25"]


def by_hand(bundle: Any, folder: Path) -> float:
    """MIoU of the narrowest network over the frames of a folder, in numpy."""
    model, header = bundle.plain(0.25), bundle.header
    right, either, labelled = np.zeros((3, 11))
    for path in sorted(folder.glob("*.jpg")):
        mask = np.asarray(Image.open(folder.parent / "valannot" / f"{path.stem}.png"))
        pixels = torch.from_numpy(resize_image(np.array(Image.open(path)), header.size)).permute(2, 0, 1)
        with torch.no_grad():
            logits = model(normalise(pixels, header.images)[None])
        guess = F.interpolate(logits, mask.shape, mode="bilinear", align_corners=False).argmax(1)[0].numpy()
        for label in range(11):
            right[label] += ((guess == label) & (mask == label)).sum()
            either[label] += (((guess == label) | (mask == label)) & (mask < 11)).sum()
            labelled[label] += (mask == label).sum()
    return float(np.mean((right / np.maximum(either, 1))[labelled > 0]))


# --- tables ----------------------------------------------------------------------------------------------------------


def record(label: str, miou: dict[str, float], fold: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    metrics = {width: {"miou": score / 100, "published_val": score / 100 + 0.1} for width, score in miou.items()}
    content = {
        "key": f"camvid-seq-ddrnet-{label}-{'-'.join(miou)}-{fold}-seed{seed}",
        **{"protocol": "camvid-seq", "model": "ddrnet", "id": label, "label": label, "seed": seed, "fold": fold},
        **{"metrics": metrics, "command": "litheseg train", "commit": "0123456789abcdef", "hardware": "1 x GPU"},
        **{"versions": {"torch": "2.11.0"}, "minutes": 3.0, "date": "2030-01-01"},
    }
    return content | more


ALONE = "(a) independent"


def folds(*rows: dict[str, Any]) -> Study:
    return Study("camvid-seq", "ddrnet", rows, SEQUENCES)


BASE = {"0001TP": 40.0, "0006R0": 45.0, "0016E5": 50.0}


def rows(label: str, gains: tuple[float, ...] = (0, 0, 0), seed: int = 0) -> list[dict[str, Any]]:
    return [
        record(label, {"1": score + gain, "0.5": score + gain - 10}, fold, seed)
        for (fold, score), gain in zip(BASE.items(), gains, strict=True)
    ]


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [0.3, -0.2], [1.0, 1.5, 0.2, 0.9, -0.4, 2.0]])
def test_intervals_are_those_of_a_paired_t_test(values: list[float]) -> None:
    found = fold_pages.difference(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.pairs == len(values) and found.mean == pytest.approx(np.mean(values))


def test_one_pair_has_no_interval() -> None:
    assert str(fold_pages.difference([1.5])) == "+1.50" and fold_pages.difference([]) is None


def test_every_fold_their_mean_and_published_val() -> None:
    text = fold_pages.score_table(folds(*rows(ALONE), *rows("(e) band", (1, 2, 3))))
    assert text.splitlines() == [
        "|  | widths | 0001TP | 0006R0 | 0016E5 | mean | published val | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| (a) independent | average | 35.00 | 40.00 | 45.00 | 40.00 | 50.00 | 0 |",
        "| (e) band | average | 36.00 | 42.00 | 48.00 | 42.00 | 52.00 | 0 |",
    ]
    every = fold_pages.score_table(folds(*rows(ALONE)), every_width=True)
    assert "| (a) independent | 0.5 | 30.00 | 35.00 | 40.00 | 35.00 | 45.00 | 0 |" in every


def test_a_mean_needs_every_fold() -> None:
    text = fold_pages.score_table(folds(*rows(ALONE)[:2]))
    assert "| (a) independent | average | 35.00 | 40.00 | – | – | 47.50 | 0 |" in text


def test_seeds_of_a_fold_are_averaged_before_the_folds_are() -> None:
    more = record(ALONE, {"1": 50.0, "0.5": 40.0}, "0001TP", seed=1)
    assert fold_pages.average(folds(*rows(ALONE), more), ALONE, "1") == pytest.approx((45 + 45 + 50) / 3)


def test_differences_are_paired_by_fold_and_seed() -> None:
    study = folds(*rows(ALONE), *rows("(e) band", (1, 2, 3)), record("(e) band", {"1": 99.0}, "0001TP", seed=1))
    interval = "+2.00 [-0.48, +4.48]"  # 4.303 / sqrt(3)
    assert fold_pages.difference_table(study, ALONE).splitlines()[2:] == [
        f"| (e) band | {interval} | {interval} | {interval} | 3 |"
    ]


@pytest.mark.parametrize(
    ("gains", "state"), [((1, 1, 1), "met"), ((0.9, 0.9, 0.9), "missed"), ((1, 1), "open"), ((-1, 2, 3), "met")]
)
def test_targets(gains: tuple[float, ...], state: str) -> None:
    taught = [row for row, _ in zip(rows("(e) band", (*gains, 0)[:3]), gains, strict=False)]
    text = str(fold_pages.target(folds(*rows(ALONE), *taught), ALONE, "(e) band"))
    assert (
        f"(e) band: at or above separate networks at every width, and at least +1.0 mIoU on average: **{state}**"
        in text
    )


def test_the_section_says_what_published_val_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    assert fold_pages.fold_sections("slimseg") == []
    band = run.read_rows("slimseg", "camvid-seq", None, [0])[0].label
    written = [*rows(ALONE), *rows(band, (1, 1, 1)), record(ALONE, {"1": 1.0}, "x", protocol="camvid")]
    del written[-1]["fold"]  # of a protocol without folds
    (tmp_path / "slimseg.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    [section] = map(str, fold_pages.fold_sections("slimseg"))
    assert section.startswith("## By fold: slimseg, `ddrnet`, protocol `camvid-seq`")
    for part in ("for comparison with other tables only", "95 % intervals", "Every width", "n is the number of pairs"):
        assert part in section
    assert band == "(e) + boundary band"
    assert section.index("| separate networks |") < section.index("| next wider teaches, boundary band |")
