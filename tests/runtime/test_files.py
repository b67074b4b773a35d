from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from litheseg.errors import DataError, LithesegError, WidthError
from litheseg.masks.classes import Classes
from litheseg.models import MODELS, SegmentationModel
from litheseg.models.bundle import Bundle, BundleHeader, load_bundle, save_bundle
from litheseg.nn import slim
from litheseg.runtime.files import Progress, Summary, predict_files
from litheseg.runtime.predictor import Predictor

CLASSES = Classes(("dark", "bright"), ((10, 20, 30), (200, 100, 0)))


class _Brightness(SegmentationModel):
    """Class 1 where the image is bright."""

    def __init__(self) -> None:
        super().__init__(2)
        self.features, self.classifier = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False)
        with torch.no_grad():
            self.features.weight.zero_()
            self.features.weight[0] = 1
            self.classifier.weight.zero_()
            self.classifier.weight[1, 0] = 1

    def outputs(self, image: Tensor) -> dict[str, Tensor]:
        features = self.features(image)
        return {"logits": self.classifier(features), "features": features}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setitem(MODELS, "brightness", lambda num_classes, aux_head, boundary_head: _Brightness())
    header = BundleHeader({"name": "brightness", "args": {}}, CLASSES, widths=(1.0, 0.5), size=(8, 8))
    save_bundle(tmp_path / "model.safetensors", slim(_Brightness(), (1.0, 0.5)), header)
    return load_bundle(tmp_path / "model.safetensors")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    _write(folder / "a.png")
    _write(folder / "deep" / "b.JPG")
    _write(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def _pixels() -> np.ndarray:
    image = np.zeros((12, 20, 3), np.uint8)
    image[:, 10:] = 255
    return image


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_pixels()).save(path)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _report(folder: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in (folder / "failed.jsonl").read_text().splitlines()]
    return {row["image"]: row["reason"] for row in rows}


