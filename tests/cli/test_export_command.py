from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from registry import registered
from tiny_export import build_tiny, noise, photos, plain_labels, plain_logits, tiny_bundle

from litheseg import cli
from litheseg.bundle.exported import load_export
from litheseg.models.bundle import load_bundle
from litheseg.runtime.engines import open_engine

_registered = registered(tiny=build_tiny)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "model.safetensors"
    tiny_bundle(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos")


def run(*args: object) -> int:
    return cli.main([str(arg) for arg in ("export", *args)])


def test_it_prints_what_was_found_and_what_comes_next(
    bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out"
    assert run(bundle, "--output", target, "--format", "torch", "--data", pictures) == 0
    printed = capsys.readouterr().out
    for text in ("torch-fp32-w1.pt2", "torch-fp32-w0.5.pt2", "24x32", "of 3,960", "3 images", "litheseg predict"):
        assert text in printed
    assert load_export(target).widths == (1.0, 0.5)


def test_every_option_reaches_the_export(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out"
    options = ["--format", "torch", "--widths", ".5", "--size", "20x28", "--layout", "nchw", "--labels", "--no-check"]
    assert run(bundle, "--output", target, "--json", *options) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["export"] == str(target) and content["certificates"] == {}
    [network] = content["networks"]
    assert (network["size"], network["layout"], network["output"], network["width"]) == (
        [20, 28],
        "NCHW",
        "labels",
        0.5,
    )
    image = noise(20, 28)
    expected = plain_labels(plain_logits(load_bundle(bundle), 0.5, image), (20, 28))
    assert np.array_equal(open_engine(target)(image), expected)


def test_any_size(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--format", "torch", "--widths", ".5", "--size", "dynamic", "--no-check"]
    assert run(bundle, "--output", tmp_path / "out", *options) == 0
    printed = capsys.readouterr().out
    assert "any size" in printed and "not compared with PyTorch" in printed
    assert open_engine(tmp_path / "out").size is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "onnx,tflite"], "'tflite' is no format; choose from coreml, executorch, litert, ncnn, onnx"),
        (["--size", "big"], "'big' is no size"),
        (["--widths", ".3"], "no width 0.3; available: 1, 0.5"),
        (["--share", "--format", "torch", "--no-check"], "only fp32 networks in ONNX share weights"),
        ([], "the bundle does not say which data it was trained on; name the data's folder with --data"),
        (["--threshold", "99"], "threshold 99 is no share of pixels"),
    ],
)
def test_mistakes_cost_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert run(bundle, "--output", tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_an_export_is_replaced_only_with_force(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [bundle, "--output", tmp_path / "out", "--format", "torch", "--widths", ".5", "--no-check"]
    assert run(*options) == 0
    assert run(*options) == 2 and "holds an export; replace it with --force" in capsys.readouterr().err
    assert run(*options, "--force") == 0
