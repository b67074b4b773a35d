from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_labelling import CLASSES, files, noise, pixels, save

import litheseg.labelling.tools as tools
from litheseg.data.sources.folder import FolderSource
from litheseg.errors import DataError, FolderInUseError, WidthError
from litheseg.labelling import pseudo_label
from litheseg.locks import folder_lock
from litheseg.models.bundle import Bundle, load_bundle
from litheseg.runtime.files import predict_files
from litheseg.runtime.predictor import Predictor


def _rows(output: Path) -> dict[str, dict[str, str]]:
    with (output / "ranking.csv").open(newline="") as file:
        return {row["image"]: row for row in csv.DictReader(file)}


def _likely(bundle: Bundle, image: np.ndarray) -> np.ndarray:
    """Probabilities K x H x W by the plain model alone."""
    batch = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].double() / 255
    batch = F.interpolate(batch, (12, 16), mode="bilinear", align_corners=False, antialias=True)
    logits = bundle.plain(1.0).double().outputs(batch)["logits"]
    return F.interpolate(logits, image.shape[:2], mode="bilinear").softmax(1)[0].detach().numpy()


def test_masks_are_those_of_predict_and_confidence_is_the_softmax(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = pseudo_label(bundle, photos, out, choose=2)
    assert (result.images, result.written, result.skipped, result.failed) == (4, 8, 0, ())
    predict_files(bundle, photos, tmp_path / "predicted")
    for key in ("a", "b", "c", "deep/d"):
        assert (out / f"masks/{key}.png").read_bytes() == (tmp_path / f"predicted/{key}.png").read_bytes()
        likely = _likely(bundle, pixels(photos / f"{key}.png")).max(0)
        confidence = pixels(out / f"confidence/{key}.png")
        assert confidence.dtype == np.uint8
        np.testing.assert_allclose(confidence, likely * 255, atol=2.1)  # 8-bit rounding, here and after the resize


def test_the_ranking_lists_every_image_with_its_figures(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    result = pseudo_label(bundle, photos, tmp_path / "out", choose=2, threshold=0.6)
    rows = _rows(tmp_path / "out")
    assert result.ranking == tmp_path / "out" / "ranking.csv" and set(rows) == {"a", "b", "c", "deep/d"}
    assert tuple(key for key, row in rows.items() if row["chosen"] == "yes") == result.chosen
    assert [row["rank"] for row in rows.values()] == ["1", "2", "3", "4"]
    likely = _likely(bundle, pixels(photos / "c.png"))
    assert float(rows["c"]["confidence"]) == pytest.approx(likely.max(0).mean(), abs=1e-3)
    entropy = -(likely * np.log(likely)).sum(0).mean() / np.log(3)
    assert float(rows["c"]["entropy"]) == pytest.approx(entropy, abs=1e-3)
    assert float(rows["c"]["below"]) == pytest.approx((likely.max(0) < 0.6).mean(), abs=0.02)
    assert rows["c"]["classes"] == "red;green"


def test_a_copy_is_not_chosen_before_a_distinct_image(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    result = pseudo_label(bundle, photos, tmp_path / "out", choose=3)
    assert {"a", "b"} - set(result.chosen) == {"b"}
    assert list(_rows(tmp_path / "out"))[-1] == "b"
    assert float(_rows(tmp_path / "out")["b"]["gain"]) == 0


def test_unsure_pixels_are_ignored(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    pseudo_label(bundle, photos, tmp_path / "all")
    pseudo_label(bundle, photos, tmp_path / "sure", threshold=0.6)
    labels, kept = (pixels(tmp_path / name / "masks/a.png") for name in ("all", "sure"))
    likely = _likely(bundle, pixels(photos / "a.png")).max(0)
    clear = abs(likely - 0.6) > 0.01  # beyond the 8-bit rounding after the resize
    assert (kept == 255).any() and (kept != 255).any()
    assert np.array_equal(kept[clear], np.where(likely < 0.6, 255, labels)[clear])
    assert np.array_equal(pixels(tmp_path / "all/confidence/a.png"), pixels(tmp_path / "sure/confidence/a.png"))


def test_two_runs_do_not_share_an_output(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    """A ranking is of all images of a folder."""
    with folder_lock(tmp_path / "out"), pytest.raises(FolderInUseError, match="out is in use by process"):
        pseudo_label(bundle, photos, tmp_path / "out")
    assert pseudo_label(bundle, photos, tmp_path / "out").ranking.exists()


def test_the_output_is_a_data_set(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    pseudo_label(bundle, photos, tmp_path / "out")
    source = FolderSource(tmp_path / "out", val_fraction=0)
    assert source.classes == CLASSES
    assert [sample.id for sample in source.samples("train")] == ["a", "b", "c", "deep/d"]
    for sample in source.samples("train"):
        assert np.array_equal(source.read_image(sample), pixels(photos / f"{sample.id}.png"))
        assert source.read_mask(sample).shape == source.read_image(sample).shape[:2]


def test_images_are_copied_where_there_are_no_links(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(tools.Path, "symlink_to", refuse)
    pseudo_label(bundle, photos, tmp_path / "out")
    copy = tmp_path / "out" / "images" / "a.png"
    assert not copy.is_symlink() and copy.read_bytes() == (photos / "a.png").read_bytes()


def test_bad_images_are_named_and_the_others_go_on(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    (photos / "0_broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
    (photos / "1_cut.png").write_bytes((photos / "a.png").read_bytes()[:200])
    result = pseudo_label(bundle, photos, tmp_path / "out")
    assert (result.images, result.written) == (6, 8)
    assert [Path(name).name for name, _ in result.failed] == ["0_broken.png", "1_cut.png"]
    assert all(Path(name).name in reason for name, reason in result.failed)
    assert set(_rows(tmp_path / "out")) == {"a", "b", "c", "deep/d"}
    assert not (tmp_path / "out" / "images" / "0_broken.png").exists()


def test_nothing_to_rank_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match="no images in"):
        pseudo_label(bundle, tmp_path / "photos", tmp_path / "out")
    (tmp_path / "photos" / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"none of the 1 images could be labelled.*a\.png"):
        pseudo_label(bundle, tmp_path / "photos", tmp_path / "out")


def _forbid_the_network(predictor: Predictor) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the network ran")

    next(predictor.module().children()).register_forward_pre_hook(fail)
    predictor.outputs_rgb = fail  # type: ignore[assignment]


def test_a_finished_run_again_changes_nothing_and_runs_nothing(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    first = pseudo_label(bundle, photos, tmp_path / "out", choose=2, export="cvat")
    before = files(tmp_path / "out")
    predictor = Predictor(bundle)
    _forbid_the_network(predictor)
    again = pseudo_label(predictor, photos, tmp_path / "out", choose=2, export="cvat")
    assert (again.written, again.skipped, again.chosen, again.export) == (0, 8, first.chosen, first.export)
    assert files(tmp_path / "out") == before


def test_a_stopped_run_goes_on_to_the_same_result(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    pseudo_label(bundle, photos, tmp_path / "whole", choose=2)

    predictor, asked = Predictor(bundle), list[int]()

    def stop_at_the_third(*arguments: Any, **options: Any) -> Any:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return Predictor.outputs_rgb(predictor, *arguments, **options)

    predictor.outputs_rgb = stop_at_the_third  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        pseudo_label(predictor, photos, tmp_path / "out", choose=2)
    assert not (tmp_path / "out" / "ranking.csv").exists()
    (tmp_path / "out" / "scores" / "b.json").unlink()  # as if stopped between the mask and its scores
    result = pseudo_label(bundle, photos, tmp_path / "out", choose=2)
    assert (result.written, result.skipped) == (4, 4)
    whole, resumed = files(tmp_path / "whole"), files(tmp_path / "out")
    assert {name: content for name, content in whole.items() if name != "classes.yaml"} == {
        name: content for name, content in resumed.items() if name != "classes.yaml"
    }


def test_nothing_is_overwritten_without_force(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mine = np.full((20, 30), 2, np.uint8)
    save(out / "masks" / "a.png", mine)
    (out / "confidence").mkdir()
    (out / "confidence" / "b.png").write_text("mine")
    result = pseudo_label(bundle, photos, out, choose=1)
    assert (result.written, result.skipped) == (6, 2)
    assert np.array_equal(pixels(out / "masks" / "a.png"), mine)
    assert (out / "confidence" / "b.png").read_text() == "mine"
    (out / "ranking.csv").write_text("mine")
    with pytest.raises(DataError, match=r"ranking\.csv exists and would change"):
        pseudo_label(bundle, photos, out, choose=1)
    assert (out / "ranking.csv").read_text() == "mine"
    assert pseudo_label(bundle, photos, out, choose=1, force=True).written == 8
    assert not np.array_equal(pixels(out / "masks" / "a.png"), mine)
    assert set(_rows(out)) == {"a", "b", "c", "deep/d"}


@pytest.mark.parametrize("changed", [{"width": 0.5}, {"threshold": 0.5}])
def test_results_of_other_settings_are_not_mixed(
    bundle: Bundle, photos: Path, tmp_path: Path, changed: dict[str, float]
) -> None:
    pseudo_label(bundle, photos, tmp_path / "out")
    before = files(tmp_path / "out")
    with pytest.raises(DataError, match="another model, width or threshold"):
        pseudo_label(bundle, photos, tmp_path / "out", **changed)
    assert files(tmp_path / "out") == before
    assert pseudo_label(bundle, photos, tmp_path / "out", force=True, **changed).written == 8


def test_another_model_is_not_mixed_in(model: Path, bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    pseudo_label(model, photos, tmp_path / "out")
    assert pseudo_label(load_bundle(model), photos, tmp_path / "out").skipped == 8  # the same weights, loaded anew
    state = {name: value * 2 for name, value in bundle.state_dict.items()}
    with pytest.raises(DataError, match="another model"):
        pseudo_label(Bundle(bundle.header, state), photos, tmp_path / "out")


def test_an_output_among_the_images_is_not_labelled(bundle: Bundle, photos: Path) -> None:
    for _ in range(2):
        result = pseudo_label(bundle, photos, photos / "out", choose=2, export="label-studio")
        assert result.images == 4 and result.failed == ()


def test_images_are_never_replaced(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    before = files(photos)
    for output in (photos, tmp_path):
        with pytest.raises(DataError, match="lie in the output folder"):
            pseudo_label(bundle, photos, output, force=True)
    pseudo_label(bundle, photos, tmp_path / "out", force=True)
    pseudo_label(bundle, photos, tmp_path / "out", force=True)
    assert files(photos) == before


def test_wrong_arguments(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="Did you mean 'cvat'"):
        pseudo_label(bundle, photos, out, export="cvatt")
    with pytest.raises(DataError, match=r"threshold 1\.5 is outside"):
        pseudo_label(bundle, photos, out, threshold=1.5)
    with pytest.raises(DataError, match="cannot choose -1"):
        pseudo_label(bundle, photos, out, choose=-1)
    with pytest.raises(WidthError, match=r"available: 1, 0\.5"):
        pseudo_label(bundle, photos, out, width=0.3)
    with pytest.raises(DataError, match="does not exist"):
        pseudo_label(bundle, tmp_path / "nowhere", out)
    with pytest.raises(DataError, match="is a file; give a folder"):
        pseudo_label(bundle, photos, photos / "a.png")
    with pytest.raises(DataError, match="max_pixels is 0"):
        pseudo_label(bundle, photos, out, max_pixels=0)
    assert not out.exists()


def test_images_of_one_stem_hold_up_no_others(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    for name in ("a.tif", "a.webp", "c.tif"):
        Image.fromarray(noise(4, 4, 0)).save(photos / name)
    found = pseudo_label(bundle, photos, tmp_path / "out")
    alike = {path: reason for path, reason in found.failed if "has the stem of" in reason}
    stems = [path.stem for path in photos.iterdir()]
    assert len(alike) == len(stems) - len(set(stems)) and all("keep one of them" in reason for reason in alike.values())
    assert found.written and (tmp_path / "out" / "masks" / "a.png").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_utf8_and_images_that_are_too_large_fail_alone(
    bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes((photos / "a.png").read_bytes())
    Image.fromarray(noise(200, 200, 0)).save(photos / "large.png")
    result = pseudo_label(bundle, photos, tmp_path / "out", export="cvat", max_pixels=39_999)
    assert set(_rows(tmp_path / "out")) == {"a", "b", "c", "deep/d"}
    (name, why), (large, size) = result.failed
    assert os.fsencode(name).endswith(b"caf\xe9.png") and "no UTF-8" in why
    assert large.endswith("large.png") and "200 x 200 pixels" in size


def test_scores_are_plain_json(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    pseudo_label(bundle, photos, tmp_path / "out")
    scores = json.loads((tmp_path / "out" / "scores" / "deep" / "d.json").read_text())
    assert set(scores) == {"entropy", "margin", "confidence", "below", "classes", "features"}
    assert len(scores["features"]) == 8
