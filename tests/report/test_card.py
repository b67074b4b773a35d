from __future__ import annotations

from typing import Any

import yaml

from litheseg.cost import WidthCost
from litheseg.masks.classes import Classes
from litheseg.models.bundle import BundleHeader
from litheseg.report.card import (
    Bullets,
    Code,
    Section,
    Table,
    card_sections,
    to_markdown,
    width_rows,
    width_table,
)
from litheseg.runtime.latency import Latency, Scope
from litheseg.runtime.profiling import Profile

CLASSES = Classes(names=("road", "car"), colors=((200, 0, 0), (0, 0, 100)))
TIMES = {Scope.END_TO_END: Latency(Scope.END_TO_END, [12.34])}
COSTS = [Profile(0.5, "torch", "fp32", TIMES, 1_500_000, 1_200_000_000, 1), WidthCost(1.0, 5_700_000, 4_700_000_000, 1)]


def header(**changes: Any) -> BundleHeader:
    parts: dict[str, Any] = {
        "architecture": {"name": "ddrnet", "args": {"base": 32}},
        "classes": CLASSES,
        "widths": (1.0, 0.5),
        "calibrated_widths": (0.75,),
        "size": (360, 480),
        "metrics": {"1.0": {"miou": 0.684, "boundary_iou": 0.5, "p50_ms": 40.0}, "0.5": {"miou": 0.612}},
        "recipe": {"epochs": 3, "model": {"name": "ddrnet"}},
        "provenance": {"seed": 7, "data": "CamVid", "data_licence": "research only", "versions": {"torch": "2.11"}},
    }
    return BundleHeader(**(parts | changes))


def model_card(header: BundleHeader, **options: Any) -> str:
    return to_markdown(options["name"], card_sections(header, **options))


def test_rows_join_what_was_recorded_and_what_was_measured() -> None:
    wide, middle, narrow = width_rows(header(), COSTS)
    assert (wide.width, wide.miou, wide.macs, wide.p50_ms) == (1.0, 0.684, 4.7e9, 40.0)
    assert (middle.width, middle.miou, middle.macs) == (0.75, None, None)
    assert (narrow.width, narrow.miou, narrow.p50_ms) == (0.5, 0.612, 12.34)


def test_table_has_units_and_leaves_out_what_nobody_measured() -> None:
    table = width_table(width_rows(header(metrics={"1": {"miou": 0.5}}), ()))
    assert table == Table(("width", "mIoU (%)"), (("1", "50.0"), ("0.75", "–"), ("0.5", "–")))
    full = width_table(width_rows(header(), COSTS))
    assert full.rows[0] == ("1", "68.4", "50.0", "5.70", "4.70", "40.0")


def test_the_worst_class_stands_beside_the_mean_and_is_a_limit_when_it_is_hardly_found() -> None:
    metrics = {"1": {"miou": 0.5, "iou": [0.96, 0.04]}, "0.5": {"miou": 0.4, "iou": [0.7, None]}}
    facts = {"class_shares": [0.99, 0.01], "class_images": [90, 12], "train_images": 90, "data": "CamVid"}
    seen = header(metrics=metrics, provenance=facts)
    table = width_table(width_rows(seen))
    assert [row[:3] for row in table.rows] == [
        ("1", "50.0", "car 4.0"),
        ("0.75", "–", "–"),
        ("0.5", "40.0", "road 70.0"),
    ]
    card = model_card(seen, name="lithe")
    assert "car is hardly found: IoU 4.0 % at width 1. It is rare: 12 of 90 training images and 1 %" in card
    assert "class_images" not in card, "counts are for programs"


def test_scores_that_are_no_numbers_count_as_not_measured() -> None:
    rows = width_rows(header(metrics={"1.0": {"miou": float("nan"), "boundary_iou": [0.1, 0.2]}}))
    assert (rows[0].miou, rows[0].boundary_iou) == (None, None)


def test_card_says_what_data_limits_provenance_and_how_to_load() -> None:
    card = model_card(header(), name="lithe", file="runs/lithe.safetensors", costs=COSTS)
    for text in (
        "# lithe\n",
        "2 classes",
        "360 x 480",
        "road, car",
        "data: CamVid",
        "licence of the data: research only",
    ):
        assert text in card
    assert 'Predictor("runs/lithe.safetensors", width=0.5)' in card
    assert "No accuracy was measured at width 0.75." in card
    assert "seed: 7" in card and "versions: torch 2.11" in card
    assert "| 0.5 | 61.2 | – | 1.50 | 1.20 | 12.3 |" in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]) == header().recipe


def test_a_bare_header_gives_a_card_that_admits_what_is_missing() -> None:
    card = model_card(BundleHeader(architecture={"name": "erfnet", "args": {}}, classes=CLASSES), name="bare")
    assert "licence of the data: not recorded" in card
    assert "## Recipe\n\nnot recorded" in card
    assert "| width |\n| --- |\n| 1 |" in card


def test_markdown_cannot_be_broken_by_its_content() -> None:
    blocks = (Table(("a|b", "c"), (("x\ny", "z"),)), Code("```\nrm"), Bullets(("one\n# two",)))
    text = to_markdown("t", [Section("s", blocks)])
    assert "| a\\|b | c |\n| --- | ---: |\n| x y | z |" in text
    assert "````\n```\nrm\n````" in text
    assert "- one # two" in text


def test_names_from_elsewhere_cannot_act_in_the_card() -> None:
    classes = Classes.from_names(["<script>alert(1)</script>", "[road](javascript:x)", "|"])
    facts = {"data": "<img src=x>", "note": "`a` </li>"}
    card = model_card(header(classes=classes, provenance=facts), name="<b>run</b>\n# two")
    prose = "".join(card.split("```")[::2])
    assert "<" not in prose and "](" not in prose.replace("\\](", "")
    assert card.startswith("# &lt;b&gt;run&lt;/b&gt; # two\n")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;, \\[road\\](javascript:x), \\|" in card
