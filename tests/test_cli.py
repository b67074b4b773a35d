"""The command line as people meet it: what is printed, what is written, and what a mistake costs."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_training import tiny

from litheseg import __version__, cli
from litheseg.errors import Interrupted
from litheseg.models.bundle import load_bundle, save_bundle

TINY = [f"--model.name={tiny.__name__}", "--widths=[1,.5]", "--model.divisor=2"]
SHORT = ["--trainer.epochs", "1", "--data.batch_size=2", "--trainer.loggers=[csv]", "--trainer.threads=1"]


def run(*args: object) -> int:
    return cli.main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "streets"
    assert run("data", "make", "streets", folder, "--train", 4, "--val", 2, "--size", "32x48") == 0
    return folder


@pytest.fixture(scope="module")
def trained(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert run("train", "--recipe", "slimseg", "--data.root", streets, "--output", folder, *TINY, *SHORT) == 0
    return folder


@pytest.fixture
def bundle(trained: Path) -> Path:
    return trained / "model.safetensors"


@pytest.fixture
def mine(streets: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may spoil."""
    return Path(shutil.copytree(streets, tmp_path / "mine"))


def refused(capsys: pytest.CaptureFixture[str], *args: object, status: int = 2) -> str:
    """Run a command that must fail; its one line on stderr."""
    capsys.readouterr()
    assert run(*args) == status
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, lines
    return lines[0]


# --- what works ------------------------------------------------------------------------------------------------------


def test_train_leaves_model_report_and_card(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"model.safetensors", "report.html", "MODEL_CARD.md", "recipe.yaml", "metrics.csv"} <= names
    assert {path.name for path in (trained / "figures").iterdir()} == {"curves.png", "frontier.png", "gallery.png"}
    page = (trained / "report.html").read_text()
    assert "litheseg train --recipe slimseg" in page and page.count("data:image/png") == 3