def test_folders_are_mirrored_as_palette_masks(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    summary = predict_files(bundle, photos, tmp_path / "out")
    assert summary == Summary(images=2, written=2, skipped=0, failed=())
    assert _files(tmp_path / "out") == ["a.png", "deep/b.png"]
    with Image.open(tmp_path / "out" / "a.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), _pixels()[:, :, 0] // 255)
        assert np.array_equal(np.asarray(mask.convert("RGB"))[0, [0, 19]], CLASSES.colors)


def test_overlays_and_both(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    predict_files(bundle, [photos / "a.png"], tmp_path / "one", kind="overlay", alpha=1.0, legend=False)
    assert _files(tmp_path / "one") == ["a_overlay.png"]
    with Image.open(tmp_path / "one" / "a_overlay.png") as image:
        assert np.array_equal(np.asarray(image)[0, [0, 19]], CLASSES.colors)
    predict_files(bundle, [photos / "a.png"], tmp_path / "clear", kind="overlay", alpha=1.0, clear=[CLASSES.names[1]])
    with Image.open(tmp_path / "clear" / "a_overlay.png") as image, Image.open(photos / "a.png") as photo:
        pixels = np.asarray(image)
        assert len(pixels) > photo.height, "the legend below"
        assert np.array_equal(pixels[0, [0, 19]], [CLASSES.colors[0], np.asarray(photo)[0, 19]])
    with pytest.raises(DataError, match="no class 'cloud' to stay clear"):
        predict_files(bundle, photos, tmp_path / "none", kind="overlay", clear=["cloud"])
    assert not (tmp_path / "none").exists()
    assert predict_files(bundle, photos, tmp_path / "two", kind="both").written == 4
    assert _files(tmp_path / "two") == ["a.png", "a_overlay.png", "deep/b.png", "deep/b_overlay.png"]


def test_bad_images_are_named_and_the_others_go_on(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (photos / "0_broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    truncated = photos / "1_truncated.png"
    truncated.write_bytes((photos / "a.png").read_bytes()[:60])
    seen: list[Progress] = []
    summary = predict_files(
        bundle,
        [photos, tmp_path / "missing.jpg", photos / "notes.txt"],
        tmp_path / "out",
        progress=seen.append,
    )
    assert (summary.images, summary.written) == (6, 2)
    names = ["0_broken.png", "1_truncated.png", "missing.jpg", "notes.txt"]
    assert [Path(name).name for name, _ in summary.failed] == names
    assert all(Path(name).name in reason for name, reason in summary.failed)
    assert [state.done for state in seen] == [*range(7)]
    assert seen[-1] == Progress(total=6, kept=0, labelled=2, failed=4)
    assert _files(tmp_path / "out") == ["a.png", "deep/b.png", "failed.jsonl"]
    assert _report(tmp_path / "out") == dict(summary.failed)


def test_a_network_that_fails_on_one_image(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    predictor = Predictor(bundle)
    calls: list[int] = []

    def fails_once(_module: nn.Module, _args: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of memory")

    next(predictor.module().children()).register_forward_pre_hook(fails_once)
    summary = predict_files(predictor, photos, tmp_path / "out")
    [(name, reason)] = summary.failed
    assert reason == f"{name}: out of memory" and summary.written == 1


def test_nothing_is_overwritten_without_force(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").write_text("mine")
    assert predict_files(bundle, photos, out) == Summary(images=2, written=1, skipped=1, failed=())
    assert (out / "a.png").read_text() == "mine"
    assert predict_files(bundle, photos, out, kind="both") == Summary(images=2, written=2, skipped=2, failed=())
    assert predict_files(bundle, photos, out, force=True) == Summary(images=2, written=2, skipped=0, failed=())
    assert (out / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("force", [True, False])
def test_inputs_are_never_overwritten(bundle: Bundle, photos: Path, force: bool) -> None:
    before = (photos / "a.png").read_bytes()
    with pytest.raises(DataError, match="is an input folder"):
        predict_files(bundle, photos, photos, force=force)
    summary = predict_files(bundle, [photos / "a.png"], photos, force=force)
    assert "is one of the inputs" in summary.failed[0][1]
    assert (photos / "a.png").read_bytes() == before


def test_an_output_inside_the_input_is_not_read_again(bundle: Bundle, photos: Path) -> None:
    for _ in range(2):
        assert predict_files(bundle, photos, photos / "out", force=True).images == 2


def test_two_images_of_one_result_name(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    _write(photos / "a.jpg")
    summary = predict_files(bundle, photos, tmp_path / "out")
    assert summary.written == 2
    assert [Path(name).name for name, _ in summary.failed] == ["a.png"]
    assert "a.jpg; rename one" in summary.failed[0][1]


def test_wrong_arguments(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'overlay'"):
        predict_files(bundle, photos, tmp_path / "out", kind="overlays")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="unknown engine 'rai'"):
        predict_files(bundle, photos, tmp_path / "out", engine="rai")
    with pytest.raises(DataError, match="workers is 0"):
        predict_files(bundle, photos, tmp_path / "out", workers=0)
    with pytest.raises(DataError, match="engine 'ray' needs the path"):
        predict_files(bundle, photos, tmp_path / "out", engine="ray")
    with pytest.raises(DataError, match="alpha"):
        predict_files(bundle, photos, tmp_path / "out", alpha=2)
    with pytest.raises(DataError, match="is a file; give a folder"):
        predict_files(bundle, photos, photos / "notes.txt")
    with pytest.raises(WidthError, match=r"available: 1, 0\.5"):
        predict_files(bundle, photos, tmp_path / "out", width=0.3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        predict_files(bundle, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_stops_the_run(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "a.png").mkdir(parents=True)
    with pytest.raises(LithesegError, match=r"cannot write .*a\.png"):
        predict_files(bundle, photos, tmp_path / "out", force=True)


def test_the_report_of_an_earlier_run_goes_when_nothing_fails(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (photos / "broken.png").write_text("no image")
    assert len(predict_files(bundle, photos, tmp_path / "out").failed) == 1
    _write(photos / "broken.png")
    assert predict_files(bundle, photos, tmp_path / "out") == Summary(images=3, written=1, skipped=2, failed=())
    assert _files(tmp_path / "out") == ["a.png", "broken.png", "deep/b.png"]


def test_ctrl_c_leaves_whole_files_and_the_same_call_goes_on(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    for number in range(30):
        _write(photos / f"{number:02}.png")
    (photos / "000.png").write_text("no image")

    def impatient(state: Progress) -> None:
        if state.done >= 5:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_files(bundle, photos, out, workers=1, progress=impatient)
    done = {path: path.stat() for path in out.rglob("*.png")}
    assert 4 <= len(done) < 32
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in done)  # no temporary files either
    assert list(_report(out)) == [str(photos / "000.png")]
    summary = predict_files(bundle, photos, out)
    assert (summary.images, summary.written, summary.skipped) == (33, 32 - len(done), len(done))
    assert all((path.stat().st_ino, path.stat().st_mtime_ns) == (s.st_ino, s.st_mtime_ns) for path, s in done.items())


def test_failures_are_listed_as_they_happen(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    for number in range(3):
        (photos / f"0_broken{number}.png").write_text("no image")
    out, seen = tmp_path / "out", list[tuple[int, int]]()

    def look(state: Progress) -> None:
        seen.append((state.failed, len(_report(out)) if (out / "failed.jsonl").exists() else 0))

    predict_files(bundle, [photos, photos / "a.jpg"], out, progress=look)
    assert all(failed == listed for failed, listed in seen) and seen[-1] == (4, 4)
    (photos / "0_broken1.png").unlink()
    _write(photos / "0_broken1.png")
    seen.clear()
    assert len(predict_files(bundle, photos, out, progress=look).failed) == 2
    assert max(listed for _, listed in seen) == 4  # of the run before; none was repeated
    assert len((out / "failed.jsonl").read_text().splitlines()) == 2


def test_an_image_that_is_too_large_holds_up_no_other(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((500, 500), np.uint8)).save(photos / "0_giant.png")
    summary = predict_files(bundle, photos, tmp_path / "out", max_pixels=249_999)
    assert summary.written == 2
    [(name, reason)] = summary.failed
    assert reason.startswith(f"{name}: 500 x 500 pixels, and at most 249999 are decoded")
    assert predict_files(bundle, photos, tmp_path / "out", max_pixels=250_000).written == 1
    with pytest.raises(DataError, match="max_pixels is 0"):
        predict_files(bundle, photos, tmp_path / "out", max_pixels=0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_utf8(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    names = [os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"bro\xff\xfeken.png")]
    _write(photos / names[0])
    (photos / names[1]).write_text("no image")
    summary = predict_files(bundle, photos, tmp_path / "out")
    assert summary.written == 3 and (tmp_path / "out" / names[0]).is_file()
    assert list(_report(tmp_path / "out")) == [str(photos / names[1])]
    (photos / names[1]).unlink()
    pytest.importorskip("pyarrow")
    memory = pytest.importorskip("fsspec").filesystem("memory")
    stored = predict_files(bundle, photos, f"memory://{tmp_path.name}/out")
    assert stored.written == 2 and memory.exists(f"memory://{tmp_path.name}/out/deep/b.png")
    [(name, reason)] = stored.failed
    assert name == str(photos / names[0]) and "no UTF-8" in reason


def test_lists_of_images(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text(f"image,output\nphotos/a.png,\n{photos}/deep/b.JPG,x/y.png\nphotos/no.png,\n,\nphotos/a.png,\n")
    summary = predict_files(bundle, listed, tmp_path / "out", kind="both")
    assert summary.images == 4 and summary.written == 4
    assert _files(tmp_path / "out") == [
        "failed.jsonl",
        "photos/a.png",
        "photos/a_overlay.png",
        "x/y.png",
        "x/y_overlay.png",
    ]
    missing, nameless = summary.failed
    assert "photos/no.png does not exist" in missing[1] and "list.csv, row 4 names no image" in nameless[1]


def test_object_stores_for_images_and_results(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    memory = pytest.importorskip("fsspec").filesystem("memory")
    predict_files(bundle, photos, tmp_path / "out")
    store = f"memory://{tmp_path.name}"
    for path in photos.rglob("*.*"):
        memory.pipe_file(f"{store}/photos/{path.relative_to(photos).as_posix()}", path.read_bytes())
    memory.pipe_file(f"{store}/photos/broken # 1.png", b"\x89PNG")
    summary = predict_files(bundle, f"{store}/photos", f"{store}/out")
    assert (summary.images, summary.written) == (3, 2)
    assert [(name, name in reason) for name, reason in summary.failed] == [(f"{store}/photos/broken # 1.png", True)]
    for name in ("a.png", "deep/b.png"):
        assert memory.cat_file(f"{store}/out/{name}") == (tmp_path / "out" / name).read_bytes()
    memory.pipe_file(f"{store}/out/a.png", b"mine")
    assert predict_files(bundle, f"{store}/photos", f"{store}/out").skipped == 2
    assert memory.cat_file(f"{store}/out/a.png") == b"mine"
    assert predict_files(bundle, f"{store}/photos/a.png", f"{store}/out", force=True).written == 1
    assert not memory.exists(f"{store}/out/failed.jsonl")
