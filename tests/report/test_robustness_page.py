"""A robustness card in tables, figures, a page, a model card, and as a command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from registry import registered
from test_card import header, model_card
from tiny_colours import CLASSES, colour_bundle, dominant, picture, truth
from tiny_pictures import Pictures

from litheseg.cli import main
from litheseg.errors import LithesegError
from litheseg.evaluation.robustness import RobustnessCard, header_robustness, measure_robustness
from litheseg.masks.pictures import encode_mask
from litheseg.models.bundle import load_bundle
from litheseg.report import run_report
from litheseg.report.robustness import robustness_figures, write_robustness
from litheseg.report.robustness_plots import corruption_curves, reliability_diagram, risk_coverage
from litheseg.report.robustness_tables import card_rows, corruption_table, recorded_robustness, robustness_table

_registered = registered(dominant=dominant)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, _registered: None) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    colour_bundle(path, resizes=False)
    return path


@pytest.fixture(scope="module")
def card(model: Path) -> RobustnessCard:
    source = Pictures(CLASSES, [(picture(), truth())] * 2)
    return measure_robustness({"street": model}, source, corruptions=("jpeg", "impulse-noise"), strengths=(1, 5))


def test_tables_say_what_was_measured(card: RobustnessCard) -> None:
    rows = card_rows(card)
    table = robustness_table(rows)
    assert [row[0] for row in table.rows] == ["width 1", "width 0.5"]
    wide = dict(zip(table.head, table.rows[0], strict=True))
    assert wide["mIoU (%)"] == "100.0" and wide["corrupted mIoU (%)"] == f"{100 * card.networks[0].miou():.1f}"
    assert wide["corrupted worst (%)"].split()[0] in CLASSES.names
    assert wide["errors found (%)"] == "–" if "errors found (%)" in wide else True, "nothing is wrong"
    kinds = corruption_table(rows)
    assert [row[0] for row in kinds.rows] == ["jpeg", "impulse-noise"]
    assert kinds.rows[1][1].startswith(f"{100 * card.networks[0].miou('impulse-noise'):.1f} (")


def test_a_model_card_shows_what_its_header_has_and_nothing_else(card: RobustnessCard) -> None:
    kept = header(metrics=header_robustness({"1.0": {"miou": 0.6}}, card))
    assert list(recorded_robustness(kept)) == ["width 1, fp32", "width 0.5, fp32"]
    text = model_card(kept, name="street")
    assert "## Robustness" in text and "2 of 2 images of pictures val" in text and "impulse-noise" in text
    assert "Robustness" not in model_card(header(), name="street")


@pytest.mark.parametrize(
    "change",
    [
        {"clean_miou": "much"},
        {"corruptions": {"fog": {"miou": [0.5], "worst_iou": [0.5]}}},
        {"confidence": {"reliability": [[1, 2]], "risk": [[1, 2]]}},
        {"shifted": 7},
        {"strengths": None},
    ],
)
def test_what_is_broken_in_a_header_is_left_out(card: RobustnessCard, change: dict[str, Any]) -> None:
    entry = card.networks[0].to_dict() | change
    assert recorded_robustness(header(metrics={"1.0": {"robustness": {"fp32": entry}}})) == {}


def test_a_page_has_tables_and_figures(card: RobustnessCard, tmp_path: Path) -> None:
    write_robustness(tmp_path / "r.html", card, image=picture(), command="litheseg robustness model")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<img") == 4 and page.count("<table") == 2 and "litheseg robustness model" in page
    assert "one of the images" in page.lower()


def test_figures_of_networks_without_confidence_or_corruptions(card: RobustnessCard, tmp_path: Path) -> None:
    silent = [replace(network, confidence=None, shifted=None) for network in card.networks]
    figures = robustness_figures(tmp_path, card_rows(replace(card, networks=tuple(silent))))
    assert [figure.path.name for figure in figures] == ["corruptions.png"]  # type: ignore[union-attr]
    assert robustness_figures(tmp_path, {}) == []


def test_figures_draw_every_network(tmp_path: Path) -> None:
    names = {"wide": 0.7, "narrow": math.nan}
    curves = {name: {"fog": [0.5, None], "rain": [0.4, 0.3]} for name in names}
    corruption_curves(tmp_path / "c.svg", curves, names, (1, 3))
    reliability_diagram(tmp_path / "r.svg", {"clean": {name: [(0.5, 0.6, 0.2), (0.9, 0.8, 0.8)] for name in names}})
    risk_coverage(tmp_path / "k.svg", {name: [(0.5, 0.0), (1.0, 0.1)] for name in names})
    for file, words in (("c", ("fog", "rain")), ("r", ("too sure", "clean")), ("k", ("if all errors came last",))):
        text = (tmp_path / f"{file}.svg").read_text()
        assert all(f"<!-- {word} -->" in text for word in (*words, *names))
    for draw in (reliability_diagram, risk_coverage):
        with pytest.raises(LithesegError, match="networks with logits"):
            draw(tmp_path / "e.svg", {})
    with pytest.raises(LithesegError, match="no corruptions"):
        corruption_curves(tmp_path / "e.svg", {"a": {}}, {"a": 1.0}, ())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images", "masks"):
        (tmp_path / "data" / name / "val").mkdir(parents=True)
    (tmp_path / "data" / "classes.yaml").write_text(f"classes: [{', '.join(CLASSES.names)}]\n")
    for index in range(2):
        Image.fromarray(picture()).save(tmp_path / "data/images/val" / f"{index}.png")
        (tmp_path / "data/masks/val" / f"{index}.png").write_bytes(encode_mask(truth(), CLASSES))
    return tmp_path / "data"


def test_the_command(model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, saved = tmp_path / "page.html", tmp_path / "saved.safetensors"
    line = ["robustness", str(model), "--data", str(folder), "--corruptions", "fog", "--strengths", "2"]
    assert main([*line, "--output", str(page), "--save", str(saved)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 images" in printed and "fog" in printed and str(page) in printed and page.exists()
    assert set(recorded_robustness(load_bundle(saved).header)) == {"width 1, fp32", "width 0.5, fp32"}
    assert main([*line, "--json", "--widths", "0.5", "--images", "1"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["images"] == 1 and [network["width"] for network in content["networks"]] == [0.5]
    assert len(content["networks"][0]["corruptions"]["fog"]["miou"]) == 1


def test_a_report_of_models_has_it_on_request(
    model: Path, folder: Path, card: RobustnessCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def measured(models: dict[str, Any], source: Any, **how: Any) -> RobustnessCard:
        asked.update(how, models=[*models], source=source.name)
        return card

    monkeypatch.setattr(run_report, "measure_robustness", measured)
    page = tmp_path / "compare.html"
    line = ["report", str(model), "--data", str(folder), "--no-latency", "--output", str(page)]
    assert main([*line, "--robustness", "--exports", "exports/street", "--images", "1"]) == 0
    assert (asked["models"], asked["images"], asked["split"]) == (["model", "street"], 1, "val")
    text = page.read_text()
    assert str(card) in text and "impulse-noise" in text and text.count("<img") == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "page.pdf"], "ends in .html"),
        (["--corruptions", "fogg"], "Did you mean 'fog'"),
        (["--precisions", "int8"], "no int8 network"),
    ],
)
def test_what_the_command_refuses(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["robustness", str(model), "--data", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