@pytest.mark.parametrize("widths", ["[1]", "[1, 0.5]"])
def test_the_commands_that_train_names_work(
    widths: str, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--data.root", streets, "--output", tmp_path / "run", *TINY, *SHORT, f"--widths={widths}")
    assert run("train", "--recipe", "supervised", *options) == 0
    named = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  litheseg ")]
    assert [words[1] for words in named] == ["evaluate", "profile", "predict"]
    photos = streets / "images" / "val"
    for words in named:
        assert (
            run(
                *(
                    photos if word == "PHOTOS" else tmp_path / "out" if word == "labelled" else word
                    for word in words[1:]
                )
            )
            == 0
        )


def test_evaluate_calibrates_a_width_in_between_and_can_keep_it(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, kept = load_bundle(bundle), tmp_path / "kept.safetensors"
    others = {"robustness": {"fp32": {"miou": 0.25}}, "cross_validated": {"miou": 0.5}}  # by other commands
    metrics = known.header.metrics | {"1": {**known.header.metrics["1"], **others, "miou": 0.125}}
    save_bundle(kept, known.model(), replace(known.header, metrics=metrics))
    assert run("evaluate", kept, "--widths", "1,.6", "--save", kept, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["calibrated"] == [0.6] and set(result["scores"]) == {"1", "0.6"}
    header = load_bundle(kept).header
    assert header.available_widths == (1.0, 0.6, 0.5)
    for width in ("1", "0.6"):
        assert header.metrics[width]["miou"] == result["scores"][width]["miou"]  # so that reports show it
    assert {name: header.metrics["1"][name] for name in others} == others, "of the same weights"
    assert header.metrics["0.5"] == load_bundle(bundle).header.metrics["0.5"]
    assert header.metrics["0.5"]["macs"] < header.metrics["0.6"]["macs"] < header.metrics["1"]["macs"]
    assert run("predict", kept, "nothing.png", "--output", tmp_path / "out", "--width", ".6") == 1  # the width exists


def test_evaluate_in_words(bundle: Path, streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    views = ["--mode", "sliding", "--window", "32x32", "--flip", "--scales", "1,1.5"]
    assert run("evaluate", bundle, "--data", streets, "--widths", ".7", *views) == 0
    text = capsys.readouterr().out
    assert "width 0.7: batch-norm statistics measured on training images" in text
    assert "boundary IoU" in text and "pedestrian" in text


def test_profile(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profile", bundle, "--widths", "1,.7", "--threads", 1, "--repeats", 1, "--layers", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    wide, between = result["widths"]
    assert result["size"] == [32, 48] and wide["macs"] > between["macs"] and between["end_to_end"]["p50_ms"] > 0
    assert sum(layer["macs"] for layer in result["layers"]) == wide["macs"]
    assert run("profile", bundle, "--size", "64x64", "--repeats", 1, "--layers") == 0
    assert "64x64" in capsys.readouterr().out


def test_predict(bundle: Path, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = streets / "images" / "val"
    assert run("predict", bundle, images, "--output", tmp_path / "out", "--width", 0.5, "--kind", "both") == 0
    assert "2 images: 4 files written" in capsys.readouterr().out
    assert np.asarray(Image.open(tmp_path / "out" / "00000.png")).shape == (32, 48)
    assert run("predict", bundle, images, "--output", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 2


def test_data_info_and_split(streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "info", streets, "--json") == 0
    assert json.loads(capsys.readouterr().out)["splits"] == {"train": 4, "val": 2}
    assert run("data", "split", streets, "--ratio", "1/2", "--output", tmp_path / "few.txt") == 0
    assert len((tmp_path / "few.txt").read_text().split()) == 2


def test_doctor_judges(streets: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", streets, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    (mine / "masks" / "train" / "00000.png").unlink()
    assert run("doctor", mine) == 1
    assert "00000" in capsys.readouterr().out


def test_models_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models") == 0 and run("models", "ddrnet") == 0 and run("recipes") == 0 and run("recipes", "demo") == 0
    text = capsys.readouterr().out
    assert "erfnet" in text and "boundary_head" in text and "supervised" in text and "streets" in text


def test_report_sets_bundles_side_by_side(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    shutil.copy(bundle, other)
    assert run("report", bundle, other, "--output", tmp_path / "page.html", "--no-latency") == 0
    page = (tmp_path / "page.html").read_text()
    assert "other" in page and "model" in page and page.count("data:image/png") == 3


@pytest.mark.parametrize("command", [(), *((name,) for name in cli.COMMANDS), ("data", "make")])
def test_help_shows_what_to_type(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--help") == 0
    text = capsys.readouterr().out
    assert "usage: litheseg" in text
    if command in ((), ("train",), ("evaluate",), ("data",)):
        assert "example" in text


def test_help_of_train_explains_every_recipe_field(capsys: pytest.CaptureFixture[str]) -> None:
    run("train", "--help-all")
    text = capsys.readouterr().out
    assert "--optimizer.clip" in text and "largest gradient norm; 0 for no clipping. [0.0]" in text
    assert "--data.augment.hue" in text


def test_version_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"litheseg {__version__}\n"
    done = subprocess.run([sys.executable, "-m", "litheseg", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown command") and not done.stdout


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(error: BaseException) -> Any:
        def train(*_: Any, **__: Any) -> None:
            raise error

        return train

    monkeypatch.setattr("litheseg.training.run.train", stop(Interrupted("saved; go on with --resume")))
    assert "--resume" in refused(capsys, "train", "--data.root", streets, status=130)
    monkeypatch.setattr("litheseg.training.run.train", stop(KeyboardInterrupt()))
    assert "Ctrl-C" in refused(capsys, "train", "--data.root", streets, status=130)


# --- what does not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian"], ["trian", "'train'"]),
        (["profile"], ["MODEL", "litheseg profile --help"]),
        (["profile", "x.safetensors", "--widht", "1"], ["--widht"]),
        (["profile", "x.safetensors", "--widths", "1,2"], ["2", "(0, 1]"]),
        (["profile", "x.safetensors", "--widths", "a"], ["'a'", "1,.5"]),
        (["profile", "x.safetensors", "--size", "12"], ["'12'", "360x480"]),
        (["profile", "missing.safetensors"], ["missing.safetensors"]),
        (["models", "ddrent"], ["ddrent", "'ddrnet'"]),
        (["recipes", "slimsegg"], ["slimsegg", "'slimseg'"]),
        (["data", "info", "nowhere"], ["nowhere"]),
        (["data", "fetch", "voc", "x"], ["voc", "host.robots.ox.ac.uk"]),
        (["train", "--recipe", "slimsge"], ["slimsge", "'slimseg'"]),
        (["train", "--optimizer.lrr", "1"], ["--optimizer.lrr", "--optimizer.lr"]),
        (["train", "--trainer.epochs", "many"], ["epochs", "many"]),
        (["train", "--data.source", "streets", "--widths=[1.5]"], ["1.5", "(0, 1]"]),
        (["train", "--data.root", "nowhere"], ["nowhere"]),
    ],
)
def test_wrong_usage_is_one_line_with_a_remedy(
    args: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, *args)
    for word in words:
        assert word in message
    assert not list(tmp_path.rglob("*.safetensors"))


def _truncate(data: Path) -> Path:
    path = data / "images" / "train" / "00000.png"
    path.write_bytes(path.read_bytes()[:200])
    return path


def _text(data: Path) -> Path:
    path = data / "images" / "train" / "00001.png"
    path.write_text("not an image")
    return path


def _no_mask(data: Path) -> Path:
    (data / "masks" / "train" / "00001.png").unlink()
    return data / "images" / "train" / "00001.png"


def _other_size(data: Path) -> Path:
    path = data / "masks" / "train" / "00001.png"
    Image.open(path).resize((20, 20)).save(path)
    return path


def _unknown_label(data: Path) -> Path:
    path = data / "masks" / "train" / "00001.png"
    Image.fromarray(np.full((32, 48), 77, np.uint8)).save(path)
    return path


def _empty(data: Path) -> Path:
    for path in (data / "images" / "train").iterdir():
        path.unlink()
    for path in (data / "masks" / "train").iterdir():
        path.unlink()
    return data


@pytest.mark.parametrize("spoil", [_truncate, _text, _no_mask, _other_size, _unknown_label, _empty])
def test_bad_data_is_named_by_train_and_doctor(
    spoil: Any, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    culprit = spoil(mine)
    message = refused(capsys, "train", "--data.root", mine, "--output", tmp_path / "run", *TINY, *SHORT)
    assert culprit.name in message
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert run("doctor", mine) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_after_bad_data_the_same_folder_can_be_used(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = mine / "images" / "train" / "00000.png"
    good = path.read_bytes()
    _truncate(mine)
    command = ["train", "--data.root", mine, "--output", tmp_path / "run", *TINY, *SHORT]
    refused(capsys, *command)
    path.write_bytes(good)
    assert run(*command) == 0


def _ignored(data: Path) -> None:
    Image.fromarray(np.full((32, 48), 255, np.uint8)).save(data / "masks" / "train" / "00000.png")


def _one_pixel(data: Path) -> None:
    for kind in ("images", "masks"):
        path = data / kind / "train" / "00000.png"
        Image.open(path).crop((0, 20, 1, 21)).save(path)


def _no_road_in_train(data: Path) -> None:
    for path in (data / "masks" / "train").iterdir():
        labels = np.asarray(Image.open(path)).copy()
        labels[labels == 3] = 255
        Image.fromarray(labels).save(path)


@pytest.mark.parametrize("spoil", [_ignored, _one_pixel, _no_road_in_train])
def test_odd_data_trains(spoil: Any, mine: Path, tmp_path: Path) -> None:
    """An all-ignored mask, a one-pixel image, images smaller than the crop, and a class that only val has."""
    spoil(mine)
    crop = ["--data.crop", "[64,64]"]
    assert run("train", "--data.root", mine, "--output", tmp_path / "run", *crop, *TINY, *SHORT) == 0
    scores = load_bundle(tmp_path / "run" / "model.safetensors").header.metrics["1"]
    assert 0 <= scores["miou"] <= 1


def test_an_existing_run_is_kept(trained: Path, streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "model.safetensors").read_bytes()
    message = refused(capsys, "train", "--data.root", streets, "--output", trained, *TINY, *SHORT)
    assert str(trained) in message and "--resume" in message and "--output" in message
    assert (trained / "model.safetensors").read_bytes() == before


def test_output_that_cannot_be_written(
    bundle: Path, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    inside = blocked / "deeper"
    for command in (
        ["train", "--data.root", streets, "--output", inside, *TINY, *SHORT],
        ["predict", bundle, streets / "images" / "val", "--output", inside],
        ["evaluate", bundle, "--widths", ".7", "--save", inside / "x.safetensors"],
        ["report", bundle, "--no-latency", "--output", inside / "x.html"],
        ["data", "make", "streets", inside, "--train", 1, "--val", 1, "--size", "32x32"],
        ["data", "split", streets, "--count", 1, "--output", inside / "few.txt"],
    ):
        assert str(blocked) in refused(capsys, *command)


def test_a_width_that_is_not_there(bundle: Path, streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "predict", bundle, streets / "images", "--output", "out", "--width", ".7")
    assert "0.7" in message and "litheseg evaluate" in message
    message = refused(capsys, "evaluate", bundle, "--widths", ".2")
    assert "0.2" in message and "0.5 to 1" in message


def test_an_option_that_is_not_there(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean --widths?" in refused(capsys, "evaluate", bundle, "--width=.5")
    message = refused(capsys, "evaluate", bundle, "--quickly")
    assert "--quickly" in message and "litheseg evaluate --help" in message


def test_data_of_other_classes(bundle: Path, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (mine / "classes.yaml").read_text()
    (mine / "classes.yaml").write_text(text.replace("name: sky", "name: heaven"))
    assert "heaven" in refused(capsys, "evaluate", bundle, "--data", mine)


def test_a_bundle_whose_data_has_gone(bundle: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def gone(*_: Any, **__: Any) -> None:
        from litheseg.errors import DataError

        raise DataError("data folder x does not exist")

    monkeypatch.setattr("litheseg.evaluation.bundle.open_source", gone)
    assert "--data" in refused(capsys, "evaluate", bundle)


def test_predict_names_bad_images_and_goes_on(
    bundle: Path, mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    culprit = _truncate(mine)
    message = refused(capsys, "predict", bundle, mine / "images", "--output", tmp_path / "out", status=1)
    assert str(culprit) in message
    assert len(list((tmp_path / "out").rglob("*.png"))) == 5
