"""An export runs where there is no PyTorch: in an environment that holds the base install and one runtime."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image
from registry import registered
from tiny_export import build_tiny, tiny_bundle
from tiny_zoo import tiny_zoo

import litheseg
from litheseg.deploy.export import export_bundle
from litheseg.runtime.latency import street_frames
from litheseg.runtime.predictor import Predictor

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the environment is made of links")

HEAVY = ("torch", "torchvision", "lightning", "timm", "scipy", "matplotlib", "safetensors", "numba", "jsonargparse")
EXTRAS = ("serve", "video")

_registered = registered(tiny=build_tiny)


def needed(requirements: Iterator[Requirement], found: dict[str, Distribution]) -> None:
    """Add the distributions that these requirements bring, and what those require."""
    for requirement in requirements:
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found:
            continue
        found[name] = distribution(name)
        extras = ("", *requirement.extras)
        needed((r for r in parsed(found[name]) if applies(r, extras)), found)


def parsed(package: Distribution) -> Iterator[Requirement]:
    return (Requirement(text) for text in package.requires or ())


def applies(requirement: Requirement, extras: tuple[str, ...]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def link(package: Distribution, place: Path) -> None:
    """Let the environment have the files of a distribution."""
    for file in package.files or ():
        if file.parts[0] == ".." or file.suffix == ".pth" or "__pycache__" in file.parts:
            continue
        target = place / file
        target.parent.mkdir(parents=True, exist_ok=True)
        source = Path(package.locate_file(file))  # type: ignore[arg-type]
        if source.exists() and not target.exists():
            target.symlink_to(source)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds litheseg, what its base install requires, and two extras."""
    folder = tmp_path_factory.mktemp("box") / "env"
    venv.create(folder, symlinks=True)
    [place] = (folder / "lib").glob("python*/site-packages")
    found: dict[str, Distribution] = {}
    needed((r for r in parsed(distribution("litheseg")) if applies(r, ("", *EXTRAS))), found)
    assert "onnxruntime" in found and not set(HEAVY) & set(found), sorted(found)
    for package in found.values():
        link(package, place)
    (place / "litheseg").symlink_to(Path(litheseg.__file__).parent)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory, _registered: None) -> Path:
    folder = tmp_path_factory.mktemp("model")
    bundle = tiny_bundle(folder / "model.safetensors")
    return export_bundle(bundle, folder / "export", size=(48, 64), check=False).path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(street_frames((60, 80), 3)):
        Image.fromarray(image).save(folder / f"{index}.png")
    return folder


def run(python: Path, *words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [str(python), "-m", "litheseg", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, cwd=folder)


def succeeds(python: Path, *words: object, folder: Path) -> str:
    result = run(python, *words, folder=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_nothing_heavy_is_installed(python: Path) -> None:
    script = f"from importlib.util import find_spec; print([n for n in {HEAVY} if find_spec(n)])"
    assert subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_every_module_of_the_box_is_imported(python: Path) -> None:
    from test_architecture import BOX, HOUSE, MODULES, dotted

    rooms = HOUSE[: HOUSE.index(BOX) + 1]
    names = [name for name in map(dotted, MODULES) if name.count(".") and name.split(".")[1] in rooms]
    # Ray's workers are an extra that is not here; its module is imported all the same.
    script = f"import importlib\nfor name in {names}: importlib.import_module(name)"
    result = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_predict_gives_the_masks_of_the_workstation(python: Path, export: Path, photos: Path, tmp_path: Path) -> None:
    succeeds(python, "predict", export, photos, "--output", "masks", "--kind", "both", "--width", 0.5, folder=tmp_path)
    predictor = Predictor(export, width=0.5)
    for photo in photos.iterdir():
        mask = np.asarray(Image.open(tmp_path / "masks" / photo.name))
        assert np.array_equal(mask, predictor(photo))
        assert (tmp_path / "masks" / f"{photo.stem}_overlay.png").is_file()


def test_videos_are_labelled(python: Path, export: Path, photos: Path, tmp_path: Path) -> None:
    succeeds(python, "video", export, photos, "--output", "frames", folder=tmp_path)
    assert len(list((tmp_path / "frames").iterdir())) == 3
    succeeds(python, "video", export, photos, "--output", "out.mp4", folder=tmp_path)
    assert (tmp_path / "out.mp4").stat().st_size > 100


def test_profile_and_measure(python: Path, export: Path, tmp_path: Path) -> None:
    shown = succeeds(python, "profile", export, "--repeats", 2, "--threads", 1, "--json", folder=tmp_path)
    rows = json.loads(shown)["widths"]
    assert {row["runtime"] for row in rows} == {"onnxruntime"}
    assert all(row["network"]["p50_ms"] < row["end_to_end"]["p50_ms"] for row in rows)
    succeeds(python, "measure", export, "--repeats", 2, "--threads", 1, "--output", "times.json", folder=tmp_path)
    content = json.loads((tmp_path / "times.json").read_text())
    assert content["scope"] == "network" and len(content["model"]) == 64
    assert {row["width"] for row in content["rows"]} == set(Predictor(export).widths)


def test_serve(python: Path, export: Path, photos: Path, tmp_path: Path) -> None:
    line = [str(python), "-m", "litheseg", "serve", str(export), "--port", "0"]
    with (tmp_path / "out").open("w") as out, subprocess.Popen(line, stdout=out, stderr=out, cwd=tmp_path) as server:
        try:
            url = announced(tmp_path / "out")
            photo = next(photos.iterdir())
            answer = httpx.post(f"{url}/v1/segment/mask", files={"image": photo.read_bytes()}, timeout=30)
            assert answer.status_code == 200, answer.text
            assert np.array_equal(np.asarray(Image.open(BytesIO(answer.content))), Predictor(export)(photo))
        finally:
            server.terminate()
        assert server.wait(60) == 0, (tmp_path / "out").read_text()


def announced(out: Path) -> str:
    """The address that the server prints when it is ready."""
    for _ in range(600):
        found = re.search(r"page\s+(http://\S+)", out.read_text())
        if found:
            return found[1].rstrip("/")
        time.sleep(0.1)
    raise AssertionError(out.read_text())


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "model.safetensors", ".", "--output", "x"),
        ("profile", "model.safetensors"),
        ("train",),
        ("evaluate",),
    ],
)
def test_what_needs_pytorch_says_so(python: Path, export: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "model.safetensors").symlink_to(export.parent / "model.safetensors")
    result = run(python, *words, folder=tmp_path)
    assert result.returncode == 2 and result.stderr.count("error: ") == 1, result.stderr
    assert "pip install 'litheseg[train]'" in result.stderr


def test_a_name_of_the_zoo_is_its_export(
    python: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _registered: None
) -> None:
    zoo = tiny_zoo(tmp_path / "made")
    monkeypatch.setenv("LITHESEG_ZOO", str(zoo))
    monkeypatch.setenv("LITHESEG_CACHE", str(tmp_path / "cache"))
    succeeds(python, "predict", "zoo:tiny", photos, "--output", "masks", "--width", 0.5, folder=tmp_path)
    predictor = Predictor(zoo / "tiny-onnx", width=0.5)
    for photo in photos.iterdir():
        assert np.array_equal(np.asarray(Image.open(tmp_path / "masks" / photo.name)), predictor(photo))
    shown = succeeds(python, "models", folder=tmp_path)
    assert "zoo:tiny" in shown and "cache" in shown and "pip install 'litheseg[train]'" in shown
    assert succeeds(python, "pull", "tiny", folder=tmp_path).strip().startswith(str(tmp_path / "cache"))
    refused = run(python, "pull", "hf:owner/name", folder=tmp_path)
    assert refused.returncode == 2 and "pip install 'litheseg[hub]'" in refused.stderr


def test_python_needs_no_pytorch_either(python: Path, export: Path, photos: Path) -> None:
    script = (
        "import sys, litheseg\n"
        f"predictor = litheseg.Predictor({str(export)!r}, width=0.5)\n"
        f"print(predictor({str(next(photos.iterdir()))!r}).shape)\n"
    )
    result = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "(60, 80)", result.stderr


def test_the_test_itself_sees_what_is_installed_here() -> None:
    assert all(name in sys.modules or distribution(name) for name in ("torch", "lightning"))
